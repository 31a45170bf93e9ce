"""What might predict, before any training, which of two plans of one speed is better after it."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import spearmanr

from espace_tf.planning.contenders import damage_parts, option_of
from espace_tf.records.analysis import Analysis
from espace_tf.records.plan import Plan

# What masks count, and the power that a layer's damage is raised to: near 1 damages add up, below
# it many small ones weigh more than one large.
WEIGHTS = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
POWERS = (0.25, 0.5, 0.75, 1.0, 1.5)


@dataclass(frozen=True)
class Parts:
    """What a plan does to each layer that it changes, as the analysis predicts it.

    Args:
        by_rank, by_mask: damages of the layers' ranks, and what their masks add.
        error: relative squared errors of the responses, of the ranks.
    """

    by_rank: tuple[float, ...]
    by_mask: tuple[float, ...]
    error: tuple[float, ...]

    def total(self, weight: float, power: float) -> float:
        """Sum over layers of rank ** power + weight * mask ** power."""
        ranks, masks = np.asarray(self.by_rank), np.asarray(self.by_mask)
        return float((ranks**power).sum() + weight * (masks**power).sum())


def parts_of(analysis: Analysis, plan: Plan) -> Parts:
    """Looks the plan's options up.

    Raises:
        ValueError: an option that the analysis does not offer.
    """
    rows = []
    for path, layer in plan.layers.items():
        options, chosen = analysis.sites[path].options, option_of(analysis, path, layer)
        parts = damage_parts(options)[options.index(chosen)]
        rows.append((*parts, chosen.error))
    return Parts(
        *(tuple(max(value, 0.0) for value in column) for column in zip(*rows, strict=True))
    )


def perturbed(analysis: Analysis, random: np.random.Generator, spread: float) -> Analysis:
    """An analysis whose plans differ: each layer's ranks and masks count otherwise.

    Masks as a whole count 1/8 to 32 times, every layer's ranks and its masks by log-normal factors.

    Args:
        spread: standard deviation of their logarithm.
    """
    masks, sites = 2.0 ** random.uniform(-3, 5), {}
    for path, site in analysis.sites.items():
        rank, mask = np.exp(spread * random.normal(size=2))
        options = tuple(
            dataclasses.replace(each, damage=rank * by_rank + masks * mask * by_mask)
            for each, (by_rank, by_mask) in zip(
                site.options, damage_parts(site.options), strict=True
            )
        )
        sites[path] = dataclasses.replace(site, options=options)
    return dataclasses.replace(analysis, sites=sites)


Found = dict[str, float]


def rank_correlation(
    predicted: Sequence[float], after: Sequence[float], groups: Sequence[float]
) -> float:
    """Spearman's, within each group of plans of one speed, averaged.

    Across groups anything that grows with speed would look right. Values that cannot be ordered
    (all equal, or not finite) count as 0.

    Example:
        >>> rank_correlation([1, 2, 3, 4], [10, 20, 5, 7], [2, 2, 4, 4])
        1.0
    """
    found = []
    for group in sorted(set(groups)):
        rows = [index for index, each in enumerate(groups) if each == group]
        x, y = (np.asarray(values, float)[rows] for values in (predicted, after))
        x = np.nan_to_num(x, nan=math.inf)
        same = len(set(x)) < 2 or len(set(y)) < 2
        found.append(0.0 if same else float(spearmanr(x, y).statistic))
    return float(np.mean(found))


def learned(
    parts: Sequence[Parts], after: Sequence[float], groups: Sequence[float]
) -> tuple[float, tuple[float, float]]:
    """The weight and power of the best correlation, and what they would have reached unseen.

    Returns:
        The mean over groups of the correlation in that group, of the pair that is best in all
        others; and the pair that is best in all of them.
    """

    def best(rows: Sequence[int]) -> tuple[float, float]:
        pairs = [(weight, power) for weight in WEIGHTS for power in POWERS]
        return max(pairs, key=lambda pair: score(pair, rows))

    def score(pair: tuple[float, float], rows: Sequence[int]) -> float:
        columns = ([each[index] for index in rows] for each in (parts, after, groups))
        chosen, truth, group = columns
        return rank_correlation([each.total(*pair) for each in chosen], truth, group)

    every, unseen = range(len(parts)), []
    for group in sorted(set(groups)):
        inside = [index for index in every if groups[index] == group]
        outside = [index for index in every if groups[index] != group]
        unseen.append(score(best(outside or inside), inside))
    return float(np.mean(unseen)), best(every)


def additive() -> dict[str, Callable[[Parts], float]]:
    """What a planner can add up layer by layer, by name."""
    return {
        "damage, as planned": lambda parts: parts.total(1.0, 1.0),
        "damage of the ranks alone": lambda parts: parts.total(0.0, 1.0),
        "damage, masks 3 times": lambda parts: parts.total(3.0, 1.0),
        "damage, masks 10 times": lambda parts: parts.total(10.0, 1.0),
        "root of the damage": lambda parts: parts.total(1.0, 0.5),
        "root of the damage, masks 3 times": lambda parts: parts.total(3.0, 0.5),
        "errors of the responses to ranks": lambda parts: float(sum(parts.error)),
        "masked layers": lambda parts: float(np.count_nonzero(parts.by_mask)),
    }
