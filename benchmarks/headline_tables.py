"""The tables of benchmarks/headline.py: JSON, Markdown and on the screen."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.steps import markdown, rich_table, write_json
from espace_tf.files import atomic_write

# How accuracies are called, and the file of the network.
JUDGED = {
    "teacher": "teacher",
    "control": "control",
    "before": "compressed",
    "after": "tuned",
}
_RUNTIMES = {"tf": "TensorFlow", "litert": "LiteRT"}

Tables = list[tuple[str, list[str], list[list[str]]]]


def tables(results: Mapping[str, Any]) -> Tables:
    """(title, columns, rows) of what was found, as texts.

    Args:
        results: by network, what benchmarks/headline.py gathered.
    """
    found: Tables = []
    judged = {name: result for name, result in results.items() if "accuracy" in result}
    if judged:
        columns = ["network", "teacher", "control", "before tuning", "after tuning", "test images"]
        rows = [
            [
                name,
                *(f"{result['accuracy'][label]:.4f}" for label in JUDGED),
                f"{result['test_images']:,}",
            ]
            for name, result in judged.items()
        ]
        found.append(("Top-1 accuracy", columns, rows))
    columns = ["network", "asked", "MACs", "dense / compressed", "parameters", "dense / compressed"]
    found.append(("Size", columns, [_size(*item) for item in results.items()]))
    columns = ["network", "runtime", "batch", "dense, ms", "as it came, ms", "compressed, ms"]
    rows = [
        _time(name, key, each)
        for name, result in results.items()
        for key, each in result["times"].items()
    ]
    found.append(("Wall clock", [*columns, "times faster (quartiles)"], rows))
    steps = list(dict.fromkeys(_step(key) for each in results.values() for key in each["seconds"]))
    rows = [[name, *(_seconds(result, step) for step in steps)] for name, result in results.items()]
    found.append(("Seconds of each step", ["network", *steps], rows))
    return found


def _size(name: str, result: Mapping[str, Any]) -> list[str]:
    row = [name, f"{result['compress']['asked']:g}"]
    for key in ("macs", "parameters"):
        before, after = result["compress"][key]
        row += [f"{after:,}", f"{before / after:.2f}"]
    return row


def _time(name: str, key: str, each: Mapping[str, Any]) -> list[str]:
    runtime, batch = key.split(", ")
    small = each["compressed"]
    times = (f"{each[which]['ms']:.2f}" for which in ("folded", "as it came", "compressed"))
    ratio = f"{small['ratio']:.2f} ({small['low']:.2f} to {small['high']:.2f})"
    return [name, _RUNTIMES[runtime], batch, *times, ratio]


def _step(key: str) -> str:
    """train, compress, tune, control, evaluate or time."""
    return key.split("_")[0]


def _seconds(result: Mapping[str, Any], step: str) -> str:
    return f"{sum(each for key, each in result['seconds'].items() if _step(key) == step):.0f}"


def write(path: Path, results: Mapping[str, Any], about: str) -> None:
    """Writes the results as path.json and as path.md.

    Args:
        path: without suffix.
        results: by network.
        about: what the networks and the data are.
    """
    write_json(path.with_suffix(".json"), {"about": about, "networks": results})
    parts = [f"{about} The dense network that ratios refer to has its batch norms folded."]
    for title, columns, rows in tables(results):
        parts.append(f"**{title}**\n\n{markdown(columns, rows)}")
    with atomic_write(path.with_suffix(".md")) as temporary:
        temporary.write_text("\n\n".join(parts) + "\n")


def show(results: Mapping[str, Any]) -> None:
    """Prints the tables."""
    console = Console(width=110)
    for title, columns, rows in tables(results):
        console.print(rich_table(title, columns, rows))
