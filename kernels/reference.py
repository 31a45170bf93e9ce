"""The masked convolution in plain TensorFlow: the definition, the oracle, and what runs everywhere.

Only gathers, reshapes, matrix products and pointwise operations, all of them differentiable and
with TensorFlow Lite builtins. A reshape takes its sizes from static shapes wherever they are known,
so that an unknown batch adds no shape arithmetic to an exported graph. Gradients are TensorFlow's
own: gathering the gradient through a transposed table was measured to be no faster on CPUs.
"""

from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

ACTIVATIONS: dict[str, Callable[[tf.Tensor], tf.Tensor]] = {
    "none": lambda values: values,
    "relu": tf.nn.relu,
    "relu6": tf.nn.relu6,
    "elu": tf.nn.elu,
    "sigmoid": tf.nn.sigmoid,
    "silu": tf.nn.silu,
    "tanh": tf.nn.tanh,
}


def masked_conv2d(
    rows: tf.Tensor,
    filter: tf.Tensor,
    bias: tf.Tensor | None,
    table: np.ndarray | tf.Tensor,
    spread: np.ndarray | tf.Tensor | None,
    *,
    activation: str = "none",
    groups: int = 1,
) -> tf.Tensor:
    """The operator of `espace_tf.kernels.masked_conv2d`, unchecked.

    A table or spread given as a NumPy array lets this function leave out what it finds unnecessary:
    the row of zeros when nothing reads padding, a gather that would change nothing.

    Args:
        rows: [B, M, C].
        filter: [taps, C / groups, N].
        bias: [N] or None.
        table: int32 [Q, taps], values in [-1, M).
        spread: int32 [R], values in [0, Q), or None.
        activation: a key of ACTIVATIONS.
        groups: groups of channels that do not see each other, as in a grouped convolution.

    Returns:
        [B, R or Q, N].
    """
    cells = gather_cells(rows, table)
    computed = _by_group(_correlate, cells, filter, groups)
    return show(finish(computed, bias, activation), table, spread)


@tf.autograph.experimental.do_not_convert
def conv2d(
    inputs: tf.Tensor,
    filter: tf.Tensor,
    bias: tf.Tensor | None,
    *,
    strides: Sequence[int] = (1, 1),
    dilation_rate: Sequence[int] = (1, 1),
    padding: str | Sequence[Sequence[int]] = "valid",
    activation: str = "none",
    groups: int = 1,
) -> tf.Tensor:
    """A dense convolution with bias and activation, for maps of any, also unknown, size.

    Grouped convolutions run group by group: TensorFlow has no gradient of its grouped kernel on
    CPUs without oneDNN, and compiled with XLA it is many times slower on CPUs that have it.

    Args:
        inputs: [B, H, W, C].
        filter: [kernel height, kernel width, C / groups, N].
        bias: [N] or None.
        strides, dilation_rate, padding: as in `index_map.Geometry`; strides above 1 together with
            dilation above 1 are TensorFlow's error.
        activation: a key of ACTIVATIONS.
        groups: groups of channels.

    Returns:
        [B, OH, OW, N].
    """
    if not isinstance(padding, str):
        inputs = tf.pad(inputs, [(0, 0), *padding, (0, 0)])
        padding = "valid"

    def convolve(part: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
        return tf.nn.convolution(part, weights, strides, padding.upper(), dilations=dilation_rate)

    return finish(_by_group(convolve, inputs, filter, groups), bias, activation)


def gather_cells(rows: tf.Tensor, table: np.ndarray | tf.Tensor) -> tf.Tensor:
    """What every tap of every computed position reads: [B * Q, taps, C]."""
    taps, channels = size_of(table, 1), size_of(rows, 2)
    if not _is_range(table, rows.shape[1]):
        if not isinstance(table, np.ndarray) or table.min() < 0:
            rows = tf.pad(rows, [[0, 0], [1, 0], [0, 0]])  # row 0 is now zeros, and -1 becomes 0
            table = table + 1
        rows = _gather(
            rows, table.ravel() if isinstance(table, np.ndarray) else tf.reshape(table, [-1])
        )
    return tf.reshape(rows, [-1, taps, channels])


def _correlate(cells: tf.Tensor, filter: tf.Tensor) -> tf.Tensor:
    """[B * Q, taps, C] with [taps, C, N] gives [B * Q, N]."""
    length = size_of(filter, 0) * size_of(filter, 1)
    return tf.matmul(
        tf.reshape(cells, [-1, length]), tf.reshape(filter, [length, size_of(filter, 2)])
    )


def _by_group(
    operation: Callable[[tf.Tensor, tf.Tensor], tf.Tensor],
    inputs: tf.Tensor,
    filter: tf.Tensor,
    groups: int,
) -> tf.Tensor:
    if groups == 1:
        return operation(inputs, filter)
    pairs = zip(tf.split(inputs, groups, -1), tf.split(filter, groups, -1), strict=True)
    return tf.concat([operation(part, weights) for part, weights in pairs], -1)


def finish(values: tf.Tensor, bias: tf.Tensor | None, activation: str) -> tf.Tensor:
    """Bias (None: none) and activation (a key of ACTIVATIONS) of values [..., N]."""
    return ACTIVATIONS[activation](values if bias is None else tf.nn.bias_add(values, bias))


def show(
    computed: tf.Tensor, table: np.ndarray | tf.Tensor, spread: np.ndarray | tf.Tensor | None
) -> tf.Tensor:
    """The computed positions [B * Q, N] as output rows: [B, R or Q, N]."""
    rows = tf.reshape(computed, [-1, size_of(table, 0), size_of(computed, 1)])
    return rows if spread is None or _is_range(spread, size_of(table, 0)) else _gather(rows, spread)


def _gather(rows: tf.Tensor, indices: np.ndarray | tf.Tensor) -> tf.Tensor:
    return tf.gather(rows, indices, axis=1)


def _is_range(indices: np.ndarray | tf.Tensor, size: int | tf.Tensor | None) -> bool:
    """Whether gathering these indices from `size` rows is known to change nothing."""
    return (
        isinstance(indices, np.ndarray)
        and indices.size == size
        and np.array_equal(indices.ravel(), np.arange(size))
    )


def size_of(array: np.ndarray | tf.Tensor, axis: int) -> int | tf.Tensor:
    """A static size where known, else the size at run time."""
    return tf.shape(array)[axis] if array.shape[axis] is None else array.shape[axis]
