"""A chain of convolutions as integers: its steps, its index maps, its kept positions (NumPy)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from espace_tf.kernels.index_map import (
    Geometry,
    IndexMap,
    check_positions,
    conv_table,
    nearest_spread,
    reindex,
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
        maps: one index map per convolution; a full one carries its geometry and reads a
            whole map.
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
    it computes, and all that it hands over. Only the last one spreads them over its whole map.

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
        found.append(Geometry.of(link, size))
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
        yield reindex(table, wanted), wanted
