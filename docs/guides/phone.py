"""From a trained model to a phone: the script of docs/guides/phone.md.

    python docs/guides/phone.py --output_dir=out/phone

Compresses the shipped network for LiteRT's 8-bit kernels, trains it with the original as teacher,
writes .tflite files and prints what each of them costs: bytes, milliseconds, accuracy. About 15
minutes on 2 cores with all of the shipped images; fewer --images are quicker and worse.
"""

from pathlib import Path

import keras
import numpy as np
from absl import app, flags
from rich.console import Console
from rich.table import Table

import espace_tf
from espace_tf.bin.inputs import array_files
from espace_tf.deploy import tflite

_DEMO = Path(__file__).parents[2] / "demo"
_MODEL = flags.DEFINE_string("model", str(_DEMO / "network.keras"), "The trained network.")
_DATA = flags.DEFINE_string("data", str(_DEMO / "fashion_mnist_subset.npz"), "Its images.")
_IMAGES = flags.DEFINE_integer("images", 4000, "Training images used, at most.", 1)
_SPEEDUP = flags.DEFINE_float("speedup", 2.0, "How many times faster in LiteRT.")
_EPOCHS = flags.DEFINE_integer("epochs", 3, "Passes of fine-tuning.", 1)
_OUTPUT = flags.DEFINE_string("output_dir", "out/phone", "Where the files go.")


def top1(path: Path, model: keras.Model, images: np.ndarray, labels: np.ndarray) -> float:
    """Accuracy of a .tflite file."""
    run = tflite.run_function(model, path)
    right = [run([images[i : i + 100]])[0].argmax(-1) for i in range(0, len(images), 100)]
    return float(np.mean(np.concatenate(right) == labels))


def main(argv: list[str]) -> None:
    """The five steps of the guide."""
    del argv
    output = Path(_OUTPUT.value)
    output.mkdir(parents=True, exist_ok=True)
    keras.utils.set_random_seed(0)

    # 1. A trained network, and some hundred images that it was trained on.
    original = keras.models.load_model(_MODEL.value)
    data = array_files.load(_DATA.value).first(_IMAGES.value)

    # 2. Compress it for what a phone runs: times are LiteRT's, of one image.
    config = espace_tf.EspaceConfig(runtime="litert", calibration_images=min(512, _IMAGES.value))
    small = espace_tf.compress(original, data.train, speedup=_SPEEDUP.value, config=config)

    # 3. Train it with the original as teacher.
    espace_tf.fine_tune(small, data.train, teacher=original, epochs=_EPOCHS.value)
    small.save(output / "small.keras")

    # 4. Write what is shipped. Every file is run and compared before it is there.
    found = {}
    for name, model in (("original", original), ("small", small)):
        for kind in (None, "int8"):
            path = output / f"{name}{'' if kind is None else '.int8'}.tflite"
            options = {"quantize": kind, "representative_data": data.x}
            found[path] = (model, espace_tf.export_tflite(model, path, **options).bytes)

    # 5. Compare.
    names = ("original", "small")
    times = {}
    for kind, runtime in (("", "litert"), (".int8", "litert-int8")):
        rows = espace_tf.benchmark(original, small, runtime=runtime, inputs=data.x, names=names)
        times |= {f"{row.name}{kind}.tflite": row.milliseconds for row in rows}
    table = Table(title="One image at a time, in LiteRT")
    for column in ("file", "bytes", "ms", "top-1"):
        table.add_column(column)
    for path, (model, size) in found.items():
        accuracy = top1(path, model, data.x_test, data.y_test)
        table.add_row(path.name, f"{size:,}", f"{times[path.name]:.3f}", f"{accuracy:.4f}")
    Console().print(table)


if __name__ == "__main__":
    app.run(main)
