"""Exports a model as a SavedModel folder, loads it again and compares the outputs."""

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from espace_tf import kernels
from espace_tf.deploy import comparison, tflite
from espace_tf.deploy.comparison import ExportResult
from espace_tf.deploy.inference import check_model, save, traced
from espace_tf.files import in_words, output_path
from espace_tf.network import graph
from espace_tf.rewriting.strip import strip


def export_saved_model(model: Any, path: str | os.PathLike) -> ExportResult:
    """Writes a SavedModel for serving, loads it again and compares the outputs.

    Batch normalizations are folded on a copy. The layers run one by one there, in TensorFlow's own
    operations: nothing of this package is needed to serve it, and nothing is fused. The folder has
    the endpoints that `model.export` gives it: `serve`, which takes and gives what the model does,
    and the signature "serving_default" of named tensors, both for any batch size.

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
    is_empty = path.is_dir() and not any(path.iterdir())
    if path.exists() and not (path / "saved_model.pb").is_file() and not is_empty:
        raise ValueError(
            f"path must be a new folder or a SavedModel to replace. Received: {str(path)!r}, which "
            "holds something else; give another path or remove it first."
        )
    check_model(model)
    batches = comparison.check_batches(model)
    stripped = strip(model, fuse=False)
    with in_words(path), tempfile.TemporaryDirectory(dir=path.parent, prefix=".saved") as aside:
        fresh = Path(aside) / "new"
        _save(stripped, fresh)
        difference = comparison.difference(model, _served_function(stripped, fresh), batches)
        comparison.refuse_difference(difference, model, path)
        _replace_folder(fresh, path, Path(aside) / "old")
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return ExportResult(path, size, None, difference, (), comparison.dense_bytes(stripped))


def _save(model: Any, path: Path) -> None:
    """Writes the two endpoints: Keras's own export takes no structure inside another one."""
    signature = traced(model, tflite.input_names(model), _output_names(model))
    structure = graph.structure(model, "input")
    specs = tf.nest.map_structure(lambda each: tf.TensorSpec(each.shape, each.dtype), structure)

    def serve(inputs: Any) -> Any:
        with tf.name_scope("model"):
            return model(inputs, training=False)

    module = tf.Module()
    module.serve = tf.function(serve, input_signature=[specs], autograph=False)
    with kernels.plain():
        module.serve.get_concrete_function()
    save(module, str(path), signature)


def _output_names(model: Any) -> list[str]:
    """What Keras's own export calls the outputs in the signature."""
    if isinstance(graph.structure(model, "output"), Mapping):
        return tflite.output_names(model)
    return [f"output_{index}" for index in range(len(model.outputs))]


def _served_function(model: Any, path: Path) -> comparison.Run:
    """A loaded SavedModel's signature as a function from the model's inputs to its outputs."""
    loaded = tf.saved_model.load(str(path))
    inputs, outputs = tflite.input_names(model), _output_names(model)

    def call(arrays: list[np.ndarray]) -> list[np.ndarray]:
        tensors = dict(zip(inputs, map(tf.constant, arrays), strict=True))
        found = loaded.signatures["serving_default"](**tensors)
        return [found[name].numpy() for name in outputs]

    return call


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
