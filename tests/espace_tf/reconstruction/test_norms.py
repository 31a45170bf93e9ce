"""Batch norms with the statistics of what they read: the same outputs, in training too."""

import importlib

import numpy as np
import pytest

from espace_tf.reconstruction.norms import settle

SEED = 21


@pytest.fixture(params=["keras", "tf_keras"])
def library(request):
    return importlib.import_module(request.param)


def network(library, **options):
    """Batch norms whose statistics are not those of what they read."""
    library.utils.set_random_seed(SEED)
    k = library.layers
    inputs = k.Input((8, 8, 3))
    x = k.BatchNormalization(**options)(k.Conv2D(6, 3)(inputs))
    x = k.BatchNormalization(**options)(k.Dense(5, activation="relu")(k.Flatten()(x)))
    model = library.Model(inputs, k.Dense(4)(x))
    random = np.random.default_rng(SEED)
    for layer in model.layers:
        if isinstance(layer, k.BatchNormalization):
            layer.set_weights([random.uniform(0.5, 2, each.shape) for each in layer.get_weights()])
    return model


def images(count=64):
    return np.random.default_rng(SEED).normal(1, 2, (count, 8, 8, 3)).astype("float32")


def test_nothing_changes_at_inference_and_little_in_training(library):
    model, x = network(library), images()
    before = np.asarray(model(x, training=False))
    apart = np.abs(np.asarray(model(x, training=True)) - before).max()
    model = network(library)
    assert settle(model, x) == 2
    np.testing.assert_allclose(np.asarray(model(x, training=False)), before, atol=1e-4)
    assert np.abs(np.asarray(model(x, training=True)) - before).max() < 1e-3 < apart / 100


def test_statistics_are_those_of_numpy(library):
    model, x = network(library), images()
    read = np.asarray(model.layers[1](x), np.float64)
    settle(model, x)
    norm = model.layers[2]
    np.testing.assert_allclose(norm.moving_mean, read.mean((0, 1, 2)), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(norm.moving_variance, read.var((0, 1, 2)), rtol=1e-4)


@pytest.mark.parametrize("options", [{"scale": False}, {"center": False}, {"trainable": False}])
def test_what_could_not_be_undone_stays(library, options):
    model = network(library, **options)
    before = model.get_weights()
    assert settle(model, images()) == 0
    for one, other in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(one, other)


def test_dead_channels_and_values_that_are_not_finite_do_no_harm(library):
    model, x = network(library), images()
    model.layers[1].set_weights([0 * each for each in model.layers[1].get_weights()])
    before = np.asarray(model(x, training=False))
    settle(model, x)
    np.testing.assert_allclose(np.asarray(model(x, training=False)), before, atol=1e-4)
    weights = [each + np.nan for each in model.layers[1].get_weights()]
    model.layers[1].set_weights(weights)
    kept = model.layers[2].get_weights()
    settle(model, x)
    for one, other in zip(model.layers[2].get_weights(), kept, strict=True):
        np.testing.assert_array_equal(one, other)
