"""Times the masked convolution against TensorFlow's dense one on the layers of known networks.

    python benchmarks/masked_conv2d.py --networks=googlenet --batches=16 --keeps=1,.5,.25

Each row of benchmarks/shapes/*.txt is timed in one process: the dense convolution with bias and
relu in one tf.function, and ours with random kept positions and nearest interpolation, take turns;
what is printed are medians. A function holds the layer several times, one after the other, each on
images of its own: as inside a network, calling TensorFlow costs next to nothing and no image waits
in a cache. "of ideal" is the speed-up divided by 1 / keep, and with --pair by the ratio of the
multiplications as well. All four networks at two batch sizes and four keeps take about ten minutes
on two cores.
"""

import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import tensorflow as tf
from absl import app, flags

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.steps import write_json
from espace_tf import kernels
from espace_tf.files import output_path
from espace_tf.kernels.index_map import Geometry, IndexMap, reindex, rows_read

SHAPES = Path(__file__).parent / "shapes"
# A call does about this many multiply-accumulates (some 20 ms), in 2 to 20 copies of the layer.
_MACS = 2e9
NETWORKS = flags.DEFINE_list("networks", ["alexnet", "googlenet", "vgg16", "resnet50"], "Which.")
BATCHES = flags.DEFINE_list("batches", ["1", "16"], "Batch sizes.")
KEEPS = flags.DEFINE_list("keeps", ["1", ".5", ".25", ".1"], "Shares of the positions to compute.")
TURNS = flags.DEFINE_integer("turns", 15, "Each measures every variant once.")
LARGER = flags.DEFINE_bool("larger", False, "Leave out 1x1 convolutions.")
STEP = flags.DEFINE_bool("step", False, "Time forward and all gradients instead of forward.")
PAIR = flags.DEFINE_float("pair", None, "Time a low-rank pair of this share of the MACs instead.")
JSON = flags.DEFINE_string("json", None, "File to write the rows to.")


@dataclass(frozen=True)
class Layer:
    """One line of a shapes file."""

    geometry: Geometry
    channels: int
    filters: int
    times: int

    @property
    def macs(self) -> int:
        """Multiplications per image, once."""
        taps = self.geometry.taps
        return self.geometry.rows_out * taps * self.channels * self.filters

    def __str__(self) -> str:
        (height, width), (kh, kw) = self.geometry.input_size, self.geometry.kernel_size
        return (
            f"{height}x{width}x{self.channels}->{self.filters} {kh}x{kw}/{self.geometry.strides[0]}"
        )


def layers(network: str) -> Iterator[Layer]:
    """The layers of a shapes file."""
    for line in (SHAPES / f"{network}.txt").read_text().splitlines():
        if line.startswith("#"):
            continue
        height, width, channels, filters, kh, kw, stride, pad, times = map(int, line.split())
        geometry = Geometry(
            kernel_size=(kh, kw),
            input_size=(height, width),
            strides=(stride, stride),
            padding=((pad, pad), (pad, pad)),
        )
        yield Layer(geometry, channels, filters, times)


def masked_map(geometry: Geometry, keep: float) -> IndexMap:
    """Random positions, the same in every run; never TensorFlow's own dense convolution."""
    rows = geometry.rows_out
    kept = np.random.default_rng(0).choice(rows, max(int(keep * rows), 1), replace=False)
    return replace(IndexMap.conv(geometry, np.sort(kept)), geometry=None)


def weights(*shape: int) -> tf.Variable:
    """Random weights that keep the scale of what passes through them."""
    values = np.random.default_rng(0).standard_normal(shape, np.float32)
    return tf.Variable(values / np.sqrt(np.prod(shape[:-1]), dtype=np.float32))


def dense(layer: Layer) -> Callable[[tf.Tensor], tf.Tensor]:
    """TensorFlow's convolution with bias and relu."""
    geometry, bias = layer.geometry, tf.Variable(tf.random.normal([layer.filters]))
    kernel = weights(*geometry.kernel_size, layer.channels, layer.filters)
    padding = [(0, 0), *geometry.pads, (0, 0)]
    return lambda x: tf.nn.relu(
        tf.nn.bias_add(tf.nn.conv2d(x, kernel, geometry.strides, padding), bias)
    )


def masked(layer: Layer, keep: float) -> Callable[[tf.Tensor], tf.Tensor]:
    """Ours, at this keep."""
    index_map = masked_map(layer.geometry, keep)
    kernel = weights(*layer.geometry.kernel_size, layer.channels, layer.filters)
    bias = tf.Variable(tf.random.normal([layer.filters]))
    return lambda x: kernels.apply_map(x, kernel, bias, index_map, activation="relu")


def pair(layer: Layer, keep: float, share: float) -> tuple[Callable[[tf.Tensor], tf.Tensor], float]:
    """A vertical low-rank pair, and what share of the layer's multiplications it takes at keep 1.

    The rank is the nearest multiple of 16, which fills vectors of every width.
    """
    whole = layer.geometry
    pads, strides = whole.pads, whole.strides
    first = Geometry(
        kernel_size=(whole.kernel_size[0], 1),
        input_size=whole.input_size,
        strides=(strides[0], 1),
        padding=(pads[0], (0, 0)),
    )
    second = Geometry(
        kernel_size=(1, whole.kernel_size[1]),
        input_size=first.output_size,
        strides=(1, strides[1]),
        padding=((0, 0), pads[1]),
    )
    per_rank = first.rows_out * first.taps * layer.channels
    per_rank += second.rows_out * second.taps * layer.filters
    rank = max(round(share * layer.macs / per_rank / 16), 1) * 16
    after = masked_map(second, keep)
    read = rows_read(after.table)
    before = replace(IndexMap.conv(first, read, spread=False), geometry=None)
    after = IndexMap(reindex(after.table, read), after.spread, len(read))
    kernel_1 = weights(first.kernel_size[0], 1, layer.channels, rank)
    kernel_2 = weights(1, second.kernel_size[1], rank, layer.filters)
    bias = tf.Variable(tf.random.normal([layer.filters]))

    def run(x: tf.Tensor) -> tf.Tensor:
        thin = kernels.apply_map(x, kernel_1, None, before)
        return kernels.apply_map(thin, kernel_2, bias, after, activation="relu")

    return run, rank * per_rank / layer.macs


def step(forward: Callable[[tf.Tensor], tf.Tensor]) -> Callable[[tf.Tensor], list[tf.Tensor]]:
    """The forward pass and its gradients for the input and every variable."""

    def run(x: tf.Tensor) -> list[tf.Tensor]:
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = forward(x)
        return tape.gradient(y, [x, *tape.watched_variables()])

    return run


def traced(call: Callable) -> Callable:
    """A function that makes this call for each of its inputs and gives one number of each result.

    TensorFlow runs one operation at a time here, so that calls do not overlap.
    """

    def run(*inputs: tf.Tensor) -> list[tf.Tensor]:
        return [tf.reshape(y, [-1])[0] for x in inputs for y in tf.nest.flatten(call(x))]

    return tf.function(run)


def milliseconds(calls: dict[str, Callable], inputs: list[tf.Tensor]) -> dict[str, float]:
    """Medians per input of the calls, which take turns after two that do not count."""
    found = {name: [] for name in calls}
    for turn in range(TURNS.value + 2):
        for name, call in calls.items():
            start = time.perf_counter()
            call(*inputs)
            if turn >= 2:
                found[name].append(1e3 * (time.perf_counter() - start) / len(inputs))
    return {name: statistics.median(times) for name, times in found.items()}


def measure(layer: Layer, batch: int) -> list[dict]:
    """A row for each keep."""
    keeps = [float(keep) for keep in KEEPS.value]
    variants, share = {"dense": dense(layer)}, 1.0
    for keep in keeps:
        if PAIR.value is None:
            variants[str(keep)] = masked(layer, keep)
        else:
            variants[str(keep)], share = pair(layer, keep, PAIR.value)
    if STEP.value:
        variants = {name: step(forward) for name, forward in variants.items()}
    copies = int(np.clip(_MACS // (layer.macs * batch), 2, 20))
    shape = [batch, *layer.geometry.input_size, layer.channels]
    inputs = [tf.random.normal(shape) for _ in range(copies)]
    found = milliseconds({name: traced(call) for name, call in variants.items()}, inputs)
    speed_ups = {keep: found["dense"] / found[str(keep)] for keep in keeps}
    return [
        {
            "layer": str(layer),
            "times": layer.times,
            "batch": batch,
            "keep": keep,
            "dense_ms": found["dense"],
            "ms": found[str(keep)],
            "speed_up": speed_ups[keep],
            "of_ideal": speed_ups[keep] * keep * share,
            "dense_gflops": 2e-6 * layer.macs * batch / found["dense"],
        }
        for keep in keeps
    ]


def main(arguments: list[str]) -> None:
    """Prints a table and writes it."""
    del arguments
    tf.config.threading.set_inter_op_parallelism_threads(1)
    if JSON.value:
        output_path(JSON.value, "--json")
    print(f"backend: {kernels.backend()}")
    every = []
    for network in NETWORKS.value:
        for batch in map(int, BATCHES.value):
            rows = []
            for layer in layers(network):
                if LARGER.value and layer.geometry.taps == 1:
                    continue
                rows += measure(layer, batch)
                report = rows[-len(KEEPS.value) :]
                shown = "  ".join(f"{r['keep']:g}: {r['speed_up']:5.2f}x" for r in report)
                rate = f"{report[0]['dense_gflops']:4.0f} GFLOP/s {report[0]['dense_ms']:8.2f} ms"
                print(
                    f"{network} batch {batch:2d} {str(layer):24s} dense {rate}  {shown}", flush=True
                )
            for keep in sorted({row["keep"] for row in rows}, reverse=True):
                alike = [row for row in rows if row["keep"] == keep]
                speed, ideal = ([row[name] for row in alike] for name in ("speed_up", "of_ideal"))
                summary = f"{statistics.mean(speed):.2f}x on average, "
                summary += f"{statistics.mean(ideal):.2f} of ideal, least {min(ideal):.2f}"
                print(f"{network} batch {batch:2d} keep {keep:g}: {summary}")
            every += [{"network": network, **row} for row in rows]
    if JSON.value:
        write_json(Path(JSON.value), every)


if __name__ == "__main__":
    app.run(main)
