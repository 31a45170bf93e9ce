"""What is known of layers at inference, class by class: a new Keras layer is one entry of RULES.

Known are exactly these classes of keras and tf_keras: a subclass may compute what it likes, a class
that is only called like one of Keras's is none, and quantized and LoRA layers are others too.
"""

import functools
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import keras

from espace_tf.keras_layers import FusedGraph, for_library


@dataclass(frozen=True)
class Map:
    """The size of a tensor without its batch: of its map, which may be (), and its channels."""

    size: tuple[int, ...]
    channels: int


@dataclass(frozen=True, kw_only=True)
class Rule:
    """What a class of layers does at inference.

    Args:
        kind: one word for what it computes, by which `rewriting.pieces` finds the steps that it
            becomes; of a convolution the kind of its `Site`.
        convolution: whether it is one, of any kind.
        skip: why a convolution is not compressed; None: it can be.
        fold: the axes of its last kernel that are its output channels: a batch normalization after
            it can be folded into that kernel and the bias; None: into none.
        macs: its multiply-accumulates per image, of the layer and the sizes of a call's input and
            output; None: it counts none.
    """

    kind: str
    convolution: bool = False
    skip: str | None = None
    fold: tuple[int, ...] | None = None
    macs: Callable[[Any, Map, Map], int] | None = None


def _taps(layer: Any) -> int:
    return math.prod(layer.kernel_size)


def _at_outputs(layer: Any, before: Map, after: Map) -> int:
    inputs = before.channels // getattr(layer, "groups", 1)
    return math.prod(after.size) * _taps(layer) * inputs * after.channels


def _at_inputs(layer: Any, before: Map, after: Map) -> int:
    return math.prod(before.size) * _taps(layer) * before.channels * after.channels


def _depthwise(layer: Any, before: Map, after: Map) -> int:
    return math.prod(after.size) * _taps(layer) * after.channels


def _separable(layer: Any, before: Map, after: Map) -> int:
    between = before.channels * layer.depth_multiplier
    return math.prod(after.size) * between * (_taps(layer) + after.channels)


def _chain(layer: Any, before: Map, after: Map) -> int:
    return sum(
        len(index_map.table) * math.prod(getattr(layer, weight).shape)
        for weight, _, index_map in layer.index_maps(before.size)
    )


def _dense(layer: Any, before: Map, after: Map) -> int:
    return math.prod(before.size) * before.channels * after.channels


def _convolution(kind: str, macs: Callable, skip: str | None, *fold: int) -> Rule:
    return Rule(kind=kind, convolution=True, macs=macs, skip=skip, fold=fold)


DEPTHWISE = "a depthwise convolution is not decomposed"
_SEPARABLE = "a separable convolution is already factored"
_TRANSPOSED = "transposed convolutions are not supported"
_FLAT = "only 2-D convolutions are supported"
_DONE = "already compressed: compress the original model instead"
COMPRESSED = ("masked", "decomposed")
UNKNOWN = Rule(kind="unknown")
_IDENTITY = Rule(kind="identity")
_ACTIVATION = Rule(kind="activation")

RULES = {
    "Conv2D": _convolution("conv", _at_outputs, None, -1),
    "DepthwiseConv2D": _convolution("depthwise", _depthwise, DEPTHWISE, -2, -1),
    "SeparableConv2D": _convolution("separable", _separable, _SEPARABLE, -1),
    "Conv2DTranspose": _convolution("transpose", _at_inputs, _TRANSPOSED, -2),
    "Conv1D": _convolution("conv1d", _at_outputs, _FLAT, -1),
    "DepthwiseConv1D": _convolution("depthwise1d", _depthwise, _FLAT, -2, -1),
    "SeparableConv1D": _convolution("separable1d", _separable, _FLAT, -1),
    "Conv1DTranspose": _convolution("transpose1d", _at_inputs, _FLAT, -2),
    "Conv3D": _convolution("conv3d", _at_outputs, _FLAT, -1),
    "Conv3DTranspose": _convolution("transpose3d", _at_inputs, _FLAT, -2),
    "MaskedConv2D": _convolution("masked", _chain, _DONE, -1),
    "DecomposedConv2D": _convolution("decomposed", _chain, _DONE, -1),
    "Dense": Rule(kind="dense", fold=(-1,), macs=_dense),
    "FusedGraph": Rule(kind="fused"),
    "BatchNormalization": Rule(kind="batch_norm"),
    "Identity": _IDENTITY,
    "Dropout": _IDENTITY,
    "SpatialDropout1D": _IDENTITY,
    "SpatialDropout2D": _IDENTITY,
    "SpatialDropout3D": _IDENTITY,
    "AlphaDropout": _IDENTITY,
    "GaussianDropout": _IDENTITY,
    "GaussianNoise": _IDENTITY,
    "Activation": _ACTIVATION,
    "ReLU": _ACTIVATION,
    "LeakyReLU": _ACTIVATION,
    "PReLU": _ACTIVATION,
    "ELU": _ACTIVATION,
    "Softmax": _ACTIVATION,
    "Add": Rule(kind="sum"),
    "Multiply": Rule(kind="product"),
    "Rescaling": Rule(kind="rescaling"),
    "Normalization": Rule(kind="normalization"),
    "Flatten": Rule(kind="reshape"),
    "Reshape": Rule(kind="reshape"),
    "Permute": Rule(kind="permutation"),
    "Concatenate": Rule(kind="concatenation"),
    "ZeroPadding2D": Rule(kind="padding"),
    "Cropping2D": Rule(kind="cropping"),
    "UpSampling2D": Rule(kind="upsampling"),
    "MaxPooling2D": Rule(kind="max_pooling"),
    "AveragePooling2D": Rule(kind="average_pooling"),
    "GlobalMaxPooling2D": Rule(kind="global_max_pooling"),
    "GlobalAveragePooling2D": Rule(kind="global_average_pooling"),
}
# Operations of a Keras 3 graph that are no layers, as `keras.ops` and arithmetic make them.
OPERATIONS = {
    "Add": Rule(kind="addition"),
    "Subtract": Rule(kind="subtraction"),
    "Multiply": Rule(kind="multiplication"),
    "Divide": Rule(kind="division"),
    "TrueDivide": Rule(kind="division"),
    **dict.fromkeys(("Relu", "Relu6", "Sigmoid", "Tanh", "Silu", "HardSigmoid"), _ACTIVATION),
    **dict.fromkeys(("HardSilu", "Gelu", "Elu", "LeakyRelu", "Softmax"), _ACTIVATION),
}


def rule(layer: Any) -> Rule:
    """What is known of a layer; UNKNOWN: nothing.

    Args:
        layer: a layer, a model or an operation of a graph.

    Example:
        >>> rule(keras.layers.Dropout(0.5)).kind
        'identity'
    """
    return UNKNOWN if is_altered(layer) else _find(type(layer))


def kin(layer: Any) -> Rule:
    """The rule of the class in RULES that a layer is of, or derives from; UNKNOWN: of none.

    It says what the layer is like, not what it computes.
    """
    found = (_find(base) for base in type(layer).__mro__)
    return next((each for each in found if each is not UNKNOWN), UNKNOWN)


def is_altered(layer: Any) -> bool:
    """Whether a layer is quantized or has LoRA weights."""
    return bool(getattr(layer, "quantization_mode", None) or getattr(layer, "lora_enabled", False))


def libraries() -> Iterator[ModuleType]:
    """Keras 3, and tf_keras where somebody has imported it."""
    yield keras
    if "tf_keras" in sys.modules:
        yield sys.modules["tf_keras"]


def _find(known: type) -> Rule:
    tables = (_operations(), *(_classes(library) for library in libraries()))
    return next((table[known] for table in tables if known in table), UNKNOWN)


@functools.cache
def _classes(library: ModuleType) -> dict[type, Rule]:
    classes = {
        **vars(library.layers),
        **vars(for_library(library)),
        "FusedGraph": FusedGraph,
    }
    return {classes[name]: each for name, each in RULES.items() if name in classes}


@functools.cache
def _operations() -> dict[type, Rule]:
    modules = [vars(sys.modules[each.__module__]) for each in (keras.ops.add, keras.ops.relu)]
    return {
        classes[name]: each
        for name, each in OPERATIONS.items()
        for classes in modules
        if name in classes
    }
