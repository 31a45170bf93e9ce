"""Layers refitted, first to last, to what the compressed network really gives them to read."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from espace_tf import kernels
from espace_tf.analysis.statistics import linear_response
from espace_tf.kernels.index_map import Geometry, conv_table
from espace_tf.network import graph, recording
from espace_tf.network.layer_rules import COMPRESSED, rule
from espace_tf.numerics.refit import refit

_PLAIN = ("conv", "depthwise", "dense")
# Rows for each value of a patch: more hardly change what is found. No more values in all than this.
_ROWS = 24
_VALUES = 3e7


def refit_layers(model: Any, teacher: Any, inputs: Any, fitted: int, seed: int) -> int:
    """Draws every linear layer's outputs to the teacher's, by least squares, in one pass.

    The model runs once, eagerly. Each layer, before it runs, gets the last kernel and the bias that
    bring its response (before the activation) closest to the teacher's, given what reaches it
    through the layers before it, which have been refitted already (the asymmetric reconstruction of
    Zhang et al. 2015, arXiv:1505.06798, section 3.3.2); at a skipped position, by what is shown
    there. See `refit` for what keeps a layer as it is.

    Args:
        model: a compressed model, changed in place. Left alone are layers that are called more than
            once, frozen, constrained, of unknown kinds, or not in the teacher.
        teacher: the network that it was made from.
        inputs: a batch of images.
        fitted: how many of them decide; the others are held out.
        seed: of the positions that are drawn.

    Returns:
        The number of layers that were changed.
    """
    mine, theirs = graph.layers(model), graph.layers(teacher)
    paths = [path for path, layer in mine.items() if path in theirs and _is_linear(layer)]
    paths = [path for path in paths if rule(theirs[path]).kind in _PLAIN]
    wanted = _responses(teacher, paths, inputs, seed)
    changed = []

    def refitted(path: str, layer: Any, values: Any, original: Any) -> Any:
        if path in wanted and _improve(layer, values, *wanted.pop(path), fitted):
            changed.append(path)
        return original(values)

    paths = recording.called_once(model, wanted)
    with recording.record(model, paths, refitted):
        graph.forward(model, inputs)
    return len(changed)


def _is_linear(layer: Any) -> bool:
    """Whether a layer is a linear map, of a kind that can be read here, that may be changed."""
    known = rule(layer).kind in (*_PLAIN, *COMPRESSED) and layer.trainable
    first = getattr(layer, "data_format", "channels_last") == "channels_first"
    names = ("kernel_constraint", "depthwise_constraint", "bias_constraint")
    return known and not first and all(getattr(layer, name, None) is None for name in names)


def _responses(teacher: Any, paths: Sequence[str], inputs: Any, seed: int) -> dict[str, Any]:
    """Some positions of each layer called once, and its responses there, [B, q, N]."""
    random, found = np.random.default_rng(seed), {}

    def kept(path: str, layer: Any, values: Any, original: Any) -> Any:
        response, activation = linear_response(layer, values, original)
        rows = tf.reshape(response, [len(response), -1, response.shape[-1]])
        positions = _drawn(random, layer, rows.shape, values.shape[-1])
        found[path] = positions, tf.gather(rows, positions, axis=1)
        return activation(response)

    paths = recording.called_once(teacher, paths)
    with recording.record(teacher, paths, kept):
        graph.forward(teacher, inputs)
    return found


def _drawn(random: Any, layer: Any, shape: Any, channels: int) -> np.ndarray:
    """Positions enough for a sound covariance of what is read there."""
    images, available, _ = shape
    size = math.prod(getattr(layer, "kernel_size", (1, 1))) * channels
    each = int(min(_ROWS * size, _VALUES // size)) // images
    return np.sort(random.choice(available, min(available, max(1, each)), replace=False))


def _improve(layer: Any, values: tf.Tensor, positions, wanted: tf.Tensor, fitted: int) -> bool:
    """Refits one layer; False if it stays as it is."""
    reads, variable = _reads(layer, tf.cast(values, tf.float32), positions)
    groups = values.shape[-1] if rule(layer).kind == "depthwise" else getattr(layer, "groups", 1)
    count, taps = reads.shape[:2], reads.shape[2]
    reads = reads.reshape(*count, taps, groups, -1).transpose(3, 0, 1, 2, 4)
    reads = reads.reshape(groups, *count, -1)
    old = np.asarray(variable, np.float32)
    by_group = old.reshape(taps, -1, groups, wanted.shape[-1] // groups).transpose(2, 0, 1, 3)
    kernel = by_group.reshape(groups, reads.shape[-1], -1)
    bias = None if layer.bias is None else np.asarray(layer.bias, np.float32)
    lacking = np.asarray(tf.cast(wanted, tf.float32)) - (0.0 if bias is None else bias)
    lacking = lacking.reshape(*count, groups, -1).transpose(2, 0, 1, 3)
    with np.errstate(all="ignore"):
        lacking = lacking - reads @ kernel[:, None]
    parts = [
        each[:, images].reshape(groups, -1, each.shape[-1])
        for images in (slice(fitted), slice(fitted, None))
        for each in (reads, lacking)
    ]
    found = refit(*parts, shift=bias is not None)
    if found is None:
        return False
    change = found[0].reshape(by_group.shape).transpose(1, 2, 0, 3).reshape(old.shape)
    variable.assign(tf.cast(old + change, variable.dtype))
    if bias is not None:
        layer.bias.assign(tf.cast(bias + found[1].ravel(), layer.bias.dtype))
    return True


def _reads(layer: Any, values: tf.Tensor, positions: np.ndarray) -> tuple[np.ndarray, Any]:
    """What the last kernel of a layer reads at output positions, [B, q, taps, C]; that kernel."""
    rows = tf.reshape(values, [len(values), -1, values.shape[-1]])
    kind = rule(layer).kind
    if kind == "dense":
        return tf.gather(rows, positions, axis=1)[:, :, None].numpy(), layer.kernel
    if kind in COMPRESSED:
        *before, (name, _, last) = layer.index_maps(tuple(values.shape[1:3]))
        for weight, _, index_map in before:
            filter = tf.cast(tf.convert_to_tensor(getattr(layer, weight)), tf.float32)
            rows = kernels.apply_map(rows, filter, None, index_map, groups=layer.groups)
        variable, spread = getattr(layer, name), last.spread
        table = last.table[positions if spread is None else spread[positions]]
    else:
        table = conv_table(Geometry.of(layer, values.shape[1:3]), positions)
        variable = getattr(layer, "depthwise_kernel", None)
        variable = layer.kernel if variable is None else variable
    padded = tf.pad(rows, [[0, 0], [1, 0], [0, 0]])
    return tf.gather(padded, table + 1, axis=1).numpy(), variable
