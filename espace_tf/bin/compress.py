"""Makes a trained Keras network faster on this machine's clock, and exports it.

    python -m espace_tf.bin.compress --model=network.keras --data=images.npz --speedup=4 \\
        --output_dir=out

reads a Keras model (.keras, .h5, .hdf5 or a SavedModel's folder) and its training data, finds which
convolutions to make thinner and which output positions to skip, rebuilds the network with them, and
fine-tunes it if --epochs says so. The data is one of

    images.npz      with x and, if there are labels, y; also x_test and y_test to judge it on
    a folder        of idx files as MNIST and Fashion-MNIST come in (train-images-idx3-ubyte.gz ...)
    tfds:NAME       a TensorFlow Dataset that has been prepared before
    nothing         without --data the network's weights alone decide, which is worse

8-bit images are scaled to [0, 1], unless the network takes integers or begins with a layer that
scales them itself; --preprocessing says otherwise. Into --output_dir go

    compressed.keras    the new model, for keras.models.load_model after import espace_tf
    plan.json           what became of every layer (with its arrays in an .npz beside it)
    model.tflite        for LiteRT, from built-in operators; model.int8.tflite etc. by --export
    report.html         one page with times, ranks, masks and reasons
    summary.json        the numbers of the table printed at the end

With several speeds, --speedup=2,3,4 or one flag for each, the network is analysed once and every
speed gets a folder of its own there, 2x, 3x and 4x; sweep.svg shows what each speed costs, as does
every report, and sweep.json has the numbers.

Times of layers are kept for the next run on this machine in ~/.cache/espace_tf; the environment
variable ESPACE_TF_CACHE names another folder, or keeps nothing if it is "off".

Every file appears whole or not at all. Flags may stand in a file, one a line, named by --flagfile.
Exit status: 0 done; 1 a flag, a file or the model is not usable, said in one line. --verbosity=1
adds where, and what TensorFlow tells of its own. Prints progress to the standard output.
"""

import contextlib
import dataclasses
import json
import math
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags, logging

from espace_tf.bin import data as bin_data
from espace_tf.bin import models, outcome
from espace_tf.bin.quiet import without_chatter
from espace_tf.checks import MOST_SEED, MOST_THREADS, require
from espace_tf.config import RUNTIMES, require_runtime
from espace_tf.files import atomic_write, checked_path, output_folder
from espace_tf.records import saving

_QUANTIZATIONS = {"float32": None, "float16": "float16", "dynamic": "dynamic", "int8": "int8"}

_MODEL = flags.DEFINE_string("model", None, "The trained network: a file or folder.")
_DATA = flags.DEFINE_string("data", None, "Training data: an .npz, an idx folder or tfds:NAME.")
_SPEEDUP = flags.DEFINE_multi_string(
    "speedup", ["2"], "How many times faster on the wall clock; above 1. Several: 2,3,4."
)
_OUTPUT = flags.DEFINE_string("output_dir", None, "Where the results go; made if it is not there.")
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Write into a folder that holds files already.")
_PROFILE = flags.DEFINE_enum(
    "profile", "default", ["default", "faithful"], "The best known, or the published method."
)
_RUNTIME = flags.DEFINE_enum(
    "runtime", "tf", list(RUNTIMES), "What must run it faster: TensorFlow, LiteRT (TFLite), ..."
)
_BATCH = flags.DEFINE_integer("batch_size", 1, "Images per call when time is measured.", 1)
_THREADS = flags.DEFINE_integer(
    "threads", None, "CPU threads; default: all that there are.", 1, MOST_THREADS
)
_EPOCHS = flags.DEFINE_integer(
    "epochs", 0, "Fine-tuning: passes over the data, with the given network as teacher.", 0
)
_SEED = flags.DEFINE_integer("seed", 0, "Of everything random.", 0, MOST_SEED)
_LIMIT = flags.DEFINE_integer("limit", None, "Read at most this many examples of the data.", 1)
_INCLUDE = flags.DEFINE_string("include", None, "Only layers whose path this expression matches.")
_EXCLUDE = flags.DEFINE_string("exclude", None, "No layers whose path this expression matches.")
_EXPORT = flags.DEFINE_list(
    "export", ["float32"], f"TensorFlow Lite files to write: any of {', '.join(_QUANTIZATIONS)}."
)
_PREPROCESSING = flags.DEFINE_enum(
    "preprocessing",
    "auto",
    list(bin_data.PREPROCESSING),
    "8-bit images: as they are, in [0, 1], in [-1, 1], or as the network's first layers suggest.",
)
_REPORT = flags.DEFINE_bool("report", True, "Write report.html, and sweep.svg for several speeds.")
flags.mark_flags_as_required(["model", "output_dir"])


def run() -> None:
    """The command `espace-compress`."""
    if __name__ != "__main__":
        # absl's --help speaks for the module that was started, here a script without a word.
        sys.modules["__main__"].__doc__ = __doc__
        for flag in flags.FLAGS.get_flags_for_module(__name__):
            flags.FLAGS.register_key_flag_for_module(sys.argv[0], flag)
    app.run(main)


def main(argv: list[str]) -> int:
    """Does what the module says; returns the exit status."""
    chatty = flags.FLAGS["verbosity"].present
    try:
        if len(argv) > 1:
            raise ValueError(f"arguments must be flags. Received: {' '.join(argv[1:])}")
        _check_flags()
        output = _output_folder(_OUTPUT.value)
        with contextlib.nullcontext() if chatty else without_chatter():
            _compress(output)
    except _errors() as error:
        logging.debug("The error came from here:", exc_info=True)
        print(f"espace-compress: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    return 0


def _errors() -> tuple[type[Exception], ...]:
    """What flags, files, data and models that are not usable raise."""
    import tensorflow as tf

    own = (ValueError, TypeError, OSError, ImportError, RuntimeError, ArithmeticError, MemoryError)
    return (*own, tf.errors.OpError)


def _check_flags() -> None:
    """What absl's own checks of single flags do not cover; before anything slow is done."""
    _speedups()
    unknown = sorted(set(_EXPORT.value) - set(_QUANTIZATIONS))
    if unknown:
        raise ValueError(
            f"--export must list some of {', '.join(_QUANTIZATIONS)}. Received: {unknown[0]!r}"
        )
    needs = {"--epochs": _EPOCHS.value > 0, "--export=int8": "int8" in _EXPORT.value}
    missing = [flag for flag, asked in needs.items() if asked and _DATA.value is None]
    if missing:
        raise ValueError(f"{missing[0]} needs --data")
    require_runtime(_RUNTIME.value)
    if _EXPORT.value:
        require_runtime("litert")
    if _REPORT.value:
        require("report", "jinja2", "matplotlib")
    models.check(_MODEL.value, "--model")


def _speedups() -> list[float]:
    """The speeds asked for."""
    texts = [text.strip() for given in _SPEEDUP.value for text in given.split(",")]
    try:
        speedups = [float(text) for text in texts]
    except ValueError:
        speedups = []
    if not speedups or not all(1 < speedup < math.inf for speedup in speedups):
        raise ValueError(
            f"--speedup must be a number above 1, or several. Received: {', '.join(texts)}"
        )
    if len({_folder_name(speedup) for speedup in speedups}) < len(speedups):
        raise ValueError(f"--speedup must be different numbers. Received: {', '.join(texts)}")
    return speedups


def _folder_name(speedup: float) -> str:
    return f"{speedup:g}x"


def _output_folder(given: str) -> Path:
    """The folder for the results, made and tried."""
    path = checked_path(given, "--output_dir")
    if path.is_dir() and any(path.iterdir()) and not _OVERWRITE.value:
        raise ValueError(
            f"--output_dir must be new or empty. Received: {str(path)!r}, which holds files; name "
            "another one, or say --overwrite"
        )
    return output_folder(path, "--output_dir")


@dataclasses.dataclass
class _Result:
    """What was written for one speed."""

    small: Any
    rows: list[Any]
    accuracy: dict[str, float] | None
    summary: dict[str, Any]


def _compress(output: Path) -> None:
    """From the model file to all the results."""
    from rich.console import Console

    console, started, speedups = Console(), time.monotonic(), _speedups()
    _prepare_runtime()
    model = models.load(_MODEL.value, "--model")
    console.print(f"Read with {type(model).__module__.split('.')[0]}: {_MODEL.value}")
    options = {"model": model, "preprocessing": _PREPROCESSING.value, "limit": _LIMIT.value}
    data = None if _DATA.value is None else bin_data.load(_DATA.value, **options)
    judge = outcome.judge(model, data and data.test)
    if judge is not None:
        _warn_of_guesses(model, judge(model), len(data.x_test))
    console.rule("Analyse, plan, rebuild")
    smalls = _smaller(model, data, speedups)
    results = {}
    for speedup, small in zip(speedups, smalls, strict=True):
        folder = output
        if len(speedups) > 1:
            console.rule(f"{speedup:g} times faster")
            folder = output_folder(output / _folder_name(speedup), "--output_dir")
        results[folder] = _write(model, small, speedup, data, judge, folder)
        results[folder].summary["seconds"] = round(time.monotonic() - started, 1)
        _write_json(folder / "summary.json", results[folder].summary)
        console.print(outcome.table(results[folder].summary))
    _draw(model, results, output)
    console.print(f"Results in {output} after {time.monotonic() - started:.0f} s.")


def _warn_of_guesses(model: Any, found: dict[str, float], images: int) -> None:
    """Before minutes of work on images that mean nothing to the network."""
    if outcome.guesses(found, model, images):
        _warn(
            f"the given network's accuracy on x_test is {found['accuracy']:.4f}, which guessing "
            "gives too: are the images as in its training? See --preprocessing"
        )


def _warn(message: str) -> None:
    print(f"espace-compress: warning: {message}", file=sys.stderr)


def _smaller(model: Any, data: bin_data.Data | None, speedups: list[float]) -> list[Any]:
    """One model per speed; warnings go to the standard error, one a line."""
    from espace_tf.config import EspaceWarning
    from espace_tf.pipeline import compress
    from espace_tf.planning.sweep import sweep

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", EspaceWarning)
        given = (model, data and data.train)
        if len(speedups) == 1:
            smalls = [compress(*given, speedup=speedups[0], config=_config())]
        else:
            smalls = [row.model for row in sweep(*given, speedups=speedups, config=_config())[1:]]
    for warning in caught:
        if issubclass(warning.category, EspaceWarning):
            _warn(str(warning.message))
    return smalls


def _write(
    model: Any, small: Any, speedup: float, data: bin_data.Data | None, judge: Any, folder: Path
) -> _Result:
    """Trains a compressed model if asked, writes it and measures what was written."""
    from espace_tf.timing import benchmark
    from espace_tf.training.fine_tune import fine_tune

    if _EPOCHS.value:
        fine_tune(small, data.train, teacher=model, epochs=_EPOCHS.value, seed=_SEED.value)
    with atomic_write(folder / "compressed.keras", "--output_dir") as temporary:
        small.save(temporary)
    _save_plan(small.espace_plan, folder / "plan.json")
    # What is judged is what was written.
    written = models.load(folder / "compressed.keras")
    rows = benchmark.benchmark(
        *(model, written),
        batch_size=_BATCH.value,
        runtime=_RUNTIME.value,
        threads=_THREADS.value,
        inputs=None if data is None else _batch(data.x),
        names=("before", "after"),
    )
    named = {"before": model, "after": written}
    sizes = outcome.sizes(rows, named, judge)
    if data is not None and data.x_test is not None and len(model.inputs) == 1:
        sizes["after"] |= outcome.agreement(model, written, data.x_test)
    found = {name: each["accuracy"] for name, each in sizes.items()}
    summary = {
        "asked_speedup": speedup,
        "speedup": 1 / rows[1].ratio,
        "runtime": _RUNTIME.value,
        "batch_size": _BATCH.value,
        "threads": _THREADS.value,
        **sizes,
        "max_difference": rows[1].max_difference,
        "exports": _export(model, written, folder, data, judge),
    }
    return _Result(small, rows, None if None in found.values() else found, summary)


def _save_plan(plan: Any, path: Path) -> None:
    """Saves a plan over one that is there, with its arrays, or over whatever is: --overwrite."""
    try:
        saving.check_replaceable(path, saving.PLAN)
    except ValueError:
        path.unlink()
    plan.save(path)


def _batch(x: np.ndarray) -> np.ndarray:
    """A batch of them to time with, some repeatedly if there are too few."""
    return np.resize(x[: _BATCH.value], (_BATCH.value, *x.shape[1:]))


def _draw(model: Any, results: dict[Path, _Result], output: Path) -> None:
    """Reports of all speeds, and the curve of several."""
    from espace_tf.planning import sweep as sweeping
    from espace_tf.reports import curves, html

    speeds = []
    if len(results) > 1:
        found = [result.accuracy or {} for result in results.values()]
        speeds = [sweeping.given(model, accuracy=found[0].get("before"))]
        for result, accuracies in zip(results.values(), found, strict=True):
            measured = result.summary["speedup"]
            known = {"measured": measured, "accuracy": accuracies.get("after")}
            speeds.append(sweeping.row(result.small, **known))
        columns = ("asked", "measured", "damage", "accuracy")
        table = [{name: getattr(row, name) for name in columns} for row in speeds]
        _write_json(output / "sweep.json", table)
    if not _REPORT.value:
        return
    for folder, result in results.items():
        known = {"accuracy": result.accuracy, "rows": result.rows, "sweep": speeds}
        html.report(result.small, folder / "report.html", **known)
    if curves.measure(speeds):
        with atomic_write(output / "sweep.svg", "--output_dir") as temporary:
            temporary.write_bytes(curves.speed_curve(speeds))


def _write_json(path: Path, content: Any) -> None:
    with atomic_write(path, "--output_dir") as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n")


def _prepare_runtime() -> None:
    """Threads and seeds; TensorFlow takes threads only before it computes anything."""
    import keras
    import tensorflow as tf

    from espace_tf.timing.runtimes import set_threads

    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)
        tf.get_logger().setLevel("WARNING")
    set_threads(_THREADS.value)
    keras.utils.set_random_seed(_SEED.value)


def _config() -> Any:
    from espace_tf.config import EspaceConfig

    return EspaceConfig(
        profile=_PROFILE.value,
        runtime=_RUNTIME.value,
        batch_size=_BATCH.value,
        threads=_THREADS.value,
        include=_INCLUDE.value,
        exclude=_EXCLUDE.value,
        seed=_SEED.value,
    )


def _export(
    original: Any, model: Any, output: Path, data: bin_data.Data | None, judge: Any
) -> list[dict[str, Any]]:
    """Writes the TensorFlow Lite files; what is known of each, for the summary."""
    from espace_tf.data.batches import in_order
    from espace_tf.deploy import tflite
    from espace_tf.deploy.export_tflite import export_tflite

    described = []
    for name in dict.fromkeys(_EXPORT.value):
        path = output / ("model.tflite" if name == "float32" else f"model.{name}.tflite")
        result = export_tflite(
            model,
            path,
            quantize=_QUANTIZATIONS[name],
            representative_data=None if data is None else data.x,
        )
        entry = {"file": path.name, "bytes": result.bytes, "difference": result.max_difference}
        entry["dense_bytes"] = result.dense_bytes
        if data is not None and data.x_test is not None and len(model.inputs) == 1:
            file = tflite.run_function(model, path)

            def run(x: Any, file: Any = file) -> Any:
                return file(in_order(model, x))

            entry |= outcome.agreement(original, run, data.x_test)
            entry |= {} if judge is None else judge(run)
        described.append(entry)
    return described


if __name__ == "__main__":
    run()
