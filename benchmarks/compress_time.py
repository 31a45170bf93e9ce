"""Where the seconds of `compress` go, against its two passes over the images for statistics.

    python -m benchmarks.compress_time
    python -m benchmarks.compress_time --models=resnet20.keras,googlenet.keras --images=256 \
        --images=512 --speedup=2 --speedup=4

Each network, the demo's without --models, in a process of its own, on Fashion-MNIST (or --data).
Seconds on the wall and of the processor by phase; "passes" is how many times longer the whole call
took than the two passes. A network that was finished before is read from --output_dir. All
layers are measured; --noanew uses what is known of them from earlier calls.
"""

import functools
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

from absl import app, flags
from rich.console import Console

from benchmarks.phases import COLUMNS, Clock, row
from benchmarks.steps import Steps, markdown, put_table, rich_table, settings_of, write_json

_FREE = (
    "models",
    "images",
    "speedup",
    "output_dir",
    "markdown",
    "child",
)  # flags that do not decide what is found
_DEMO = str(Path(__file__).parents[1] / "demo" / "network.keras")

_MODELS = flags.DEFINE_list("models", [_DEMO], "Files of Keras.")
_DATA = flags.DEFINE_string("data", None, "As in espace-compress. Default: Fashion-MNIST.")
_IMAGES = flags.DEFINE_multi_integer("images", [256], "That the call gets; once for each model.", 8)
_TEST = flags.DEFINE_integer("test", 2000, "Held-out images whose top-1 is told.", 0)
_BATCH = flags.DEFINE_integer("batch", 1, "Images per call that the speed is of.", 1)
_SPEEDUP = flags.DEFINE_multi_float("speedup", [2.0], "Asked for; once for each model.", 1.01)
_ANEW = flags.DEFINE_bool("anew", True, "Use no times of layers from earlier calls.")
_OUTPUT = flags.DEFINE_string("output_dir", "out/compress_time", "Where results are kept.")
_MARKDOWN = flags.DEFINE_string("markdown", None, "A .md file that the table is written into.")
_CHILD = flags.DEFINE_string("child", None, "Measure the first model alone, into this file.")


def measured(path: str) -> dict[str, Any]:
    """What one call takes and gives; in a process that did nothing before."""
    import contextlib

    import espace_tf
    from benchmarks.images import FASHION
    from espace_tf.bin.inputs import array_files, models

    model, images = models.load(Path(path)), array_files.load(_DATA.value or FASHION)
    (count,), (speedup,) = _IMAGES.value, _SPEEDUP.value
    given = images.x[:count], images.y[:count]
    config = espace_tf.EspaceConfig(batch_size=_BATCH.value)
    clock = Clock()
    with contextlib.redirect_stdout(clock):
        small = espace_tf.compress(model, given, speedup=speedup, config=config)
    clock.end()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    made = small.espace_plan
    x, y = images.x_test[: _TEST.value], images.y_test[: _TEST.value]
    right = [float((each.predict(x, verbose=0).argmax(-1) == y).mean()) for each in (model, small)]
    return {
        "images": len(given[0]),
        "asked": speedup,
        "phases": clock.seconds,
        "megabytes": peak,
        "landed": made.measured_speedup,
        "agreement": made.comparison.agreement,
        "top1": right,
    }


def _run(path: str, images: int, speedup: float, work: Path) -> dict[str, Any]:
    import json

    target = work / "found.json"
    own = settings_of(flags.FLAGS, sys.argv[0], _FREE)
    command = [f"--{key}={value}" for key, value in own.items() if value is not None]
    command = [sys.executable, "-m", "benchmarks.compress_time", f"--models={path}", *command]
    command += [f"--images={images}", f"--speedup={speedup}"]
    environment = {**os.environ, "ESPACE_TF_CACHE": "off"} if _ANEW.value else None
    subprocess.run([*command, f"--child={target}"], check=True, env=environment)
    return json.loads(target.read_text())


def main(_: list[str]) -> None:
    """Runs what is missing, prints the table and writes it."""
    if _CHILD.value:
        write_json(Path(_CHILD.value), measured(_MODELS.value[0]))
        return
    steps = Steps(Path(_OUTPUT.value), settings_of(flags.FLAGS, sys.argv[0], _FREE))
    rows = []
    for index, path in enumerate(_MODELS.value):
        asked = [each.value[min(index, len(each.value) - 1)] for each in (_IMAGES, _SPEEDUP)]
        name = "-".join(map(str, [Path(path).stem, *asked]))
        rows.append(row(Path(path).stem, steps.run(name, functools.partial(_run, path, *asked))))
    Console(width=200).print(rich_table("compress: wall (processor) seconds", COLUMNS, rows))
    if _MARKDOWN.value:
        put_table(Path(_MARKDOWN.value), "compress_time", markdown(COLUMNS, rows))


if __name__ == "__main__":
    app.run(main)
