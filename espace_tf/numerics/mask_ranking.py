"""Positions of a map in the order in which they are worth computing (NumPy).

Each function gives all positions y * OW + x, those to keep first, so that prefixes are nested
masks. A window (height, width) limits the holes: no window of that size may be left without a kept
position. When that allows no further skipping, the windows grow step by step. Skipping what matters
least is the method of Figurnov et al. 2016, "PerforatedCNNs", section 3.4; the windows and the
damages by neighbour are this package's own.
"""

from collections.abc import Sequence

import numpy as np

_BATCH = 64  # ranking by a table skips at most 1 / 64 of the map before it looks again


class _Holes:
    """Counts the kept positions in every window of a map, so that none is emptied."""

    def __init__(self, shape: tuple[int, int], window: tuple[int, int] | None):
        self.kept = np.ones(shape, bool)
        self._open(shape if window is None else window)

    def _open(self, window: tuple[int, int]) -> None:
        self.window = tuple(min(pair) for pair in zip(window, self.kept.shape, strict=True))
        sums = np.zeros(np.add(self.kept.shape, 1), np.int64)
        sums[1:, 1:] = self.kept.cumsum(0).cumsum(1)
        height, width = self.window
        self.counts = sums[height:, width:] - sums[:-height, width:]
        self.counts += sums[:-height, :-width] - sums[height:, :-width]

    def skip(self, y: int, x: int) -> bool:
        """Skips this position unless a window would be left empty; says whether it did."""
        height, width = self.window
        around = self.counts[max(y - height + 1, 0) : y + 1, max(x - width + 1, 0) : x + 1]
        if around.min() == 1:
            return False
        around -= 1
        self.kept[y, x] = False
        return True

    def widen(self) -> None:
        """Allows larger holes, for when nothing more can be skipped."""
        height, width = self.window
        self._open((height + 1, width + (width > 1 or height == self.kept.shape[0])))


def ranked_by_score(
    shape: tuple[int, int],
    score: np.ndarray,
    window: tuple[int, int] | None,
    least: int = 1,
) -> np.ndarray:
    """All positions, the highest score first; the lowest ones are skipped while windows allow.

    A position that may not be skipped never may later, until the windows widen: one pass is exact.

    Args:
        shape: (OH, OW).
        score: [OH, OW].
        window: every window of this size holds a kept position; without one holes have no limit.
        least: the ranking is exact down to this many kept positions.
    """
    ranking = np.argsort(-score, axis=None, kind="stable")
    if window is None:
        return ranking
    holes, waiting, skipped = _Holes(shape, window), ranking[::-1].tolist(), []
    while len(skipped) < ranking.size - least:
        refused = []
        for position in waiting:
            if len(skipped) == ranking.size - least or not holes.skip(*divmod(position, shape[1])):
                refused.append(position)
            else:
                skipped.append(position)
        waiting = refused
        holes.widen()
    return np.array(waiting[::-1] + skipped[::-1])


def ranked_by_table(
    shape: tuple[int, int],
    offsets: Sequence[tuple[int, int]],
    table: np.ndarray,
    window: tuple[int, int] | None,
    least: int = 1,
) -> np.ndarray:
    """All positions, those to keep first, by greedy skipping of what adds least damage.

    Skipping p adds the damage of showing p's nearest kept neighbour there, and what it adds where
    p itself was shown. These prices change around every skipped position, so in one round a
    position close to one already skipped in it is left for the next round.

    Args:
        shape: (OH, OW).
        offsets: O offsets (dy, dx) in the order in which they are shown, nearest first.
        table: [O, OH, OW], damage of showing p + offset at p.
        window: every window of this size holds a kept position; without one holes have no limit.
        least: the ranking is exact down to this many kept positions.
    """
    size, reach = shape[0] * shape[1], int(np.abs(offsets).max())
    costs = np.concatenate([np.zeros((1, size)), table.reshape(len(offsets), size)])
    holes, skipped = _Holes(shape, window), []
    batch = max(size // _BATCH, 1)
    while len(skipped) < size - least:
        prices = _prices(holes.kept, offsets, costs)
        blocked = np.zeros(shape, bool)
        found = []
        for position in np.argsort(prices, kind="stable")[: size - len(skipped)].tolist():
            if len(found) == min(batch, size - least - len(skipped)):
                break
            y, x = divmod(position, shape[1])
            if not blocked[y, x] and holes.skip(y, x):
                found.append(position)
                blocked[max(y - reach, 0) : y + reach + 1, max(x - reach, 0) : x + reach + 1] = True
        skipped += found
        if not found:
            holes.widen()
    return np.concatenate([np.flatnonzero(holes.kept), np.array(skipped[::-1], np.int64)])


def _prices(kept: np.ndarray, offsets: Sequence[tuple[int, int]], costs: np.ndarray) -> np.ndarray:
    """Damage that skipping each kept position adds, [OH * OW]; infinite at skipped ones.

    Args:
        kept: [OH, OW].
        offsets: O offsets, nearest first.
        costs: [1 + O, OH * OW], damage of showing the position itself (0), then of each offset.
    """
    height, width = kept.shape
    reach = int(np.abs(offsets).max())
    around = np.zeros((height + 2 * reach, width + 2 * reach), bool)
    around[reach : reach + height, reach : reach + width] = kept
    steps = np.array([(0, 0), *offsets])
    seen = np.stack(
        [
            around[reach + y : reach + y + height, reach + x : reach + x + width].ravel()
            for y, x in steps
        ]
    )
    here = np.arange(kept.size)
    shown = seen.argmax(axis=0)
    known = seen[shown, here]
    seen[shown, here] = False
    other = seen.argmax(axis=0)
    # With nothing else within reach, the worst neighbour stands for what lies beyond.
    instead = np.where(seen[other, here], costs[other, here], costs.max(axis=0))
    source = here + steps[shown] @ (width, 1)
    prices = np.bincount(source[known], (instead - costs[shown, here])[known], minlength=kept.size)
    return np.where(kept.ravel(), prices, np.inf)


def ranked_evenly(shape: tuple[int, int], window: tuple[int, int] | None) -> np.ndarray:
    """All positions in Bayer's order; those of the widest grid without a larger hole go first."""
    ranking = bayer_ranking(shape)
    if window is None:
        return ranking
    first = np.ones(shape, bool)
    for axis, step in enumerate(min(pair) for pair in zip(window, shape, strict=True)):
        # The fewest lines that leave no `step` neighbours empty, as far from both ends.
        count = shape[axis] // step
        start = (shape[axis] - 1 - (count - 1) * step) // 2
        lines = np.isin(np.arange(shape[axis]), start + step * np.arange(count))
        first &= lines[:, None] if axis == 0 else lines
    return np.concatenate([ranking[first.flat[ranking]], ranking[~first.flat[ranking]]])


def bayer_ranking(shape: tuple[int, int]) -> np.ndarray:
    """All positions in Bayer's order: every prefix is spread evenly over the map.

    B. E. Bayer 1973, "An optimum method for two-level rendition of continuous-tone pictures".

    The first half is a checkerboard, the first quarter every 2nd row and column, and so on. With
    two numbers' bits interleaved from the top, the key of (y, x) reads x ^ y and y from the bottom.
    """
    y, x = np.indices(shape)
    key = np.zeros(shape, np.int64)
    for bit in range((max(shape) - 1).bit_length()):
        key = key << 2 | ((x ^ y) >> bit & 1) << 1 | y >> bit & 1
    return np.argsort(key, axis=None, kind="stable")
