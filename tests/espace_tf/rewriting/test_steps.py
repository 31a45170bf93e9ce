"""Layers besides convolutions as steps of fused graphs, in small networks that have them."""

import keras
import numpy as np
import pytest
from fused_models import SIDE, check_programs, conv, images, randomized, same, stretches

from espace_tf.keras_layers import MaskedConv2D
from espace_tf.rewriting.fuse import fuse
from espace_tf.rewriting.strip import strip

LAYERS, OPS = keras.layers, keras.ops


def activations_of_layers(x):
    for name in ("sigmoid", "tanh", "swish", "hard_sigmoid", "hard_swish", "gelu", "elu"):
        x = conv(x, 5, (1, 2), name)
    for function in ("leaky_relu", "relu6"):
        x = LAYERS.Activation(function)(conv(x, 5, (2, 1), None))
    return LAYERS.DepthwiseConv2D(3, activation="swish")(x)


def activations_that_are_layers(x):
    x = conv(x, 6, 3, None)
    x = LAYERS.LeakyReLU(0.3)(x)
    x = LAYERS.PReLU(shared_axes=[1, 2])(conv(x, 4, 3, None))
    x = LAYERS.ELU(0.7)(LAYERS.MaxPooling2D()(x))
    x = LAYERS.ReLU(negative_slope=0.1)(x)
    return LAYERS.Softmax()(conv(x, 3, 1, "softmax"))


def operations(x):
    x = conv(x, 6, 3, None)
    for function in (OPS.relu, OPS.silu, OPS.gelu, OPS.tanh, OPS.sigmoid, OPS.hard_silu, OPS.elu):
        x = function(conv(x, 5, 1, None))
    y = 0.5 - (2 * x + 3) / 7
    return OPS.leaky_relu(y * x + (x - 1)) + 0.25


def squeezed(x):
    x = conv(LAYERS.Rescaling([0.5, 2.0, 1.5], -0.1)(x), 8, 3, "swish")
    s = LAYERS.GlobalAveragePooling2D()(x)
    s = conv(conv(LAYERS.Reshape((1, 1, 8))(s), 2, 1), 8, 1, "sigmoid")
    x = LAYERS.Multiply()([x, s])
    most = LAYERS.GlobalMaxPooling2D(keepdims=True)(x)
    s = LAYERS.ReLU(6.0)(most + 3.0) * (1.0 / 6.0)
    return LAYERS.Add()([LAYERS.Multiply()([x, s, x]), s])


def classified(x):
    x = conv(LAYERS.Normalization(mean=[0.1, 0.2, 0.3], variance=[1.0, 2.0, 0.5])(x), 4, 3)
    x = LAYERS.Dense(6, "relu")(LAYERS.Dropout(0.1)(LAYERS.Flatten()(x)))
    x = LAYERS.Dense(4)(LAYERS.BatchNormalization()(x))
    return LAYERS.Activation("softmax")(LAYERS.PReLU()(x))


def up_sampled(x):
    before = conv(x, 5, 3)
    x = conv(LAYERS.MaxPooling2D(2)(before), 6, 3, "swish")
    x = LAYERS.UpSampling2D((2, 3), interpolation="bilinear")(x)
    x = LAYERS.Cropping2D(((0, 0), (3, 3)))(x)
    x = LAYERS.Concatenate()([LAYERS.UpSampling2D()(LAYERS.MaxPooling2D()(before)), x])
    x = LAYERS.UpSampling2D(2, interpolation="bilinear")(LAYERS.ZeroPadding2D(1)(x))
    return conv(x, 2, 1, "sigmoid")


def shuffled(x):
    x = conv(x, 6, 1)
    for _ in range(2):
        x = LAYERS.Reshape((*x.shape[1:3], 2, 3))(x)
        x = LAYERS.Permute((1, 2, 4, 3))(x)
        x = LAYERS.Reshape((*x.shape[1:3], 6))(x)
        x = LAYERS.DepthwiseConv2D(3, padding="same")(x)
    return LAYERS.Permute((2, 1, 3))(x), LAYERS.Permute((3, 2, 1))(x), LAYERS.Flatten()(x)


def gathered_before(x):
    """Zeros that a padding adds are zeros to a product, but not to a sigmoid."""
    t = conv(x, 4, 3, None)
    padded = LAYERS.ZeroPadding2D(1)(t)
    bright = LAYERS.Activation("sigmoid")(padded)
    scaled = LAYERS.Multiply()([padded, LAYERS.GlobalAveragePooling2D(keepdims=True)(t)])
    return LAYERS.Softmax()(padded), bright, scaled, LAYERS.ReLU()(scaled), padded + 1


def masked_by_channel(x):
    x = conv(x, 6, 1)
    x = MaskedConv2D(6, 3, groups=6, padding="same", positions=range(0, 144, 2))(x)
    return conv(LAYERS.Activation("hard_swish")(x), 3, 1)


def view_of_what_is_shown(x):
    """Values that are views, hosts of views, outputs and parts of concatenations at once."""
    t = conv(x, 4, 1)
    flat = LAYERS.Reshape((6, 96))(t)
    both = LAYERS.Concatenate()([t, LAYERS.Reshape((12, 12, 4))(flat)])
    return t, flat, both, LAYERS.Flatten()(both), LAYERS.ReLU()(LAYERS.Reshape((-1, 2))(x))


NETWORKS = (
    *(activations_of_layers, activations_that_are_layers, operations, squeezed, classified),
    *(up_sampled, shuffled, gathered_before, masked_by_channel, view_of_what_is_shown),
)


def build(network):
    x = keras.Input((SIDE, SIDE, 3))
    return randomized(keras.Model(x, network(x)), 5)


@pytest.mark.parametrize("network", NETWORKS, ids=lambda each: each.__name__)
def test_a_network_is_one_layer_with_the_same_numbers(network):
    model = build(network)
    fused, x = fuse(model), images()
    assert [type(layer).__name__ for layer in fused.layers] == ["InputLayer", "FusedGraph"]
    check_programs(fused, x)
    same(fused(x), model(x), 1e-5)
    same(fused.predict(x[:1], verbose=0), model(x[:1]), 1e-5)


def test_a_saved_network_is_the_same(tmp_path):
    for network in (activations_that_are_layers, squeezed, classified, up_sampled, shuffled):
        model = build(network)
        strip(model, fuse=True).save(tmp_path / "model.keras")
        same(keras.models.load_model(tmp_path / "model.keras")(images()), model(images()), 1e-5)


def unknown(x):
    x = conv(x, 4, 3)
    ends = [
        LAYERS.Softmax(axis=1)(x),
        LAYERS.PReLU()(x),
        LAYERS.ReLU(5.0)(x),
        LAYERS.ReLU(negative_slope=0.1, threshold=0.5)(x),
        LAYERS.Activation("softplus")(x),
        LAYERS.Multiply()([x, LAYERS.GlobalAveragePooling2D(keepdims=True)(x)[..., :1]]),
        LAYERS.UpSampling2D(interpolation="bicubic")(x),
        x * np.ones((1, SIDE, SIDE, 1), "float32"),
        1.0 / (x + 9),
        x - LAYERS.UpSampling2D(1)(x),
    ]
    return [conv(each, 2, 1) for each in ends]


def test_what_is_no_step_stays_a_layer():
    model = build(unknown)
    fused = fuse(model)
    same(fused(images()), model(images()), 1e-5)
    kinds = {type(layer).__name__ for layer in fused.layers}
    assert {"Softmax", "PReLU", "ReLU", "Activation", "Multiply", "UpSampling2D"} <= kinds


def test_large_dense_layers_are_stretches_of_their_own():
    x = keras.Input((SIDE, SIDE, 3))
    y = LAYERS.Flatten()(conv(x, 8, 3))
    large = LAYERS.Dense(2100, "tanh", name="large")(y)
    small = LAYERS.Dense(3)(LAYERS.Dropout(0.1)(LAYERS.ReLU()(large)))
    ends = LAYERS.Softmax()(small), LAYERS.Concatenate()([large, y])
    model = randomized(keras.Model(x, ends), 5)
    fused, given = fuse(model), images()
    assert [type(layer).__name__ for layer in fused.layers[1:]] == ["FusedGraph", "FusedGraph"]
    assert fused.layers[-1].name == "fused_large"
    check_programs(fused, given)
    for batch in (1, 2, len(given)):
        for own, wanted in zip(fused(given[:batch]), model(given[:batch]), strict=True):
            same(own, wanted, 1e-5)
    assert type(fuse(model, large=False).layers[2]).__name__ == "Dense"
    assert not stretches(fuse(keras.Sequential([keras.Input((4,)), LAYERS.Dense(3)])))


def test_zeros_hide_no_kernel_that_is_not_finite():
    model = keras.Sequential([keras.Input((2048,)), LAYERS.Dense(1025, use_bias=False)])
    kernel = np.zeros((2048, 1025), "float32")
    kernel[:3, 0] = np.nan, np.inf, 1
    model.set_weights([kernel])
    fused, given = fuse(model), np.zeros((1, 2048), "float32")
    assert stretches(fused)
    assert np.isnan(fused(given)[0, 0])
    model.set_weights([np.nan_to_num(kernel)])
    fused.set_weights(model.get_weights())
    assert not np.any(fused(given))


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan, 1e38, -1e38, 1e-41, -90.0, 0.0])
def test_values_of_any_size_come_out_as_tensorflow_has_them(value):
    x = keras.Input((2, 2, 3))
    y = LAYERS.DepthwiseConv2D(1, depthwise_initializer="ones", use_bias=False)(x)
    ends = [
        LAYERS.Activation(each)(y)
        for each in ("sigmoid", "tanh", "swish", "hard_sigmoid", "hard_swish", "gelu", "elu")
    ]
    ends += [LAYERS.LeakyReLU(0.1)(y), LAYERS.Softmax()(y), OPS.gelu(y)]
    model = keras.Model(x, ends)
    given = np.ones((1, 2, 2, 3), "float32")
    given[..., 1] = value
    fused = fuse(model)
    assert stretches(fused)
    ends = list(zip(fused(given), model(given), strict=True))
    if np.isnan(value) or value == np.inf:  # of a softmax nothing is a number
        found, _ = ends.pop(-2)
        assert np.isnan(found).all()
    for found, wanted in ends:
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-37)
