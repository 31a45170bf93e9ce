"""Functions traced for one computation and thrown away after it."""

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf


def traced(function: Callable, batches: int = 0) -> Callable:
    """A function as a graph, traced again only when shapes change.

    For functions made inside another one, that close over what it was given. TensorFlow counts the
    tracings of a `tf.function` by its place in the source and its address; an address is soon used
    again, so that the fifth use of such a function, on any model, is taken for the fifth tracing
    of one and warned of. Calls of the traced graphs themselves are not counted.

    AutoGraph rewrites nothing, which would take a third of the time: Keras 3 does without it, and
    layers of tf_keras call it themselves.

    Args:
        function: takes nests of tensors, arrays, Python constants and None; a constant is part of
            the graph.
        batches: how many of the first arguments are batches. The graph is one for any number of
            rows of theirs, for which nothing may ask when it is traced.

    Example:
        >>> double = traced(lambda values: 2 * values)
        >>> double(np.ones(2)).numpy().tolist()
        [2.0, 2.0]
    """
    graphs = tf.function(function, reduce_retracing=True, autograph=False)

    def call(*arguments: Any) -> Any:
        arguments = tf.nest.map_structure(_tensor, arguments)
        known = (*tf.nest.map_structure(_any_rows, arguments[:batches]), *arguments[batches:])
        return graphs.get_concrete_function(*known)(*arguments)

    return call


def open_rows(model: Any) -> bool:
    """Whether a model takes batches of any number of rows."""
    return all(tensor.shape[0] is None for tensor in getattr(model, "inputs", None) or ())


def _any_rows(value: Any) -> Any:
    if not tf.is_tensor(value) or not value.shape.rank:
        return value
    return tf.TensorSpec([None, *value.shape[1:]], value.dtype)


def _tensor(value: Any) -> Any:
    return tf.convert_to_tensor(value) if isinstance(value, np.ndarray | np.generic) else value
