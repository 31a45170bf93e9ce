"""The public pooling operators: check what comes in and hand it to a backend."""

import numpy as np
import tensorflow as tf

from espace_tf.kernels import packed_native, packed_reference
from espace_tf.kernels.arguments import ROWS, check_indices_of
from espace_tf.kernels.masked_conv2d import cpu_operations_now


@tf.autograph.experimental.do_not_convert
def max_pool(
    rows: tf.Tensor,
    table: np.ndarray | tf.Tensor,
    spread: np.ndarray | tf.Tensor | None = None,
) -> tf.Tensor:
    """The largest value, channel by channel, of what each row of a table reads.

    Padding (-1) is ignored; a window of padding alone gives 0. Of several largest values the first
    tap's takes the gradient. With a full table (`index_map.conv_table` of the window's geometry)
    this is `tf.nn.max_pool2d`.

    Args:
        rows: [B, M, C] float32, float16, bfloat16 or float64.
        table: int32 [Q, taps], values in [-1, M).
        spread: int32 [R], values in [0, Q); None shows the computed positions as they are.

    Returns:
        [B, R or Q, C] of the type of rows.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: a wrong shape or an index out of range.
        tf.errors.InvalidArgumentError: the same, where only the running graph can know.

    Example:
        >>> rows = tf.constant([[[1.0], [-2.0], [4.0]]])
        >>> max_pool(rows, np.array([[0, 2], [1, -1]], np.int32)).numpy().ravel().tolist()
        [4.0, -2.0]
    """
    rows = ROWS.tensor(rows)
    table, spread, checks = check_indices_of(rows, table, spread)
    operations = cpu_operations_now()
    with tf.control_dependencies(checks):
        if operations is None:
            return packed_reference.max_pool(rows, table, spread)
        return packed_native.max_pool(operations, rows, table, spread)


@tf.autograph.experimental.do_not_convert
def avg_pool(
    rows: tf.Tensor,
    table: np.ndarray | tf.Tensor,
    spread: np.ndarray | tf.Tensor | None = None,
) -> tf.Tensor:
    """The mean, channel by channel, of what each row of a table reads.

    Padding (-1) is neither summed nor counted, as in `tf.nn.avg_pool2d`; a window of padding alone
    gives 0. Arguments, result and errors are those of `max_pool`.

    Example:
        >>> rows = tf.constant([[[1.0], [-2.0], [4.0]]])
        >>> avg_pool(rows, np.array([[0, 2], [1, -1]], np.int32)).numpy().ravel().tolist()
        [2.5, -2.0]
    """
    rows = ROWS.tensor(rows)
    table, spread, checks = check_indices_of(rows, table, spread)
    operations = cpu_operations_now()
    with tf.control_dependencies(checks):
        if operations is None:
            return packed_reference.avg_pool(rows, table, spread)
        return packed_native.avg_pool(operations, rows, table, spread)
