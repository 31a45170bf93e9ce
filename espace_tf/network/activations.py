"""What activation a known layer or operation ends with, or is."""

from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from espace_tf.network.layer_rules import libraries

_SLOPES = {"LeakyReLU": "leaky_relu", "LeakyRelu": "leaky_relu", "PReLU": "leaky_relu"}
_SLOPES |= {"ELU": "elu", "Elu": "elu"}
_CALLED = {
    **{"linear": "none", "relu": "relu", "relu6": "relu6", "sigmoid": "sigmoid", "tanh": "tanh"},
    **{"silu": "silu", "swish": "silu", "hard_sigmoid": "hard_sigmoid", "hard_silu": "hard_silu"},
    **{"gelu": "gelu", "elu": "elu", "leaky_relu": "leaky_relu", "softmax": "softmax"},
}
_BOUNDS = ("linear", "relu", "relu6")
_FUNCTION_SLOPES = {"elu": 1.0, "leaky_relu": 0.2}  # the functions' defaults


def activation(layer: Any) -> str | None:
    """What a known layer or operation ends with, or is; None: something else.

    Returns:
        One of `espace_tf.kernels.program.ACTIVATIONS` or "softmax", which is over the channels.

    Example:
        >>> activation(keras.layers.Dense(3, activation="swish"))
        'silu'
    """
    kind = type(layer).__name__
    if kind == "ReLU":  # tf_keras has arrays of no dimension
        return _relu(layer)
    if kind in _SLOPES:
        return _SLOPES[kind]
    if kind == "Softmax":
        return "softmax" if layer.axis == -1 else None
    if kind == "Gelu":
        return "gelu_tanh" if layer.approximate else "gelu"
    if isinstance(layer, keras.Operation) and not isinstance(layer, keras.layers.Layer):
        name = {"HardSigmoid": "hard_sigmoid", "HardSilu": "hard_silu"}.get(kind, kind.lower())
        return _CALLED.get(name)
    function = getattr(layer, "activation", None)
    return next((name for known, name in _functions() if known is function), None)


def slope(layer: Any) -> float | str:
    """What an activation of the kinds "elu" and "leaky_relu" multiplies below zero.

    Returns:
        A number, or the name of the layer's weight.
    """
    kind = type(layer).__name__
    if kind == "PReLU":
        return "alpha"
    if kind in ("ELU", "Elu"):
        return float(layer.alpha)
    if kind in ("ReLU", "LeakyReLU", "LeakyRelu"):
        return float(layer.negative_slope)
    return _FUNCTION_SLOPES[activation(layer)]


def _relu(layer: Any) -> str | None:
    most = None if layer.max_value is None else float(layer.max_value)
    if layer.threshold or (layer.negative_slope and most is not None):
        return None
    if np.any(layer.negative_slope):
        return "leaky_relu"
    return {None: "relu", 6.0: "relu6"}.get(most)


def _functions() -> Iterator[tuple[Callable, str]]:
    """Functions by what they are; of tf_keras, some of whose others differ, the first three."""
    for module in (keras.activations, tf.nn, *(library.activations for library in libraries())):
        stock = module in (keras.activations, tf.nn)
        for known, name in _CALLED.items():
            if hasattr(module, known) and (stock or known in _BOUNDS):
                yield getattr(module, known), name
