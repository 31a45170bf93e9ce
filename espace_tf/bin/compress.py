"""Makes a trained Keras network faster on this machine's clock, and exports it.

    python -m espace_tf.bin.compress --model=network.keras --dataset=images.npz --speedup=4 \\
        --output_dir=out

reads a Keras model (.keras, .h5, .hdf5 or a SavedModel's folder) and its training data, finds which
convolutions to make thinner and which output positions to skip, rebuilds the network with them, and
fine-tunes it if --epochs says so. Without --dataset the network's weights alone decide, which is
worse. 8-bit images are scaled to [0, 1], unless the network takes integers or begins with a layer
that scales them itself; --preprocessing says otherwise. Into --output_dir go

    compressed.keras    the new model, for keras.models.load_model after import espace_tf
    plan.json           what became of every layer (with its arrays in an .npz beside it)
    model.tflite        for LiteRT, from built-in operators; model.int8.tflite etc. by --formats
    report.html         one page with times, ranks, masks and reasons
    compress.json       the numbers of the table printed at the end
    compress.flags      all flags, for --flagfile
    events              for TensorBoard

With several speeds, --speedup=2,3,4 or one flag for each, the network is analysed once and every
speed gets a folder of its own there, 2x, 3x and 4x; sweep.svg shows what each speed costs, as does
every report, and sweep.json has the numbers. --min_agreement=.99 makes the network as fast as it
can be while 99 of 100 answers stay as they are; --max_accuracy_drop and --max_loss_increase
likewise; beside a --speedup they win over it.

Killed at any moment, the same command goes on: parts of the analysis, plans, training and files
that were finished are kept. Times of layers are kept for the next run on this machine in
~/.cache/espace_tf; the environment variable ESPACE_TF_CACHE names another folder, or keeps nothing
if it is "off".
"""

import math
from typing import Any

from absl import flags

from espace_tf.bin import shared_flags
from espace_tf.bin.frame import formats, tables
from espace_tf.bin.frame.command import Command, start
from espace_tf.bin.frame.run import Run
from espace_tf.checks import check_number, require
from espace_tf.config import require_runtime

_SPEEDUP = flags.DEFINE_multi_string(
    "speedup",
    [],
    "How many times faster on the wall clock; above 1. Several: 2,3,4. Default: 2, or as fast as "
    "the next three flags allow if one is given.",
)
_BUDGET = (
    flags.DEFINE_float(
        "max_loss_increase", None, "How much the mean loss per image may grow on held-out images."
    ),
    flags.DEFINE_float(
        "max_accuracy_drop", None, "How much the share of right answers may fall; .01 is a point."
    ),
    flags.DEFINE_float(
        "min_agreement", None, "Share of the answers that must stay the given network's, below 1."
    ),
)
_PROFILE = flags.DEFINE_enum(
    "profile", "default", ["default", "faithful"], "The best known, or the published method."
)
_INCLUDE = flags.DEFINE_string("include", None, "Only layers whose path this expression matches.")
_EXCLUDE = flags.DEFINE_string("exclude", None, "No layers whose path this expression matches.")
_REPORT = flags.DEFINE_bool("report", True, "Write report.html, and sweep.svg for several speeds.")
_USUAL_SPEEDUP = 2.0


def run() -> None:
    """The command `espace-compress`."""
    start(COMMAND)


def _check() -> None:
    budget()
    formats.check(shared_flags.FORMATS.value, shared_flags.DATASET.value)
    if shared_flags.EPOCHS.value and shared_flags.DATASET.value is None:
        raise ValueError("--epochs needs --dataset")
    shared_flags.check_training()
    require_runtime(shared_flags.RUNTIME.value)
    if _REPORT.value:
        require("report", "jinja2", "matplotlib")
    config()


def budget() -> dict[str, float]:
    """What may be lost, as `espace_tf.compress` takes it; nothing if no flag says so.

    Raises:
        ValueError: a number out of its range, or flags that do not go with it.
    """
    found = {flag.name: flag.value for flag in _BUDGET if flag.value is not None}
    for name, value in found.items():
        check_number(value, f"--{name}", 0.0)
        if name == "min_agreement" and value >= 1:
            raise ValueError(f"--{name} must be below 1. Received: {value:g}")
        if name != "min_agreement" and value <= 0:
            raise ValueError(f"--{name} must be above 0. Received: {value:g}")
        if shared_flags.DATASET.value is None:
            raise ValueError(f"--{name} needs --dataset: images show what is lost")
        if _PROFILE.value != "default":
            raise ValueError(f"--{name} needs --profile=default. Received: {_PROFILE.value}")
        if len(speedups()) > 1:
            raise ValueError(f"--{name} goes with one --speedup, or none. Received: several")
    return found


def speedups() -> list[float | None]:
    """The speeds asked for; [None] where only what may be lost is said.

    Raises:
        ValueError: one is no speed, or named twice.
    """
    if not _SPEEDUP.value:
        return [None if any(flag.value is not None for flag in _BUDGET) else _USUAL_SPEEDUP]
    texts = [text.strip() for given in _SPEEDUP.value for text in given.split(",")]
    try:
        found = [float(text) for text in texts]
    except ValueError:
        found = []
    if not found or not all(1 < speedup < math.inf for speedup in found):
        raise ValueError(
            f"--speedup must be a number above 1, or several. Received: {', '.join(texts)}"
        )
    if len({f"{speedup:g}" for speedup in found}) < len(found):
        raise ValueError(f"--speedup must be different numbers. Received: {', '.join(texts)}")
    return found


def config(cache_dir: Any = None) -> Any:
    """What the flags say to `espace_tf.compress`."""
    from espace_tf.config import EspaceConfig

    return EspaceConfig(
        profile=_PROFILE.value,
        runtime=shared_flags.RUNTIME.value,
        batch_size=shared_flags.BATCH.value,
        threads=shared_flags.THREADS.value,
        include=_INCLUDE.value,
        exclude=_EXCLUDE.value,
        seed=shared_flags.SEED.value,
        cache_dir=cache_dir,
    )


def _work(run: Run) -> dict[str, Any]:
    from espace_tf.bin import opening
    from espace_tf.bin.work import compression, training

    model = opening.model(shared_flags.MODEL)
    data = None
    if shared_flags.DATASET.value is not None:
        source = opening.source()
        data = compression.Data(opening.examples(source, model), opening.test_split(source))
    asked, epochs = speedups(), shared_flags.EPOCHS.value or 0
    run.begin(
        [
            ("network", f"{model.name}, {model.count_params():,} parameters"),
            ("data", "none" if data is None else data.described()),
            ("speed", _described(asked)),
            ("training", training.described(epochs, data.examples) if epochs else "none"),
            ("formats", ", ".join(shared_flags.FORMATS.value)),
            ("results", f"{run.output / 'compressed.keras'}, {run.result}"),
        ]
    )
    work = compression.Compression(run, model, data, config(run.state / "analysis"), budget())
    found = work.all(asked, epochs)
    if _REPORT.value:
        work.draw()
    return {"model": model.name, "speeds": found}


def _described(asked: list[float | None]) -> str:
    """What is asked for, for a reader."""
    limits = [f"{name}={value:g}" for name, value in budget().items()]
    speeds = ", ".join(f"{each:g}" for each in asked if each is not None)
    speed = f"{speeds} times" if speeds else "as fast as can be"
    return ", ".join([speed, *limits, _PROFILE.value])


COMMAND = Command(
    name="compress",
    description=__doc__,
    flags=(
        *("model", "speedup", *(flag.name for flag in _BUDGET)),
        *("profile", "include", "exclude", "formats", "report"),
        *(*shared_flags.DATA, *shared_flags.STREAMS, *shared_flags.TRAINING),
        *(*shared_flags.TIMING, *shared_flags.COMMON),
    ),
    needs=("model", "output_dir"),
    check=_check,
    work=_work,
    table=tables.compress_table,
)

if __name__ == "__main__":
    run()
