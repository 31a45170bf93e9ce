"""Which correction of the predicted times makes a plan land on the speed that was asked for."""

import math

# The part of a bracket that a secant step must leave on either side.
_MARGIN = 0.15


class Correction:
    """Finds the root of y(x): x is the logarithm of the scale of the predicted times of changed
    layers, y that of the measured speed over the asked one.

    The larger the scale, the more the planner must save: y grows with x, in steps, since options
    are discrete, and is measured with noise. As long as all measurements lie on one side, the scale
    that explains the last one is taken: it is right if all changed layers are slower than predicted
    by one factor. That rule has no memory: where the response is steeper than it assumes it jumps
    from side to side for ever. Once both sides were seen the root lies between the nearest
    measurements of each; the secant through them hits it if y is a line there, and the margin on
    both sides makes the bracket shrink even where a step in y stops the secant.

    Args:
        asked: the speed asked for.
        furthest: how much the scale may be at most, and one over it at least.

    Example:
        >>> correction = Correction(2.0)
        >>> correction.add(1.0, 1.6)  # with the times as predicted it is 1.6 times faster
        >>> round(correction.next(explained=1.4), 3)
        1.4
        >>> correction.add(1.4, 2.4)  # too much: between the two by their distances
        >>> round(correction.next(explained=1.1), 3)
        1.203
    """

    def __init__(self, asked: float, furthest: float = 8.0):
        self._asked, self._furthest = asked, math.log(furthest)
        self._points: list[tuple[float, float]] = []

    def add(self, scale: float, measured: float) -> None:
        """Notes what speed was measured of the plan made with this scale."""
        self._points.append((math.log(scale), math.log(measured / self._asked)))

    def next(self, explained: float) -> float:
        """The scale to plan with next.

        Args:
            explained: the scale that would explain the last measurement.
        """
        low = max((p for p in self._points if p[1] <= 0), key=lambda p: p[1], default=None)
        high = min((p for p in self._points if p[1] > 0), key=lambda p: p[1], default=None)
        x = math.log(explained)
        if low is not None and high is not None:
            share = min(max(low[1] / (low[1] - high[1]), _MARGIN), 1 - _MARGIN)
            x = low[0] + share * (high[0] - low[0])
        return math.exp(min(max(x, -self._furthest), self._furthest))
