"""A model made ready for other runtimes: stripped and in float32; its traced function."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from espace_tf import kernels
from espace_tf.network import graph
from espace_tf.network.copies import cloning, likeness
from espace_tf.rewriting.strip import strip

# Other runtimes' convolutions, LiteRT's for one, compute in float32 only.
_OTHER_FLOATS = ("float16", "bfloat16", "float64")


def inference_copy(model: Any) -> Any:
    """A copy of a model for another runtime: batch norms folded, nothing fused, in float32.

    Raises:
        TypeError: model is not a Keras model.
        ValueError: model does not say what its inputs are.
    """
    check_model(model)
    return _portable(strip(_in_float32(model), fuse=False))


def check_model(model: Any) -> None:
    """Raises unless `model` is a Keras model with known inputs."""
    graph.library(model)
    graph.check_eager(model)
    if not getattr(model, "inputs", None):
        raise ValueError(
            "model must be functional or sequential, with known inputs: call a sequential model "
            f"on data, or give it an Input, first. Received: {model!r}."
        )


def half_layers(model: Any) -> list[Any]:
    """The layers that compute in 16 bits."""
    layers = graph.layers(model).values()
    return [layer for layer in layers if layer.compute_dtype in ("float16", "bfloat16")]


def traced(
    model: Any, inputs: Sequence[str], outputs: Sequence[str], shapes: Sequence[Any] | None = None
) -> Any:
    """The model at inference as a concrete function of plain TensorFlow operations.

    Arguments as for `to_trace`.
    """
    function, specs = to_trace(model, inputs, outputs, shapes)
    with kernels.plain():
        return function.get_concrete_function(*specs)


def to_trace(
    model: Any, inputs: Sequence[str], outputs: Sequence[str], shapes: Sequence[Any] | None = None
) -> tuple[Any, list[tf.TensorSpec]]:
    """The model at inference as a function, and what it is to be traced with.

    Args:
        model: a Keras model with known inputs.
        inputs: what its tensor arguments are called, in the order of `model.inputs`.
        outputs: what the tensors in the dictionary that it returns are called, in the order of
            `model.outputs`.
        shapes: of the inputs; None: the model's own.
    """
    shapes = shapes or [tensor.shape for tensor in model.inputs]
    specs = [
        tf.TensorSpec(shape, tensor.dtype, name=name)
        for shape, tensor, name in zip(shapes, model.inputs, inputs, strict=True)
    ]

    def infer(*tensors: tf.Tensor) -> dict[str, tf.Tensor]:
        # Inside a scope a layer may be called "_conv", which is no name outside of one.
        with tf.name_scope("model"):
            return dict(zip(outputs, graph.call(model, tensors), strict=True))

    return tf.function(infer, autograph=False), specs


def save(module: tf.Module, path: str, function: Any) -> None:
    """Saves a module with a traced function as its signature, and the variables that this reads.

    For the while, the variables have names that TensorFlow takes: that of a layer may begin with an
    underscore, which no name of a saved variable may. TensorFlow's line on the files is left out:
    often they are in a folder of our own.
    """
    logger = logging.getLogger("tensorflow")
    logger.addFilter(_no_assets)
    variables = module.variables_read = list(function.graph.variables)
    names = [variable._handle_name for variable in variables]
    try:
        for variable, name in zip(variables, names, strict=True):
            variable._handle_name = f"weights/{name}"
        tf.saved_model.save(module, path, signatures=function)
    finally:
        logger.removeFilter(_no_assets)
        for variable, name in zip(variables, names, strict=True):
            variable._handle_name = name


def _no_assets(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith("Assets written to")


def _in_float32(model: Any) -> Any:
    """The model, or a copy of it if layers compute or keep weights in another type."""
    known = graph.layers(model)
    changed = {path: layer for path, layer in known.items() if _has_other_floats(layer)}
    if not changed:
        return model

    def replace(path: str, layer: Any) -> Any:
        if path not in changed:
            return None
        config = likeness.configuration(layer)
        made = _with_float32(config)
        return likeness.like(layer, **{key: made[key] for key in made if made[key] != config[key]})

    weights = {path: layer.get_weights() for path, layer in changed.items()}
    return cloning.clone_with(model, replace, weights)


class _UnitNormalization(keras.layers.UnitNormalization):
    """The same without the reciprocal square root of 0, which LiteRT's XNNPACK takes for NaN."""

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        squares = tf.reduce_sum(tf.square(inputs), self.axis, keepdims=True)
        return inputs / tf.maximum(tf.sqrt(squares), 1e-12)


class _UpSampling2D(keras.layers.UpSampling2D):
    """The same as one operation: Keras's repetitions hide sizes from TensorFlow Lite's converter,
    which has no depthwise convolution for maps of unknown size.
    """

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        known = self.data_format == "channels_last" and None not in inputs.shape[1:3]
        if self.interpolation != "nearest" or not known:
            return super().call(inputs)
        size = [length * times for length, times in zip(inputs.shape[1:3], self.size, strict=True)]
        return tf.image.resize(inputs, size, "nearest")


_PORTABLE = {
    keras.layers.UnitNormalization: _UnitNormalization,
    keras.layers.UpSampling2D: _UpSampling2D,
}


def _portable(model: Any) -> Any:
    """The model, or a copy of it in which layers that other runtimes misread are written anew."""

    def replace(path: str, layer: Any) -> Any:
        kind = _PORTABLE.get(type(layer))
        return None if kind is None else likeness.like(layer, kind)

    if not any(type(layer) in _PORTABLE for layer in graph.layers(model).values()):
        return model
    return cloning.clone_with(model, replace, {})


def _has_other_floats(layer: Any) -> bool:
    found = {layer.compute_dtype, *(weight.dtype for weight in layer.weights)}
    return any(tf.as_dtype(each).name in _OTHER_FLOATS for each in found if each)


def _with_float32(config: Any, key: str = "") -> Any:
    """A configuration with float32 for the types and policies of a layer and of those inside it."""
    if key == "dtype" and _policy(config).removeprefix("mixed_") in _OTHER_FLOATS:
        return "float32"
    if isinstance(config, Mapping):
        return {name: _with_float32(value, name) for name, value in config.items()}
    if isinstance(config, tuple):
        return tuple(map(_with_float32, config))
    return list(map(_with_float32, config)) if isinstance(config, list) else config


def _policy(dtype: Any) -> str:
    """The name of a type or of a policy in a configuration."""
    if isinstance(dtype, Mapping):
        return str(dtype.get("config", {}).get("name", ""))
    return str(dtype)
