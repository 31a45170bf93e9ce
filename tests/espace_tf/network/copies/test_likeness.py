"""What a layer holds and a configuration cannot: the same in every form of the network."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from espace_tf.network import graph
from espace_tf.network.copies import cloning
from espace_tf.network.copies.likeness import again, like
from espace_tf.records.plan import Plan
from espace_tf.rewriting.apply import apply, densify
from espace_tf.rewriting.strip import strip

SEED = 15
LIBRARIES = pytest.mark.parametrize("library", [keras, tf_keras], ids=["keras", "tf_keras"])


def leaky_relu(x):
    """Of a name that Keras knows, with another slope."""
    return tf.nn.leaky_relu(x, alpha=0.4)


def relu(x):
    return tf.clip_by_value(x, -0.3, 0.5)


def linear(x):
    return 0.5 * x


def own(x):
    return tf.tanh(3 * x)


def scaled(x, factor):
    return tf.tanh(factor * x)


ACTIVATIONS = {
    "a leaky_relu of one's own": lambda library: leaky_relu,
    "a clipped relu": lambda library: relu,
    "a linear of one's own": lambda library: linear,
    "unregistered": lambda library: own,
    "lambda": lambda library: lambda x: tf.tanh(2 * x),
    "partial": lambda library: functools.partial(scaled, factor=2.5),
    "LeakyReLU": lambda library: library.layers.LeakyReLU(0.1),
    "ReLU": lambda library: library.layers.ReLU(0.7),
    "PReLU": lambda library: library.layers.PReLU(),
    "tf.nn": lambda library: tf.nn.relu6,
    "Keras's own": lambda library: "relu",
}
SAVED = ("LeakyReLU", "ReLU", "PReLU", "Keras's own")  # Keras can load these without being told
GROUPS = {"saved": SAVED, "not saved": [kind for kind in ACTIVATIONS if kind not in SAVED]}


def network(library, activations, **options):
    """For each activation a convolution, a batch norm, and a layer of the activation alone.

    Side by side: what one of them computes is not hidden by those after it.
    """
    library.utils.set_random_seed(SEED)
    layers, x, found = library.layers, library.Input((5, 5, 3)), []
    for index, activation in enumerate(activations):
        name = f"conv{index}"
        y = layers.Conv2D(3, 3, padding="same", activation=activation(), name=name, **options)(x)
        y = layers.Conv2D(3, 1, use_bias=False, name=f"thin{index}", **options)(y)
        y = layers.BatchNormalization(name=f"norm{index}")(y)
        found.append(layers.Activation(activation(), name=f"act{index}")(y))
    y = found[0] if len(found) == 1 else layers.Concatenate(name="all")(found)
    model = library.Model(x, layers.Flatten(name="flat")(y))
    model(images())  # Keras 3 makes the weights of activations here
    random = np.random.default_rng(SEED)
    model.set_weights([random.uniform(0.2, 1, w.shape) - 0.5 * (w.ndim > 1) for w in state(model)])
    return model


def state(model):
    return [np.asarray(weight) for weight in model.get_weights()]


def images():
    return np.random.default_rng(SEED).normal(size=(2, 5, 5, 3)).astype(np.float32)


def same(model, expected, tolerance=1e-4):
    found = np.asarray(model(images(), training=False))
    np.testing.assert_allclose(found, expected, atol=tolerance * np.abs(expected).max())


@LIBRARIES
@pytest.mark.parametrize("group", GROUPS)
def test_every_form_of_a_network_computes_what_it_did(library, group, tmp_path):
    kinds = [functools.partial(ACTIVATIONS[kind], library) for kind in GROUPS[group]]
    model = network(library, kinds)
    expected, before = np.asarray(model(images(), training=False)), state(model)
    assert np.abs(expected).max() > 0.1
    full = apply(model, Plan.uniform(model, rank_ratio=1.0, keep=1.0))
    forms = [cloning.private_copy(model), full, strip(model), strip(full, fuse=False)]
    forms += [strip(full), densify(model, full)]
    for form in forms:
        same(form, expected)
    if group == "saved":
        full.save(tmp_path / "full.keras")
        same(library.models.load_model(tmp_path / "full.keras"), expected)
    for form in forms:
        form.set_weights([0 * weight for weight in state(form)])
    for ours, theirs in zip(state(model), before, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@LIBRARIES
def test_an_activation_with_weights_learns_in_the_copy_only(library):
    model = network(library, [library.layers.PReLU])

    full = apply(model, Plan.uniform(model, rank_ratio=1.0, keep=0.5))
    slope, original = (graph.layers(m)["conv0"].activation.alpha for m in (full, model))
    before = np.array(original)
    full.compile(library.optimizers.SGD(0.1), "mse")
    full.fit(images(), np.ones((2, 75), np.float32), verbose=0)
    assert np.abs(np.array(slope) - before).max() > 0
    np.testing.assert_array_equal(np.array(original), before)


INITIALIZERS = {
    "Constant": lambda library, value: library.initializers.Constant(value),
    "function": lambda library, value: lambda shape, dtype=None, **_: tf.reshape(value, shape),
    "array": lambda library, value: value,
}


@LIBRARIES
@pytest.mark.parametrize("kind", INITIALIZERS)
def test_initializers_that_fit_one_shape_break_nothing(library, kind):
    if library is tf_keras and kind == "array":
        return  # tf_keras takes none
    values = np.random.default_rng(SEED).normal(size=(3, 3, 3, 4)).astype(np.float32)
    x = library.Input((5, 5, 3))
    options = {"kernel_initializer": INITIALIZERS[kind](library, values), "name": "a"}
    y = library.layers.Conv2D(4, 3, **options)(x)
    model = library.Model(x, library.layers.BatchNormalization()(y))
    expected = np.asarray(model(images(), training=False))
    full = apply(model, Plan.uniform(model, rank_ratio=1.0))
    for form in (full, strip(model), strip(full), densify(model, full)):
        same(form, expected)


@LIBRARIES
def test_regularizers_and_constraints_are_the_same_objects(library):
    class Cubic(library.regularizers.Regularizer):
        def __init__(self, factor):
            self.factor = factor

        def __call__(self, x):
            return self.factor * tf.reduce_sum(tf.abs(x) ** 3)

    cubic, options = Cubic(0.25), {"activity_regularizer": Cubic(0.5)}
    options["kernel_constraint"] = lambda kernel: tf.clip_by_value(kernel, -0.1, 0.1)
    model = network(library, [lambda: "relu"], kernel_regularizer=cubic, **options)
    full = apply(model, Plan.uniform(model, rank_ratio=1.0))
    copies = [cloning.private_copy(model), densify(model, full)]
    for copy in (*copies, full):
        for path in ("conv0", "thin0"):
            layer = graph.layers(copy)[path]
            assert layer.kernel_regularizer is cubic
            assert layer.activity_regularizer is options["activity_regularizer"]
            assert layer.kernel_constraint is options["kernel_constraint"]
    for each in (model, *copies):
        each(images())
    expected = [float(loss) for loss in model.losses]
    for copy in copies:
        np.testing.assert_allclose([float(loss) for loss in copy.losses], expected, rtol=1e-5)


@LIBRARIES
def test_functions_inside_wrappers_and_cells_are_kept(library):
    layers, x = library.layers, library.Input((5, 6, 2))
    y = layers.TimeDistributed(layers.Dense(3, activation=relu))(x)
    y = layers.LSTM(3, activation=functools.partial(scaled, factor=0.3))(layers.Reshape((5, 18))(y))
    model = library.Model(x, layers.Lambda(lambda t: 2 * t, output_shape=(3,))(y))
    values = np.random.default_rng(SEED).normal(size=(2, 5, 6, 2)).astype(np.float32)
    copy = cloning.private_copy(model)
    np.testing.assert_allclose(copy(values), model(values), atol=1e-6)


def bare_class(library, weights: bool):
    class Bare(library.layers.Layer):
        """Takes no name, holds what no configuration does, and layers inside."""

        def __init__(self, factor):
            super().__init__()
            self.factor, self.function = factor, lambda x: x + 1
            self.inner = [library.layers.Dense(4)] if weights else []
            self.noise = library.layers.Dropout(0.5) if weights else None

        def build(self, shape):
            for layer in self.inner:
                layer.build(shape)
            self.scale = self.add_weight(name="scale", shape=(), initializer="ones")
            super().build(shape)

        def call(self, inputs, training=None):
            for layer in self.inner:
                inputs = self.noise(layer(inputs), training=training)
            return self.function(inputs) * self.factor * self.scale

    if not weights:
        del Bare.build
        Bare.call = lambda self, inputs: self.function(inputs) * self.factor
    return Bare


@LIBRARIES
@pytest.mark.parametrize("weights", [False, True], ids=["without weights", "with weights"])
def test_a_layer_that_no_configuration_rebuilds_is_copied_as_it_is(library, weights):
    x = library.Input((5, 5, 3))
    layer = bare_class(library, weights)(np.float32(2))
    y = layer(library.layers.Conv2D(4, 3, padding="same", name="conv")(x))
    model = library.Model(x, library.layers.Flatten()(y))
    expected, before = np.asarray(model(images(), training=False)), state(model)
    plan = Plan.uniform(model, rank_ratio=1.0)
    assert list(plan.layers) == ["conv"]
    full = apply(model, plan)
    for form in (full, strip(full), densify(model, full)):
        same(form, expected)
    copied = graph.layers(full)[layer.name]
    assert copied is not layer and [w.shape for w in copied.trainable_weights] == [
        w.shape for w in layer.trainable_weights
    ]
    full.compile(library.optimizers.SGD(0.1), "mse")
    full.fit(images(), 0 * expected, verbose=0)
    changed = [
        np.any(a != b) for a, b in zip(copied.get_weights(), layer.get_weights(), strict=True)
    ]
    assert all(changed) and (len(changed) >= 3 if weights else not changed)
    for ours, theirs in zip(state(model), before, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    same(model, expected, 0)


@LIBRARIES
def test_what_cannot_be_copied_is_refused_in_words(library):
    class Locked(library.layers.Layer):
        def __init__(self):
            super().__init__()
            self.generator = (number for number in range(3))
            self.scale = self.add_weight(name="scale", shape=(), initializer="ones")

        def get_config(self):
            raise NotImplementedError("no config")

    with pytest.raises(ValueError, match=r"'locked\w*' \(Locked\).*no config.*get_config"):
        again(Locked())


@LIBRARIES
def test_like_takes_changes_and_another_class(library):
    layer = library.layers.Conv2D(4, 3, activation=own, dtype="float16", name="conv")
    wide = like(layer, filters=8, activation="relu")
    assert (wide.filters, wide.name, wide.compute_dtype) == (8, "conv", "float16")
    assert wide.activation is library.activations.relu
    assert like(layer).activation is own
