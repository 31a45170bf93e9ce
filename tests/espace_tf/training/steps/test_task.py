"""The task's loss and metrics against `evaluate` of stock Keras."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from espace_tf.training.steps.task import Task

SEED = 5
LIBRARIES = pytest.mark.parametrize("library", [keras, tf_keras], ids=["keras", "tf_keras"])
SPARSE = "sparse_categorical_crossentropy"


def network(library, structure="list", activation="softmax"):
    library.utils.set_random_seed(SEED)
    inputs = library.Input((6,))
    first = library.layers.Dense(4, activation=activation, name="z")(inputs)
    second = library.layers.Dense(1, name="a", kernel_regularizer="l2")(inputs)
    outputs = {"list": [first, second], "dictionary": {"z": first, "a": second}, "one": first}
    return library.Model(inputs, outputs[structure])


def data(structure="list"):
    random = np.random.default_rng(SEED)
    x = random.normal(size=(8, 6)).astype(np.float32)
    y = [random.integers(0, 4, 8), random.normal(size=(8, 1)).astype(np.float32)]
    return x, {"list": y, "dictionary": dict(zip("za", y, strict=True)), "one": y[0]}[structure]


def found(task, model, x, y):
    y = tf.nest.map_structure(tf.constant, y)
    outputs = model(x)
    task.update(x, y, outputs, None)
    return {"loss": float(task.loss(x, y, outputs, None, len(x))), **task.results()}


@LIBRARIES
@pytest.mark.parametrize("given", [False, True], ids=["compiled", "given"])
@pytest.mark.parametrize(
    ("structure", "loss"),
    [
        ("one", SPARSE),
        ("list", [SPARSE, "mse"]),
        ("list", [None, "mse"]),
        ("list", {"a": "mse", "z": SPARSE}),
        ("dictionary", {"a": "mse", "z": SPARSE}),
        ("dictionary", {"z": SPARSE}),
    ],
)
def test_the_loss_is_what_evaluate_says(library, structure, loss, given):
    model, (x, y) = network(library, structure), data(structure)
    twin = network(library, structure)
    twin.compile(loss=loss, run_eagerly=True)
    if not given:
        model.compile(loss=loss)
    task = Task(model, (x, y, None), loss=loss if given else None)
    expected = twin.evaluate(x, y, verbose=0, return_dict=True)["loss"]
    assert found(task, model, x, y)["loss"] == pytest.approx(expected, rel=1e-5), f"seed {SEED}"
    counted = {each.name for each in task.outputs if each.weight}
    if isinstance(loss, dict):
        assert counted == set(loss)


@LIBRARIES
@pytest.mark.parametrize(
    ("activation", "loss", "metric"),
    [
        ("softmax", None, "accuracy"),
        ("softmax", SPARSE, "accuracy"),
        ("sigmoid", "binary_crossentropy", "binary_accuracy"),
        (None, "mse", None),
        (None, lambda y, p: tf.reduce_mean((y - p) ** 2, -1), None),
    ],
)
def test_metrics_are_named_for_what_they_are(library, activation, loss, metric):
    model, (x, y) = network(library, "one", activation), data("one")
    if metric != "accuracy":
        y = np.random.default_rng(SEED).integers(0, 2, (8, 4)).astype(np.float32)
    twin = network(library, "one", activation)
    twin.compile(loss=loss or SPARSE, metrics=[metric] if metric else None, run_eagerly=True)
    expected = twin.evaluate(x, y, verbose=0, return_dict=True)
    task = Task(model, (x, y, None), loss=loss)
    assert found(task, model, x, y) == pytest.approx(expected, rel=1e-5), f"seed {SEED}"
