"""A model on several devices or machines: each replica's part of a batch, and sums over all parts.

Every replica gets a part of the batch and gathers the outputs of all parts, so that losses are
computed of the whole batch, as on one device, whatever they are.
"""

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from espace_tf.network import cloning, graph
from espace_tf.network.borrowed import compiled_like
from espace_tf.network.tracing import traced

_SUM = tf.distribute.ReduceOp.SUM
_KINDS = (
    *(tf.distribute.MirroredStrategy, tf.distribute.MultiWorkerMirroredStrategy),
    tf.distribute.OneDeviceStrategy,
)
_BLOCK = 2**20  # integers that workers exchange at once
# Both libraries divide a mean loss by the number of replicas, as if it were of a part.
_SCALING = {"keras": "keras.src.losses.loss", "tf_keras": "tf_keras.src.utils.losses_utils"}


def find_strategy(model: Any, strategy: Any | None) -> tf.distribute.Strategy | None:
    """The strategy to train with: the given one, else that of the model or of an open scope.

    Args:
        model: a Keras 3 or tf_keras model.
        strategy: as `fine_tune` takes it.

    Raises:
        TypeError: strategy is none.
        ValueError: one of another kind, or another one than that of an open scope or of the model.
    """
    if strategy is not None and not isinstance(strategy, tf.distribute.Strategy):
        raise TypeError(
            "strategy must be a tf.distribute.Strategy, such as tf.distribute.MirroredStrategy(), "
            f"or None. Received: {strategy!r}"
        )
    here = tf.distribute.get_strategy() if tf.distribute.has_strategy() else None
    known = {id(each): each for each in (strategy, here, _strategy_of(model)) if each is not None}
    if len(known) > 1:
        raise ValueError(
            "strategy must be the one whose scope is open and that the model was made in. "
            f"Received: {[type(each).__name__ for each in known.values()]}; leave the scope, or "
            "leave strategy out"
        )
    found = next(iter(known.values()), None)
    if found is not None and not isinstance(found, _KINDS):
        names = ", ".join(each.__name__ for each in _KINDS)
        raise ValueError(f"strategy must be one of {names}. Received: {type(found).__name__}")
    return found


class Replicas:
    """The devices of a run, on this machine and on others, and what their processes agree on.

    Args:
        strategy: from `find_strategy`; None: one device.

    Attributes:
        count: how many replicas there are, on all machines.
        workers: how many processes.
        is_chief: whether this process is the one that writes files and prints.
    """

    def __init__(self, strategy: tf.distribute.Strategy | None = None):
        self.strategy = strategy
        self.count = 1 if strategy is None else strategy.num_replicas_in_sync
        resolver = getattr(strategy, "cluster_resolver", None)
        cluster = {} if resolver is None else resolver.cluster_spec().as_dict()
        cluster = {job: cluster[job] for job in ("chief", "worker") if job in cluster}
        self.workers = max(1, sum(len(addresses) for addresses in cluster.values()))
        first = next(iter(cluster), None)
        self._exchange: Callable | None = None
        self.is_chief = self.workers == 1 or (resolver.task_type, resolver.task_id) == (first, 0)

    @contextlib.contextmanager
    def scope(self) -> Iterator[None]:
        """While open, new variables have one value for all replicas, whoever assigns it."""
        if self.strategy is None:
            yield
            return
        with self.strategy.scope(), tf.variable_creator_scope(_alike):
            yield

    def run(self, function: Callable, *arguments: Any) -> Any:
        """Calls a function in every replica; `first` reads what it returns.

        Args:
            function: of the arguments; `part`, `whole` and the others below know their replica.
            *arguments: the same for each, or what `run` returned.
        """
        if self.strategy is None:
            return function(*arguments)
        return self.strategy.run(function, arguments)

    def first(self, values: Any) -> Any:
        """Of what `run` returned, what the first replica of this process did."""
        if self.strategy is None:
            return values
        local = self.strategy.experimental_local_results
        return tf.nest.map_structure(lambda value: local(value)[0], values)

    def shared(self, function: Callable) -> Callable:
        """A function of batches, traced, whose work the replicas share.

        Args:
            function: of nests of tensors, the first one a batch of all replicas' rows; returns what
                is the same in every replica.

        Returns:
            The same function; of fewer rows than there are replicas one device does all of it.
        """
        alone = traced(function)
        together = traced(lambda *arguments: self.first(self.run(function, *arguments)))

        def call(batch: Any, *arguments: Any) -> Any:
            several = 1 < self.count <= len(tf.nest.flatten(batch)[0])
            return (together if several else alone)(batch, *arguments)

        return call

    def any(self, flag: bool) -> bool:
        """Whether a flag is set in any process; all of them must ask."""
        return bool(flag) if self.workers == 1 else bool(self._sum(np.array([int(flag)]))[0])

    def from_chief(self, contents: bytes | None) -> bytes | None:
        """What the chief gave; all processes must ask."""
        if self.workers == 1:
            return contents
        mine = contents if self.is_chief else None
        size = int(self._sum(np.array([0 if mine is None else len(mine) + 1]), alone=True)[0])
        if size == 0:
            return None
        found = []
        padded = np.zeros(-(-size // (4 * _BLOCK)) * 4 * _BLOCK, np.uint8)
        if mine is not None:
            padded[: size - 1] = np.frombuffer(mine, np.uint8)
        for block in padded.view(np.int32).reshape(-1, _BLOCK):
            found.append(self._sum(block, alone=True).view(np.uint8))
        return np.concatenate(found)[: size - 1].tobytes()

    def _sum(self, values: np.ndarray, alone: bool = False) -> np.ndarray:
        """Over all replicas; alone: only the first one of all gives what is not 0."""

        if self._exchange is None:
            self._exchange = traced(lambda *given: self.first(self.run(_summed, *given)))
        return self._exchange(values.astype(np.int32), np.array(alone)).numpy()

    @contextlib.contextmanager
    def hold(self, model: Any) -> Iterator[Any]:
        """While open, a model to train on all replicas: this one, or a copy of it.

        A model that was made in the strategy's scope is trained itself; any other one gets the
        weights of the copy in the end. Batch normalisations see the statistics of whole batches.

        Raises:
            ValueError: a model that cannot be copied.
        """
        if self.strategy is None:
            yield model
        elif _strategy_of(model) is self.strategy:
            with _synchronized(model):
                yield model
        else:
            if not graph.is_container(model):
                raise ValueError(
                    "model must be Functional or Sequential, or made inside strategy.scope(). "
                    f"Received: {type(model).__name__}, with a call of its own, made outside"
                )
            copy = compiled_like(cloning.private_copy(model), model)
            try:
                with _synchronized(copy):
                    yield copy
            finally:
                model.set_weights(copy.get_weights())

    @contextlib.contextmanager
    def losses_of_whole_batches(self, library: Any) -> Iterator[None]:
        """While open, losses of the library are those of one device's, inside replicas too."""
        module = sys.modules[_SCALING[library.__name__]]
        scale = module.scale_loss_for_distribution
        if self.count > 1:
            module.scale_loss_for_distribution = lambda value: value
        try:
            yield
        finally:
            module.scale_loss_for_distribution = scale


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


def _summed(values: tf.Tensor, alone: tf.Tensor) -> tf.Tensor:
    """Of integers, over all replicas; alone: all but the first one have zeros."""
    context = tf.distribute.get_replica_context()
    counts = tf.logical_or(context.replica_id_in_sync_group == 0, tf.logical_not(alone))
    return context.all_reduce(_SUM, values * tf.cast(counts, values.dtype))


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


def _alike(next_creator: Callable, **options: Any) -> Any:
    """Creates a variable that replicas assign equal values to."""
    options["synchronization"] = tf.VariableSynchronization.ON_WRITE
    options["aggregation"] = tf.VariableAggregation.ONLY_FIRST_REPLICA
    return next_creator(**options)


def _strategy_of(model: Any) -> tf.distribute.Strategy | None:
    """The strategy in whose scope a model was made."""
    for weight in model.weights[:1] if model.built else ():
        variable = weight if isinstance(weight, tf.Variable) else weight.value
        if isinstance(variable, tf.distribute.DistributedValues):
            return variable.distribute_strategy
    return None


@contextlib.contextmanager
def _synchronized(model: Any) -> Iterator[None]:
    """While open, batch normalisations train with the statistics of whole batches."""
    names = ("synchronized", "fused")  # a fused one, of tf_keras, knows its own part only
    norms = [each for each in model._flatten_layers() if hasattr(each, "synchronized")]
    before = [
        {name: getattr(each, name) for name in names if hasattr(each, name)} for each in norms
    ]
    for each in norms:
        each.synchronized = True
        if hasattr(each, "fused"):
            each.fused = False
    try:
        yield
    finally:
        for each, values in zip(norms, before, strict=True):
            for name, value in values.items():
                setattr(each, name, value)
