"""The operators in plain TensorFlow: the definition, the oracle, and what runs everywhere.

Only gathers, reshapes, matrix products and pointwise operations, all of them differentiable and
with TensorFlow Lite builtins. A reshape takes its sizes from static shapes wherever they are known,
so that an unknown batch adds no shape arithmetic to an exported graph. Gradients are TensorFlow's
own: gathering the gradient through a transposed table was measured to be no faster on CPUs.
"""

import contextvars
import functools
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

# Set while a function is traced for a TensorFlow Lite file: LiteRT gathers by 16-bit indices too.
SHORT_INDICES = contextvars.ContextVar("espace_tf_short_indices", default=False)
# Set while a layer runs whose weights are quantized by channel, which matrix products cannot be.
BY_CHANNEL = contextvars.ContextVar("espace_tf_by_channel", default=False)

FILLED = 16  # channels that fill a vector of AVX-512, see `sampled`
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
    """`espace_tf.kernels.masked_conv2d`, unchecked, with its arguments.

    A table or spread given as a NumPy array lets this function leave out what it finds unnecessary:
    the row of zeros when nothing reads padding, a gather that would change nothing.

    Args:
        rows, bias, table, spread, activation: as there.
        filter: [taps, C / groups, N].
        groups: groups of channels that do not see each other, as in a grouped convolution.

    Returns:
        [B, R or Q, N].
    """
    cells = _gather_cells(rows, table)
    correlate = functools.partial(_correlate, positions=size_of(table, 0))
    computed = _by_group(correlate, cells, filter, groups)
    return _show(_finish(computed, bias, activation), table, spread)


def masked_depthwise_conv2d(
    rows: tf.Tensor,
    filter: tf.Tensor,
    bias: tf.Tensor | None,
    table: np.ndarray | tf.Tensor,
    spread: np.ndarray | tf.Tensor | None,
    *,
    activation: str = "none",
) -> tf.Tensor:
    """`espace_tf.kernels.masked_depthwise_conv2d`, unchecked, with its arguments."""
    cells = _gather_cells(rows, table)
    channels, multiplier = size_of(filter, 1), size_of(filter, 2)
    if isinstance(multiplier, int) and multiplier == 1:
        computed = tf.reduce_sum(cells * filter[:, :, 0], axis=1)
    else:
        computed = tf.reduce_sum(cells[..., None] * filter, axis=1)
        computed = tf.reshape(computed, [-1, channels * multiplier])
    return _show(_finish(computed, bias, activation), table, spread)


def max_pool(
    rows: tf.Tensor, table: np.ndarray | tf.Tensor, spread: np.ndarray | tf.Tensor | None = None
) -> tf.Tensor:
    """`espace_tf.kernels.max_pool`, unchecked, with its arguments."""
    table, some = _without_padding(table)
    largest = _largest(_gather_cells(rows, table))
    if some is not None:
        shown = _show(largest, table, None)
        shown = tf.where(some, shown, tf.zeros([], rows.dtype))
        largest = tf.reshape(shown, [-1, size_of(rows, 2)])
    return _show(largest, table, spread)


def avg_pool(
    rows: tf.Tensor, table: np.ndarray | tf.Tensor, spread: np.ndarray | tf.Tensor | None = None
) -> tf.Tensor:
    """As `max_pool`, with the mean of what is not padding."""
    cells = _gather_cells(rows, table)
    if isinstance(table, np.ndarray) and table.min() >= 0:
        return _show(tf.reduce_mean(cells, axis=1), table, spread)
    valid = table >= 0
    if isinstance(table, np.ndarray):
        count = np.maximum(valid.sum(1, keepdims=True), 1)
    else:
        count = tf.maximum(tf.math.count_nonzero(valid, axis=1, keepdims=True), 1)
    sums = _show(tf.reduce_sum(cells, axis=1), table, None)
    means = sums / tf.cast(count, rows.dtype)
    return _show(tf.reshape(means, [-1, size_of(rows, 2)]), table, spread)


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
    if tuple(filter.shape[:2]) == (1, 1) and filter.shape[2] < FILLED:
        inputs, strides, padding = sampled(inputs, strides), 1, "valid"
    one_column = _is_one_column(inputs.shape[2], filter, strides, dilation_rate, padding)

    def convolve(part: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
        if one_column and weights.shape[2] == 1:
            # With one channel TensorFlow 2.21 returns what it finds in memory, where its oneDNN
            # runs on AVX-512: second halves of rank 1 are such convolutions. With two it is right.
            part = tf.pad(part, [(0, 0), (0, 0), (0, 0), (0, 1)])
            weights = tf.pad(weights, [(0, 0), (0, 0), (0, 1), (0, 0)])
        return tf.nn.convolution(part, weights, strides, padding.upper(), dilations=dilation_rate)

    return _finish(_by_group(convolve, inputs, filter, groups), bias, activation)


def sampled(maps: tf.Tensor, strides: int | Sequence[int]) -> tf.Tensor:
    """What a kernel of one tap reads of [B, H, W, C] in steps, to be read in steps of one.

    With steps above 1, one tap and fewer than FILLED channels, oneDNN in TensorFlow 2.21 writes
    beyond its memory in the gradient of the kernel and ends the process, where it runs on AVX-512.
    """
    vertical, horizontal = np.broadcast_to(strides, 2)
    return maps if vertical == horizontal == 1 else maps[:, ::vertical, ::horizontal]


def _is_one_column(
    width: int | None,
    filter: tf.Tensor,
    strides: int | Sequence[int],
    dilation_rate: int | Sequence[int],
    padding: str,
) -> bool:
    """Whether several taps in steps of more than one over a known width give one column."""
    stride, dilation = (int(np.broadcast_to(each, 2)[1]) for each in (strides, dilation_rate))
    if stride == 1 or filter.shape[1] == 1 or width is None:
        return False
    read = 1 if padding.lower() == "same" else dilation * (filter.shape[1] - 1) + 1
    return width < read + stride


def by_channel(operator: Callable) -> Callable:
    """An operator whose matrix products are, in the reference, convolutions over the taps."""

    @tf.autograph.experimental.do_not_convert
    def call(*arguments, **options):
        token = BY_CHANNEL.set(True)
        try:
            return operator(*arguments, **options)
        finally:
            BY_CHANNEL.reset(token)

    return call


def _gather_cells(rows: tf.Tensor, table: np.ndarray | tf.Tensor) -> tf.Tensor:
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


def _correlate(cells: tf.Tensor, filter: tf.Tensor, positions: int | tf.Tensor) -> tf.Tensor:
    """[B * Q, taps, C] with [taps, C, N] gives [B * Q, N]; positions is Q."""
    taps, channels, filters = (size_of(filter, axis) for axis in range(3))
    if BY_CHANNEL.get():
        cells = tf.reshape(cells, [-1, positions, taps, channels])
        found = tf.nn.conv2d(cells, tf.reshape(filter, [1, taps, channels, filters]), 1, "VALID")
        return tf.reshape(found, [-1, filters])
    length = taps * channels
    return tf.matmul(tf.reshape(cells, [-1, length]), tf.reshape(filter, [length, filters]))


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


def _finish(values: tf.Tensor, bias: tf.Tensor | None, activation: str) -> tf.Tensor:
    """Bias (None: none) and activation (a key of ACTIVATIONS) of values [..., N]."""
    return ACTIVATIONS[activation](values if bias is None else tf.nn.bias_add(values, bias))


def _show(
    computed: tf.Tensor, table: np.ndarray | tf.Tensor, spread: np.ndarray | tf.Tensor | None
) -> tf.Tensor:
    """The computed positions [B * Q, N] as output rows: [B, R or Q, N]."""
    rows = tf.reshape(computed, [-1, size_of(table, 0), size_of(computed, 1)])
    return rows if spread is None or _is_range(spread, size_of(table, 0)) else _gather(rows, spread)


def _gather(rows: tf.Tensor, indices: np.ndarray | tf.Tensor) -> tf.Tensor:
    if SHORT_INDICES.get() and isinstance(indices, np.ndarray) and rows.shape[1] is not None:
        indices = indices.astype(index_type(rows.shape[1] - 1))
    return tf.gather(rows, indices, axis=1)


def index_type(largest: int) -> type:
    """The type of indices up to this one in a file: of 16 bits where these suffice."""
    return np.int16 if largest < 2**15 else np.int32


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
