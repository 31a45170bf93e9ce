"""A small task, networks for it, and a teacher that has learned it: for the tests of training."""

from functools import cache

import keras
import numpy as np
import pytest
import tf_keras

from espace_tf import keras_layers
from espace_tf.training.fine_tune import fine_tune

SLOW_TF_KERAS = pytest.mark.parametrize(
    "library",
    [
        pytest.param(keras, id="keras"),
        pytest.param(tf_keras, id="tf_keras", marks=pytest.mark.slow),
    ],
)
LIBRARIES = pytest.mark.parametrize("library", [keras, tf_keras], ids=["keras", "tf_keras"])
CLASSES = 4


def task(count, seed=0):
    """Noisy, shifted copies of four patterns."""
    rng = np.random.default_rng(seed)
    patterns = np.random.default_rng(7).normal(size=(CLASSES, 12, 12, 1))
    y = rng.integers(0, CLASSES, count)
    x = np.stack([np.roll(patterns[label], rng.integers(-1, 2, 2), (0, 1)) for label in y])
    return (x + 0.5 * rng.normal(size=x.shape)).astype("float32"), y


def network(library, compressed=False, dtype=None, outputs=1, dropout=0.0):
    layers, ours = library.layers, keras_layers.for_library(library)
    options = {"padding": "same", "use_bias": False, "dtype": dtype}
    inputs = library.Input((12, 12, 1), name="image")
    x = layers.Conv2D(8, 3, name="conv1", **options)(inputs)
    x = layers.ReLU(name="relu1")(layers.BatchNormalization(name="norm1", dtype=dtype)(x))
    if compressed:
        grid = [y * 12 + z for y in range(0, 12, 2) for z in range(0, 12, 2)]
        x = ours.DecomposedConv2D(8, 3, 6, positions=grid, name="conv2", **options)(x)
    else:
        x = layers.Conv2D(8, 3, name="conv2", **options)(x)
    x = layers.ReLU(name="relu2")(layers.BatchNormalization(name="norm2", dtype=dtype)(x))
    x = layers.MaxPooling2D(2, name="pool")(x)
    x = layers.Conv2D(16, 3, name="conv3", **options)(x)
    x = layers.ReLU(name="relu3")(layers.BatchNormalization(name="norm3", dtype=dtype)(x))
    x = layers.GlobalAveragePooling2D(name="mean")(x)
    if dropout:
        x = layers.Dropout(dropout, name="drop")(x)
    heads = [layers.Dense(CLASSES, name="class", dtype="float32")(x)]
    heads += [layers.Dense(1, name="size", dtype="float32")(x)] * (outputs - 1)
    return library.Model(inputs, heads if outputs > 1 else heads[0])


def accuracy(model, x, y):
    return float((model.predict(x, verbose=0).argmax(-1) == y).mean())


def copy_weights(source, target):
    """Copies every layer, and the compressed one from a plain SVD of the dense kernel."""
    for layer in source.layers:
        twin = target.get_layer(layer.name)
        if hasattr(twin, "order"):
            kernel = layer.get_weights()[0].astype("float64")  # [a, b, c, n] -> [(a, c), (b, n)]
            a, b, c, n = kernel.shape
            left, values, right = np.linalg.svd(kernel.transpose(0, 2, 1, 3).reshape(a * c, b * n))
            left, right = left[:, : twin.rank], values[: twin.rank, None] * right[: twin.rank]
            first = left.reshape(a, 1, c, twin.rank)
            second = right.reshape(twin.rank, b, n).transpose(1, 0, 2)[None]
            twin.set_weights([first, second])
        else:
            twin.set_weights(layer.get_weights())


@cache
def trained_weights(library):
    """What the dense network has learned of the task; the same for all tests of a process."""
    library.utils.set_random_seed(3)
    model = network(library)
    options = {"optimizer": library.optimizers.Adam(1e-2), "verbose": 0}
    fine_tune(model, task(1024), epochs=6, batch_norm_batches=20, **options)
    return model.get_weights()


def trained(library):
    """A fresh dense network that has learned the task."""
    model = network(library)
    model.set_weights(trained_weights(library))
    return model


def student_of(teacher, library, **options):
    model = network(library, compressed=True, **options)
    copy_weights(teacher, model)
    return model
