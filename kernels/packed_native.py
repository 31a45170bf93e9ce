"""Depthwise convolution and pooling through the native operations, as `native` does it.

Each operation's gradient is a custom gradient, which survives a SavedModel. float64 runs on the
reference.
"""

from collections.abc import Callable
from types import ModuleType

import numpy as np
import tensorflow as tf

from espace_tf.kernels import packed_reference
from espace_tf.kernels.native import FUSED, TYPES
from espace_tf.kernels.reference import ACTIVATIONS


def masked_depthwise_conv2d(
    operations: ModuleType,
    rows: tf.Tensor,
    filter: tf.Tensor,
    bias: tf.Tensor | None,
    table: np.ndarray | tf.Tensor,
    spread: np.ndarray | tf.Tensor | None,
    *,
    activation: str = "none",
) -> tf.Tensor:
    """`packed_reference.masked_depthwise_conv2d` on the loaded operations.

    Raises:
        tf.errors.InvalidArgumentError: sizes or indices that do not fit together.
    """
    if rows.dtype not in TYPES:
        return packed_reference.masked_depthwise_conv2d(
            rows, filter, bias, table, spread, activation=activation
        )
    options = {
        "activation": activation if activation in FUSED else "none",
        "use_spread": spread is not None,
    }
    table, spread = _indices(table, spread)

    @tf.custom_gradient
    def convolve(rows, filter, *bias):
        added = bias[0] if bias else tf.zeros([0], rows.dtype)
        out = operations.espace_masked_depthwise_conv2d(
            rows, filter, table, spread, added, use_bias=bool(bias), **options
        )

        def gradient(upstream):
            found = operations.espace_masked_depthwise_conv2d_grad(
                rows, filter, table, spread, out, upstream, **options
            )
            return tuple(found)[: 2 + len(bias)]

        return out, gradient

    inputs = [rows, filter] if bias is None else [rows, filter, bias]
    shown = convolve(*(tf.convert_to_tensor(value) for value in inputs))
    return shown if activation in FUSED else ACTIVATIONS[activation](shown)


def max_pool(
    operations: ModuleType,
    rows: tf.Tensor,
    table: np.ndarray | tf.Tensor,
    spread: np.ndarray | tf.Tensor | None = None,
) -> tf.Tensor:
    """`packed_reference.max_pool` on the loaded operations."""
    return _pool(operations, "max", packed_reference.max_pool, rows, table, spread)


def avg_pool(
    operations: ModuleType,
    rows: tf.Tensor,
    table: np.ndarray | tf.Tensor,
    spread: np.ndarray | tf.Tensor | None = None,
) -> tf.Tensor:
    """`packed_reference.avg_pool` on the loaded operations."""
    return _pool(operations, "avg", packed_reference.avg_pool, rows, table, spread)


def _pool(
    operations: ModuleType,
    kind: str,
    plain: Callable[..., tf.Tensor],
    rows: tf.Tensor,
    table: np.ndarray | tf.Tensor,
    spread: np.ndarray | tf.Tensor | None,
) -> tf.Tensor:
    if rows.dtype not in TYPES:
        return plain(rows, table, spread)
    options = {"kind": kind, "use_spread": spread is not None}
    table, spread = _indices(table, spread)

    @tf.custom_gradient
    def pool(rows):
        def gradient(upstream):
            return operations.espace_pool_grad(rows, table, spread, upstream, **options)

        return operations.espace_pool(rows, table, spread, **options), gradient

    return pool(tf.convert_to_tensor(rows))


def _indices(
    table: np.ndarray | tf.Tensor, spread: np.ndarray | tf.Tensor | None
) -> tuple[tf.Tensor, tf.Tensor]:
    """As tensors; the operations take an empty spread where there is none."""
    spread = [] if spread is None else spread
    return tf.convert_to_tensor(table, tf.int32), tf.convert_to_tensor(spread, tf.int32)
