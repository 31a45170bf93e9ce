"""Whole networks in turns, in several rounds: how many times faster each is, and the spread."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from espace_tf.timing import measure, runtimes


def speed_ratios(
    models: Mapping[str, Any],
    inputs: np.ndarray,
    runtime: Any,
    *,
    rounds: int,
    repeats: int,
    seconds: float,
    threads: int | None = None,
) -> dict[str, dict[str, float]]:
    """Times of networks called in turns, and how many times faster each is than the first.

    A round is `repeats` calls of each network in turns, of which the medians count; it gives one
    ratio. What is told is the median of the rounds' ratios and their quartiles.

    Args:
        models: by name, as they are to be run; the first is the baseline.
        inputs: one batch.
        runtime: as in `EspaceConfig`.
        rounds: at least 1.
        repeats: calls of each network in a round.
        seconds: after so long a round ends, but three calls of each network are always made.
        threads: CPU threads; None: what the runtime takes by itself.

    Returns:
        By name: ms (median of the rounds), ratio, low, high.
    """
    calls = [runtimes.runner(each, [inputs], runtime, threads)[0] for each in models.values()]
    times = np.array(
        [measure.alternate(calls, repeats=repeats, seconds=seconds) for _ in range(rounds)]
    )
    ratios = times[:, :1] / times
    low, ratio, high = np.quantile(ratios, (0.25, 0.5, 0.75), axis=0).tolist()
    return {
        name: {"ms": ms, "ratio": ratio[i], "low": low[i], "high": high[i]}
        for i, (name, ms) in enumerate(zip(models, np.median(times, axis=0).tolist(), strict=True))
    }
