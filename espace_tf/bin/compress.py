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
every report, and sweep.json has the numbers.

Killed at any moment, the same command goes on: parts of the analysis, plans, training and files
that were finished are kept. Times of layers are kept for the next run on this machine in
~/.cache/espace_tf; the environment variable ESPACE_TF_CACHE names another folder, or keeps nothing
if it is "off".
"""

import math
from typing import Any

from absl import flags

from espace_tf.bin import formats, shared_flags, tables
from espace_tf.bin.command import Command, start
from espace_tf.bin.run import Run
from espace_tf.checks import require
from espace_tf.config import require_runtime

_SPEEDUP = flags.DEFINE_multi_string(
    "speedup", ["2"], "How many times faster on the wall clock; above 1. Several: 2,3,4."
)
_PROFILE = flags.DEFINE_enum(
    "profile", "default", ["default", "faithful"], "The best known, or the published method."
)
_INCLUDE = flags.DEFINE_string("include", None, "Only layers whose path this expression matches.")
_EXCLUDE = flags.DEFINE_string("exclude", None, "No layers whose path this expression matches.")
_REPORT = flags.DEFINE_bool("report", True, "Write report.html, and sweep.svg for several speeds.")


def run() -> None:
    """The command `espace-compress`."""
    start(COMMAND)


def _check() -> None:
    speedups()
    formats.check(shared_flags.FORMATS.value, shared_flags.DATASET.value)
    if shared_flags.EPOCHS.value and shared_flags.DATASET.value is None:
        raise ValueError("--epochs needs --dataset")
    shared_flags.check_training()
    require_runtime(shared_flags.RUNTIME.value)
    if _REPORT.value:
        require("report", "jinja2", "matplotlib")
    config()


def speedups() -> list[float]:
    """The speeds asked for.

    Raises:
        ValueError: one is no speed, or named twice.
    """
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
    from espace_tf.bin import compression, opening, training

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
            ("speed", ", ".join(f"{each:g}" for each in asked) + f" times, {_PROFILE.value}"),
            ("training", training.described(epochs, data.examples) if epochs else "none"),
            ("formats", ", ".join(shared_flags.FORMATS.value)),
            ("results", f"{run.output / 'compressed.keras'}, {run.result}"),
        ]
    )
    work = compression.Compression(run, model, data, config(run.state / "analysis"))
    found = work.all(asked, epochs)
    if _REPORT.value:
        work.draw()
    return {"model": model.name, "speeds": found}


COMMAND = Command(
    name="compress",
    description=__doc__,
    flags=(
        *("model", "speedup", "profile", "include", "exclude", "formats", "report"),
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
