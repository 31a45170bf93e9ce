"""Positions and programs as short text, for layer configurations (NumPy)."""

import base64
import zlib
from collections.abc import Sequence

import numpy as np

from espace_tf.kernels.index_map import check_positions


def write_positions(positions: np.ndarray | None, map_size) -> dict | list | None:
    """Kept positions as plain JSON: a bit mask once the map's (OH, OW) is known, else a list.

    Example:
        >>> write_positions(np.array([1, 4]), (3, 3))
        {'mask': 'SAA=', 'map_size': [3, 3]}
    """
    if positions is None:
        return None
    if map_size is None:
        return positions.tolist()
    mask = np.zeros(map_size[0] * map_size[1], bool)
    mask[positions] = True
    text = base64.b64encode(np.packbits(mask).tobytes()).decode("ascii")
    return {"mask": text, "map_size": list(map_size)}


def read_positions(positions) -> tuple[np.ndarray | None, tuple[int, int] | None]:
    """The int32 positions and, where it is written, the (OH, OW) of the map they belong to.

    Raises:
        TypeError: not integers.
        ValueError: not a flat list of positions, or a mask of another map.
    """
    if positions is None:
        return None, None
    if not isinstance(positions, dict):
        return check_positions(positions, np.iinfo(np.int32).max), None
    height, width = positions["map_size"]
    bits = np.frombuffer(base64.b64decode(positions["mask"], validate=True), np.uint8)
    if len(bits) != -(-height * width // 8):
        raise ValueError(
            f"positions were encoded for another output size: {len(bits)} bytes "
            f"where {height * width} positions take {-(-height * width // 8)}"
        )
    kept = np.unpackbits(bits, count=height * width)
    return np.flatnonzero(kept).astype(np.int32), (height, width)


def write_words(words: np.ndarray) -> str:
    """Text of a program's words, short where neighbours differ by little.

    Example:
        >>> read_words(write_words([3, 3, -1])).tolist()
        [3, 3, -1]
    """
    steps = np.diff(np.asarray(words, np.int32), prepend=np.int32(0))
    return base64.b64encode(zlib.compress(steps.astype("<i4").tobytes(), 9)).decode("ascii")


def read_words(program: str | Sequence[int]) -> np.ndarray:
    """A program's words, int32 [n]: given as they are or as `write_words` wrote them.

    Raises:
        TypeError: not integers.
        ValueError: another text, empty, or not flat.
    """
    if isinstance(program, str):
        try:
            text = zlib.decompress(base64.b64decode(program, validate=True))
            return np.cumsum(np.frombuffer(text, "<i4"), dtype=np.int32)
        except (ValueError, zlib.error) as error:
            raise ValueError(
                f"program must be integers or their text. Received: {program!r:.40}"
            ) from error
    array = np.asarray(program)
    if array.ndim != 1 or array.size == 0:
        raise ValueError(f"program must be flat and not empty. Received: shape {array.shape}")
    if not np.issubdtype(array.dtype, np.integer):
        raise TypeError(f"program must be integers. Received: dtype {array.dtype}")
    return array.astype(np.int32)
