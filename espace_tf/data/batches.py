"""User data, in any of its usual forms, as batches of NumPy arrays."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from espace_tf.data.arrays import as_arrays, count, split
from espace_tf.data.forms import understood
from espace_tf.data.uneven import Uneven, concatenated, shapes
from espace_tf.network import graph

Batch = tuple[Any, Any]
_NESTS = (dict, list, tuple)


def batches(
    data: Any,
    limit: int | None,
    batch: int,
    *,
    start: int = 0,
    inputs: Mapping[str, Any] | None = None,
    name: str = "data",
) -> Iterator[Batch]:
    """Batches of exactly `batch` samples (the last may be smaller) from the first `limit` samples.

    A model whose batch size is fixed gets batches of that size alone: `limit` is rounded up to full
    ones, and the rest that fills none is left out. Samples of other shapes than those before them
    begin a new batch.

    Args:
        data: a tf.data.Dataset of batches, x, (x, y) or (x, y, sample weights), or what else gives
            such batches, see `understood`; or the same with arrays of all samples: whatever
            np.asarray takes, or arrays on disk, which are read block by block. Several inputs or
            outputs come as a list or dictionary of arrays; a tuple always means (x, y). Sample
            weights are not used.
        limit: how many samples to read at most; None reads all.
        batch: samples per yielded batch, unless the model fixes them.
        start: how many of them to leave out at the beginning.
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
    data, empty, fixed = understood(data, inputs, name), True, fixed_batch(inputs)
    if fixed is not None:
        batch, limit = fixed, None if limit is None else -(-limit // fixed) * fixed
    for x, y in _rebatch(_elements(data, inputs, name), start, limit, batch, name):
        if fixed is not None and len(tf.nest.flatten(x)[0]) < fixed:
            continue
        _check_inputs(x, inputs, name)
        remedy = "encode classes as the integers 0, 1, ..., as np.unique(y, return_inverse=True)[1]"
        _check_numbers(y, f"{name}'s labels", remedy)
        empty = False
        yield x, y
    if empty:
        least = "one sample" if fixed is None else f"the {fixed} samples of the model's fixed batch"
        raise ValueError(f"{name} is empty or too short: it must hold at least {least}")


def named_inputs(model: Any) -> dict[str, Any] | None:
    """A model's inputs by the keys that a dictionary of data must have, in the model's order.

    None if the model does not say what it takes.
    """
    if not getattr(model, "inputs", None):
        return None
    structure = graph.structure(model, "input")
    places = {id(tensor): place for place, tensor in enumerate(model.inputs)}
    if isinstance(structure, Mapping) and {*map(id, structure.values())} == set(places):
        keys = sorted(structure, key=lambda key: places[id(structure[key])])
        return {key: structure[key] for key in keys}
    return {str(tensor.name).split(":")[0]: tensor for tensor in model.inputs}


def in_order(model: Any, inputs: Any) -> list[np.ndarray]:
    """One array per model input, in the order of `model.inputs`, with the input's type.

    Args:
        model: a Keras model with known inputs.
        inputs: an array, a list with one for each input, or a dictionary by the inputs' names.
    """
    names = named_inputs(model)
    by_name = isinstance(inputs, Mapping) and set(inputs) == set(names)
    arrays = [inputs[name] for name in names] if by_name else tf.nest.flatten(inputs)
    return [
        np.asarray(array).astype(tf.as_dtype(tensor.dtype).as_numpy_dtype)
        for array, tensor in zip(arrays, model.inputs, strict=True)
    ]


def fixed_batch(inputs: Mapping[str, Any] | None) -> int | None:
    """The batch size that a model's inputs are fixed to; None: any.

    Args:
        inputs: from `named_inputs`.
    """
    sizes = {tuple(tensor.shape)[0] for tensor in (inputs or {}).values()} - {None}
    return sizes.pop() if sizes else None


def _elements(data: Any, inputs: Mapping[str, Any] | None, name: str) -> Iterator[Batch]:
    """The elements of the data as structures of arrays: one element if it is arrays."""
    if isinstance(data, tf.data.Dataset):
        _check_batched(data, inputs, name)
        for element in data.as_numpy_iterator():
            yield split(element, name)[:2]
    elif isinstance(data, Uneven):
        yield from data.parts
    else:
        yield split(as_arrays(data, name), name)[:2]


def _check_batched(data: tf.data.Dataset, inputs: Mapping[str, Any] | None, name: str) -> None:
    specs = tf.nest.flatten(data.element_spec)
    if not all(isinstance(spec, tf.TensorSpec) for spec in specs):
        raise TypeError(
            f"{name} must be a dataset of dense tensors: map to_tensor() or tf.sparse.to_dense "
            f"over it. Received: elements {data.element_spec}"
        )
    shapes = [tuple(tensor.shape) for tensor in (inputs or {}).values()]
    given = [spec.shape for spec in tf.nest.flatten(split(data.element_spec, name)[0])]
    single = len(shapes) == len(given) and all(
        found.rank is not None and found.rank == len(shape) - 1
        for found, shape in zip(given, shapes, strict=True)
    )
    if single or any(spec.shape.rank == 0 for spec in specs):
        raise ValueError(
            f"{name} must be a dataset of batches: call .batch(32) on it. Received: elements "
            f"{data.element_spec}"
        )


def _rebatch(
    elements: Iterator[Batch], skipped: int, limit: int | None, batch: int, name: str
) -> Iterator[Batch]:
    """Cuts and joins elements of any size into batches of `batch` samples."""
    waiting, held, left = [], 0, None if limit is None else limit - skipped
    for element in elements:
        size = count(element, name)
        start = min(skipped, size)
        skipped -= start
        if waiting and start < size and not _are_alike(waiting[0], element, name):
            yield concatenated(waiting)
            waiting, held = [], 0
        while start < size and (left is None or left > 0):
            take = min(batch - held, size - start, size if left is None else left)
            waiting.append(_slice(element, start, start + take))
            start, held = start + take, held + take
            left = None if left is None else left - take
            if held == batch:
                yield concatenated(waiting)
                waiting, held = [], 0
        if left == 0:
            break
    if waiting:
        yield concatenated(waiting)


def _slice(element: Batch, start: int, stop: int) -> Batch:
    return tf.nest.map_structure(
        lambda array: None if array is None else np.asarray(array[start:stop]), element
    )


def _are_alike(part: Batch, other: Batch, name: str) -> bool:
    """Whether samples of two elements can stand in one batch."""
    try:
        tf.nest.assert_same_structure(part, other)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{name}'s batches must be alike in structure. Received: {error}"
        ) from error
    return shapes(part) == shapes(other)


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
    if isinstance(x, dict) and not any(isinstance(each, _NESTS) for each in x.values()):
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
