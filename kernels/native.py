"""The masked convolution through the native operation: same arguments and results as the reference.

What the operation does not know falls back or is composed: float64 runs on the reference, other
activations follow the operation, groups run one by one.
"""

from types import ModuleType

import numpy as np
import tensorflow as tf

from espace_tf.kernels import reference

# Fused into the operation; every other activation is applied to its result.
FUSED = ("none", "relu", "relu6")
TYPES = (tf.float32, tf.float16, tf.bfloat16)


def masked_conv2d(
    operations: ModuleType,
    rows: tf.Tensor,
    filter: tf.Tensor,
    bias: tf.Tensor | None,
    table: np.ndarray | tf.Tensor,
    spread: np.ndarray | tf.Tensor | None,
    *,
    activation: str = "none",
    groups: int = 1,
) -> tf.Tensor:
    """`reference.masked_conv2d` on the loaded operations.

    Args:
        operations: the module that `library.load` returned.
        rows: [B, M, C].
        filter: [taps, C / groups, N].
        bias: [N] or None.
        table: int32 [Q, taps], values in [-1, M).
        spread: int32 [R], values in [0, Q), or None.
        activation: a key of reference.ACTIVATIONS.
        groups: groups of channels that do not see each other.

    Returns:
        [B, R or Q, N].

    Raises:
        tf.errors.InvalidArgumentError: sizes or indices that do not fit together.
    """
    if rows.dtype not in TYPES:
        return reference.masked_conv2d(
            rows, filter, bias, table, spread, activation=activation, groups=groups
        )
    if groups > 1:
        parts = zip(
            tf.split(rows, groups, -1),
            tf.split(filter, groups, -1),
            [None] * groups if bias is None else tf.split(bias, groups),
            strict=True,
        )
        shown = [
            masked_conv2d(operations, *part, table, spread, activation=activation) for part in parts
        ]
        return tf.concat(shown, -1)
    if activation not in FUSED:
        shown = _call(operations, rows, filter, bias, table, spread, "none")
        return reference.ACTIVATIONS[activation](shown)
    return _call(operations, rows, filter, bias, table, spread, activation)


def _call(
    operations: ModuleType,
    rows: tf.Tensor,
    filter: tf.Tensor,
    bias: tf.Tensor | None,
    table: np.ndarray | tf.Tensor,
    spread: np.ndarray | tf.Tensor | None,
    activation: str,
) -> tf.Tensor:
    """One operation. Its gradient is a custom gradient, which survives a SavedModel."""
    table = tf.convert_to_tensor(table, tf.int32)
    options = {"activation": activation, "use_spread": spread is not None}
    spread = tf.convert_to_tensor([] if spread is None else spread, tf.int32)

    @tf.custom_gradient
    def convolve(rows, filter, *bias):
        out = operations.espace_masked_conv2d(
            rows,
            filter,
            table,
            spread,
            bias[0] if bias else tf.zeros([0], rows.dtype),
            use_bias=bool(bias),
            **options,
        )

        def gradient(upstream):
            found = operations.espace_masked_conv2d_grad(
                rows, filter, table, spread, out, upstream, **options
            )
            return tuple(found)[: 2 + len(bias)]

        return out, gradient

    inputs = [rows, filter] if bias is None else [rows, filter, bias]
    return convolve(*(tf.convert_to_tensor(value) for value in inputs))
