"""What a replica does with its part of a batch, and sums over all parts.

Every replica gets a part of the batch and gathers the outputs of all parts, so that losses are
computed of the whole batch, as on one device, whatever they are.
"""

import contextlib
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf

_SUM = tf.distribute.ReduceOp.SUM
_open = threading.local()  # replicas of one process are traced in threads of their own


def part(batch: Any) -> Any:
    """The rows of a batch, a nest of tensors [N, ...], that are this replica's.

    None of them gets no rows, which TensorFlow's kernels do not bear: of a batch of fewer rows than
    replicas each gets all, and counts for its share of them.
    """
    context = _several()
    if context is None:
        return batch

    def own(values):
        with tf.device("CPU:0"):  # so that a device gets no more than its rows
            first, last, _ = _bounds(context, tf.shape(values)[0])
            return values[first:last]

    return tf.nest.map_structure(own, batch)


def whole(values: Any, rows: Any) -> Any:
    """The outputs of all replicas, a nest of tensors [rows, ...], of this one's.

    Its gradient is this replica's own, of a loss that all of them compute alike: gradients of the
    weights are to be summed over the replicas.
    """
    context = _several()
    if context is None:
        return values
    first, last, times = _bounds(context, rows)

    @tf.custom_gradient
    def joined(own):
        rest = [[0, 0]] * (own.shape.rank - 1)
        found = context.all_reduce(_SUM, tf.pad(own, [[first, rows - last], *rest]))
        found = tf.cast(found / tf.cast(times, found.dtype), found.dtype)
        return found, lambda upstream: upstream[first:last] / tf.cast(times, upstream.dtype)

    return tf.nest.map_structure(joined, values)


def total(value: tf.Tensor) -> tf.Tensor:
    """The sum over all replicas of a value; its gradient as that of `whole`."""
    context = _several()
    if context is None:
        return value

    @tf.custom_gradient
    def summed(own):
        return context.all_reduce(_SUM, own), tf.identity

    return summed(value)


def mean(value: tf.Tensor, rows: Any) -> tf.Tensor:
    """The mean over the samples of a batch of `rows` of a mean over each part."""
    context = _several()
    if context is None:
        return value
    first, last, times = _bounds(context, rows)
    share = tf.cast(last - first, value.dtype) / tf.cast(rows * times, value.dtype)
    return total(value * share)


def batch_moments(
    values: tf.Tensor, axes: Sequence[int], keepdims: bool = False
) -> tuple[tf.Tensor, tf.Tensor]:
    """`tf.nn.moments` of a part's values and all others, with gradients as if of one tensor.

    The variance is of centred squares, in a second pass over the values: a mean of squares less the
    square of the mean, as Keras's synchronized layers have it, is off by the rounding of the larger
    one (Chan, Golub and LeVeque, 1983).

    Args:
        values: of this replica's part of a batch.
        axes: the axes to average over.
        keepdims: whether they are kept as 1.
    """
    context = _several()
    if context is None:
        return tf.nn.moments(values, axes, keepdims=keepdims)

    count = tf.size(values) // tf.size(tf.reduce_sum(values, axes))
    count = tf.cast(context.all_reduce(_SUM, count), values.dtype)

    def average(own):  # all_reduce sums gradients, too: each replica has those of its own rows
        return context.all_reduce(_SUM, tf.reduce_sum(own, axes, keepdims=True)) / count

    mean = average(values)
    found = mean, average(tf.math.squared_difference(values, tf.stop_gradient(mean)))
    return found if keepdims else tuple(tf.squeeze(each, axes) for each in found)


def moments(
    values: tf.Tensor, axes: Sequence[int], rows: Any
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Mean and variance of a part's values and all others, and the number of values behind each.

    Args:
        values: of this replica's part of a batch.
        axes: the axes to average over, kept as 1.
        rows: samples in the batch.
    """
    count = tf.size(values) // tf.reduce_prod(
        [1, *(size for axis, size in enumerate(values.shape) if axis not in axes)]
    )
    context = _several()
    if context is None:
        return *tf.nn.moments(values, axes, keepdims=True), count
    count = total(count)
    size = tf.cast(count, values.dtype)
    average = total(tf.reduce_sum(values, axes, keepdims=True)) / size
    squares = tf.reduce_sum(tf.math.squared_difference(values, average), axes, keepdims=True)
    return average, total(squares) / size, count // _bounds(context, rows)[2]


def agreed(values: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    """Scalars that all replicas compute alike, with the same bits on machines that differ."""
    context = _several()
    if context is None:
        return values
    found = context.all_reduce(tf.distribute.ReduceOp.MEAN, tf.stack(list(values.values())))
    return dict(zip(values, tf.unstack(found), strict=True))


def summed_gradients(gradients: Sequence[tf.Tensor | None]) -> list[tf.Tensor | None]:
    """The sums over all replicas; None where there is none."""
    context = _several()
    if context is None:
        return list(gradients)
    known = [tf.convert_to_tensor(each) for each in gradients if each is not None]
    sums = iter(context.all_reduce(_SUM, known))
    return [None if each is None else next(sums) for each in gradients]


def apply_gradients(optimizer: Any, pairs: Sequence[tuple[tf.Tensor, Any]]) -> None:
    """`optimizer.apply_gradients` of gradients that are summed already."""
    if _several() is None:
        optimizer.apply_gradients(pairs)
    elif isinstance(optimizer, keras.optimizers.Optimizer):
        object.__setattr__(optimizer, "_all_reduce_sum_gradients", list)  # pairs stay as they are
        optimizer.apply_gradients(pairs)
    else:
        optimizer.apply_gradients(pairs, skip_gradients_aggregation=True)


@contextlib.contextmanager
def batch_of(rows: Any) -> Iterator[None]:
    """While open, in one replica, layers that draw know the size of the whole batch."""
    before = getattr(_open, "rows", None)
    _open.rows = rows
    try:
        yield
    finally:
        _open.rows = before


@tf.autograph.experimental.do_not_convert
def drawn_as_whole(call: Any, *arguments: Any, **options: Any) -> Any:
    """What a layer's call, which draws for each row, makes of this replica's rows in a batch.

    Args:
        call: of nests of tensors [rows, ...], and of what else it takes; draws alike in all
            replicas.
        *arguments: the first tensor is of this replica's part, and so are those of as many rows.
        **options: of the call, too.
    """
    context, rows = _several(), getattr(_open, "rows", None)
    if context is None or rows is None:
        return call(*arguments, **options)
    first, last, _ = _bounds(context, rows)
    tensors = [each for each in tf.nest.flatten((arguments, options)) if _has_rows(each)]

    def padded(value):
        if not _has_rows(value) or value.shape[0] != tensors[0].shape[0]:
            return value
        return tf.pad(value, [[first, rows - last], *[[0, 0]] * (value.shape.rank - 1)])

    arguments, options = tf.nest.map_structure(padded, (arguments, options))
    with batch_of(None):  # layers inside it have the whole batch
        found = call(*arguments, **options)
    return tf.nest.map_structure(lambda value: value[first:last], found)


def _has_rows(value: Any) -> bool:
    return isinstance(value, tf.Tensor) and bool(value.shape.rank)


def _several() -> Any | None:
    """The context of a replica that is one of several; None elsewhere."""
    context = tf.distribute.get_replica_context()
    return None if context is None or context.num_replicas_in_sync == 1 else context


def _bounds(context: Any, rows: Any) -> tuple[Any, Any, Any]:
    """The first row of a replica's part, the first one after it, how many replicas have each."""
    number, count = context.replica_id_in_sync_group, context.num_replicas_in_sync
    few = rows < count
    first = tf.where(few, 0, rows * number // count)
    last = tf.where(few, rows, rows * (number + 1) // count)
    return first, last, tf.where(few, count, 1)
