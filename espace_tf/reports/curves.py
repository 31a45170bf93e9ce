"""Speed against accuracy of a sweep, drawn."""

import io
from collections.abc import Sequence
from typing import Any

from espace_tf.planning.sweep import SweepRow

INK, PALE = "#12355b", "#b9c4d0"
# What is shown against the speed: the first that all rows have.
_MEASURES = {
    "accuracy": ("accuracy, %", 100.0),
    "loss": ("loss", 1.0),
    "damage": ("predicted damage", 1.0),
}


def measure(rows: Sequence[SweepRow]) -> str | None:
    """What all rows have, of "accuracy", "loss" and "damage" the first; None: nothing.

    Example:
        >>> measure([SweepRow(asked=1, measured=1, loss=0.4, damage=0.0)])
        'loss'
    """
    found = (name for name in _MEASURES if all(getattr(row, name) is not None for row in rows))
    return next(found, None) if rows else None


def speed_curve(rows: Sequence[SweepRow], chosen: Any = None) -> bytes:
    """An SVG picture of what every measured speed costs, with the speed asked for beside each dot.

    Args:
        rows: from `sweep`; at least one thing must be known of all (see `measure`).
        chosen: the model whose dot is filled; None: all are.

    Raises:
        ValueError: nothing is known of all rows.
    """
    from matplotlib.figure import Figure

    name = measure(rows)
    if name is None:
        raise ValueError(
            f"sweep must be rows that all have {', '.join(_MEASURES)}, one of them. "
            f"Received: {list(rows)!r}"
        )
    label, unit = _MEASURES[name]
    ordered = sorted(rows, key=lambda row: row.measured)
    points = [(row.measured, unit * getattr(row, name)) for row in ordered]
    figure = Figure(figsize=(6.4, 3.4), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(*zip(*points, strict=True), color=PALE, linewidth=1.6, zorder=1)
    for row, point in zip(ordered, points, strict=True):
        filled = chosen is None or row.model is chosen
        axes.plot(*point, "o", color=INK, markersize=7, markerfacecolor=INK if filled else "white")
        text = "as given" if row.asked == 1 else f"asked: {row.asked:g}"
        axes.annotate(text, point, xytext=(6, 7), textcoords="offset points", fontsize=9, color=INK)
    axes.margins(0.12)
    axes.set_xlabel("times faster, measured", fontsize=10)
    axes.set_ylabel(label, fontsize=10)
    axes.tick_params(labelsize=9, length=3)
    axes.spines[["top", "right"]].set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()
