"""The layer that runs a whole model as one operation: its configuration, gradients and errors."""

import logging

import keras
import numpy as np
import pytest
import tensorflow as tf

from espace_tf.keras_layers import FusedGraph
from espace_tf.kernels.index_map import Geometry, conv_table
from espace_tf.kernels.loader import operations_now
from espace_tf.kernels.program import CONVOLVE, SUM, ProgramBuilder

WEIGHTS = [("conv", "kernel"), ("conv", "bias"), ("norm", "scale"), ("norm", "shift")]


def parts(seed=0):
    """A model of a convolution, a batch norm and a ReLU; and its words."""
    x = keras.Input((5, 4, 2))
    y = keras.layers.Conv2D(3, 3, padding="same", name="conv")(x)
    y = keras.layers.BatchNormalization(name="norm")(y)
    model = keras.Model(x, keras.layers.ReLU(name="relu")(y))
    rng = np.random.default_rng(seed)
    for weight in model.weights:
        weight.assign(rng.uniform(0.5, 1.5, weight.shape))
    model.get_layer("conv").kernel.assign(rng.normal(size=(3, 3, 2, 3)))
    builder = ProgramBuilder()
    table = conv_table(Geometry(kernel_size=(3, 3), input_size=(5, 4), padding="same"))
    sizes = [builder.weight(floats) for floats in (54, 3, 3, 3)]
    options = {"filter": sizes[0], "bias": sizes[1], "table": table}
    made = builder.step(CONVOLVE, [builder.input(20, 2)], 20, 3, **options)
    options = {"filter": sizes[2], "bias": sizes[3], "activation": "relu"}
    builder.output(builder.step(SUM, [made], 20, 3, **options))
    return model, builder.words()


def images(batch=3, seed=1):
    return np.random.default_rng(seed).normal(size=(batch, 5, 4, 2)).astype("float32")


def operations_in(function, *arguments):
    graph = function.get_concrete_function(*arguments).graph
    return {node.type for node in graph.get_operations()}


def test_it_computes_what_the_model_computes():
    model, words = parts()
    layer = FusedGraph(model, words, WEIGHTS)
    for batch in (1, 3, 8):
        np.testing.assert_allclose(layer(images(batch)), model(images(batch)), rtol=1e-5, atol=1e-5)
    assert layer(keras.Input((5, 4, 2))).shape == (None, 5, 4, 3)
    assert layer(keras.Input(batch_shape=(2, 5, 4, 2))).shape == (2, 5, 4, 3)
    model.get_layer("conv").bias.assign([3.0, 4.0, 5.0])
    np.testing.assert_allclose(layer(images()), model(images()), rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(operations_now() is None, reason="no native operations")
def test_the_operation_runs_at_inference_only():
    model, words = parts()
    layer, spec = FusedGraph(model, words, WEIGHTS), tf.TensorSpec((None, 5, 4, 2))
    assert "EspaceFusedGraph" in operations_in(tf.function(layer), spec)
    trained = tf.function(lambda x: layer(x, training=True))
    assert "EspaceFusedGraph" not in operations_in(trained, spec)
    compiled = tf.function(layer, jit_compile=True)
    np.testing.assert_allclose(compiled(images()), model(images()), rtol=1e-5, atol=1e-5)
    half = FusedGraph(model, words, WEIGHTS, dtype="float16")
    assert "EspaceFusedGraph" not in operations_in(tf.function(half), spec)


@pytest.mark.skipif(operations_now() is None, reason="no native operations")
def test_the_operation_computes_the_same_on_any_number_of_threads():
    model, words = parts()
    weights = [*model.get_layer("conv").get_weights(), *np.ones((2, 3), np.float32)]

    def call(x, threads):
        return operations_now().espace_fused_graph(
            inputs=[x],
            weights=weights,
            program=tf.make_tensor_proto(words),
            outputs=1,
            threads=threads,
        )[0][0]

    run = tf.function(call, autograph=False)
    found = [run(tf.constant(images(64)), threads) for threads in (0, 1, 2, 1000)]
    for other in found[1:]:
        np.testing.assert_array_equal(found[0], other)
    with pytest.raises(ValueError, match="threads.*passed -1 less than minimum 0"):
        run(tf.constant(images(64)), -1)


def test_gradients_at_inference_are_those_of_the_model():
    model, words = parts()
    layer, x = FusedGraph(model, words, WEIGHTS), tf.constant(images())

    def slopes(function):
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = tf.reduce_sum(function(x, training=False) ** 3)
        return tape.gradient(loss, [x, *(w.value for w in model.trainable_variables)])

    wanted = slopes(model)
    for found in (slopes(layer), tf.function(slopes)(layer)):
        assert len(found) == len(wanted) == 5
        for one, other in zip(found, wanted, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4 * np.abs(other).max())


def test_it_survives_files_and_clones(tmp_path):
    model, words = parts()
    x = keras.Input((5, 4, 2))
    whole = keras.Model(x, keras.layers.Flatten()(FusedGraph(model, words, WEIGHTS)(x)))
    wanted = whole(images())
    whole.save(tmp_path / "whole.keras")
    whole.save_weights(tmp_path / "whole.weights.h5")
    loaded = keras.models.load_model(tmp_path / "whole.keras")
    np.testing.assert_allclose(loaded(images()), wanted, rtol=1e-6)
    clone = keras.models.clone_model(whole)
    assert np.abs(clone(images()) - wanted).max() > 0.1
    clone.load_weights(tmp_path / "whole.weights.h5")
    np.testing.assert_allclose(clone(images()), wanted, rtol=1e-6)


def test_training_moves_the_weights_of_the_layers_inside():
    model, words = parts()
    layer = FusedGraph(model, words, WEIGHTS)
    assert len(layer.trainable_weights) == 4 and len(layer.weights) == 6
    x = keras.Input((5, 4, 2))
    whole, before = keras.Model(x, layer(x)), layer.get_weights()
    whole.compile("sgd", "mse")
    whole.fit(images(8), np.zeros((8, 5, 4, 3)), verbose=0)
    moved = [np.abs(a - b).max() > 0 for a, b in zip(before, layer.get_weights(), strict=True)]
    assert moved == [True, moved[1], True, True, True, True], "a batch norm takes the bias away"
    np.testing.assert_allclose(layer(images()), model(images()), rtol=1e-5, atol=1e-5)


def test_what_does_not_fit_is_refused_in_words():
    model, words = parts()
    other = keras.Sequential([keras.Input((5, 5, 2)), keras.layers.Conv2D(3, 1, name="conv")])
    with pytest.raises(ValueError, match=r"inputs of \[40\] floats per image.* have \[50\]"):
        FusedGraph(other, words, WEIGHTS)
    other = keras.Sequential([keras.Input((5, 4, 2)), keras.layers.Conv2D(4, 1, name="conv")])
    with pytest.raises(ValueError, match=r"outputs of \[\(60, 3\)\].* have \[\(80, 4\)\]"):
        FusedGraph(other, words, WEIGHTS)
    with pytest.raises(ValueError, match="weights of"):
        FusedGraph(model, words, WEIGHTS[:3])
    with pytest.raises(ValueError, match="must name layers of the model.*'none'"):
        FusedGraph(model, words, [("none", "kernel"), *WEIGHTS[1:]])
    with pytest.raises(ValueError, match="has no such one"):
        FusedGraph(model, words, [("conv", "second_kernel"), *WEIGHTS[1:]])
    with pytest.raises(ValueError, match="program must begin"):
        FusedGraph(model, words[1:], WEIGHTS)
    with pytest.raises(TypeError, match="Functional Keras 3 model"):
        FusedGraph(keras.layers.Conv2D(3, 3), words, WEIGHTS)
    layer = FusedGraph(model, words, WEIGHTS)
    for wrong in (keras.Input((4, 5, 2)), images()[:, :4], np.zeros((1, 5, 4, 3), "float32")):
        with pytest.raises(ValueError, match=r"expected shape=\(None, 5, 4, 2\)"):
            layer(wrong)
    open_model = keras.Sequential([keras.Input((None, 4, 2)), keras.layers.Conv2D(3, 1)])
    with pytest.raises(ValueError, match="inputs of known size"):
        FusedGraph(open_model, words, WEIGHTS)


def test_many_layers_called_eagerly_are_no_retracing():
    said = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    tf.get_logger().addHandler(handler)
    try:
        for _ in range(6):
            layer = FusedGraph(*parts(), WEIGHTS)
            assert layer(images(1)).shape == (1, 5, 4, 3)
            assert layer(images(2)).shape == (2, 5, 4, 3)
    finally:
        tf.get_logger().removeHandler(handler)
    assert said == []
