"""A Keras 3 model built once more of tf_keras's layers."""

import inspect
from collections.abc import Callable
from types import ModuleType
from typing import Any

from espace_tf import keras_layers
from espace_tf.network import graph
from espace_tf.network.copies import cloning

# Weights are copied, and what they began with is of no use.
_NEUTRAL = ("initializer", "build_config")


def legacy_copy(model: Any, library: ModuleType) -> Any:
    """The same network with the same weights in tf_keras, not compiled.

    Args:
        model: a Functional or Sequential Keras 3 model that has been built, without models inside,
            of layers that tf_keras has as well and of this package's convolutions.
        library: the module tf_keras.

    Returns:
        A Functional tf_keras model, whose layers have the names of the given ones.

    Raises:
        ValueError: a model inside the model, or a layer or an argument that tf_keras does not have.
    """
    layers: dict[int, Any] = {}

    def make(layer: Any) -> Callable[..., Any]:
        if id(layer) not in layers:
            layers[id(layer)] = _translated(layer, library)

        def call(*args: Any, **known: Any) -> Any:
            # Keras 3 notes each argument that a layer could have got, such as mask=None.
            given = {name: value for name, value in known.items() if value is not None}
            return layers[id(layer)](*args, **given)

        return call

    copy = cloning.rebuilt(model, library, make)
    for layer in graph.layers(model).values():
        layers[id(layer)].set_weights(layer.get_weights())
        layers[id(layer)].trainable = layer.trainable
    return copy


def _translated(layer: Any, library: ModuleType) -> Any:
    """A layer of tf_keras with the config of one of Keras 3."""
    kind = type(layer).__name__
    own = hasattr(keras_layers, kind) and isinstance(layer, getattr(keras_layers, kind))
    stock = type(layer).__module__.startswith("keras.")
    where = keras_layers.for_library(library) if own else library.layers
    if graph.is_container(layer) or not (own or stock) or not hasattr(where, kind):
        raise ValueError(
            "model must be of layers that tf_keras has, without models inside. Received: layer "
            f"{layer.name!r} of class {kind}"
        )
    made = getattr(where, kind)
    known = set(inspect.signature(made).parameters) | {"name", "trainable", "dtype"}
    defaults = inspect.signature(type(layer)).parameters
    config = {}
    for key, value in layer.get_config().items():
        if key.endswith(_NEUTRAL):
            continue
        if own or key in known:
            config[key] = _plain(value)
        elif value not in (None, _default(defaults, key)):
            raise ValueError(
                f"model must have layers whose arguments tf_keras has. Received: {key}={value!r} "
                f"of layer {layer.name!r}, a {kind}"
            )
    return made.from_config(config)


def _default(parameters: Any, key: str) -> Any:
    return parameters[key].default if key in parameters else None


def _plain(value: Any) -> Any:
    """What Keras 3 writes of an object, as tf_keras reads it."""
    if isinstance(value, dict) and "class_name" in value and "config" in value:
        if value["class_name"].endswith("DTypePolicy"):
            return value["config"]["name"]
        return {"class_name": value["class_name"], "config": _plain(value["config"])}
    return value
