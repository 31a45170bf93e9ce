"""The numbers of a run of the command, before and after: of a file and of a printed table."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from espace_tf.config import runtime_title
from espace_tf.data.judge import Judge

AGREEMENTS = {
    "agreement": "same top-1 as the original",
    "cosine": "cosine with the original's outputs",
}
QUALITIES = {"accuracy": "accuracy", "binary_accuracy": "binary accuracy", "loss": "loss"}


def judge(model: Any, held_out: tuple[np.ndarray, np.ndarray] | None) -> Judge | None:
    """What judges the model and its variants on held-out images; None if there are none.

    Args:
        model: a Keras model.
        held_out: (images, labels), or None.
    """
    return None if held_out is None else Judge(model, held_out, name="x_test and y_test")


def guesses(found: Mapping[str, float], model: Any, images: int) -> bool:
    """Whether a model's accuracy is no better than that of guessing, which three deviations of
    chance on so many images would explain.
    """
    classes = model.outputs[0].shape[-1]
    if "accuracy" not in found or not classes or classes < 2:
        return False
    chance = 1 / classes
    return found["accuracy"] <= chance + 3 * np.sqrt(chance * (1 - chance) / images)


def agreement(model: Any, other: Callable[[Any], Any], images: np.ndarray) -> dict[str, float]:
    """How alike the outputs of two models are on images, without any label.

    Args:
        model: a Keras model.
        other: the same, or a function of images that gives the outputs of one.
        images: [N, ...].

    Returns:
        "agreement", the share of images with the same largest output, if the model has one output
        of several classes; else "cosine", the mean cosine between the outputs of an image.
    """
    same, cosines = [], []
    for start in range(0, len(images), 64):
        part = images[start : start + 64]
        first, second = (tf.nest.flatten(each(part)) for each in (model, other))
        if len(first) == 1 and len(first[0].shape) == 2 and first[0].shape[1] > 1:
            same.append(np.argmax(first[0], -1) == np.argmax(second[0], -1))
        one, two = (
            np.concatenate([np.reshape(each, (len(part), -1)) for each in outputs], 1, dtype=float)
            for outputs in (first, second)
        )
        lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(two, axis=1)
        cosines.append((one * two).sum(1) / np.maximum(lengths, np.finfo(float).tiny))
    if same:
        return {"agreement": float(np.mean(np.concatenate(same)))}
    return {"cosine": float(np.mean(np.concatenate(cosines)))}


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
    runtime = runtime_title(summary["runtime"])
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
    for name, words in AGREEMENTS.items():
        if name in after:
            shown.add_row(f"{words} on x_test", "", f"{after[name]:.4f}", "")
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
        words = {**QUALITIES, **AGREEMENTS}
        judged = [f"{words[each]} {entry[each]:.4f}" for each in words
                  if each in entry and each in (found, *AGREEMENTS)]  # fmt: skip
        dense = f"{entry['dense_bytes']:,}"
        ratio = f"{entry['dense_bytes'] / entry['bytes']:.2f}"
        row = f"bytes of {entry['file']} (before: float32 weights)"
        shown.add_row(row, dense, f"{entry['bytes']:,}", "; ".join([ratio, *judged]))
    return shown


def _quality(known: Mapping[str, Any]) -> str | None:
    """The name of the number that says most about a model; None if none is known."""
    return next((name for name in QUALITIES if known.get(name) is not None), None)
