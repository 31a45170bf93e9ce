"""What a planner works with: times that add up, choices per layer, masks inside earlier masks."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from espace_tf.records.analysis import Analysis, SiteAnalysis
from espace_tf.records.layer_plan import LayerPlan
from espace_tf.records.option import Option, interpolate_ms


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What one layer gets.

    Args:
        option: rank, order, mask family and keep.
        ms: the layer's predicted milliseconds, on the scale of the whole model's.
        positions: kept output positions of the mask.
        plain: whether the factors are those of the plain SVD.
    """

    option: Option
    ms: float
    positions: np.ndarray | None = None
    plain: bool = False


# Choices by path, reasons of the layers left alone by path, whether the budget was met.
Found = tuple[dict[str, Choice], dict[str, str], bool]


@dataclass(frozen=True)
class Clock:
    """Milliseconds that add up to the whole model's.

    Layers measured one by one take more or less in sum than inside the whole network, and the
    machine is not always equally fast: all are scaled to what they take there. Where compressed
    networks run in fused graphs, the whole network is the dense one in fused graphs, of which is
    known what is not spent in touchable convolutions; model_ms still is the model's that came in.
    """

    model_ms: float
    other_ms: float
    dense_ms: Mapping[str, float]
    scale: Mapping[str, float]

    @classmethod
    def of(cls, analysis: Analysis, time_scale: Mapping[str, float]) -> "Clock":
        """The times of an analysis; time_scale corrects those of the options, by path."""
        total = sum(site.dense_ms for site in analysis.sites.values())
        model_ms = analysis.model_ms if analysis.model_ms > 0 else total
        whole = model_ms if analysis.fused_ms is None else analysis.fused_ms
        other_ms = analysis.other_ms
        if other_ms is None:
            other_ms = max(whole - total, 0.0)
        common = (whole - other_ms) / total if total > 0 else 1.0
        return cls(
            model_ms=model_ms,
            other_ms=other_ms,
            dense_ms={path: common * site.dense_ms for path, site in analysis.sites.items()},
            scale={path: common * time_scale.get(path, 1.0) for path in analysis.sites},
        )

    def of_option(self, path: str, option: Option) -> float:
        """Milliseconds of this option; the layer as it is keeps its own, measured time."""
        return self.dense_ms[path] if option.is_dense else self.scale[path] * option.ms

    def most(self, analysis: Analysis) -> float:
        """The speed of the network with every layer by its fastest option."""
        fastest = (
            min(self.of_option(path, option) for option in site.options)
            for path, site in analysis.sites.items()
        )
        return self.model_ms / max(self.other_ms + sum(fastest), 1e-9)

    def total(self, choices: Mapping[str, Choice]) -> float:
        """Milliseconds in touchable convolutions when these layers get these choices."""
        return sum(
            choices[path].ms if path in choices else dense for path, dense in self.dense_ms.items()
        )


def slower(analysis: Analysis, ms: float) -> Analysis:
    """An analysis of a network that takes so much more outside of the touchable convolutions.

    Where ms is below 0, less, down to nothing.
    """
    clock = Clock.of(analysis, {})
    ms = max(ms, -clock.other_ms)
    whole = clock.model_ms if analysis.fused_ms is None else analysis.fused_ms
    return dataclasses.replace(analysis, other_ms=clock.other_ms + ms, fused_ms=whole + ms)


def predicted(
    site: SiteAnalysis,
    clock: Clock,
    rank: int | None,
    *,
    order: str = "vertical",
    mask: tuple[str, np.ndarray] | None = None,
    keep: float = 1.0,
    plain: bool = False,
) -> Choice:
    """Any rank and mask of a layer, with the time that its measured options of that kind suggest.

    Args:
        site: the layer; its options were timed.
        clock: of the analysis that it belongs to.
        rank, order: of the pair; rank None: not decomposed.
        mask: (family, positions); None: every position is computed.
        keep: what share the positions are.
        plain: whether the factors are those of the plain SVD.

    Example:
        >>> predicted(site, Clock.of(analysis, {}), 12).ms > 0
        True
    """
    family, positions = mask or (None, None)
    macs = site.site.macs(rank, order, positions)
    measured = [option for option in site.options if option.macs > 0]
    alike = [option for option in measured if (option.rank is None) == (rank is None)]
    closest = [option for option in alike if (option.family is None) == (family is None)]
    points = closest or alike or measured or [Option(ms=site.dense_ms, macs=site.site.macs())]
    (ms,) = interpolate_ms([macs], [each.macs for each in points], [each.ms for each in points])
    option = Option(rank=rank, order=order, family=family, keep=keep, ms=float(ms), macs=macs)
    ms = clock.of_option(site.site.path, option)
    return Choice(option=option, ms=ms, positions=positions, plain=plain)


def inside_options(options: Sequence[Option], before: LayerPlan | None) -> list[Option]:
    """Of a layer that was masked before, the options with a mask of that family and no larger.

    Masks of one keep differ by a few positions between analyses, hence a margin of a tenth.
    """
    if before is None or before.positions is None:
        return list(options)
    masked = [option for option in options if option.family is not None]
    same = [
        option
        for option in masked
        if option.family == before.family and option.keep <= 1.1 * (before.keep or 1.0)
    ]
    return same or masked or list(options)


def inside_mask(site: SiteAnalysis, positions: np.ndarray, before: LayerPlan | None) -> np.ndarray:
    """A mask like `positions` that lies inside the layer's earlier mask, if it had one.

    Whole rows, columns and grids stay such: evenly spaced ones of the earlier mask's. Of a free
    mask the positions that the earlier one lacks are replaced by the best of what is left there.
    """
    if before is None or before.positions is None:
        return positions
    outer, width = before.positions, site.site.output_sizes[0][1]
    axes = [(np.unique(each // width), np.unique(each % width)) for each in (positions, outer)]
    products = [len(rows) * len(columns) for rows, columns in axes]
    if products == [len(positions), len(outer)]:
        rows, columns = (_even(of, len(like)) for like, of in zip(*axes, strict=True))
        return (rows[:, None] * width + columns).ravel().astype(np.int32)
    inside = np.intersect1d(positions, outer)
    rest = np.setdiff1d(outer, inside)
    missing = min(len(positions), len(outer)) - len(inside)
    score = site.impact if site.score is None else site.score
    if score is None:
        filled = _even(rest, missing)
    else:
        filled = rest[np.argsort(-score.ravel()[rest], kind="stable")[:missing]]
    return np.sort(np.concatenate([inside, filled])).astype(np.int32)


def _even(values: np.ndarray, count: int) -> np.ndarray:
    """At most `count` of these values, evenly spaced in their order."""
    count = min(count, len(values))
    return values[((np.arange(count) + 0.5) * len(values) / max(count, 1)).astype(int)]
