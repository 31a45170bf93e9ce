"""Kills every command in the middle, starts it again, and compares with what nobody killed.

    python benchmarks/tfds_folders.py fashion_mnist --data_dir=out/tfds
    python benchmarks/kills.py --dataset=fashion_mnist --data_dir=out/tfds --output_dir=out/kills

runs train, compress, fine_tune, evaluate, export, benchmark and report one after the other, then
each of them once more into another folder, where it is killed with SIGKILL a few times before it is
let finish: at even parts of the time that its work took, and not before it has kept something new
to go on from (but for benchmark and report, which begin anew). The table has when it was killed,
what was kept then, and how far weights and numbers are apart.

What a clock decides is another number in every run, killed or not. Times are left out therefore;
and `compress`, whose plan follows from times of layers and of networks, finds in both runs those
that the first one kept (ESPACE_TF_CACHE is a folder in --output_dir).
About 40 minutes on 2 busy cores with the splits of docs/binaries.md, hours with all images.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags
from rich.console import Console
from rich.table import Table

from espace_tf.bin.inputs import models

_DATASET = flags.DEFINE_string("dataset", "fashion_mnist", "As for the commands.")
_DATA_DIR = flags.DEFINE_string("data_dir", None, "As for the commands.")
_SPLIT = flags.DEFINE_string("train_split", "train", "As for the commands.")
_TEST = flags.DEFINE_string("test_split", "test", "As for the commands.")
_MODEL = flags.DEFINE_string("model", "resnet20", "What is trained.")
_SPEEDUP = flags.DEFINE_string("speedup", "2", "How much faster it is made.")
_EPOCHS = flags.DEFINE_integer("epochs", 2, "Of training, and of fine-tuning.", 1)
_COMMANDS = flags.DEFINE_list(
    "commands", [], "Which; none: all. Those before them must have run into output_dir/whole."
)
_KILLS = flags.DEFINE_integer("kills", 2, "How often each command is killed.", 1)
_OUTPUT = flags.DEFINE_string("output_dir", "out/kills", "Where the results go.")

ROOT = Path(__file__).parents[1]
# Numbers that a clock decides.
_CLOCK = (
    *("milliseconds", "ratio", "speedup", "seconds", "times", "error"),
    *("planned_speedup", "planned_error"),
)


def commands(folder: Path, whole: Path) -> dict[str, list[str]]:
    """Flags of every command; what it reads is of the run that nobody killed.

    Args:
        folder: where results go.
        whole: where the results of the whole run are.
    """
    data = [f"--dataset={_DATASET.value}", f"--test_split={_TEST.value}"]
    data += [] if _DATA_DIR.value is None else [f"--data_dir={_DATA_DIR.value}"]
    training = [f"--train_split={_SPLIT.value}", f"--epochs={_EPOCHS.value}"]
    training += ["--checkpoint_every=20"]
    original = f"--original={whole / 'train' / 'model.keras'}"
    tuned = f"--model={whole / 'fine_tune' / 'model.keras'}"
    split = f"--train_split={_SPLIT.value}"
    found = {
        "train": [f"--model={_MODEL.value}", *data, *training],
        "compress": [
            *(f"--model={whole / 'train' / 'model.keras'}", *data, split, "--batch_size=16"),
            *(f"--speedup={_SPEEDUP.value}", "--formats=float32"),
        ],
        "fine_tune": [
            *(f"--model={whole / 'compress' / 'compressed.keras'}", original, *data, *training),
            "--nokeep_best",  # or both may be what they were before
        ],
        "evaluate": [tuned, original, *data],
        "export": [tuned, *data, split, "--formats=float32,int8,saved_model"],
        "benchmark": [tuned, original, *data, "--batch_size=16", "--repeats=200"],
        "report": [
            tuned,
            f"--benchmark={whole / 'benchmark' / 'benchmark.json'}",
            f"--evaluation={whole / 'evaluate' / 'evaluate.json'}",
        ],
    }
    return {name: [*flags_, f"--output_dir={folder / name}"] for name, flags_ in found.items()}


def start(name: str, arguments: list[str], log: Path) -> subprocess.Popen:
    """The command in a process of its own."""
    times = str(Path(_OUTPUT.value).absolute() / "times")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}
    environment["ESPACE_TF_CACHE"] = times
    command = [sys.executable, "-m", f"espace_tf.bin.{name}", *arguments]
    with open(log, "ab") as file:
        return subprocess.Popen(command, stdout=file, stderr=file, env=environment)


def kept(arguments: list[str], name: str) -> dict[str, int] | None:
    """What a restart would go on from, by name, with its time; None if the work has not begun."""
    state = Path(arguments[-1].removeprefix("--output_dir=")) / f".{name}"
    if not (state / "run.json").is_file():
        return None
    found = {}
    for path in state.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # of an earlier analysis, gone meanwhile
            # One that is being written has a name that begins with a dot.
            if path.is_file() and not path.name.startswith("."):
                found[path.name.removesuffix(".step.json")] = path.stat().st_mtime_ns
    return {each: time_ for each, time_ in found.items() if each != "run.json"}


def finish(name: str, arguments: list[str], log: Path) -> tuple[float, float]:
    """Runs the command to its end; the seconds until its work began, and all."""
    begun, work = time.monotonic(), 0.0
    process = start(name, arguments, log)
    while process.poll() is None:
        if not work and kept(arguments, name) is not None:
            work = time.monotonic() - begun
        time.sleep(0.05)
    if process.returncode:
        raise RuntimeError(f"espace-{name} failed: see {log}")
    return work, time.monotonic() - begun


def kill_again_and_again(
    name: str, arguments: list[str], log: Path, seconds: tuple[float, float]
) -> list[str]:
    """Kills the command at even parts of its work; when, and what there was to go on from."""
    killed, before, folder = [], {}, Path(arguments[-1].removeprefix("--output_dir="))
    (work, whole), anew = seconds, name in ("benchmark", "report")
    for kill in range(1, _KILLS.value + 1):
        wait = work + (whole - work) * kill / (_KILLS.value + 1)
        process = None
        while process is None or process.poll() is not None:
            if process is not None:  # it was quicker this time
                shutil.rmtree(folder)
                wait /= 2
            begun, process = time.monotonic(), start(name, arguments, log)
            while process.poll() is None:
                there, now = kept(arguments, name), time.monotonic() - begun
                if now > wait and there is not None and (anew or there != before):
                    break
                time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
        before = kept(arguments, name)
        names = sorted(before, key=before.get)[-3:]  # the newest
        killed.append(f"{now:.0f} s ({', '.join(names) or 'nothing kept'})")
    return killed


def difference(one: Any, other: Any) -> float:
    """The largest absolute difference of two nests of numbers; infinite if they are not alike."""
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        names = [name for name in one if name not in _CLOCK and name != "run"]
        return max((difference(one[name], other[name]) for name in names), default=0.0)
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        return max(map(difference, one, other), default=0.0)
    if isinstance(one, int | float) and isinstance(other, int | float):
        return abs(one - other)
    return 0.0 if one == other or isinstance(one, str) else float("inf")


def weights_apart(one: Path, other: Path) -> float | None:
    """The largest difference of the weights of two folders' models; None if they have none."""
    apart = None
    for name in ("model.keras", "compressed.keras"):
        if (one / name).is_file():
            found = [models.load(each / name).get_weights() for each in (one, other)]
            pairs = zip(*found, strict=True)
            apart = max(float(np.abs(a - b).max()) for a, b in pairs)
    return apart


def files_alike(one: Path, other: Path) -> str:
    """How many of the files that hold no time are equal, byte for byte."""
    patterns = ["*.tflite", *["report.html"] * (one.name == "report")]
    names = sorted(path.name for pattern in patterns for path in one.glob(pattern))
    same = sum((one / name).read_bytes() == (other / name).read_bytes() for name in names)
    return f"{same} of {len(names)}" if names else ""


def main(argv: list[str]) -> None:
    """Runs everything twice and prints the table."""
    del argv
    output = Path(_OUTPUT.value)
    whole, cut = output / "whole", output / "cut"
    for each in (whole, cut):
        each.mkdir(parents=True, exist_ok=True)
    table = Table(title=f"{_MODEL.value} on {_DATASET.value}, {_SPLIT.value}")
    columns = ("command", "s", "killed after", "then s", "numbers apart", "weights apart")
    for column in (*columns, "same files"):
        table.add_column(column)
    rows = []
    for name, arguments in commands(whole, whole).items():
        if _COMMANDS.value and name not in _COMMANDS.value:
            continue
        log, again = output / f"{name}.log", commands(cut, whole)[name]
        seconds = finish(name, arguments, log)
        killed = kill_again_and_again(name, again, log, seconds)
        _, rest = finish(name, again, log)
        texts = [(each / name / f"{name}.json").read_text() for each in (whole, cut)]
        apart = difference(*map(json.loads, texts))
        weights = weights_apart(whole / name, cut / name)
        row = [name, f"{seconds[1]:.0f}", ", ".join(killed), f"{rest:.0f}", f"{apart:.1e}"]
        row += ["" if weights is None else f"{weights:.1e}"]
        rows.append([*row, files_alike(whole / name, cut / name)])
        print(*rows[-1], sep=" | ", flush=True)
    for row in rows:
        table.add_row(*row)
    Console(width=120).print(table)


if __name__ == "__main__":
    app.run(main)
