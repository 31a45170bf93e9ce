"""Depthwise convolution and pooling over index tables in plain TensorFlow.

As in `reference`: gathers, reductions and pointwise operations with TensorFlow Lite builtins, no
shape arithmetic on an unknown batch.
"""

import numpy as np
import tensorflow as tf

from espace_tf.kernels.reference import finish, gather_cells, show, size_of


def masked_depthwise_conv2d(
    rows: tf.Tensor,
    filter: tf.Tensor,
    bias: tf.Tensor | None,
    table: np.ndarray | tf.Tensor,
    spread: np.ndarray | tf.Tensor | None,
    *,
    activation: str = "none",
) -> tf.Tensor:
    """The operator of `espace_tf.kernels.depthwise`, unchecked.

    Args:
        rows: [B, M, C].
        filter: [taps, C, multiplier].
        bias: [C * multiplier] or None.
        table: int32 [Q, taps], values in [-1, M).
        spread: int32 [R], values in [0, Q), or None.
        activation: a key of reference.ACTIVATIONS.

    Returns:
        [B, R or Q, C * multiplier].
    """
    cells = gather_cells(rows, table)
    channels, multiplier = size_of(filter, 1), size_of(filter, 2)
    if isinstance(multiplier, int) and multiplier == 1:
        computed = tf.reduce_sum(cells * filter[:, :, 0], axis=1)
    else:
        computed = tf.reduce_sum(cells[..., None] * filter, axis=1)
        computed = tf.reshape(computed, [-1, channels * multiplier])
    return show(finish(computed, bias, activation), table, spread)


def max_pool(
    rows: tf.Tensor, table: np.ndarray | tf.Tensor, spread: np.ndarray | tf.Tensor | None = None
) -> tf.Tensor:
    """The operator of `espace_tf.kernels.pooling`, unchecked.

    Args:
        rows: [B, M, C].
        table: int32 [Q, taps], values in [-1, M).
        spread: int32 [R], values in [0, Q), or None.

    Returns:
        [B, R or Q, C].
    """
    table, some = _without_padding(table)
    largest = _largest(gather_cells(rows, table))
    if some is not None:
        shown = show(largest, table, None)
        shown = tf.where(some, shown, tf.zeros([], rows.dtype))
        largest = tf.reshape(shown, [-1, size_of(rows, 2)])
    return show(largest, table, spread)


def avg_pool(
    rows: tf.Tensor, table: np.ndarray | tf.Tensor, spread: np.ndarray | tf.Tensor | None = None
) -> tf.Tensor:
    """As `max_pool`, with the mean of what is not padding."""
    cells = gather_cells(rows, table)
    if isinstance(table, np.ndarray) and table.min() >= 0:
        return show(tf.reduce_mean(cells, axis=1), table, spread)
    valid = table >= 0
    if isinstance(table, np.ndarray):
        count = np.maximum(valid.sum(1, keepdims=True), 1)
    else:
        count = tf.maximum(tf.math.count_nonzero(valid, axis=1, keepdims=True), 1)
    sums = show(tf.reduce_sum(cells, axis=1), table, None)
    means = sums / tf.cast(count, rows.dtype)
    return show(tf.reshape(means, [-1, size_of(rows, 2)]), table, spread)


def _without_padding(
    table: np.ndarray | tf.Tensor,
) -> tuple[np.ndarray | tf.Tensor, np.ndarray | tf.Tensor | None]:
    """A table of equal windows, and which windows are not padding alone: bool [Q, 1].

    Padding reads the window's first row instead: what is read twice has the same maximum, and the
    first tap that reads it stays the first. Where no window is padding alone, that is None.
    """
    if isinstance(table, np.ndarray):
        valid = table >= 0
        if valid.all():
            return table, None
        first = np.take_along_axis(table, valid.argmax(1)[:, None], 1)
        some = valid.any(1, keepdims=True)
        return np.where(valid, table, np.maximum(first, 0)), None if some.all() else some
    valid = table >= 0
    order = tf.argmax(tf.cast(valid, tf.int32), axis=1)
    first = tf.gather(table, order[:, None], axis=1, batch_dims=1)
    return tf.where(valid, table, tf.maximum(first, 0)), tf.reduce_any(valid, 1, keepdims=True)


@tf.custom_gradient
def _largest(cells: tf.Tensor) -> tf.Tensor:
    """[n, taps, C] gives [n, C]. Of several largest values the first takes the gradient."""

    def gradient(upstream: tf.Tensor) -> tf.Tensor:
        chosen = tf.one_hot(
            tf.argmax(cells, axis=1), size_of(cells, 1), axis=1, dtype=upstream.dtype
        )
        return chosen * upstream[:, None]

    return tf.reduce_max(cells, axis=1), gradient
