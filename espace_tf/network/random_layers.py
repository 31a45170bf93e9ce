"""What random layers draw, such as dropouts, as numbers that a checkpoint can hold."""

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from espace_tf.network import graph


def random_layers(model: Any) -> list[Any]:
    """The layers inside a model, of Keras 3 or tf_keras, that draw.

    Args:
        model: a Keras model.
    """
    return [each for each in graph.every_layer(model) if _draws(each)]


def _draws(layer: Any) -> bool:
    if not isinstance(layer, keras.layers.Layer):
        return hasattr(getattr(layer, "_random_generator", None), "make_seed_for_stateless_op")
    return any(isinstance(each, keras.random.SeedGenerator) for each in vars(layer).values())


@contextlib.contextmanager
def numbered_draws(model: Any, seed: int) -> Iterator[list[Any]]:
    """While open, each draw of a random layer follows from the seed and the number of the draw.

    So it is in Keras 3. A layer of tf_keras draws from a generator of the process, which neither
    replicas nor a run that goes on after a kill can share; it gets one of its own meanwhile.

    Args:
        model: a Keras model; variables are made in the scope that is open.
        seed: below 2**32.

    Yields:
        The variables that the draws follow from, which are no weights.
    """
    known = getattr(model, "variables", [])
    states = [each for each in known if getattr(each, "path", "").endswith("seed_generator_state")]
    legacy = [each for each in random_layers(model) if not isinstance(each, keras.layers.Layer)]
    before = [each._random_generator for each in legacy]
    for layer in legacy:
        states.append(tf.Variable(np.zeros(2, np.int64), trainable=False))
        generator = type(layer._random_generator)(seed=0, rng_type="stateless")
        generator.make_seed_for_stateless_op = functools.partial(_next, states[-1])
        object.__setattr__(layer, "_random_generator", generator)  # which is not to be tracked
    for index, state in enumerate(states):
        state.assign(np.array([seed, index]).astype(tf.as_dtype(state.dtype).as_numpy_dtype))
    try:
        yield states
    finally:
        for layer, generator in zip(legacy, before, strict=True):
            object.__setattr__(layer, "_random_generator", generator)


def _next(state: tf.Variable) -> tf.Tensor:
    """The seed of one draw."""
    seed = tf.identity(state)
    state.assign(seed + (0, 1))
    return seed
