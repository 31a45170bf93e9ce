"""The options of a convolution: which ranks and masks are offered, and what time they take."""

import dataclasses
import time
from collections.abc import Iterable

import keras
import numpy as np

from espace_tf.config import EspaceConfig
from espace_tf.keras_layers import MaskedConv2D
from espace_tf.numerics.factors import ORDERS
from espace_tf.records.analysis import SiteAnalysis
from espace_tf.records.option import Option, candidate_ranks, interpolate_ms
from espace_tf.records.site import Site, no_mask
from espace_tf.timing import measure, runtimes
from espace_tf.timing.layer_times import LayerTimes
from espace_tf.timing.steps import step_times

# Shares of the break-even rank that are offered, and of them those that are timed.
FRACTIONS = (0.03, 0.06, 0.1, 0.17, 0.25, 0.33, 0.42, 0.5, 0.6, 0.75)
# Ranks (by index into the offered ones) that are offered with a mask, too.
_MASKED_RANKS = (0, 1, 2, 4, 6)
# Each option is called up to so many times, for at most so many seconds in all.
_REPEATS = 15
_SECONDS = 0.5


def offered(analysis: SiteAnalysis) -> list[Option]:
    """The options of a site with their error and multiply-accumulates; times come later.

    The layer as it is; pairs in the order that has the smaller predicted error at equal cost, at
    shares of the break-even rank; each mask family at each keep, alone and with some ranks. Rows go
    with vertical pairs and columns with horizontal ones: both halves shrink with the mask then.
    """
    site, config = analysis.site, analysis.config
    found = [Option(ms=0.0, macs=site.macs())]
    order, ranks, errors = _ranks(analysis)
    for rank in ranks:
        macs = site.macs(rank, order)
        found.append(Option(rank=rank, order=order, ms=0.0, error=float(errors[rank]), macs=macs))
    if no_mask(site, config.min_map):
        return found
    masked_ranks = [ranks[index] for index in _MASKED_RANKS if index < len(ranks)]
    for family in _families(analysis):
        for keep in config.keeps:
            positions = analysis.positions(family, keep)
            common = {"family": family, "keep": keep, "ms": 0.0}
            found.append(Option(macs=site.macs(positions=positions), **common))
            if family == ("columns" if order == "vertical" else "rows"):
                continue
            for rank in masked_ranks:
                pair = {"rank": rank, "order": order, "error": float(errors[rank])}
                found.append(Option(macs=site.macs(rank, order, positions), **pair, **common))
    return found


def _families(analysis: SiteAnalysis) -> tuple[str, ...]:
    families = analysis.config.mask_families
    return tuple(each for each in families if analysis.impact is not None or each != "impact")


def _ranks(analysis: SiteAnalysis) -> tuple[str, list[int], dict[int, float]]:
    """The better order of the pair, its ranks, and the error of each."""
    site, found = analysis.site, {}
    for order in ORDERS if max(site.kernel_size) > 1 else ORDERS[:1]:
        ranks = candidate_ranks(site.break_even_rank(order), site.full_rank(order), FRACTIONS)
        errors = np.full(1, np.inf)
        if ranks:
            errors = analysis.decomposition(order).errors_to(ranks[-1])[ranks]
        found[order] = (float(errors.mean()), ranks, errors)
    order = min(found, key=lambda name: found[name][0])
    _, ranks, errors = found[order]
    analysis.release(other_than=order)
    return order, ranks, dict(zip(ranks, errors, strict=False))


def timed(
    analysis: SiteAnalysis,
    options: list[Option],
    known: LayerTimes,
    seconds: float,
    *,
    fused: bool = False,
) -> list[Option]:
    """The options with their milliseconds.

    A few are measured, in turns with the untouched layer; the others lie on the lines between those
    of their kind, over multiply-accumulates; `measured` tells which is which. As steps of a fused
    graph every third rank is; with masks the least and the largest rank, and of these, and of masks
    alone, the largest and the smallest keep of every family: time is a line over ranks, too. As
    single operations, each of which has to be built: the least, the middle and the largest rank; of
    every kind of mask (alone, or with pairs, per family) the largest and the smallest keep.

    Args:
        analysis: the site.
        options: from `offered`.
        known: times of layers and options of equal shape, which are not measured; added to.
        seconds: for building and calling; every option is called even if they are over.
        fused: whether the layer will be part of a fused graph.
    """
    kinds: dict[tuple, list[Option]] = {}
    for option in options[1:]:
        pair = option.rank if fused and option.family else option.rank is None
        kinds.setdefault((pair, option.family), []).append(option)
    chosen = {kind: _sampled(members, fused) for kind, members in kinds.items()}
    between = _between(kinds) if fused else {}
    wanted = [option for kind in chosen if kind not in between for option in chosen[kind]]
    times = _measure(analysis, [options[0], *wanted], known, seconds, fused)
    points_ms = dict(times)
    for kind, ends in between.items():
        for option in chosen[kind]:
            like = [each for end in ends for each in chosen[end] if each.keep == option.keep]
            macs, ms = [each.macs for each in like], [times[each] for each in like]
            points_ms[option] = float(interpolate_ms([option.macs], macs, ms)[0])
    found = [dataclasses.replace(options[0], ms=times[options[0]], measured=True)]
    for kind, members in kinds.items():
        points = chosen[kind]
        lines = interpolate_ms(
            [option.macs for option in members],
            [option.macs for option in points],
            [points_ms[option] for option in points],
        )
        for option, ms in zip(members, lines, strict=True):
            measured = option in times
            ms = times[option] if measured else float(ms)
            found.append(dataclasses.replace(option, ms=ms, measured=measured))
    return found


def _between(kinds: Iterable[tuple]) -> dict[tuple, list[tuple]]:
    """Kinds of masked pairs whose rank is neither the least nor the largest, with those two.

    Args:
        kinds: (rank, family), None where there is none.
    """
    ranks: dict[str, list[int]] = {}
    for rank, family in kinds:
        if rank is not None and family is not None:
            ranks.setdefault(family, []).append(rank)
    return {
        (rank, family): [(min(found), family), (max(found), family)]
        for family, found in ranks.items()
        for rank in found
        if min(found) < rank < max(found)
    }


def _sampled(options: list[Option], fused: bool) -> list[Option]:
    """The cheapest, the middle (or every third) and the dearest option; of masks no middle one."""
    ordered = sorted(options, key=lambda option: option.macs)
    middle = []
    if options[0].family is None:
        middle = ordered[::3] if fused else [ordered[len(ordered) // 2]]
    return list(dict.fromkeys([ordered[0], *middle, ordered[-1]]))


def _measure(
    analysis: SiteAnalysis, options: list[Option], known: LayerTimes, seconds: float, fused: bool
) -> dict[Option, float]:
    """Milliseconds of these options, the first one being the layer as it is, calling aside."""
    site, config = analysis.site, analysis.config
    dense, *others = options
    changes = {option: _change(analysis, option) for option in others}
    totals = dict.fromkeys(options, 0.0)
    times_of = _fused_times if fused else _single_times
    for size in site.input_sizes:
        layer = _signature(site, size, config, fused)
        missing = [each for each in others if known.get(layer, changes[each]) is None]
        if missing or known.get(layer) is None:
            share = seconds / len(site.input_sizes)
            first, *times = times_of(analysis, size, [dense, *missing], share)
            pairs = zip(missing, times, strict=True)
            known.add(layer, first, {changes[option]: ms / first for option, ms in pairs})
        totals[dense] += known.get(layer)
        for option in others:
            totals[option] += known.get(layer, changes[option])
    return totals


def _fused_times(
    analysis: SiteAnalysis, size: tuple[int, int], options: list[Option], seconds: float
) -> list[float]:
    """Milliseconds of options on one input, as steps of a fused graph."""
    config = analysis.config
    return step_times(
        [_layer(analysis, option, MaskedConv2D) for option in options],
        (config.batch_size, *size, analysis.site.in_channels),
        threads=runtimes.find(config.runtime).step_threads(config.threads),
        seconds=min(seconds, _SECONDS * len(options)),
    )


def _single_times(
    analysis: SiteAnalysis, size: tuple[int, int], options: list[Option], seconds: float
) -> list[float]:
    """The same as single operations, less what a call costs that does nothing."""
    end = time.perf_counter() + seconds
    config = analysis.config
    shape = (config.batch_size, *size, analysis.site.in_channels)
    runtime = runtimes.find(config.runtime)
    calls = [
        runtime.layer(_layer(analysis, option, keras.layers.Conv2D), shape, config.threads)
        for option in options
    ]
    calls.append(runtimes.nothing(config.runtime, config.threads))
    left = min(end - time.perf_counter(), _SECONDS * len(calls))
    *times, overhead = measure.alternate(
        calls, repeats=_REPEATS, seconds=max(left, 0.0), least=1 if left <= 0 else 3
    )
    return [max(ms - overhead, 0.1 * ms) for ms in times]


def _layer(analysis: SiteAnalysis, option: Option, dense: type) -> keras.layers.Layer:
    """The layer that an option stands for, not built; `dense` where it is the layer as it is."""
    masked = option.family is not None
    return measure.single_layer(
        analysis.site,
        rank=option.rank,
        order=option.order,
        positions=analysis.positions(option.family, option.keep) if masked else None,
        dense=dense,
    )


def _signature(site: Site, size: tuple[int, int], config: EspaceConfig, fused: bool) -> str:
    """What decides the time of a layer, with where and how it is called."""
    shape = (size, site.kernel_size, site.strides, site.dilation_rate, site.padding, site.groups)
    where = (config.runtime, config.batch_size, config.threads, fused)
    return repr((shape, site.in_channels, site.filters, site.policy, where))


def _change(analysis: SiteAnalysis, option: Option) -> str:
    """What decides the time of an option: of a mask how many positions, not which ones."""
    positions = None
    if option.family is not None:
        positions = len(analysis.positions(option.family, option.keep))
    return repr((option.rank, option.rank and option.order, option.family, option.keep, positions))
