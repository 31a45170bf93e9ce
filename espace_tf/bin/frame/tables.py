"""The tables that commands print at their end, from what they wrote as JSON."""

from collections.abc import Mapping, Sequence
from typing import Any

from espace_tf.config import runtime_title

QUALITIES = {"accuracy": "accuracy", "binary_accuracy": "binary accuracy", "loss": "loss"}
AGREEMENTS = {
    "agreement": "same top-1 as the original",
    "cosine": "cosine with the original's outputs",
}
WORDS = {**QUALITIES, **AGREEMENTS, "top5": "top-5 accuracy", "images": "images"}
# Why two measurements of a speed are not the same number.
APART = (
    "±: what another measurement may differ by; one in another process, by some per cent more. Of "
    "two believe that of the smaller ±."
)
# Epochs that a table of a terminal's width has room for.
_COLUMNS = 6


def grid(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], *notes: str) -> Any:
    """A title above a `rich.table.Table`, the first column to the left, numbers to the right;
    notes below.
    """
    from rich.console import Group
    from rich.table import Table

    shown = Table()
    for index, name in enumerate(columns):
        shown.add_column(name, justify="right" if index else "left")
    for row in rows:
        shown.add_row(*("" if value is None else str(value) for value in row))
    return Group(title, shown, *notes)


def speed(value: float, error: float | None) -> str:
    """A speed with what another measurement may differ by, if that is known.

    Example:
        >>> speed(2.049, 0.031)
        '2.05 ± 3%'
    """
    return f"{value:.2f}" if error is None else f"{value:.2f} ± {error:.0%}"


def quality(known: Mapping[str, Any]) -> str | None:
    """The name of the number that says most about a model; None if none is known."""
    return next((name for name in QUALITIES if known.get(name) is not None), None)


def training_table(summary: Mapping[str, Any]) -> Any:
    """One column an epoch, the first, the best and the last of many; one row a loss or metric."""
    history, last = summary["history"], summary["epochs"]
    alike = {
        f"{part}task_loss"
        for part in ("", "val_")
        if history.get(f"{part}task_loss") == history.get(f"{part}loss")
    }
    best, rate = summary["best_epoch"], summary["learning_rate"]
    epochs = range(1, last + 1) if last <= _COLUMNS else sorted({1, best or last, last})
    rows = [
        (name, *(f"{values[epoch - 1]:.4f}" for epoch in epochs))
        for name, values in history.items()
        if name not in {"fade", *alike}
    ]
    kept = "as they came" if best == 0 else f"of epoch {last if best is None else best}"
    title = f"{summary['model']}: the weights {kept}"
    title = title if rate is None else f"{title}, learning rate {rate:g}"
    title += f", checksum {summary['checksum']}"
    return grid(title, ["epoch", *map(str, epochs)], rows)


def evaluation_table(summary: Mapping[str, Any]) -> Any:
    """One column a model, one row for each number."""
    found = summary["models"]
    names = [name for name in WORDS if any(name in each for each in found.values())]

    def shown(name: str, each: Mapping[str, Any]) -> str:
        value = each.get(name)
        return "" if value is None else f"{value:,d}" if name == "images" else f"{value:.4f}"

    rows = [(WORDS[name], *(shown(name, each) for each in found.values())) for name in names]
    return grid(f"On {summary['data']}", ["", *found], rows)


def benchmark_table(summary: Mapping[str, Any]) -> Any:
    """One row a model."""
    runtime = runtime_title(summary["runtime"])
    columns = ["model", "ms", "times as fast", "multiply-accumulates", "parameters", "difference"]
    rows = [
        (
            name,
            f"{row['milliseconds']:.3f}",
            speed(1 / row["ratio"], row.get("error") if index else None),
            "?" if row["macs"] is None else f"{row['macs']:,d}",
            f"{row['parameters']:,d}",
            "" if row["max_difference"] is None else f"{row['max_difference']:.2g}",
        )
        for index, (name, row) in enumerate(summary["models"].items())
    ]
    notes = [APART] if len(rows) > 1 else []
    return grid(f"{runtime}, batch of {summary['batch_size']}", columns, rows, *notes)


def export_table(summary: Mapping[str, Any]) -> Any:
    """One row a file."""
    rows = [
        (each["file"], f"{each['bytes']:,d}",
         "" if each["difference"] is None else f"{each['difference']:.2g}")
        for each in summary["files"]
    ]  # fmt: skip
    columns = ["file", "bytes", "largest difference from the model"]
    return grid(f"{summary['model']}, weights of {summary['weight_bytes']:,d} bytes", columns, rows)


def report_table(summary: Mapping[str, Any]) -> Any:
    """What became of the layers."""
    rows = [
        (name, f"{summary[name]:,d}") for name in ("compressed", "left alone") if name in summary
    ]
    return grid(f"{summary['file']}", ["layers", "number"], rows)


def compress_table(summary: Mapping[str, Any]) -> Any:
    """Before and after, and the exported files below; of several speeds a row for each."""
    if len(summary["speeds"]) > 1:
        return _speeds_table(summary)
    (found,) = summary["speeds"].values()
    before, after = found["before"], found["after"]
    runtime = runtime_title(found["runtime"])
    rows = []
    named = quality(before)
    if named is not None:
        change = after[named] - before[named]
        lost = f"{change:+.4f}" if named == "loss" else f"{100 * change:+.2f} points"
        values = (f"{each[named]:.4f}" for each in (before, after))
        rows.append((f"{QUALITIES[named]} on held-out images", *values, lost))
    for name, words in AGREEMENTS.items():
        if name in after:
            rows.append((f"{words} on held-out images", "", f"{after[name]:.4f}", ""))
    for label, key, form in (
        (f"ms, {runtime}, batch of {found['batch_size']}", "milliseconds", ".3f"),
        ("multiply-accumulates per image", "macs", ",d"),
        ("parameters", "parameters", ",d"),
        ("bytes of weights", "weight_bytes", ",d"),
    ):
        ratio = found["speedup"] if key == "milliseconds" else before[key] / max(after[key], 1e-9)
        rows.append((label, format(before[key], form), format(after[key], form), f"{ratio:.2f}"))
    rows += [_file_row(entry) for entry in found["exports"]]
    asked = found["asked_speedup"]
    asked = "as fast as its budget allows" if asked is None else f"asked: {asked:g}"
    title = f"{speed(found['speedup'], found.get('error'))} times faster ({asked}"
    planned = found.get("planned_speedup")
    if planned is not None:
        title += f"; {speed(planned, found.get('planned_error'))} while it was planned"
    return grid(f"{title})", ["", "before", "after", "before / after"], rows, APART)


def _file_row(entry: Mapping[str, Any]) -> tuple[str, ...]:
    """An exported file beside the weights of the dense network."""
    judged = [f"{WORDS[each]} {entry[each]:.4f}" for each in (quality(entry), *AGREEMENTS)
              if each in entry]  # fmt: skip
    dense, label = entry["dense_bytes"], f"bytes of {entry['file']} (before: float32 weights)"
    ratio = "" if dense is None else f"{dense / entry['bytes']:.2f}"
    sizes = ("" if dense is None else f"{dense:,}", f"{entry['bytes']:,}")
    return label, *sizes, "; ".join([ratio, *judged])


def _speeds_table(summary: Mapping[str, Any]) -> Any:
    """One row a speed."""
    rows = []
    for folder, found in summary["speeds"].items():
        named = quality(found["after"])
        judged = "" if named is None else f"{found['after'][named]:.4f}"
        rows.append(
            (folder, f"{found['asked_speedup']:g}", f"{found['speedup']:.2f}",
             f"{found['after']['parameters']:,d}", judged)
        )  # fmt: skip
    last = quality(found["after"])
    columns = ["folder", "asked", "times faster", "parameters", QUALITIES.get(last, "")]
    return grid("Speeds", columns, rows)
