"""What else reaches a speed: analyses in which masks, or the order of a pair, count differently.

The planner weighs what is lost before any training. Training brings back more of what ranks lose
than of what masks lose (docs/ablation.md), by how much depends on the network: a race finds out, or
without training what least squares bring back, which tells what training will.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

from espace_tf.records.analysis import Analysis
from espace_tf.records.layer_plan import LayerPlan
from espace_tf.records.option import Option
from espace_tf.records.plan import Plan

FIRST = "as planned"
# What masks count in the plan between those of ranks alone and of masks as they are.
_BETWEEN = 3.0


def contenders(analysis: Analysis, first: Plan, count: int) -> dict[str, Analysis]:
    """Analyses whose plans of one speed differ, by what makes them differ.

    Args:
        analysis: of the network.
        first: its plan as it is, the first of them.
        count: how many, at most 4.

    Returns:
        "as planned", "ranks only", "masks count 3 times", "other orders", or the first of them.
    """
    made = {
        FIRST: lambda options, path: options,
        "ranks only": lambda options, path: _weighted(options, math.inf),
        f"masks count {_BETWEEN:g} times": lambda options, path: _weighted(options, _BETWEEN),
        "other orders": lambda options, path: _reordered(options, path, first),
    }
    return {name: _changed(analysis, made[name]) for name in list(made)[:count]}


def weighted(analysis: Analysis, weight: float) -> Analysis:
    """One in which what masks add to damages counts so many times; inf: it has no masks."""
    return _changed(analysis, lambda options, path: _weighted(options, weight))


def rivals(analysis: Analysis) -> list[Analysis]:
    """Analyses whose plans may be better once a network is refitted, where much is lost.

    Damages are losses where they are small. What a large one says too much is less in its root, so
    that many small ones count for more; with masks as they are, and thrice.
    """

    def rooted(weight: float) -> Callable[[Sequence[Option], str], list[Option]]:
        return lambda options, path: [
            dataclasses.replace(each, damage=math.sqrt(by_rank) + weight * math.sqrt(by_mask))
            for each, (by_rank, by_mask) in zip(options, damage_parts(options), strict=True)
        ]

    return [_changed(analysis, rooted(weight)) for weight in (1.0, _BETWEEN)]


def with_damages(made: Plan, analysis: Analysis) -> Plan:
    """A plan that a changed analysis made, with the damages of the analysis itself."""
    layers = {
        path: dataclasses.replace(layer, damage=option_of(analysis, path, layer).damage)
        for path, layer in made.layers.items()
    }
    return dataclasses.replace(made, layers=layers)


def option_of(analysis: Analysis, path: str, layer: LayerPlan) -> Option:
    """The option that a layer of a plan was given.

    Raises:
        ValueError: the analysis has no such option.
    """
    wanted = (layer.rank, layer.order if layer.rank else None, layer.family)
    alike = [
        each
        for each in analysis.sites[path].options
        if (each.rank, each.order if each.rank else None, each.family) == wanted
    ]
    if not alike:
        raise ValueError(f"the analysis has no option like this one of {path!r}: {layer}")
    return min(alike, key=lambda each: abs((layer.keep or 1.0) - each.keep))


def _changed(
    analysis: Analysis, change: Callable[[Sequence[Option], str], Sequence[Option]]
) -> Analysis:
    sites = {
        path: dataclasses.replace(site, options=tuple(change(site.options, path)))
        for path, site in analysis.sites.items()
    }
    return dataclasses.replace(analysis, sites=sites)


def damage_parts(options: Sequence[Option]) -> list[tuple[float, float]]:
    """Of each of a layer's options the damage of its rank alone, and what its mask adds to that."""
    ranks = {(each.rank, each.order): each.damage for each in options if each.family is None}
    found = []
    for each in options:
        alone = ranks.get((each.rank, each.order), 0.0) if each.rank else 0.0
        alone = max(each.damage if each.family is None else alone, 0.0)
        found.append((alone, max(each.damage - alone, 0.0)))
    return found


def _weighted(options: Sequence[Option], weight: float) -> list[Option]:
    """Options in which what a mask adds to the damage of its rank counts so many times."""
    if weight == math.inf:
        return [each for each in options if each.family is None]
    return [
        each
        if each.family is None
        else dataclasses.replace(each, damage=by_rank + weight * by_mask)
        for each, (by_rank, by_mask) in zip(options, damage_parts(options), strict=True)
    ]


def _reordered(options: Sequence[Option], path: str, first: Plan) -> list[Option]:
    """Without the pairs of the order that the first plan gives this layer, if it has others."""
    chosen = first.layers.get(path)
    taken = None if chosen is None or chosen.rank is None else chosen.order
    others = [each for each in options if each.rank is None or each.order != taken]
    return others if any(each.rank for each in others) else list(options)
