"""Damages of options in units of loss: what was predicted, scaled by what changes cost."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from espace_tf.analysis.result_cache import Arrays, ResultCache
from espace_tf.analysis.trials import Change, WhatIf
from espace_tf.numerics.factors import reconstruct
from espace_tf.numerics.knapsack import allocate, cheapest
from espace_tf.records.analysis import SiteAnalysis
from espace_tf.records.option import Option
from espace_tf.records.site import Site

# A scale found from a loss increase near zero says little: none is taken below this share of the
# median.
_LEAST_SCALE = 0.1
# Nor from a predicted error below this share of the median.
_LEAST_ERROR = 1e-3
# What all layers lose together is found for the plan that leaves the convolutions this share of
# their time, which is made anew with what was found so many times.
_TOGETHER_SHARE = 1 / 3
_TOGETHER_ROUNDS = 3


def changeable(sites: dict[str, SiteAnalysis]) -> list[Site]:
    """The sites that have an option besides staying as they are."""
    return [site.site for site in sites.values() if len(site.options) > 1]


def guess(sites: dict[str, SiteAnalysis]) -> None:
    """Without data: the tail energy of the kernel, and the share of positions not computed."""
    for site in sites.values():
        site.options = tuple(
            dataclasses.replace(option, damage=option.error + (1.0 - option.keep))
            for option in site.options
        )


def calibrate(
    sites: dict[str, SiteAnalysis],
    what_if: Callable[[], WhatIf],
    cache: ResultCache,
    advance: Callable[[int], None],
) -> None:
    """Gives every option its damage in units of loss.

    What one rank and one mask of every layer would lose by itself, as the curvature of the loss
    tells it (see `WhatIf.alone`), over what was predicted scales the layer's other ranks and masks.
    Losses of single layers do not add up, though. Errors of truncated ranks have no mean (the bias
    is corrected) and hardly any correlation between layers; masks of one network all blur alike, so
    that their errors add up before they are squared. Hence the ranks of a whole plan are tried
    together, and its masks: what either lose more than in sum scales all of its kind.

    Args:
        sites: by path, with measured times; their probes and options are set.
        what_if: gives a WhatIf of all `changeable` sites.
        cache: where losses are kept.
        advance: told of each layer that is done.
    """
    tried = [sites[site.path] for site in changeable(sites)]
    found = cache.get("probes", lambda: _probes(tried, what_if(), advance))
    for site in tried:
        for kind in ("rank", "mask"):
            pairs = found.get(f"{site.site.path}|{kind}", np.empty((0, 2)))
            setattr(site, f"{kind}_probes", tuple(map(tuple, pairs.tolist())))
    rank_scales = _scales({site.site.path: site.rank_probes for site in tried})
    mask_scales = _scales({site.site.path: site.mask_probes for site in tried})
    parts = {
        site.site.path: np.array(
            [
                (
                    rank_scales.get(site.site.path, 0.0) * option.error,
                    mask_scales.get(site.site.path, 0.0) * _mask_error(site, option),
                )
                for option in site.options
            ]
        )
        for site in tried
    }
    timed = cache.of_this_machine()  # which plan is tried depends on times
    together = timed.get("together", lambda: {"scales": _together(tried, parts, what_if())})
    for site in tried:
        losses = parts[site.site.path] @ together["scales"]
        site.options = tuple(
            dataclasses.replace(option, damage=float(loss))
            for option, loss in zip(site.options, losses, strict=True)
        )


def _probes(
    sites: Sequence[SiteAnalysis], what_if: WhatIf, advance: Callable[[int], None]
) -> Arrays:
    """[1, 2] of (predicted error, loss) of a middle rank and of a middle mask, by "path|kind"."""
    errors, changes = {}, []
    for site in sites:
        ranks = [option for option in site.options if option.rank and not option.family]
        if ranks:
            option = ranks[len(ranks) // 3]
            errors[f"{site.site.path}|rank"] = option.error
            changes.append(_rank_change(site, option))
        masked = [option for option in site.options if option.family and not option.rank]
        if masked:
            option = min(masked, key=lambda each: abs(each.keep - 0.5))
            errors[f"{site.site.path}|mask"] = _mask_error(site, option)
            changes.append(_mask_change(site, option))
        site.release()
        advance(1)
    losses = what_if.alone(changes)
    pairs = zip(errors.items(), losses, strict=True)
    return {name: np.array([[error, loss]]) for (name, error), loss in pairs}


def _rank_change(site: SiteAnalysis, option: Option) -> Change:
    factors = site.factors(option.rank, option.order)
    shift = None
    if factors.bias is not None:
        shift = factors.bias - (0 if site.bias is None else site.bias)
    kernel = reconstruct(factors, option.order, site.site.groups)
    return Change(site=site.site, kernel=kernel, shift=shift)


def _mask_change(site: SiteAnalysis, option: Option) -> Change:
    return Change(site=site.site, positions=site.positions(option.family, option.keep))


def _mask_error(site: SiteAnalysis, option: Option) -> float:
    if not option.family:
        return 0.0
    return site.position_damage(site.positions(option.family, option.keep)) or 0.0


def _scales(probes: dict[str, tuple[tuple[float, float], ...]]) -> dict[str, float]:
    """Loss per predicted error of each layer; the median's where its own says nothing.

    That is where the error is next to none beside other layers': the quotient is noise. No scale
    is much below the median: the loss of a single layer may be none by chance.
    """
    sums = {path: np.sum(pairs, axis=0) for path, pairs in probes.items() if pairs}
    errors = [error for error, _ in sums.values() if error > 0]
    least = _LEAST_ERROR * float(np.median(errors)) if errors else np.inf
    raw = {path: loss / error for path, (error, loss) in sums.items() if error > least}
    positive = [scale for scale in raw.values() if scale > 0]
    usual = float(np.median(positive)) if positive else 0.0
    return {path: max(float(raw.get(path, usual)), _LEAST_SCALE * usual) for path in sums}


def _together(
    sites: list[SiteAnalysis], parts: dict[str, np.ndarray], what_if: WhatIf
) -> np.ndarray:
    """[2]: what all ranks, and all masks, of a plan lose at once over the sum of what each loses.

    Args:
        sites: the layers.
        parts: by path, [options, 2], what the rank and what the mask of each option lose alone.
        what_if: of these sites.
    """
    scales = np.ones(2)
    times = [[option.ms for option in site.options] for site in sites]
    budget = _TOGETHER_SHARE * sum(site.dense_ms for site in sites)
    before = None
    for _ in range(_TOGETHER_ROUNDS):
        losses = [parts[site.site.path] @ scales for site in sites]
        picked = allocate(times, losses, budget) or cheapest(times, losses)
        if picked == before:
            break
        before = picked
        chosen = [(site, site.options[i]) for site, i in zip(sites, picked, strict=True)]
        alone = sum(
            (parts[site.site.path][i] for site, i in zip(sites, picked, strict=True)), np.zeros(2)
        )
        for kind, changes in enumerate(_changes(chosen)):
            if alone[kind] > 0:
                scales[kind] = max(what_if.damage(*changes) / alone[kind], _LEAST_SCALE)
    return scales


def _changes(
    chosen: Iterable[tuple[SiteAnalysis, Option]],
) -> tuple[list[Change], list[Change]]:
    """All ranks, and all masks, of these options."""
    ranks, masks = [], []
    for site, option in chosen:
        if option.rank:
            ranks.append(_rank_change(site, option))
            site.release()
        if option.family:
            masks.append(_mask_change(site, option))
    return ranks, masks
