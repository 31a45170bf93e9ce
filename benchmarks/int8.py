"""Networks planned for LiteRT's integer kernels: how much faster, and what integers cost.

    python -m benchmarks.int8 --models=googlenet.keras --speedups=3.3 --markdown=docs/measured.md

Every network is compressed for the runtime "litert-int8", fine-tuned with the given one as teacher,
and written as a float and as an int8 file, as the given one is. Times are those of the two int8
files, in turns; top-1 is that of all four on the test images of Fashion-MNIST, see --data. Each
step is done once: the same command goes on where a killed run stopped.
"""

import functools
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags
from rich.console import Console

from benchmarks import images, training
from benchmarks.steps import Steps, markdown, put_table, rich_table, settings_of

_MODELS = flags.DEFINE_list("models", ["demo/network.keras"], "Trained networks that give logits.")
_SPEEDUPS = flags.DEFINE_list("speedups", ["3"], "Asked for: one for all models or one for each.")
_DATA = flags.DEFINE_string("data", images.FASHION, "See `benchmarks.images.fashion`.")
_IMAGES = flags.DEFINE_integer("images", 512, "Training images given to compress.", 16)
_TUNE = flags.DEFINE_integer("tune_images", 8000, "To fine-tune on.", 32)
_EPOCHS = flags.DEFINE_integer("tune_epochs", 1, "Of that.", 1)
_TEST = flags.DEFINE_integer("test_images", 10_000, "Images to judge on.", 1)
_BATCH = flags.DEFINE_integer("batch_size", 1, "Images per call when time is measured.", 1)
_THREADS = flags.DEFINE_integer("threads", 1, "That files are timed on; plans are for one.", 1)
_ROUNDS = flags.DEFINE_integer("rounds", 60, "Calls of each file.", 3)
_OUTPUT = flags.DEFINE_string("output_dir", "out/int8", "Where results are kept.")
_MARKDOWN = flags.DEFINE_string("markdown", None, "A .md file that the table is written into.")

# Each network has its own of the first two in its settings; the others decide no file.
_FREE = ("models", "speedups", "output_dir", "markdown", "rounds", "threads")
_COLUMNS = (
    *("network", "asked", "dense, ms", "times faster (quartiles)", "top-1 dense", "dense int8"),
    *("float", "int8"),
)


def main(_: list[str]) -> None:
    """Prints the table."""
    data = images.fashion(_DATA.value, holdout=1, test_images=_TEST.value, seed=0)
    speedups = [float(each) for each in _SPEEDUPS.value]
    if len(speedups) not in (1, len(_MODELS.value)):
        raise app.UsageError("--speedups must be one number, or one for each of --models")
    rows = []
    for index, path in enumerate(map(Path, _MODELS.value)):
        speedup = speedups[index % len(speedups)]
        settings = settings_of(flags.FLAGS, sys.argv[0], _FREE)
        settings |= {"models": str(path), "speedups": speedup}
        steps = Steps(Path(_OUTPUT.value) / path.stem, settings)
        rows.append([path.stem, f"{speedup:g}", *_row(path, speedup, data, steps)])
    Console(width=120).print(rich_table("int8 files in LiteRT", _COLUMNS, rows))
    if _MARKDOWN.value:
        put_table(Path(_MARKDOWN.value), "int8", markdown(_COLUMNS, rows))


def _row(path: Path, speedup: float, data: images.Images, steps: Steps) -> list[str]:
    import keras

    import espace_tf

    model = keras.models.load_model(path, compile=False)
    x, y = data.calibration(_IMAGES.value)
    planned, tuned = steps.folder / "planned.keras", steps.folder / "tuned.keras"

    def compress(_: Path) -> None:
        config = espace_tf.EspaceConfig(batch_size=_BATCH.value, runtime="litert-int8")
        small = espace_tf.compress(model, (x, y), speedup=speedup, config=config)
        small.save(planned)

    def tune(work: Path) -> None:
        small, given = keras.models.load_model(planned), data.calibration(_TUNE.value)
        options = {"teacher": model, "epochs": _EPOCHS.value, "checkpoint_dir": work}
        loss = training.cross_entropy(model, data)
        espace_tf.fine_tune(small, given, loss=loss, **options)
        small.save(tuned)

    def export(_: Path) -> None:
        for name, each in (("dense", model), ("small", keras.models.load_model(tuned))):
            for kind, quantize in (("float", None), ("int8", "int8")):
                target = steps.folder / f"{name}-{kind}.tflite"
                given = x if quantize else None
                espace_tf.export_tflite(each, target, quantize=quantize, representative_data=given)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", espace_tf.EspaceWarning)
        steps.run("compress", compress)
        steps.run("tune", tune)
        steps.run("export", export)
    kinds = ("dense-float", "dense-int8", "small-float", "small-int8")
    files = [steps.folder / f"{kind}.tflite" for kind in kinds]
    judge = functools.partial(_top1, model=model, data=data)
    scores = [steps.run(f"top1-{file.stem}", functools.partial(judge, file)) for file in files]
    times = _times(model, (files[1], files[3]))
    low, middle, high = np.quantile(times[:, 0] / times[:, 1], (0.25, 0.5, 0.75))
    dense = 1e3 * np.median(times[:, 0])
    faster = f"{middle:.2f} ({low:.2f} to {high:.2f})"
    return [f"{dense:.2f}", faster, *(f"{score:.4f}" for score in scores)]


def _top1(file: Path, _: Path, model: Any, data: images.Images) -> float:
    """Of a file in LiteRT, on all test images."""
    from espace_tf.deploy import tflite

    run = tflite.run_function(model, file)
    right = [run([x.numpy()])[0].argmax(-1) == y.numpy() for x, y in data.test]
    return float(np.mean(np.concatenate(right)))


def _times(model: Any, files: tuple[Path, ...]) -> np.ndarray:
    """Seconds [round, file]."""
    from espace_tf.deploy import comparison, tflite
    from espace_tf.timing import measure

    arrays, threads = comparison.noise(model, _BATCH.value), _THREADS.value
    contents = [file.read_bytes() for file in files]
    prepared = [tflite.prepare(model, each, arrays, threads=threads) for each in contents]
    return measure.rounds([interpreter.invoke for interpreter, _ in prepared], _ROUNDS.value)


if __name__ == "__main__":
    app.run(main)
