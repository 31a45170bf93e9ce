"""What the tests of fused models share: layers, contents, comparison."""

import keras
import numpy as np
import tensorflow as tf
from program_oracle import run

from espace_tf.keras_layers import FusedGraph
from espace_tf.network import graph

LAYERS = keras.layers
SIDE = 12


def conv(x, filters, size, activation="relu", **options):
    options = {"padding": "same", **options}
    return LAYERS.Conv2D(filters, size, activation=activation, **options)(x)


def randomized(model, seed=0):
    """Random weights of every kind, those of batch norms included."""
    rng = np.random.default_rng(seed)
    for weight in model.weights:
        drawn = rng.uniform(0.5, 1.5, weight.shape) - (0 if "variance" in weight.path else 1)
        weight.assign(drawn * (1 if "variance" in weight.path else 0.7))
    return model


def images(batch=2, side=SIDE, seed=1):
    return np.random.default_rng(seed).normal(size=(batch, side, side, 3)).astype("float32")


def same(found, wanted, tolerance=2e-5):
    for one, other in zip(tf.nest.flatten(found), tf.nest.flatten(wanted), strict=True):
        one, other = np.asarray(one), np.asarray(other)
        assert one.shape == other.shape
        assert np.abs(one - other).max() <= tolerance * np.abs(other).max() > 0


def stretches(model):
    return [layer for layer in graph.layers(model).values() if isinstance(layer, FusedGraph)]


def check_programs(model, x):
    """The program of every stretch on the oracle, against its inner model."""
    for layer in stretches(model):
        rng = np.random.default_rng(3)
        inputs = [
            rng.normal(size=(2, *tensor.shape[1:])).astype("float32")
            for tensor in layer.model.inputs
        ]
        weights = [weight.numpy() for weight in layer.program_weights()]
        found = run(layer.program.words, inputs, weights)
        wanted = tf.nest.flatten(layer.model(inputs[0] if len(inputs) == 1 else inputs))
        same([a.reshape(b.shape) for a, b in zip(found, wanted, strict=True)], wanted)
