"""A compressed model, or a plan, as one self-contained HTML page."""

import os
from collections.abc import Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any

from espace_tf.checks import require
from espace_tf.config import runtime_title
from espace_tf.files import atomic_write, output_path
from espace_tf.planning.sweep import SweepRow
from espace_tf.records.alternatives import Alternatives, alternatives
from espace_tf.records.comparison import Comparison
from espace_tf.records.plan import Plan
from espace_tf.reports import cards, curves, pictures
from espace_tf.rewriting.read_back import plan_of
from espace_tf.timing.benchmark import Row


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

    The page shows the time of every layer before and after, what its next options would have saved
    and cost, the predicted error of every rank with the chosen one, the kept positions over their
    impact and over an image, and why layers were left alone. It needs nothing beside itself and
    prints well.

    Args:
        model_or_plan: what `compress` or `apply` returned (its plan and analysis are used), such a
            model that was saved and loaded (its layers tell ranks and positions), or a Plan.
        path: of the .html file; written aside first, then moved there.
        accuracy: {"before": share, "after": share} in [0, 1], if they are known; None: what
            `compress` saw on held-out images.
        analysis: the Analysis that the plan comes from: times, options, error curves, impact maps
            and an image of the calibration data; None: the one that `compress` left on the model,
            if any. Set its `sample` to None if that image is not to be seen.
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
    sample = getattr(analysis, "sample", None)
    beside = {} if analysis is None else alternatives(plan, analysis)
    summary = plan.summary()
    shown = None if model_or_plan is plan else model_or_plan
    nothing = Alternatives()
    layers = [
        cards.card(
            row,
            plan.layers[row.path],
            sites.get(row.path),
            beside.get(row.path, nothing),
            over=sample is not None,
        )
        for row in summary
        if row.path in plan.layers
    ]
    skipped = [row for row in summary if row.path not in plan.layers]
    page = _render(
        title=f"Compression of {getattr(model_or_plan, 'name', 'a model')}",
        lead=_lead(plan, analysis),
        tiles=_tiles(plan, layers, accuracy or {}, rows),
        rows=rows,
        sweep=sweep,
        speeds=_speeds(sweep, shown),
        layers=layers,
        slowest=max((max(layer.milliseconds or (0,)) for layer in layers), default=0) or 1,
        skipped=[(row, cards.in_words(beside.get(row.path, nothing).faster)) for row in skipped],
        with_impact=any(
            getattr(sites.get(layer.path), "impact", None) is not None
            for layer in layers
            if layer.map
        ),
        scale=", ".join(f"rgb{colour}" for colour in pictures.IMPACT_COLOURS),
        sample=None if sample is None else pictures.png_uri(sample),
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
    plan: Plan,
    layers: Sequence[cards.LayerCard],
    accuracy: Mapping[str, float],
    rows: Sequence[Row],
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
    if plan.comparison is not None:
        tiles += _compared(plan.comparison, with_accuracy=not accuracy)
    if accuracy:
        shown = " → ".join(f"{100 * accuracy[k]:.2f}" for k in ("before", "after") if k in accuracy)
        lost = 100 * (accuracy.get("after", 0) - accuracy.get("before", 0))
        tiles.append(("Accuracy, %", shown, f"{lost:+.2f} points" if len(accuracy) == 2 else ""))
    return tiles


def _compared(seen: Comparison, with_accuracy: bool) -> list[tuple[str, str, str]]:
    """What `compress` saw on held-out images."""
    loss = f"on {seen.images} held-out images; loss {seen.loss_increase:+.3g}"
    tiles = [("Agreement with the original, %", f"{100 * seen.agreement:.2f}", loss)]
    if with_accuracy and seen.accuracy_before is not None:
        before, after = (100 * share for share in (seen.accuracy_before, seen.accuracy_after))
        note = f"{after - before:+.2f} points, on the same images"
        tiles.append(("Accuracy, %", f"{before:.2f} → {after:.2f}", note))
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


def _speeds(sweep: Sequence[SweepRow], chosen: Any) -> str | None:
    """The curve of a sweep as an SVG data URI, None if there is nothing to draw."""
    if curves.measure(sweep) is None:
        return None
    return pictures.data_uri("svg+xml", curves.speed_curve(sweep, chosen))


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
