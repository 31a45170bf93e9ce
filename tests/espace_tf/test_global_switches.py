"""Switches of Keras and TensorFlow that are on while a model is copied or timed change nothing."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from espace_tf import benchmark
from espace_tf.network.sites import read_sites
from espace_tf.records.plan import Plan
from espace_tf.rewriting.apply import apply
from espace_tf.rewriting.strip import strip
from espace_tf.timing import measure, runtimes

SEED = 6
SWITCHES = {  # what turns each on, and what turns it off
    "mixed_float16": (keras.config.set_dtype_policy, "mixed_float16", "float32"),
    "floatx": (keras.config.set_floatx, "float64", "float32"),
    "channels_first": (keras.config.set_image_data_format, "channels_first", "channels_last"),
    "eager": (tf.config.run_functions_eagerly, True, False),
    "XLA": (tf.config.optimizer.set_jit, True, False),
}


@pytest.fixture(params=SWITCHES)
def switch(request):
    """A model made before, its outputs, and a switch that is on."""
    keras.utils.set_random_seed(SEED)
    layers, x = keras.layers, keras.Input((8, 8, 3))
    y = layers.Conv2D(4, 3, padding="same", activation="relu", name="a")(x)
    y = layers.SeparableConv2D(5, 3, padding="same", name="separable")(y)
    y = layers.Conv2D(4, 3, use_bias=False, name="b")(layers.MaxPooling2D(name="pool")(y))
    y = layers.BatchNormalization(name="norm")(y)
    model = keras.Model(x, layers.GlobalAveragePooling2D(name="mean")(y))
    images = np.random.default_rng(SEED).random((2, 8, 8, 3), np.float32)
    expected = np.asarray(model(images))
    turn, on, off = SWITCHES[request.param]
    turn(on)
    yield model, images, expected
    turn(off)


def test_copies_keep_each_layers_own_policy_and_compute_the_same(switch):
    model, images, expected = switch
    full = apply(model, Plan.uniform(model, rank_ratio=1.0, keep=1.0))
    forms = [full, strip(model), strip(full, fuse=False), strip(full)]
    for form in forms:
        policies = {layer.dtype_policy.name for layer in form.layers}
        assert policies == {"float32"} and {weight.dtype for weight in form.weights} == {"float32"}
        np.testing.assert_allclose(np.asarray(form(images)), expected, atol=1e-5)
    rows = benchmark(model, full, batch_size=2, repeats=2)
    assert rows[1].max_difference < 1e-5
    masked = apply(model, Plan.uniform(model, rank_ratio=0.5, keep=0.5))
    stock = strip(masked, stock=True)
    assert "ZeroPadding1D" in {type(layer).__name__ for layer in stock.layers}
    np.testing.assert_allclose(np.asarray(stock(images)), np.asarray(masked(images)), atol=1e-5)


def test_single_layers_are_timed_in_the_layers_own_type(switch):
    site = read_sites(switch[0])[0]
    for change in ({}, {"rank": 2}, {"positions": np.arange(0, 64, 2)}):
        layer = measure.single_layer(site, **change)
        assert layer.dtype_policy.name == site.policy == "float32"
        runtimes.find("tf").layer(layer, (2, 8, 8, 3), None)()


def test_a_layer_in_half_precision_is_timed_in_it_and_by_litert_in_float32():
    x = keras.Input((8, 8, 3))
    conv = keras.layers.Conv2D(4, 3, dtype="mixed_float16", name="conv")
    (site,) = read_sites(keras.Model(x, conv(x)))
    assert site.policy == "mixed_float16"
    layer = measure.single_layer(site)
    runtimes.find("tf").layer(layer, (2, 8, 8, 3), None)()
    assert layer.compute_dtype == "float16"
    layer = measure.single_layer(site)
    runtimes.find("litert").layer(layer, (2, 8, 8, 3), None)()
    assert layer.compute_dtype == "float32"
