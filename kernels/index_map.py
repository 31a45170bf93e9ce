"""Which input row each tap of each computed output position reads: a convolution as integers.

Positions of a map of height H and width W are numbered row by row, y * W + x; a "row" is one
position's channels. Nothing here depends on the data, so everything is computed once, in NumPy,
when a layer is built.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

PADDED = -1  # a table entry that reads zeros


def _pair(value: int | Sequence[int], name: str, least: int = 1) -> tuple[int, int]:
    pair = tuple(value) if isinstance(value, Sequence | np.ndarray) else (value, value)
    if len(pair) != 2 or not all(_is_count(each, least) for each in pair):
        raise ValueError(f"{name} must be two integers, each at least {least}. Received: {value!r}")
    return int(pair[0]), int(pair[1])


def _is_count(value: object, least: int) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and value >= least


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """Where a 2-D convolution reads and writes; checked when built.

    Args:
        kernel_size: (height, width) of the kernel.
        input_size: (height, width) of the input map.
        strides: (vertical, horizontal) step.
        dilation_rate: (vertical, horizontal) distance between taps.
        padding: "valid", "same" (TensorFlow's rule: the odd zero goes below and to the right) or
            explicit ((top, bottom), (left, right)).

    Raises:
        ValueError: an argument is not of these forms, or the kernel does not fit into the input.

    Example:
        >>> Geometry(kernel_size=(3, 3), input_size=(8, 6), strides=(2, 2)).output_size
        (3, 2)
    """

    kernel_size: tuple[int, int]
    input_size: tuple[int, int]
    strides: tuple[int, int] = (1, 1)
    dilation_rate: tuple[int, int] = (1, 1)
    padding: str | tuple[tuple[int, int], tuple[int, int]] = "valid"

    def __post_init__(self):
        for name in ("kernel_size", "input_size", "strides", "dilation_rate"):
            object.__setattr__(self, name, _pair(getattr(self, name), name))
        padding = self.padding.lower() if isinstance(self.padding, str) else self.padding
        if not isinstance(padding, str):
            rows, columns = tuple(padding) if len(padding) == 2 else (padding, padding)
            padding = (_pair(rows, "padding", 0), _pair(columns, "padding", 0))
        elif padding not in ("valid", "same"):
            raise ValueError(
                'padding must be "valid", "same" or ((top, bottom), (left, right)). '
                f"Received: {self.padding!r}"
            )
        object.__setattr__(self, "padding", padding)
        if min(self.output_size) < 1:
            raise ValueError(
                f"kernel_size {self.kernel_size} with dilation_rate {self.dilation_rate} does "
                f"not fit into input_size {self.input_size} with padding {self.padding!r}"
            )

    @classmethod
    def of(cls, steps: object, input_size: Sequence[int]) -> "Geometry":
        """That of a layer, or of what else has a layer's kernel_size, strides and so on."""
        names = ("kernel_size", "strides", "dilation_rate", "padding")
        return cls(input_size=tuple(input_size), **{name: getattr(steps, name) for name in names})

    @functools.cached_property
    def pads(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Zeros around the input: ((top, bottom), (left, right))."""
        if not isinstance(self.padding, str):
            return self.padding
        if self.padding == "valid":
            return (0, 0), (0, 0)
        return self._same_pads(0), self._same_pads(1)

    @functools.cached_property
    def output_size(self) -> tuple[int, int]:
        """(height, width) of the output map."""
        return self._output_length(0), self._output_length(1)

    @property
    def taps(self) -> int:
        """Weights of the kernel per pair of channels."""
        return self.kernel_size[0] * self.kernel_size[1]

    @property
    def rows_in(self) -> int:
        """Positions of the input map."""
        return self.input_size[0] * self.input_size[1]

    @property
    def rows_out(self) -> int:
        """Positions of the output map."""
        return self.output_size[0] * self.output_size[1]

    def _extent(self, axis: int) -> int:
        return (self.kernel_size[axis] - 1) * self.dilation_rate[axis] + 1

    def _same_pads(self, axis: int) -> tuple[int, int]:
        steps = -(-self.input_size[axis] // self.strides[axis]) - 1
        total = steps * self.strides[axis] + self._extent(axis) - self.input_size[axis]
        return max(total, 0) // 2, max(total, 0) - max(total, 0) // 2

    def _output_length(self, axis: int) -> int:
        padded = self.input_size[axis] + sum(self.pads[axis])
        return (padded - self._extent(axis)) // self.strides[axis] + 1


def conv_table(geometry: Geometry, positions: np.ndarray | None = None) -> np.ndarray:
    """The input row that each tap of each computed position reads.

    Args:
        geometry: the convolution.
        positions: flattened output positions to compute, [Q]; None computes all.

    Returns:
        int32 [Q, taps]; -1 where a tap reads padding. Tap (a, b) is column a * kernel_width + b,
        the order of a kernel [height, width, in, out] reshaped to [taps, in, out].

    Example:
        >>> conv_table(Geometry(kernel_size=(1, 2), input_size=(2, 2), padding="same")).tolist()
        [[0, 1], [1, -1], [2, 3], [3, -1]]
    """
    height, width = geometry.input_size
    rows_out = geometry.rows_out
    if positions is None:
        positions = np.arange(rows_out)
    else:
        positions = check_positions(positions, rows_out)
    (y, x), taps = np.divmod(positions, geometry.output_size[1]), np.arange(geometry.taps)
    a, b = np.divmod(taps, geometry.kernel_size[1])
    y = y[:, None] * geometry.strides[0] + a * geometry.dilation_rate[0] - geometry.pads[0][0]
    x = x[:, None] * geometry.strides[1] + b * geometry.dilation_rate[1] - geometry.pads[1][0]
    inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
    return np.where(inside, y * width + x, PADDED).astype(np.int32)


def nearest_spread(output_size: tuple[int, int], positions: np.ndarray) -> np.ndarray:
    """For every output position the index, into `positions`, of the nearest kept one.

    Euclidean distance; of several at equal distance the lowest position wins. Exact in
    O(OH OW^2) time and O(OH OW + OW^2) memory: first the nearest kept position within each column,
    then, for one output row at a time, the best column.

    Args:
        output_size: (OH, OW).
        positions: the kept flattened positions, [Q].

    Returns:
        int32 [OH * OW] with values in [0, Q).

    Example:
        >>> nearest_spread((1, 5), [0, 3]).tolist()
        [0, 0, 1, 1, 1]
    """
    height, width = _pair(output_size, "output_size")
    positions = check_positions(positions, height * width)
    kept = np.zeros((height, width), bool)
    kept.flat[positions] = True
    y = np.arange(height)[:, None]
    far = 2 * (height + width)  # farther than any position of the map
    above = np.maximum.accumulate(np.where(kept, y, -far), axis=0)
    below = np.minimum.accumulate(np.where(kept, y, y + far)[::-1], axis=0)[::-1]
    source = np.where(y - above <= below - y, above, below).astype(np.int64)
    squares = (source - y) ** 2
    x = np.arange(width)
    across = (x[:, None] - x) ** 2
    nearest = np.empty((height, width), np.int64)
    for row in range(height):
        # One integer orders by distance, then by position. A column without any kept position lies
        # at least `far` away and never wins.
        key = (across + squares[row]) * (height * width) + np.maximum(source[row], 0) * width + x
        column = key.argmin(axis=1)
        nearest[row] = source[row, column] * width + column
    return np.searchsorted(positions, nearest.ravel()).astype(np.int32)


def compose(table: np.ndarray, spread: np.ndarray) -> np.ndarray:
    """The table over a producer's computed rows: reads row spread[m] where `table` reads row m.

    Example:
        >>> compose(np.array([[0, 2], [3, -1]]), np.array([0, 0, 1, 1])).tolist()
        [[0, 1], [1, -1]]
    """
    table, spread = np.asarray(table), np.asarray(spread)
    if table.size and table.max() >= len(spread):
        raise ValueError(
            f"table reads row {table.max()} but spread has only {len(spread)} rows: "
            "it belongs to a producer of another size"
        )
    return np.where(table < 0, PADDED, spread[table]).astype(np.int32)


def rows_read(table: np.ndarray) -> np.ndarray:
    """The input rows that a table reads: sorted, unique, int32."""
    table = np.asarray(table)
    return np.unique(table[table >= 0]).astype(np.int32)


def reindex(table: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The same table when only `rows` (sorted, unique) of the input exist, in that order.

    Example:
        >>> reindex(np.array([[0, 7], [7, -1]]), np.array([0, 7])).tolist()
        [[0, 1], [1, -1]]
    """
    table, rows = np.asarray(table), np.asarray(rows)
    missing = np.setdiff1d(rows_read(table), rows)
    if missing.size:
        raise ValueError(
            f"table reads {missing.size} rows that are not in rows, first {missing[0]}"
        )
    return np.where(table < 0, PADDED, np.searchsorted(rows, table)).astype(np.int32)


def check_positions(positions: Sequence[int], size: int) -> np.ndarray:
    """Positions of a map of `size` positions as a sorted array without duplicates.

    Returns:
        int32 [Q], Q >= 1.

    Raises:
        TypeError: not integers.
        ValueError: empty, not a flat list, or outside [0, size).
    """
    array = np.asarray(positions)
    if array.size == 0:
        raise ValueError("positions is empty: keep at least one position, or pass None to keep all")
    if not np.issubdtype(array.dtype, np.integer):
        raise TypeError(
            "positions must be integers (of a boolean mask pass np.flatnonzero(mask)). "
            f"Received: dtype {array.dtype}"
        )
    if array.ndim != 1:
        raise ValueError(f"positions must be flat, y * width + x. Received: shape {array.shape}")
    if array.min() < 0 or array.max() >= size:
        raise ValueError(
            f"positions must lie in [0, {size}). Received: {array.min()} to {array.max()}"
        )
    return np.unique(array).astype(np.int32)


def check_indices(indices: np.ndarray, name: str, rank: int) -> None:
    """Raises unless `indices` are int32, of this rank and not empty."""
    if indices.dtype != np.int32:
        raise TypeError(f"{name} must be int32. Received: dtype {indices.dtype}")
    if indices.ndim != rank or indices.size == 0:
        raise ValueError(
            f"{name} must have rank {rank} and not be empty. Received: shape {indices.shape}"
        )


def check_range(indices: np.ndarray, name: str, low: int, size: int) -> None:
    """Raises unless all `indices` lie in [low, size)."""
    least, most = indices.min(), indices.max()
    if least < low or most >= size:
        raise ValueError(f"{name} must hold values in [{low}, {size}). Received: {least} to {most}")


@dataclass(frozen=True, eq=False)
class IndexMap:
    """What one call of the masked convolution reads and shows; valid once built.

    Args:
        table: int32 [Q, taps], the input row that each tap of each computed position reads, or -1.
        spread: int32 [R], the computed position that each output row shows; None shows the computed
            rows as they are.
        rows_in: how many rows the input has.
        geometry: given only if `table` is this geometry's full table over a whole map, so that a
            backend may run a dense convolution instead.
    """

    table: np.ndarray
    spread: np.ndarray | None
    rows_in: int
    geometry: Geometry | None = None

    def __post_init__(self):
        check_indices(self.table, "table", rank=2)
        check_range(self.table, "table", PADDED, self.rows_in)
        if self.spread is not None:
            check_indices(self.spread, "spread", rank=1)
            check_range(self.spread, "spread", 0, len(self.table))

    @classmethod
    def conv(
        cls, geometry: Geometry, positions: Sequence[int] | None = None, spread: bool = True
    ) -> "IndexMap":
        """The index map of a convolution of a whole map.

        Args:
            geometry: the convolution.
            positions: the output positions to compute; None (or all of them) computes all.
            spread: show every output position (the nearest computed one); False shows the computed
                positions only.

        Example:
            >>> geometry = Geometry(kernel_size=(3, 3), input_size=(6, 6))
            >>> grid = IndexMap.conv(geometry, [0, 3, 12, 15])
            >>> grid.table.shape, grid.rows_out
            ((4, 9), 16)
        """
        if positions is not None:
            positions = check_positions(positions, geometry.rows_out)
        if positions is None or len(positions) == geometry.rows_out:
            return cls(conv_table(geometry), None, geometry.rows_in, geometry)
        shown = nearest_spread(geometry.output_size, positions) if spread else None
        return cls(conv_table(geometry, positions), shown, geometry.rows_in)

    @property
    def rows_out(self) -> int:
        """How many rows the output has."""
        return len(self.table if self.spread is None else self.spread)
