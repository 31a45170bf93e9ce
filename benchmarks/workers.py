"""GoogLeNet's compressed form, trained by several processes: are its weights those of one device?

    python benchmarks/workers.py --output_dir=out/workers

halves a GoogLeNet (`Plan.uniform`: half of the ranks, half of the positions) and fine-tunes it with
the whole one as teacher: in one process, then in --workers processes with a TF_CONFIG each, by the
script of the guide, docs/guides/machines.py. Prints the checksum of each process's weights, and how
far they are from those of one device at most. Without --model it is espace_tf.zoo's, for images of
28 x 28 that it enlarges to --image_size, with random weights, which one step moves so far that
weights of two orders of summation cannot be compared: name a trained one for that.
"""

import subprocess
import sys
from pathlib import Path

import keras
from absl import app, flags

import espace_tf
from espace_tf import zoo

ROOT = Path(__file__).parents[1]
_MODEL = flags.DEFINE_string("model", None, "A Keras 3 network; none: GoogLeNet, untrained.")
_SIZE = flags.DEFINE_integer("image_size", 96, "What images are enlarged to without --model.", 32)
_DATASET = flags.DEFINE_string(
    "dataset", str(ROOT / "demo" / "fashion_mnist_subset.npz"), "As for the commands."
)
_SPLIT = flags.DEFINE_string("train_split", "train[:256]", "What is trained on.")
_BATCH = flags.DEFINE_integer("train_batch_size", 32, "Images per step, of all processes.", 2)
_RATE = flags.DEFINE_float("learning_rate", 1e-4, "Of SGD with a momentum of .9.", 0)
_WORKERS = flags.DEFINE_integer("workers", 2, "Processes.", 2)
_OUTPUT = flags.DEFINE_string("output_dir", "out/workers", "Where the results go.")


def googlenet() -> keras.Model:
    """The network of the zoo, for the images of Fashion-MNIST."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((28, 28, 1), name="image")
    x = keras.layers.Resizing(_SIZE.value, _SIZE.value, name="resize")(inputs)
    return zoo.googlenet((_SIZE.value, _SIZE.value, 1), 10, input_tensor=x)


def main(argv: list[str]) -> None:
    """Writes both networks and starts the guide's script."""
    del argv
    output = Path(_OUTPUT.value)
    output.mkdir(parents=True, exist_ok=True)
    model = googlenet() if _MODEL.value is None else keras.models.load_model(_MODEL.value)
    small = espace_tf.apply(model, espace_tf.Plan.uniform(model, rank_ratio=0.5, keep=0.5))
    for name, each in (("original", model), ("compressed", small)):
        each.save(output / f"{name}.keras")
    command = [
        *(sys.executable, str(ROOT / "docs" / "guides" / "machines.py")),
        *(f"--workers={_WORKERS.value}", f"--output_dir={output}", "--"),
        *(f"--model={output / 'compressed.keras'}", f"--original={output / 'original.keras'}"),
        *(f"--dataset={_DATASET.value}", f"--train_split={_SPLIT.value}", "--test_split=test[:64]"),
        *(f"--train_batch_size={_BATCH.value}", "--optimizer=sgd"),
        *(f"--learning_rate={_RATE.value}", "--epochs=1", "--nokeep_best", "--overwrite"),
    ]
    raise SystemExit(subprocess.run(command).returncode)


if __name__ == "__main__":
    app.run(main)
