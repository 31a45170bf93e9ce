"""A chain of convolutions as integers: its steps, its index maps, its kept positions (NumPy)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from espace_tf.kernels.index_map import (
    Geometry,
    IndexMap,
    check_positions,
    conv_table,
    decode_positions,
    encode_positions,
    nearest_spread,
    repack,
    rows_read,
)


@dataclass(frozen=True, kw_only=True)
class Link:
    """One convolution of a chain: the name of its weight, its output channels, its steps."""

    weight: str
    filters: int
    kernel_size: tuple[int, int]
    strides: tuple[int, int]
    dilation_rate: tuple[int, int]
    padding: str

    def geometry(self, input_size: tuple[int, int]) -> Geometry:
        """Where it reads and writes on an input map of this size."""
        return Geometry(
            kernel_size=self.kernel_size,
            input_size=input_size,
            strides=self.strides,
            dilation_rate=self.dilation_rate,
            padding=self.padding,
        )

    def output_length(self, length: int | None, axis: int) -> int | None:
        """Length of the output map along an axis (0 height, 1 width); None stays unknown."""
        if length is None:
            return None
        overlap = (self.kernel_size[axis] - 1) * self.dilation_rate[axis]
        starts = length - overlap * (self.padding == "valid")
        if starts < 1:
            raise ValueError(
                f"kernel_size {self.kernel_size} with dilation_rate {self.dilation_rate} does not "
                f"fit into an input whose {('height', 'width')[axis]} is {length}"
            )
        return -(-starts // self.strides[axis])


@dataclass(frozen=True, eq=False)
class ChainMaps:
    """How a chain runs on one size of input.

    Attributes:
        input_size: (H, W) of the input map.
        output_size: (OH, OW) of the last output map.
        maps: one index map per convolution; a full one carries its geometry and reads unpacked
            rows.
        shown: int32 [OH * OW], the output position whose value each one shows; None: its own.
    """

    input_size: tuple[int, int]
    output_size: tuple[int, int]
    maps: tuple[IndexMap, ...]
    shown: np.ndarray | None


def chain_maps(
    links: Sequence[Link], input_size: tuple[int, int], positions: np.ndarray | None
) -> ChainMaps:
    """The index maps that compute a chain's last map at `positions`, and nothing that is not read.

    Walks backwards: the rows that a convolution's table reads are the positions that the one before
    it computes, handed over packed. Only the last one spreads what it computed over its whole map.

    Args:
        links: the convolutions, first to last; each reads the output of the one before it.
        input_size: (H, W) that the first one reads.
        positions: kept positions of the last output, int32 [Q]; None (or all) computes everything.

    Raises:
        ValueError: positions outside the last map, or a kernel that does not fit.
    """
    geometries = _geometries(links, input_size)
    size, rows_out = geometries[-1].output_size, geometries[-1].rows_out
    wanted = None if positions is None else check_positions(positions, rows_out)
    if wanted is None or len(wanted) == rows_out:
        maps = tuple(IndexMap.conv(geometry) for geometry in geometries)
        return ChainMaps(input_size, size, maps, None)
    spread = nearest_spread(size, wanted)
    shown, shows, maps = wanted[spread], spread, []
    for table, rows in _later_tables(geometries, wanted):
        maps.insert(0, IndexMap(table, shows, len(rows)))
        shows, wanted = None, rows
    first = IndexMap.conv(geometries[0], wanted, spread=not maps)
    return ChainMaps(input_size, size, (first, *maps), shown)


def _geometries(links: Sequence[Link], size: tuple[int, int]) -> list[Geometry]:
    """Of every convolution of a chain, the first one on an input of this size."""
    found = []
    for link in links:
        found.append(link.geometry(size))
        size = found[-1].output_size
    return found


def _later_tables(geometries, wanted: np.ndarray):
    """From the last convolution to the second: its table at the wanted positions, over the rows
    that it reads, and those rows: what is wanted of the one before.
    """
    for geometry in geometries[:0:-1]:
        table = conv_table(geometry, wanted)
        # An even, widely dilated kernel can read nothing but padding; a map needs one row anyhow.
        wanted = rows_read(table) if table.max() >= 0 else np.zeros(1, np.int32)
        yield repack(table, wanted), wanted


def write_positions(positions: np.ndarray | None, map_size) -> dict | list | None:
    """Kept positions as plain JSON: a bit mask once the map's (OH, OW) is known, else a list."""
    if positions is None:
        return None
    if map_size is None:
        return positions.tolist()
    mask = encode_positions(positions, map_size[0] * map_size[1])
    return {"mask": mask, "map_size": list(map_size)}


def read_positions(positions) -> tuple[np.ndarray | None, tuple[int, int] | None]:
    """The int32 positions and, where it is written, the (OH, OW) of the map they belong to."""
    if positions is None:
        return None, None
    if not isinstance(positions, dict):
        return check_positions(positions, np.iinfo(np.int32).max), None
    height, width = positions["map_size"]
    return decode_positions(positions["mask"], height * width), (height, width)


def check_count(value: int, name: str) -> int:
    """The value as an int, or an error in words if it is not a positive integer."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise ValueError(f"{name} must be a positive integer. Received: {value!r}")
    return int(value)


def check_option(value, name: str, allowed: tuple[str, ...]) -> str:
    """The value in lower case, or an error in words if it is not one of those allowed."""
    if not isinstance(value, str) or value.lower() not in allowed:
        raise ValueError(f"{name} must be one of {allowed}. Received: {value!r}")
    return value.lower()
