"""Milliseconds: medians of calls taken in turns."""

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np

from espace_tf.keras_layers import DecomposedConv2D, MaskedConv2D
from espace_tf.records.site import Site

_WARMUP = 2
_RUNS = 8  # of rounds, whose medians tell the error of a ratio
_LONGER = 3  # times as long a busy machine is measured
# How often the error of a ratio is looked at, in rounds, and after how many seconds at the soonest:
# a machine's phases last as long.
_LOOK = 40
_SOONEST = 1.0


def alternate(
    calls: Sequence[Callable[[], Any]],
    *,
    repeats: int = 30,
    seconds: float | None = None,
    least: int = 3,
) -> list[float]:
    """Median milliseconds of each call, all taken in turns.

    Whatever else the machine does hits every one of them alike, so that ratios are sound where
    single times are not.

    Args:
        calls: functions without arguments that return when the work is done; a float that one
            returns is the seconds that it took, by a clock of another machine.
        repeats: rounds after two rounds of warming up.
        seconds: no further round is begun after this time, but `least` are always taken.
        least: rounds after which the time may end it.

    Example:
        >>> fast, slow = alternate([lambda: model(x), lambda: other(x)], repeats=10)
    """
    return (1e3 * np.median(rounds(calls, repeats, seconds, least), axis=0)).tolist()


class Ratio(NamedTuple):
    """How many times longer one call takes than another.

    Attributes:
        value: the median over rounds of both.
        error: relative to that, two standard errors: what another measurement may differ by.
    """

    value: float
    error: float


def ratio(
    slow: Callable[[], Any],
    fast: Callable[[], Any],
    *,
    repeats: int,
    seconds: float,
    enough: float = 0.0,
    tolerated: float = np.inf,
) -> Ratio:
    """How many times longer one call takes than another: the median over rounds of both.

    A machine that others use too is fast in one minute and slow in the next. Such a phase
    multiplies both times of a round by the same factor, which the round's ratio does not hold, and
    the two medians of the times do: they may be of different phases. Interruptions that hit one
    call only, the first as often as the second, throw a ratio up or down, and the median leaves
    both out. How far it can be trusted is told by the medians of runs of rounds: neighbours are too
    alike to count as independent ("batch means", Law and Kelton, "Simulation Modeling and
    Analysis", section 9.5.3).

    Args:
        slow, fast: functions without arguments that return when the work is done.
        repeats: rounds at most, after two rounds of warming up.
        seconds: no further round is begun after this time, but three are always taken.
        enough: an error at which it ends before that.
        tolerated: where the error is larger at the end, up to _LONGER times the rounds and seconds
            are spent.
    """
    for call in [slow, fast] * _WARMUP:
        call()
    found: list[float] = []
    start, times = time.perf_counter(), 1
    while True:
        found.append(_seconds(slow) / _seconds(fast))
        spent = time.perf_counter() - start
        over = len(found) >= times * repeats or (spent > times * seconds and len(found) >= 3)
        if not over and (len(found) % _LOOK or spent < _SOONEST):
            continue
        known = with_error(np.array(found))
        if known.error <= (tolerated if over else enough) or times == _LONGER and over:
            return known
        times += over


def with_error(ratios: np.ndarray) -> Ratio:
    """The median of rounds' ratios, and its error; infinite of one round."""
    middle = float(np.median(ratios))
    runs = np.array([np.median(run) for run in np.array_split(ratios, min(_RUNS, len(ratios)))])
    error = 2 * float(runs.std(ddof=1)) / len(runs) ** 0.5 if len(runs) > 1 else np.inf
    return Ratio(middle, error / middle if middle > 0 else np.inf)


def rounds(
    calls: Sequence[Callable[[], Any]],
    repeats: int,
    seconds: float | None = None,
    least: int = 3,
) -> np.ndarray:
    """Seconds [round, call] of calls in turns; the arguments are those of `alternate`."""
    for call in list(calls) * _WARMUP:
        call()
    found: list[list[float]] = []
    end = None if seconds is None else time.perf_counter() + seconds
    while len(found) < repeats:
        if end is not None and len(found) >= least and time.perf_counter() > end:
            break
        found.append([_seconds(call) for call in calls])
    return np.array(found)


def _seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    told = call()
    seconds = time.perf_counter() - start
    return told if isinstance(told, float) else seconds


def single_layer(
    site: Site,
    *,
    rank: int | None = None,
    order: str = "vertical",
    positions: np.ndarray | None = None,
    dense: type = keras.layers.Conv2D,
) -> keras.layers.Layer:
    """A convolution like a site's, of its dtype policy, with random weights, to be timed.

    Args:
        site: the convolution.
        rank, order, positions: as in a LayerPlan.
        dense: the class where rank and positions are None: the layer as it is.
    """
    options = {
        "filters": site.filters,
        "kernel_size": site.kernel_size,
        "strides": site.strides,
        "dilation_rate": site.dilation_rate,
        "padding": site.padding,
        "groups": site.groups,
        "data_format": "channels_last",
        "activation": "relu",
        "dtype": site.policy,  # whatever the policy of the process is
    }
    if rank is not None:
        return DecomposedConv2D(rank=rank, order=order, positions=positions, **options)
    if positions is not None:
        return MaskedConv2D(positions=positions, **options)
    return dense(**options)
