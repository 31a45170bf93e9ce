"""Programs of graphs in which one tensor is shown, moved and changed for several readers."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from program_oracle import run

from espace_tf.keras_layers import FusedGraph, MaskedConv2D
from espace_tf.network import graph
from espace_tf.rewriting.fuse import fuse

LAYERS = keras.layers
SEED = 11
KEPT = range(0, 64, 3)


def conv(x, activation=None, positions=None):
    return MaskedConv2D(4, 3, padding="same", activation=activation, positions=positions)(x)


def pyramid(x):
    lateral, p5 = conv(LAYERS.UpSampling2D(2)(x)), conv(x)
    up = LAYERS.UpSampling2D(2)(p5)
    return [LAYERS.Add()([lateral, up]), conv(p5)]


def shown_and_moved(x):
    p5 = conv(x)
    up = LAYERS.UpSampling2D(2)(p5)
    return [p5, LAYERS.Add()([conv(up), up])]


def moved_and_shown(x):
    p5 = conv(x, positions=KEPT)
    cut = LAYERS.Cropping2D(1)(p5)
    return [cut, p5, LAYERS.ZeroPadding2D(2)(p5)]


def padded_and_clamped(x):
    t = conv(x)
    clamped = LAYERS.ReLU()(LAYERS.ZeroPadding2D(1)(t))
    return [conv(clamped), conv(t)]


def clamped_under_another_name(x):
    t = conv(x)
    same = LAYERS.Cropping2D(1)(LAYERS.ZeroPadding2D(1)(LAYERS.Dropout(0.5)(t)))
    return [LAYERS.ReLU()(same), LAYERS.Add()([t, same])]


def clamped_in_a_concatenation(x):
    t = conv(x)
    both = LAYERS.Concatenate()([t, t])
    return [conv(both), LAYERS.ReLU()(t)]


def clamped_after_the_last_reader(x):
    t = conv(x)
    read = conv(t)
    return [LAYERS.Add()([read, LAYERS.ReLU()(t)])]


def one_call_reads_it_twice(x):
    t = conv(x, positions=KEPT)
    turned = LAYERS.Cropping2D(((0, 1), (0, 0)))(LAYERS.ZeroPadding2D(((1, 0), (0, 0)))(t))
    again = LAYERS.Add()([t, turned, t])
    return [LAYERS.Concatenate()([again, LAYERS.ReLU()(again), again])]


def views_of_views(x):
    t = conv(x, positions=KEPT)
    small = LAYERS.Cropping2D(2)(t)
    up = LAYERS.UpSampling2D(2)(small)
    return [LAYERS.Add()([up, t]), conv(small), LAYERS.ReLU(6.0)(up), LAYERS.Dropout(0.1)(t)]


def a_mask_behind_a_mask(x):
    t = conv(x, "relu", KEPT)
    point = MaskedConv2D(3, 1)(t)
    pooled = LAYERS.MaxPooling2D(3, 1, "same")(t)
    return [LAYERS.Concatenate()([point, pooled, t]), LAYERS.ReLU()(point), conv(point)]


def inputs_and_outputs_alike(x):
    up = LAYERS.UpSampling2D(2)(x)
    t = conv(x)
    return [LAYERS.ReLU()(x), up, t, LAYERS.Identity()(t), LAYERS.ReLU()(LAYERS.Identity()(t))]


GRAPHS = (
    *(pyramid, shown_and_moved, moved_and_shown, padded_and_clamped, clamped_under_another_name),
    *(clamped_in_a_concatenation, clamped_after_the_last_reader, one_call_reads_it_twice),
    *(views_of_views, a_mask_behind_a_mask, inputs_and_outputs_alike),
)


@pytest.mark.parametrize("network", GRAPHS, ids=lambda each: each.__name__)
@pytest.mark.parametrize("turned", [False, True], ids=["", "outputs turned"])
def test_every_reader_sees_what_it_would_without_the_others(network, turned):
    keras.utils.set_random_seed(SEED)
    x = keras.Input((8, 8, 4))
    outputs = network(x)
    model = keras.Model(x, outputs[::-1] if turned else outputs)
    fused = fuse(model)
    (layer,) = (each for each in graph.layers(fused).values() if isinstance(each, FusedGraph))
    images = np.random.default_rng(SEED).normal(size=(2, 8, 8, 4)).astype("float32")
    inside = layer.model(images)
    weights = [weight.numpy() for weight in layer.program_weights()]
    for found, wanted in zip(
        run(layer.program.words, [images], weights), tf.nest.flatten(inside), strict=True
    ):
        np.testing.assert_allclose(found.reshape(wanted.shape), wanted, atol=1e-5)
    for found, wanted in zip(
        tf.nest.flatten(fused(images)), tf.nest.flatten(model(images)), strict=True
    ):
        np.testing.assert_allclose(found, wanted, atol=1e-5)
