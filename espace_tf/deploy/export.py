"""Exports a model for inference and runs what it wrote: TensorFlow Lite file, SavedModel folder."""

import contextlib
import io
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from espace_tf.checks import require
from espace_tf.data.batches import batches, named_inputs
from espace_tf.deploy import tflite
from espace_tf.files import atomic_write, in_words, output_path
from espace_tf.network import graph
from espace_tf.rewriting.strip import strip

QUANTIZATIONS = (None, "float16", "dynamic", "int8")
KERNELS = ("builtin", "delegate")
# A float file that is further from the model than this, relative to the largest output, is wrong;
# a model that computes in half precision is itself further than that from its float32 file.
LARGEST_DIFFERENCE = 1e-3
LARGEST_HALF_DIFFERENCE = 5e-2
# Of the calibration examples of an int8 export: more do not move the ranges.
REPRESENTATIVE_EXAMPLES = 256
# What a size that the model leaves open is set to for the check, when no data says better.
CHECKED_SIZE = 64


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
    """

    path: Path
    bytes: int
    quantize: str | None
    max_difference: float
    operators: tuple[str, ...] = ()

    def __str__(self) -> str:
        stored = self.quantize or "float32"
        return (
            f"{self.path}: {stored}, {self.bytes:,} bytes, outputs within "
            f"{self.max_difference:.2g} of the model's"
        )


def export_tflite(
    model: Any,
    path: str | os.PathLike,
    *,
    quantize: str | None = None,
    representative_data: Any = None,
    kernel: str = "builtin",
) -> ExportResult:
    """Writes a TensorFlow Lite file of built-in operators only, runs it and compares the outputs.

    Batch normalizations are folded on a copy; the model is not touched. The file takes any batch
    size (resize its inputs, or call its signature) and has float inputs and outputs.

    Args:
        model: a functional or sequential Keras 3 or tf_keras model, compressed or not.
        path: where the file goes; ends in ".tflite". Written aside first, then moved there.
        quantize: None for float32; "float16" halves the weights; "dynamic" stores int8 weights
            and computes in integers with ranges found at run time; "int8" also fixes the ranges of
            activations from `representative_data`.
        representative_data: typical inputs, at best a few hundred: arrays, (x, y), or a
            tf.data.Dataset of batches. "int8" needs it; otherwise only the check uses it.
        kernel: "builtin". "delegate" will mark masked convolutions for a native kernel.

    Returns:
        What was written; `max_difference` is about 1e-6 for float32, 1e-3 for "float16" and 1e-2
        for "dynamic" and "int8".

    Raises:
        ValueError: an argument makes no sense, or the model holds something that has no built-in
            operator.
        OSError: the path cannot be written; what was there before stays.
        ImportError: LiteRT is not installed, which runs what was written.
        RuntimeError: the float file does not compute what the model computes, or any file NaN.

    Example:
        >>> result = export_tflite(model, "model.tflite", quantize="float16")
        >>> print(result)
        model.tflite: float16, 73,744 bytes, outputs within 0.0003 of the model's
    """
    require("litert", "ai_edge_litert")
    path = output_path(path, suffix=".tflite")
    _check_options(quantize, representative_data, kernel)
    examples = _examples(model, representative_data)
    stripped = inference_copy(model)
    if quantize == "int8":
        _check_outputs(model, examples)
    content = tflite.convert(stripped, quantize=quantize, examples=examples)
    with atomic_write(path) as temporary:
        temporary.write_bytes(content)
        found = tflite.operators(content)
        _refuse_foreign(found)
        try:
            difference = _difference(model, tflite.run_function(stripped, temporary), examples)
        except RuntimeError as error:
            raise RuntimeError(
                f"{str(path)!r} was not written: LiteRT does not run what was converted: {error}"
            ) from error
        if quantize is None or not np.isfinite(difference):
            _refuse_difference(difference, model, path)
    return ExportResult(path, len(content), quantize, difference, found)


def export_saved_model(model: Any, path: str | os.PathLike) -> ExportResult:
    """Writes a SavedModel for serving, loads it again and compares the outputs.

    Batch normalizations are folded on a copy. The layers run one by one there, in TensorFlow's own
    operations: nothing of this package is needed to serve it, and nothing is fused. The folder has
    the endpoints that `model.export` gives it: `serve` and the signature "serving_default", both
    for any batch size.

    Args:
        model: a functional or sequential Keras 3 or tf_keras model, compressed or not.
        path: the folder. It must not exist yet, or hold a SavedModel, which is replaced.

    Returns:
        What was written.

    Raises:
        ValueError: the path holds something else than a SavedModel.
        OSError: the path cannot be written; what was there before stays.
        RuntimeError: the SavedModel does not compute what the model computes.

    Example:
        >>> export_saved_model(model, "served").max_difference < 1e-5
        True
    """
    path = output_path(path, allow_folder=True)
    if path.exists() and not (path / "saved_model.pb").is_file() and not _is_empty_folder(path):
        raise ValueError(
            f"path must be a new folder or a SavedModel to replace. Received: {str(path)!r}, which "
            "holds something else; give another path or remove it first."
        )
    _check_model(model)
    stripped = strip(model, fuse=False)
    with in_words(path), tempfile.TemporaryDirectory(dir=path.parent, prefix=".saved") as aside:
        fresh = Path(aside) / "new"
        options = {"format": "tf_saved_model", "verbose": False} if _is_keras_3(model) else {}
        with contextlib.redirect_stdout(io.StringIO()):
            stripped.export(str(fresh), **options)
        difference = _difference(model, _served_function(stripped, fresh), None)
        _refuse_difference(difference, model, path)
        _replace_folder(fresh, path, Path(aside) / "old")
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return ExportResult(path, size, None, difference)


def inference_copy(model: Any, runtime: str = "litert") -> Any:
    """A copy of a model as a runtime runs it best: batch norms folded, for LiteRT in float32.

    Raises:
        TypeError: model is not a Keras model.
        ValueError: model does not say what its inputs are.
    """
    _check_model(model)
    stripped = strip(model, fuse=runtime != "litert")
    if runtime == "litert" and _is_keras_3(model):
        for layer in _half_layers(stripped):
            # LiteRT's built-in convolutions have no float16 or bfloat16 arithmetic.
            layer.dtype_policy = "float32"
    return stripped


def _half_layers(model: Any) -> list[Any]:
    layers = graph.layers(model).values()
    return [layer for layer in layers if layer.compute_dtype in ("float16", "bfloat16")]


def _served_function(model: Any, path: Path) -> Callable[[list[np.ndarray]], list[np.ndarray]]:
    """A loaded SavedModel's signature as a function from the model's inputs to its outputs."""
    loaded = tf.saved_model.load(str(path))
    inputs = [tensor.name.split(":")[0] for tensor in model.inputs]
    structure = graph.structure(model, "output")
    outputs = (
        sorted(structure)
        if isinstance(structure, Mapping)
        else [f"output_{index}" for index in range(len(model.outputs))]
    )

    def call(arrays: list[np.ndarray]) -> list[np.ndarray]:
        tensors = dict(zip(inputs, map(tf.constant, arrays), strict=True))
        found = loaded.signatures["serving_default"](**tensors)
        return [found[name].numpy() for name in outputs]

    return call


def _difference(
    model: Any, function: Callable[[list[np.ndarray]], list[np.ndarray]], examples: Any
) -> float:
    """Largest |file - model| / largest |model| over one batch of one example and one of three."""
    fixed = model.inputs[0].shape[0]
    largest, difference = 0.0, 0.0
    for count in [1, 3] if fixed is None else [fixed]:
        inputs = _check_batch(model, count, examples)
        expected = [np.asarray(output, np.float64) for output in graph.call(model, inputs)]
        for right, found in zip(expected, function(inputs), strict=True):
            largest = max(largest, np.abs(right).max())
            # NaN must win over any number: np.maximum does that, max does not.
            difference = np.maximum(difference, np.abs(found - right).max())
    return float(difference / max(largest, np.finfo(np.float32).tiny))


def _check_batch(model: Any, count: int, examples: Any) -> list[np.ndarray]:
    """`count` of the representative examples, or seeded noise in [0, 1) shaped like the inputs."""
    if examples:
        parts = [np.concatenate(arrays) for arrays in zip(*examples, strict=True)]
        return [np.resize(part, (count, *part.shape[1:])) for part in parts]
    generator = np.random.default_rng(0)
    return [
        generator.random((count, *[size or CHECKED_SIZE for size in tensor.shape[1:]])).astype(
            tf.as_dtype(tensor.dtype).as_numpy_dtype
        )
        for tensor in model.inputs
    ]


def _examples(model: Any, data: Any) -> list[list[np.ndarray]] | None:
    """Representative data as batches with one checked array per model input."""
    _check_model(model)
    if data is None:
        return None
    size = model.inputs[0].shape[0] or 32
    options = {"inputs": named_inputs(model), "name": "representative_data"}
    found = batches(data, REPRESENTATIVE_EXAMPLES, size, **options)
    examples = [in_order(model, inputs) for inputs, _ in found]
    # The converter's calibration resizes one input after the other: batches must be of one size.
    return [batch for batch in examples if len(batch[0]) == len(examples[0][0])]


def in_order(model: Any, inputs: Any) -> list[np.ndarray]:
    """One array per model input, in the order of `model.inputs`, with the input's type.

    Args:
        model: a Keras model with known inputs.
        inputs: an array, a list with one for each input, or a dictionary by the inputs' names.
    """
    names = named_inputs(model)
    by_name = isinstance(inputs, Mapping) and set(inputs) == set(names)
    arrays = [inputs[name] for name in names] if by_name else tf.nest.flatten(inputs)
    return [
        np.asarray(array).astype(tf.as_dtype(tensor.dtype).as_numpy_dtype)
        for array, tensor in zip(arrays, model.inputs, strict=True)
    ]


def _check_outputs(model: Any, examples: list[list[np.ndarray]]) -> None:
    """Raises ValueError if the examples make the model compute NaN or infinity: no range has that.

    An overflow inside usually reaches an output; what does not is found when the file is run.
    """
    for batch in examples:
        if not all(np.isfinite(output).all() for output in graph.call(model, batch)):
            raise ValueError(
                "representative_data must give finite outputs. Received: inputs up to "
                f"{max(float(np.abs(array).max()) for array in batch):.3g}, of which the model "
                "makes NaN or infinity; give such as it was trained on"
            )


def _check_options(quantize: str | None, representative_data: Any, kernel: str) -> None:
    if quantize not in QUANTIZATIONS:
        raise ValueError(
            "quantize must be None (float32), 'float16', 'dynamic' or 'int8'. "
            f"Received: {quantize!r}."
        )
    if quantize == "int8" and representative_data is None:
        raise ValueError(
            "representative_data is needed for quantize='int8': its activations' ranges come from "
            "a few hundred typical inputs. Received: None. Give a tf.data.Dataset or arrays, or "
            "use quantize='dynamic', which needs no data."
        )
    if kernel == "delegate":
        raise ValueError(
            "kernel='delegate' is planned but not there yet. Use kernel='builtin', which runs on "
            "every LiteRT."
        )
    if kernel not in KERNELS:
        raise ValueError(f"kernel must be one of {KERNELS}. Received: {kernel!r}.")


def _check_model(model: Any) -> None:
    graph.library(model)
    if not getattr(model, "inputs", None):
        raise ValueError(
            "model must be functional or sequential, with known inputs: call a sequential model "
            f"on data, or give it an Input, first. Received: {model!r}."
        )


def _is_keras_3(model: Any) -> bool:
    return graph.library(model).__name__.split(".")[0] == "keras"


def _is_empty_folder(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


def _refuse_foreign(found: tuple[str, ...]) -> None:
    """LiteRT as it is installed runs neither custom operators nor variables that were left over."""
    foreign = [name for name in found if name.startswith("CUSTOM") or name == "VAR_HANDLE"]
    if foreign:
        raise ValueError(
            "the model must need no more than TensorFlow Lite's built-in operators. Received: one "
            f"that needs {', '.join(foreign)}; replace the layers that do, or use "
            "export_saved_model"
        )


def _refuse_difference(difference: float, model: Any, path: Path) -> None:
    if not np.isfinite(difference):
        raise RuntimeError(
            f"{str(path)!r} was not written: the model or what was exported computes NaN or "
            "infinity; look for such values in its weights"
        )
    limit = LARGEST_HALF_DIFFERENCE if _half_layers(model) else LARGEST_DIFFERENCE
    if not difference <= limit:
        raise RuntimeError(
            f"{str(path)!r} was not written: what was exported computes outputs that differ from "
            f"the model's by {difference:.2g} of the largest, more than {limit}."
        )


def _replace_folder(fresh: Path, path: Path, old: Path) -> None:
    """Moves a folder into place; what was there before goes to `old`, or back if that fails."""
    if path.exists():
        path.rename(old)
    try:
        fresh.rename(path)
    except OSError:
        if old.exists():
            old.rename(path)
        raise
