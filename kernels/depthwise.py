"""The public depthwise operator: checks what comes in and hands it to a backend."""

import numpy as np
import tensorflow as tf

from espace_tf.kernels import packed_native, packed_reference
from espace_tf.kernels.arguments import ROWS, TABLE, Argument, check_activation, check_indices_of
from espace_tf.kernels.masked_conv2d import cpu_operations_now
from espace_tf.kernels.reference import size_of

FILTER = Argument("filter", ("taps", "C", "multiplier"))
BIAS = Argument("bias", ("C * multiplier",))


@tf.autograph.experimental.do_not_convert
def masked_depthwise_conv2d(
    rows: tf.Tensor,
    filter: tf.Tensor,
    bias: tf.Tensor | None,
    table: np.ndarray | tf.Tensor,
    spread: np.ndarray | tf.Tensor | None,
    *,
    activation: str = "none",
) -> tf.Tensor:
    """A depthwise convolution whose geometry, mask and interpolation are integers.

    As `masked_conv2d`, but a channel c has filters of its own and sees no other channel: column
    c * multiplier + m of computed position q is
    activation(sum_t rows[table[q, t], c] * filter[t, c, m] + bias). A kernel [height, width, C,
    multiplier] of `tf.nn.depthwise_conv2d`, reshaped to [taps, C, multiplier], is such a filter.

    Args:
        rows: [B, M, C] float32, float16, bfloat16 or float64.
        filter: [taps, C, multiplier], of the type of rows.
        bias: [C * multiplier] of the type of rows, or None.
        table: int32 [Q, taps], values in [-1, M).
        spread: int32 [R], values in [0, Q); None shows the computed positions as they are.
        activation: "none", "relu", "relu6" or another key of ACTIVATIONS.

    Returns:
        [B, R or Q, C * multiplier] of the type of rows.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: a wrong shape, an index out of range, or an unknown activation.
        tf.errors.InvalidArgumentError: the same, where only the running graph can know.

    Example:
        >>> rows = tf.constant([[[1.0, 5.0], [2.0, 6.0]]])
        >>> table = np.array([[0, 1], [1, -1]], np.int32)
        >>> masked_depthwise_conv2d(rows, tf.ones([2, 2, 1]), None, table, None).numpy().tolist()
        [[[3.0, 11.0], [2.0, 6.0]]]
    """
    check_activation(activation)
    rows = ROWS.tensor(rows)
    filter = FILTER.tensor(filter, rows.dtype)
    bias = None if bias is None else BIAS.tensor(bias, rows.dtype)
    table, spread, checks = check_indices_of(rows, table, spread)
    checks += FILTER.must_agree(filter, 1, size_of(rows, 2), "rows")
    checks += TABLE.must_agree(table, 1, size_of(filter, 0), "filter")
    if bias is not None:
        checks += BIAS.must_agree(bias, 0, size_of(filter, 1) * size_of(filter, 2), "filter")
    operations = cpu_operations_now()
    with tf.control_dependencies(checks):
        call = (rows, filter, bias, table, spread)
        if operations is None:
            return packed_reference.masked_depthwise_conv2d(*call, activation=activation)
        return packed_native.masked_depthwise_conv2d(operations, *call, activation=activation)
