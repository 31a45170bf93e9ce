"""The faithful profile: ranks by energy, plain factors, impact masks of one common keep."""

from collections.abc import Mapping

from espace_tf.numerics.factors import energy_rank
from espace_tf.planning.choices import Choice, Clock, Found, inside_mask, predicted
from espace_tf.records.analysis import Analysis, SiteAnalysis
from espace_tf.records.layer_plan import LayerPlan
from espace_tf.records.option import Option
from espace_tf.records.site import no_mask

LEAST_KEEP = 0.05  # the smallest common keep
_BISECTIONS = 14


def choose_faithful(
    analysis: Analysis, clock: Clock, budget: float, earlier: Mapping[str, LayerPlan]
) -> Found:
    """The faithful profile: ranks by energy, then the largest common keep within the budget."""

    def at(keep: float) -> tuple[dict[str, Choice], dict[str, str]]:
        choices, reasons = {}, {}
        for path, site in analysis.sites.items():
            chosen = _faithful_layer(site, clock, ranks[path], keep, earlier.get(path))
            if isinstance(chosen, str):
                reasons[path] = chosen
            else:
                choices[path] = chosen
        return choices, reasons

    def fits(choices: Mapping[str, Choice]) -> bool:
        return clock.total(choices) <= budget * (1 + 1e-12)

    ranks = {path: _energy_rank(site) for path, site in analysis.sites.items()}
    found = at(1.0)
    if fits(found[0]):
        return *found, True
    low, high, found = LEAST_KEEP, 1.0, at(LEAST_KEEP)
    if not fits(found[0]):
        return *found, False
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        tried = at(middle)
        if fits(tried[0]):
            low, found = middle, tried
        else:
            high = middle
    return *found, True


def _energy_rank(site: SiteAnalysis) -> int | None:
    """The rank that keeps config.energy, if a pair of it needs fewer operations than the layer."""
    if site.site.kind != "conv":
        return None
    values = site.decomposition("vertical").singular_values
    rank = energy_rank(values, site.config.energy)
    return rank if rank < site.site.break_even_rank("vertical") else None


def _faithful_layer(
    site: SiteAnalysis, clock: Clock, rank: int | None, keep: float, before: LayerPlan | None
) -> Choice | str:
    """The pair of this rank and a mask of this keep, each only if it is faster; or why nothing."""
    path = site.site.path
    if before is not None and before.positions is not None:
        keep = min(keep, before.keep or 1.0)
    best = Choice(option=Option(ms=site.dense_ms), ms=clock.dense_ms[path])
    if rank is not None:
        paired = predicted(site, clock, rank, plain=True)
        best = paired if paired.ms < best.ms else best
    unmaskable = no_mask(site.site, site.config.min_map)
    if keep < 1 and unmaskable is None:
        family = "grid" if site.impact is None else "impact"
        positions = inside_mask(site, site.positions(family, keep), before)
        masked = predicted(
            *(site, clock, best.option.rank),
            **{"mask": (family, positions), "keep": keep, "plain": True},
        )
        best = masked if masked.ms < best.ms else best
    if not best.option.is_dense:
        return best
    slow = "would get slower" if rank else "no rank that keeps its energy needs fewer operations"
    return f"{slow}; {unmaskable}" if keep < 1 and unmaskable else slow
