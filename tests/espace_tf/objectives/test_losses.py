"""Losses of every structure against `evaluate` of stock Keras; kinds of outputs."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from espace_tf.objectives import losses, targets

SEED = 5
LIBRARIES = pytest.mark.parametrize("library", [keras, tf_keras], ids=["keras", "tf_keras"])
SAMPLES = 7


def heads(library, structure="list", names="za", regularized=False):
    """A network of class probabilities and a value, not in the order of their names."""
    library.utils.set_random_seed(SEED)
    options = {"activity_regularizer": "l2", "kernel_regularizer": "l2"} if regularized else {}
    inputs = library.Input((6,))
    first = library.layers.Dense(4, activation="softmax", name=names[0])(inputs)
    second = library.layers.Dense(1, name=names[1], **options)(inputs)
    outputs = {names[0]: first, names[1]: second} if structure == "dictionary" else [first, second]
    return library.Model(inputs, outputs)


def data(structure="list", names="za"):
    random = np.random.default_rng(SEED)
    x = random.normal(size=(SAMPLES, 6)).astype(np.float32)
    y = [random.integers(0, 4, SAMPLES), random.normal(size=SAMPLES).astype(np.float32)]
    return x, dict(zip(names, y, strict=True)) if structure == "dictionary" else y


def mean_loss(model, x, y, loss=None):
    resolved = targets.resolve(model, loss, (x, y), SEED)
    labels = tf.nest.map_structure(lambda each: each if each is None else tf.constant(each), y)
    return float(resolved.target(model(x), labels, 0)) / SAMPLES


def squared(y, p):
    return tf.reduce_mean((tf.cast(y, p.dtype) - p) ** 2, axis=-1)


SPARSE = "sparse_categorical_crossentropy"
# What compile is told, by what Keras takes for outputs in a list and in a dictionary.
LISTS = [
    {"loss": [SPARSE, "mse"]},
    {"loss": [SPARSE, squared], "loss_weights": [0.3, 2.0]},
    {"loss": {"z": SPARSE, "a": "mae"}, "loss_weights": {"z": 0.5, "a": 3.0}},
    {"loss": [None, "huber"], "loss_weights": [1.0, 0.7]},
    {"loss": [SPARSE, None]},
]
DICTIONARIES = [
    {"loss": {"a": "mse", "z": SPARSE}, "loss_weights": {"a": 2.0, "z": 0.1}},
    {"loss": {"z": SPARSE}},
    {"loss": {"a": "mse"}, "loss_weights": {"a": 4.0}},
]


@LIBRARIES
@pytest.mark.parametrize(
    ("structure", "told"),
    [*(("list", told) for told in LISTS), *(("dictionary", told) for told in DICTIONARIES)],
)
def test_the_loss_is_what_evaluate_says(library, structure, told):
    model, (x, y) = heads(library, structure), data(structure)
    model.compile(**told, run_eagerly=True)
    expected = model.evaluate(x, y, batch_size=SAMPLES, verbose=0, return_dict=True)["loss"]
    assert mean_loss(model, x, y) == pytest.approx(expected, rel=1e-5), f"seed {SEED}"
    counted = [each.name for each in losses.of_outputs(model, model(x)) if each.weight]
    given = told["loss"]
    if isinstance(given, list):
        given = {name: loss for name, loss in zip("za", given, strict=True) if loss is not None}
    assert set(counted) == set(given)
    # Labels of the outputs that have a loss are enough.
    if len(given) == 1:
        (name,) = given
        some = {name: y[name]} if structure == "dictionary" else y["za".index(name)]
        assert mean_loss(model, x, some) == pytest.approx(expected, rel=1e-5)


def test_tf_keras_takes_a_dictionary_of_some_losses_for_a_list_of_outputs():
    model, (x, y) = heads(tf_keras), data()
    model.compile(loss={"a": "mse"}, loss_weights={"a": 0.5}, run_eagerly=True)
    expected = model.evaluate(x, y, batch_size=SAMPLES, verbose=0, return_dict=True)["loss"]
    assert mean_loss(model, x, y) == pytest.approx(expected, rel=1e-5)


@LIBRARIES
def test_regularization_is_not_the_task(library):
    plain, regularized = heads(library), heads(library, regularized=True)
    regularized.set_weights(plain.get_weights())
    for model in (plain, regularized):
        model.compile(loss=[SPARSE, "mse"], run_eagerly=True)
    (x, y), found = data(), []
    for model in (plain, regularized):
        found.append(model.evaluate(x, y, batch_size=SAMPLES, verbose=0, return_dict=True)["loss"])
    assert found[1] > found[0]
    assert mean_loss(regularized, x, y) == pytest.approx(found[0], rel=1e-5)


@LIBRARIES
def test_a_loss_with_settings_of_its_own(library):
    class Weighted(library.losses.Loss):
        def call(self, y, p):
            y = tf.one_hot(tf.cast(tf.reshape(y, [-1]), tf.int32), 4)
            weights = tf.constant([1.0, 5.0, 0.1, 2.0])
            return -tf.reduce_sum(weights * y * tf.math.log(p), -1)

    model, (x, y) = heads(library), data()
    for reduction in ("sum_over_batch_size", "sum"):
        loss = Weighted(reduction=reduction)
        model.compile(loss=[loss, None], run_eagerly=True)
        expected = model.evaluate(x, y, batch_size=SAMPLES, verbose=0, return_dict=True)["loss"]
        expected /= 1 if reduction == "sum_over_batch_size" else SAMPLES
        assert mean_loss(model, x, y) == pytest.approx(expected, rel=1e-5)
        assert losses.of_outputs(model, model(x))[0].kind == "classes"


@LIBRARIES
def test_the_given_loss_comes_before_the_compiled_one(library):
    model, (x, y) = heads(library), data()
    model.compile(loss=[SPARSE, "mse"], loss_weights=[5.0, 5.0], run_eagerly=True)
    twin = heads(library)
    twin.compile(loss=[SPARSE, "mae"], run_eagerly=True)
    expected = twin.evaluate(x, y, batch_size=SAMPLES, verbose=0, return_dict=True)["loss"]
    assert mean_loss(model, x, y, loss=[SPARSE, "mae"]) == pytest.approx(expected, rel=1e-5)


def one(library, units, activation):
    library.utils.set_random_seed(SEED)
    layers = [library.Input((6,)), library.layers.Dense(units, activation=activation)]
    return library.Sequential(layers)


@LIBRARIES
@pytest.mark.parametrize(
    ("units", "activation", "loss", "kind", "probabilities"),
    [
        (4, "softmax", None, "classes", True),
        (4, None, None, "values", False),
        (4, "sigmoid", None, "values", False),
        (4, None, SPARSE, "classes", False),
        (4, None, "sparse logits", "classes", False),
        (4, "softmax", "CategoricalCrossentropy", "classes", True),
        (4, "softmax", squared, "classes", True),
        (4, None, squared, "values", False),
        (4, "sigmoid", "BinaryCrossentropy", "multi-label", True),
        (1, "sigmoid", "binary_crossentropy", "multi-label", True),
        (1, None, "binary logits", "multi-label", False),
        (4, None, "mse", "values", False),
        (1, None, "mae", "values", False),
        (4, "tanh", "cosine_similarity", "values", False),
    ],
)
def test_kinds(library, units, activation, loss, kind, probabilities):
    objects = {
        "sparse logits": library.losses.SparseCategoricalCrossentropy(from_logits=True),
        "binary logits": library.losses.BinaryCrossentropy(from_logits=True),
    }
    model, (x, _) = one(library, units, activation), data()
    if isinstance(loss, str):
        loss = objects.get(loss, loss)
    (output,) = losses.of_outputs(model, model(x), loss=loss)
    assert (output.kind, output.probabilities, output.weight) == (kind, probabilities, 1.0)
    if loss is not None:
        model.compile(loss=loss)
        (compiled,) = losses.of_outputs(model, model(x))
        assert compiled.kind == kind


def test_a_loss_of_ones_own_is_of_classes_if_its_labels_are():
    model, (x, (classes, _)) = one(keras, 4, None), data()

    def entropy(y, z):
        return tf.nn.sparse_softmax_cross_entropy_with_logits(tf.cast(y, tf.int32), z)

    def kind(y):
        return losses.of_outputs(model, model(x), y, entropy)[0].kind

    assert kind(classes) == kind(classes[:, None]) == "classes"
    # Numbers that are no classes, such as the age that three quantiles are of.
    assert kind(classes + 20) == kind(classes.astype(np.float32)) == "values"


@LIBRARIES
def test_a_revived_model_without_a_loss_needs_no_labels(library, tmp_path):
    model, (x, _) = one(library, 4, "softmax"), data()
    if library is tf_keras:
        model.save(tmp_path / "model", save_format="tf")
        model = tf_keras.models.load_model(tmp_path / "model")
    for loss in ({}, [], None):
        model.loss = loss
        assert targets.resolve(model, None, (x, None), SEED).name == "drawn labels"


def test_probabilities_are_told_from_logits():
    logits = np.random.default_rng(5).normal(size=(8, 4)).astype("float32")
    softmax = tf.nn.softmax(logits)
    assert losses.sums_to_one(softmax) and losses.sums_to_one(tf.cast(softmax, tf.float16))
    assert not losses.sums_to_one(logits) and not losses.sums_to_one(tf.ones((8, 1)))
