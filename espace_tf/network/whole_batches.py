"""Layers that do to a replica's part of a batch what they would do to the whole batch."""

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import keras

from espace_tf.network import shares


@contextlib.contextmanager
def as_of_whole_batches(model: Any) -> Iterator[None]:
    """While open, batch normalisations and random layers of a model train as on one device.

    Random layers are those of Keras 3, such as Dropout; tf_keras's draw for each part alone.
    """
    with _synchronized(model), _drawn_together(model):
        yield


@contextlib.contextmanager
def _synchronized(model: Any) -> Iterator[None]:
    """While open, batch normalisations train with the statistics of whole batches."""
    names = ("synchronized", "fused")  # a fused one, of tf_keras, knows its own part only
    norms = [each for each in model._flatten_layers() if hasattr(each, "synchronized")]
    before = [
        {name: getattr(each, name) for name in names if hasattr(each, name)} for each in norms
    ]
    for each in norms:
        each.synchronized = True
        if hasattr(each, "fused"):
            each.fused = False
    try:
        yield
    finally:
        for each, values in zip(norms, before, strict=True):
            for name, value in values.items():
                setattr(each, name, value)


@contextlib.contextmanager
def _drawn_together(model: Any) -> Iterator[None]:
    """While open, random layers draw for all rows of a batch, and use what is their replica's."""
    random = [
        each
        for each in model._flatten_layers(include_self=False)
        if isinstance(each, keras.layers.Layer) and hasattr(each, "seed_generator")
    ]
    for each in random:
        each.call = functools.partial(shares.drawn_as_whole, each.call)
    try:
        yield
    finally:
        for each in random:
            del each.call
