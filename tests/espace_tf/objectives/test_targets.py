"""Losses of every kind against sums over samples computed by hand."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from espace_tf.objectives import targets

SEED = 5
LIBRARIES = pytest.mark.parametrize("library", [keras, tf_keras], ids=["keras", "tf_keras"])


def network(library, classes=4, activation=None, loss=None):
    library.utils.set_random_seed(SEED)
    dense = library.layers.Dense(classes, activation=activation)
    model = library.Sequential([library.Input((6,)), dense])
    if loss is not None:
        model.compile(loss=loss)
    return model


def samples(count=7):
    random = np.random.default_rng(SEED)
    return random.normal(size=(count, 6)).astype(np.float32), random.integers(0, 4, count)


def log_softmax(scores):
    scores = np.asarray(scores, float)
    return scores - np.log(np.exp(scores).sum(-1, keepdims=True))


def value(model, loss, x, y):
    name, target, _ = targets.resolve(model, loss, (x, y), SEED)
    labels = None if y is None else tf.nest.map_structure(tf.constant, y)
    return name, float(target(model(x), labels, 0))


@LIBRARIES
@pytest.mark.parametrize("activation", [None, "softmax"])
@pytest.mark.parametrize("one_hot", [False, True])
def test_cross_entropy_is_inferred_and_summed(library, activation, one_hot):
    model, (x, y) = network(library, activation=activation), samples()
    scores = np.asarray(model(x), float)
    logs = np.log(scores) if activation else log_softmax(scores)
    labels = np.eye(4, dtype=np.float32)[y] if one_hot else y
    name, found = value(model, None, x, labels)
    assert name == "labels"
    np.testing.assert_allclose(found, -logs[np.arange(7), y].sum(), rtol=1e-5)


@LIBRARIES
@pytest.mark.parametrize("kind", ["name", "function", "mean", "sum", "none", "compiled"])
def test_given_losses_are_summed_over_samples(library, kind):
    losses, (x, _) = library.losses, samples()
    y = np.random.default_rng(SEED).normal(size=(7, 4)).astype(np.float32)
    loss = {
        "name": "mse",
        "function": losses.mean_squared_error,
        "mean": losses.MeanSquaredError(),
        "sum": losses.MeanSquaredError(reduction="sum"),
        "none": losses.MeanSquaredError(reduction="none"),
        "compiled": None,
    }[kind]
    model = network(library, loss="mse" if kind == "compiled" else None)
    expected = ((np.asarray(model(x), float) - y) ** 2).mean(1).sum()
    np.testing.assert_allclose(value(model, loss, x, y)[1], expected, rtol=1e-5)


@LIBRARIES
@pytest.mark.parametrize("form", ["list", "dictionary"])
def test_every_output_has_its_own_loss(library, form):
    inputs = library.Input((6,))
    # Not in the order of their names.
    outputs = [library.layers.Dense(2, name="z")(inputs), library.layers.Dense(2, name="a")(inputs)]
    model, (x, _) = library.Model(inputs, outputs), samples()
    z, a = np.random.default_rng(SEED).normal(size=(2, 7, 2)).astype(np.float32)
    labels, loss = [z, a], ["mse", "mae"]
    if form == "dictionary":
        labels, loss = {"z": z, "a": a}, {"z": "mse", "a": "mae"}
    got_z, got_a = (np.asarray(output, float) for output in model(x))
    expected = ((got_z - z) ** 2).mean(1).sum() + np.abs(got_a - a).mean(1).sum()
    np.testing.assert_allclose(value(model, loss, x, labels)[1], expected, rtol=1e-5)


def test_outputs_in_a_dictionary():
    inputs = keras.Input((6,))
    outputs = {"z": keras.layers.Dense(2)(inputs), "a": keras.layers.Dense(3)(inputs)}
    model, (x, _) = keras.Model(inputs, outputs), samples()
    labels = {"z": np.zeros((7, 2), np.float32), "a": np.zeros((7, 3), np.float32)}
    got = {name: np.asarray(output, float) for name, output in model(x).items()}
    expected = (got["z"] ** 2).mean(1).sum() + np.abs(got["a"]).mean(1).sum()
    found = value(model, {"z": "mse", "a": "mae"}, x, labels)[1]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@LIBRARIES
@pytest.mark.parametrize("activation", [None, "softmax"])
def test_labels_are_drawn_from_the_network_itself(library, activation):
    model = network(library, activation=activation)
    x = np.repeat(samples()[0][:1], 4000, axis=0)
    loss = None if activation else library.losses.CategoricalCrossentropy(from_logits=True)
    name, target, (output,) = targets.resolve(model, loss, (x, None), SEED)
    assert name == "drawn labels" and output.kind == "classes"
    scores = np.asarray(model(x[:1]), float)
    logs = np.log(scores) if activation else log_softmax(scores)
    with tf.GradientTape() as tape:
        outputs = model(x)
        tape.watch(outputs)
        loss = target(outputs, None, 3)
    assert float(loss) == float(target(outputs, None, 3)) != float(target(outputs, None, 4))
    # The mean of -log p over draws is the entropy.
    entropy = -(np.exp(logs) * logs).sum()
    np.testing.assert_allclose(float(loss) / 4000, entropy, rtol=0.05, err_msg=f"seed {SEED}")
    # The gradient is that of cross-entropy against single labels: never degenerate.
    gradient = np.asarray(tape.gradient(loss, outputs))
    if activation is None:
        drawn = np.exp(logs) - gradient
        np.testing.assert_allclose(np.sort(drawn, -1), [[0, 0, 0, 1]] * 4000, atol=1e-5)
        np.testing.assert_allclose(drawn.mean(0), np.exp(logs)[0], atol=0.04)


@LIBRARIES
def test_other_outputs_are_projected_on_random_signs(library):
    inputs = library.Input((5, 5, 2))
    model = library.Model(inputs, library.layers.Conv2D(3, 2)(inputs))
    x = np.random.default_rng(SEED).normal(size=(6, 5, 5, 2)).astype(np.float32)
    name, target, (output,) = targets.resolve(model, None, (x, None), SEED)
    assert name == "projections" and output.kind == "values"
    outputs = model(x)
    with tf.GradientTape() as tape:
        tape.watch(outputs)
        loss = target(outputs, None, 1)
    gradient = np.asarray(tape.gradient(loss, outputs))
    np.testing.assert_allclose(np.abs(gradient), 1 / np.sqrt(4 * 4 * 3), rtol=1e-5)
    assert abs(np.sign(gradient).mean()) < 0.3, f"seed {SEED}"
    assert float(loss) == float(target(outputs, None, 1)) != float(target(outputs, None, 2))


@LIBRARIES
@pytest.mark.parametrize("form", ["probabilities", "logits"])
def test_each_of_several_labels_is_drawn(library, form):
    model = network(library, activation="sigmoid" if form == "probabilities" else None)
    x = np.repeat(samples()[0][:1], 4000, axis=0)
    loss = library.losses.BinaryCrossentropy(from_logits=form == "logits")
    name, target, (output,) = targets.resolve(model, loss, (x, None), SEED)
    assert name == "drawn labels" and output.kind == "multi-label"
    p = np.asarray(model(x[:1]), float)
    p = p if form == "probabilities" else 1 / (1 + np.exp(-p))
    entropy = -(p * np.log(p) + (1 - p) * np.log(1 - p)).mean()
    found = float(target(model(x), None, 3)) / 4000
    np.testing.assert_allclose(found, entropy, rtol=0.05, err_msg=f"seed {SEED}")


def test_a_loss_that_cannot_be_inferred_is_asked_for():
    model, (x, _) = network(keras), samples()
    with pytest.raises(ValueError, match=r"loss must be given.*\(7, 2\)"):
        targets.resolve(model, None, (x, np.zeros((7, 2))), SEED)
    for loss in ({"wrong": "mse"}, [None, "mse"]):
        with pytest.raises(ValueError, match="loss must .* the outputs"):
            targets.resolve(model, loss, (x, np.zeros((7, 4))), SEED)


@LIBRARIES
def test_labels_that_the_loss_does_not_take_are_refused_in_words(library):
    model, (x, y) = network(library), samples()
    losses = library.losses
    mistakes = [
        ("mse", np.zeros((7, 9), np.float32), r"labels, of shapes \[\(7, 9\)\], do not go with"),
        ("mse", np.full((7, 4), np.inf, np.float32), "of the first batch must be finite.*inf"),
        (lambda y, p: p[0] / 0.0 * 0.0, y, "the loss .* of the first batch must be finite.*nan"),
        (losses.SparseCategoricalCrossentropy(name="own"), y + 1, "from 0 to 3. Received: 1 to 4"),
        (losses.SparseCategoricalCrossentropy(), np.eye(4)[y], r"class numbers, of shape \(B\)"),
        (losses.CategoricalCrossentropy(), y, "labels must be one-hot"),
        (None, y - 1, "from 0 to 3. Received: -1 to 2"),
        (None, y + 0.5, r"loss must be given.*Received: labels \[\('float64', \(7,\)\)\]"),
    ]
    for loss, labels, words in mistakes:
        with pytest.raises(ValueError, match=words):
            targets.resolve(model, loss, (x, labels), SEED)
