"""Exported SavedModels are loaded by TensorFlow alone and compute what the model computes."""

import os

import keras
import numpy as np
import pytest
import tensorflow as tf
from deploy_networks import BOTH_LIBRARIES, images, network, relative
from structures import STRUCTURES

from espace_tf.deploy.export_saved_model import export_saved_model


@BOTH_LIBRARIES
def test_saved_model_serves_what_the_model_computes(library, tmp_path, capsys):
    model = network(library)
    for _ in range(2):  # The second export replaces the first.
        result = export_saved_model(model, tmp_path / "served")
    assert capsys.readouterr().out == ""
    assert os.listdir(tmp_path) == ["served"]
    assert result.max_difference < 1e-4
    loaded = tf.saved_model.load(str(result.path))
    assert (
        relative(loaded.serve(images(3)).numpy(), model(images(3), training=False).numpy()) < 1e-4
    )


def test_a_folder_with_other_things_is_not_replaced(tmp_path):
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds something else"):
        export_saved_model(network(), tmp_path / "served")
    assert (tmp_path / "served" / "thesis.txt").read_text() == "mine"


@pytest.mark.parametrize("make", STRUCTURES.values(), ids=list(STRUCTURES))
def test_any_structure_is_served_as_the_model_takes_and_gives_it(make, tmp_path):
    model, inputs = make()
    result = export_saved_model(model, tmp_path / "served")
    assert result.max_difference < 1e-5
    loaded = tf.saved_model.load(str(result.path))
    served, expected = loaded.serve(inputs), model(inputs, training=False)
    keras.tree.map_structure(
        lambda one, other: np.testing.assert_allclose(one, other, atol=1e-5), served, expected
    )
