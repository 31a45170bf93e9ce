"""Keras layers as steps of a fused program: which layers become which.

A new kind of layer is one function here, under its kind of `network.layer_rules`.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import keras
import numpy as np

from espace_tf.kernels import program
from espace_tf.kernels.index_map import Geometry, conv_table
from espace_tf.network import graph, layer_rules
from espace_tf.network.activations import activation, slope

CONVOLUTIONS = (program.CONVOLVE, program.DEPTHWISE)
# A larger kernel of a dense layer does not stay in the cache from one group of images to the next:
# it is read once for all of them.
_MOST_DENSE_FLOATS = 1 << 21


@dataclass(frozen=True, kw_only=True, eq=False)
class Piece:
    """What a layer does to rows: one of the steps that it becomes.

    Attributes:
        kind: of a step of a program; or "rows" (a gathering, of the rows `table`), "activation",
            "concatenation", "reshape" (rows of so many `channels`), "nothing".
        channels: that come out; None: as many as come in.
        filter, bias, slopes: names of the layer's weights, or numbers, as `FusedGraph` takes them.
        table, spread: as steps have them.
        activation: applied last.
    """

    kind: int | str
    channels: int | None = None
    filter: str | float | None = None
    bias: str | float | None = None
    slopes: str | float | None = None
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


def _is_plain(layer: Any, inputs: list[Any], outputs: list[Any]) -> bool:
    """Whether a layer computes in float32, channels last, on maps of known size, without masks."""
    tensors = [*inputs, *outputs]
    if len(outputs) != 1 or any(map(graph.has_mask, tensors)):
        return False
    if isinstance(layer, keras.layers.Layer):
        if getattr(layer.dtype_policy, "name", "") != "float32":
            return False
        if layer.activity_regularizer is not None:
            return False
    if getattr(layer, "data_format", "channels_last") != "channels_last":
        return False
    known = all(len(t.shape) > 1 and None not in t.shape[1:] for t in tensors)
    return known and all(str(t.dtype) == "float32" and not graph.is_sparse(t) for t in tensors)


def _nothing(layer: Any, inputs: list[Any]) -> list[Piece]:
    return [Piece(kind="nothing")]


def _activation(layer: Any, inputs: list[Any]) -> list[Piece] | None:
    name = activation(layer)
    if name is None or len(inputs) != 1:
        return None
    if name == "softmax":
        return [Piece(kind=program.SOFTMAX)]
    slopes = slope(layer) if name in program.SLOPED else None
    if isinstance(slopes, str):
        shape = getattr(layer, slopes).shape
        if not math.prod(shape) == shape[-1] == inputs[0].shape[-1]:
            return None
    kind = "nothing" if name == "none" else "activation"
    return [Piece(kind=kind, activation=name, slopes=slopes)]


def _combined(kind: int, layer: Any, inputs: list[Any]) -> list[Piece] | None:
    """A sum or product of maps of one size, or of such a map and of maps of one position."""
    largest = max(inputs, key=lambda tensor: math.prod(tensor.shape[1:]))
    for tensor in inputs:
        alike = tensor.shape[1:-1] == largest.shape[1:-1] or math.prod(tensor.shape[1:-1]) == 1
        if not alike or tensor.shape[-1] != largest.shape[-1]:
            return None
    return [Piece(kind=kind)]


def _with_number(kind: str, layer: Any, inputs: list[Any]) -> list[Piece] | None:
    """Arithmetic of a tensor and a number, or a sum or a product of tensors."""
    number, first = graph.number(layer)
    if number is None:
        combined = {"addition": program.SUM, "multiplication": program.PRODUCT}.get(kind)
        ranks = [len(tensor.shape) for tensor in inputs]
        alike = len(ranks) == 2 and ranks[0] == ranks[1]
        return _combined(combined, layer, inputs) if combined is not None and alike else None
    if first and kind == "division":
        return None
    factor = {"multiplication": number, "division": 1.0 / number if number else math.nan}.get(kind)
    factor = -1.0 if first and kind == "subtraction" else factor
    term = {"addition": number, "subtraction": number if first else -number}.get(kind)
    known = all(each is None or math.isfinite(each) for each in (factor, term))
    return [Piece(kind=program.SUM, filter=factor, bias=term)] if known else None


def _rescaling(layer: Any, inputs: list[Any]) -> list[Piece] | None:
    found = []
    for name, value in (("scale", layer.scale), ("shift", layer.offset)):
        size, shape = np.size(value), np.shape(value)
        if size != 1 and shape != (inputs[0].shape[-1],):
            return None
        found.append(float(np.reshape(value, ())) if size == 1 else name)
    return [Piece(kind=program.SUM, filter=found[0], bias=found[1])]


def _normalization(layer: Any, inputs: list[Any]) -> list[Piece] | None:
    by_channel = layer.mean is not None and math.prod(layer.mean.shape) == inputs[0].shape[-1]
    if not by_channel or layer.mean.shape[-1] != inputs[0].shape[-1]:
        return None
    return [Piece(kind=program.SUM, filter="scale", bias="shift")]


def is_large(layer: Any) -> bool:
    """Whether a layer is a dense one that had better take all images of a batch at once."""
    dense = layer_rules.rule(layer).kind == "dense"
    return dense and math.prod(layer.kernel.shape) > _MOST_DENSE_FLOATS


def _dense(layer: Any, inputs: list[Any]) -> list[Piece] | None:
    if is_large(layer) and len(inputs[0].shape) > 2:
        return None
    table = np.arange(math.prod(inputs[0].shape[1:-1]), dtype=np.int32)[:, None]
    step = Piece(kind=program.CONVOLVE, filter="kernel", table=table, channels=layer.units)
    return _ended(layer, [step])


def _reshaped(layer: Any, inputs: list[Any]) -> list[Piece]:
    return [Piece(kind="reshape", channels=layer.compute_output_shape(inputs[0].shape)[-1])]


def _permuted(layer: Any, inputs: list[Any]) -> list[Piece]:
    """The axes that move, taken as channels and shuffled; of rows as a gathering."""
    shape, axes = inputs[0].shape[1:], [axis - 1 for axis in layer.dims]
    numbers = np.arange(math.prod(shape), dtype=np.int32).reshape(shape)
    if axes[-1] == len(shape) - 1:  # rows move as they are
        return _rows(numbers[..., 0].transpose(axes[:-1]) // shape[-1])
    fixed = next(index for index, axis in enumerate(axes) if axis != index)
    channels = math.prod(shape[fixed:])
    moved = numbers.ravel()[:channels].reshape(shape[fixed:])
    moved = moved.transpose([axis - fixed for axis in axes[fixed:]])
    return [
        Piece(kind="reshape", channels=channels),
        Piece(kind=program.SHUFFLE, table=moved.reshape(-1, 1), channels=channels),
        Piece(kind="reshape", channels=shape[axes[-1]]),
    ]


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
    if layer.interpolation == "bilinear":
        table, factors = _bilinear(_positions(inputs), layer.size)
        return [Piece(kind=program.BLEND, table=table, spread=factors)]
    if layer.interpolation != "nearest":
        return None
    return _rows(_positions(inputs).repeat(layer.size[0], 0).repeat(layer.size[1], 1))


def _bilinear(positions: np.ndarray, times: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """The four positions that each one of a larger map is a mean of, and how much each counts.

    Both maps cover the same square: the centre of position i of the larger map is at
    (i + 1/2) / times - 1/2 of the smaller one, whose border goes on outwards.
    """
    found = []
    for size, factor in zip(positions.shape, times, strict=True):
        centre = (np.arange(size * factor) + 0.5) / factor - 0.5
        low = np.floor(centre).astype(int)
        share = centre - low
        sides = np.stack([low, low + 1], -1).clip(0, size - 1)
        found.append((sides, np.stack([1 - share, share], -1)))
    (rows, by_row), (columns, by_column) = found
    table = positions[rows[:, None, :, None], columns[None, :, None, :]]
    factors = by_row[:, None, :, None] * by_column[None, :, None, :]
    return table.reshape(-1, 4), factors.reshape(-1, 4).astype(np.float32)


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
    """The steps of a masked or decomposed convolution; of a masked one by channel, too."""
    channels, maps = inputs[0].shape[-1], layer.index_maps(_size(inputs))
    by_channel = layer.groups == channels == layer.filters and len(maps) == 1
    if layer.groups != 1 and not by_channel:
        return None
    made = [
        Piece(
            kind=program.DEPTHWISE if by_channel and layer.groups > 1 else program.CONVOLVE,
            channels=filters,
            filter=weight,
            table=index_map.table,
            spread=index_map.spread,
        )
        for weight, filters, index_map in maps
    ]
    return _ended(layer, made)


def _ended(layer: Any, made: list[Piece]) -> list[Piece] | None:
    """The steps of a convolution with its bias and activation, if it is one that steps have."""
    name = activation(layer)
    if name is None:
        return None
    last = replace(made[-1], bias="bias" if layer.use_bias else None)
    if name == "softmax":
        return [*made[:-1], last, Piece(kind=program.SOFTMAX)]
    slopes = slope(layer) if name in program.SLOPED else None
    return [*made[:-1], replace(last, activation=name, slopes=slopes)]


_POINTWISE: dict[str, Callable[[Any, list[Any]], list[Piece] | None]] = {
    "identity": _nothing,
    "activation": _activation,
    "sum": functools.partial(_combined, program.SUM),
    "product": functools.partial(_combined, program.PRODUCT),
    "concatenation": _concatenation,
    "batch_norm": _batch_norm,
    "rescaling": _rescaling,
    "normalization": _normalization,
    "dense": _dense,
    "reshape": _reshaped,
    "permutation": _permuted,
    **{
        kind: functools.partial(_with_number, kind)
        for kind in ("addition", "subtraction", "multiplication", "division")
    },
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
