"""Packed rows as data (NumPy): what a map's positions show, and its way into a configuration.

A packed tensor [B, Q, 1, C] stands for a map [B, H, W, C]: its integers `shown` [H * W] say which
of the Q rows each position of the map shows, ZEROS where it shows zeros and UNREAD where nothing
ever asks. As a map of height Q and width 1 it goes through every pointwise layer as it is.
"""

import base64
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from espace_tf.kernels.index_map import PADDED

ZEROS = PADDED
UNREAD = -2


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


@dataclass(frozen=True, kw_only=True, eq=False)
class Packing:
    """How a convolution runs in a packed region; says the same as a mask, over fewer rows.

    Args:
        input_size: (H, W) of the map that the input is or stands for.
        source: int32 [H * W], what that map's positions show; None: the input is the map.
        computed: int32 [Q], sorted output positions that are computed.
        spread: int32 [OH * OW], the computed row that each output position shows: the output is a
            map; None: it is the computed rows [B, Q, 1, filters].
    """

    input_size: tuple[int, int]
    source: np.ndarray | None
    computed: np.ndarray
    spread: np.ndarray | None

    def to_config(self) -> dict:
        """Plain JSON."""
        return {
            "input_size": list(self.input_size),
            **{
                name: None if rows is None else encode_rows(rows)
                for name in ("source", "computed", "spread")
                for rows in [getattr(self, name)]
            },
        }

    @classmethod
    def from_config(cls, config: "dict | Packing | None") -> "Packing | None":
        """What `to_config` wrote, with arrays as they are or encoded.

        Raises:
            TypeError, ValueError: anything else.
        """
        if config is None or isinstance(config, cls):
            return config
        names = ("source", "computed", "spread")
        if not isinstance(config, dict) or set(config) != {"input_size", *names}:
            raise ValueError(f"packing must be a Packing or its config. Received: {config!r:.80}")
        if config["computed"] is None:
            raise ValueError("packing must say which positions are computed. Received: None")
        height, width = config["input_size"]
        rows = {
            name: None if config[name] is None else as_rows(config[name], name) for name in names
        }
        return cls(input_size=(int(height), int(width)), **rows)
