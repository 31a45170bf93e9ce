"""A stretch of a network as one flat array of integers, which a single native operation runs.

Layout of the words (int32), read by the operation `EspaceFusedGraph`:

    header   [MAGIC, inputs, outputs, weights, tensors, tables, steps, scratch floats per image]
    weights  one word each: the number of its floats
    tensors  [kind (INPUT, OUTPUT, SCRATCH), index, start, rows, channels, stride] each: row r,
             channel c lies at start + r * stride + c
    tables   [rows, taps, rows * taps values] each; a spread is a table of one tap
    steps    [kind, activation, out, filter, bias, table, spread, number of ins, ins...] each; -1
             where there is none

Concatenations are no steps: who makes a part of one writes it straight into its slice.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from espace_tf.kernels.index_map import PADDED, check_indices, check_range

MAGIC = 0x45535031
INPUT, OUTPUT, SCRATCH = range(3)
CONVOLVE, DEPTHWISE, MAX, AVERAGE, SUM = range(5)
ACTIVATIONS = ("none", "relu", "relu6")
ALIGNMENT = 16  # floats: a cache line
NOTHING = -1


@dataclass(frozen=True, eq=False)
class _Step:
    """One step; its ins and its out are values of the builder."""

    kind: int
    activation: int
    out: int
    filter: int
    bias: int
    table: int
    spread: int
    ins: tuple[int, ...]


@dataclass
class _Value:
    """What a step writes, an input, or a concatenation of values.

    Attributes:
        rows, channels: its size.
        host: the concatenation that it is a slice of, and its first channel there; or None.
        step: the number of the step that writes it; None for inputs and concatenations.
        place: (INPUT or OUTPUT, index) where it is one.
    """

    rows: int
    channels: int
    host: tuple[int, int] | None = None
    step: int | None = None
    place: tuple[int, int] | None = None


class ProgramBuilder:
    """Collects the steps of a program; values are numbers that its methods return.

    Example:
        >>> builder = ProgramBuilder()
        >>> rows = builder.input(4, 2)
        >>> table = np.array([[0], [2]], np.int32)
        >>> builder.output(builder.step(MAX, [rows], 2, 2, table=table))
        >>> builder.words()[1:8].tolist()
        [1, 1, 0, 2, 1, 1, 0]
    """

    def __init__(self):
        self._values: list[_Value] = []
        self._steps: list[_Step] = []
        self._weights: list[int] = []
        self._tables: list[np.ndarray] = []
        self._known: dict[tuple, int] = {}
        self._inputs = self._outputs = 0

    def input(self, rows: int, channels: int) -> int:
        """The next input, [B, rows, channels]."""
        self._inputs += 1
        return self._add(_Value(rows, channels, place=(INPUT, self._inputs - 1)))

    def size(self, value: int) -> tuple[int, int]:
        """(rows, channels) of a value."""
        return self._values[value].rows, self._values[value].channels

    def weight(self, floats: int) -> int:
        """The number of a new weight of this many floats."""
        self._weights.append(int(floats))
        return len(self._weights) - 1

    def step(
        self,
        kind: int,
        ins: Sequence[int],
        rows: int,
        channels: int,
        *,
        filter: int = NOTHING,
        bias: int = NOTHING,
        table: np.ndarray | None = None,
        spread: np.ndarray | None = None,
        activation: str = "none",
    ) -> int:
        """A step and the value that it writes.

        Args:
            kind: CONVOLVE, DEPTHWISE, MAX, AVERAGE or SUM.
            ins: values that it reads.
            rows, channels: of what it writes.
            filter, bias: weights.
            table: int32 [computed rows, taps], input rows in [-1, rows of the input).
            spread: int32 [rows], the computed row that each row shows.
            activation: one of ACTIVATIONS.

        Raises:
            ValueError: a table or spread that the values do not fit.
        """
        self._check(kind, ins, rows, channels, table, spread)
        out = self._add(_Value(rows, channels, step=len(self._steps)))
        self._steps.append(
            _Step(
                kind,
                ACTIVATIONS.index(activation),
                out,
                filter,
                bias,
                self._table(table),
                self._table(None if spread is None else spread[:, None]),
                tuple(ins),
            )
        )
        return out

    def activate(self, value: int, activation: str) -> bool:
        """Gives the step that writes a value this activation, if it still can.

        It can if it has none and nobody has read the value. Poolings never have one.
        """
        number = self._values[value].step
        if number is None or self._steps[number].activation or self._is_read(value):
            return False
        if self._steps[number].kind in (MAX, AVERAGE):
            return False
        self._steps[number] = replace(self._steps[number], activation=ACTIVATIONS.index(activation))
        return True

    def show(self, value: int, spread: np.ndarray) -> bool:
        """Makes the step that writes a value write each row where it is shown, if it still can.

        Args:
            value: written by a step over a table, and read by nobody yet.
            spread: int32, the row of the value that each new row shows.

        Returns:
            Whether the value now has these rows; if not, nothing has changed.
        """
        found = self._values[value]
        step = None if found.step is None else self._steps[found.step]
        if step is None or step.table == NOTHING or step.spread != NOTHING:
            return False
        if self._is_read(value):
            return False
        check_range(spread, "spread", 0, found.rows)
        self._steps[found.step] = replace(step, spread=self._table(spread[:, None]))
        found.rows = len(spread)
        return True

    def _is_read(self, value: int) -> bool:
        """Whether a step, a concatenation or an output reads a value as it is."""
        found = self._values[value]
        taken = found.host is not None or found.place is not None
        return taken or any(value in step.ins for step in self._steps)

    def concatenate(self, parts: Sequence[int]) -> int:
        """The values side by side, along the channels.

        A part becomes a slice of the result. Inputs, and what is a slice already, are copied.

        Raises:
            ValueError: parts of different numbers of rows.
        """
        rows = {self._values[part].rows for part in parts}
        if len(rows) != 1:
            raise ValueError(f"parts must have the same number of rows. Received: {sorted(rows)}")
        widths = [self._values[part].channels for part in parts]
        whole, first = self._add(_Value(rows.pop(), sum(widths))), 0
        for part, width in zip(parts, widths, strict=True):
            self._values[self._own(part)].host = whole, first
            first += width
        return whole

    def output(self, value: int) -> None:
        """Makes a value the next output; an input or a slice is copied there."""
        self._values[self._own(value)].place = OUTPUT, self._outputs
        self._outputs += 1

    def words(self) -> np.ndarray:
        """The program, int32, see the module."""
        starts, scratch = self._allocate()
        header = [MAGIC, self._inputs, self._outputs, len(self._weights), len(self._values)]
        words = [*header, len(self._tables), len(self._steps), scratch, *self._weights]
        for number, value in enumerate(self._values):
            root, first = self._root(number)
            kind, index = self._values[root].place or (SCRATCH, 0)
            start = first + starts.get(root, 0)
            stride = self._values[root].channels
            words += [kind, index, start, value.rows, value.channels, stride]
        tables = [np.concatenate([table.shape, table.ravel()]) for table in self._tables]
        steps = []
        for step in self._steps:
            steps += [step.kind, step.activation, step.out, step.filter, step.bias]
            steps += [step.table, step.spread, len(step.ins), *step.ins]
        return np.concatenate([words, *tables, steps]).astype(np.int32)

    def _add(self, value: _Value) -> int:
        self._values.append(value)
        return len(self._values) - 1

    def _check(self, kind, ins, rows, channels, table, spread) -> None:
        if kind == SUM:
            sizes = {(self._values[each].rows, self._values[each].channels) for each in ins}
            if sizes != {(rows, channels)}:
                raise ValueError(f"ins must be of size {(rows, channels)}. Received: {sizes}")
            return
        check_indices(table, "table", rank=2)
        check_range(table, "table", PADDED, self._values[ins[0]].rows)
        if spread is not None:
            check_indices(spread, "spread", rank=1)
            check_range(spread, "spread", 0, len(table))
        if rows != len(table if spread is None else spread):
            raise ValueError(f"table and spread must give {rows} rows, the number of rows written")

    def _table(self, table: np.ndarray | None) -> int:
        """The number of a table; equal ones have the same."""
        if table is None:
            return NOTHING
        key = table.shape, table.tobytes()
        if key not in self._known:
            self._known[key] = len(self._tables)
            self._tables.append(table)
        return self._known[key]

    def _own(self, value: int) -> int:
        """The value, or a copy if it has its place already."""
        found = self._values[value]
        if found.host is None and found.place is None:
            return value
        return self.step(SUM, [value], found.rows, found.channels)

    def _root(self, value: int) -> tuple[int, int]:
        """The value whose memory holds this one, and the first channel in it."""
        first = 0
        while (host := self._values[value].host) is not None:
            value, first = host[0], first + host[1]
        return value, first

    def _allocate(self) -> tuple[dict[int, int], int]:
        """Where each value in scratch memory starts, by root, and how much of it is used.

        The largest first, each into the smallest gap between those that live at the same time.
        """
        lives: dict[int, list[int]] = {}
        for number, step in enumerate(self._steps):
            for value in (step.out, *step.ins):
                root = self._root(value)[0]
                if self._values[root].place is None:
                    lives.setdefault(root, []).append(number)

        def size(root: int) -> int:
            floats = self._values[root].rows * self._values[root].channels
            return -(-floats // ALIGNMENT) * ALIGNMENT

        starts: dict[int, int] = {}
        for root in sorted(lives, key=lambda each: (-size(each), each)):
            taken = sorted(
                (start, start + size(other))
                for other, start in starts.items()
                if lives[other][0] <= lives[root][-1] and lives[root][0] <= lives[other][-1]
            )
            starts[root] = _best_gap(taken, size(root))
        return starts, max((start + size(root) for root, start in starts.items()), default=0)


def _best_gap(taken: list[tuple[int, int]], size: int) -> int:
    """Start of the smallest gap of this size between sorted intervals, else their end."""
    best, end = None, 0
    for start, stop in taken:
        gap = start - end
        if gap >= size and (best is None or gap < best[0]):
            best = gap, end
        end = max(end, stop)
    return end if best is None else best[1]


@dataclass(frozen=True, eq=False)
class Program:
    """What the words of a program say about its borders, read and checked.

    Attributes:
        words: int32, all of it.
        inputs: floats of each input, per image.
        outputs: (rows, channels) of each output.
        weights: floats of each weight.
        filters: of each step the number of its filter among the weights, -1 where it has none.
    """

    words: np.ndarray
    inputs: tuple[int, ...]
    outputs: tuple[tuple[int, int], ...]
    weights: tuple[int, ...]
    filters: tuple[int, ...]

    @classmethod
    def read(cls, words: np.ndarray) -> "Program":
        """The program of these words.

        Raises:
            TypeError, ValueError: not what `ProgramBuilder.words` returned.
        """
        words = np.asarray(words)
        check_indices(words, "program", rank=1)
        if len(words) < 8 or words[0] != MAGIC or words[:8].min() < 0:
            raise ValueError(
                f"program must begin with a header of 8 words. Received: {words[:8].tolist()}"
            )
        inputs, outputs, weights, tensors = map(int, words[1:5])
        end = 8 + weights + 6 * tensors
        if len(words) < end:
            raise ValueError(f"program must have {end} words at least. Received: {len(words)}")
        sizes: dict[tuple[int, int], tuple[int, int]] = {}
        for kind, index, _, rows, _, stride in words[8 + weights : end].reshape(-1, 6).tolist():
            sizes[kind, index] = rows, stride
        borders = [(INPUT, index) for index in range(inputs)]
        borders += [(OUTPUT, index) for index in range(outputs)]
        missing = [border for border in borders if border not in sizes]
        if missing:
            raise ValueError(f"program has no tensor for its inputs and outputs: {missing}")
        return cls(
            words=words,
            inputs=tuple(int(np.prod(sizes[INPUT, index])) for index in range(inputs)),
            outputs=tuple(sizes[OUTPUT, index] for index in range(outputs)),
            weights=tuple(words[8 : 8 + weights].tolist()),
            filters=_filters(words, end),
        )


def _filters(words: np.ndarray, at: int) -> tuple[int, ...]:
    """Of the steps of a program whose tables begin at a word.

    Raises:
        ValueError: the words end too early, or go on after the last step.
    """
    tables, steps = map(int, words[5:7])
    found = []
    for number in range(tables + steps):
        size = 2 if number < tables else 8
        head = words[at : at + size].tolist()
        more = math.prod(head) if size == 2 else sum(head[7:])
        if len(head) < size or more < 1:
            break
        at += size + more
        if size == 8:
            found.append(head[3])
    if at != len(words) or len(found) < steps:
        raise ValueError(
            f"program must end with its last step of {steps}. Received: {len(words)} words"
        )
    return tuple(found)
