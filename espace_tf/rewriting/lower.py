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
        lowering.output(tensor)
    return lowering.builder.words(), list(lowering.weights)


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
        self.weights: dict[tuple[str, str], int] = {}
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
            made = self._step(layer, piece, made)
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
        if piece.kind == "activation":
            last = self._are_alone(first) and first.pending == 1
            if last and self.builder.activate(first.value, piece.activation):
                return first
        if piece.kind in ("activation", program.SUM):
            values, rows = self._alike(given, zeros=piece.bias is None)
            step = self.builder.step(
                program.SUM,
                values,
                *self.builder.size(values[0]),
                filter=self._weight(layer, piece.filter),
                bias=self._weight(layer, piece.bias),
                activation=piece.activation,
            )
            return self._of(step, rows)
        return self._step(layer, piece, first)

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
            # Zeros are nothing to a convolution; to a pooling they are values, -1 is none.
            if piece.kind in CONVOLUTIONS or given.rows.min() >= 0:
                table, again = _once(compose(table, given.rows))
                shown = again if shown is None else again[shown]
            else:
                source = self._in_memory(given)
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
