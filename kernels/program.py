"""A stretch of a network as one flat array of integers, which a single native operation runs.

Layout of the words (int32), read by the operation `EspaceFusedGraph`:

    header   [MAGIC, inputs, outputs, weights, tensors, tables, steps, scratch floats per image]
    weights  one word each: the number of its floats
    tensors  [kind (INPUT, OUTPUT, SCRATCH), index, start, rows, channels, stride] each: row r,
             channel c lies at start + r * stride + c
    tables   [rows, taps, rows * taps values] each; a spread is a table of one tap
    steps    [kind, activation, out, filter, bias, slopes, table, spread, number of ins, ins...]
             each; -1 where there is none

Concatenations are no steps: who makes a part of one writes it straight into its slice. Nor are
slices and reshapings: they are the same memory, read otherwise.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from espace_tf.kernels.index_map import PADDED, check_indices, check_range

MAGIC = 0x45535032
INPUT, OUTPUT, SCRATCH = range(3)
CONVOLVE, DEPTHWISE, MAX, AVERAGE, SUM, PRODUCT, SOFTMAX, BLEND, SHUFFLE = range(9)
_BY_ROW = (SUM, PRODUCT, SOFTMAX)
_BARE = (MAX, AVERAGE, SOFTMAX, SHUFFLE)  # that end in no activation
ACTIVATIONS = (
    *("none", "relu", "relu6", "sigmoid", "tanh", "silu", "hard_sigmoid", "hard_silu"),
    *("gelu", "gelu_tanh", "elu", "leaky_relu"),
)
SLOPED = ("elu", "leaky_relu")  # that have a slope for each channel
STEP_WORDS = 9  # of a step, before its ins
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
    slopes: int
    table: int
    spread: int
    ins: tuple[int, ...]


@dataclass
class _Value:
    """What a step writes, an input, or a concatenation of values.

    Attributes:
        rows, channels: its size.
        host: the value that it is a part of, and its first float there; or None.
        step: the number of the step that writes it; None for inputs, concatenations and views.
        place: (INPUT or OUTPUT, index) where it is one.
        reshaped: whether it is its host's memory in rows of another length.
        viewed: whether others are views of it, so that it stays where it is.
    """

    rows: int
    channels: int
    host: tuple[int, int] | None = None
    step: int | None = None
    place: tuple[int, int] | None = None
    reshaped: bool = False
    viewed: bool = False


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
        slopes: int = NOTHING,
        table: np.ndarray | None = None,
        spread: np.ndarray | None = None,
        activation: str = "none",
    ) -> int:
        """A step and the value that it writes.

        Args:
            kind: CONVOLVE, DEPTHWISE, MAX, AVERAGE, SUM, PRODUCT, SOFTMAX, BLEND or SHUFFLE.
            ins: values that it reads.
            rows, channels: of what it writes.
            filter, bias: weights.
            slopes: a weight of as many floats as channels, where the activation is in SLOPED.
            table: int32 [computed rows, taps], input rows in [-1, rows of the input); of SHUFFLE
                [channels, 1], channels of the input.
            spread: int32 [rows], the computed row that each row shows; of BLEND the factors of the
                taps, float32 of the table's shape.
            activation: one of ACTIVATIONS.

        Raises:
            ValueError: a table or spread that the values do not fit.
        """
        self._check(kind, ins, rows, channels, table, spread)
        if (slopes != NOTHING) != (activation in SLOPED):
            raise ValueError(f"slopes go with {SLOPED} only. Received: {activation=}")
        if spread is not None:
            spread = spread.view(np.int32) if kind == BLEND else spread[:, None]
        out = self._add(_Value(rows, channels, step=len(self._steps)))
        self._steps.append(
            _Step(
                kind,
                ACTIVATIONS.index(activation),
                out,
                filter,
                bias,
                slopes,
                self._table(table),
                self._table(spread),
                tuple(ins),
            )
        )
        return out

    def activate(self, value: int, activation: str, slopes: int = NOTHING) -> bool:
        """Gives the step that writes a value this activation, if it still can.

        It can if it has none and nobody has read the value. Poolings, softmax and shuffles never
        have one.
        """
        if not self.can_activate(value):
            return False
        number = self._values[value].step
        self._steps[number] = replace(
            self._steps[number], activation=ACTIVATIONS.index(activation), slopes=slopes
        )
        return True

    def can_activate(self, value: int) -> bool:
        """Whether `activate` can."""
        number = self._values[value].step
        if number is None or self._steps[number].activation or self._is_read(value):
            return False
        return self._steps[number].kind not in _BARE

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
        if step.kind == SHUFFLE:
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
        taken = found.host is not None or found.place is not None or found.viewed
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

    def columns(self, value: int, first: int, channels: int) -> int:
        """Neighbouring channels of a value: a view."""
        self._values[value].viewed = True
        found = self._values[value]
        return self._add(_Value(found.rows, channels, host=(value, first)))

    def reshape(self, value: int, channels: int) -> int:
        """The same floats in rows of another length: a view, or one of a copy.

        Values whose rows do not follow each other without a gap are copied, and outputs.

        Raises:
            ValueError: rows that do not come out even.
        """
        found = self._values[value]
        if found.rows * found.channels % channels:
            raise ValueError(
                f"channels must divide {found.rows * found.channels}. Received: {channels}"
            )
        root, _, stride = self._root(value)
        leaves = (self._values[root].place or (SCRATCH, 0))[0] == OUTPUT
        if leaves or (stride != found.channels and found.rows > 1):
            value = self.step(SUM, [value], found.rows, found.channels)
        viewed = self._values[value]
        while viewed is not None:
            viewed.viewed = True
            viewed = None if viewed.host is None else self._values[viewed.host[0]]
        rows = found.rows * found.channels // channels
        return self._add(_Value(rows, channels, host=(value, 0), reshaped=True))

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
            root, first, stride = self._root(number)
            kind, index = self._values[root].place or (SCRATCH, 0)
            start = first + starts.get(root, 0)
            words += [kind, index, start, value.rows, value.channels, stride]
        tables = [np.concatenate([table.shape, table.ravel()]) for table in self._tables]
        steps = []
        for step in self._steps:
            steps += [step.kind, step.activation, step.out, step.filter, step.bias, step.slopes]
            steps += [step.table, step.spread, len(step.ins), *step.ins]
        return np.concatenate([words, *tables, steps]).astype(np.int32)

    def _add(self, value: _Value) -> int:
        self._values.append(value)
        return len(self._values) - 1

    def _check(self, kind, ins, rows, channels, table, spread) -> None:
        if kind in _BY_ROW:
            sizes = {(self._values[each].rows, self._values[each].channels) for each in ins}
            repeated = set() if kind == SOFTMAX else {(1, channels)}
            if not sizes or sizes - repeated - {(rows, channels)}:
                raise ValueError(f"ins must be of size {(rows, channels)}. Received: {sizes}")
            return
        check_indices(table, "table", rank=2)
        if kind == SHUFFLE:
            check_range(table, "table", 0, self._values[ins[0]].channels)
            if len(table) != channels or rows != self._values[ins[0]].rows:
                raise ValueError(f"table must give {channels} channels of {rows} rows")
            return
        check_range(table, "table", PADDED, self._values[ins[0]].rows)
        if kind == BLEND:
            if spread.dtype != np.float32 or spread.shape != table.shape:
                raise ValueError("spread must be float32 factors of the table's shape")
            spread = None
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
        if found.host is None and found.place is None and not found.viewed:
            return value
        return self.step(SUM, [value], found.rows, found.channels)

    def _root(self, value: int) -> tuple[int, int, int]:
        """The value whose memory holds this one, the first float in it, floats from row to row."""
        first, stride = 0, None
        while (host := self._values[value].host) is not None:
            if stride is None and self._values[value].reshaped:
                stride = self._values[value].channels
            value, first = host[0], first + host[1]
        return value, first, stride or self._values[value].channels

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
