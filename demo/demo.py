"""The whole road in one command: compress the shipped network, fine-tune, export, compare.

    python demo/demo.py --output_dir=out/demo

At most 10 minutes on 2 cores. Compresses demo/network.keras (its card: demo/README.md) to --speedup
times its speed on the wall clock, fine-tunes it with the original as teacher, and writes into
--output_dir compressed.keras, plan.json, original.tflite, model.tflite and report.html. Prints one
table: accuracy, milliseconds in TensorFlow and in LiteRT, multiply-accumulates, parameters and
size, before and after. In LiteRT both networks run with their batch norms folded.
"""

import time
from pathlib import Path

import keras
import numpy as np
from absl import app, flags, logging
from rich.console import Console
from rich.table import Table

import espace_tf
from espace_tf.bin.inputs import array_files
from espace_tf.files import atomic_write
from espace_tf.timing.benchmark import Row

_HERE = Path(__file__).parent
_DEBIAN = Path("/usr/share/datasets/fashion-mnist")

_SPEEDUP = flags.DEFINE_float("speedup", 3.0, "How many times faster on the wall clock.")
_BATCH = flags.DEFINE_integer("batch_size", 16, "Images per call when time is measured.")
_DATA = flags.DEFINE_string(
    "data",
    str(_DEBIAN if _DEBIAN.is_dir() else _HERE / "fashion_mnist_subset.npz"),
    "Fashion-MNIST: the folder of its idx files, or the shipped subset.",
)
_OUTPUT = flags.DEFINE_string("output_dir", "out/demo", "Where the results go.")
_IMAGES = flags.DEFINE_integer("images", 15000, "Training images used, at most.", 1)
_EPOCHS = flags.DEFINE_integer("epochs", 3, "Passes of fine-tuning over them.", 0)

_REPEATS = 200  # some seconds: the interruptions of a busy machine come in bursts


def top1(model: keras.Model, data: array_files.Data) -> float:
    """Accuracy on the held-out images."""
    return float(np.mean(model.predict(data.x_test, 500, verbose=0).argmax(-1) == data.y_test))


def describe(
    models: dict[str, keras.Model], data: array_files.Data, accuracy: dict[str, float], output: Path
) -> tuple[Table, list[Row]]:
    """The table of the demo, and the rows of the TensorFlow benchmark behind it."""
    batch = _BATCH.value
    options = {"batch_size": batch, "inputs": data.x[:batch], "names": list(models)}
    options |= {"repeats": _REPEATS}
    rows = espace_tf.benchmark(*models.values(), **options)
    litert = espace_tf.benchmark(*models.values(), runtime="litert", **options)
    sizes = [
        espace_tf.export_tflite(model, output / name).bytes
        for model, name in zip(models.values(), ("original.tflite", "model.tflite"), strict=True)
    ]
    table = Table(title=f"espace_tf demo: {1 / rows[1].ratio:.2f} times faster in TensorFlow")
    for name in ("", *models, "before / after"):
        table.add_column(name, justify="right" if name else "left")
    table.add_row("top-1 accuracy", *(f"{accuracy[name]:.4f}" for name in models), "")
    for label, found in (("TensorFlow", rows), ("LiteRT", litert)):
        times = (f"{row.milliseconds:.2f}" for row in found)
        table.add_row(f"{label}, ms for {batch} images", *times, f"{1 / found[1].ratio:.2f}")
    for label, before, after in (
        ("multiply-accumulates an image", *(row.macs for row in rows)),
        ("parameters", *(row.parameters for row in rows)),
        ("bytes of the .tflite file", *sizes),
    ):
        table.add_row(label, f"{before:,}", f"{after:,}", f"{before / after:.2f}")
    return table, rows


def main(argv: list[str]) -> None:
    """Runs the demo."""
    del argv
    logging.set_verbosity(logging.WARNING)
    started, output = time.monotonic(), Path(_OUTPUT.value)
    output.mkdir(parents=True, exist_ok=True)
    keras.utils.set_random_seed(0)
    data = array_files.load(_DATA.value)
    train = (data.x[: _IMAGES.value], data.y[: _IMAGES.value])
    original = keras.models.load_model(_HERE / "network.keras")

    config = espace_tf.EspaceConfig(batch_size=_BATCH.value)
    small = espace_tf.compress(original, train, speedup=_SPEEDUP.value, config=config)
    accuracy, untuned = {"before": top1(original, data)}, top1(small, data)
    espace_tf.fine_tune(small, train, teacher=original, epochs=_EPOCHS.value)
    accuracy["after"] = top1(small, data)

    with atomic_write(output / "compressed.keras") as temporary:
        small.save(temporary)
    small.espace_plan.save(output / "plan.json")
    table, rows = describe({"before": original, "after": small}, data, accuracy, output)
    espace_tf.report(small, output / "report.html", accuracy=accuracy, rows=rows)
    console = Console()
    console.print(table)
    console.print(f"Top-1 before fine-tuning: {untuned:.4f}.")
    console.print(f"Results in {output} after {time.monotonic() - started:.0f} s.")


if __name__ == "__main__":
    app.run(main)
