"""One compressed layer of a report: its numbers, its curve, its maps, its next options."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from espace_tf.numerics.factors import ORDERS
from espace_tf.records.alternatives import Alternative, Alternatives
from espace_tf.records.layer_plan import LayerPlan
from espace_tf.records.plan import SummaryRow
from espace_tf.reports import curves, pictures


@dataclass(frozen=True)
class LayerCard:
    """What the page shows of one layer in the plan; None is not known."""

    path: str
    geometry: str
    rank: str
    kept: str
    note: str
    macs: tuple[int, int] | None
    milliseconds: tuple[float, float] | None
    curve: str | None
    map: str | None
    dots: str | None
    faster: str
    gentler: str


def card(
    row: SummaryRow, layer: LayerPlan, found: Any, beside: Alternatives, over: bool
) -> LayerCard:
    """What the page shows of a layer.

    Args:
        row, layer: of the plan.
        found: its SiteAnalysis, or None.
        beside: its next options.
        over: whether there is an image that its kept positions are shown over.
    """
    site = None if found is None else found.site
    known = row.before_ms is not None and row.after_ms is not None
    mapped = layer.positions is not None and layer.output_size is not None
    return LayerCard(
        path=row.path,
        geometry="" if site is None else _geometry(site),
        rank=_rank(layer, site),
        kept=_kept(layer),
        note=layer.note or "",
        macs=None if site is None else _macs(layer, site),
        milliseconds=(row.before_ms, row.after_ms) if known else None,
        curve=None if found is None or layer.rank is None else _curve(layer, found),
        map=_map(layer, None if found is None else found.impact) if mapped else None,
        dots=_dots(layer) if mapped and over else None,
        faster=in_words(beside.faster),
        gentler=in_words(beside.gentler),
    )


def _geometry(site: Any) -> str:
    kernel = "×".join(map(str, site.kernel_size))
    size = "×".join("?" if length is None else str(length) for length in site.output_sizes[0])
    groups = "" if site.groups == 1 else f", {site.groups} groups"
    calls = "" if len(site.output_sizes) == 1 else f", {len(site.output_sizes)} calls"
    return f"{kernel}, {site.in_channels} → {site.filters} on {size}{groups}{calls}"


def _rank(layer: LayerPlan, site: Any) -> str:
    if layer.rank is None:
        return "full"
    of = "" if site is None else f" of {site.full_rank(layer.order)}"
    return f"{layer.rank}{of}" + ("" if layer.is_pointwise else f", {layer.order} first")


def _kept(layer: LayerPlan) -> str:
    if layer.positions is None:
        return "all"
    family = "" if layer.family is None else f", {layer.family}"
    if layer.keep is None:
        return f"{len(layer.positions)}{family}"
    size = int(np.prod(layer.output_size))
    return f"{100 * layer.keep:.0f} % ({len(layer.positions)} of {size}){family}"


def _macs(layer: LayerPlan, site: Any) -> tuple[int, int] | None:
    if any(None in size for size in (*site.input_sizes, *site.output_sizes)):
        return None
    return site.macs(), site.macs(layer.rank, layer.order, layer.positions)


def _curve(layer: LayerPlan, found: Any) -> str:
    """The predicted error of every rank, the chosen one marked, as an SVG data URI."""
    other = "horizontal" if layer.order == "vertical" else "vertical"
    errors = {order: 100 * np.asarray(found.decomposition(order).errors) for order in ORDERS}
    return pictures.data_uri(
        "svg+xml", curves.rank_curve(errors[layer.order], errors[other], layer.rank)
    )


def _map(layer: LayerPlan, impact: np.ndarray | None) -> str:
    """The computed positions as dots over the impact of all, as a PNG data URI."""
    return pictures.png_uri(pictures.draw_map(layer.positions, layer.output_size, impact))


def _dots(layer: LayerPlan) -> str:
    return pictures.png_uri(pictures.draw_dots(layer.positions, layer.output_size))


def in_words(found: Alternative | None) -> str:
    """What an option is, and what it would have changed; empty if there is none."""
    return "" if found is None else f"{found.words}: {found.ms:+.2g} ms, {found.damage:+.2g} loss"
