"""Packed regions: which maps of a network are kept as rows only, and which rows (NumPy).

A masked convolution computes some positions and shows them at all others; what follows position by
position can run on the computed rows alone. So a map is here an array `shown` [H * W]: the row that
each of its positions shows (keras_layers/packing.py), or None where the map itself is there.

Two passes decide everything, and neither changes a value that reaches an output:
1. backwards, which positions of each map are read at all (the mask of a consumer, through its
   windows, becomes a mask of the producer);
2. forwards, which of those differ: positions whose windows read the same rows are one row. A 1 x 1
   convolution or a nearest upsampling so keeps the rows of its input, two branches that are added
   go over to the pairs of rows that occur, and a region ends where nearly all positions differ or
   where a layer needs the map.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from espace_tf.keras_layers.packing import UNREAD, ZEROS, Packing
from espace_tf.kernels.index_map import Geometry, compose, conv_table, nearest_spread, rows_read

# The region ends where more than this share of the positions would be computed: rows that are
# gathered one by one cost more than the few that they leave out.
LARGEST_SHARE = 0.9
KINDS = ("opaque", "conv", "max", "average", "pointwise", "mixing", "moved", "global")


@dataclass(frozen=True, kw_only=True, eq=False)
class Node:
    """One call of a layer.

    Args:
        name: of the layer, by which its step is found.
        kind: "conv": a convolution that can read and write rows; "max", "average": poolings;
            "pointwise": each position by itself, of one input or of several alike; "mixing": the
            same, and dear enough to gather the positions that are read before it; "moved": each
            position shows one of the input's, or zeros; "global": an average over the map;
            "opaque": anything else, which needs the maps.
        inputs, outputs: tensors by number; all kinds but "opaque" have one output.
        geometry: of a convolution or pooling.
        positions: kept output positions of a convolution; None: all.
        moved: int32 [OH * OW], of "moved": the input position that each output position shows, or
            -1.
    """

    name: str
    kind: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    geometry: Geometry | None = None
    positions: np.ndarray | None = None
    moved: np.ndarray | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Gather:
    """Rows to gather from a tensor: all of `rows`, as a map of `size` or (None) packed."""

    rows: np.ndarray
    size: tuple[int, int] | None


@dataclass(frozen=True, kw_only=True, eq=False)
class Step:
    """What a layer of a packed region does differently.

    Args:
        gathers: for each input what is gathered before the layer reads it; None: nothing.
        packing: of a convolution.
        table, spread: of a pooling: int32 [Q, taps] over its input's rows, and what its output map
            shows; spread None: the output is packed.
        shown: of a global average, what its input shows.
        moved: the layer becomes an identity.
    """

    gathers: tuple[Gather | None, ...] = ()
    packing: Packing | None = None
    table: np.ndarray | None = None
    spread: np.ndarray | None = None
    shown: np.ndarray | None = None
    moved: bool = False


def regions(
    nodes: Sequence[Node], sizes: Mapping[int, tuple[int, int] | None], outputs: Iterable[int]
) -> dict[str, Step]:
    """The steps of all layers that a network's packed regions change.

    Args:
        nodes: the calls in order of execution; a layer that is called twice must be "opaque".
        sizes: (H, W) of every tensor; None: it is no map, or its size is not known.
        outputs: tensors that are needed as maps after the last call.

    Returns:
        Layer name -> step, of those layers only that do not stay as they are.

    Example:
        >>> kept = np.arange(0, 64, 2)
        >>> conv = Geometry(kernel_size=(3, 3), input_size=(8, 8), padding="same")
        >>> nodes = [
        ...     Node(name="a", kind="conv", inputs=(0,), outputs=(1,), geometry=conv,
        ...          positions=kept),
        ...     Node(name="b", kind="conv", inputs=(1,), outputs=(2,), geometry=conv,
        ...          positions=kept)]
        >>> steps = regions(nodes, dict.fromkeys(range(3), (8, 8)), [2])
        >>> len(steps["a"].packing.computed), steps["a"].packing.spread is None
        (32, True)
    """
    nodes, outputs = [_sound(node, sizes) for node in nodes], frozenset(outputs)
    return _Forward(nodes, sizes, outputs).run()


def _sound(node: Node, sizes: Mapping[int, tuple[int, int] | None]) -> Node:
    """The node, opaque if its sizes are not known or not alike."""
    found = [sizes.get(tensor) for tensor in node.inputs]
    size = sizes.get(node.outputs[0]) if node.outputs else None
    alike = node.kind not in ("pointwise", "mixing") or all(
        each in (size, (1, 1)) for each in found
    )
    known = None not in found and (node.kind == "global" or size is not None)
    return node if known and alike else dataclasses.replace(node, kind="opaque")


def positions_read(
    nodes: Sequence[Node], sizes: Mapping[int, tuple[int, int] | None], outputs: Iterable[int]
) -> dict[int, np.ndarray]:
    """Which positions of every map are read: bool [H * W] by tensor.

    More than LARGEST_SHARE counts as all, as does what an opaque layer or nobody reads.

    Args:
        nodes, sizes, outputs: as of `regions`.
    """
    read = {
        tensor: np.zeros(size[0] * size[1], bool)
        for tensor, size in sizes.items()
        if size is not None
    }
    consumed = {tensor for node in nodes for tensor in node.inputs}
    for tensor in read:
        if tensor in outputs or tensor not in consumed:
            read[tensor][:] = True
    for node in reversed(nodes):
        for tensor in node.outputs:
            if tensor in read and read[tensor].mean() > LARGEST_SHARE:
                read[tensor][:] = True
        wanted = read.get(node.outputs[0]) if node.outputs else None
        for tensor in node.inputs:
            if tensor in read:
                _add_read(node, read[tensor], wanted)
    return read


def _add_read(node: Node, read: np.ndarray, wanted: np.ndarray | None) -> None:
    """Adds what a node reads of an input map when `wanted` of its output is read."""
    if node.kind in ("opaque", "global") or wanted is None:
        read[:] = True
    elif node.kind in ("pointwise", "mixing"):
        if len(read) == len(wanted):
            read |= wanted
        else:  # one vector for all positions
            read[:] = True
    elif node.kind == "moved":
        read[rows_read(node.moved[wanted])] = True
    else:
        read[rows_read(conv_table(node.geometry, _computed(node, wanted)[0]))] = True


def _computed(node: Node, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The output positions behind those that are wanted, and which of them each one shows."""
    everywhere = np.flatnonzero(wanted)
    if node.positions is None:
        return everywhere, np.arange(len(everywhere))
    spread = nearest_spread(node.geometry.output_size, node.positions)
    slots, shown = np.unique(spread[everywhere], return_inverse=True)
    return np.asarray(node.positions)[slots], shown


class _Forward:
    """The second pass: what every tensor shows, and the steps."""

    def __init__(self, nodes, sizes, outputs):
        self.nodes, self.sizes, self.outputs = nodes, sizes, outputs
        self.read = positions_read(nodes, sizes, outputs)
        self.shown: dict[int, np.ndarray] = {}  # of packed tensors
        self.count: dict[int, int] = {}  # their rows
        self.steps: dict[str, Step] = {}
        self.gathered: dict[tuple, Gather] = {}
        # Where only opaque layers read, the producer had better spread its rows itself.
        self.useful = {t for node in nodes if node.kind != "opaque" for t in node.inputs} - outputs

    def run(self) -> dict[str, Step]:
        for node in self.nodes:
            getattr(self, f"_{node.kind}")(node)
        return self.steps

    def _opaque(self, node: Node) -> None:
        self._step(node, gathers=tuple(self._to_map(tensor) for tensor in node.inputs))

    def _global(self, node: Node) -> None:
        if node.inputs[0] in self.shown:
            self.steps[node.name] = Step(shown=self.shown[node.inputs[0]])

    def _conv(self, node: Node) -> None:
        (tensor,), (output,) = node.inputs, node.outputs
        source = self.shown.get(tensor)
        computed, slots = _computed(node, self.read[output])
        if source is not None:
            rows, slots = _distinct(compose(conv_table(node.geometry, computed), source), slots)
            computed = computed[rows]
        spread = self._shows(output, slots, len(computed))
        if source is None and spread is not None:
            return
        packing = Packing(
            input_size=self.sizes[tensor], source=source, computed=computed, spread=spread
        )
        self._step(node, packing=packing)

    def _max(self, node: Node) -> None:
        (tensor,), (output,) = node.inputs, node.outputs
        if tensor not in self.shown and self.read[output].all():
            return
        gather, source = self._without_zeros(tensor)
        table = conv_table(node.geometry, np.flatnonzero(self.read[output]))
        table = table if source is None else compose(table, source)
        rows, slots = _distinct(table, np.arange(len(table)))
        spread = self._shows(output, slots, len(rows))
        self._step(node, gathers=(gather,), table=table[rows], spread=spread)

    _average = _max

    def _moved(self, node: Node) -> None:
        (tensor,), (output,) = node.inputs, node.outputs
        if tensor not in self.shown or output in self.outputs:
            self._opaque(node)
            return
        self._step(node, moved=True)
        shown = np.where(node.moved < 0, ZEROS, self.shown[tensor][node.moved])
        self.shown[output], self.count[output] = shown.astype(np.int32), self.count[tensor]

    def _mixing(self, node: Node) -> None:
        (tensor,), (output,) = node.inputs, node.outputs
        wanted = self.read[output]
        if tensor in self.shown or wanted.all():
            self._pointwise(node)
            return
        rows = np.flatnonzero(wanted)
        self._step(node, gathers=(self._gather(tensor, rows, None),))
        self._note(output, np.arange(len(rows)), len(rows))

    def _pointwise(self, node: Node) -> None:
        (output,) = node.outputs
        size, wanted = self.sizes[output], self.read[output]
        maps = [tensor for tensor in node.inputs if self.sizes[tensor] == size]
        packed = [tensor for tensor in maps if tensor in self.shown]
        if not packed or output in self.outputs:
            self._opaque(node)
            return
        everywhere = np.flatnonzero(wanted)
        reads = np.stack([self.shown[t][everywhere] if t in packed else everywhere for t in maps])
        alike = len({self.count.get(tensor) for tensor in maps}) == 1 and len(packed) == len(maps)
        if alike and (reads == reads[0]).all() and reads.min() >= 0:
            self.shown[output], self.count[output] = self.shown[maps[0]], self.count[maps[0]]
            return
        lines, slots = _distinct(reads.T, np.arange(len(everywhere)))
        if len(lines) > LARGEST_SHARE * len(wanted):
            self._opaque(node)
            return
        rows = dict(zip(maps, reads[:, lines], strict=True))
        gathers = [self._rows(t, rows[t]) if t in rows else None for t in node.inputs]
        self._step(node, gathers=tuple(gathers))
        self._note(output, slots, len(lines))

    def _shows(self, output: int, slots: np.ndarray, rows: int) -> np.ndarray | None:
        """Notes an output of this many packed rows; returns what it shows if a map is better.

        Args:
            slots: the row behind each position that is read.
        """
        shown = self._note(output, slots, rows)
        if rows <= LARGEST_SHARE * len(shown) and output in self.useful:
            return None
        del self.shown[output]
        return shown

    def _note(self, output: int, slots: np.ndarray, rows: int) -> np.ndarray:
        """Notes that an output is this many packed rows; returns what it shows."""
        wanted = self.read[output]
        shown = np.full(len(wanted), UNREAD, np.int32)
        shown[wanted] = slots
        self.shown[output], self.count[output] = shown, rows
        return shown

    def _rows(self, tensor: int, rows: np.ndarray) -> Gather | None:
        """The gathering of these rows, or None where the tensor is just these rows."""
        if tensor in self.shown and np.array_equal(rows, np.arange(self.count[tensor])):
            return None
        return self._gather(tensor, rows, None)

    def _without_zeros(self, tensor: int) -> tuple[Gather | None, np.ndarray | None]:
        """What a pooling reads: zeros that a position shows must be a row of their own there."""
        source = self.shown.get(tensor)
        if source is None or not (source == ZEROS).any():
            return None, source
        rows = np.append(np.arange(self.count[tensor]), ZEROS)
        return self._gather(tensor, rows, None), np.where(source == ZEROS, len(rows) - 1, source)

    def _to_map(self, tensor: int) -> Gather | None:
        if tensor not in self.shown:
            return None
        shown = self.shown[tensor]  # what nobody reads may be anything
        return self._gather(tensor, np.where(shown == UNREAD, 0, shown), self.sizes[tensor])

    def _gather(self, tensor: int, rows: np.ndarray, size: tuple[int, int] | None) -> Gather:
        """One object for one gathering, so that all who need it can share it."""
        rows = np.asarray(rows, np.int32)
        key = (tensor, rows.tobytes(), size)
        return self.gathered.setdefault(key, Gather(rows=rows, size=size))

    def _step(self, node: Node, **fields) -> None:
        if any(fields.get("gathers", ())) or set(fields) != {"gathers"}:
            self.steps[node.name] = Step(**fields)


def _distinct(table: np.ndarray, slots: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The first of each kind of line in a table, in order, and the slots led over to those."""
    _, first, kind = np.unique(table, axis=0, return_index=True, return_inverse=True)
    order = np.argsort(first)
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    return first[order], place[kind.reshape(-1)][slots]
