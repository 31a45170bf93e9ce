"""Batch norms that know what they read, while the network computes what it did."""

from typing import Any

import numpy as np
import tensorflow as tf

from espace_tf.network import graph, recording
from espace_tf.network.layer_rules import rule


def settle(model: Any, inputs: Any) -> int:
    """Gives batch norms the statistics of what they read, and undoes that in gamma and beta.

    Layers refitted by least squares respond less strongly than those before them, which at
    inference is right. A training would begin with the statistics of its batches, which bring the
    strength back, layer after layer: another network. With gamma * s / s0 and
    beta + gamma * (m - m0) / s0, for mean m and deviation s in the place of m0 and s0, both are the
    same.

    Args:
        model: changed in place; to float rounding it computes what it did at inference. Left alone
            are batch norms that are called more than once, frozen, constrained, or lack gamma or
            beta.
        inputs: a batch of images.

    Returns:
        The number of layers that were changed.

    Example:
        >>> before = model(images)
        >>> count = settle(model, images)
        >>> bool(np.allclose(model(images), before, atol=1e-4))
        True
    """
    paths = [path for path, layer in graph.layers(model).items() if _is_free(layer)]
    paths, changed = recording.called_once(model, paths), []

    def settled(path: str, layer: Any, values: Any, original: Any) -> Any:
        if _settle(layer, values):
            changed.append(path)
        return original(values)

    with recording.record(model, paths, settled):
        graph.forward(model, inputs)
    return len(changed)


def _is_free(layer: Any) -> bool:
    known = rule(layer).kind == "batch_norm" and layer.trainable
    constraints = ("gamma_constraint", "beta_constraint")
    return known and all(getattr(layer, name, None) is None for name in constraints)


def _settle(layer: Any, values: tf.Tensor) -> bool:
    """Changes one layer; False if it stays as it is."""
    if layer.gamma is None or layer.beta is None:
        return False
    axes = list(layer.axis) if isinstance(layer.axis, list | tuple) else [layer.axis]
    own = {axis % values.shape.rank for axis in axes}
    rest = [axis for axis in range(values.shape.rank) if axis not in own]
    mean, variance = (
        np.asarray(each, np.float64) for each in tf.nn.moments(tf.cast(values, tf.float32), rest)
    )
    names = ("gamma", "beta", "moving_mean", "moving_variance")
    gamma, beta, before, spread = (np.asarray(getattr(layer, n), np.float64) for n in names)
    with np.errstate(all="ignore"):
        slope = gamma / np.sqrt(spread + layer.epsilon)
        found = {
            "gamma": slope * np.sqrt(variance + layer.epsilon),
            "beta": beta + slope * (mean - before),
            "moving_mean": mean,
            "moving_variance": variance,
        }
    if not all(np.isfinite(each).all() and each.shape == gamma.shape for each in found.values()):
        return False
    for name, value in found.items():
        getattr(layer, name).assign(value)
    return True
