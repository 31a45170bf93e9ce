"""The numbers of a run of the command, before and after: of a file and of a printed table."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from espace_tf.data.labels import accuracy


def accuracies(
    models: Mapping[str, Any], held_out: tuple[np.ndarray, np.ndarray] | None
) -> dict[str, float] | None:
    """Top-1 accuracy of models on held-out images; None if there are none, or no classes.

    Args:
        models: Keras models by name.
        held_out: (images, labels), or None.
    """
    if held_out is None:
        return None
    images, labels = held_out
    found = {
        name: accuracy(model.predict(images, batch_size=64, verbose=0), labels)
        for name, model in models.items()
    }
    return None if None in found.values() else found


def sizes(
    rows: Sequence[Any], models: Mapping[str, Any], known: Mapping[str, float] | None
) -> dict[str, dict[str, Any]]:
    """What is known of each model, by its name.

    Args:
        rows: what `benchmark` found.
        models: Keras models by the rows' names.
        known: their accuracies, from `accuracies`.
    """
    return {
        row.name: {
            "milliseconds": row.milliseconds,
            "macs": row.macs,
            "parameters": row.parameters,
            "weight_bytes": sum(weight.nbytes for weight in models[row.name].get_weights()),
            "accuracy": None if known is None else known[row.name],
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
    if before["accuracy"] is not None:
        lost = f"{100 * (after['accuracy'] - before['accuracy']):+.2f} points"
        shown.add_row(
            "accuracy on x_test", f"{before['accuracy']:.4f}", f"{after['accuracy']:.4f}", lost
        )
    for label, key, form in (
        (f"ms, {runtime}, batch of {summary['batch_size']}", "milliseconds", ".3f"),
        ("multiply-accumulates per image", "macs", ",d"),
        ("parameters", "parameters", ",d"),
        ("bytes of weights", "weight_bytes", ",d"),
    ):
        ratio = before[key] / max(after[key], 1e-9)
        shown.add_row(label, format(before[key], form), format(after[key], form), f"{ratio:.2f}")
    for entry in summary["exports"]:
        judged = "" if entry.get("accuracy") is None else f"accuracy {entry['accuracy']:.4f}"
        shown.add_row(f"bytes of {entry['file']}", "", f"{entry['bytes']:,}", judged)
    return shown
