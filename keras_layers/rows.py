"""Integers as short text, for layer configurations (NumPy)."""

import base64
import zlib
from collections.abc import Sequence

import numpy as np


def encode_rows(rows: Sequence[int]) -> str:
    """Text of a flat array of integers, short where neighbours differ by little.

    Example:
        >>> decode_rows(encode_rows([3, 3, -1])).tolist()
        [3, 3, -1]
    """
    steps = np.diff(np.asarray(rows, np.int32), prepend=np.int32(0))
    return base64.b64encode(zlib.compress(steps.astype("<i4").tobytes(), 9)).decode("ascii")


def decode_rows(text: str) -> np.ndarray:
    """The int32 array that `encode_rows` wrote.

    Raises:
        ValueError: it did not.
    """
    try:
        steps = np.frombuffer(zlib.decompress(base64.b64decode(text, validate=True)), "<i4")
    except (ValueError, zlib.error) as error:
        raise ValueError(f"rows must be what encode_rows wrote. Received: {text!r:.40}") from error
    return np.cumsum(steps, dtype=np.int32)


def as_rows(rows: str | Sequence[int], name: str) -> np.ndarray:
    """Rows as an int32 array: given as they are or as `encode_rows` wrote them.

    Raises:
        TypeError: not integers.
        ValueError: empty or not flat.
    """
    array = decode_rows(rows) if isinstance(rows, str) else np.asarray(rows)
    if array.ndim != 1 or array.size == 0:
        raise ValueError(f"{name} must be flat and not empty. Received: shape {array.shape}")
    if not np.issubdtype(array.dtype, np.integer):
        raise TypeError(f"{name} must be integers. Received: dtype {array.dtype}")
    return array.astype(np.int32)
