"""What can be done with one convolution: rank, order of the pair, mask family and share kept.

TensorFlow-free: the planner reads these tables on machines without it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Option:
    """One way to run a convolution, with what it costs and what it damages.

    Args:
        rank: rank of the separable pair (per group); None: not decomposed.
        order: "vertical" or "horizontal" first; meaningless when rank is None.
        family: mask family; None: every position is computed.
        keep: share of the output positions computed, 1.0 without a mask.
        ms: time of the layer in milliseconds, all of its calls together, on the analysed runtime,
            batch size and threads.
        measured: whether ms was measured as it stands; otherwise it lies on the line between the
            measured options of its kind (see `interpolate_ms`).
        error: predicted relative squared error of the layer's response to the decomposition.
        damage: predicted increase of the loss: nats per image where the outputs are classes, else
            the relative squared error of the outputs; calibrated by the loss's curvature along a
            rank and a mask of each layer, and by what those of a whole plan lose when tried.
        macs: multiply-accumulates per image, all calls together.
    """

    rank: int | None = None
    order: str = "vertical"
    family: str | None = None
    keep: float = 1.0
    ms: float
    measured: bool = False
    error: float = 0.0
    damage: float = 0.0
    macs: int = 0

    @property
    def is_dense(self) -> bool:
        """Whether this option leaves the layer as it is."""
        return self.rank is None and self.family is None


def candidate_ranks(break_even: float, full_rank: int, fractions: Sequence[float]) -> list[int]:
    """Ranks at these fractions of the break-even rank, in multiples of the vector width.

    Multiples of 8, of 16 from 64 on: what a kernel pads to costs time and brings nothing. Small
    layers, whose break-even rank is below 16, get plain integers.

    Args:
        break_even: the rank at which the pair costs as many multiply-accumulates as the layer.
        full_rank: the largest rank there is.
        fractions: shares of break_even, each below 1.

    Returns:
        Ascending ranks, all below break_even and at most full_rank.

    Example:
        >>> candidate_ranks(96.0, 192, (0.25, 0.5, 0.75))
        [24, 48, 64]
    """
    ranks = set()
    for fraction in fractions:
        wanted = fraction * break_even
        multiple = 16 if wanted >= 64 else 8 if break_even >= 16 else 1
        rank = max(multiple, round(wanted / multiple) * multiple)
        if rank < break_even and rank <= full_rank:
            ranks.add(int(rank))
    return sorted(ranks)


def interpolate_ms(
    macs: Sequence[float], measured_macs: Sequence[float], measured_ms: Sequence[float]
) -> np.ndarray:
    """Milliseconds at `macs`, on the straight lines between the measured points.

    Points of equal operations count as one, at their mean. Outside the measured range the nearest
    line goes on, but never below a tenth of the cheapest measurement.

    Example:
        >>> interpolate_ms([10, 20], [10, 30], [1.0, 2.0]).tolist()
        [1.0, 1.5]
    """
    x, places = np.unique(np.asarray(measured_macs, float), return_inverse=True)
    y = np.bincount(places, np.asarray(measured_ms, float)) / np.bincount(places)
    wanted = np.asarray(macs, float)
    if len(x) == 1:
        return y[0] * np.maximum(wanted / max(x[0], 1.0), 0.1)
    values = np.interp(wanted, x, y)
    for outside, end, inner in ((wanted < x[0], 0, 1), (wanted > x[-1], -1, -2)):
        slope = max((y[end] - y[inner]) / (x[end] - x[inner]), 0.0)
        values = np.where(outside, y[end] + slope * (wanted - x[end]), values)
    return np.maximum(values, 0.1 * y.min())
