"""The public operators: each checks what comes in and hands it to a backend.

All backends agree to float rounding: `native` in C++, and `reference` in plain TensorFlow.
"""

import numpy as np
import tensorflow as tf

from espace_tf.kernels import checks, native, reference
from espace_tf.kernels.index_map import IndexMap
from espace_tf.kernels.loader import backend, operations_now, plain
from espace_tf.kernels.reference import conv2d, size_of

__all__ = [
    "apply_map",
    "avg_pool",
    "backend",
    "conv2d",
    "masked_conv2d",
    "masked_depthwise_conv2d",
    "max_pool",
    "plain",
]


@tf.autograph.experimental.do_not_convert
def masked_conv2d(
    rows: tf.Tensor,
    filter: tf.Tensor,
    bias: tf.Tensor | None,
    table: np.ndarray | tf.Tensor,
    spread: np.ndarray | tf.Tensor | None,
    *,
    activation: str = "none",
) -> tf.Tensor:
    """A convolution whose geometry, mask and interpolation are integers.

    Computed position q is activation(sum_t rows[table[q, t]] @ filter[t] + bias), where row -1
    is zeros; output row r shows computed position spread[r]. Differentiable in rows, filter and
    bias, any number of times.

    Values of table and spread that are known when this is called (always so in eager mode) are
    checked in Python. Others are checked while the graph runs, except in a function compiled with
    XLA, which leaves out every assertion. An unknown rank is refused by an operation named after
    the argument.

    Args:
        rows: [B, M, C] float32, float16, bfloat16 or float64; the input's positions.
        filter: [taps, C, N], of the type of rows.
        bias: [N] of the type of rows, or None.
        table: int32 [Q, taps], values in [-1, M).
        spread: int32 [R], values in [0, Q); None shows the computed positions as they are.
        activation: "none", "relu", "relu6", "elu", "sigmoid", "silu" or "tanh".

    Returns:
        [B, R or Q, N] of the type of rows.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: a wrong shape, an index out of range, or an unknown activation.
        tf.errors.InvalidArgumentError: the same, where only the running graph can know.

    Example:
        >>> rows = tf.constant([[[1.0], [2.0], [4.0]]])
        >>> table = np.array([[0, 1], [2, -1]], np.int32)
        >>> masked_conv2d(rows, tf.ones([2, 1, 1]), None, table, [0, 0, 1]).numpy().ravel().tolist()
        [3.0, 3.0, 4.0]
    """
    checks.check_activation(activation)
    operands, asserts = checks.convolution(checks.FILTER, rows, filter, bias, table, spread)
    with tf.control_dependencies(asserts):
        return _run("masked_conv2d", *operands, activation=activation)


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

    As `masked_conv2d`, with its arguments and errors, but a channel c has filters of its own and
    sees no other channel: column c * multiplier + m of computed position q is
    activation(sum_t rows[table[q, t], c] * filter[t, c, m] + bias). A kernel [height, width, C,
    multiplier] of `tf.nn.depthwise_conv2d`, reshaped to [taps, C, multiplier], is such a filter.

    Args:
        rows, table, spread, activation: as in `masked_conv2d`.
        filter: [taps, C, multiplier], of the type of rows.
        bias: [C * multiplier] of the type of rows, or None.

    Returns:
        [B, R or Q, C * multiplier] of the type of rows.

    Example:
        >>> rows = tf.constant([[[1.0, 5.0], [2.0, 6.0]]])
        >>> table = np.array([[0, 1], [1, -1]], np.int32)
        >>> masked_depthwise_conv2d(rows, tf.ones([2, 2, 1]), None, table, None).numpy().tolist()
        [[[3.0, 11.0], [2.0, 6.0]]]
    """
    checks.check_activation(activation)
    operands, asserts = checks.convolution(checks.DEPTHWISE, rows, filter, bias, table, spread)
    with tf.control_dependencies(asserts):
        return _run("masked_depthwise_conv2d", *operands, activation=activation)


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
        rows, table, spread: as in `masked_conv2d`, whose errors these are.

    Returns:
        [B, R or Q, C] of the type of rows.

    Example:
        >>> rows = tf.constant([[[1.0], [-2.0], [4.0]]])
        >>> max_pool(rows, np.array([[0, 2], [1, -1]], np.int32)).numpy().ravel().tolist()
        [4.0, -2.0]
    """
    operands, asserts = checks.pooling(rows, table, spread)
    with tf.control_dependencies(asserts):
        return _run("max_pool", *operands)


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
    operands, asserts = checks.pooling(rows, table, spread)
    with tf.control_dependencies(asserts):
        return _run("avg_pool", *operands)


@tf.autograph.experimental.do_not_convert
def apply_map(
    inputs: tf.Tensor,
    filter: tf.Tensor,
    bias: tf.Tensor | None,
    index_map: IndexMap,
    *,
    activation: str = "none",
    groups: int = 1,
) -> tf.Tensor:
    """A convolution through an index map that is already known to be valid; what layers call.

    A map with a geometry runs as a dense convolution where TensorFlow has it.

    Args:
        inputs: a map [B, H, W, C] or rows [B, M, C], with a static number of positions.
        filter: [kernel height, kernel width, C / groups, N] or [taps, C / groups, N].
        bias: [N] or None.
        index_map: where to read and what to show.
        activation: as in `masked_conv2d`.
        groups: groups of channels.

    Returns:
        Rows [B, index_map.rows_out, N].

    Raises:
        ValueError: inputs are not of the map's size, or an unknown activation.
    """
    checks.check_activation(activation)
    inputs, filter = tf.convert_to_tensor(inputs), tf.convert_to_tensor(filter)
    if inputs.shape[1:-1].num_elements() != index_map.rows_in:
        raise ValueError(
            f"inputs must have {index_map.rows_in} positions, known before the graph runs. "
            f"Received: shape {inputs.shape}"
        )
    channels, weights = size_of(inputs, -1), filter.shape[-2:]
    options = {"activation": activation, "groups": groups}
    geometry = index_map.geometry
    if geometry is not None and 1 in (max(geometry.strides), max(geometry.dilation_rate)):
        shown = conv2d(
            tf.reshape(inputs, [-1, *geometry.input_size, channels]),
            tf.reshape(filter, [*geometry.kernel_size, *weights]),
            bias,
            strides=geometry.strides,
            dilation_rate=geometry.dilation_rate,
            padding=geometry.padding,
            **options,
        )
        return tf.reshape(shown, [-1, index_map.rows_out, weights[1]])
    table = index_map.table
    rows = tf.reshape(inputs, [-1, index_map.rows_in, channels])
    taps = tf.reshape(filter, [table.shape[1], *weights])
    return _run("masked_conv2d", rows, taps, bias, table, index_map.spread, **options)


def _run(name: str, rows: tf.Tensor, *rest, **options) -> tf.Tensor:
    """The operator of this name on the backend of the call that is being made now."""
    known = rows.dtype in native.TYPES
    operations = operations_now(on_gpu=name == "masked_conv2d") if known else None
    if operations is None:
        return getattr(reference, name)(rows, *rest, **options)
    run = native.pool if name.endswith("_pool") else native.convolve
    return run(operations, name, rows, *rest, **options)
