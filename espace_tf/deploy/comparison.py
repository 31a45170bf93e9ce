"""What was written, run again beside the model it was written from: sizes, batches, differences."""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from espace_tf.deploy.inference import half_layers
from espace_tf.kernels import reference
from espace_tf.network import graph
from espace_tf.network.layer_rules import COMPRESSED, rule

Run = Callable[[list[np.ndarray]], list[np.ndarray]]

# A float file that is further from the model than this, relative to the largest output, is wrong;
# a model that computes in half precision is itself further than that from its float32 file.
LARGEST_DIFFERENCE = 1e-3
LARGEST_HALF_DIFFERENCE = 5e-2
# Heights and widths that are tried where a model leaves them open and no data says better. A
# network without padding, whose halves must meet, takes one in 4 or in 16 above some least size.
_SIZES = (64, 128, 256, 32, *range(65, 81), *range(84, 321, 4))


@dataclass(frozen=True)
class ExportResult:
    """What was written, and how it compares with the model.

    Attributes:
        path: the file or folder.
        bytes: its size.
        quantize: how the weights are stored: None (float32), "float16", "dynamic" or "int8".
        max_difference: largest absolute difference between the outputs of the model and of the
            written file, run again, divided by the model's largest absolute output.
        operators: the names of the TensorFlow Lite operators in the file, empty for a SavedModel.
        dense_bytes: of the weights alone, in float32, if no layer were masked or decomposed.
        agreement: of a file with weights in fewer bits, the share of the representative data whose
            largest output is the model's; None without data, or where outputs are single numbers.
    """

    path: Path
    bytes: int
    quantize: str | None
    max_difference: float
    operators: tuple[str, ...] = ()
    dense_bytes: int = 0
    agreement: float | None = None

    def __str__(self) -> str:
        stored = self.quantize or "float32"
        text = (
            f"{self.path}: {stored}, {self.bytes:,} bytes (dense float32 weights: "
            f"{self.dense_bytes:,}), outputs within {self.max_difference:.2g} of the model's"
        )
        if self.agreement is None:
            return text
        return f"{text}, the largest output the same for {self.agreement:.1%} of the data"


def check_batches(
    model: Any, examples: Sequence[list[np.ndarray]] | None = None
) -> list[list[np.ndarray]]:
    """A batch of one example and one of three, or one of the batch size that a model wants.

    Args:
        model: a Keras model with known inputs.
        examples: batches to take them from; None: seeded noise in [0, 1).

    Raises:
        ValueError: the model leaves its inputs' size open and runs at none that is tried.
    """
    fixed = model.inputs[0].shape[0]
    counts = [1, 3] if fixed is None else [fixed]
    if examples:
        parts = [np.concatenate(arrays) for arrays in zip(*examples, strict=True)]
        return [[np.resize(part, (count, *part.shape[1:])) for part in parts] for count in counts]
    size = _fitting_size(model)
    return [noise(model, count, (size, size)) for count in counts]


def noise(model: Any, batch_size: int, size: tuple[int, int] | None = None) -> list[np.ndarray]:
    """One batch of seeded noise in [0, 1), of 8 bits in [0, 255], for each input of a model.

    Args:
        model: a Keras model with known inputs.
        batch_size: examples.
        size: (H, W) of inputs whose size the model leaves open.

    Raises:
        ValueError: an input takes any size, and none is given.
    """
    generator = np.random.default_rng(0)
    arrays = []
    for tensor in model.inputs:
        shape = tuple(tensor.shape[1:])
        if size is not None:
            sizes = itertools.zip_longest(shape, size[: len(shape)])
            shape = tuple(given if known is None else known for known, given in sizes)
        if None in shape:
            raise ValueError(
                f"inputs must be given, because model {model.name!r} takes any size: {shape}"
            )
        dtype = tf.as_dtype(tensor.dtype)
        values = generator.random((batch_size, *shape)) * (256 if dtype == tf.uint8 else 1)
        arrays.append(values.astype(dtype.as_numpy_dtype))
    return arrays


def _fitting_size(model: Any) -> int:
    """A height and width that the model runs at, if it leaves some open."""
    if all(None not in tensor.shape[1:] for tensor in model.inputs):
        return _SIZES[0]
    problem = ""
    for size in _SIZES:
        try:
            graph.call(model, noise(model, model.inputs[0].shape[0] or 1, (size, size)))
            return size
        except (ValueError, tf.errors.OpError) as error:
            problem = problem or f"at {size}: {' '.join(str(error).split()):.300}"
    raise ValueError(
        f"model {model.name!r} leaves its inputs' size open, and ran at no height and width that "
        f"was tried, {min(_SIZES)} to {max(_SIZES)} ({problem}). Give representative_data of a "
        "size that fits, or the model an Input of fixed size"
    )


def difference(model: Any, function: Run, batches: Sequence[list[np.ndarray]]) -> float:
    """Largest |file - model| / largest |model|; NaN if there is one on either side."""
    largest, found = 0.0, 0.0
    for inputs in batches:
        expected = [np.asarray(output, np.float64) for output in graph.call(model, inputs)]
        for right, output in zip(expected, function(inputs), strict=True):
            largest = max(largest, np.abs(right).max())
            # NaN must win over any number: np.maximum does that, max does not.
            found = np.maximum(found, np.abs(np.asarray(output, np.float64) - right).max())
    return float(found / max(largest, np.finfo(np.float32).tiny))


def agreement(
    model: Any, function: Run, examples: Sequence[list[np.ndarray]] | None
) -> float | None:
    """In which share of the examples the largest output of a file is that of the model.

    Outputs of one number have no largest one. Of maps every position counts as an example, and of
    several outputs each.
    """
    same = []
    for inputs in examples or ():
        expected = [np.asarray(output) for output in graph.call(model, inputs)]
        for right, found in zip(expected, function(inputs), strict=True):
            if right.ndim and right.shape[-1] > 1:
                same.append((right.argmax(-1) == found.argmax(-1)).ravel())
    return float(np.concatenate(same).mean()) if same else None


def refuse_difference(found: float, model: Any, path: Path) -> None:
    """Raises RuntimeError if what was exported to `path` is not what the model computes."""
    if not np.isfinite(found):
        raise RuntimeError(
            f"{str(path)!r} was not written: the model or what was exported computes NaN or "
            "infinity; look for such values in its weights"
        )
    limit = LARGEST_HALF_DIFFERENCE if half_layers(model) else LARGEST_DIFFERENCE
    if not found <= limit:
        raise RuntimeError(
            f"{str(path)!r} was not written: what was exported computes outputs that differ from "
            f"the model's by {found:.2g} of the largest, more than {limit}."
        )


def dense_bytes(model: Any) -> int:
    """Bytes of a model's weights in float32, with every compressed layer as a Conv2D instead."""
    weights = 0
    for layer in graph.layers(model).values():
        if rule(layer).kind in COMPRESSED:
            taps = math.prod(layer.kernel_size) * layer.weights[0].shape[-2]
            weights += layer.filters * (taps + layer.use_bias)
        else:
            weights += sum(math.prod(weight.shape) for weight in layer.weights)
    return 4 * weights


def table_bytes(model: Any) -> dict[str, int]:
    """Bytes in a file of the tables of positions of every masked layer, by its path."""
    found = {}
    for path, layer in graph.layers(model).items():
        if rule(layer).kind in COMPRESSED and layer.positions is not None:
            maps = [each for _, _, each in layer.index_maps((0, 0)) if each.geometry is None]
            pairs = [pair for each in maps for pair in ((each.table, each.rows_in),
                     (each.spread, len(each.table))) if pair[0] is not None]  # fmt: skip
            found[path] = sum(
                table.size * np.dtype(reference.index_type(rows)).itemsize for table, rows in pairs
            )
    return {path: size for path, size in found.items() if size}
