"""Arrays of all samples, in memory or on disk, whatever they were given as."""

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from espace_tf.data.uneven import Uneven


def as_arrays(data: Any, name: str = "data") -> Any:
    """The data with everything that np.asarray takes as arrays, so that rows go by position.

    Tensors and arrays on disk stay as they are. A list of numbers is one array, any other list and
    a dictionary are several.

    Args:
        data: a structure.
        name: the argument that the data was given by, for errors.

    Raises:
        TypeError: something in it is no array.

    Example:
        >>> as_arrays(([[1], [2]], [0, 1]))
        (array([[1], [2]]), array([0, 1]))
    """

    def convert(value: Any) -> Any:
        return None if value is None else as_arrays(value, name)

    if isinstance(data, tuple) and data:
        return (as_arrays(data[0], name), *map(convert, data[1:]))
    if isinstance(data, Mapping) and data:
        return {key: convert(value) for key, value in data.items()}
    if isinstance(data, list) and any(map(_is_no_number, tf.nest.flatten(data))):
        return [convert(value) for value in data]
    return _array(data, name)


def is_on_disk(array: Any) -> bool:
    """Whether an array is better read in blocks: of h5py, zarr, a memory map and the like."""
    if isinstance(array, np.ndarray) or tf.is_tensor(array):
        return isinstance(array, np.memmap)
    known = isinstance(getattr(array, "dtype", None), np.dtype) and hasattr(array, "__getitem__")
    # A pandas Series is in memory, and its brackets go by label.
    return known and hasattr(array, "shape") and not hasattr(array, "iloc")


def take(array: Any, rows: np.ndarray) -> np.ndarray:
    """These rows of an array, also of one on disk, which is read in ascending runs."""
    if not is_on_disk(array):
        return np.asarray(tf.gather(array, rows) if tf.is_tensor(array) else array[rows])
    ascending = np.sort(rows)
    return runs(array, ascending)[np.searchsorted(ascending, rows)]


def runs(array: Any, rows: np.ndarray) -> np.ndarray:
    """Ascending rows of an array, each run of them in one slice: what every library takes."""
    pieces = np.split(rows, np.flatnonzero(np.diff(rows) != 1) + 1)
    return np.concatenate([np.asarray(array[piece[0] : piece[-1] + 1]) for piece in pieces])


def split(element: Any, name: str = "data") -> tuple[Any, Any, Any]:
    """x, y and sample weights of one element or of the whole data, None where there are none.

    Raises:
        ValueError: a longer tuple.
    """
    parts = element if isinstance(element, tuple) else (element,)
    if not 1 <= len(parts) <= 3:
        raise ValueError(
            f"{name} must be x, (x, y) or (x, y, sample weights); several inputs go into a list or "
            f"dictionary. Received: a tuple of {len(parts)}"
        )
    return (*parts, *[None] * (3 - len(parts)))


def count(data: Any, name: str = "data") -> int | None:
    """How many samples there are; None if a dataset does not say.

    Raises:
        ValueError: arrays of unequal length.
    """
    if isinstance(data, Uneven):
        return len(data)
    if isinstance(data, tf.data.Dataset):
        sizes = [spec.shape[0] for spec in tf.nest.flatten(data.element_spec) if spec.shape.rank]
        cardinality = int(data.cardinality())
        unknown = cardinality < 0 or not sizes or sizes[0] is None
        return None if unknown else cardinality * sizes[0]
    x, y, _ = split(as_arrays(data, name), name)
    arrays = [array for array in tf.nest.flatten((x, y)) if array is not None]
    lengths = {array.shape[0] if len(array.shape) else 0 for array in arrays}
    if len(lengths) != 1:
        raise ValueError(
            f"{name}'s inputs and labels must hold equally many samples. "
            f"Received: {sorted(lengths)}"
        )
    return lengths.pop()


def describe(data: Any) -> str | None:
    """A short text that differs between data of different shape or content, to key stored results.

    Of arrays at most 64 samples are looked at, of a dataset its first two batches.

    Returns:
        None of a dataset whose first batches are others in every pass, as it is shuffled: nothing
        tells whether it is the same data.
    """
    if data is None:
        return "no data"
    if isinstance(data, Uneven):
        return _digest(data.parts)
    if not isinstance(data, tf.data.Dataset):
        return _digest(as_arrays(data))
    first, again = (_digest(list(data.take(2).as_numpy_iterator())) for _ in range(2))
    return f"{data.element_spec} x {int(data.cardinality())}: {first}" if first == again else None


def _digest(arrays: Any) -> str:
    digest = hashlib.sha256()
    for array in (each for each in tf.nest.flatten(arrays) if each is not None):
        array = np.atleast_1d(array) if not array.shape else array
        step = max(1, -(-array.shape[0] // 64))
        rows = np.ascontiguousarray(array[::step])
        digest.update(f"{array.shape} {rows.dtype}".encode() + rows.tobytes())
    return digest.hexdigest()


def _array(value: Any, name: str) -> Any:
    """One array, or a TypeError that says what to do."""
    if isinstance(value, tf.RaggedTensor | tf.SparseTensor):
        raise TypeError(
            f"{name} must be dense: give {name}.to_tensor(). Received: a ragged tensor or a sparse "
            "one, which tf.sparse.to_dense makes dense"
        )
    if tf.is_tensor(value) or is_on_disk(value) or isinstance(value, np.ndarray):
        return value
    known = isinstance(value, list | range) or hasattr(value, "__array__") or is_buffer(value)
    try:
        array = np.asarray(value) if known else None
    except (TypeError, ValueError):  # rows of unequal length
        array = None
    if array is None or array.dtype == object or not array.size and isinstance(value, list):
        raise TypeError(
            f"{name} must be a tf.data.Dataset of batches, or arrays: x or (x, y). Received: "
            f"{type(value).__name__}{_remedy(value)}"
        )
    return array


def _is_no_number(value: Any) -> bool:
    return not isinstance(value, bool | int | float)


def is_buffer(value: Any) -> bool:
    """Whether NumPy reads a value's memory as an array of some axes."""
    try:
        return not isinstance(value, bytes) and memoryview(value).ndim > 0
    except TypeError:
        return False


def _remedy(value: Any) -> str:
    """What to do about a value that is no array."""
    if isinstance(value, list | tuple | dict):
        return " of rows that make no array" if value else " of nothing"
    if callable(value) or hasattr(value, "__iter__") and not isinstance(value, str | bytes):
        return (
            "; make a dataset of what gives one sample after the other: tf.data.Dataset."
            "from_generator(function, output_signature=(tf.TensorSpec(shape of an image), "
            "tf.TensorSpec(shape of a label))).batch(32), where each call of the function begins "
            "anew"
        )
    return ""
