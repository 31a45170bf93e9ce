"""Flags and compile state are put back exactly."""

import keras
import pytest
import tf_keras

from espace_tf.config import EspaceWarning
from espace_tf.network.copies.borrowed import compiled_with, trainable

LIBRARIES = pytest.mark.parametrize("library", [keras, tf_keras], ids=["keras", "tf_keras"])


def net(library):
    shared = library.layers.Dense(3, name="shared")
    frozen = library.Sequential([library.Input((3,)), shared], name="frozen")
    inputs = library.Input((3,))
    outputs = library.layers.Dense(2, name="head")(frozen(shared(inputs)))
    model = library.Model(inputs, outputs)
    frozen.trainable = False
    return model


@LIBRARIES
def test_frozen_layers_train_and_keep_their_flags(library):
    model = net(library)
    flags = [layer.trainable for layer in model._flatten_layers()]
    with trainable(model, True):
        assert len(model.trainable_weights) == 4
    assert [layer.trainable for layer in model._flatten_layers()] == flags
    with pytest.warns(EspaceWarning, match="2 of 4 weights train.*train_frozen=True"):
        with trainable(model, False):
            assert len(model.trainable_weights) == 2
    assert [layer.trainable for layer in model._flatten_layers()] == flags


@LIBRARIES
@pytest.mark.parametrize("compiled", [False, True])
def test_the_compile_state_is_put_back(library, compiled):
    model, judge, optimizer = net(library), library.Model(), library.optimizers.SGD(0.5)
    judge.compile(loss="mse")
    if compiled:
        model.compile("adam", "mae")
    before = dict(vars(model))
    with pytest.raises(KeyError), compiled_with(model, optimizer, judge):
        assert model.optimizer is optimizer and model.loss == "mse"
        assert model.get_compile_config()["loss"] == "mse"
        raise KeyError
    assert vars(model).keys() == before.keys()
    assert all(vars(model)[name] is value for name, value in before.items())
