"""Plans of one speed made in different ways: how to factorise, to mask, and to choose ranks."""

import dataclasses
import functools
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from espace_tf.numerics import masks
from espace_tf.numerics.factors import energy_rank, plain_factors, reconstruct
from espace_tf.planning.choices import Choice, Clock, predicted
from espace_tf.planning.planner import UnreachableSpeedWarning, build, plan
from espace_tf.records.analysis import Analysis, SiteAnalysis
from espace_tf.records.layer_plan import LayerPlan
from espace_tf.records.option import Option
from espace_tf.records.plan import Plan
from espace_tf.records.site import no_mask

FACTORS = {"undecomposed": "no decomposition", "plain": "plain SVD", "aware": "whitened + refit"}
MASKS = {"unmasked": "no mask", "impact": "impact + nearest", "chosen": "chosen masks"}
RANKS = ("uniform", "energy", "planner")
# Masks with ranks: ranks bring the root of the speed, masks the rest, but not below this share.
_LEAST_KEEP = {"undecomposed": 0.05, "plain": 0.25, "aware": 0.25}
_BISECTIONS = 24


@dataclass(frozen=True)
class Combination:
    """One row of the ablation.

    Args:
        factors: a key of FACTORS.
        masks: a key of MASKS. "impact" keeps the positions of the largest impact (Figurnov et al.
            2016); "chosen" takes for each layer one of the families of the analysis.
        ranks: "uniform": one share of every layer's break-even rank, and one keep; "energy": one
            share of every layer's energy, and one keep; "planner": `espace_tf.plan`.
    """

    factors: str
    masks: str
    ranks: str

    @property
    def title(self) -> str:
        """What it is called in tables."""
        parts = f"{FACTORS[self.factors]}, {self.ranks} ranks, {MASKS[self.masks]}"
        named = {
            ("plain", "unmasked", "energy"): "LRDKT/AIMET-style (plain SVD, energy ranks, no mask)",
            ("undecomposed", "impact", "uniform"): (
                "Figurnov-style (no decomposition, impact masks, nearest)"
            ),
            ("aware", "chosen", "planner"): f"espace_tf ({parts})",
        }
        return named.get((self.factors, self.masks, self.ranks), parts)

    @property
    def slug(self) -> str:
        """What its files are called."""
        return f"{self.factors}_{self.masks}_{self.ranks}"


ALL = tuple(
    Combination(*parts)
    for parts in [
        ("undecomposed", "impact", "uniform"),
        *((f, m, r) for f in ("plain", "aware") for m in MASKS for r in RANKS),
    ]
)


def plan_at(analysis: Analysis, combination: Combination, speedup: float) -> tuple[Plan, bool]:
    """A plan of this kind that is predicted to be `speedup` times faster.

    Its free parameter (share of the break-even rank or of the energy, keep) is bisected.

    Returns:
        The plan, and whether it reaches the speed; else it is the fastest of its kind.

    Example:
        >>> made, reached = plan_at(analysis, Combination("plain", "unmasked", "energy"), 2.0)
    """
    if combination.ranks == "planner":
        return _planned(analysis, combination, speedup)
    clock = Clock.of(analysis, {})

    def fits(choices: dict[str, Choice], times: float) -> bool:
        budget = clock.model_ms / times - clock.other_ms
        return clock.total(choices) <= budget * (1 + 1e-12)

    def ranked(share: float, keep: float) -> dict[str, Choice]:
        return _uniform(analysis, clock, combination, share, keep)

    by_masks, share = combination.masks != "unmasked", 1.0
    if combination.factors != "undecomposed":
        target = math.sqrt(speedup) if by_masks else speedup
        share = _largest(lambda value: fits(ranked(value, 1.0), target), 0.0, 1.0)
    keep, least = 1.0, _LEAST_KEEP[combination.factors]
    if by_masks:
        keep = _largest(lambda value: fits(ranked(share, _percent(value)), speedup), least, 1.0)
        keep = _percent(keep)
        if combination.factors != "undecomposed" and not fits(ranked(share, keep), speedup):
            share = _largest(lambda value: fits(ranked(value, keep), speedup), 0.0, share)
    choices = ranked(share, keep)
    return build(analysis, speedup, clock, choices, {}), fits(choices, speedup)


def _percent(keep: float) -> float:
    """Rounded down: masks of a few keeps are made, not of all."""
    return math.floor(100 * keep + 1e-9) / 100


def _largest(fits: Callable[[float], bool], low: float, high: float) -> float:
    """The largest value that fits if smaller ones do too; `low` if none does."""
    if fits(high):
        return high
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _uniform(
    analysis: Analysis, clock: Clock, combination: Combination, share: float, keep: float
) -> dict[str, Choice]:
    """One rank rule and one keep for all layers; each only where it is predicted to be faster."""
    choices = {}
    for path, site in analysis.sites.items():
        best = Choice(option=Option(ms=site.dense_ms), ms=clock.dense_ms[path])
        plain = combination.factors == "plain"
        rank = _rank(site, combination, share)
        if rank is not None:
            pair = predicted(site, clock, rank, plain=plain)
            best = pair if pair.ms < best.ms else best
        if keep < 1 and no_mask(site.site, site.config.min_map) is None:
            masked = _masked(site, clock, combination, best.option.rank, keep)
            best = masked if masked.ms < best.ms else best
        if not best.option.is_dense:
            choices[path] = best
    return choices


def _rank(site: SiteAnalysis, combination: Combination, share: float) -> int | None:
    """The rank of a vertical pair, if there is one that needs fewer operations than the layer."""
    if combination.factors == "undecomposed" or site.site.kind != "conv" or share >= 1:
        return None
    even = site.site.break_even_rank("vertical")
    if combination.ranks == "uniform":
        rank = max(math.ceil(share * even), 1)
    elif combination.factors == "plain":
        values = site.decomposition("vertical").singular_values
        rank = energy_rank(values, max(share, 1e-9))
    else:
        errors = site.decomposition("vertical").errors
        rank = max(int(np.argmax(errors <= 1 - share + 1e-12)), 1)
    return rank if rank < even and rank <= site.site.full_rank("vertical") else None


def _masked(
    site: SiteAnalysis, clock: Clock, combination: Combination, rank: int | None, keep: float
) -> Choice:
    """The mask of this keep: by impact, or of the family of least damage for the time it saves."""

    def choice(family: str, positions: np.ndarray) -> Choice:
        plain = combination.factors == "plain"
        return predicted(site, clock, rank, mask=(family, positions), keep=keep, plain=plain)

    if combination.masks == "impact":
        return choice("impact", impact_positions(site, keep))
    dense, found = predicted(site, clock, rank), []
    for family in site.config.mask_families:
        if family == "pooling" or rank is not None and family == "columns":
            continue  # columns cut only one half of a vertical pair
        positions = site.positions(family, keep)
        made = choice(family, positions)
        saved = max(dense.ms - made.ms, 1e-9 * dense.ms)
        found.append(((site.position_damage(positions) or 0.0) / saved, family, made))
    return min(found, key=lambda each: each[:2])[2]


def impact_positions(site: SiteAnalysis, keep: float) -> np.ndarray:
    """The positions of the largest impact, whatever lies between them."""
    return masks.kept("impact", site.site.output_sizes[0], keep, impact=site.impact)


def _planned(analysis: Analysis, combination: Combination, speedup: float) -> tuple[Plan, bool]:
    """`espace_tf.plan` with only the options of this kind, and their damages."""
    sites = {
        path: dataclasses.replace(site, options=_options(site, combination))
        for path, site in analysis.sites.items()
    }
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UnreachableSpeedWarning)
        made = plan(dataclasses.replace(analysis, sites=sites), speedup=speedup)
    layers = {
        path: _as_asked(analysis.sites[path], layer, combination)
        for path, layer in made.layers.items()
    }
    return dataclasses.replace(made, layers=layers), not caught


def _as_asked(site: SiteAnalysis, layer: LayerPlan, combination: Combination) -> LayerPlan:
    """A layer's plan with plain factors or with the positions of the largest impact."""
    if combination.factors == "plain" and layer.rank is not None:
        pair = plain_factors(site.kernel, layer.rank, layer.order, site.site.groups)
        layer = dataclasses.replace(layer, factors=pair)
    if combination.masks == "impact" and layer.positions is not None:
        layer = dataclasses.replace(layer, positions=impact_positions(site, layer.keep))
    return layer


def _options(site: SiteAnalysis, combination: Combination) -> tuple[Option, ...]:
    """The options that a combination may use, with the damage that they do there."""
    families = {"unmasked": (None,), "impact": (None, "impact")}.get(combination.masks)
    by_masks = {(each.family, each.keep): each.damage for each in site.options if each.rank is None}
    found = []
    for option in site.options:
        if families is not None and option.family not in families:
            continue
        by_mask = by_masks.get((option.family, option.keep), 0.0) if option.family else 0.0
        by_rank = option.damage - by_mask
        if option.rank and combination.factors == "plain":
            by_rank *= _plain_error(site, option.rank, option.order)
        if option.family and combination.masks == "impact":
            by_mask *= _impact_damage(site, option.keep)
        found.append(dataclasses.replace(option, damage=by_rank + by_mask))
    return tuple(found)


def _impact_damage(site: SiteAnalysis, keep: float) -> float:
    """Predicted damage of the positions of the largest impact over that of the chosen ones."""
    own = site.position_damage(site.positions("impact", keep)) or 0.0
    return (site.position_damage(impact_positions(site, keep)) or 0.0) / max(own, 1e-12)


@functools.cache
def _plain_error(site: SiteAnalysis, rank: int, order: str) -> float:
    """Response error of the plain pair over that of the whitened and refitted one."""
    pairs = plain_factors(site.kernel, rank, order, site.site.groups), site.factors(rank, order)
    plain, aware = (_response_error(site, reconstruct(p, order, site.site.groups)) for p in pairs)
    # The plain pair does not put the change of the mean response into the bias.
    change = _by_group(site, site.kernel - reconstruct(pairs[0], order, site.site.groups))
    shift = np.einsum("gdn,gd->gn", change, np.asarray(site.mean, np.float64))
    return (plain + float(np.square(shift).sum())) / max(aware, 1e-12)


def _response_error(site: SiteAnalysis, kernel: np.ndarray) -> float:
    """Variance of the change of the responses, over the layer's patches."""
    change = _by_group(site, site.kernel - kernel)
    return float(np.einsum("gdn,gde,gen->", change, site.covariance, change, optimize=True))


def _by_group(site: SiteAnalysis, kernel: np.ndarray) -> np.ndarray:
    """[g, d, filters of the group]."""
    taps = int(np.prod(kernel.shape[:3]))
    return np.asarray(kernel, np.float64).reshape(taps, site.site.groups, -1).swapaxes(0, 1)
