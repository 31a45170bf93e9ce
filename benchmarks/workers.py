"""GoogLeNet's compressed form, trained by several processes: are its weights those of one device?

    python -m benchmarks.workers --output_dir=out/workers

halves a GoogLeNet (`Plan.uniform`: half of the ranks, half of the positions) and fine-tunes it with
the whole one as teacher: in one process, then in --workers processes with a TF_CONFIG each, by the
script of the guide, docs/guides/machines.py. Prints the checksum of each process's weights, and how
far they are from those of one device at most; and how far those of one device get that began one
unit in the last place of every weight away, which is what rounding alone does. Without --model it
is espace_tf.zoo's, for images of 28 x 28 that it enlarges to --image_size, with random weights,
which one step moves so far that weights of two orders of summation cannot be compared: name a
trained one for that.
"""

from pathlib import Path

import keras
import numpy as np
from absl import app, flags

import espace_tf
from docs.guides import machines
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


def googlenet() -> keras.Model:
    """The network of the zoo, for the images of Fashion-MNIST."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((28, 28, 1), name="image")
    x = keras.layers.Resizing(_SIZE.value, _SIZE.value, name="resize")(inputs)
    return zoo.googlenet((_SIZE.value, _SIZE.value, 1), 10, input_tensor=x)


def nudged(model: keras.Model) -> keras.Model:
    """A copy whose weights are each one unit in the last place larger or smaller, by chance."""
    random, copy = np.random.default_rng(0), keras.models.clone_model(model)
    given = model.get_weights()
    copy.set_weights(
        [
            np.nextafter(each, random.choice((-np.inf, np.inf), each.shape).astype("float32"))
            for each in given
        ]
    )
    return copy


def main(argv: list[str]) -> None:
    """Writes the networks, runs the guide's script, and the network that was nudged."""
    output = Path(flags.FLAGS.output_dir)
    output.mkdir(parents=True, exist_ok=True)
    model = googlenet() if _MODEL.value is None else keras.models.load_model(_MODEL.value)
    small = espace_tf.apply(model, espace_tf.Plan.uniform(model, rank_ratio=0.5, keep=0.5))
    networks = {"original": model, "compressed": small, "nudged": nudged(small)}
    for name, each in networks.items():
        each.save(output / f"{name}.keras")
    arguments = [
        *(f"--original={output / 'original.keras'}", f"--dataset={_DATASET.value}"),
        *(f"--train_split={_SPLIT.value}", "--test_split=test[:64]"),
        *(f"--train_batch_size={_BATCH.value}", "--optimizer=sgd"),
        *(f"--learning_rate={_RATE.value}", "--epochs=1", "--nokeep_best", "--overwrite"),
    ]
    machines.main([*argv[:1], f"--model={output / 'compressed.keras'}", *arguments])
    more = [f"--model={output / 'nudged.keras'}", f"--output_dir={output / 'ulp'}"]
    machines.run_alone([*arguments, *more], output / "ulp.log")
    machines.compare(output, "ulp", "One device, one unit in the last place away,")


if __name__ == "__main__":
    app.run(main)
