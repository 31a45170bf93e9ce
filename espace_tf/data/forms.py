"""Forms of data beside arrays and tf.data.Dataset, made into one of these."""

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from espace_tf.data.arrays import as_arrays, is_buffer, split
from espace_tf.data.uneven import Uneven

_BATCH = 32  # where a function gives single samples


def understood(data: Any, inputs: Mapping[str, Any] | None = None, name: str = "data") -> Any:
    """The same data as arrays or a tf.data.Dataset, if it can be read as one.

    A keras.utils.PyDataset, a function without arguments that gives an iterator over batches, and
    whatever else can be iterated over again and again become datasets. Of a dictionary with the
    model's inputs and one array more, as TensorFlow Datasets give them, that one is the labels.

    Args:
        data: anything; what is not known is handed back.
        inputs: from `named_inputs`.
        name: the argument that it was given by, for errors.

    Example:
        >>> found = understood(lambda: iter([(images[:8], labels[:8])]))
        >>> found.element_spec[1].shape
        TensorShape([None])
    """
    begin = _beginner(data)
    if begin is not None:
        data = _dataset(begin, inputs, name)
    spec = data.element_spec if isinstance(data, tf.data.Dataset) else data
    if not inputs or not isinstance(spec, Mapping) or len(set(spec) - set(inputs)) != 1:
        return data
    (label,) = set(spec) - set(inputs)
    if not set(inputs) < set(spec):
        return data

    def divided(element: Mapping[str, Any]) -> tuple[Any, Any]:
        return {key: element[key] for key in inputs}, element[label]

    return data.map(divided) if isinstance(data, tf.data.Dataset) else divided(data)


def _beginner(data: Any) -> Callable[[], Iterator[Any]] | None:
    """A function that begins a pass over data that are no arrays; None: there is none."""
    if isinstance(data, tf.data.Dataset | Uneven | list | tuple | Mapping | str | bytes | range):
        return None
    if any(hasattr(data, each) for each in ("__array__", "dtype", "shape", "iloc")):
        return None
    if isinstance(data, keras.utils.PyDataset) or _is_legacy_sequence(data):
        return _Passes(data)
    if inspect.isroutine(data) or inspect.isfunction(getattr(data, "func", None)):
        return data
    if isinstance(data, Iterable) and iter(data) is not data and not is_buffer(data):
        return lambda: iter(data)
    return None


class _Passes:
    """Passes over a PyDataset, which is told of the end of each."""

    def __init__(self, data: Any):
        self._data = data
        self.length = tf.data.experimental.assert_cardinality(len(data))

    def __call__(self) -> Iterator[Any]:
        for index in range(len(self._data)):
            yield self._data[index]
        self._data.on_epoch_end()


def _is_legacy_sequence(data: Any) -> bool:
    return any(
        base.__name__ in ("Sequence", "PyDataset") for base in type(data).__mro__
    ) and hasattr(data, "on_epoch_end")


def _dataset(begin: Callable[[], Iterator[Any]], inputs: Any, name: str) -> tf.data.Dataset:
    """A dataset of what an iterator gives: batches, or samples that become batches."""
    first = next(iter(_called(begin, name)), None)
    if first is None:
        raise ValueError(f"{name} is empty: it gave no batch")
    first = _element(first, name)
    signature = tf.nest.map_structure(
        lambda array: tf.TensorSpec([None] * array.ndim, array.dtype), first
    )
    found = tf.data.Dataset.from_generator(
        lambda: (_element(each, name) for each in begin()), output_signature=signature
    )
    if isinstance(begin, _Passes):
        found = found.apply(begin.length)
    ranks = [len(tensor.shape) for tensor in (inputs or {}).values()]
    given = [array.ndim for array in tf.nest.flatten(split(first, name)[0])]
    single = len(ranks) == len(given) and all(
        found == rank - 1 for found, rank in zip(given, ranks, strict=True)
    )
    return found.batch(_BATCH) if single else found


def _called(begin: Callable[[], Any], name: str) -> Any:
    found = begin()
    if not isinstance(found, Iterable):
        raise TypeError(
            f"{name} must give batches where it is a function: an iterator over them. Received: "
            f"{type(found).__name__}"
        )
    return found


def _element(batch: Any, name: str) -> Any:
    """A batch x, (x, y) or (x, y, sample weights) of NumPy arrays, without what is None."""
    parts = [part for part in split(batch, name) if part is not None]
    parts = tuple(tf.nest.map_structure(np.asarray, as_arrays(part, name)) for part in parts)
    return parts[0] if len(parts) == 1 else parts
