"""A compressed model, or a plan, as one self-contained HTML page."""

import base64
import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np

from espace_tf.checks import require
from espace_tf.config import runtime_title
from espace_tf.files import atomic_write, output_path
from espace_tf.numerics.factors import ORDERS
from espace_tf.planning.sweep import SweepRow
from espace_tf.records.plan import LayerPlan, Plan, SummaryRow
from espace_tf.reports import curves
from espace_tf.rewriting.read_back import plan_of
from espace_tf.timing.benchmark import Row

# About the side of a drawn map in pixels; whole pixels per position keep the dots round.
MAP_PIXELS = 480
DOT = (18, 53, 91)
# From white to a warm orange: dots stay readable on every shade.
IMPACT_COLOURS = ((255, 255, 255), (253, 219, 165), (244, 140, 66))
NO_IMPACT = (238, 241, 244)


@dataclass(frozen=True)
class _Layer:
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


def report(
    model_or_plan: Any,
    path: str | os.PathLike,
    *,
    accuracy: Mapping[str, float] | None = None,
    analysis: Any = None,
    rows: Sequence[Row] = (),
    sweep: Sequence[SweepRow] = (),
) -> Path:
    """Writes one page with what is known of a compression: numbers, plots, reasons.

    The page shows the time of every layer before and after, the predicted error of every rank with
    the chosen one, the impact maps with the kept positions, and why layers were left alone. It
    needs nothing beside itself and prints well.

    Args:
        model_or_plan: what `compress` or `apply` returned (its plan and analysis are used), such a
            model that was saved and loaded (its layers tell ranks and positions), or a Plan.
        path: of the .html file; written aside first, then moved there.
        accuracy: {"before": share, "after": share} in [0, 1], if they are known.
        analysis: the Analysis that the plan comes from: times, error curves and impact maps; None:
            the one that `compress` left on the model, if any.
        rows: what `benchmark(original, compressed)` returned: measured times.
        sweep: what `sweep` returned: the curve of speed against accuracy is drawn.

    Returns:
        The path.

    Raises:
        TypeError: model_or_plan is neither a compressed model nor a Plan; analysis, rows or
            sweep are something else than what they are called.
        ValueError: accuracy holds something else, or the path does not end in .html.
        OSError: the path cannot be written; nothing is left there.

    Example:
        >>> report(small, "report.html", accuracy={"before": 0.92, "after": 0.915})
        PosixPath('report.html')
    """
    plan, path = plan_of(model_or_plan), output_path(path, suffix=".html")
    _check_accuracy(accuracy)
    _check_known(analysis, rows, sweep)
    require("report", "jinja2", "matplotlib")
    if analysis is None:
        analysis = getattr(model_or_plan, "espace_analysis", None)
    sites = {} if analysis is None else analysis.sites
    summary = plan.summary()
    shown = None if model_or_plan is plan else model_or_plan
    layers = [
        _layer(row, plan.layers[row.path], sites.get(row.path))
        for row in summary
        if row.path in plan.layers
    ]
    page = _render(
        title=f"Compression of {getattr(model_or_plan, 'name', 'a model')}",
        lead=_lead(plan, analysis),
        tiles=_tiles(plan, layers, accuracy or {}, rows),
        rows=rows,
        sweep=sweep,
        speeds=_speeds(sweep, shown),
        layers=layers,
        slowest=max((max(layer.milliseconds or (0,)) for layer in layers), default=0) or 1,
        skipped=[row for row in summary if row.path not in plan.layers],
        with_impact=any(
            getattr(sites.get(layer.path), "impact", None) is not None
            for layer in layers
            if layer.map
        ),
        scale=", ".join(f"rgb{colour}" for colour in IMPACT_COLOURS),
    )
    with atomic_write(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return path


def _check_accuracy(accuracy: Mapping[str, float] | None) -> None:
    if accuracy is None:
        return
    shares = accuracy.items() if isinstance(accuracy, Mapping) else [("none", accuracy)]
    for name, value in shares:
        if name not in ("before", "after") or not isinstance(value, Real) or not 0 <= value <= 1:
            raise ValueError(
                "accuracy must be {'before': share, 'after': share} with shares between 0 and 1. "
                f"Received: {accuracy!r}."
            )


def _check_known(analysis: Any, rows: Any, sweep: Any) -> None:
    if analysis is not None and not hasattr(analysis, "sites"):
        raise TypeError(f"analysis must be an Analysis or None. Received: {analysis!r}")
    if not isinstance(rows, Sequence) or not all(isinstance(row, Row) for row in rows):
        raise TypeError(f"rows must be what benchmark returned. Received: {rows!r}")
    if not isinstance(sweep, Sequence) or not all(isinstance(row, SweepRow) for row in sweep):
        raise TypeError(f"sweep must be what sweep returned. Received: {sweep!r}")


def _lead(plan: Plan, analysis: Any) -> str:
    """One sentence on how the compression was made."""
    count = len(plan.layers)
    parts = [
        f"{count} of {count + len(plan.skipped)} convolutions compressed",
        f"profile “{plan.profile}”",
    ]
    config = getattr(analysis, "config", None)
    if config is not None:
        threads = "" if config.threads is None else f", {config.threads} threads"
        runtime = runtime_title(config.runtime)
        parts.append(f"planned for {runtime} with batches of {config.batch_size}{threads}")
    return ", ".join(parts) + "."


def _tiles(
    plan: Plan, layers: Sequence[_Layer], accuracy: Mapping[str, float], rows: Sequence[Row]
) -> list[tuple[str, str, str]]:
    """The summary as (name, value, note): measured speed first, then what is known."""
    tiles = []
    if len(rows) > 1:
        before, after = rows[0], rows[1]
        times = f"{before.milliseconds:.3g} → {after.milliseconds:.3g} ms per call"
        tiles.append(("Speed-up, measured", f"{after.speedup:.2f}×", times))
        if before.macs and after.macs:
            tiles.append(_shrunk("Multiply-accumulates", before.macs, after.macs))
        tiles.append(_shrunk("Parameters", before.parameters, after.parameters))
    elif plan.measured_speedup is not None:
        tiles.append(("Speed-up, measured", f"{plan.measured_speedup:.2f}×", ""))
    if plan.predicted_speedup is not None:
        asked = "" if plan.speedup is None else f"; asked: {plan.speedup:g}×"
        times = f"{plan.dense_ms:.3g} → {plan.predicted_ms:.3g} ms{asked}"
        tiles.append(("Speed-up, planned", f"{plan.predicted_speedup:.2f}×", times))
    known = [layer.macs for layer in layers if layer.macs]
    if known and len(rows) < 2:
        dense, small = (sum(column) for column in zip(*known, strict=True))
        tiles.append(_shrunk("Multiply-accumulates in these layers", dense, small))
    if accuracy:
        shown = " → ".join(f"{100 * accuracy[k]:.2f}" for k in ("before", "after") if k in accuracy)
        lost = 100 * (accuracy.get("after", 0) - accuracy.get("before", 0))
        tiles.append(("Accuracy, %", shown, f"{lost:+.2f} points" if len(accuracy) == 2 else ""))
    return tiles


def _shrunk(name: str, before: float, after: float) -> tuple[str, str, str]:
    return name, f"{before / max(after, 1):.2f}× fewer", f"{short(before)} → {short(after)}"


def short(number: float) -> str:
    """A large count in four characters or so.

    Example:
        >>> short(41_234_567), short(950)
        ('41.2 M', '950')
    """
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g} {letter}"
    return f"{number:g}"


def _layer(row: SummaryRow, layer: LayerPlan, found: Any) -> _Layer:
    """What the page shows of a layer; `found` is its SiteAnalysis, or None."""
    site = None if found is None else found.site
    known = row.before_ms is not None and row.after_ms is not None
    mapped = layer.positions is not None and layer.output_size is not None
    return _Layer(
        path=row.path,
        geometry="" if site is None else _geometry(site),
        rank=_rank(layer, site),
        kept=_kept(layer),
        note=layer.note or "",
        macs=None if site is None else _macs(layer, site),
        milliseconds=(row.before_ms, row.after_ms) if known else None,
        curve=None if found is None or layer.rank is None else _curve(layer, found),
        map=_map(layer, None if found is None else found.impact) if mapped else None,
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
    return _data_uri("svg+xml", curves.rank_curve(errors[layer.order], errors[other], layer.rank))


def _speeds(sweep: Sequence[SweepRow], chosen: Any) -> str | None:
    """The curve of a sweep as an SVG data URI, None if there is nothing to draw."""
    if curves.measure(sweep) is None:
        return None
    return _data_uri("svg+xml", curves.speed_curve(sweep, chosen))


def _map(layer: LayerPlan, impact: np.ndarray | None) -> str:
    """The computed positions as dots over the impact of all, as a PNG data URI."""
    from matplotlib.image import imsave

    buffer = io.BytesIO()
    pixels = draw_map(layer.positions, layer.output_size, impact)
    imsave(buffer, pixels, format="png", metadata={"Software": None})
    return _data_uri("png", buffer.getvalue())


def draw_map(
    positions: np.ndarray, size: tuple[int, int], impact: np.ndarray | None = None
) -> np.ndarray:
    """An output map as a picture: impact as colour, a dot where a position is computed.

    Args:
        positions: flattened computed positions.
        size: height and width of the map.
        impact: [height, width], or None for plain grey.

    Returns:
        uint8 [height * cell, width * cell, 3] with whole cells of pixels.
    """
    cell = max(3, MAP_PIXELS // max(size))
    colours = np.broadcast_to(np.array(NO_IMPACT, float), (*size, 3))
    if impact is not None:
        # Impacts spread over decades: their ranks show the order in which positions are kept.
        ranks = np.argsort(np.argsort(impact, axis=None)).reshape(size) / max(impact.size - 1, 1)
        stops = np.linspace(0, 1, len(IMPACT_COLOURS))
        colours = np.stack(
            [np.interp(ranks, stops, channel) for channel in zip(*IMPACT_COLOURS, strict=True)], -1
        )
    picture = np.repeat(np.repeat(colours, cell, 0), cell, 1)
    offsets = np.arange(cell) - (cell - 1) / 2
    dot = np.hypot(*np.meshgrid(offsets, offsets)) <= max(0.28 * cell, 0.5)
    kept = np.zeros(size, bool)
    kept.reshape(-1)[positions] = True
    picture[np.kron(kept, dot).astype(bool)] = DOT
    return picture.round().astype(np.uint8)


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _render(**values: Any) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup, escape

    environment = Environment(
        loader=PackageLoader("espace_tf.reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["short"] = short
    # Long paths may break after a slash or an underscore.
    environment.filters["breakable"] = lambda text: Markup(
        str(escape(text)).replace("/", "/<wbr>").replace("_", "_<wbr>")
    )
    return environment.get_template("report.html").render(**values)
