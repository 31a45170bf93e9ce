"""Batches for training: arrays in an order that a seed and the epoch fix, datasets as they are."""

import functools
import math
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from espace_tf.data import batches as user_data
from espace_tf.data.arrays import as_arrays, count, is_on_disk, runs, split
from espace_tf.data.forms import understood

Batch = tuple[Any, Any, Any]
# A dataset of unknown length is counted for so long: it may be endless.
_COUNTING_SECONDS = 60.0
# Of arrays on disk as much is held at a time, but some batches at least, to shuffle.
_HELD_BYTES = 2**26
_LEAST_HELD = 4


class Feed:
    """Passes over the user's data.

    Args:
        data: tf.data.Dataset of batches, x, (x, y) or (x, y, sample_weight), or the same with
            arrays of all samples.
        batch_size: samples in a batch of arrays; a dataset keeps its own batches. A model whose
            batch size is fixed gets that of both, without the rest that fills none.
        seed: shuffles arrays anew in every epoch and leaves out the rest that fills no batch; None
            keeps their order and every sample. Of arrays on disk rows that follow one another, a
            batch of them, are read at once, and some such runs from anywhere are mixed.
        inputs: from `espace_tf.data.batches.named_inputs`, to check shapes against; None: not
            checked.
        name: the argument that the data was given by, for errors.
        rows: of arrays, the ascending numbers of the samples to use; None: all.

    Raises:
        TypeError: data of another kind.
        ValueError: empty data, arrays of unequal length, or inputs that do not fit.

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
        rows: np.ndarray | None = None,
    ):
        data = understood(data, inputs, name)
        next(user_data.batches(data, batch_size, batch_size, inputs=inputs, name=name))  # a check
        fixed = user_data.fixed_batch(inputs)
        self.seed, self.name, self.batch_size = seed, name, fixed or batch_size
        self._drops_rest = fixed is not None or seed is not None
        self.is_dataset = isinstance(data, tf.data.Dataset)
        if self.is_dataset:
            self.data = data if fixed is None else data.rebatch(fixed, drop_remainder=True)
        else:
            self.data = split(as_arrays(data, name), name)
            self._numbers = np.arange(count(self.data)) if rows is None else rows
            user_data.check_weights(self.data[2], count(self.data), name)

    @property
    def labels(self) -> Any:
        """The labels of all samples, where they are in memory; otherwise None."""
        whole = None if self.is_dataset else self.data[1]
        return None if any(map(is_on_disk, tf.nest.flatten(whole))) else whole

    @functools.cached_property
    def steps(self) -> int:
        """The number of batches in a pass.

        Raises:
            ValueError: the data is endless, or it takes long to find out whether it is.
        """
        if not self.is_dataset:
            samples = len(self._numbers)
            if self._drops_rest and samples >= self.batch_size:
                return samples // self.batch_size
            return -(-samples // self.batch_size)
        cardinality = int(self.data.cardinality())
        if cardinality == tf.data.INFINITE_CARDINALITY:
            raise ValueError(
                f"{self.name} must end: a pass over it is an epoch. Received: an endless dataset; "
                "call .take(batches) on it"
            )
        return self._counted() if cardinality == tf.data.UNKNOWN_CARDINALITY else cardinality

    def _counted(self) -> int:
        steps, end = 0, time.monotonic() + _COUNTING_SECONDS
        for _ in self.data:
            steps += 1
            if time.monotonic() > end:
                raise ValueError(
                    f"{self.name} must say how many batches it has, as counting them takes long: "
                    "call .take(batches).apply(tf.data.experimental.assert_cardinality(batches)) "
                    f"on it. Received: a dataset of unknown length, of {steps} batches or more"
                )
        return steps

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches (x, y, sample_weight) of a pass, from batch `start` on; None where absent."""
        if self.is_dataset:
            for element in self.data.skip(start):
                yield split(element, self.name)
            return
        order, held = self._order(epoch), self._held()
        for first in range(0, self.steps * self.batch_size, held):
            rows = order[first : min(first + held, self.steps * self.batch_size)]
            if first + len(rows) > start * self.batch_size:
                done = max(0, start * self.batch_size - first)
                yield from self._batches(rows, done)

    def _batches(self, rows: np.ndarray, start: int) -> Iterator[Batch]:
        """Batches of these rows, those on disk of them read at once, from one of them on."""
        inside = np.sort(rows)
        read = tf.nest.map_structure(
            lambda array: runs(array, inside) if is_on_disk(array) else array, self.data
        )
        for place in range(start, len(rows), self.batch_size):
            batch = rows[place : place + self.batch_size]
            found = np.searchsorted(inside, batch)

            def part(array: Any, given: Any, batch=batch, found=found) -> Any:
                return None if array is None else _rows(array, batch if array is given else found)

            yield tf.nest.map_structure(part, read, self.data)

    def _order(self, epoch: int) -> np.ndarray:
        """The rows in the order of an epoch."""
        rows, held = self._numbers, self._held()
        samples = len(rows)
        if self.seed is None:
            return rows
        random = np.random.default_rng([self.seed, epoch])
        if held >= samples:
            return random.permutation(rows)
        starts = random.permutation(np.arange(0, samples, self.batch_size))
        runs = [rows[first : first + self.batch_size] for first in starts]
        order = np.concatenate(runs)
        for first in range(0, samples, held):
            order[first : first + held] = random.permutation(order[first : first + held])
        return order

    def _held(self) -> int:
        """How many rows are read at once."""
        arrays = [array for array in tf.nest.flatten(self.data) if is_on_disk(array)]
        if not arrays:
            return count(self.data) + self.batch_size
        row = sum(array.dtype.itemsize * math.prod(array.shape[1:]) for array in arrays)
        return max(_LEAST_HELD, _HELD_BYTES // (row * self.batch_size)) * self.batch_size


def _rows(array: Any, rows: np.ndarray) -> Any:
    return tf.gather(array, rows) if tf.is_tensor(array) else np.asarray(array[rows])
