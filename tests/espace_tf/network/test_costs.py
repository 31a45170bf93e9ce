"""Counts of published and hand-counted networks."""

import keras
import numpy as np
import pytest
import tf_keras

import espace_tf
from espace_tf.keras_layers import DecomposedConv2D, FusedGraph, MaskedConv2D
from espace_tf.network import costs, graph

LIBRARIES = pytest.mark.parametrize("library", [keras, tf_keras], ids=["keras", "tf_keras"])


def test_vgg16():
    model = keras.applications.VGG16(weights=None)
    assert costs.macs(model) == 15_470_264_320
    assert costs.layer_macs(model)["block1_conv1"] == 224 * 224 * 27 * 64


@LIBRARIES
def test_every_kind_of_layer_by_hand(library):
    layers, x = library.layers, library.Input((8, 10, 4))
    y = layers.Conv2D(6, (3, 5), strides=2, padding="same", groups=2, name="grouped")(x)
    y = layers.BatchNormalization(name="norm")(y)
    y = layers.DepthwiseConv2D(3, depth_multiplier=2, name="depthwise")(y)
    y = layers.SeparableConv2D(5, 2, use_bias=False, name="separable")(y)
    y = layers.Conv2DTranspose(3, 3, strides=2, name="transpose")(y)
    y = layers.Dense(7, name="each")(y)
    y = layers.Dense(2, name="head")(layers.Flatten()(y))
    # 8 x 10 -> 4 x 5 -> 2 x 3 (valid, 3) -> 1 x 2 (valid, 2) -> 3 x 5.
    expected = {
        "grouped": 20 * 15 * 2 * 6,
        "depthwise": 6 * 9 * 12,
        "separable": 2 * 12 * (4 + 5),
        "transpose": 2 * 5 * 9 * 3,
        "each": 15 * 3 * 7,
        "head": 15 * 7 * 2,
    }
    assert costs.layer_macs(library.Model(x, y)) == expected


def test_masks_and_ranks_are_counted():
    x = keras.Input((8, 8, 4))
    rows = (np.arange(0, 8, 2)[:, None] * 8 + np.arange(8)).ravel()  # Every second row.
    shared = MaskedConv2D(4, 3, padding="same", positions=[0, 9, 63], name="masked")
    y = shared(shared(x))
    y = DecomposedConv2D(6, 3, rank=2, padding="same", name="pair")(y)
    y = DecomposedConv2D(6, 3, rank=2, padding="same", positions=rows, name="rows")(y)
    y = DecomposedConv2D(
        6, 3, rank=2, groups=2, order="horizontal", padding="same", strides=2, name="grouped"
    )(y)
    assert costs.layer_macs(keras.Model(x, y)) == {
        "masked": 2 * 3 * 9 * 4 * 4,
        "pair": 64 * 3 * 4 * 2 + 64 * 3 * 2 * 6,
        # Vertical first: a kept row of the second half reads that row of the first half alone.
        "rows": 32 * 3 * 6 * 2 + 32 * 3 * 2 * 6,
        # 1 x 3 first, stride (1, 2): 8 x 4; then 3 x 1, stride (2, 1): 4 x 4. Two groups of rank 2.
        "grouped": 32 * 3 * 3 * 4 + 16 * 3 * 2 * 6,
    }


def test_an_open_size_is_named():
    conv = keras.layers.Conv2D(4, 3, name="conv")
    with pytest.raises(ValueError, match="conv depend on its input size"):
        costs.macs(keras.Sequential([keras.Input((None, None, 2)), conv]))
    dense = keras.layers.Dense(4, name="dense")
    with pytest.raises(ValueError, match="dense depend on its input size"):
        costs.macs(keras.Sequential([keras.Input((None, 2)), dense]))


def test_fused_graphs_in_a_network_called_twice_count_twice():
    x = keras.Input((8, 8, 4))
    y = keras.layers.Conv2D(6, 3, padding="same", activation="relu", name="first")(x)
    y = keras.layers.Conv2D(6, 3, padding="same", name="second")(y)
    twin, sides = keras.Model(x, y, name="twin"), [keras.Input((8, 8, 4)) for _ in "ab"]
    siamese = keras.Model(sides, keras.layers.Subtract()([twin(side) for side in sides]))
    small = espace_tf.apply(siamese, espace_tf.Plan.uniform(siamese, rank_ratio=0.5, keep=0.5))
    fused = espace_tf.strip(small)
    assert any(isinstance(layer, FusedGraph) for layer in graph.layers(fused).values())
    assert costs.macs(fused) == costs.macs(small)
