"""The numbers of a run of the command, before and after: of a file and of a printed table."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from espace_tf.data.judge import Judge

QUALITIES = {"accuracy": "accuracy", "binary_accuracy": "binary accuracy", "loss": "loss"}


def judge(model: Any, held_out: tuple[np.ndarray, np.ndarray] | None) -> Judge | None:
    """What judges the model and its variants on held-out images; None if there are none.

    Args:
        model: a Keras model.
        held_out: (images, labels), or None.
    """
    return None if held_out is None else Judge(model, held_out, name="x_test and y_test")


def sizes(
    rows: Sequence[Any], models: Mapping[str, Any], judge: Judge | None
) -> dict[str, dict[str, Any]]:
    """What is known of each model, by its name.

    Args:
        rows: what `benchmark` found.
        models: Keras models by the rows' names.
        judge: from `judge`.
    """
    return {
        row.name: {
            "milliseconds": row.milliseconds,
            "macs": row.macs,
            "parameters": row.parameters,
            "weight_bytes": sum(weight.nbytes for weight in models[row.name].get_weights()),
            "accuracy": None,
            **({} if judge is None else judge(models[row.name])),
        }
        for row in rows
    }


def table(summary: dict[str, Any]) -> Any:
    """Before and after, and the exported files below.

    Args:
        summary: what goes into summary.json.
    """
    from rich.table import Table

    before, after = summary["before"], summary["after"]
    runtime = {"tf": "TensorFlow", "litert": "LiteRT"}[summary["runtime"]]
    shown = Table(
        title=f"{summary['speedup']:.2f} times faster (asked: {summary['asked_speedup']:g})"
    )
    for name in ("", "before", "after", "before / after"):
        shown.add_column(name, justify="right" if name else "left")
    quality = _quality(before)
    if quality is not None:
        change = after[quality] - before[quality]
        lost = f"{change:+.4f}" if quality == "loss" else f"{100 * change:+.2f} points"
        values = (f"{each[quality]:.4f}" for each in (before, after))
        shown.add_row(f"{QUALITIES[quality]} on x_test", *values, lost)
    for label, key, form in (
        (f"ms, {runtime}, batch of {summary['batch_size']}", "milliseconds", ".3f"),
        ("multiply-accumulates per image", "macs", ",d"),
        ("parameters", "parameters", ",d"),
        ("bytes of weights", "weight_bytes", ",d"),
    ):
        ratio = summary["speedup"] if key == "milliseconds" else before[key] / max(after[key], 1e-9)
        shown.add_row(label, format(before[key], form), format(after[key], form), f"{ratio:.2f}")
    for entry in summary["exports"]:
        found = _quality(entry)
        judged = "" if found is None else f"{QUALITIES[found]} {entry[found]:.4f}"
        shown.add_row(f"bytes of {entry['file']}", "", f"{entry['bytes']:,}", judged)
    return shown


def _quality(known: Mapping[str, Any]) -> str | None:
    """The name of the number that says most about a model; None if none is known."""
    return next((name for name in QUALITIES if known.get(name) is not None), None)
