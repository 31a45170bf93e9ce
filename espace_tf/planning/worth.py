"""Whether a plan that was measured and compared is worth what it loses."""

import math

from espace_tf.planning.planner import DEAREST
from espace_tf.records.plan import Plan

_ROUNDING = 1e-6  # of sums of predicted times


def is_too_dear(made: Plan) -> bool:
    """Whether a plan loses more than the speed that its changes bring is worth, if that is known.

    What the fused graph brings by itself is not bought.
    """
    if made.comparison is None or not made.measured_speedup:
        return False
    return made.comparison.loss_increase > DEAREST * math.log(_bought(made))


def is_short(made: Plan, tolerance: float) -> bool:
    """Whether a network is slower than was asked for because a faster plan was too dear."""
    if made.speedup is None or made.predicted_speedup >= made.speedup * (1 - _ROUNDING):
        return False
    return made.measured_speedup < made.speedup * (1 - tolerance)


def is_better(made: Plan, other: Plan) -> bool:
    """Whether a plan is not too dear, and the other one is or is further from the asked speed."""
    if is_too_dear(made) or made.speedup is None:
        return not is_too_dear(made)
    misses = [abs(math.log(each.measured_speedup / each.speedup)) for each in (made, other)]
    return is_too_dear(other) or misses[0] < misses[1]


def _bought(made: Plan) -> float:
    """How many times faster the changed layers alone make the network, as far as that is known."""
    pairs = [made.times[path] for path in made.layers if path in made.times]
    if not pairs or not made.predicted_ms:
        return made.measured_speedup
    return 1 + max(sum(before - after for before, after in pairs), 0.0) / made.predicted_ms
