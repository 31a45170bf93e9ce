"""Checks and times the masked convolution on a GPU against PyTorch; no TensorFlow.

    make cuda && python -m benchmarks.cuda --check
    make cuda && python -m benchmarks.cuda --networks=resnet50,vgg16 --json=out/cuda.json

Needs a GPU, NumPy, absl and PyTorch with CUDA. The checks compare forward pass and gradients, in
every type, with gathered products in float64 and with torch.nn.functional.conv2d. Then every layer
of benchmarks/shapes/*.txt with random kept positions takes turns with cuDNN's dense convolution
(channels_last, same type, without bias); ours adds bias and relu and writes the whole map. Printed
are medians of CUDA events; "of ideal" is the speed-up divided by 1 / keep.
"""

import datetime
import itertools
import json
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from absl import app, flags

try:
    import torch
    import torch.nn.functional as F  # noqa: N812
except ImportError:
    sys.exit(
        "benchmarks.cuda needs PyTorch with CUDA (`pip install torch`), which is not installed"
    )

from benchmarks.cuda_library import PATH, IndexMap, Library

SHAPES = Path(__file__).parent / "shapes"
LIBRARY = flags.DEFINE_string("library", str(PATH), "What `make cuda` built.")
CHECK = flags.DEFINE_bool("check", False, "Only check.")
NETWORKS = flags.DEFINE_list("networks", ["alexnet", "googlenet", "vgg16", "resnet50"], "Which.")
KEEPS = flags.DEFINE_list("keeps", ["1", ".5", ".25", ".1"], "Shares of the positions to compute.")
MODES = flags.DEFINE_list("modes", ["float32", "tf32", "float16", "bfloat16"], "Types.")
BATCH = flags.DEFINE_integer("batch", 32, "Batch size.")
REPEATS = flags.DEFINE_integer("repeats", 25, "Turns; each times every variant once.")
JSON = flags.DEFINE_string("json", None, "File to write the rows to.")

# Of the largest value.
TOLERANCE = {"float32": 2e-5, "tf32": 3e-3, "float16": 4e-3, "bfloat16": 3e-2}


@dataclass(frozen=True)
class Layer:
    """A line of a shapes file: a square stride and padding."""

    height: int
    width: int
    channels: int
    filters: int
    kernel_height: int
    kernel_width: int
    stride: int
    pad: int

    def __str__(self) -> str:
        size = f"{self.height}x{self.width}x{self.channels}->{self.filters}"
        return f"{size} {self.kernel_height}x{self.kernel_width}/{self.stride}"

    def table(self) -> np.ndarray:
        """int32 [Q, taps]: the input position that each tap of each output position reads."""
        rows, columns = (
            np.arange(0, size + 2 * self.pad - kernel + 1, self.stride)[:, None]
            + np.arange(kernel)
            - self.pad
            for size, kernel in (
                (self.height, self.kernel_height),
                (self.width, self.kernel_width),
            )
        )
        y, x = rows[:, None, :, None], columns[None, :, None, :]
        inside = (y >= 0) & (y < self.height) & (x >= 0) & (x < self.width)
        table = np.where(inside, y * self.width + x, -1)
        return table.reshape(len(rows) * len(columns), -1).astype(np.int32)


# Few and odd channels and filters, less and more than a tile, one position.
ODD = (
    Layer(9, 11, 1, 1, 3, 3, 1, 1),
    Layer(9, 11, 3, 20, 5, 3, 2, 2),
    Layer(14, 14, 40, 136, 3, 3, 1, 1),
    Layer(13, 7, 37, 65, 1, 5, 1, 2),
    Layer(5, 5, 8, 4, 5, 5, 1, 0),
    Layer(17, 17, 130, 258, 3, 3, 1, 1),
)


def layers(network: str) -> Iterator[Layer]:
    """The layers of a shapes file, each once."""
    for line in (SHAPES / f"{network}.txt").read_text().splitlines():
        if not line.startswith("#"):
            yield Layer(*map(int, line.split()[:-1]))


def masked(table: np.ndarray, keep: float) -> tuple[np.ndarray, np.ndarray | None]:
    """Random rows of a table, the same in every run, and the spread to the kept one before."""
    count = len(table)
    if keep >= 1:
        return table, None
    kept = np.random.default_rng(0).choice(count, max(int(keep * count), 1), replace=False)
    kept = np.sort(kept)
    spread = np.maximum(np.searchsorted(kept, np.arange(count), side="right") - 1, 0)
    return table[kept], spread.astype(np.int32)


def type_of(mode: str) -> torch.dtype:
    """float32 for tf32, too."""
    return torch.float32 if mode == "tf32" else getattr(torch, mode)


def random_tensors(layer: Layer, batch: int, shown: int, taps: int, mode: str) -> dict:
    """Operands that keep the scale, and room for the results."""
    rows, depth = layer.height * layer.width, taps * layer.channels
    generator = torch.Generator("cuda").manual_seed(0)
    shapes = {
        "rows": (batch, rows, layer.channels),
        "filter": (taps, layer.channels, layer.filters),
        "bias": (layer.filters,),
        "grad_out": (batch, shown, layer.filters),
    }
    tensors = {
        name: torch.randn(shape, generator=generator, device="cuda")
        for name, shape in shapes.items()
    }
    tensors["filter"] /= depth**0.5
    tensors = {name: value.to(type_of(mode)) for name, value in tensors.items()}
    tensors["out"] = torch.full_like(tensors["grad_out"], float("nan"))
    for name in ("rows", "filter", "bias"):
        tensors[f"grad_{name}"] = torch.full_like(tensors[name], float("nan"))
    return tensors


def expect_close(found: torch.Tensor, expected: torch.Tensor, limit: float, what: str) -> None:
    """Exits unless the largest difference is at most `limit` of the largest value."""
    error = (found.double() - expected).abs().max() / expected.abs().max().clamp(min=1e-3)
    if not error <= limit:
        sys.exit(f"wrong: {what} is off by {error:.2g} of the largest value, more than {limit}")


def check_convolution(library: Library, layer: Layer, keep: float, mode: str) -> None:
    """Forward and gradients against gathered products, and F.conv2d where all is kept."""
    table, spread = masked(layer.table(), keep)
    index_map = IndexMap(library, table, spread, layer.height * layer.width)
    tensors = random_tensors(layer, 2, index_map.rows_out, index_map.taps, mode)
    call = index_map.prepare(tensors, activation="relu", tf32=mode == "tf32")
    call.forward()
    call.gradients()
    what, limit = f"{layer} keep {keep:g} {mode}", TOLERANCE[mode]
    operands = [tensors[name].double().requires_grad_() for name in ("rows", "filter", "bias")]
    rows, kernel, bias = operands
    linear = gather(rows, table).flatten(2) @ kernel.flatten(0, 1) + bias
    if spread is not None:
        linear = linear[:, torch.from_numpy(spread).long().cuda()]
    expect_close(tensors["out"], linear.relu().detach(), limit, f"{what}: out")
    # Near 0 rounding decides what relu lets through: the gradient goes where our output did.
    upstream = tensors["grad_out"].double() * (tensors["out"] > 0)
    names = ("rows", "filter", "bias")
    for name, one in zip(names, torch.autograd.grad(linear, operands, upstream), strict=True):
        expect_close(tensors[f"grad_{name}"], one, limit, f"{what}: gradient of {name}")
    if spread is None:
        image = dense_input(layer, tensors["rows"]).double()
        dense = F.conv2d(image, dense_filter(layer, kernel).detach(), bias.detach(),
                         layer.stride, layer.pad)  # fmt: skip
        dense = dense.relu().flatten(2).transpose(1, 2)
        expect_close(tensors["out"], dense, limit, f"{what}: out against conv2d")
    index_map.close()


def gather(rows: torch.Tensor, table: np.ndarray) -> torch.Tensor:
    """[B, Q, taps, C]: what every tap reads; -1 is the row of zeros behind the last."""
    padded = F.pad(rows, (0, 0, 0, 1))
    return padded[:, torch.from_numpy(table).long().cuda() % padded.shape[1]]


def dense_input(layer: Layer, rows: torch.Tensor) -> torch.Tensor:
    """[B, C, H, W] in channels_last: the same memory."""
    return rows.unflatten(1, (layer.height, layer.width)).permute(0, 3, 1, 2)


def dense_filter(layer: Layer, kernel: torch.Tensor) -> torch.Tensor:
    """[N, C, KH, KW]."""
    return kernel.unflatten(0, (layer.kernel_height, layer.kernel_width)).permute(3, 2, 0, 1)


def check_channels(library: Library, layer: Layer, operation: str, mode: str) -> None:
    """Depthwise convolution and pooling against the same in float64."""
    table, spread = masked(layer.table(), 0.5)
    index_map = IndexMap(library, table, spread, layer.height * layer.width)
    layer = Layer(**{**vars(layer), "filters": layer.channels})
    tensors = random_tensors(layer, 2, index_map.rows_out, index_map.taps, mode)
    depthwise = operation == "depthwise"
    tensors["filter"] = tensors["filter"][:, 0].contiguous()
    tensors["grad_filter"] = torch.full_like(tensors["filter"], float("nan"))
    names = ["rows", "filter", "bias"] if depthwise else ["rows"]
    call = index_map.prepare(tensors, operation=operation)
    call.forward()
    call.gradients()
    operands = [tensors[name].double().requires_grad_() for name in names]
    cells = gather(operands[0], table)
    inside = torch.from_numpy(table >= 0).cuda()[None, :, :, None]
    if depthwise:
        shown = (cells * operands[1]).sum(2) + operands[2]
    elif operation == "maximum":
        shown = cells.masked_fill(~inside, -torch.inf).max(2).values
        shown = torch.where(inside.any(2), shown, 0.0)
    else:
        shown = cells.sum(2) / inside.sum(2).clamp(min=1)
    shown = shown[:, torch.from_numpy(spread).long().cuda()]
    what, limit = f"{operation} {layer} {mode}", TOLERANCE[mode]
    expect_close(tensors["out"], shown.detach(), limit, f"{what}: out")
    found = torch.autograd.grad(shown, operands, tensors["grad_out"].double())
    # Of equal values, likely in 16 bits, PyTorch may take another one than the first.
    if operation != "maximum" or mode == "float32":
        for name, one in zip(names, found, strict=True):
            expect_close(tensors[f"grad_{name}"], one, limit, f"{what}: gradient of {name}")
    index_map.close()


def check(library: Library) -> None:
    """Exits at the first difference."""
    known = {layer for network in NETWORKS.value for layer in layers(network)}
    checks = 0
    for layer in (*ODD, *sorted(known, key=str)):
        for mode, keep in itertools.product(MODES.value, (1.0, 0.3)):
            check_convolution(library, layer, keep, mode)
            checks += 1
    operations = ("depthwise", "maximum", "average")
    for layer, operation, mode in itertools.product(ODD, operations, MODES.value):
        if mode != "tf32":
            check_channels(library, layer, operation, mode)
            checks += 1
    print(f"{checks} calls agree with PyTorch in float64")


def milliseconds(calls: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Medians of the calls, which take turns after three that do not count."""
    found = {name: [] for name in calls}
    for turn in range(REPEATS.value + 3):
        for name, call in calls.items():
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda._sleep(200_000)  # the launches are queued before the clock starts
            start.record()
            call()
            end.record()
            end.synchronize()
            if turn >= 3:
                found[name].append(start.elapsed_time(end))
    return {name: statistics.median(times) for name, times in found.items()}


def measure(library: Library, layer: Layer, mode: str) -> list[dict]:
    """A row for each keep."""
    torch.backends.cudnn.allow_tf32 = mode == "tf32"
    table, keeps = layer.table(), [float(keep) for keep in KEEPS.value]
    tensors = random_tensors(layer, BATCH.value, len(table), table.shape[1], mode)
    forward = {name: tensors[name] for name in ("rows", "filter", "bias", "out")}
    kernel = dense_filter(layer, tensors["filter"]).contiguous(memory_format=torch.channels_last)
    image = dense_input(layer, tensors["rows"])
    calls = {"dense": lambda: F.conv2d(image, kernel, None, layer.stride, layer.pad)}
    maps = [IndexMap(library, *masked(table, keep), image.shape[2] * image.shape[3])
            for keep in keeps]  # fmt: skip
    for keep, index_map in zip(keeps, maps, strict=True):
        call = index_map.prepare(forward, activation="relu", tf32=mode == "tf32")
        calls[str(keep)] = call.forward
    found = milliseconds(calls)
    for index_map in maps:
        index_map.close()
    macs = BATCH.value * table.size * layer.channels * layer.filters
    return [
        {
            "layer": str(layer),
            "mode": mode,
            "batch": BATCH.value,
            "keep": keep,
            "dense_ms": found["dense"],
            "dense_tflops": 2e-9 * macs / found["dense"],
            "ms": found[str(keep)],
            "speed_up": found["dense"] / found[str(keep)],
            "of_ideal": keep * found["dense"] / found[str(keep)],
        }
        for keep in keeps
    ]


def measure_all(library: Library) -> list[dict]:
    """Prints a line for each layer and type, and the means."""
    every = []
    for network, mode in itertools.product(NETWORKS.value, MODES.value):
        rows = []
        for layer in layers(network):
            found = measure(library, layer, mode)
            speed = "  ".join(f"{r['keep']:g}: {r['speed_up']:5.2f}x" for r in found)
            rate = f"cuDNN {found[0]['dense_ms']:7.3f} ms {found[0]['dense_tflops']:5.0f} TFLOP/s"
            print(f"{network:9s} {mode:8s} {str(layer):24s} {rate}  {speed}", flush=True)
            rows += found
        for keep in map(float, KEEPS.value):
            ideal = [row["of_ideal"] for row in rows if row["keep"] == keep]
            summary = f"{statistics.mean(ideal):.2f} of ideal, least {min(ideal):.2f}"
            print(f"{network:9s} {mode:8s} keep {keep:g}: {summary}")
        every += [{"network": network, **row} for row in rows]
    return every


def check_output(path: Path) -> None:
    """Makes the folder of --json; exits if no file can be written there."""
    if path.is_dir():
        sys.exit(f"--json must be a file. Received: {path}, a folder")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        sys.exit(f"--json {path} cannot be written ({error.strerror}): give another path")


def main(arguments: list[str]) -> None:
    """Checks, and unless told otherwise, times."""
    del arguments
    if not torch.cuda.is_available():
        sys.exit("benchmarks.cuda needs a GPU that PyTorch can use, and there is none")
    if not Path(LIBRARY.value).is_file():
        sys.exit(f"there is no {LIBRARY.value}: run `make cuda`, or give --library")
    if JSON.value:
        check_output(Path(JSON.value))
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.benchmark = True
    device, date = torch.cuda.get_device_name(), datetime.date.today().isoformat()
    print(f"{device}, {date}, PyTorch {torch.__version__}, batch {BATCH.value}")
    library = Library(LIBRARY.value)
    check(library)
    if CHECK.value:
        return
    rows = measure_all(library)
    if JSON.value:
        result = {"device": device, "date": date, "torch": torch.__version__, "rows": rows}
        temporary = Path(f"{JSON.value}.part")  # not espace_tf.files: that imports TensorFlow
        temporary.write_text(json.dumps(result, indent=1) + "\n")
        temporary.replace(JSON.value)


if __name__ == "__main__":
    app.run(main)
