"""Strided convolutions of one tap on few channels: right gradients, and a process that goes on."""

import subprocess
import sys
import textwrap

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from espace_tf import kernels
from espace_tf.training.steps.safe_steps import safe_steps

SEED = 11
# What ended the process before: a stride above 1, fewer than 16 channels, maps of more than 32.
CASES = ((8, 16, (2, 2)), (3, 7, (2, 1)), (1, 16, (1, 2)), (12, 5, (3, 3)))


def gradient_in_float64(images, kernel, strides):
    """Of the sum of squares of the results, with respect to the kernel [1, 1, C, N]."""
    read = images[:, :: strides[0], :: strides[1]].astype(np.float64)
    results = np.einsum("bhwc,cn->bhwn", read, kernel[0, 0].astype(np.float64))
    return 2 * np.einsum("bhwc,bhwn->cn", read, results)[None, None], results


@pytest.mark.parametrize("library", [keras, tf_keras], ids=["keras", "tf_keras"])
@pytest.mark.parametrize(("channels", "filters", "strides"), CASES)
@pytest.mark.parametrize("padding", ["same", "valid"])
def test_the_gradient_of_a_layer(library, channels, filters, strides, padding):
    images = np.random.default_rng(SEED).random((3, 60, 57, channels), np.float32)
    layer = library.layers.Conv2D(filters, 1, strides, padding)
    model = library.Sequential([library.Input(images.shape[1:]), layer])
    right, results = gradient_in_float64(images, np.array(layer.get_weights()[0]), strides)

    @tf.function
    def gradient(x):
        with tf.GradientTape() as tape:
            total = tf.reduce_sum(model(x, training=True) ** 2)
        return tape.gradient(total, model.trainable_variables)

    with safe_steps(model):
        found = gradient(tf.constant(images))
    np.testing.assert_allclose(found[0], right, rtol=1e-4, atol=1e-4 * abs(right).max())
    assert "convolution_op" not in vars(layer)
    np.testing.assert_allclose(model.predict(images, verbose=0), results, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("channels", "filters", "strides"), CASES)
@pytest.mark.parametrize("padding", ["same", "valid", [(1, 0), (0, 2)]])
def test_the_gradient_of_the_operator(channels, filters, strides, padding):
    random = np.random.default_rng(SEED)
    images = random.random((3, 60, 57, channels), np.float32)
    kernel = random.standard_normal((1, 1, channels, filters)).astype(np.float32)
    padded = images
    if not isinstance(padding, str):
        padded = np.pad(images, [(0, 0), *padding, (0, 0)])
    right, results = gradient_in_float64(padded, kernel, strides)
    weights = tf.Variable(kernel)
    with tf.GradientTape() as tape:
        found = kernels.conv2d(images, weights, None, strides=strides, padding=padding)
        total = tf.reduce_sum(found**2)
    np.testing.assert_allclose(found, results, rtol=1e-4, atol=1e-4)
    got = tape.gradient(total, weights)
    np.testing.assert_allclose(got, right, rtol=1e-4, atol=1e-4 * abs(right).max())


def test_training_ends_as_it_should():
    script = """
        import keras, numpy as np, espace_tf
        from espace_tf import Plan
        keras.utils.set_random_seed(3)
        x = keras.Input((60, 60, 1))
        y = keras.layers.Conv2D(8, 3, padding="same", activation="relu")(x)
        y = keras.layers.Conv2D(12, 1, 2, name="short")(y)
        y = keras.layers.GlobalAveragePooling2D()(y)
        model = keras.Model(x, keras.layers.Dense(4, activation="softmax")(y))
        images = np.random.default_rng(3).random((64, 60, 60, 1), np.float32)
        small = espace_tf.apply(model, Plan.uniform(model, rank_ratio=0.5))
        espace_tf.reconstruct(small, images, teacher=model, seconds=5)
        espace_tf.fine_tune(small, images, teacher=model, epochs=2, verbose=0)
        print("ended", bool(np.isfinite(small.predict(images, verbose=0)).all()))
    """
    made = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(script)],
        **{"capture_output": True, "text": True, "timeout": 300},
    )
    assert made.returncode == 0, made.stderr[-2000:]
    assert made.stdout.split()[-2:] == ["ended", "True"]
