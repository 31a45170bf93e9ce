"""Labels of categorical cross-entropies: classes of the model, or refused in words."""

import keras
import numpy as np
import pytest
import tf_keras

from espace_tf.objectives import labels

SPARSE, ONE_HOT = "sparse_categorical_crossentropy", "categorical_crossentropy"


@pytest.mark.parametrize("library", [keras, tf_keras], ids=["keras", "tf_keras"])
def test_losses_are_known_in_every_form(library):
    losses = library.losses
    for loss in (
        *(SPARSE, "SparseCategoricalCrossentropy", losses.sparse_categorical_crossentropy),
        losses.SparseCategoricalCrossentropy(name="mine"),
    ):
        assert labels.loss_kind(loss) == "sparse", loss
    for loss in (ONE_HOT, losses.CategoricalCrossentropy(), losses.categorical_crossentropy):
        assert labels.loss_kind(loss) == "one-hot", loss
    for loss in ("binary_crossentropy", losses.BinaryFocalCrossentropy()):
        assert labels.loss_kind(loss) == "binary", loss
    for loss in (None, "mse", losses.Hinge(), lambda y, p: 0.0):
        assert labels.loss_kind(loss) is None, loss


@pytest.mark.parametrize(
    ("loss", "shape", "given"),
    [
        (SPARSE, (8, 3), np.array([0, 2])),
        (SPARSE, (8, 3), np.array([[0], [2]], np.float32)),
        (SPARSE, (2, 5, 5, 3), np.full((2, 5, 5), 2)),
        (SPARSE, (2, 3), np.array([True, False])),
        (SPARSE, (2, 3), np.zeros(0, int)),
        (ONE_HOT, (2, 3), np.array([[0.1, 0.2, 0.7], [0, 0, 1]])),
        ("mse", (2, 3), np.array([7.5, -1])),
        (None, (2, 3), np.array([7.5, -1])),
        (keras.losses.SparseCategoricalCrossentropy(ignore_class=255), (2, 3), np.array([255, 1])),
        (tf_keras.losses.SparseCategoricalCrossentropy(ignore_class=9), (2, 3), np.array([9, 1])),
        (keras.losses.SparseCategoricalCrossentropy(axis=1), (2, 3, 4), np.zeros((2, 4))),
    ],
)
def test_what_is_right_passes(loss, shape, given):
    labels.check([loss], [np.zeros(shape)], [given])


@pytest.mark.parametrize(
    ("loss", "shape", "given", "words"),
    [
        (SPARSE, (2, 3), [0, 3], "classes of the model, from 0 to 2. Received: 0 to 3"),
        (SPARSE, (2, 3), [-1, 0], "Received: -1 to 0"),
        (SPARSE, (2, 3), [0.25, 1], "whole numbers, classes. Received: 0.25"),
        (SPARSE, (2, 3), [np.inf, 1], "whole numbers, classes. Received: inf"),
        (SPARSE, (2, 3), np.eye(3)[:2], r"shape \(B\) for outputs \(B, 3\).*give y.argmax"),
        (SPARSE, (2, 5, 5, 3), np.zeros((2, 5)), r"shape \(B, 5, 5\) .*Received: shape \(2, 5\)$"),
        (ONE_HOT, (2, 3), [0, 1], r"one-hot.*\(B, 3\).*give SparseCategorical"),
        (ONE_HOT, (2, 3), np.eye(4)[:2], r"Received: shape \(2, 4\)$"),
    ],
)
@pytest.mark.filterwarnings("ignore:invalid value encountered in remainder")
def test_what_is_wrong_is_said(loss, shape, given, words):
    with pytest.raises(ValueError, match=words):
        labels.check([loss], [np.zeros(shape)], [np.asarray(given)])
