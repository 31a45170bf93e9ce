"""Layers that do to a replica's part of a batch what they would do to the whole batch."""

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import keras

from espace_tf.distribution import shares
from espace_tf.network import graph
from espace_tf.network.random_layers import random_layers


@contextlib.contextmanager
def as_of_whole_batches(model: Any) -> Iterator[None]:
    """While open, batch normalisations and random layers of a model train as on one device.

    Those of tf_keras draw alike in all replicas inside `numbered_draws` only.
    """
    with _synchronized(model), _drawn_together(model):
        yield


@contextlib.contextmanager
def _synchronized(model: Any) -> Iterator[None]:
    """While open, batch normalisations train with the statistics of whole batches."""
    names = ("synchronized", "fused")  # a fused one, of tf_keras, knows its own part only
    norms = [each for each in graph.every_layer(model) if hasattr(each, "synchronized")]
    before = [
        {name: getattr(each, name) for name in names if hasattr(each, name)} for each in norms
    ]
    kind = graph.library(model).layers.BatchNormalization
    exact = [each for each in norms if isinstance(each, kind) and hasattr(each, "_moments")]
    moments = _moments if kind is keras.layers.BatchNormalization else _legacy_moments
    for each in norms:
        each.synchronized = True
        if hasattr(each, "fused"):
            each.fused = False
    for each in exact:
        each._moments = functools.partial(moments, each, each._moments)
    try:
        yield
    finally:
        for each in exact:
            del each._moments
        for each, values in zip(norms, before, strict=True):
            for name, value in values.items():
                setattr(each, name, value)


def _moments(layer: Any, usual: Any, inputs: Any, mask: Any) -> Any:
    """Mean and variance of a batch, as Keras 3's batch normalisations ask for them."""
    if mask is not None:
        return usual(inputs, mask)
    return shares.batch_moments(inputs, layer._reduction_axes)


def _legacy_moments(layer: Any, usual: Any, inputs: Any, axes: Any, keep_dims: bool, mask: Any):
    """The same, as tf_keras's ask for them."""
    del layer
    if mask is not None:
        return usual(inputs, axes, keep_dims, mask)
    return shares.batch_moments(inputs, axes, keep_dims)


@contextlib.contextmanager
def _drawn_together(model: Any) -> Iterator[None]:
    """While open, random layers draw for all rows of a batch, and use what is their replica's."""
    layers = random_layers(model)
    for each in layers:
        each.call = functools.partial(shares.drawn_as_whole, each.call)
    try:
        yield
    finally:
        for each in layers:
            del each.call
