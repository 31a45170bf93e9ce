"""plan(): the plan that reaches a speed at least loss.

Imports neither TensorFlow nor Keras: a saved Analysis can be planned on any machine.
"""

import math
from collections.abc import Mapping, Sequence

from espace_tf.checks import check_number, check_speedup, warn
from espace_tf.config import EspaceWarning
from espace_tf.numerics.factors import plain_factors
from espace_tf.numerics.knapsack import allocate, cheapest
from espace_tf.planning.choices import Choice, Clock, Found, inside_mask, inside_options
from espace_tf.planning.faithful import choose_faithful
from espace_tf.records.analysis import Analysis, SiteAnalysis
from espace_tf.records.layer_plan import LayerPlan
from espace_tf.records.option import Option
from espace_tf.records.plan import Plan
from espace_tf.records.site import no_mask

# An option must take at most this share of the layer's time: less is within the error of measuring.
_WORTH = 0.95
# Nats for making every layer infinitely fast: far below any damage that counts.
_TIE = 1e-9
# Units of loss that a network e times as fast may cost, at the margin: what is dearer spends the
# answers for a few per cent of time. GoogLeNet at four times the speed pays about .4.
DEAREST = 2.0
# The smallest loss that may be asked for: less is rounding.
LEAST_LOSS = 1e-9


class UnreachableSpeedWarning(EspaceWarning):
    """No plan, or no compressed model, reaches the speed that was asked for."""


def plan(
    analysis: Analysis,
    *,
    speedup: float | None = None,
    max_loss_increase: float | None = None,
    time_scale: Mapping[str, float] | None = None,
    damage_scale: float = 1.0,
    previous: Plan | None = None,
) -> Plan:
    """The plan of a speed at the least predicted loss, or the fastest one within a loss.

    In the default profile each layer gets one of its measured options (orientation, rank, mask,
    keep) such that the total damage is least and the total time at most model_ms / speedup: a
    multiple-choice knapsack, solved exactly; of equal damages the one that changes least. What is
    not in a touchable convolution takes the time it takes. No option is taken whose time is dearer
    than it is worth: the speed is missed then, and a warning says so. With max_loss_increase the
    knapsack is the other way round: the least time at a total damage of at most that.

    In the faithful profile every layer gets the rank of config.energy with plain factors (LRDKT
    2018), vertical first, and all impact masks the one keep, found by bisection, that reaches the
    speed (Figurnov et al. 2016).

    Args:
        analysis: what `analyze` returned or Analysis.load read.
        speedup: time before over time after, above 1; None: max_loss_increase decides. The faithful
            profile takes None alone too: energy ranks only, no masks.
        max_loss_increase: what the predicted damages may add up to, above 0, in units of loss per
            sample; needs an analysis with data, and the default profile.
        time_scale: path -> what to multiply the predicted times of this layer's options by, as
            learned from a measurement of the whole network; 1 for layers not named.
        damage_scale: what to multiply all predicted damages by, as learned from measured losses.
        previous: the plan of an earlier stage; a layer masked there gets a mask inside that one.

    Returns:
        The plan, with factors and positions. If no plan reaches the speed, the fastest one that is
        worth its damage, with an UnreachableSpeedWarning that names both numbers.

    Raises:
        TypeError: not an Analysis.
        ValueError: an argument out of its range.

    Example:
        >>> plan(Analysis.load("analysis.json"), speedup=2.0).save("plan.json")
    """
    faithful = _check_arguments(analysis, speedup, max_loss_increase, time_scale)
    check_number(damage_scale, "damage_scale", 1e-6, 1e6)
    if not isinstance(previous, Plan | None):
        raise TypeError(f"previous must be a Plan or None. Received: {previous!r}")
    clock = Clock.of(analysis, time_scale or {})
    budget = math.inf if speedup is None else clock.model_ms / speedup - clock.other_ms
    earlier = previous.layers if previous is not None else {}
    if faithful:
        found = choose_faithful(analysis, clock, budget, earlier)
    else:
        loss = math.inf if max_loss_increase is None else max_loss_increase / damage_scale
        dearest = math.inf if analysis.target == "no data" else DEAREST / damage_scale
        found = _choose_options(analysis, clock, budget, loss, dearest, earlier)
    choices, reasons, reached = found
    made = build(analysis, speedup, clock, choices, reasons)
    if not reached:
        warn(
            f"speedup {speedup:g} was asked for, but the fastest plan that is worth the loss "
            f"it costs is predicted to reach only {made.predicted_speedup:.2f}; "
            f"{clock.other_ms / clock.model_ms:.0%} of the time is spent outside the convolutions "
            f"that may be touched, so that at most {clock.most(analysis):.2f} is possible",
            UnreachableSpeedWarning,
        )
    return made


def _check_arguments(
    analysis: Analysis,
    speedup: float | None,
    max_loss_increase: float | None,
    time_scale: Mapping[str, float] | None,
) -> bool:
    """Whether the profile is the faithful one; raises for arguments that make no sense."""
    if not isinstance(analysis, Analysis):
        raise TypeError(
            "analysis must be what analyze(model, data) returned. Received: "
            f"{type(analysis).__name__}"
        )
    faithful = analysis.config.profile == "faithful"
    if max_loss_increase is not None:
        check_number(max_loss_increase, "max_loss_increase", LEAST_LOSS)
        if faithful or analysis.target == "no data":
            raise ValueError(
                "max_loss_increase needs an analysis with data, of the default profile: only there "
                f"damages are losses. Received: profile {analysis.config.profile!r}, gradients of "
                f"{analysis.target}; give speedup instead"
            )
    elif speedup is not None or not faithful:
        check_speedup(speedup)
    if not isinstance(time_scale, Mapping | None):
        raise TypeError(f"time_scale must be a dictionary by path. Received: {time_scale!r}")
    for path, scale in (time_scale or {}).items():
        if path not in analysis.sites:
            raise ValueError(
                "time_scale must name layers of the analysis: "
                f"{', '.join(analysis.sites) or 'it has none'}. Received: {path!r}"
            )
        check_number(scale, f"time_scale[{path!r}]", 1e-3, 1e3)
    return faithful


def _choose_options(
    analysis: Analysis,
    clock: Clock,
    budget: float,
    loss: float,
    dearest: float,
    earlier: Mapping[str, LayerPlan],
) -> Found:
    """The default profile: the knapsack over all measured options.

    Args:
        budget: milliseconds for the touchable convolutions.
        loss: finite: the most that all damages may add up to, and the least time is looked for.
        dearest: what an e-fold of speed may cost.
    """
    offered, reasons = {}, {}
    for path, site in analysis.sites.items():
        usable = _usable_options(site, clock)
        offered[path] = inside_options(usable, earlier.get(path))
        if len(usable) == 1:
            reasons[path] = _why_none(site, clock)
    costs = [[clock.of_option(path, each) for each in offered[path]] for path in offered]
    damages = [
        [max(option.damage, 0.0) + _tie(clock, path, option) for option in options]
        for path, options in offered.items()
    ]
    worth = _worthwhile_ms(costs, damages, clock.other_ms, dearest)
    reached = worth <= budget or loss < math.inf
    picked = None
    if loss < math.inf:
        picked = allocate(damages, costs, loss)
        taken = sum(each[index] for each, index in zip(costs, picked or (), strict=False))
        picked = picked if picked is None or taken >= worth else None
    if picked is None:
        picked = allocate(costs, damages, max(budget if loss == math.inf else 0.0, worth))
    if picked is None:  # a hair's breadth of rounding
        picked = cheapest(costs, damages)
    if analysis.fused_ms:
        picked = _something(list(offered.values()), picked)
    choices = {}
    for path, index in zip(offered, picked, strict=True):
        option, site = offered[path][index], analysis.sites[path]
        if option.is_dense:
            reasons.setdefault(path, "not needed for this speed")
            continue
        positions = None
        if option.family is not None:
            positions = inside_mask(
                site, site.positions(option.family, option.keep), earlier.get(path)
            )
        choices[path] = Choice(option=option, ms=clock.of_option(path, option), positions=positions)
    return choices, reasons, reached


def _worthwhile_ms(
    costs: Sequence[Sequence[float]],
    damages: Sequence[Sequence[float]],
    rest: float,
    dearest: float,
) -> float:
    """The least time that is worth its damage, in the layers together.

    At time T of the whole network one millisecond may cost dearest / T. Each layer takes the option
    of least damage + price * time; a faster network makes time dearer, until nothing changes.
    """
    if dearest == math.inf:
        return sum(map(min, costs))
    time = rest + sum(each[0] for each in costs)
    while time > 0:
        price = dearest / time
        found = rest + sum(
            min((damage + price * cost, cost) for cost, damage in zip(*pair, strict=True))[1]
            for pair in zip(costs, damages, strict=True)
        )
        if found >= time * (1 - 1e-9):
            break
        time = found
    return max(time - rest, sum(map(min, costs)))


def _something(offered: Sequence[Sequence[Option]], picked: list[int]) -> list[int]:
    """The choice, or where every layer would stay as it is, the option that damages least.

    A model runs in fused graphs only once a layer of it is compressed.
    """
    changes = [
        (option.damage, layer, index)
        for layer, options in enumerate(offered)
        for index, option in enumerate(options)
        if not option.is_dense
    ]
    if not changes or any(not o[i].is_dense for o, i in zip(offered, picked, strict=True)):
        return picked
    _, layer, index = min(changes)
    return [index if each == layer else i for each, i in enumerate(picked)]


def _tie(clock: Clock, path: str, option: Option) -> float:
    """What decides between options of equal damage: to change no more than the speed needs.

    A network that hardly depends on its input (random weights, a saturated softmax) loses nothing
    whatever is done to it, and would always get the fastest plan.
    """
    dense = clock.dense_ms[path]
    if dense <= 0:
        return 0.0
    saved = 1 - clock.of_option(path, option) / dense
    return _TIE * saved**2 * dense / clock.model_ms


def _usable_options(site: SiteAnalysis, clock: Clock) -> list[Option]:
    """The layer as it is, and every option that is clearly faster than that."""
    path, least = site.site.path, site.config.min_map
    dense = [option for option in site.options if option.is_dense][:1]
    masked = no_mask(site.site, least) is None
    faster = [
        option
        for option in site.options
        if not option.is_dense
        and (masked or option.family is None)
        and clock.of_option(path, option) < _WORTH * clock.dense_ms[path]
        and math.isfinite(option.damage)
    ]
    return [*(dense or [Option(ms=site.dense_ms)]), *faster]


def _why_none(site: SiteAnalysis, clock: Clock) -> str:
    path = site.site.path
    times = [clock.of_option(path, option) for option in site.options if not option.is_dense]
    if not times:
        return no_mask(site.site, site.config.min_map) or "no option was found for it"
    return (
        f"would not get faster: {clock.dense_ms[path]:.3f} ms as it is, "
        f"{min(times):.3f} ms by its fastest option"
    )


def build(
    analysis: Analysis,
    speedup: float | None,
    clock: Clock,
    choices: Mapping[str, Choice],
    reasons: Mapping[str, str],
) -> Plan:
    """The plan in which every layer gets its choice.

    Args:
        analysis: what the factors are made from.
        speedup: what was asked for, if anything.
        clock: of the analysis.
        choices: by path; other layers stay as they are.
        reasons: why those do, by path.
    """
    times = {
        path: (dense, choices[path].ms if path in choices else dense)
        for path, dense in clock.dense_ms.items()
    }
    return Plan(
        layers={path: _layer_plan(analysis.sites[path], each) for path, each in choices.items()},
        skipped={**analysis.skipped, **{p: r for p, r in reasons.items() if p not in choices}},
        fingerprint=analysis.fingerprint,
        profile=analysis.config.profile,
        speedup=speedup,
        dense_ms=clock.model_ms,
        predicted_ms=clock.other_ms + sum(after for _, after in times.values()),
        times=times,
    )


def _layer_plan(site: SiteAnalysis, choice: Choice) -> LayerPlan:
    option = choice.option
    factors = None
    if option.rank is not None:
        factors = (
            plain_factors(site.kernel, option.rank, option.order, site.site.groups)
            if choice.plain
            else site.factors(option.rank, option.order)
        )
        site.release()
    return LayerPlan(
        rank=option.rank,
        order=option.order,
        positions=choice.positions,
        factors=factors,
        family=option.family,
        output_size=None if choice.positions is None else site.site.output_sizes[0],
        damage=None if choice.plain else option.damage,
        note=None if choice.positions is not None else no_mask(site.site, site.config.min_map),
    )
