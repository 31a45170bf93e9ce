"""The program of a model whose layers are all steps of one."""

import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np

from espace_tf.kernels import program
from espace_tf.kernels.index_map import compose
from espace_tf.network import graph
from espace_tf.rewriting.pieces import CONVOLUTIONS, Piece, pieces


def lower(model: Any) -> tuple[np.ndarray, list[tuple[str, str] | float]]:
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
        lowering.output(tensor)
    sources = [key if isinstance(key[0], str) else key[0] for key in lowering.weights]
    return lowering.builder.words(), sources


@dataclass(eq=False)
class _Rows:
    """What tensors are: rows of a value of the program, gathered only where somebody needs them so.

    Attributes:
        value: of the program.
        rows: int32, which of its rows these are, -1 zeros; None: all of them, in order.
        pending: how many calls, and outputs of the model, have yet to read these tensors.
        memory: the value that holds the gathered rows, once somebody needed one.
    """

    value: int
    rows: np.ndarray | None = None
    pending: int = 0
    memory: int | None = None


class _Lowering:
    """A program in the making.

    Several tensors may be rows of one value. A step that wrote a value is changed afterwards (given
    an activation, or the spread that shows its rows) only where the one who asks is the last reader
    of all of them: nobody has read the value, and nobody will read it but through the result.
    """

    def __init__(self, model: Any):
        self.builder = program.ProgramBuilder()
        self.weights: dict[tuple[str, str] | tuple[float, int], int] = {}
        self.tensors: dict[int, _Rows] = {}
        self.of_value: dict[int, list[_Rows]] = {}
        self.readers = Counter(id(tensor) for tensor in model.outputs)
        for _, inputs, _, _ in graph.nodes(model):
            self.readers.update(map(id, inputs))
        for tensor in model.inputs:
            rows = math.prod(tensor.shape[1:-1])
            self._name(tensor, self._whole(self.builder.input(rows, tensor.shape[-1])))

    def add(self, layer: Any, found: list[Piece], inputs: list[Any], output: Any) -> None:
        """The call of a layer."""
        given = [self.tensors[id(tensor)] for tensor in inputs]
        first, *more = found
        made = self._piece(layer, first, given)
        for piece in more:
            made = self._piece(layer, piece, [made])
        self._name(output, made)
        for rows in given:
            rows.pending -= 1

    def output(self, tensor: Any) -> None:
        """Makes a tensor the next output."""
        rows = self.tensors[id(tensor)]
        self.builder.output(self._in_memory(rows))
        rows.pending -= 1

    def _name(self, tensor: Any, rows: _Rows) -> None:
        self.tensors[id(tensor)] = rows
        rows.pending += self.readers[id(tensor)]

    def _of(self, value: int, rows: np.ndarray | None) -> _Rows:
        made = _Rows(value, rows)
        self.of_value.setdefault(value, []).append(made)
        return made

    def _whole(self, value: int) -> _Rows:
        return self._of(value, None)

    def _are_alone(self, rows: _Rows) -> bool:
        """Whether nobody has yet to read anything of their value but these rows."""
        return not any(each.pending for each in self.of_value[rows.value] if each is not rows)

    def _piece(self, layer: Any, piece: Piece, given: list[_Rows]) -> _Rows:
        first = given[0]
        if piece.kind == "nothing":
            return first
        if piece.kind == "rows":
            return self._gathered(first, piece.table)
        if piece.kind == "concatenation":
            values, rows = self._alike(given)
            return self._of(self.builder.concatenate(values), rows)
        if piece.kind == "reshape":
            if piece.channels == self.builder.size(first.value)[1]:
                return first
            return self._whole(self.builder.reshape(self._in_memory(first), piece.channels))
        if piece.kind == program.SHUFFLE:
            rows, _ = self.builder.size(first.value)
            step = self.builder.step(
                piece.kind, [first.value], rows, piece.channels, table=piece.table
            )
            return self._of(step, first.rows)
        if piece.kind == "activation" and self._activate(layer, piece, first):
            return first
        if piece.kind in ("activation", program.SUM, program.PRODUCT, program.SOFTMAX):
            return self._by_row(layer, piece, given)
        return self._step(layer, piece, first)

    def _activate(self, layer: Any, piece: Piece, given: _Rows) -> bool:
        """Makes an activation that of the step before, if it can be."""
        last = self._are_alone(given) and given.pending <= 1
        zeros = given.rows is None or given.rows.min() >= 0 or _keeps_zeros(piece)
        if not (last and zeros and self.builder.can_activate(given.value)):
            return False
        slopes = self._weight(layer, piece.slopes, self.builder.size(given.value)[1])
        self.builder.activate(given.value, piece.activation, slopes)
        return True

    def _by_row(self, layer: Any, piece: Piece, given: list[_Rows]) -> _Rows:
        """A step that computes every row of the same row of what it reads, or of its only one."""
        sizes = [self._count(each) for each in given]
        most = max(sizes)
        large = [each for each, size in zip(given, sizes, strict=True) if size == most]
        repeated = [each for each, size in zip(given, sizes, strict=True) if size < most]
        zeros = _keeps_zeros(piece) and not (repeated and piece.kind == program.SUM)
        values, rows = self._alike(large, zeros)
        count, channels = self.builder.size(values[0])
        step = self.builder.step(
            program.SUM if piece.kind == "activation" else piece.kind,
            [*values, *map(self._in_memory, repeated)],
            count,
            channels,
            filter=self._weight(layer, piece.filter, channels),
            bias=self._weight(layer, piece.bias, channels),
            slopes=self._weight(layer, piece.slopes, channels),
            activation=piece.activation,
        )
        return self._of(step, rows)

    def _count(self, rows: _Rows) -> int:
        return self.builder.size(rows.value)[0] if rows.rows is None else len(rows.rows)

    def _alike(self, given: list[_Rows], zeros: bool = True) -> tuple[list[int], np.ndarray | None]:
        """Values to work on row by row, and the rows of the result that the tensors then show.

        Where all of them are the same rows of their values, those are worked on before they are
        gathered.

        Args:
            zeros: whether what is made of a row of zeros is zeros again.
        """
        rows = given[0].rows
        if rows is not None and (zeros or rows.min() >= 0):
            sizes = {self.builder.size(each.value)[0] for each in given}
            same = (each.rows is not None and np.array_equal(each.rows, rows) for each in given)
            if len(sizes) == 1 and all(same):
                return [each.value for each in given], rows
        return [self._in_memory(each) for each in given], None

    def _step(self, layer: Any, piece: Piece, given: _Rows) -> _Rows:
        """A step over a table, which reads the rows of a value where it would read the gathered.

        Rows that read the same are computed once: what lies behind a mask is computed no more often
        than the mask is. What shows them are rows again, so that nobody need write them all.
        """
        table, shown, source = piece.table, piece.spread, given.value
        if given.rows is not None:
            # Zeros are nothing to a convolution; to a pooling they are values, -1 is none. A blend
            # has factors for its own positions.
            if piece.kind in CONVOLUTIONS or (
                given.rows.min() >= 0 and piece.kind != program.BLEND
            ):
                table, again = _once(compose(table, given.rows))
                shown = again if shown is None else again[shown]
            else:
                source = self._in_memory(given)
        channels = piece.channels or self.builder.size(source)[1]
        value = self.builder.step(
            piece.kind,
            [source],
            len(table),
            channels,
            filter=self._weight(layer, piece.filter),
            bias=self._weight(layer, piece.bias),
            slopes=self._weight(layer, piece.slopes, channels),
            table=table,
            spread=shown if piece.kind == program.BLEND else None,
            activation=piece.activation,
        )
        if piece.kind == program.BLEND:
            return self._whole(value)
        made = self._whole(value)
        return made if shown is None else self._gathered(made, shown)

    def _gathered(self, given: _Rows, rows: np.ndarray) -> _Rows:
        if given.rows is not None:
            rows = compose(rows, given.rows)
        whole = np.array_equal(rows, np.arange(self.builder.size(given.value)[0]))
        return self._of(given.value, None if whole else rows)

    def _in_memory(self, given: _Rows) -> int:
        """A value that is just these rows."""
        if given.rows is None:
            return given.value
        fits = given.rows.min() >= 0 and self._are_alone(given)
        if fits and self.builder.show(given.value, given.rows):
            given.rows = None
            return given.value
        if given.memory is None:
            channels, table = self.builder.size(given.value)[1], given.rows[:, None]
            given.memory = self.builder.step(
                program.MAX, [given.value], len(table), channels, table=table
            )
        return given.memory

    def _weight(self, layer: Any, source: str | float | None, floats: int | None = None) -> int:
        """The number of a layer's weight, or of one number as often as is said."""
        if source is None:
            return program.NOTHING
        key = (layer.name, source) if isinstance(source, str) else (source, floats)
        if key not in self.weights:
            own = getattr(layer, source, None) if isinstance(source, str) else None
            size = floats if own is None or floats else math.prod(own.shape)
            self.weights[key] = self.builder.weight(size)
        return self.weights[key]


def _keeps_zeros(piece: Piece) -> bool:
    """Whether a step makes zeros of zeros."""
    moved = piece.activation in ("sigmoid", "hard_sigmoid") or piece.kind == program.SOFTMAX
    return piece.bias is None and not moved


def _once(table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The rows of a table without repetitions, in their order, and which of them each row was."""
    _, first, again = np.unique(table, axis=0, return_index=True, return_inverse=True)
    order = np.argsort(first)
    numbers = np.empty(len(first), np.int32)
    numbers[order] = np.arange(len(first), dtype=np.int32)
    return table[first[order]], numbers[again.reshape(-1)]
