import keras
import numpy as np
import pytest
import tensorflow as tf

from espace_tf.keras_layers import MaskedConv2D, for_library

GEOMETRIES = {
    "valid": {},
    "same": {"padding": "same"},
    "strided": {"strides": (2, 1), "padding": "same"},
    "strided valid": {"strides": 2},
    "dilated": {"dilation_rate": (2, 1), "padding": "same"},
    "groups": {"groups": 2, "padding": "same"},
    "pointwise": {"kernel_size": 1},
    "oblong": {"kernel_size": (1, 4), "padding": "same"},
}


def make_inputs(seed):
    rng = np.random.default_rng(seed)
    return rng, rng.normal(size=(3, 9, 8, 4)).astype("float32")


def options_of(geometry):
    options = {"kernel_size": 3, **GEOMETRIES[geometry]}
    return options.pop("kernel_size"), options


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_all_positions_equal_the_stock_convolution(library, geometry, build, stock_conv):
    rng, inputs = make_inputs(0)
    size, options = options_of(geometry)
    layer = for_library(library).MaskedConv2D(6, size, **options)
    layer, weights = build(layer, inputs, rng)
    outputs = np.array(layer(inputs))
    expected = stock_conv(library, inputs, *weights, **options)
    np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-4, err_msg="seed 0")
    everything = for_library(library).MaskedConv2D(
        6, size, positions=range(outputs[0, ..., 0].size), **options
    )
    everything.build(inputs.shape)
    everything.set_weights(layer.get_weights())
    np.testing.assert_array_equal(everything(inputs), outputs)


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("keep", [0.03, 0.3, 0.9])
def test_a_position_shows_its_nearest_kept_one(
    library, geometry, keep, build, stock_conv, show_nearest
):
    seed = round(100 * keep)
    rng, inputs = make_inputs(seed)
    size, options = options_of(geometry)
    shape = MaskedConv2D(6, size, **options).compute_output_shape(inputs.shape)
    rows = shape[1] * shape[2]
    positions = rng.choice(rows, max(1, int(keep * rows)), replace=False)
    layer = for_library(library).MaskedConv2D(6, size, positions=positions, **options)
    layer, weights = build(layer, inputs, rng)
    dense = stock_conv(library, inputs, *weights, **options)
    assert dense.shape == shape
    np.testing.assert_allclose(
        layer(inputs), show_nearest(dense, positions), rtol=1e-4, atol=1e-4, err_msg=f"seed {seed}"
    )


@pytest.mark.parametrize(
    "activation", ["relu", "relu6", "elu", "silu", "tanh", "sigmoid", "softmax", "gelu", "linear"]
)
@pytest.mark.parametrize("positions", [None, [0, 17, 30]])
def test_any_activation_equals_keras(activation, positions, build):
    rng, inputs = make_inputs(1)
    linear = MaskedConv2D(6, 3, positions=positions)
    build(linear, inputs, rng)
    active = MaskedConv2D(6, 3, positions=positions, activation=activation)
    active.build(inputs.shape)
    active.set_weights(linear.get_weights())
    expected = keras.activations.get(activation)(linear(inputs))
    np.testing.assert_allclose(active(inputs), expected, rtol=1e-5, atol=1e-5, err_msg="seed 1")


def test_an_activation_may_be_a_layer_or_a_function(build):
    rng, inputs = make_inputs(2)
    for activation in (keras.layers.LeakyReLU(0.2), lambda x: tf.nn.leaky_relu(x, 0.2)):
        layer, _ = build(MaskedConv2D(5, 3, positions=[3], activation=activation), inputs, rng)
        linear = MaskedConv2D(5, 3, positions=[3])
        linear.build(inputs.shape)
        linear.set_weights(layer.get_weights())
        expected = tf.nn.leaky_relu(linear(inputs), 0.2)
        np.testing.assert_allclose(layer(inputs), expected, rtol=1e-6, err_msg="seed 2")


def test_a_sigmoid_keeps_its_logits_for_the_loss():
    _, inputs = make_inputs(3)
    layer = MaskedConv2D(1, 3, positions=[3], activation="sigmoid")
    assert hasattr(layer(inputs), "_keras_logits")


def test_without_bias_and_of_one_weight(library):
    layer = for_library(library).MaskedConv2D(2, 3, use_bias=False, positions=[0])
    layer.build((None, 5, 5, 3))
    assert layer.bias is None
    assert [tuple(weight.shape) for weight in layer.weights] == [(3, 3, 3, 2)]


@pytest.mark.parametrize("positions", [None, [0, 5, 17, 30]])
def test_gradients_equal_those_of_the_stock_composition(library, positions, build, nearest_kept):
    rng, inputs = make_inputs(4)
    layer = for_library(library).MaskedConv2D(6, 3, positions=positions, activation="relu")
    build(layer, inputs, rng)
    stock = library.layers.Conv2D(6, 3, activation="relu")
    stock.build(inputs.shape)
    stock.set_weights(layer.get_weights())
    weight = rng.normal(size=(3, 42, 6)).astype("float32")
    gradients = []
    for run in (layer, stock):
        values = tf.constant(inputs)
        with tf.GradientTape() as tape:
            tape.watch(values)
            rows = tf.reshape(run(values), [3, 42, 6])
            if run is stock and positions is not None:
                rows = tf.gather(rows, nearest_kept((7, 6), positions), axis=1)
            loss = tf.reduce_sum(rows * weight)
        gradients.append(tape.gradient(loss, [values, *run.trainable_weights]))
    for own, expected in zip(*gradients, strict=True):
        np.testing.assert_allclose(own, expected, rtol=1e-3, atol=1e-3, err_msg="seed 4")


def test_a_call_on_a_map_of_another_size_is_refused_while_the_model_is_made():
    layer = MaskedConv2D(3, 3, padding="same", positions=range(0, 60, 2), name="masked")
    layer(keras.Input((10, 6, 3)))
    with pytest.raises(ValueError, match=r"keeps positions .* \(10, 6\). Received: \(8, 6\)"):
        layer(keras.Input((8, 6, 3)))
