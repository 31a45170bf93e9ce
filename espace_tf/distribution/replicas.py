"""A model on several devices or machines, and what their processes agree on.

What a replica does with its part of a batch is in `shares`.
"""

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from espace_tf.distribution.whole_batches import as_of_whole_batches
from espace_tf.network import graph
from espace_tf.network.copies import cloning
from espace_tf.network.copies.borrowed import compiled_like
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
            function: of the arguments; those of `shares` know their replica.
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

    def shared(self, function: Callable, batches: int = 0) -> Callable:
        """A function of batches, traced, whose work the replicas share.

        Args:
            function: of nests of tensors, the first one a batch of all replicas' rows; returns what
                is the same in every replica.
            batches: as for `traced`.

        Returns:
            The same function; of fewer rows than there are replicas one device does all of it.
        """
        alone = traced(function, batches)
        together = traced(lambda *given: self.first(self.run(function, *given)), batches)

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
        weights of the copy in the end. Batch normalisations and random layers do to a part of a
        batch what they would do to the whole.

        Raises:
            ValueError: a model that cannot be copied.
        """
        if self.strategy is None:
            yield model
        elif _strategy_of(model) is self.strategy:
            with as_of_whole_batches(model):
                yield model
        else:
            if not graph.is_container(model):
                raise ValueError(
                    "model must be Functional or Sequential, or made inside strategy.scope(). "
                    f"Received: {type(model).__name__}, with a call of its own, made outside"
                )
            copy = compiled_like(cloning.private_copy(model), model)
            try:
                with as_of_whole_batches(copy):
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


def _summed(values: tf.Tensor, alone: tf.Tensor) -> tf.Tensor:
    """Of integers, over all replicas; alone: all but the first one have zeros."""
    context = tf.distribute.get_replica_context()
    counts = tf.logical_or(context.replica_id_in_sync_group == 0, tf.logical_not(alone))
    return context.all_reduce(_SUM, values * tf.cast(counts, values.dtype))


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
