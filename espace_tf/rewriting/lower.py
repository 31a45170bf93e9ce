"""Keras layers as steps of a fused program: which can be, and the program of a model of such."""

import math
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import keras
import numpy as np

from espace_tf.keras_layers import DecomposedConv2D, MaskedConv2D
from espace_tf.kernels import program
from espace_tf.kernels.index_map import Geometry, compose, conv_table
from espace_tf.network import graph

_OURS = (MaskedConv2D, DecomposedConv2D)
_NOTHING = (
    *("Identity", "Dropout", "SpatialDropout2D", "AlphaDropout", "GaussianDropout"),
    "GaussianNoise",
)
_POOLINGS = {"MaxPooling2D": program.MAX, "AveragePooling2D": program.AVERAGE}
_GLOBAL = {"GlobalMaxPooling2D": program.MAX, "GlobalAveragePooling2D": program.AVERAGE}
_MOVED = ("ZeroPadding2D", "Cropping2D", "UpSampling2D")
_CONVOLUTIONS = (program.CONVOLVE, program.DEPTHWISE)


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
    if not _is_plain(layer, inputs, outputs):
        return None
    kind, size = type(layer).__name__, tuple(inputs[0].shape[1:-1])
    if kind in _NOTHING:
        return [Piece(kind="nothing")]
    if kind in ("ReLU", "Activation"):
        name = _activation(layer)
        return None if name is None else [_activated(name)]
    if kind in ("Add", "Concatenate", "BatchNormalization"):
        return _joined(layer, kind, inputs)
    if len(size) != 2:
        return None
    if kind in _MOVED:
        interpolation = getattr(layer, "interpolation", "nearest")
        rows = _moved_rows(layer, size) if interpolation == "nearest" else None
        return None if rows is None else [Piece(kind="rows", table=rows)]
    if kind in _GLOBAL:
        return [Piece(kind=_GLOBAL[kind], table=np.arange(math.prod(size), dtype=np.int32)[None])]
    if kind in _POOLINGS:
        return [Piece(kind=_POOLINGS[kind], table=_table(layer, layer.pool_size, size))]
    return _convolved(layer, kind, size, inputs[0].shape[-1])


def is_convolution(found: list[Piece]) -> bool:
    """Whether any of the pieces is one."""
    return any(piece.kind in _CONVOLUTIONS for piece in found)


def lower(model: Any) -> tuple[np.ndarray, list[tuple[str, str]]]:
    """The program of a model, and the weights that it takes.

    Args:
        model: a Functional Keras 3 model of layers that all have pieces.

    Returns:
        words and weights, as `FusedGraph` takes them.

    Raises:
        ValueError: a layer that has no pieces.
    """
    lowering = _Lowering(model)
    for layer, inputs, outputs, _ in graph.nodes(model):
        found = pieces(layer, inputs, outputs)
        if found is None:
            raise ValueError(
                f"layer {layer.name!r} ({type(layer).__name__}) has no place in a program"
            )
        lowering.add(layer, found, inputs, outputs[0])
    for tensor in model.outputs:
        lowering.builder.output(lowering.value(tensor))
    return lowering.builder.words(), list(lowering.weights)


@dataclass(eq=False)
class _View:
    """Rows of a value, gathered where somebody needs them in memory."""

    source: int
    rows: np.ndarray
    value: int | None = None


class _Lowering:
    """A program in the making."""

    def __init__(self, model: Any):
        self.builder = program.ProgramBuilder()
        self.weights: dict[tuple[str, str], int] = {}
        self.values: dict[int, int | _View] = {}
        self.views: Counter[int] = Counter()  # of each value
        self.readers = Counter(id(tensor) for tensor in model.outputs)
        self.sole: dict[int, bool] = {}  # no other reader, nor one of what it is but a name of
        for _, inputs, _, _ in graph.nodes(model):
            self.readers.update(map(id, inputs))
        for tensor in model.inputs:
            self.values[id(tensor)] = self.builder.input(_rows(tensor), tensor.shape[-1])
            self.sole[id(tensor)] = False

    def add(self, layer: Any, found: list[Piece], inputs: list[Any], output: Any) -> None:
        """The call of a layer."""
        self.sole[id(output)] = self.readers[id(output)] == 1
        (first, *more), last = found, inputs[0]
        self.values[id(output)] = self._piece(layer, first, inputs, output)
        if first.kind == "nothing":
            self.sole[id(output)] &= self.sole[id(last)]
        for piece in more:
            made = self.values[id(output)]
            self.values[id(output)] = self._step(layer, piece, made)

    def value(self, tensor: Any) -> int:
        """The value of a tensor, in memory."""
        return self._in_memory(self.values[id(tensor)])

    def _piece(self, layer: Any, piece: Piece, inputs: list[Any], output: Any) -> int | _View:
        found = self._found(inputs[0])
        if piece.kind == "nothing":
            return found
        if piece.kind == "rows":
            return self._gathered(found, piece.table)
        if piece.kind == "concatenation":
            parts, rows = self._alike(inputs)
            return self._seen(self.builder.concatenate(parts), rows)
        if piece.kind == "activation":
            value = found.source if isinstance(found, _View) else found
            if self.sole[id(inputs[0])] and self.builder.activate(value, piece.activation):
                return found
            piece = Piece(kind=program.SUM, activation=piece.activation)
        if piece.kind == program.SUM:
            parts, rows = self._alike(inputs, zeros=piece.bias is None)
            step = self.builder.step(
                program.SUM,
                parts,
                *self.builder.size(parts[0]),
                filter=self._weight(layer, piece.filter),
                bias=self._weight(layer, piece.bias),
                activation=piece.activation,
            )
            return self._seen(step, rows)
        return self._step(layer, piece, found)

    def _alike(self, tensors: list[Any], zeros: bool = True) -> tuple[list[int], np.ndarray | None]:
        """Values to work on row by row, and the rows of the result that the tensors then show.

        Where all of them are views of the same rows, those are worked on before they are gathered.

        Args:
            zeros: whether what is made of a row of zeros is zeros again.
        """
        found = [self._found(tensor) for tensor in tensors]
        first = found[0]
        if isinstance(first, _View) and (zeros or first.rows.min() >= 0):
            sizes = {self.builder.size(each.source)[0] for each in found if isinstance(each, _View)}
            same = (isinstance(e, _View) and np.array_equal(e.rows, first.rows) for e in found)
            if len(sizes) == 1 and all(same):
                return [each.source for each in found], first.rows
        return [self._in_memory(each) for each in found], None

    def _found(self, tensor: Any) -> int | _View:
        """What a tensor is: a value, or a view that has none of its own."""
        found = self.values[id(tensor)]
        return found.value if isinstance(found, _View) and found.value == found.source else found

    def _seen(self, value: int, rows: np.ndarray | None) -> int | _View:
        if rows is None:
            return value
        self.views[value] += 1
        return _View(value, rows)

    def _step(self, layer: Any, piece: Piece, found: int | _View) -> int | _View:
        """A step over a table, which reads through a view where that is the same.

        Rows that read the same are computed once: what lies behind a mask is computed no more often
        than the mask is. What shows them is a view, so that nobody need write them all.
        """
        table, shown, source = piece.table, piece.spread, found
        if isinstance(found, _View):
            # Zeros are nothing to a convolution; to a pooling they are values, -1 is none.
            if piece.kind in _CONVOLUTIONS or found.rows.min() >= 0:
                table, source = compose(table, found.rows), found.source
                table, again = _once(table)
                shown = again if shown is None else again[shown]
            else:
                source = self._in_memory(found)
        value = self.builder.step(
            piece.kind,
            [source],
            len(table),
            piece.channels or self.builder.size(source)[1],
            filter=self._weight(layer, piece.filter),
            bias=self._weight(layer, piece.bias),
            table=table,
            activation=piece.activation,
        )
        return value if shown is None else self._gathered(value, shown)

    def _gathered(self, found: int | _View, rows: np.ndarray) -> int | _View:
        if isinstance(found, _View):
            return self._seen(found.source, compose(rows, found.rows))
        if np.array_equal(rows, np.arange(self.builder.size(found)[0])):
            return found
        return self._seen(found, rows)

    def _in_memory(self, found: int | _View) -> int:
        if isinstance(found, int):
            return found
        single = self.views[found.source] == 1 and found.rows.min() >= 0
        if found.value is None and single and self.builder.show(found.source, found.rows):
            found.value = found.source
        if found.value is None:
            channels = self.builder.size(found.source)[1]
            table = found.rows[:, None]
            found.value = self.builder.step(
                program.MAX, [found.source], len(table), channels, table=table
            )
        return found.value

    def _weight(self, layer: Any, name: str | None) -> int:
        if name is None:
            return program.NOTHING
        key = layer.name, name
        if key not in self.weights:
            weight = layer.moving_mean if name in ("scale", "shift") else getattr(layer, name)
            self.weights[key] = self.builder.weight(math.prod(weight.shape))
        return self.weights[key]


def _once(table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The rows of a table without repetitions, in their order, and which of them each row was."""
    _, first, again = np.unique(table, axis=0, return_index=True, return_inverse=True)
    order = np.argsort(first)
    numbers = np.empty(len(first), np.int32)
    numbers[order] = np.arange(len(first), dtype=np.int32)
    return table[first[order]], numbers[again.reshape(-1)]


def _rows(tensor: Any) -> int:
    return math.prod(tensor.shape[1:-1])


def _is_plain(layer: Any, inputs: list[Any], outputs: list[Any]) -> bool:
    """Whether a layer is one of Keras's or ours, in float32, on maps of known size."""
    ours = type(layer) in _OURS
    if not ours and not type(layer).__module__.startswith("keras.src.layers."):
        return False  # a subclass computes what it likes
    if len(outputs) != 1 or not inputs or getattr(layer.dtype_policy, "name", "") != "float32":
        return False
    if getattr(layer, "lora_enabled", False) or layer.activity_regularizer is not None:
        return False
    if getattr(layer, "data_format", "channels_last") != "channels_last":
        return False
    tensors = [*inputs, *outputs]
    known = all(len(t.shape) > 1 and None not in t.shape[1:] for t in tensors)
    return known and all(str(t.dtype) == "float32" and not t.sparse for t in tensors)


def _activation(layer: Any) -> str | None:
    """A program's name for the activation of a layer; None: it has none."""
    if type(layer).__name__ == "ReLU":
        if layer.negative_slope or layer.threshold or layer.max_value not in (None, 6):
            return None
        return "relu" if layer.max_value is None else "relu6"
    known = {
        keras.activations.linear: "none",
        keras.activations.relu: "relu",
        keras.activations.relu6: "relu6",
    }
    return known.get(layer.activation) if callable(layer.activation) else None


def _activated(name: str) -> Piece:
    return Piece(kind="nothing" if name == "none" else "activation", activation=name)


def _joined(layer: Any, kind: str, inputs: list[Any]) -> list[Piece] | None:
    """An addition, a concatenation, or a factor and an offset for each channel."""
    shapes = {tuple(tensor.shape[1:]) for tensor in inputs}
    last = getattr(layer, "axis", -1) in (-1, len(inputs[0].shape) - 1, [len(inputs[0].shape) - 1])
    if kind == "Add":
        return [Piece(kind=program.SUM)] if len(shapes) == 1 else None
    if not last:
        return None
    if kind == "Concatenate":
        return [Piece(kind="concatenation")]
    return [Piece(kind=program.SUM, filter="scale", bias="shift")]


def _moved_rows(layer: Any, size: tuple[int, int]) -> np.ndarray:
    """The input position that each output position of a padding, cropping or nearest upsampling
    shows, or -1.
    """
    kind = type(layer).__name__
    positions = np.arange(size[0] * size[1], dtype=np.int32).reshape(size)
    if kind == "ZeroPadding2D":
        return np.pad(positions, layer.padding, constant_values=-1).ravel()
    if kind == "Cropping2D":
        (top, bottom), (left, right) = layer.cropping
        return positions[top : size[0] - bottom, left : size[1] - right].ravel()
    return positions.repeat(layer.size[0], 0).repeat(layer.size[1], 1).ravel()


def _table(layer: Any, kernel_size: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
    geometry = Geometry(
        kernel_size=tuple(kernel_size),
        input_size=size,
        strides=tuple(layer.strides),
        dilation_rate=tuple(getattr(layer, "dilation_rate", (1, 1))),
        padding=layer.padding,
    )
    return conv_table(geometry)


def _convolved(layer: Any, kind: str, size: tuple[int, int], channels: int) -> list[Piece] | None:
    """A convolution of any kind, or None."""
    known = isinstance(layer, _OURS) or kind in ("Conv2D", "DepthwiseConv2D")
    activation = _activation(layer) if known else None
    if activation is None:
        return None
    bias = "bias" if layer.use_bias else None
    if isinstance(layer, _OURS):
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
            for weight, filters, index_map in layer.index_maps(size)
        ]
        return [*made[:-1], replace(made[-1], bias=bias, activation=activation)]
    table = _table(layer, layer.kernel_size, size)
    options = {"filter": "kernel", "bias": bias, "table": table, "activation": activation}
    if kind == "DepthwiseConv2D":
        single = layer.depth_multiplier == 1
        return [Piece(kind=program.DEPTHWISE, **options)] if single else None
    if layer.groups == channels == layer.filters > 1:
        return [Piece(kind=program.DEPTHWISE, **options)]
    if layer.groups != 1:
        return None
    return [Piece(kind=program.CONVOLVE, channels=layer.filters, **options)]
