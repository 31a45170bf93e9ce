"""Samples of several sizes, as networks of open size take them."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

# Of one size so many stand side by side at most, so that the first ones are of many sizes.
_RUN = 8


class Uneven:
    """Samples in memory whose shapes differ: batches (x, y) of those that are alike.

    Args:
        parts: the batches.

    Example:
        >>> small, large = (np.zeros((2, size, size, 3), "float32") for size in (8, 16))
        >>> len(Uneven([(small, None), (large, None)]))
        4
    """

    def __init__(self, parts: Iterable[tuple[Any, Any]]):
        self.parts = list(parts)

    def __len__(self) -> int:
        return sum(map(length, self.parts))

    def shuffled(self, random: np.random.Generator) -> "Uneven":
        """The same in another order, in short runs of one size."""
        alike: dict[str, list[Any]] = {}
        for part in self.parts:
            alike.setdefault(shapes(part), []).append(part)
        runs = []
        for parts in alike.values():
            whole = concatenated(parts)
            rows = random.permutation(length(whole))
            runs += [_rows(whole, rows[i : i + _RUN]) for i in range(0, len(rows), _RUN)]
        return Uneven(runs[place] for place in random.permutation(len(runs)))

    def inputs(self, samples: int) -> "Uneven":
        """The first samples, without labels."""
        found, left = [], samples
        for x, _ in self.parts:
            found.append((_rows(x, slice(left)), None))
            left -= length(x)
            if left <= 0:
                break
        return Uneven(found)


def length(values: Any) -> int:
    """How many samples are in a structure of arrays."""
    return len(next(array for array in tf.nest.flatten(values) if array is not None))


def shapes(values: Any) -> str:
    """The shapes of the samples in a structure of arrays, to tell whether two are alike."""
    return str(tf.nest.map_structure(lambda array: str(np.shape(array)[1:]), values))


def concatenated(parts: Sequence[Any]) -> Any:
    """Structures of arrays, alike, as one."""
    return tf.nest.map_structure(
        lambda *arrays: None if arrays[0] is None else np.concatenate(arrays), *parts
    )


def joined(parts: Sequence[Any]) -> np.ndarray:
    """An output, or the labels, of several batches as of one.

    Of maps of different sizes every position becomes a sample of its own: [positions, C].

    Args:
        parts: [B, ...] of each batch.

    Example:
        >>> joined([np.zeros((2, 8, 8, 3)), np.zeros((1, 4, 4, 3))]).shape
        (144, 3)
    """
    arrays = [np.asarray(part) for part in parts]
    if len({array.shape[1:] for array in arrays}) == 1:
        return np.concatenate(arrays)
    channels = {array.shape[-1] for array in arrays if array.ndim > 1}
    last = channels.pop() if len(channels) == 1 else 1
    return np.concatenate([array.reshape(-1, last) for array in arrays])


def _rows(values: Any, rows: Any) -> Any:
    return tf.nest.map_structure(lambda array: None if array is None else array[rows], values)
