"""Exports a model as a TensorFlow Lite file, runs it and compares the outputs."""

import os
from pathlib import Path
from typing import Any

import numpy as np

from espace_tf import litert
from espace_tf.checks import require, warn
from espace_tf.config import EspaceWarning
from espace_tf.data.batches import batches, in_order, named_inputs
from espace_tf.deploy import comparison, fused_file, tflite
from espace_tf.deploy.comparison import ExportResult
from espace_tf.deploy.inference import check_model, inference_copy
from espace_tf.files import atomic_write, output_path
from espace_tf.network import graph
from espace_tf.rewriting.fuse import fuse

QUANTIZATIONS = (None, "float16", "dynamic", *tflite.INTEGERS)
KERNELS = ("builtin", "fused", "custom")
# Of the calibration examples of an int8 export: more do not move the ranges.
REPRESENTATIVE_EXAMPLES = 256
# Bytes of a weight in a file, of 4 in the model.
_WIDTHS = {None: 4, "float16": 2, "dynamic": 1, "int8": 1, "full_int8": 1}


def export_tflite(
    model: Any,
    path: str | os.PathLike,
    *,
    quantize: str | None = None,
    representative_data: Any = None,
    kernel: str = "builtin",
) -> ExportResult:
    """Writes a TensorFlow Lite file, runs it and compares the outputs.

    Batch normalizations are folded on a copy; the model is not touched. The file takes any batch
    size (resize its inputs, or call its signature) unless the model's is fixed; its inputs and
    outputs are floats but for "full_int8".

    Args:
        model: a functional or sequential Keras 3 or tf_keras model, compressed or not.
        path: where the file goes; ends in ".tflite". Written aside first, then moved there.
        quantize: None for float32; "float16" halves the weights; "dynamic" stores int8 weights
            and computes in integers with ranges found at run time; "int8" also fixes the ranges of
            activations from `representative_data`; "full_int8" is that with int8 inputs and
            outputs, for devices without floats: an input is round(x / scale) + zero point, by the
            scale and zero point that the file has for it.
        representative_data: typical inputs, at best a few hundred: arrays, (x, y), or a
            tf.data.Dataset of batches. The integers need it; otherwise only the check uses it.
        kernel: what computes the stretches of convolutions and what lies between. "builtin": the
            runtime's own operators, everywhere. "fused": our native kernels where the delegate is
            loaded (`espace_tf.litert`), the same built-in operators elsewhere; in float32, weights
            in float32 or float16. "custom": nothing but the delegate, in a smaller file, for
            runtimes that do not know composites.

    Returns:
        What was written; `max_difference` is about 1e-6 for float32, 1e-3 for "float16" and 1e-2
        for those with integers.

    Raises:
        ValueError: an argument makes no sense, or the model holds something that has no built-in
            operator.
        OSError: the path cannot be written, and what was there before stays; or kernel is not
            "builtin" and the delegate, which the file is tried with, was not built.
        ImportError: LiteRT is not installed, which runs what was written.
        RuntimeError: the float file does not compute what the model computes, or any file NaN.

    Example:
        >>> result = export_tflite(model, "model.tflite", quantize="float16")
        >>> print(result)
        model.tflite: float16, ... bytes (dense float32 weights: ...), outputs within ... of ...
    """
    require("litert", "ai_edge_litert")
    path = output_path(path, suffix=".tflite")
    _check_options(quantize, representative_data, kernel)
    examples = _examples(model, representative_data)
    compared = comparison.check_batches(model, examples)
    stripped = inference_copy(model)
    if quantize in tflite.INTEGERS:
        _check_outputs(model, examples)
    if kernel == "builtin":
        content = tflite.convert(stripped, quantize=quantize, examples=examples, tried=compared[0])
    else:
        content = _convert_fused(stripped, quantize, compared[0], kernel == "custom")
    with atomic_write(path) as temporary:
        temporary.write_bytes(content)
        found = tflite.operators(content)
        _refuse_foreign(found, kernel)
        try:
            runs = _ways_to_run(stripped, temporary, kernel)
            # NumPy's max hands a NaN on.
            apart = [comparison.difference(model, run, compared) for run in runs]
            difference = float(np.max(apart))
            agreement = comparison.agreement(model, runs[0], examples) if quantize else None
        except RuntimeError as error:
            raise RuntimeError(
                f"{str(path)!r} was not written: LiteRT does not run what was converted: {error}"
            ) from error
        if quantize is None or not np.isfinite(difference):
            comparison.refuse_difference(difference, model, path)
    dense = comparison.dense_bytes(stripped)
    _warn_of_growth(stripped, path, len(content), dense * _WIDTHS[quantize] // 4)
    return ExportResult(path, len(content), quantize, difference, found, dense, agreement)


def _convert_fused(
    stripped: Any, quantize: str | None, tried: list[np.ndarray], custom: bool
) -> bytes:
    fused = fuse(stripped, large=False)  # LiteRT reads such kernels from the file
    if not fused_file.fused_graphs(fused):
        warn(
            f"model {stripped.name!r} has no stretch that the native kernels could run: the file "
            "has built-in operators only. A stretch is of Keras 3, on maps of known size, and "
            "holds one convolution at least",
            EspaceWarning,
        )
    options = {"quantize": quantize, "tried": tried, "custom": custom}
    return fused_file.convert(fused, named=stripped, **options)


def _ways_to_run(model: Any, path: Path, kernel: str) -> list[comparison.Run]:
    """The written file as functions: without the delegate, with it, or both, as it is to run."""
    ways = [] if kernel == "custom" else [()]
    if kernel != "builtin":
        ways.append((litert.delegate(strict=True),))
    return [tflite.run_function(model, path, delegates) for delegates in ways]


def _warn_of_growth(model: Any, path: Any, size: int, dense: int) -> None:
    """Warns if a file is larger than the weights of the dense network, because of its masks."""
    tables = comparison.table_bytes(model)
    if 2 * sum(tables.values()) <= size - dense or size <= dense:
        return  # a small file is mostly descriptions of its operators
    largest = sorted(tables, key=tables.get, reverse=True)[:3]
    named = ", ".join(f"{layer} ({tables[layer]:,})" for layer in largest)
    warn(
        f"{str(path)!r} has {size:,} bytes, the weights of the dense network {dense:,}: masks need "
        f"tables of positions, here {sum(tables.values()):,} bytes, most of them for {named}. If "
        "size matters more than time, exclude these layers, or plan with mask_families=()",
        EspaceWarning,
    )


def _examples(model: Any, data: Any) -> list[list[np.ndarray]] | None:
    """Representative data as batches with one checked array per model input."""
    check_model(model)
    if data is None:
        return None
    size = model.inputs[0].shape[0] or 32
    options = {"inputs": named_inputs(model), "name": "representative_data"}
    found = batches(data, REPRESENTATIVE_EXAMPLES, size, **options)
    examples = [in_order(model, inputs) for inputs, _ in found]
    sizes = [array.shape[1:] for array in examples[0]]
    alike = [batch for batch in examples if [array.shape[1:] for array in batch] == sizes]
    arrays = [np.concatenate(parts) for parts in zip(*alike, strict=True)]
    # The converter's calibration resizes one input after the other: batches must be of one size.
    count = len(arrays[0])
    if model.inputs[0].shape[0] is None:
        size = count // -(-count // size)
    size = min(size, count)
    starts = range(0, count - size + 1, size)
    return [[array[start : start + size] for array in arrays] for start in starts]


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
            "quantize must be None (float32), 'float16', 'dynamic', 'int8' or 'full_int8'. "
            f"Received: {quantize!r}."
        )
    if quantize in tflite.INTEGERS and representative_data is None:
        raise ValueError(
            f"representative_data is needed for quantize={quantize!r}: the ranges of activations "
            "come from a few hundred typical inputs. Received: None. Give a tf.data.Dataset or "
            "arrays, or use quantize='dynamic', which needs no data."
        )
    if kernel not in KERNELS:
        raise ValueError(f"kernel must be one of {KERNELS}. Received: {kernel!r}.")
    if kernel == "builtin":
        return
    if quantize not in (None, "float16"):
        raise ValueError(
            f"kernel must be 'builtin' for quantize={quantize!r}: the native kernels compute in "
            f"float32, with weights in float32 or float16. Received: {kernel!r}."
        )
    litert.library()


def _refuse_foreign(found: tuple[str, ...], kernel: str) -> None:
    """LiteRT as it is installed runs neither custom operators nor variables that were left over."""
    foreign = [name for name in found if name.startswith("CUSTOM") or name == "VAR_HANDLE"]
    if kernel == "custom":
        foreign = [name for name in foreign if name != f"CUSTOM:{fused_file.CUSTOM}"]
    if foreign:
        raise ValueError(
            "the model must need no more than TensorFlow Lite's built-in operators. Received: one "
            f"that needs {', '.join(foreign)}; replace the layers that do, or use "
            "export_saved_model"
        )
