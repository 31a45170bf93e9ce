"""The plan whose network is measured nearest to a speed: plans, measures, and plans anew."""

import dataclasses
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np

from espace_tf.config import EspaceConfig
from espace_tf.deploy.inference import inference_copy
from espace_tf.planning.correction import Landing
from espace_tf.planning.planner import UnreachableSpeedWarning, plan
from espace_tf.records.analysis import Analysis
from espace_tf.records.plan import Plan
from espace_tf.rewriting.apply import apply
from espace_tf.timing import measure

_SCALES = (0.25, 4.0)  # how much one measurement may correct the predicted times at most
# How many rounds of calls, for how many seconds at most, decide about a correction, and how many
# say at the end what was reached.
_QUICK = (300, 6.0)
_FINAL = (1000, 15.0)
# Plans made in search of one that was not measured yet, for one measurement.
_REPLANS = 4


@dataclass(frozen=True)
class _Tried:
    """A model with its plan; its speed as a short measurement found it; how far that is off."""

    model: Any
    plan: Plan
    speed: float
    miss: float


def nearest(
    model: Any, analysis: Analysis, speedup: float | None, previous: Plan | None = None
) -> Any:
    """The applied plan whose measured speed is nearest to the asked one.

    The one that is chosen is measured once more: of several noisy numbers the one nearest to the
    wish was picked, and repeating that number would report the wish.
    """
    best = _best(model, analysis, speedup, previous)
    speed = best.speed
    if best.plan.layers:
        speed = _measured_speedup(model, best.model, analysis.config, *_FINAL)
    made = dataclasses.replace(best.plan, measured_speedup=speed)
    if made.layers and speed <= 1:
        return _unchanged(model, made)
    best.model.espace_plan = made
    return best.model


def _best(model: Any, analysis: Analysis, speedup: float | None, previous: Plan | None) -> _Tried:
    """The nearest of the first plan and up to config.rounds corrected ones; the first near one.

    A network that takes less time than what the plan leaves as it is was predicted to take alone
    refutes that prediction, which no scale of the changed layers could correct: it is replaced.
    """
    config, landing, seen = analysis.config, Landing(speedup or 1.0), {}
    scale, made, best = 1.0, _planned(analysis, speedup, 1.0, previous), None
    while True:
        tried = _try(model, made, config)
        if best is None or tried.miss < best.miss:
            best = tried
        # Half the tolerance: the last measurement differs by a few per cent.
        near = tried.miss <= config.tolerance / 2
        if near or not made.layers or len(seen) >= config.rounds:
            return best
        seen[_choices(made)] = tried.speed
        for _ in range(_REPLANS):
            speed = seen[_choices(made)]
            if made.dense_ms / speed < _unchanged_ms(made):
                # A machine that was busy for a moment, or masks that poolings gain from, too.
                rest = max(made.dense_ms / speed - _changed_ms(made), 0.0)
                analysis = dataclasses.replace(analysis, other_ms=rest)
                scale, landing = 1.0, Landing(speedup)
            else:
                landing.add(scale, speed)
                scale = landing.next(explained=scale * _correction(made, speed))
            made = _planned(analysis, speedup, scale, previous)
            if _choices(made) not in seen:
                break
        else:
            return best


def _try(model: Any, made: Plan, config: EspaceConfig) -> _Tried:
    """Applies a plan and measures the model shortly."""
    small = apply(model, made)
    speed = _measured_speedup(model, small, config, *_QUICK) if made.layers else 1.0
    miss = 0.0 if made.speedup is None else abs(speed / made.speedup - 1)
    return _Tried(small, made, speed, miss)


def _planned(
    analysis: Analysis, speedup: float | None, scale: float, previous: Plan | None
) -> Plan:
    with warnings.catch_warnings():
        # What counts is what is measured; that is warned of at the end.
        warnings.simplefilter("ignore", UnreachableSpeedWarning)
        return plan(
            analysis,
            speedup=speedup,
            time_scale=dict.fromkeys(analysis.sites, scale),
            previous=previous,
        )


def _choices(made: Plan) -> frozenset:
    """What a plan does to every layer, comparable."""
    return frozenset(
        (path, layer.rank, layer.order, layer.positions is not None and layer.positions.tobytes())
        for path, layer in made.layers.items()
    )


def _unchanged(model: Any, slower: Plan) -> Any:
    """A copy of the model as it is, for a plan that turned out no faster than that."""
    reason = (
        f"the compressed network was measured at {slower.measured_speedup:.2f} times the speed of "
        "the given one"
    )
    made = dataclasses.replace(
        slower,
        layers={},
        skipped={**slower.skipped, **dict.fromkeys(slower.layers, reason)},
        predicted_ms=slower.dense_ms,
        times={path: (before, before) for path, (before, _) in slower.times.items()},
        measured_speedup=1.0,
    )
    return apply(model, made)


def _measured_speedup(
    model: Any, small: Any, config: EspaceConfig, repeats: int, seconds: float
) -> float:
    """Time of a model over that of its compressed form, both stripped and called in turns."""
    return measure.speed_ratio(
        [inference_copy(each, config.runtime) for each in (model, small)],
        batch_size=config.batch_size,
        runtime=config.runtime,
        threads=config.threads,
        size=config.input_size,
        repeats=repeats,
        seconds=seconds,
    )


def _correction(made: Plan, measured: float) -> float:
    """What the predicted times of the changed layers must be multiplied by to explain the time."""
    changed = _changed_ms(made)
    if changed <= 0:
        return 1.0
    return float(np.clip((made.dense_ms / measured - _unchanged_ms(made)) / changed, *_SCALES))


def _changed_ms(made: Plan) -> float:
    """Predicted milliseconds of the layers that a plan changes."""
    return sum(made.times[path][1] for path in made.layers)


def _unchanged_ms(made: Plan) -> float:
    """Predicted milliseconds of everything else."""
    return made.predicted_ms - _changed_ms(made)
