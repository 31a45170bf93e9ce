"""The plan whose network is at a speed, or within a budget: plans, measures, and plans anew."""

import dataclasses
import hashlib
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from espace_tf.analysis.held_out import HeldOut
from espace_tf.checks import warn
from espace_tf.config import EspaceWarning
from espace_tf.network.network import Network
from espace_tf.planning.budget import Budget
from espace_tf.planning.choices import slower
from espace_tf.planning.contenders import rivals, with_damages
from espace_tf.planning.correction import Correction
from espace_tf.planning.planner import LEAST_LOSS, UnreachableSpeedWarning, plan
from espace_tf.planning.worth import is_better, is_short, is_too_dear
from espace_tf.records.analysis import Analysis
from espace_tf.records.comparison import Comparison
from espace_tf.records.plan import Plan
from espace_tf.rewriting.apply import applied
from espace_tf.timing.layer_times import LayerTimes
from espace_tf.timing.reference import Reference

_SCALES = (0.25, 4.0)  # how much one measurement may correct the predicted times at most
# How many rounds of calls, for how many seconds at most, decide about a correction, with what error
# it ends sooner; and how many say at the end what was reached, with what error: otherwise longer.
_QUICK = (300, 3.0, 0.015, math.inf)
_FINAL = (1000, 6.0, 0.015, 0.03)
# A larger error of the last one is told.
_DOUBTFUL = 0.07
# Another process finds another speed of the same network, by a few per cent: further off than this,
# what was measured in an earlier call does not hold today.
_REFUTED = 0.07
# Plans made in search of one that was not measured yet, for one measurement.
_REPLANS = 4
# How often a plan is made whose network turns out to lose more than its speed is worth.
_REJECTIONS = 3
# And a further one where all losses turn out so many times smaller, and bought too little for that.
_CHEAPER = 1.25
# A plan that loses more is compared with others of its speed. Where less is lost, the predicted
# damages are what is lost, and other plans hardly do better.
_MUCH = 0.1
_CLEARLY = 0.9  # of that loss: nearer ones are alike on so few images
_FREE = 1e-6  # a scale of damages at which no time is too dear
# Of a budget that is looked for, the share aimed at and the least one that is near enough; how many
# more plans are compared than are timed, since that costs less.
_AIM, _NEAR = 0.92, 0.85
_FURTHER_ROUNDS = 3


@dataclass(frozen=True)
class _Tried:
    """A model with its plan; its speed as a short measurement found it; how far that is off.

    And the analysis that it was planned from, with the scale of the changed layers' times.
    """

    model: Any
    plan: Plan
    speed: float
    miss: float
    analysis: Analysis | None = None
    scale: float = 1.0


class Search:
    """Plans for one network, applied and measured.

    Args:
        network: the given one.
        analysis: of it.
        reference: the same, made ready to be timed against.
        held_out: what compressed networks are compared on; None: they are not.
        previous: the plan of an earlier stage, see `plan`.
        refit: improves a network in place before it is compared with the given one; None: nothing.
        times: where speeds of plans are kept, so that a call that is repeated makes the same plan;
            None: nowhere.

    Attributes:
        advance: told of each network that is measured or compared.
    """

    def __init__(
        self,
        network: Network,
        analysis: Analysis,
        reference: Reference,
        held_out: HeldOut | None = None,
        previous: Plan | None = None,
        refit: Callable[[Any], Any] | None = None,
        times: LayerTimes | None = None,
    ):
        self._times = LayerTimes() if times is None else times
        self._timed: set[str] = set()  # plans that were measured in this search
        self._remembered = False  # whether the speed of one is known from an earlier call
        self.analysis = analysis
        self._network, self._reference = network, reference
        self._held_out, self._previous = held_out, previous
        self._refit = refit
        self.advance: Callable[[int], None] = lambda count: None

    def with_analysis(self, analysis: Analysis) -> "Search":
        """The same for another analysis of the network, whose plans are others."""
        known = self._reference, self._held_out, self._previous, self._refit, self._times
        return Search(self._network, analysis, *known)

    def applied(self, made: Plan) -> Any:
        """The network with a plan that was found before."""
        return applied(self._network, made)

    def at_speed(self, speedup: float | None) -> Any:
        """The applied plan whose measured speed is nearest to the asked one.

        The one that is chosen is measured once more: of several noisy numbers the one nearest to
        the wish was picked, and repeating that number would report the wish.
        """
        tried = self._worthwhile(speedup)
        small = self._finished(tried)
        tolerance = self.analysis.config.tolerance
        if self._remembered and _is_refuted(tried, small.espace_plan, tolerance):
            self._times, self._remembered = LayerTimes(), False
            small = self._finished(self._worthwhile(speedup))
        return small

    def _worthwhile(self, speedup: float | None) -> _Tried:
        """The nearest plan that loses no more than its speed is worth.

        Where its answers are much further from the given network's than was predicted, the plan is
        made anew with damages that explain it: no time is bought that is dearer than it is worth.
        Likewise where they are nearer, once the network was refitted, and the speed was missed for
        its price.
        """
        scale, kept, seen = 1.0, None, set()
        for _ in range(_REJECTIONS):
            tried = self._compared(self._nearest(speedup, scale))
            made = tried.plan
            if kept is None or is_better(made, kept.plan):
                kept = tried
            predicted = sum(layer.damage or 0.0 for layer in made.layers.values())
            if predicted <= 0 or made.comparison is None or choices(made) in seen:
                break
            seen.add(choices(made))
            explained = float(np.clip(made.comparison.loss_increase / predicted, 1e-3, 1e6))
            dear, missed = is_too_dear(made), is_short(made, self.analysis.config.tolerance)
            slower = dear and explained > scale
            faster = missed and not dear and explained < scale / _CHEAPER
            if not slower and not faster:
                break
            scale = explained
        return self._best_of_rivals(kept)

    def _best_of_rivals(self, first: _Tried) -> _Tried:
        """The plan, or one of the same speed whose network loses less once it is refitted.

        What is lost then orders plans as training leaves them, much better than damages do where
        much is lost (docs/ablation.md).
        """
        made, best, tolerance = first.plan, first, self.analysis.config.tolerance
        lost = None if made.comparison is None else made.comparison.loss_increase
        if first.analysis is None or self._refit is None or lost is None or lost <= _MUCH:
            return first
        times, seen = dict.fromkeys(made.times, first.scale), {choices(made)}
        options = {"speedup": made.predicted_speedup, "time_scale": times, "damage_scale": _FREE}
        for analysis in rivals(first.analysis):
            rival = with_damages(self._planned(analysis, **options), self.analysis)
            as_fast = rival.predicted_ms <= (1 + tolerance) * made.predicted_ms
            if not as_fast or choices(rival) in seen:
                continue
            seen.add(choices(rival))
            small = self._refitted(applied(self._network, rival))
            compared = self._held_out.compare(small)
            if not _clearly_better(compared, best.plan.comparison):
                continue
            speed = self._speed(small, rival)
            if speed >= (1 - tolerance / 2) * first.speed:  # else it loses less for being slower
                told = {"speedup": made.speedup, "measured_speedup": speed, "comparison": compared}
                rival = dataclasses.replace(rival, **told)
                best = _Tried(small, rival, speed, _miss(speed, rival))
        return best

    def within(self, budget: Budget) -> Any:
        """The fastest applied plan that loses no more on the held-out images than may be lost.

        What the planner may lose by its own prediction is corrected by what the network then loses:
        a search for the root of one over the other, which stops a little below the budget.
        """
        correction, scale, seen, best = Correction(_AIM, furthest=1e3), 1.0, set(), None
        for _ in range(self.analysis.config.rounds + _FURTHER_ROUNDS):
            made = self._planned(max_loss_increase=max(scale * budget.first_loss, LEAST_LOSS))
            if choices(made) in seen:
                break
            seen.add(choices(made))
            small = self._refitted(applied(self._network, made))
            compared = self._held_out.compare(small)
            spent = budget.spent(compared)
            faster = best is None or made.predicted_ms < best.plan.predicted_ms
            if spent <= 1 and faster:
                best = _Tried(small, dataclasses.replace(made, comparison=compared), 1.0, 0.0)
            if _NEAR <= spent <= 1:
                break
            correction.add(scale, max(spent, 1e-3))
            scale = correction.next(explained=scale * _AIM / max(spent, 1e-3))
            used = sum(layer.damage or 0.0 for layer in made.layers.values()) / budget.first_loss
            if spent > 1 and 0 < used <= scale:  # that would be the same plan again
                scale = used * _AIM / spent
        if best is None:
            reason = f"every plan that was tried loses more on held-out images than {budget}"
            return _unchanged(self._network, made, reason)
        return self._finished(best)

    def _finished(self, tried: _Tried) -> Any:
        """The model with its plan, and what was measured; unchanged where it is no faster."""
        made, model = tried.plan, tried.model
        speed, error = tried.speed, None
        if made.layers:
            speed = _measured_speedup(self._reference, model, *_FINAL)
            error = self._reference.error
        if made.layers and speed <= 1:
            reason = f"the compressed network was measured at {speed:.2f} times the speed of the "
            return _unchanged(self._network, made, reason + "given one")
        measured = {"measured_speedup": speed, "measured_error": error}
        model.espace_plan = dataclasses.replace(made, **measured)
        return model

    def _compared(self, tried: _Tried) -> _Tried:
        """The same, refitted and compared with the given network."""
        made = dataclasses.replace(tried.plan, measured_speedup=tried.speed)
        if made.layers and self._held_out is not None:
            compared = self._held_out.compare(self._refitted(tried.model))
            made = dataclasses.replace(made, comparison=compared)
        return dataclasses.replace(tried, plan=made)

    def _nearest(self, speedup: float | None, damage_scale: float) -> _Tried:
        """The nearest of the first plan and up to config.rounds corrected ones; the first near one.

        A network that takes less time than what the plan leaves as it is was predicted to take
        alone refutes that prediction, which no scale of the changed layers could correct: that of
        the rest is. Likewise one that takes so much more that no such scale could be believed.
        """
        analysis, config = self.analysis, self.analysis.config
        correction, seen, scale, best = Correction(speedup or 1.0), {}, 1.0, None
        options = {"speedup": speedup, "damage_scale": damage_scale}
        made = self._planned(**options)
        while True:
            tried = self._try(made)
            if best is None or tried.miss < best.miss:
                best = dataclasses.replace(tried, analysis=analysis, scale=scale)
            # Half the tolerance: the last measurement differs by a few per cent.
            near = tried.miss <= config.tolerance / 2
            if near or not made.layers or len(seen) >= config.rounds:
                return best
            seen[choices(made)] = tried.speed
            for _ in range(_REPLANS):
                speed = seen[choices(made)]
                found, changed, unchanged = made.dense_ms / speed, *_parts_ms(made)
                if not unchanged <= found <= unchanged + _SCALES[1] * changed:
                    # A machine that was busy for a moment, or masks that poolings gain from, too.
                    analysis = slower(analysis, found - made.predicted_ms)
                    scale, correction = 1.0, Correction(speedup)
                else:
                    correction.add(scale, speed)
                    scale = correction.next(explained=scale * _explained(made, speed))
                times = dict.fromkeys(analysis.sites, scale)
                made = self._planned(analysis, time_scale=times, **options)
                if choices(made) not in seen:
                    break
            else:
                return best

    def _refitted(self, small: Any) -> Any:
        self.advance(1)
        if self._refit is not None:
            self._refit(small)
        return small

    def _try(self, made: Plan) -> _Tried:
        """Applies a plan and measures the model shortly."""
        self.advance(1)
        small = applied(self._network, made)
        speed = self._speed(small, made) if made.layers else 1.0
        return _Tried(small, made, speed, _miss(speed, made))

    def _speed(self, small: Any, made: Plan) -> float:
        """As a short measurement finds it, now or when this plan was measured here before."""
        config = self.analysis.config
        where = (config.runtime, config.batch_size, config.threads, config.input_size)
        network = repr((made.fingerprint, where))
        change = hashlib.sha256(repr(sorted(choices(made), key=repr)).encode()).hexdigest()[:16]
        known = self._times.get(network, change)
        self._remembered |= known is not None and change not in self._timed
        if known is None:
            self._timed.add(change)
            known = 1 / _measured_speedup(self._reference, small, *_QUICK)
            self._times.add(network, 1.0, {change: known})
        return 1 / known

    def _planned(self, analysis: Analysis | None = None, **options: Any) -> Plan:
        with warnings.catch_warnings():
            # What counts is what is measured; that is warned of at the end.
            warnings.simplefilter("ignore", UnreachableSpeedWarning)
            return plan(analysis or self.analysis, previous=self._previous, **options)


def choices(made: Plan) -> frozenset:
    """What a plan does to every layer, comparable."""
    return frozenset(
        (path, layer.rank, layer.order, layer.positions is not None and layer.positions.tobytes())
        for path, layer in made.layers.items()
    )


def _clearly_better(one: Comparison, other: Comparison) -> bool:
    """Whether a network loses so much less on the same images, and agrees no less often."""
    less = one.loss_increase < _CLEARLY * other.loss_increase
    return less and one.agreement >= other.agreement


def _miss(speed: float, made: Plan) -> float:
    """How far a speed is from the one that a plan was asked for."""
    return 0.0 if made.speedup is None else abs(speed / made.speedup - 1)


def _is_refuted(tried: _Tried, made: Plan, tolerance: float) -> bool:
    """Whether the long measurement of today finds another speed than the short one.

    Or one that misses the wish where the short one did not.
    """
    if not tried.plan.layers:
        return False
    off = abs(made.measured_speedup / tried.speed - 1)
    misses = made.speedup is not None and abs(made.measured_speedup / made.speedup - 1) > tolerance
    return off > _REFUTED or (misses and tried.miss <= tolerance)


def _unchanged(network: Network, rejected: Plan, reason: str) -> Any:
    """A copy of the model as it is, for a plan that turned out worse than that."""
    made = dataclasses.replace(
        rejected,
        layers={},
        skipped={**rejected.skipped, **dict.fromkeys(rejected.layers, reason)},
        predicted_ms=rejected.dense_ms,
        times={path: (before, before) for path, (before, _) in rejected.times.items()},
        measured_speedup=1.0,
        comparison=None,
    )
    return applied(network, made)


def _measured_speedup(
    reference: Reference, small: Any, repeats: int, seconds: float, enough: float, tolerated: float
) -> float:
    """Time of the given model over that of its compressed form, called in turns.

    Where an error is asked for that the machine is too busy for, that is told.
    """
    effort = {"repeats": repeats, "seconds": seconds, "enough": enough, "tolerated": tolerated}
    found = reference.speedup(small, **effort)
    if tolerated < math.inf and found.error > _DOUBTFUL:
        warn(
            f"the machine is busy: the compressed network was measured at {found.value:.2f} times "
            f"the speed, with an error of {found.error:.0%} although it was measured longer. The "
            "plan was made from such times too: compress again when nothing else runs, or see "
            "`benchmark` for a later measurement",
            EspaceWarning,
        )
    return found.value


def _explained(made: Plan, measured: float) -> float:
    """What the predicted times of the changed layers must be multiplied by to explain the time."""
    changed, unchanged = _parts_ms(made)
    if changed <= 0:
        return 1.0
    return float(np.clip((made.dense_ms / measured - unchanged) / changed, *_SCALES))


def _parts_ms(made: Plan) -> tuple[float, float]:
    """Predicted milliseconds of the layers that a plan changes, and of everything else."""
    changed = sum(made.times[path][1] for path in made.layers)
    return changed, made.predicted_ms - changed
