"""Keras layers as steps of a fused program: which layers become which.

A new kind of layer is one function here, under its kind of `network.layer_rules`.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from espace_tf.kernels import program
from espace_tf.kernels.index_map import Geometry, conv_table
from espace_tf.network import layer_rules

CONVOLUTIONS = (program.CONVOLVE, program.DEPTHWISE)


@dataclass(frozen=True, kw_only=True, eq=False)
class Piece:
    """What a layer does to rows: one of the steps that it becomes.

    Attributes:
        kind: of a step of a program; or "rows" (a gathering, of the rows `table`), "activation",
            "concatenation", "nothing".
        channels: that come out; None: as many as come in.
        filter, bias: names of the layer's weights, as `FusedGraph` takes them.
        table, spread: as steps have them.
        activation: applied last.
    """

    kind: int | str
    channels: int | None = None
    filter: str | None = None
    bias: str | None = None
    table: np.ndarray | None = None
    spread: np.ndarray | None = None
    activation: str = "none"


def pieces(layer: Any, inputs: list[Any], outputs: list[Any]) -> list[Piece] | None:
    """What a call of a layer becomes at inference; None: it is no stretch of a program.

    Args:
        layer: of Keras 3.
        inputs, outputs: the symbolic tensors of the call.
    """
    kind = layer_rules.rule(layer).kind
    known = kind in _POINTWISE or (kind in _OF_MAPS and len(inputs[0].shape) == 4)
    if not known or not _is_plain(layer, inputs, outputs):
        return None
    return _POINTWISE[kind](layer, inputs) if kind in _POINTWISE else _OF_MAPS[kind](layer, inputs)


def is_convolution(found: list[Piece]) -> bool:
    """Whether any of the pieces is one."""
    return any(piece.kind in CONVOLUTIONS for piece in found)


def _is_plain(layer: Any, inputs: list[Any], outputs: list[Any]) -> bool:
    """Whether a layer computes in float32, channels last, on maps of known size."""
    if len(outputs) != 1 or getattr(layer.dtype_policy, "name", "") != "float32":
        return False
    if layer.activity_regularizer is not None:
        return False
    if getattr(layer, "data_format", "channels_last") != "channels_last":
        return False
    tensors = [*inputs, *outputs]
    known = all(len(t.shape) > 1 and None not in t.shape[1:] for t in tensors)
    return known and all(str(t.dtype) == "float32" and not t.sparse for t in tensors)


def _nothing(layer: Any, inputs: list[Any]) -> list[Piece]:
    return [Piece(kind="nothing")]


def _activation(layer: Any, inputs: list[Any]) -> list[Piece] | None:
    name = layer_rules.activation(layer)
    kind = "nothing" if name == "none" else "activation"
    return None if name is None else [Piece(kind=kind, activation=name)]


def _sum(layer: Any, inputs: list[Any]) -> list[Piece] | None:
    alike = len({tuple(tensor.shape[1:]) for tensor in inputs}) == 1
    return [Piece(kind=program.SUM)] if alike else None


def _concatenation(layer: Any, inputs: list[Any]) -> list[Piece] | None:
    return [Piece(kind="concatenation")] if _is_last(layer.axis, inputs) else None


def _batch_norm(layer: Any, inputs: list[Any]) -> list[Piece] | None:
    step = Piece(kind=program.SUM, filter="scale", bias="shift")
    return [step] if _is_last(layer.axis, inputs) else None


def _is_last(axis: Any, inputs: list[Any]) -> bool:
    rank = len(inputs[0].shape)
    return [each % rank for each in np.atleast_1d(axis)] == [rank - 1]


def _padding(layer: Any, inputs: list[Any]) -> list[Piece]:
    return _rows(np.pad(_positions(inputs), layer.padding, constant_values=-1))


def _cropping(layer: Any, inputs: list[Any]) -> list[Piece]:
    (top, bottom), (left, right) = layer.cropping
    height, width = _size(inputs)
    return _rows(_positions(inputs)[top : height - bottom, left : width - right])


def _upsampling(layer: Any, inputs: list[Any]) -> list[Piece] | None:
    if layer.interpolation != "nearest":
        return None
    return _rows(_positions(inputs).repeat(layer.size[0], 0).repeat(layer.size[1], 1))


def _rows(positions: np.ndarray) -> list[Piece]:
    return [Piece(kind="rows", table=positions.ravel())]


def _positions(inputs: list[Any]) -> np.ndarray:
    """The number of each position of the input map."""
    return np.arange(math.prod(_size(inputs)), dtype=np.int32).reshape(_size(inputs))


def _size(inputs: list[Any]) -> tuple[int, int]:
    return tuple(inputs[0].shape[1:-1])


def _pooling(kind: int, layer: Any, inputs: list[Any]) -> list[Piece]:
    return [Piece(kind=kind, table=_table(layer, layer.pool_size, inputs))]


def _global_pooling(kind: int, layer: Any, inputs: list[Any]) -> list[Piece]:
    return [Piece(kind=kind, table=_positions(inputs).reshape(1, -1))]


def _table(layer: Any, kernel_size: tuple[int, int], inputs: list[Any]) -> np.ndarray:
    geometry = Geometry(
        kernel_size=tuple(kernel_size),
        input_size=_size(inputs),
        strides=tuple(layer.strides),
        dilation_rate=tuple(getattr(layer, "dilation_rate", (1, 1))),
        padding=layer.padding,
    )
    return conv_table(geometry)


def _convolution(layer: Any, inputs: list[Any]) -> list[Piece] | None:
    """Of one group, or of one for each channel."""
    channels = inputs[0].shape[-1]
    if layer.groups == 1:
        return _convolved(layer, inputs, kind=program.CONVOLVE, channels=layer.filters)
    single = layer.groups == channels == layer.filters
    return _convolved(layer, inputs, kind=program.DEPTHWISE) if single else None


def _depthwise(layer: Any, inputs: list[Any]) -> list[Piece] | None:
    single = layer.depth_multiplier == 1
    return _convolved(layer, inputs, kind=program.DEPTHWISE) if single else None


def _convolved(layer: Any, inputs: list[Any], **options: Any) -> list[Piece] | None:
    """One step with the kernel of a layer."""
    table = _table(layer, layer.kernel_size, inputs)
    return _ended(layer, [Piece(filter="kernel", table=table, **options)])


def _chain(layer: Any, inputs: list[Any]) -> list[Piece] | None:
    """The steps of a masked or decomposed convolution."""
    if layer.groups != 1:
        return None
    made = [
        Piece(
            kind=program.CONVOLVE,
            channels=filters,
            filter=weight,
            table=index_map.table,
            spread=index_map.spread,
        )
        for weight, filters, index_map in layer.index_maps(_size(inputs))
    ]
    return _ended(layer, made)


def _ended(layer: Any, made: list[Piece]) -> list[Piece] | None:
    """The steps of a convolution with its bias and activation, if it is one that steps have."""
    name = layer_rules.activation(layer)
    if name is None:
        return None
    bias = "bias" if layer.use_bias else None
    return [*made[:-1], replace(made[-1], bias=bias, activation=name)]


_POINTWISE: dict[str, Callable[[Any, list[Any]], list[Piece] | None]] = {
    "identity": _nothing,
    "activation": _activation,
    "sum": _sum,
    "concatenation": _concatenation,
    "batch_norm": _batch_norm,
}
_OF_MAPS: dict[str, Callable[[Any, list[Any]], list[Piece] | None]] = {
    "conv": _convolution,
    "depthwise": _depthwise,
    "masked": _chain,
    "decomposed": _chain,
    "padding": _padding,
    "cropping": _cropping,
    "upsampling": _upsampling,
    "max_pooling": functools.partial(_pooling, program.MAX),
    "average_pooling": functools.partial(_pooling, program.AVERAGE),
    "global_max_pooling": functools.partial(_global_pooling, program.MAX),
    "global_average_pooling": functools.partial(_global_pooling, program.AVERAGE),
}
