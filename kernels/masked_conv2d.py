"""The public operator: checks what comes in and hands it to a backend.

All backends agree to float rounding: `native` in C++ for CPUs, and `reference` in plain TensorFlow.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from espace_tf.kernels import library, native, reference
from espace_tf.kernels.index_map import PADDED, IndexMap, check_indices, check_range
from espace_tf.kernels.library import plain
from espace_tf.kernels.reference import ACTIVATIONS, conv2d, size_of

__all__ = ["ACTIVATIONS", "Backend", "apply_map", "backend", "conv2d", "masked_conv2d", "plain"]

FLOATS = (tf.float32, tf.float16, tf.bfloat16, tf.float64)
# What the axes of an argument are; a letter is one size in all arguments.
LAYOUTS = {
    "rows": ("B", "M", "C"),
    "filter": ("taps", "C", "N"),
    "bias": ("N",),
    "table": ("Q", "taps"),
    "spread": ("R",),
}


@dataclass(frozen=True)
class Backend:
    """What runs the operator, and why it is this one.

    Args:
        name: short name.
        reason: why this backend was chosen.
        masked_conv2d: the operator, with the signature of `reference.masked_conv2d`.
    """

    name: str
    reason: str
    masked_conv2d: Callable[..., tf.Tensor]

    def __str__(self) -> str:
        return f"{self.name} ({self.reason})"


@functools.cache
def backend() -> Backend:
    """The backend that runs in this process; prints as its name and the reason.

    The first call loads the binary; `library.load` says when it warns.

    Example:
        >>> print(backend())
        native (_masked_conv2d.tf2.21.so)
    """
    operations, reason = library.load()
    if operations is None:
        return Backend("reference", reason, reference.masked_conv2d)
    return Backend("native", reason, functools.partial(native.masked_conv2d, operations))


def _operator() -> Callable[..., tf.Tensor]:
    """The operator for the call that is being made now."""
    chosen = backend()
    if chosen.name == "native" and library.plain_wanted():
        return reference.masked_conv2d
    return chosen.masked_conv2d


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
    is zeros; output row r shows computed position spread[r]. Differentiable in rows, filter, bias.

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
        activation: "none", "relu", "relu6" or another key of ACTIVATIONS.

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
    _check_activation(activation)
    rows = _as_tensor("rows", rows, None)
    if rows.dtype not in FLOATS:
        allowed = ", ".join(dtype.name for dtype in FLOATS)
        raise TypeError(f"rows must be one of {allowed}. Received: dtype {rows.dtype.name}")
    filter = _as_tensor("filter", filter, rows.dtype)
    bias = None if bias is None else _as_tensor("bias", bias, rows.dtype)
    table = _as_indices("table", table)
    spread = None if spread is None else _as_indices("spread", spread)
    checks = _agreement("filter", filter, 1, "rows", rows, 2)
    checks += _agreement("table", table, 1, "filter", filter, 0)
    checks += _range("table", table, PADDED, size_of(rows, 1))
    if bias is not None:
        checks += _agreement("bias", bias, 0, "filter", filter, 2)
    if spread is not None:
        checks += _range("spread", spread, 0, size_of(table, 0))
    with tf.control_dependencies(checks):
        return _operator()(rows, filter, bias, table, spread, activation=activation)


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
        activation: a key of ACTIVATIONS.
        groups: groups of channels.

    Returns:
        Rows [B, index_map.rows_out, N].

    Raises:
        ValueError: inputs are not of the map's size, or an unknown activation.
    """
    _check_activation(activation)
    inputs, filter = tf.convert_to_tensor(inputs), tf.convert_to_tensor(filter)
    if inputs.shape[1:-1].num_elements() != index_map.rows_in:
        raise ValueError(
            f"inputs must have {index_map.rows_in} positions, known before the graph runs. "
            f"Received: shape {inputs.shape}"
        )
    channels, weights = size_of(inputs, -1), filter.shape[-2:]
    geometry = index_map.geometry
    if geometry is not None and 1 in (max(geometry.strides), max(geometry.dilation_rate)):
        shown = conv2d(
            tf.reshape(inputs, [-1, *geometry.input_size, channels]),
            tf.reshape(filter, [*geometry.kernel_size, *weights]),
            bias,
            strides=geometry.strides,
            dilation_rate=geometry.dilation_rate,
            padding=geometry.padding,
            activation=activation,
            groups=groups,
        )
        return tf.reshape(shown, [-1, index_map.rows_out, weights[1]])
    return _operator()(
        tf.reshape(inputs, [-1, index_map.rows_in, channels]),
        tf.reshape(filter, [index_map.table.shape[1], *weights]),
        bias,
        index_map.table,
        index_map.spread,
        activation=activation,
        groups=groups,
    )


def _check_activation(activation: str) -> None:
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {list(ACTIVATIONS)}. Received: {activation!r}")


def _layout(name: str) -> str:
    return f"{name} must be [{', '.join(LAYOUTS[name])}]"


def _as_tensor(name: str, value: object, dtype: tf.DType | None) -> tf.Tensor:
    """A tensor of this type and of the argument's rank."""
    try:
        hint = None if hasattr(value, "dtype") else dtype  # a hint would cast an array
        tensor = tf.convert_to_tensor(value, dtype_hint=hint)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} must be a tensor or an array. Received: {value!r:.80}") from error
    if dtype is not None and tensor.dtype != dtype:
        raise TypeError(f"{name} must be {dtype.name}. Received: dtype {tensor.dtype.name}")
    rank = len(LAYOUTS[name])
    if tensor.shape.rank is None:
        # Graph optimisation would fold tf.debugging.assert_rank away: a shape is known below it.
        return tf.ensure_shape(tensor, [None] * rank, name=f"{name}_must_have_rank_{rank}")
    if tensor.shape.rank != rank:
        raise ValueError(f"{_layout(name)}. Received: shape {tensor.shape}")
    return tensor


def _as_indices(name: str, value: object) -> np.ndarray | tf.Tensor:
    """The values if they are known now, else the tensor."""
    if not isinstance(value, np.ndarray):
        tensor = _as_tensor(name, value, tf.int32)
        value = tf.get_static_value(tensor)
        if value is None:
            return tensor
    check_indices(value, name, len(LAYOUTS[name]))
    return value


def _agreement(
    name: str, value: tf.Tensor, axis: int, other: str, expected: tf.Tensor, other_axis: int
) -> list[tf.Operation]:
    """Raises, or returns the check to run, unless two arguments share one size."""
    size, wanted = size_of(value, axis), size_of(expected, other_axis)
    if isinstance(size, int) and isinstance(wanted, int):
        if size != wanted:
            raise ValueError(
                f"{_layout(name)} with {LAYOUTS[name][axis]} = {wanted} as in {other}. "
                f"Received: shape {tuple(value.shape)}"
            )
        return []
    message = f"{_layout(name)} with {LAYOUTS[name][axis]} as in {other}"
    return [tf.debugging.assert_equal(size, wanted, message=message)]


def _range(
    name: str, indices: np.ndarray | tf.Tensor, low: int, size: int | tf.Tensor
) -> list[tf.Operation]:
    """Raises, or returns the checks to run, unless all indices lie in [low, size)."""
    if isinstance(indices, np.ndarray) and isinstance(size, int):
        check_range(indices, name, low, size)
        return []
    return [
        tf.debugging.assert_positive(tf.size(indices), message=f"{name} must not be empty"),
        tf.debugging.assert_greater_equal(indices, low, message=f"{name} must be at least {low}"),
        tf.debugging.assert_less(
            indices, size, message=f"{name} must lie below the number of rows"
        ),
    ]
