"""Which output positions of a convolution are computed: nested masks (NumPy).

A mask is a sorted int32 array of kept flattened positions y * OW + x; a skipped position shows its
nearest kept one. Every family ranks all positions (or rows, columns, runs) and keeps the first
ones, so a smaller keep always gives a subset. All of it is deterministic.

Which positions matter is known from data, as an impact map or as a table of neighbour damages; see
Figurnov et al. 2016, "PerforatedCNNs", https://arxiv.org/abs/1504.08362, for the impact, grid and
pooling families; the lattice is Bayer's order of 1973, see `mask_ranking`; rows, columns, runs and
damages by neighbour are this package's own.
"""

import math
from collections.abc import Sequence

import numpy as np

from espace_tf.kernels.index_map import Geometry, conv_table, nearest_spread
from espace_tf.numerics.factors import checked_arrays
from espace_tf.numerics.mask_ranking import (
    bayer_ranking,
    ranked_by_score,
    ranked_by_table,
    ranked_evenly,
)

FAMILIES = ("impact", "rows", "columns", "grid", "lattice", "runs", "pooling")
# Those that need to know the convolution alone, not what reads its map.
BY_LAYER = tuple(family for family in FAMILIES if family != "pooling")
REACH = 2
# (dy, dx) of the neighbours in the order in which they are shown: nearest first, then by position.
OFFSETS = tuple(
    sorted(
        (
            (dy, dx)
            for dy in range(-REACH, REACH + 1)
            for dx in range(-REACH, REACH + 1)
            if (dy, dx) != (0, 0)
        ),
        key=lambda offset: (offset[0] ** 2 + offset[1] ** 2, offset),
    )
)
RUN = 4  # positions of a run: one SIMD register of float32


def kept(
    family: str,
    output_size: tuple[int, int],
    keep: float,
    *,
    impact: np.ndarray | None = None,
    table: np.ndarray | None = None,
    max_gap: int | None = None,
    pooling: Geometry | None = None,
) -> np.ndarray:
    """The kept positions of a family's mask.

    - impact: free positions. With `table` the ranking is greedy: always skip the position that adds
      least to the predicted damage, counting what already shows it. With `impact` alone the lowest
      impact is skipped first; without `max_gap` that is the plain top floor(keep OH OW).
    - rows, columns: whole ones, floor(keep OH) or floor(keep OW) of them.
    - grid: kept rows x kept columns, at most floor(keep OH OW) positions, both axes about alike.
    - lattice: every 2nd position at 1/2 (a checkerboard), every 2nd row and column at 1/4, and so
      on (Bayer's order); no data used.
    - runs: horizontal runs of 4 positions.
    - pooling: positions weighted by how many windows of the pooling that follows read them.

    impact, lattice, runs and pooling keep exactly floor(keep OH OW) positions; every family keeps
    at least one unit. Without data rows, columns, grid and runs are evenly spaced.

    Args:
        family: one of FAMILIES.
        output_size: (OH, OW).
        keep: share of the positions to compute, in (0, 1].
        impact: [OH, OW], importance of each position; summed over rows, columns and runs.
        table: [24, OH, OW], damage of showing p + OFFSETS[o] at p; goes before `impact`. For runs
            and pooling its mean over the eight nearest neighbours is the importance.
        max_gap: no hole of skipped positions is wider and higher than this: every square of
            max_gap + 1 positions (every max_gap + 1 rows or columns for those families) holds a
            kept one, as long as `keep` suffices for it; below that holes widen as little as the
            ranking allows. For runs: at most max_gap skipped ones above each other. Not used by
            lattice.
        pooling: geometry of the pooling that reads this map; for family "pooling" only.

    Returns:
        int32 [Q], sorted.

    Raises:
        ValueError: an argument is not of these forms, or the family lacks the data it needs.

    Example:
        >>> kept("lattice", (2, 4), 0.5).tolist()
        [0, 2, 5, 7]
        >>> kept("impact", (1, 4), 0.5, impact=np.array([[3.0, 1.0, 2.0, 4.0]])).tolist()
        [0, 3]
    """
    options = {"impact": impact, "table": table, "max_gap": max_gap, "pooling": pooling}
    return nested(family, output_size, (keep,), **options)[0]


def nested(
    family: str,
    output_size: tuple[int, int],
    keeps: Sequence[float],
    *,
    impact: np.ndarray | None = None,
    table: np.ndarray | None = None,
    max_gap: int | None = None,
    pooling: Geometry | None = None,
) -> list[np.ndarray]:
    """What `kept` gives for each of several keeps, for the time of the smallest: ranked once.

    Example:
        >>> [each.tolist() for each in nested("lattice", (2, 4), (0.5, 0.25))]
        [[0, 2, 5, 7], [0, 2]]
    """
    size = _checked_size(output_size)
    impact = _checked_map("impact", impact, size)
    table = _checked_map("table", table, (len(OFFSETS), *size))
    for keep in keeps:
        _check_choice(family, keep, max_gap, impact is not None or table is not None)
    counts = [_count(keep, size[0] * size[1]) for keep in keeps]
    if family not in ("rows", "columns", "grid"):
        ranking = _free_ranking(family, size, min(counts), impact, table, max_gap, pooling)
        return [np.sort(ranking[:count]).astype(np.int32) for count in counts]
    if family == "grid":
        lines = [_grid_counts(size, count) for count in counts]
    else:
        axis = 0 if family == "rows" else 1
        share = [_count(keep, size[axis]) for keep in keeps]
        lines = [[count, size[1]] if axis == 0 else [size[0], count] for count in share]
    ranked = [_line_ranking(size, axis, impact, table, max_gap) for axis in (0, 1)]
    pairs = [[np.sort(ranked[axis][: each[axis]]) for axis in (0, 1)] for each in lines]
    return [(rows[:, None] * size[1] + x).ravel().astype(np.int32) for rows, x in pairs]


def damage(positions: np.ndarray, output_size: tuple[int, int], table: np.ndarray) -> float:
    """Predicted damage of showing the nearest kept position at every skipped one.

    Sums table[o, p] over all positions p for the offset o of the position shown. An offset beyond
    the table's reach counts as the table's nearest one, a lower bound.

    Args:
        positions: kept flattened positions.
        output_size: (OH, OW).
        table: [24, OH, OW] in the order of OFFSETS.

    Example:
        >>> damage([0, 2], (1, 3), np.ones((24, 1, 3)))
        1.0
    """
    size = _checked_size(output_size)
    table = _checked_map("table", table, (len(OFFSETS), *size))
    shown = np.asarray(positions)[nearest_spread(size, positions)]
    here = np.arange(size[0] * size[1])
    dy = np.clip(shown // size[1] - here // size[1], -REACH, REACH)
    dx = np.clip(shown % size[1] - here % size[1], -REACH, REACH)
    index = np.zeros((2 * REACH + 1, 2 * REACH + 1), np.intp)
    for number, (y, x) in enumerate(OFFSETS, start=1):
        index[y + REACH, x + REACH] = number
    costs = np.concatenate([np.zeros((1, len(here))), table.reshape(len(OFFSETS), -1)])
    return float(costs[index[dy + REACH, dx + REACH], here].sum())


def _free_ranking(
    family: str,
    size: tuple[int, int],
    count: int,
    impact: np.ndarray | None,
    table: np.ndarray | None,
    max_gap: int | None,
    pooling: Geometry | None,
) -> np.ndarray:
    """All positions, those to keep first; exact down to `count`."""
    window = None if max_gap is None else (max_gap + 1, max_gap + 1)
    if family == "lattice":
        return bayer_ranking(size)
    if family in ("runs", "pooling") and table is not None:
        impact = table[:8].mean(axis=0)  # OFFSETS begins with the eight nearest
    if family == "runs":
        return _runs_ranking(size, impact, max_gap)
    if family == "pooling":
        impact = _read_by(pooling, size, impact)
    elif table is not None:
        return ranked_by_table(size, OFFSETS, table, window, count)
    return ranked_by_score(size, impact, window, count)


def _line_ranking(
    size: tuple[int, int],
    axis: int,
    impact: np.ndarray | None,
    table: np.ndarray | None,
    max_gap: int | None,
) -> np.ndarray:
    """All rows (axis 0) or columns (axis 1), those to keep first: a map of one column."""
    shape = (size[axis], 1)
    window = None if max_gap is None else (max_gap + 1, 1)
    if table is not None:
        numbers = [o for o, offset in enumerate(OFFSETS) if offset[1 - axis] == 0]
        offsets = [(OFFSETS[o][axis], 0) for o in numbers]
        return ranked_by_table(shape, offsets, table[numbers].sum(axis=2 - axis)[..., None], window)
    if impact is not None:
        return ranked_by_score(shape, impact.sum(axis=1 - axis)[:, None], window)
    return ranked_evenly(shape, window)


def _runs_ranking(
    size: tuple[int, int], impact: np.ndarray | None, max_gap: int | None
) -> np.ndarray:
    """All positions run by run: the last run kept is cut where the count ends."""
    starts = np.arange(0, size[1], RUN)
    shape = (size[0], len(starts))
    # A kept run in every max_gap + 1 rows of each column of runs leaves no wider square empty.
    window = None if max_gap is None else (max_gap + 1, 1)
    if impact is None:
        ranking = ranked_evenly(shape, window)
    else:
        lengths = np.minimum(size[1] - starts, RUN)
        ranking = ranked_by_score(shape, np.add.reduceat(impact, starts, axis=1) / lengths, window)
    rows, runs = np.divmod(ranking, len(starts))
    columns = starts[runs][:, None] + np.arange(RUN)
    positions = rows[:, None] * size[1] + columns
    return positions[columns < size[1]]


def _grid_counts(size: tuple[int, int], count: int) -> list[int]:
    """Rows and columns of the largest grid of at most `count` positions on one fixed staircase.

    The staircase goes from (1, 1) to (OH, OW), always up the axis of which the smaller share is
    kept: grids of different sizes are nested.
    """
    counts = [1, 1]
    while counts != list(size):
        axis = 0 if counts[0] * size[1] <= counts[1] * size[0] else 1
        grown = list(counts)
        grown[axis] += 1
        if grown[0] * grown[1] > count:
            break
        counts = grown
    return counts


def _read_by(
    pooling: Geometry | None, size: tuple[int, int], impact: np.ndarray | None
) -> np.ndarray:
    """How many pooling windows read each position, times its impact; ties spread evenly."""
    if pooling is None or pooling.input_size != size:
        raise ValueError(
            f"family 'pooling' needs pooling=Geometry(..., input_size={size}), the pooling that "
            f"reads this map. Received: {pooling}"
        )
    table = conv_table(pooling)
    windows = np.bincount(table[table >= 0], minlength=size[0] * size[1]).reshape(size)
    if impact is not None:
        return windows * impact
    ranks = np.empty(windows.size)
    ranks[bayer_ranking(size)] = np.arange(windows.size)
    return windows - ranks.reshape(size) / windows.size  # less than one window apart


def _count(keep: float, total: int) -> int:
    # 0.29 * 100 is 28.999999999999996.
    return max(math.floor(keep * total + 1e-9), 1)


def _checked_size(output_size: tuple[int, int]) -> tuple[int, int]:
    size = tuple(output_size)
    if len(size) != 2 or not all(isinstance(v, int | np.integer) and v >= 1 for v in size):
        raise ValueError(f"output_size must be two positive integers. Received: {output_size}")
    return int(size[0]), int(size[1])


def _checked_map(name: str, values: np.ndarray | None, shape: tuple[int, ...]) -> np.ndarray | None:
    if values is None:
        return None
    return checked_arrays(name, [np.asarray(values, np.float64)], shape)[0]


def _check_choice(family: str, keep: float, max_gap: int | None, has_data: bool) -> None:
    if family not in FAMILIES:
        raise ValueError(f"family must be one of {FAMILIES}. Received: {family!r}")
    if not 0 < keep <= 1:
        raise ValueError(f"keep must lie in (0, 1]. Received: {keep}")
    if max_gap is not None and max_gap < 1:
        raise ValueError(f"max_gap must be None or at least 1. Received: {max_gap}")
    if family == "impact" and not has_data:
        raise ValueError("family 'impact' needs impact or table. Use 'grid' when there is no data")
