"""Why a layer got its rank and mask: what its next options would have saved, and have cost."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from espace_tf.records.analysis import Analysis, SiteAnalysis
from espace_tf.records.layer_plan import LayerPlan
from espace_tf.records.option import Option


@dataclass(frozen=True, kw_only=True)
class Alternative:
    """Another option of a layer, beside the one that a plan chose.

    Args:
        option: rank and mask.
        ms: predicted milliseconds of the layer less those of the chosen option.
        damage: predicted loss less that of the chosen option, in the unit of `LayerPlan.damage`.
    """

    option: Option
    ms: float
    damage: float

    @property
    def words(self) -> str:
        """The option, for a reader.

        Example:
            >>> option = Option(rank=8, family="rows", keep=0.5, ms=0.1)
            >>> Alternative(option=option, ms=-0.2, damage=0.01).words
            'rank 8, rows 50%'
        """
        rank = [] if self.option.rank is None else [f"rank {self.option.rank}"]
        mask = (
            [] if self.option.family is None else [f"{self.option.family} {self.option.keep:.0%}"]
        )
        return ", ".join([*rank, *mask]) or "as it is"


@dataclass(frozen=True, kw_only=True)
class Alternatives:
    """The two options between which a layer's own stands; None: there is none on that side.

    Args:
        faster: of all faster options the one that costs least loss for each millisecond it saves.
        gentler: of all that lose less, the one that costs least time for the loss it saves.
    """

    faster: Alternative | None = None
    gentler: Alternative | None = None


def alternatives(made: Any, analysis: Analysis) -> dict[str, Alternatives]:
    """The next options of every layer that was analysed, by path.

    A plan takes an option only where the loss that it costs for each millisecond is less than
    elsewhere: the next faster one was too dear, the next gentler one saved too little.

    Args:
        made: the Plan.
        analysis: what it was made from.
    """
    known = {path: site for path, site in analysis.sites.items() if path in made.times}
    return {path: _of_layer(made, site) for path, site in known.items() if site.options}


def _of_layer(made: Any, site: SiteAnalysis) -> Alternatives:
    path = site.site.path
    chosen = _chosen(made.layers.get(path), site.options)
    if chosen is None:
        return Alternatives()
    before, after = made.times[path]
    dense = site.options[0]
    # The plan's milliseconds are those of the analysis, scaled to add up to the whole network's.
    scale = before / dense.ms if chosen.is_dense else after / chosen.ms

    def beside(option: Option) -> Alternative:
        ms = before if option.is_dense else scale * option.ms
        damage = max(option.damage, 0.0) - max(chosen.damage, 0.0)  # as the planner sees them
        return Alternative(option=option, ms=ms - after, damage=damage)

    others = [beside(option) for option in site.options if option is not chosen]
    faster = [each for each in others if each.ms < 0]
    gentler = [each for each in others if each.damage < 0 < each.ms]
    return Alternatives(
        faster=min(faster, key=lambda each: (each.damage / -each.ms, each.ms), default=None),
        gentler=min(gentler, key=lambda each: (each.ms / -each.damage, each.damage), default=None),
    )


def _chosen(layer: LayerPlan | None, options: Sequence[Option]) -> Option | None:
    """The option that a plan's layer is; None: none of these, as of a plan that was edited."""
    if layer is None:
        return options[0]
    alike = [
        option
        for option in options
        if (option.rank, option.family) == (layer.rank, layer.family)
        and (option.rank is None or option.order == layer.order)
    ]
    return min(alike, key=lambda each: abs(each.keep - (layer.keep or 1.0)), default=None)
