"""Trains the demo's network on Fashion-MNIST; writes demo/network.keras and the data subset.

    python demo/train_network.py --epochs=6

About 20 minutes on 2 cores; expect a top-1 accuracy near 0.93 on the 10,000 test images. Needs all
of Fashion-MNIST (Debian: apt-get install dataset-fashion-mnist). The card beside it, README.md,
records the accuracy that this run printed.
"""

import os
from pathlib import Path

import keras
import numpy as np
from absl import app, flags

from espace_tf.bin.inputs import array_files

_EPOCHS = flags.DEFINE_integer("epochs", 6, "Passes over the 60,000 training images.")
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the initial weights, the order and the flips.")
_DATA_DIR = flags.DEFINE_string(
    "data_dir", "/usr/share/datasets/fashion-mnist", "Folder of the four idx .gz files."
)
_OUTPUT = flags.DEFINE_string(
    "output", str(Path(__file__).parent / "network.keras"), "Where the trained network goes."
)
_SUBSET = Path(__file__).parent / "fashion_mnist_subset.npz"
_SUBSET_SIZES = (4000, 2000)


def build_network() -> keras.Model:
    """A VGG-style network of five 3x3 convolutions: [B, 28, 28, 1] in [0, 1] to [B, 10] logits."""
    inputs = keras.Input((28, 28, 1), name="image")
    x = inputs
    for index, (filters, pool) in enumerate([(32, 0), (64, 1), (128, 0), (128, 1), (128, 0)], 1):
        x = keras.layers.Conv2D(filters, 3, padding="same", use_bias=False, name=f"conv{index}")(x)
        x = keras.layers.BatchNormalization(name=f"norm{index}")(x)
        x = keras.layers.ReLU(name=f"relu{index}")(x)
        if pool:
            x = keras.layers.MaxPooling2D(name=f"pool{index}")(x)
    x = keras.layers.GlobalAveragePooling2D(name="features")(x)
    x = keras.layers.Dropout(0.2, name="dropout")(x)
    return keras.Model(inputs, keras.layers.Dense(10, name="logits")(x), name="demo_network")


def write_subset(data: array_files.Data) -> None:
    """Ships the first images of each split, so that the demo runs with no data set installed."""
    train, test = _SUBSET_SIZES
    images = {"x_train": data.x[:train], "x_test": data.x_test[:test]}
    partial = _SUBSET.with_name("partial.npz")
    np.savez_compressed(
        partial,
        y_train=data.y[:train].astype(np.uint8),
        y_test=data.y_test[:test].astype(np.uint8),
        **{name: np.rint(value[..., 0] * 255).astype(np.uint8) for name, value in images.items()},
    )
    os.replace(partial, _SUBSET)


def main(argv: list[str]) -> None:
    """Trains, evaluates on the test images and saves."""
    del argv
    keras.utils.set_random_seed(_SEED.value)
    data = array_files.load(_DATA_DIR.value)
    write_subset(data)
    model = build_network()
    steps = _EPOCHS.value * (len(data.x) // 128)
    rate = keras.optimizers.schedules.CosineDecay(
        0.0, steps - 200, warmup_target=3e-3, warmup_steps=200
    )
    model.compile(
        keras.optimizers.AdamW(rate, weight_decay=5e-4),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    random = np.random.default_rng(_SEED.value)
    for epoch in range(_EPOCHS.value):
        flip = random.random(len(data.x)) < 0.5
        images = np.where(flip[:, None, None, None], data.x[:, :, ::-1], data.x)
        model.fit(images, data.y, 128, epochs=epoch + 1, initial_epoch=epoch, verbose=2)
    loss, accuracy = model.evaluate(data.x_test, data.y_test, 500, verbose=0)
    stock = keras.Model.from_config(model.get_config())  # leaves the optimizer behind
    stock.set_weights(model.get_weights())
    stock.save(_OUTPUT.value)
    print(
        f"test loss {loss:.4f}, top-1 {accuracy:.4f} on {len(data.x_test)} images: {_OUTPUT.value}"
    )


if __name__ == "__main__":
    app.run(main)
