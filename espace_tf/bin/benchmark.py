"""Times networks side by side, call by call in turns, each as it is deployed.

    python -m espace_tf.bin.benchmark --model=out/tune/model.keras \\
        --original=out/train/model.keras --batch_size=1 --output_dir=out/benchmark

With --dataset they run on images of it, without on noise, on which networks differ more. Into
--output_dir go benchmark.json with the numbers of the table that is printed, benchmark.flags for
--flagfile, and events for TensorBoard.
"""

import dataclasses
from typing import Any

from absl import flags

from espace_tf.bin import shared_flags
from espace_tf.bin.frame import tables
from espace_tf.bin.frame.command import Command, start
from espace_tf.bin.frame.run import Run
from espace_tf.config import require_runtime, runtime_title

_REPEATS = flags.DEFINE_integer("repeats", 30, "Timed calls of each network.", 1)


def run() -> None:
    """The command `espace-benchmark`."""
    start(COMMAND)


def _check() -> None:
    require_runtime(shared_flags.RUNTIME.value)


def _work(run: Run) -> dict[str, Any]:
    from espace_tf.bin import opening
    from espace_tf.timing.benchmark import benchmark

    found = {
        name: opening.model(flag)
        for name, flag in (("original", shared_flags.ORIGINAL), ("model", shared_flags.MODEL))
        if flag.value is not None
    }
    settings = {"runtime": shared_flags.RUNTIME.value, "batch_size": shared_flags.BATCH.value}
    settings["threads"] = shared_flags.THREADS.value
    inputs = None
    if shared_flags.DATASET.value is not None:
        source = opening.source()
        split = opening.test_split(source) or next(iter(source.sizes))
        inputs = opening.examples(source, next(iter(found.values()))).held_out(split)
    run.begin(
        [
            ("networks", ", ".join(each.name for each in found.values())),
            ("data", "noise" if inputs is None else f"{source.name} ({split})"),
            ("timing", f"{_REPEATS.value} calls of each, {_described(settings)}"),
            ("results", str(run.result)),
        ]
    )
    options = {**settings, "inputs": inputs, "names": list(found), "repeats": _REPEATS.value}
    rows = run.step(
        "rows", lambda: [dataclasses.asdict(row) for row in benchmark(*found.values(), **options)]
    )
    return {**settings, "models": {row["name"]: row for row in rows}}


def _described(settings: dict[str, Any]) -> str:
    """For a reader."""
    threads = "all threads" if settings["threads"] is None else f"{settings['threads']} threads"
    return f"{runtime_title(settings['runtime'])}, batch of {settings['batch_size']}, {threads}"


COMMAND = Command(
    name="benchmark",
    description=__doc__,
    flags=(
        *("model", "original", *shared_flags.TIMING, "repeats", *shared_flags.DATA),
        *shared_flags.COMMON,
    ),
    needs=("model", "output_dir"),
    check=_check,
    work=_work,
    table=tables.benchmark_table,
)

if __name__ == "__main__":
    run()
