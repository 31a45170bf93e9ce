"""What benchmarks/engine.py found, as tables and as the lines of its goals."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.steps import markdown

FORMS = ("plain", "dense", "compressed")  # TensorFlow's; the others in fused graphs
LOW = 0.6  # of its roof: what a step should reach
_POOLINGS = ("max", "average")


def report(found: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: steps beside their roofs, whole networks, and which goals are met."""
    peaks = [row["peak"] for each in found for row in each["batches"]]
    copies = np.median([row["copies"] for each in found for row in each["batches"]], axis=0)
    parts = [
        f"One thread: {np.median(peaks):.0f} GFLOP/s in products of matrices; copies of 32 kB to "
        f"64 MB {copies.max():.0f} to {copies.min():.0f} GB/s, read and written.",
        "## Steps, one thread",
        _steps(found),
        "## Whole networks",
        _networks(found),
        "## Goals",
        "\n".join(f"- {line}" for line in _goals(found)),
    ]
    return "\n\n".join(parts)


def _rows(found: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    for each in found:
        for row in each["batches"]:
            yield each["network"], row


def _steps(found: Sequence[Mapping[str, Any]]) -> str:
    lines = []
    for name, row in _rows(found):
        for form in FORMS[1:]:
            steps = row[form]
            total = sum(step["ms"] for step in steps)
            work = sum(step["ms"] * step["gflops"] for step in steps) / total
            low = [step for step in steps if step["of_roof"] < LOW]
            worst = max(steps, key=lambda step: step["ms"] * (1 - min(step["of_roof"], 1)))
            lines.append(
                [
                    f"{name} {form}",
                    str(row["batch"]),
                    f"{total:.2f}",
                    f"{work:.0f}",
                    f"{work / row['peak']:.0%}",
                    f"{share(steps, _POOLINGS):.1%}",
                    f"{sum(step['ms'] for step in low) / total:.1%}",
                    f"{worst['step']}: {worst['ms'] / total:.1%} at {worst['of_roof']:.0%}",
                ]
            )
    titles = ["network", "batch", "ms", "GFLOP/s", "of peak", "pooling", f"below {LOW:.0%} of roof"]
    return markdown([*titles, "loses most: share of time, of roof"], lines)


def share(steps: Sequence[Mapping[str, Any]], kinds: Sequence[str]) -> float:
    """Of the time of steps, what some kinds of them take."""
    own = sum(step["ms"] for step in steps if step["kind"] in kinds)
    return own / sum(step["ms"] for step in steps)


def ratio(row: Mapping[str, Any], slow: tuple[int, int], fast: tuple[int, int]) -> float:
    """Median over rounds of one time over another; each (place in threads, form)."""
    times = np.array(row["seconds"])
    return float(np.median(times[:, slow[0], slow[1]] / times[:, fast[0], fast[1]]))


def of_ideal(each: Mapping[str, Any], row: Mapping[str, Any], thread: int) -> float:
    """Time of the compressed network over its MACs at the rate of TensorFlow's dense one."""
    macs = each["macs"]["layers"] / each["macs"]["plain"]
    return 1 / (ratio(row, (thread, 0), (thread, 2)) * macs)


def _networks(found: Sequence[Mapping[str, Any]]) -> str:
    lines = []
    for each in found:
        for row in each["batches"]:
            times = 1e3 * np.median(row["seconds"], axis=0)
            for thread, threads in enumerate(each["threads"]):
                own = thread, 2
                litert = times.shape[1] > len(FORMS)
                lines.append(
                    [
                        each["network"],
                        str(row["batch"]),
                        str(threads),
                        f"{times[thread, 0]:.2f}",
                        f"{ratio(row, (thread, 0), (thread, 1)):.2f}",
                        f"{times[thread, 2]:.2f}",
                        f"{ratio(row, (thread, 0), own):.2f}",
                        f"{of_ideal(each, row, thread):.2f}",
                        f"{ratio(row, (0, 2), own):.2f}" if thread else "",
                        f"{ratio(row, (thread, 3), own):.2f}" if litert else "",
                    ]
                )
    titles = ["network", "batch", "threads", "TF dense ms", "dense fused", "compressed ms"]
    titles += ["speed-up", "time of ideal", "over one thread", "over LiteRT"]
    return markdown(titles, lines)


def _goals(found: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Each with its bound, what was found, and whether that is enough."""

    def line(text: str, value: float, bound: float, *, least: bool) -> str:
        met = value >= bound if least else value <= bound
        words = "at least" if least else "at most"
        return f"{text}: {value:.2f} ({words} {bound:g}): {'met' if met else 'missed'}"

    for each in found:
        last = len(each["threads"]) - 1
        for row in each["batches"]:
            where = f"{each['network']}, batch {row['batch']}, {each['threads'][last]} threads"
            if each["network"] in ("googlenet", "alexnet") and row["batch"] in (1, 16):
                bound = 1.6 if row["batch"] == 1 else 1.25
                value = of_ideal(each, row, last)
                yield line(f"{where}: time of ideal", value, bound, least=False)
            if row["batch"] == 1 and np.shape(row["seconds"])[2] > len(FORMS):
                value = ratio(row, (last, 3), (last, 2))
                yield line(f"{where}: over LiteRT", value, 1.3, least=True)
            if row["batch"] == 1 and last:
                value = ratio(row, (0, 2), (last, 2))
                yield line(f"{where}: over one thread", value, 1.7, least=True)
            if row["pairs"]:
                text = f"{where.rsplit(',', 1)[0]}: pairs of 1/4, time of ideal"
                yield line(f"{text}, mean", float(np.mean(row["pairs"])), 1.2, least=False)
                yield line(f"{text}, worst", max(row["pairs"]), 1.5, least=False)
            if each["network"] == "googlenet":
                value = share(row["compressed"], _POOLINGS)
                yield line(f"{where}: pooling's share of time", value, 0.05, least=False)
            bound = 1.5 if each["network"] == "mobilenetv2" else 1.0
            value = ratio(row, (last, 0), (last, 1))
            yield line(f"{where}: dense fused over TensorFlow", value, bound, least=True)
