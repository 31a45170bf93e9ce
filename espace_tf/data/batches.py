"""User data, in any of its usual forms, as batches of NumPy arrays."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from espace_tf.network import graph

Batch = tuple[Any, Any]
_PLAIN = (int, float, complex, str, bytes)


def batches(
    data: Any,
    limit: int | None,
    batch: int,
    *,
    inputs: Mapping[str, Any] | None = None,
    name: str = "data",
) -> Iterator[Batch]:
    """Batches of exactly `batch` samples (the last may be smaller) from the first `limit` samples.

    Args:
        data: a tf.data.Dataset of batches, x, (x, y) or (x, y, sample weights); or the same with
            arrays or tensors of all samples. Several inputs or outputs come as a list or
            dictionary of arrays; a tuple always means (x, y). Sample weights are not used.
        limit: how many samples to read at most; None reads all.
        batch: samples per yielded batch.
        inputs: from `named_inputs`, to check shapes against; None: not checked.
        name: the argument that the data was given by, for errors.

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
    for what, value in (("limit", limit), ("batch", batch)):
        if value is not None and value < 1:
            raise ValueError(f"{what} must be at least 1. Received: {value}")
    empty = True
    for x, y in _rebatch(_elements(data, name), limit, batch, name):
        _check_inputs(x, inputs, name)
        remedy = "encode classes as the integers 0, 1, ..., as np.unique(y, return_inverse=True)[1]"
        _check_numbers(y, f"{name}'s labels", remedy)
        empty = False
        yield x, y
    if empty:
        raise ValueError(f"{name} is empty: it must hold at least one sample")


def named_inputs(model: Any) -> dict[str, Any] | None:
    """A model's inputs by the keys that a dictionary of data must have, in the model's order.

    None if the model does not say what it takes.
    """
    if not getattr(model, "inputs", None):
        return None
    structure = graph.structure(model, "input")
    if isinstance(structure, Mapping) and len(structure) == len(model.inputs):
        places = {id(tensor): place for place, tensor in enumerate(model.inputs)}
        keys = sorted(structure, key=lambda key: places[id(structure[key])])
        return {key: structure[key] for key in keys}
    return {str(tensor.name).split(":")[0]: tensor for tensor in model.inputs}


def count(data: Any) -> int | None:
    """How many samples there are; None if a dataset does not say."""
    if not isinstance(data, tf.data.Dataset):
        x, y = _split(data, "data")
        return _length(x, y, "data")
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


def _split(element: Any, name: str) -> Batch:
    """x and y of one element or of the whole data, by Keras' convention."""
    if not isinstance(element, tuple):
        return element, None
    if not 1 <= len(element) <= 3:
        raise ValueError(
            f"{name} must be x, (x, y) or (x, y, sample weights); several inputs go into a list or "
            f"dictionary. Received: a tuple of {len(element)}"
        )
    return element[0], element[1] if len(element) > 1 else None


def _elements(data: Any, name: str) -> Iterator[Batch]:
    """The elements of the data as structures of arrays: one element if it is arrays."""
    if isinstance(data, tf.data.Dataset):
        _check_batched(data, name)
        for element in data.as_numpy_iterator():
            yield _split(element, name)
        return
    flat = tf.nest.flatten(data)
    if any(isinstance(array, tf.RaggedTensor | tf.SparseTensor) for array in flat):
        raise TypeError(
            f"{name} must be dense: give {name}.to_tensor(). Received: a ragged tensor or a sparse "
            "one, which tf.sparse.to_dense makes dense"
        )
    other = [array for array in flat if not (hasattr(array, "shape") and hasattr(array, "dtype"))]
    if other or not flat:
        kinds = sorted({type(array).__name__ for array in flat}) or ["nothing"]
        raise TypeError(
            f"{name} must be a tf.data.Dataset of batches, or arrays: x or (x, y). Received: "
            f"{type(data).__name__} of {', '.join(kinds)}{_remedy(data, other)}"
        )
    yield _split(data, name)


def _remedy(data: Any, other: list[Any]) -> str:
    """What to do about values that are no arrays."""
    if isinstance(data, tuple) and len(data) > 1 and data[1] is None:
        return "; where there are no labels leave y out: give x alone"
    if isinstance(data, tuple) and any(part is None for part in data[2:]):
        return "; where there are no sample weights leave them out: give (x, y)"
    lists = isinstance(data, list | tuple | dict) and other
    if lists and all(isinstance(one, _PLAIN) for one in other):
        return "; make an array of each list, by np.asarray"
    return ""


def _check_batched(data: tf.data.Dataset, name: str) -> None:
    for spec in tf.nest.flatten(data.element_spec):
        if not isinstance(spec, tf.TensorSpec):
            raise TypeError(
                f"{name} must be a dataset of dense tensors: map to_tensor() or tf.sparse.to_dense "
                f"over it. Received: elements {data.element_spec}"
            )
        if getattr(spec, "shape", None) is None or spec.shape.rank == 0:
            raise ValueError(
                f"{name} must be a dataset of batches: call .batch(...) on it. Received: elements "
                f"{data.element_spec}"
            )


def _length(x: Any, y: Any, name: str) -> int:
    lengths = {np.shape(array)[0] if np.ndim(array) else 0 for array in tf.nest.flatten((x, y))
               if array is not None}  # fmt: skip
    if len(lengths) != 1:
        raise ValueError(
            f"{name}'s inputs and labels must hold equally many samples. "
            f"Received: {sorted(lengths)}"
        )
    return lengths.pop()


def _rebatch(
    elements: Iterator[Batch], limit: int | None, batch: int, name: str
) -> Iterator[Batch]:
    """Cuts and joins elements of any size into batches of `batch` samples."""
    waiting, held, left = [], 0, limit
    for element in elements:
        size, start = _length(*element, name), 0
        while start < size and (left is None or left > 0):
            take = min(batch - held, size - start, size if left is None else left)
            waiting.append(_slice(element, start, start + take))
            start, held = start + take, held + take
            left = None if left is None else left - take
            if held == batch:
                yield _join(waiting, name)
                waiting, held = [], 0
        if left == 0:
            break
    if waiting:
        yield _join(waiting, name)


def _slice(element: Batch, start: int, stop: int) -> Batch:
    return tf.nest.map_structure(
        lambda array: None if array is None else np.asarray(array[start:stop]), element
    )


def _join(parts: list[Batch], name: str) -> Batch:
    if len(parts) == 1:
        return parts[0]
    try:
        return tf.nest.map_structure(
            lambda *arrays: None if arrays[0] is None else np.concatenate(arrays), *parts
        )
    except ValueError as error:
        shapes = [[np.shape(array) for array in tf.nest.flatten(part)] for part in parts]
        raise ValueError(
            f"{name}'s batches must be alike in structure and shape, but for the number of "
            f"samples. Received: {shapes}"
        ) from error


def _check_inputs(x: Any, inputs: Mapping[str, Any] | None, name: str) -> None:
    if any(tf.as_dtype(tensor.dtype) == tf.string for tensor in (inputs or {}).values()):
        return  # a model that begins with a lookup: no number to check
    named = {} if inputs is None else _by_name(x, inputs, name)
    _check_numbers(x, f"{name}'s arrays", "convert them to float32")
    for array in tf.nest.flatten(x):
        with np.errstate(over="ignore"):  # what is too large becomes infinite: the models' float32
            finite = np.isfinite(np.asarray(array, np.float32)).all()
        if not finite:
            raise ValueError(
                f"{name} holds NaN or infinite inputs, or such that are too large for float32: "
                "remove those samples, nothing can be learned from them"
            )
    for key, array in named.items():
        expected = tuple(inputs[key].shape)
        matches = array.ndim == len(expected) and all(
            want is None or want == got
            for want, got in zip(expected[1:], array.shape[1:], strict=True)
        )
        if not matches:
            raise ValueError(
                f"{name} must fit the model, whose input {key!r} takes shape {expected} (batch "
                f"first). Received: {array.shape}"
            )


def _by_name(x: Any, inputs: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The arrays of the data by the names of the model's inputs."""
    names = ", ".join(map(repr, inputs))
    if isinstance(x, dict):
        if set(x) != set(inputs):
            raise ValueError(
                f"{name}'s dictionary of inputs must have the keys {names}, one for each input of "
                f"the model. Received: {', '.join(map(repr, x))}"
            )
        return {key: x[key] for key in inputs}
    arrays = tf.nest.flatten(x)
    if len(arrays) != len(inputs):
        tuple_ = "; a list means several inputs: images with labels go into a tuple, (x, y)"
        raise ValueError(
            f"{name} must hold one array for each input of the model: {names}. Received: "
            f"{len(arrays)} arrays{tuple_ if isinstance(x, list) else ''}"
        )
    return dict(zip(inputs, arrays, strict=True))


def _check_numbers(values: Any, what: str, remedy: str) -> None:
    """Raises TypeError unless all arrays hold real numbers or truth values."""
    for array in tf.nest.flatten(values):
        kind = getattr(np.asarray(array).dtype, "name", "")
        # ml_dtypes' kinds, such as bfloat16, are no subtypes of NumPy's own.
        if array is not None and not re.match(r"(u?int|b?float|bool)\d*", kind):
            raise TypeError(f"{what} must be real numbers: {remedy}. Received: dtype {kind}")


def check_weights(weights: Any, samples: int, name: str = "data") -> None:
    """Raises unless sample weights are finite numbers >= 0, one row for each sample.

    Args:
        weights: an array or a structure of arrays; None: nothing to check.
        samples: how many there are.
        name: the argument that the data was given by.
    """
    _check_numbers(weights, f"{name}'s sample weights", "convert them to float32")
    for array in tf.nest.flatten(weights):
        if array is None:
            continue
        array = np.asarray(array)
        if array.ndim == 0 or len(array) != samples:
            raise ValueError(
                f"{name}'s sample weights must be one for each of the {samples} samples. Received: "
                f"shape {array.shape}"
            )
        if not (np.isfinite(np.asarray(array, np.float32)) & (array >= 0)).all():
            raise ValueError(f"{name}'s sample weights must be finite and >= 0")
