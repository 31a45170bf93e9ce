"""User data, in any of its usual forms, as batches of NumPy arrays."""

import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

Batch = tuple[Any, Any]


def batches(
    data: Any, limit: int | None, batch: int, *, inputs: Sequence[Any] | None = None
) -> Iterator[Batch]:
    """Batches of exactly `batch` samples (the last may be smaller) from the first `limit` samples.

    Args:
        data: a tf.data.Dataset of batches, x, (x, y) or (x, y, sample weights); or the same with
            arrays or tensors of all samples. Several inputs or outputs come as a list or
            dictionary of arrays; a tuple always means (x, y). Sample weights are not used.
        limit: how many samples to read at most; None reads all.
        batch: samples per yielded batch.
        inputs: the model's inputs (`model.inputs`), to check shapes against; None: not checked.

    Yields:
        (x, y): structures of NumPy arrays as they came, y None if there are no labels.

    Raises:
        TypeError: data of another kind, or of something else than real numbers.
        ValueError: empty data, arrays of unequal length, a shape that the model does not take, or
            inputs that are NaN, infinite or too large for float32.

    Example:
        >>> images, labels = np.zeros((5, 8, 8, 1), "float32"), np.arange(5)
        >>> [y.tolist() for x, y in batches((images, labels), limit=4, batch=3)]
        [[0, 1, 2], [3]]
    """
    for name, value in (("limit", limit), ("batch", batch)):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1. Received: {value}")
    empty = True
    for x, y in _rebatch(_elements(data), limit, batch):
        _check_numbers(y, "labels", "encode classes as the integers 0, 1, ...")
        _check_inputs(x, inputs)
        empty = False
        yield x, y
    if empty:
        raise ValueError("data is empty: it must hold at least one sample")


def count(data: Any) -> int | None:
    """How many samples there are; None if a dataset does not say."""
    if not isinstance(data, tf.data.Dataset):
        x, y = _split(data)
        return _length(x, y)
    sizes = [spec.shape[0] for spec in tf.nest.flatten(data.element_spec) if spec.shape.rank]
    cardinality = int(data.cardinality())
    if cardinality < 0 or not sizes or sizes[0] is None:
        return None
    return cardinality * sizes[0]


def describe(data: Any) -> str:
    """A short text that differs between data of different shape or (for arrays) content.

    It keys stored results. Of arrays at most 64 samples are looked at, of a dataset, which may
    shuffle, only what it declares.
    """
    if data is None:
        return "no data"
    if isinstance(data, tf.data.Dataset):
        return f"{data.element_spec} x {int(data.cardinality())}"
    import hashlib

    digest = hashlib.sha256()
    for array in tf.nest.flatten(data):
        array = np.atleast_1d(np.asarray(array))
        step = max(1, len(array) // 64)
        digest.update(f"{array.shape} {array.dtype}".encode())
        digest.update(np.ascontiguousarray(array[::step]).tobytes())
    return digest.hexdigest()


def _split(element: Any) -> Batch:
    """x and y of one element or of the whole data, by Keras' convention."""
    if not isinstance(element, tuple):
        return element, None
    if not 1 <= len(element) <= 3:
        raise ValueError(
            "data must be x, (x, y) or (x, y, sample weights); several inputs go into a list or "
            f"dictionary. Received: a tuple of {len(element)}"
        )
    return element[0], element[1] if len(element) > 1 else None


def _elements(data: Any) -> Iterator[Batch]:
    """The elements of the data as structures of arrays: one element if it is arrays."""
    if isinstance(data, tf.data.Dataset):
        _check_batched(data)
        for element in data.as_numpy_iterator():
            yield _split(element)
        return
    flat = tf.nest.flatten(data)
    if not flat or not all(hasattr(array, "shape") and hasattr(array, "dtype") for array in flat):
        kinds = sorted({type(array).__name__ for array in flat}) or ["nothing"]
        raise TypeError(
            "data must be a tf.data.Dataset of batches, or arrays: x or (x, y). Received: "
            f"{type(data).__name__} of {', '.join(kinds)}"
        )
    yield _split(data)


def _check_batched(data: tf.data.Dataset) -> None:
    for spec in tf.nest.flatten(data.element_spec):
        if getattr(spec, "shape", None) is None or spec.shape.rank == 0:
            raise ValueError(
                "data must be a dataset of batches: call .batch(...) on it. Received: elements "
                f"{data.element_spec}"
            )


def _length(x: Any, y: Any) -> int:
    lengths = {np.shape(array)[0] if np.ndim(array) else 0 for array in tf.nest.flatten((x, y))
               if array is not None}  # fmt: skip
    if len(lengths) != 1:
        raise ValueError(
            f"all inputs and labels must hold equally many samples. Received: {sorted(lengths)}"
        )
    return lengths.pop()


def _rebatch(elements: Iterator[Batch], limit: int | None, batch: int) -> Iterator[Batch]:
    """Cuts and joins elements of any size into batches of `batch` samples."""
    waiting, held, left = [], 0, limit
    for element in elements:
        size, start = _length(*element), 0
        while start < size and (left is None or left > 0):
            take = min(batch - held, size - start, size if left is None else left)
            waiting.append(_slice(element, start, start + take))
            start, held = start + take, held + take
            left = None if left is None else left - take
            if held == batch:
                yield _join(waiting)
                waiting, held = [], 0
        if left == 0:
            break
    if waiting:
        yield _join(waiting)


def _slice(element: Batch, start: int, stop: int) -> Batch:
    return tf.nest.map_structure(
        lambda array: None if array is None else np.asarray(array[start:stop]), element
    )


def _join(parts: list[Batch]) -> Batch:
    if len(parts) == 1:
        return parts[0]
    return tf.nest.map_structure(
        lambda *arrays: None if arrays[0] is None else np.concatenate(arrays), *parts
    )


def _check_inputs(x: Any, inputs: Sequence[Any] | None) -> None:
    arrays = tf.nest.flatten(x)
    if any(tf.as_dtype(tensor.dtype) == tf.string for tensor in inputs or ()):
        return  # a model that begins with a lookup: no number to check
    _check_numbers(x, "inputs", "convert them to float32")
    for array in arrays:
        with np.errstate(over="ignore"):  # what is too large becomes infinite: the models' float32
            finite = np.isfinite(np.asarray(array, np.float32)).all()
        if not finite:
            raise ValueError(
                "data holds NaN or infinite inputs, or such that are too large for float32: remove "
                "those samples, nothing can be learned from them"
            )
    if inputs is None:
        return
    if len(arrays) != len(inputs):
        raise ValueError(f"the model takes {len(inputs)} inputs. Received: {len(arrays)} arrays")
    named = {_name(tensor): tensor for tensor in inputs}
    if isinstance(x, dict) and set(x) == set(named):
        pairs = [(x[name], tensor) for name, tensor in named.items()]
    else:
        pairs = list(zip(arrays, inputs, strict=True))
    for array, tensor in pairs:
        expected = tuple(tensor.shape)
        matches = array.ndim == len(expected) and all(
            want is None or want == got
            for want, got in zip(expected[1:], array.shape[1:], strict=True)
        )
        if not matches:
            raise ValueError(
                f"input {_name(tensor)!r} takes shape {expected} (batch first). Received: "
                f"{array.shape}"
            )


def _check_numbers(values: Any, what: str, remedy: str) -> None:
    """Raises TypeError unless all arrays hold real numbers or truth values."""
    for array in tf.nest.flatten(values):
        kind = getattr(np.asarray(array).dtype, "name", "")
        # ml_dtypes' kinds, such as bfloat16, are no subtypes of NumPy's own.
        if array is not None and not re.match(r"(u?int|b?float|bool)\d*", kind):
            raise TypeError(f"data's {what} must be real numbers: {remedy}. Received: dtype {kind}")


def _name(tensor: Any) -> str:
    return str(tensor.name).split(":")[0]
