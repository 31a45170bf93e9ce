"""What a call of the masked convolution costs besides time: its memory, and checking its tables.

    python -m benchmarks.call_costs --networks=googlenet --batch=16

For every k > 1 convolution of benchmarks/shapes/*.txt, against TensorFlow's dense convolution with
bias and relu in one tf.function:

- peak memory of one call, in MB: by how much the process's resident memory rises at most above what
  it was before, the result included; its weights, tables and inputs were there before. Every call
  is measured in a process of its own, after one with a single image (Linux only): TensorFlow keeps
  memory for later calls.
- checking the tables, at most: the time of our call with one channel, one filter and one image,
  which reads and checks the same table but computes next to nothing, over the time of the call.
"""

import multiprocessing
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from absl import app, flags

from benchmarks import masked_conv2d
from benchmarks.masked_conv2d import Layer
from benchmarks.steps import write_json
from espace_tf import kernels
from espace_tf.files import output_path

_BATCH = flags.DEFINE_integer("batch", 16, "Images in a call.", 1)
_KEEP = flags.DEFINE_float("keep", 0.5, "Share of the positions to compute.", 0, 1)
_FIELDS = ("VmRSS", "VmHWM")


def peak_bytes(network: str, index: int, keep: float | None, batch: int) -> int:
    """Bytes by which one call raises the process's memory at most; for a process of its own.

    Args:
        network, index: which layer.
        keep: of the masked convolution; None: TensorFlow's dense one.
        batch: images.
    """
    layer = list(masked_conv2d.layers(network))[index]
    make = masked_conv2d.dense(layer) if keep is None else masked_conv2d.masked(layer, keep)
    size = (*layer.geometry.input_size, layer.channels)
    call = tf.function(make, input_signature=[tf.TensorSpec([None, *size])])
    x = tf.constant(np.random.default_rng(0).standard_normal((batch, *size), np.float32))
    call(tf.constant(x.numpy()[:1]))
    before = _memory()["VmRSS"]
    Path("/proc/self/clear_refs").write_text("5")  # the peak is what it is now
    call(x)
    return _memory()["VmHWM"] - before


def _memory() -> dict[str, int]:
    """Bytes that are resident, and their peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    return {name: 1024 * int(fields[name].split()[0]) for name in _FIELDS}


def checking_share(layer: Layer, keep: float, batch: int) -> float:
    """The time of a call that does little but check its tables, over that of the whole call."""
    tiny = Layer(layer.geometry, 1, 1, 1)
    size = layer.geometry.input_size
    whole = tf.function(masked_conv2d.masked(layer, keep))
    check = tf.function(masked_conv2d.masked(tiny, keep))
    x, one = tf.random.normal([batch, *size, layer.channels]), tf.random.normal([1, *size, 1])
    calls = {"whole": whole, "check": lambda _: check(one), "nothing": tf.function(tf.identity)}
    found = masked_conv2d.milliseconds(calls, [x])
    return max(found["check"] - found["nothing"], 0.0) / found["whole"]


def measure(network: str, index: int, pool: Any) -> dict[str, Any]:
    """A row for one layer."""
    layer = list(masked_conv2d.layers(network))[index]
    calls = [(network, index, keep, _BATCH.value) for keep in (None, _KEEP.value, 1.0)]
    dense, ours, full = (1e-6 * bytes_ for bytes_ in pool.starmap(peak_bytes, calls, chunksize=1))
    return {
        "network": network,
        "layer": str(layer),
        "dense_mb": dense,
        "masked_mb": ours,
        "full_mb": full,
        "checking": checking_share(layer, _KEEP.value, _BATCH.value),
    }


def _pool() -> Any:
    """A pool that starts a process for every call."""
    return multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1)


def main(arguments: list[str]) -> None:
    """Prints a table and writes it."""
    del arguments
    if masked_conv2d.JSON.value:
        output_path(masked_conv2d.JSON.value, "--json")
    print(f"backend: {kernels.backend()}")
    rows = []
    with _pool() as pool:
        for network in masked_conv2d.NETWORKS.value:
            for index, layer in enumerate(masked_conv2d.layers(network)):
                if layer.geometry.taps == 1:
                    continue
                rows.append(row := measure(network, index, pool))
                print(
                    f"{network} {row['layer']:24s} peak MB: dense {row['dense_mb']:7.1f}  "
                    f"keep {_KEEP.value:g} {row['masked_mb']:7.1f}  keep 1 {row['full_mb']:7.1f}  "
                    f"checking {row['checking']:.2%}",
                    flush=True,
                )
    more = sum(row["masked_mb"] > row["dense_mb"] for row in rows)
    print(
        f"{len(rows)} layers; in {more} of them keep {_KEEP.value:g} takes more memory than dense; "
        f"checking: median {np.median([row['checking'] for row in rows]):.2%}, "
        f"most {max(row['checking'] for row in rows):.2%}"
    )
    if masked_conv2d.JSON.value:
        write_json(Path(masked_conv2d.JSON.value), rows)


if __name__ == "__main__":
    app.run(main)
