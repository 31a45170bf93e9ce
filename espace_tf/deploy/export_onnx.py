"""Exports a model as an ONNX file, runs it and compares the outputs."""

import logging
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from espace_tf import kernels
from espace_tf.config import require_runtime
from espace_tf.deploy import comparison, tflite
from espace_tf.deploy.comparison import ExportResult
from espace_tf.deploy.inference import check_model, inference_copy, to_trace
from espace_tf.files import atomic_write, output_path

OPSET = 17


def export_onnx(model: Any, path: str | os.PathLike) -> ExportResult:
    """Writes an ONNX file of standard operators only, runs it and compares the outputs.

    Batch normalizations are folded on a copy; the model is not touched. Masked layers become
    Gather and MatMul, decomposed ones two Conv. The file takes any batch size, its inputs and
    outputs are float32, [B, H, W, C], and called as in `export_tflite`.

    Args:
        model: a functional or sequential Keras 3 or tf_keras model, compressed or not.
        path: where the file goes; ends in ".onnx". Written aside first, then moved there.

    Returns:
        What was written; `max_difference` is about 1e-6.

    Raises:
        ValueError: the model holds something that has no ONNX operator.
        OSError: the path cannot be written; what was there before stays.
        ImportError: ONNX Runtime and tf2onnx are not installed.
        RuntimeError: the file does not compute what the model computes.

    Example:
        >>> export_onnx(model, "model.onnx").max_difference < 1e-4
        True
    """
    require_runtime("onnxruntime")
    path = output_path(path, suffix=".onnx")
    check_model(model)
    batches = comparison.check_batches(model)
    stripped = inference_copy(model)
    content = convert(stripped)
    with atomic_write(path) as temporary:
        temporary.write_bytes(content)
        run = run_function(stripped, content)
        difference = comparison.difference(model, run, batches)
        comparison.refuse_difference(difference, model, path)
    dense = comparison.dense_bytes(stripped)
    return ExportResult(path, len(content), None, difference, (), dense)


def convert(model: Any, shapes: Sequence[Any] | None = None) -> bytes:
    """The content of an ONNX file for a model as it is.

    Args:
        model: as for `inference.traced`.
        shapes: of its inputs; None: the model's own, batch size open.

    Raises:
        ValueError: the model holds something that has no ONNX operator.
    """
    from tf2onnx import convert as tf2onnx

    function, specs = to_trace(model, tflite.input_names(model), tflite.output_names(model), shapes)
    eagerly, log = tf.config.functions_run_eagerly(), logging.getLogger("tf2onnx.tfonnx")
    level = log.level
    # A function inside the function is called as Python, so that its operations stand in the one
    # graph: Keras wraps grouped convolutions in such, which no converter looks into.
    tf.config.run_functions_eagerly(True)
    log.setLevel(logging.CRITICAL)  # what it says is found below, by name
    try:
        with kernels.plain():
            proto, _ = tf2onnx.from_function(function, specs, opset=OPSET)
    finally:
        tf.config.run_functions_eagerly(eagerly)
        log.setLevel(level)
    names = _unknown(proto)
    if names:
        raise ValueError(
            f"model {model.name!r} cannot be exported to ONNX: there is no operator for its "
            f"{', '.join(sorted(names))}. Replace the layers that do this, or use "
            "export_saved_model"
        )
    return proto.SerializeToString()


def _unknown(proto: Any) -> set[str]:
    """Operators in a model that ONNX does not have."""
    from onnx import defs

    return {node.op_type for node in proto.graph.node if not defs.has(node.op_type, node.domain)}


def session(content: bytes, threads: int | None = None) -> Any:
    """A session of ONNX Runtime on CPUs."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    options.log_severity_level = 3
    # Threads of a session that has nothing to do wait for work by computing, beside what is timed.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def run_function(
    model: Any, content: bytes, threads: int | None = None
) -> Callable[[list[np.ndarray]], list[np.ndarray]]:
    """A file's content as a function from the model's inputs to its outputs."""
    running, outputs = session(content, threads), tflite.output_names(model)
    inputs = [each.name for each in running.get_inputs()]
    return lambda arrays: running.run(outputs, dict(zip(inputs, arrays, strict=True)))
