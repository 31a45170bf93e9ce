"""Batches for training: arrays in an order that a seed and the epoch fix, datasets as they are."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from espace_tf.data import batches as user_data

Batch = tuple[Any, Any, Any]


class Feed:
    """Passes over the user's data.

    Args:
        data: tf.data.Dataset of batches, x, (x, y) or (x, y, sample_weight), or the same with
            arrays of all samples.
        batch_size: samples in a batch of arrays; a dataset keeps its own batches.
        seed: shuffles arrays anew in every epoch and leaves out the rest that fills no batch; None
            keeps their order and every sample.
        inputs: from `espace_tf.data.named_inputs`, to check shapes against; None: not checked.
        name: the argument that the data was given by, for errors.

    Attributes:
        steps: the number of batches in a pass.

    Raises:
        TypeError: data of another kind.
        ValueError: empty or endless data, arrays of unequal length, or inputs that do not fit.

    Example:
        >>> feed = Feed((np.zeros((5, 8)), np.arange(5)), batch_size=2, seed=0)
        >>> feed.steps, [len(y) for x, y, weight in feed.epoch(0)]
        (2, [2, 2])
    """

    def __init__(
        self,
        data: Any,
        batch_size: int,
        *,
        seed: int | None = None,
        inputs: Any = None,
        name: str = "data",
    ):
        next(user_data.batches(data, batch_size, batch_size, inputs=inputs, name=name))  # a check
        self.data, self.batch_size, self.seed, self.name = data, batch_size, seed, name
        if not self.is_dataset:
            user_data.check_weights(self.whole[2], user_data.count(data), name)
        self.steps = self._count()

    @property
    def is_dataset(self) -> bool:
        """Whether the data come as batches, not as whole arrays."""
        return isinstance(self.data, tf.data.Dataset)

    @property
    def whole(self) -> Batch:
        """The arrays (x, y, sample_weight) of all samples; not of a dataset."""
        return _triple(self.data)

    def _count(self) -> int:
        if not self.is_dataset:
            samples = user_data.count(self.data)
            if self.seed is None or samples < self.batch_size:
                return -(-samples // self.batch_size)
            return samples // self.batch_size
        cardinality = int(self.data.cardinality())
        if cardinality == tf.data.INFINITE_CARDINALITY:
            raise ValueError(
                f"{self.name} must end: a pass over it is an epoch. Received: an endless dataset; "
                "call .take(batches) on it"
            )
        if cardinality == tf.data.UNKNOWN_CARDINALITY:
            return sum(1 for _ in self.data)
        return cardinality

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches (x, y, sample_weight) of a pass, from batch `start` on; None where absent."""
        if self.is_dataset:
            for element in self.data.skip(start):
                yield _triple(element)
            return
        whole = self.whole
        order = np.arange(user_data.count(self.data))
        if self.seed is not None:
            order = np.random.default_rng([self.seed, epoch]).permutation(order)
        for step in range(start, self.steps):
            rows = order[step * self.batch_size : (step + 1) * self.batch_size]
            yield tf.nest.map_structure(
                lambda array, rows=rows: None if array is None else _rows(array, rows), whole
            )


def _triple(element: Any) -> Batch:
    parts = element if isinstance(element, tuple) else (element,)
    return (*parts, *[None] * (3 - len(parts)))


def _rows(array: Any, rows: np.ndarray) -> Any:
    return tf.gather(array, rows) if tf.is_tensor(array) else np.asarray(array[rows])
