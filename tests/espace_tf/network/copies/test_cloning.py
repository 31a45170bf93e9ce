"""Copies of models of classes of a user's own, and copies to work on."""

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from espace_tf.config import EspaceWarning
from espace_tf.network.copies import cloning
from espace_tf.records.plan import Plan
from espace_tf.rewriting.apply import apply
from espace_tf.rewriting.strip import strip

SEED = 4
LIBRARIES = pytest.mark.parametrize("library", [keras, tf_keras], ids=["keras", "tf_keras"])


def classes(library):
    class Own(library.Model):
        """A training step of its own, by what was set on the model."""

        def train_step(self, data):
            x, y = data
            with tf.GradientTape() as tape:
                found = self(x, training=True)
                loss = self.factor * tf.reduce_mean((found - y) ** 2)
                loss += tf.reduce_sum(tf.abs(tf.convert_to_tensor(self.watched.kernel)))
            gradients = tape.gradient(loss, self.trainable_variables)
            self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
            self.seen.update_state(loss)
            return {"own": self.seen.result()}

    class Built(Own):
        def __init__(self, filters):
            super().__init__(*graph(library, filters))

    return Own, Built


def graph(library, filters=4):
    x = library.Input((6, 6, 3))
    y = library.layers.Conv2D(filters, 3, name="conv")(x)
    return x, library.layers.Conv2D(2, 1, name="last")(y)


def data():
    random = np.random.default_rng(SEED)
    return random.random((4, 6, 6, 3), np.float32), random.random((4, 4, 4, 2), np.float32)


@LIBRARIES
def test_a_class_is_kept_with_what_was_set_on_it(library):
    library.utils.set_random_seed(SEED)
    model = classes(library)[0](*graph(library))
    model.factor, model.seen = 3.0, library.metrics.Mean(name="seen")
    model.watched = model.get_layer("last")
    model.compile(library.optimizers.SGD(0.01))
    copy = cloning.clone(model, lambda path, layer: None)
    assert type(copy) is type(model) and copy.seen is not model.seen
    assert copy.watched is copy.get_layer("last")
    with warnings.catch_warnings():
        warnings.simplefilter("error", EspaceWarning)
        small = apply(model, Plan.uniform(model, rank_ratio=0.5))
    assert set(small.fit(*data(), verbose=0).history) == {"own"}
    found, expected = (m.fit(*data(), epochs=2, verbose=0).history["own"] for m in (copy, model))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@LIBRARIES
def test_what_a_class_with_an_init_of_its_own_loses_is_said(library):
    model = classes(library)[1](4)
    plan = Plan.uniform(model, rank_ratio=1.0)
    with pytest.warns(EspaceWarning, match="(?s)Built.*__init__.*without its train_step.*compile"):
        full = apply(model, plan)
    images = data()[0]
    for form in (full, strip(model)):
        np.testing.assert_allclose(form(images), model(images), atol=1e-5)


@LIBRARIES
def test_a_private_copy_is_apart_and_not_compiled(library):
    model = library.Model(*graph(library))
    model.compile(library.optimizers.SGD(0.1), "mse")
    images, before = data()[0], np.asarray(model(data()[0]))
    copy = cloning.private_copy(model)
    np.testing.assert_array_equal(copy(images), before)
    assert getattr(copy, "optimizer", None) is None
    copy.set_weights([0 * np.asarray(weight) for weight in copy.get_weights()])
    np.testing.assert_array_equal(model(images), before)


@pytest.mark.parametrize("before", ["in another place of the graph", "on its own"])
def test_a_copy_is_built_by_the_shapes_that_the_original_was_built_by(before):
    # The shapes that a layer is first called on decide over what it makes of all later ones.
    images = np.random.default_rng(SEED).random((2, 6, 6, 1), np.float32)
    shared = keras.layers.Normalization(mean=[0.5], variance=[2.0], invert=True)
    x = keras.Input((6, 6, 1))
    wide = keras.layers.Conv2D(2, 3, padding="same", name="conv")(x)
    if before == "on its own":
        shared(images)
        model = keras.Model(x, [keras.layers.ReLU()(wide), shared(wide)])
    else:
        first = shared(x)
        model = keras.Model(x, [first, shared(wide)])
    expected = model.predict(images, verbose=0)
    for copy in (cloning.private_copy(model), strip(model), strip(model, stock=True)):
        for found, right in zip(copy.predict(images, verbose=0), expected, strict=True):
            np.testing.assert_allclose(found, right, rtol=1e-5, atol=1e-6)
