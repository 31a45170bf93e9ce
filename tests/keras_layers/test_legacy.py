"""The layers for tf_keras; their numbers are tested with those of Keras 3, layer by layer."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from espace_tf.keras_layers import DecomposedConv2D, MaskedConv2D, for_library, legacy

SIZE = (8, 9, 4)


@pytest.fixture
def inputs():
    return np.random.default_rng(0).normal(size=(3, *SIZE)).astype("float32")


@pytest.fixture
def model():
    tf_keras.utils.set_random_seed(0)
    layers = for_library(tf_keras)
    values = first = tf_keras.Input(SIZE)
    values = layers.MaskedConv2D(4, 3, padding="same", positions=range(0, 72, 3))(values)
    values = layers.DecomposedConv2D(6, 3, 2, "horizontal", positions=[0, 41], activation="elu")(
        values
    )
    values = layers.DecomposedConv2D(4, 3, 2, groups=2, kernel_regularizer="l2")(values)
    return tf_keras.Model(first, values)


def test_the_classes_of_each_library():
    assert for_library(keras).MaskedConv2D is MaskedConv2D
    assert for_library(keras).DecomposedConv2D is DecomposedConv2D
    twins = for_library(tf_keras)
    assert twins is legacy
    assert issubclass(twins.DecomposedConv2D, tf_keras.layers.Layer)
    with pytest.raises(TypeError, match="keras or tf_keras. Received: <module 'numpy'"):
        for_library(np)


@pytest.mark.parametrize("kind", ["keras", "h5", "tf"])
@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file:UserWarning")
def test_saved_and_loaded(model, inputs, tmp_path, kind):
    path = tmp_path / ("model" if kind == "tf" else f"model.{kind}")
    model.save(path, save_format=kind)
    again = tf_keras.models.load_model(path)
    np.testing.assert_allclose(again(inputs), model(inputs), rtol=1e-6)
    assert [layer.get_config() for layer in again.layers] == [
        layer.get_config() for layer in model.layers
    ]


def test_a_saved_model_serves_without_keras(model, inputs, tmp_path):
    model.export(tmp_path / "model")
    loaded = tf.saved_model.load(tmp_path / "model")
    np.testing.assert_allclose(loaded.serve(inputs), model(inputs), rtol=1e-5, atol=1e-6)


def test_cloned_and_weights_loaded(model, inputs, tmp_path):
    clone = tf_keras.models.clone_model(model)
    model.save_weights(tmp_path / "model.weights.h5")
    clone.load_weights(tmp_path / "model.weights.h5")
    np.testing.assert_array_equal(clone(inputs), model(inputs))


@pytest.mark.parametrize("policy", ["float32", "mixed_float16", "mixed_bfloat16"])
def test_one_step_of_training(inputs, policy):
    model = tf_keras.Sequential(
        [
            tf_keras.Input(SIZE),
            for_library(tf_keras).MaskedConv2D(6, 3, positions=[0, 20], dtype=policy),
            for_library(tf_keras).DecomposedConv2D(6, 3, 2, positions=[0, 9], dtype=policy),
        ]
    )
    for layer in model.layers:
        layer.fade = tf.Variable(0.5)
    assert len(model.variables) == 5
    model.compile("adam", "mse")
    before = model.get_weights()
    history = model.fit(inputs, np.ones((3, 4, 5, 6), "float32"), verbose=0)
    assert np.isfinite(history.history["loss"][0])
    for old, new in zip(before, model.get_weights(), strict=True):
        assert np.abs(old - new).max() > 0


def test_the_twins_take_the_weights_of_keras_3(model, inputs):
    own = [MaskedConv2D, DecomposedConv2D, DecomposedConv2D]
    values = inputs
    for layer_class, twin in zip(own, model.layers[1:], strict=True):
        config = twin.get_config()
        config["dtype"] = "float32"
        layer = layer_class.from_config(config)
        layer.build(values.shape)
        layer.set_weights(twin.get_weights())
        values = layer(values)
    np.testing.assert_allclose(values, model(inputs), rtol=1e-5, atol=1e-6)


def test_fade_mixes_in_training(inputs):
    layer = for_library(tf_keras).DecomposedConv2D(6, 3, 2, positions=[0, 20])
    dense = for_library(tf_keras).DecomposedConv2D(6, 3, 2)
    masked, _ = layer(inputs), dense(inputs)
    dense.set_weights(layer.get_weights())
    for fade in (0.0, 0.5, 1.0):
        layer.fade = tf.Variable(fade)
        expected = fade * masked + (1 - fade) * dense(inputs)
        np.testing.assert_allclose(layer(inputs, training=True), expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(layer(inputs, training=False), masked)
