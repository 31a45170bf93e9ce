"""Curves as SVG pictures: speed against accuracy of a sweep, error against rank of a layer."""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from espace_tf.planning.sweep import SweepRow

INK, PALE = "#12355b", "#b9c4d0"
# What is shown against the speed: the first that all rows have.
_MEASURES = {
    "accuracy": ("accuracy, %", 100.0),
    "loss": ("loss", 1.0),
    "damage": ("predicted loss increase (nats per image, or relative squared error)", 1.0),
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
    name = measure(rows)
    if name is None:
        raise ValueError(
            f"sweep must be rows that all have {', '.join(_MEASURES)}, one of them. "
            f"Received: {list(rows)!r}"
        )
    label, unit = _MEASURES[name]
    ordered = sorted(rows, key=lambda row: row.measured)
    points = [(row.measured, unit * getattr(row, name)) for row in ordered]
    axes = _axes((6.4, 3.4), 10, "times faster, measured", label)
    axes.plot(*zip(*points, strict=True), color=PALE, linewidth=1.6, zorder=1)
    for row, point in zip(ordered, points, strict=True):
        filled = chosen is None or row.model is chosen
        axes.plot(*point, "o", color=INK, markersize=7, markerfacecolor=INK if filled else "white")
        text = "as given" if row.asked == 1 else f"asked: {row.asked:g}"
        axes.annotate(text, point, xytext=(6, 7), textcoords="offset points", fontsize=9, color=INK)
    axes.margins(0.12)
    return _svg(axes)


def rank_curve(errors: np.ndarray, others: np.ndarray, rank: int) -> bytes:
    """An SVG picture of the error of every rank, the chosen one marked.

    Args:
        errors: [ranks + 1] per cent, by rank.
        others: the same of the other order of the pair, drawn pale.
        rank: the chosen one.
    """
    axes = _axes((3.6, 2.15), 9, "rank", "squared error, %")
    for values, colour in ((others, PALE), (errors, INK)):
        axes.plot(values, color=colour, linewidth=1.6)
    point = (rank, float(errors[rank]))
    axes.plot(*point, "o", color=INK, markersize=6)
    text = f"rank {rank}: {point[1]:.2g} %"
    axes.annotate(text, point, xytext=(7, 9), textcoords="offset points", fontsize=9, color=INK)
    axes.set_xlim(0, len(errors) - 1)
    axes.set_ylim(0, None)
    return _svg(axes)


def _axes(size: tuple[float, float], font: int, x: str, y: str) -> Any:
    from matplotlib.figure import Figure

    axes = Figure(figsize=size, layout="constrained").add_subplot()
    axes.set_xlabel(x, fontsize=font)
    axes.set_ylabel(y, fontsize=font)
    axes.tick_params(labelsize=font - 1, length=3)
    axes.spines[["top", "right"]].set_visible(False)
    return axes


def _svg(axes: Any) -> bytes:
    buffer = io.BytesIO()
    axes.figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()
