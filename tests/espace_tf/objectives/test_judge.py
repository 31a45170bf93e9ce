"""Loss and accuracy against `evaluate` of stock Keras."""

import keras
import numpy as np
import pytest
import tf_keras

from espace_tf.objectives.judge import Judge, cosines

SEED = 3


def network(library, activation):
    library.utils.set_random_seed(SEED)
    layers = [library.Input((6,)), library.layers.Dense(4, activation=activation)]
    return library.Sequential(layers)


@pytest.mark.parametrize("library", [keras, tf_keras], ids=["keras", "tf_keras"])
@pytest.mark.parametrize(
    ("activation", "loss", "metric"),
    [
        ("softmax", "sparse_categorical_crossentropy", "accuracy"),
        ("softmax", "categorical_crossentropy", "accuracy"),
        ("sigmoid", "binary_crossentropy", "binary_accuracy"),
        (None, "mse", None),
        (None, lambda y, p: (y - p) ** 2, None),
    ],
)
def test_a_model_is_judged_as_evaluate_does(library, activation, loss, metric):
    model, random = network(library, activation), np.random.default_rng(SEED)
    x = random.normal(size=(100, 6)).astype(np.float32)
    y = random.integers(0, 2, (100, 4)).astype(np.float32)
    if isinstance(loss, str) and "categorical" in loss:
        y = random.integers(0, 4, 100)
        y = y if "sparse" in loss else np.eye(4, dtype=np.float32)[y]
    model.compile(loss=loss, metrics=[metric] if metric else None, run_eagerly=True)
    expected = model.evaluate(x, y, verbose=0, return_dict=True)
    found = Judge(model, (x, y))(model)
    assert found == pytest.approx(expected, rel=1e-4), f"seed {SEED}"


def test_what_the_loss_ignores_does_not_count():
    model, random = network(keras, None), np.random.default_rng(SEED)
    x = random.normal(size=(20, 6)).astype(np.float32)
    y = model.predict(x, verbose=0).argmax(-1)
    y[:5], y[5:8] = -1, (y[5:8] + 1) % 4
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=-1)
    assert Judge(model, (x, y), loss)(model)["accuracy"] == pytest.approx(12 / 15)


def test_labels_are_asked_for():
    with pytest.raises(ValueError, match=r"held_out must have labels: \(x, y\)"):
        Judge(network(keras, None), np.zeros((3, 6)), name="held_out")


def test_answers_that_are_all_zeros_agree_with_each_other_alone():
    first = np.array([[0, 0], [0, 0], [3, 4], [1e-30, 0], [1, 0]], np.float32)
    second = np.array([[0, 0], [1, 2], [6, 8], [1e-30, 0], [0, 1]], np.float32)
    np.testing.assert_allclose(cosines(first, second), [1, 0, 1, 1, 0])
    assert np.isnan(cosines(np.full((1, 2), np.nan), second[:1])).all()
