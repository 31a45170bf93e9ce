"""The public operator: checks what comes in and hands it to a backend.

All backends agree to float rounding: `native` in C++ for CPUs, and `reference` in plain TensorFlow.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

import numpy as np
import tensorflow as tf

from espace_tf.kernels import library, native, reference
from espace_tf.kernels.arguments import (
    BIAS,
    FILTER,
    ROWS,
    TABLE,
    check_activation,
    check_indices_of,
)
from espace_tf.kernels.index_map import IndexMap
from espace_tf.kernels.library import plain
from espace_tf.kernels.reference import ACTIVATIONS, conv2d, size_of

__all__ = ["ACTIVATIONS", "Backend", "apply_map", "backend", "conv2d", "masked_conv2d", "plain"]


@dataclass(frozen=True)
class Backend:
    """What runs the operator, and why it is this one.

    Args:
        name: short name.
        reason: why this backend was chosen.
        masked_conv2d: the operator, with the signature of `reference.masked_conv2d`.
        operations: the loaded native operations, or None.
    """

    name: str
    reason: str
    masked_conv2d: Callable[..., tf.Tensor]
    operations: ModuleType | None = None

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
    operator = functools.partial(native.masked_conv2d, operations)
    return Backend("native", reason, operator, operations)


def operations_now() -> ModuleType | None:
    """The native operations, if the call that is being made now is to use them."""
    operations = backend().operations
    return None if operations is None or library.plain_wanted() else operations


def cpu_operations_now() -> ModuleType | None:
    """As `operations_now`, of operations that exist on CPUs only: None where there is a GPU."""
    return None if tf.config.list_physical_devices("GPU") else operations_now()


def _operator() -> Callable[..., tf.Tensor]:
    """The operator for the call that is being made now."""
    return reference.masked_conv2d if operations_now() is None else backend().masked_conv2d


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
    check_activation(activation)
    rows = ROWS.tensor(rows)
    filter = FILTER.tensor(filter, rows.dtype)
    bias = None if bias is None else BIAS.tensor(bias, rows.dtype)
    table, spread, checks = check_indices_of(rows, table, spread)
    checks += FILTER.must_agree(filter, 1, size_of(rows, 2), "rows")
    checks += TABLE.must_agree(table, 1, size_of(filter, 0), "filter")
    if bias is not None:
        checks += BIAS.must_agree(bias, 0, size_of(filter, 2), "filter")
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
    check_activation(activation)
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
