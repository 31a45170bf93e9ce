"""One network of each family of keras.applications through `compress`, and networks of your own.

    python -m benchmarks.applications --output_dir=out/applications

compresses each at its default size with random weights, 64 images, speedup=1.5 and defaults, for
--runtimes, in a process of its own; another process loads what was saved and measures both
networks anew. The table has the speed asked for, that which `compress` measured, that which the
other process measured, seconds and peak memory of the first, and what it warned of. A network that
was finished before is read from --output_dir; one that fails, or takes longer than --limit seconds,
is a row that says so. A trained network and images as it takes them, [N, H, W, C] in an .npy file
of more than 512 (which calibrate; the others judge):

    python -m benchmarks.applications --models=net.h5 --images=net.npy --speedup=2

adds agreement with the original (the least top-1 and cosine of all outputs) before and after
`fine_tune` with its defaults and without labels; --min_agreement wins over the speed. Writes the
table as Markdown to --markdown, between comments with the name of --table if the file has them. On
two cores some minutes a row.
"""

import functools
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from absl import app, flags, logging
from rich.console import Console

from benchmarks.one_network import FAMILIES, PARTS, do
from benchmarks.steps import Steps, markdown, put_table, rich_table

# Of warnings: what a prediction was, and what the columns of agreement say.
_ASIDE = re.compile(r"; the plan predicted.*|; on \d+ held-out.*| \(on \d+ held-out[^)]*\)")
_NEAR, _ERROR = 0.07, 200  # of a speed; letters of an error
COLUMNS = ("network", "runtime", "asked", "landed", "re-measured", "seconds", "peak MB", "why")
AGREEMENTS = ("top-1, cosine", "after fine_tune")

_NETWORKS = flags.DEFINE_list("networks", list(FAMILIES), "Of keras.applications.")
_MODELS = flags.DEFINE_list("models", [], "Files of trained networks, instead.")
_IMAGES = flags.DEFINE_list("images", [], "Their images, an .npy file each.")
_SPEEDUP = flags.DEFINE_float("speedup", 1.5, "Asked for.", 1.01)
_AGREEMENT = flags.DEFINE_float("min_agreement", None, "As in compress.", 0.0, 0.9999)
_RUNTIMES = flags.DEFINE_list("runtimes", ["tf", "litert"], "Where time is measured.")
_RECONSTRUCT = flags.DEFINE_float("reconstruct", 60.0, "As in EspaceConfig.", 0.0)
_LIMIT = flags.DEFINE_float("limit", 1800.0, "Seconds that one process may take.", 1.0)
_OUTPUT = flags.DEFINE_string("output_dir", "out/applications", "Where results are kept.")
_MARKDOWN = flags.DEFINE_string("markdown", None, "A .md file. Default: table.md in --output_dir.")
_PART = flags.DEFINE_enum("part", None, PARTS, "This part alone, of the first of all.")
_TABLE = flags.DEFINE_string("table", "applications", "Which table of that file it is.")


def main(_) -> None:
    """Runs what is missing, prints the table and writes it."""
    if len(_MODELS.value) != len(_IMAGES.value):
        raise app.UsageError("--models and --images must be as many")
    output = Path(_OUTPUT.value)
    networks = list(zip(_MODELS.value, _IMAGES.value, strict=True))
    networks = networks or [(each, None) for each in _NETWORKS.value]
    if _PART.value is not None:
        do(_PART.value, *networks[0], output, runtime=_RUNTIMES.value[0], **_asked())
        return
    steps = Steps(output, _asked())
    rows = []
    for network, images in networks:
        for runtime in _RUNTIMES.value:
            name = f"{Path(network).stem}-{runtime}"
            logging.info("%s", name)
            given = {"network": network, "images": images, "runtime": runtime}
            found = steps.run(name, functools.partial(_tried, given=given))
            rows.append(row(Path(network).stem, runtime, found))
    columns = (*COLUMNS, *AGREEMENTS) if _MODELS.value else COLUMNS
    rows = [each[: len(columns)] for each in rows]
    Console(width=160).print(rich_table("compress", columns, rows))
    target = Path(_MARKDOWN.value or output / "table.md")
    put_table(target, _TABLE.value, markdown(columns, rows))


def _asked() -> dict[str, Any]:
    """What every network is asked for."""
    return {each.name: each.value for each in (_SPEEDUP, _AGREEMENT, _RECONSTRUCT)}


def _tried(work: Path, given: dict[str, Any]) -> dict[str, Any]:
    """What each part found, as far as they came."""
    found: dict[str, Any] = {}
    for part in PARTS if given["images"] else PARTS[:2]:
        kind = "networks" if given["images"] is None else "models"
        known = {kind: given["network"], "images": given["images"], "part": part}
        known |= {"runtimes": given["runtime"], "output_dir": work, **_asked()}
        command = [f"--{name}={value}" for name, value in known.items() if value is not None]
        command = [sys.executable, "-W", "ignore", "-m", __spec__.name, *command]
        try:
            ran = subprocess.run(command, capture_output=True, text=True, timeout=_LIMIT.value)
        except subprocess.TimeoutExpired:
            return {**found, "error": f"{part} took longer than {_LIMIT.value:g} s"}
        if ran.returncode:
            last = ran.stderr.strip().splitlines()[-1:] or [f"exit status {ran.returncode}"]
            return {**found, "error": f"{part}: {last[0][:_ERROR]}"}
        found[part] = json.loads((work / f"{part}.json").read_text())
    return found


def row(name: str, runtime: str, found: dict[str, Any]) -> list[str]:
    """One line of the table, from what `_tried` returns."""
    known = {part: found.get(part, {}) for part in PARTS}
    made, again = known["compress"], known["measure"]
    cells = [
        f"{value:.2f}" if value else "" for value in (made.get("landed"), again.get("speedup"))
    ]
    cost = [f"{made[key]:.0f}" if made else "" for key in ("seconds", "megabytes")]
    agreements = [_agreement(known[part]) for part in ("measure", "tune")]
    return [name, runtime, f"{_SPEEDUP.value:g}", *cells, *cost, _why(found), *agreements]


def _why(found: dict[str, Any]) -> str:
    """Why a speed is not the one that was asked for, nor that which was measured before."""
    if "error" in found:
        return found["error"]
    landed, again = found["compress"]["landed"], found["measure"]["speedup"]
    told = [_ASIDE.sub("", text) for text in found["compress"]["warnings"]]
    if not told and abs(again / landed - 1) > _NEAR:
        told = ["another process measures another speed"]
    if not told and landed > _SPEEDUP.value * (1 + _NEAR):
        told = ["one layer is changed; the fused graph brings the rest"]
    return "; ".join(told)


def _agreement(known: dict[str, Any]) -> str:
    if "top1" not in known:
        return ""
    return f"{min(known['top1']):.3f}, {min(known['cosine']):.3f}"


if __name__ == "__main__":
    app.run(main)
