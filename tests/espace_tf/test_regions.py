"""Packed regions on descriptions of graphs: what is decided, and that no value changes."""

import math

import numpy as np
import pytest

from espace_tf import masks
from espace_tf.keras_layers.packing import UNREAD, ZEROS
from espace_tf.kernels.index_map import Geometry, conv_table, nearest_spread
from espace_tf.regions import LARGEST_SHARE, Node, positions_read, regions


class Network:
    """Nodes by name, tensors by the name of the node that makes them; "x" is the input."""

    def __init__(self, size=(8, 8)):
        self.numbers, self.sizes, self.nodes = {"x": 0}, {0: size}, []

    def add(self, name, kind, *inputs, size=None, **fields):
        first = self.sizes[self.numbers[inputs[0]]]
        if fields.get("geometry"):
            fields["geometry"] = Geometry(input_size=first, **fields["geometry"])
            size = fields["geometry"].output_size
        number = self.numbers[name] = len(self.numbers)
        self.sizes[number] = None if kind == "global" else size or first
        numbers = tuple(self.numbers[each] for each in inputs)
        self.nodes.append(Node(name=name, kind=kind, inputs=numbers, outputs=(number,), **fields))
        return self

    def conv(self, name, before, keep=None, mask="grid", size=3, stride=1, seed=None):
        geometry = {"kernel_size": (size, size), "strides": (stride, stride), "padding": "same"}
        shape = tuple(-(-length // stride) for length in self.sizes[self.numbers[before]])
        positions = None if keep is None else masks.kept(mask, shape, keep)
        if seed is not None:
            rows = math.prod(shape)
            random = np.random.default_rng(seed)
            positions = np.sort(random.choice(rows, int(keep * rows), replace=False))
        return self.add(name, "conv", before, geometry=geometry, positions=positions)

    def pool(self, name, before, kind="max", stride=1):
        geometry = {"kernel_size": (3, 3), "strides": (stride, stride), "padding": "same"}
        return self.add(name, kind, before, geometry=geometry)

    def steps(self, *outputs):
        return regions(self.nodes, self.sizes, [self.numbers[each] for each in outputs])

    def read(self, *outputs):
        found = positions_read(self.nodes, self.sizes, [self.numbers[each] for each in outputs])
        return {name: found.get(number) for name, number in self.numbers.items()}


def residual(keep=0.5, seed=None):
    net = Network().conv("a", "x", keep, seed=seed).add("relu", "pointwise", "a")
    net.conv("b", "relu", keep, seed=seed and seed + 1)
    net.add("add", "pointwise", "a", "b").conv("c", "add", keep, seed=seed and seed + 2)
    return net.add("end", "pointwise", "c", "add").add("mean", "global", "end")


def inception(keep=0.5, seed=None):
    net = Network().conv("stem", "x", keep, seed=seed).pool("pool1", "stem")
    net.conv("one", "pool1", keep, size=1, seed=seed and seed + 1)
    net.add("reduce", "mixing", "pool1").conv("three", "reduce", keep, seed=seed and seed + 2)
    net.pool("pool2", "pool1", "average")
    net.conv("proj", "pool2", keep, size=1, seed=seed and seed + 3)
    net.add("concat", "pointwise", "one", "three", "proj")
    return net.add("flat", "opaque", "concat")


def segmentation(keep=0.5, seed=None):
    net = Network().conv("a", "x", keep, seed=seed).pool("down", "a", stride=2)
    padded = np.pad(np.arange(16).reshape(4, 4), 1, constant_values=-1).ravel()
    net.add("pad", "moved", "down", size=(6, 6), moved=padded)
    geometry = {"kernel_size": (3, 3)}
    net.add("b", "conv", "pad", geometry=geometry, positions=np.array([0, 3, 5, 6, 10, 12]))
    twice = np.arange(16).reshape(4, 4).repeat(2, 0).repeat(2, 1).ravel()
    net.add("up", "moved", "b", size=(8, 8), moved=twice)
    net.conv("c", "up", keep, seed=seed and seed + 1)
    net.add("both", "pointwise", "c", "a").add("head", "mixing", "both")
    return net.add("resize", "opaque", "head")


def padded(keep=0.5, seed=None):
    net = Network().conv("a", "x", keep, seed=seed)
    around = np.pad(np.arange(64).reshape(8, 8), 1, constant_values=-1).ravel()
    net.add("pad", "moved", "a", size=(10, 10), moved=around)
    net.add("b", "conv", "pad", geometry={"kernel_size": (3, 3)}, positions=np.arange(0, 64, 3))
    net.add("pool", "max", "pad", geometry={"kernel_size": (3, 3)})
    net.add("crop", "moved", "pad", size=(8, 8), moved=np.flatnonzero(around >= 0))
    net.add("relu", "pointwise", "pad").add("mean", "global", "relu")
    return net.add("sum", "pointwise", "b", "pool", "crop").add("end", "opaque", "sum", "mean")


NETWORKS = {
    "residual": residual,
    "inception": inception,
    "segmentation": segmentation,
    "padded": padded,
}


def run(net, x, steps):
    """Every tensor, as maps [H * W] or packed rows; weights by the node's name, one channel."""
    values = {0: x}

    def before(node):
        given = [values[tensor] for tensor in node.inputs]
        gathers = steps[node.name].gathers if node.name in steps else ()
        for index, gather in enumerate(gathers):
            if gather is not None:
                rows = np.append(given[index], 0.0)  # the last one is what -1 reads
                given[index] = rows[gather.rows]
        return given

    for node in net.nodes:
        step, given = steps.get(node.name), before(node)
        values[node.outputs[0]] = compute(node, step, given)
    return {name: values[number] for name, number in net.numbers.items()}


def window(node, step, rows):
    """[Q, taps] that a convolution or pooling reads, NaN where nothing, and what it spreads."""
    if step is None or (step.packing is None and step.table is None):
        positions = node.positions
        table, spread = conv_table(node.geometry, positions), None
        if positions is not None:
            spread = nearest_spread(node.geometry.output_size, positions)
    elif step.packing is not None:
        table, spread = conv_table(node.geometry, step.packing.computed), step.packing.spread
        if step.packing.source is not None:
            table = np.where(table < 0, ZEROS, step.packing.source[table])
    else:
        table, spread = step.table, step.spread
    assert table.min() > UNREAD
    return np.append(rows, np.nan)[table], spread


def compute(node, step, given):
    if node.kind in ("conv", "max", "average"):
        cells, spread = window(node, step, given[0])
        if node.kind == "conv":
            random = np.random.default_rng(sum(map(ord, node.name)))
            found = np.nan_to_num(cells) @ random.normal(size=cells.shape[1])
        else:
            found = np.nanmax(cells, 1) if node.kind == "max" else np.nanmean(cells, 1)
        return found if spread is None else found[spread]
    if node.kind == "moved":
        same = step is not None and step.moved
        return given[0] if same else np.append(given[0], 0.0)[node.moved]
    if node.kind == "global":
        if step is None:
            return given[0].mean()
        return np.append(given[0], 0.0)[step.shown].mean()
    if node.kind == "opaque":
        return sum(given)
    return np.tanh(sum(given) + 0.3)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("keep", [0.2, 0.5, 0.8])
@pytest.mark.parametrize("seed", [None, 1, 2, 3])
def test_no_output_changes(name, keep, seed):
    net = NETWORKS[name](keep, seed)
    x = np.random.default_rng(seed).normal(size=64)
    end = net.nodes[-1].name
    steps = net.steps(end)
    wanted, found = run(net, x, {}), run(net, x, steps)
    np.testing.assert_allclose(found[end], wanted[end], atol=1e-12, err_msg=f"{name}, {seed=}")
    assert steps, "nothing was packed"


def test_one_mask_keeps_a_residual_stage_packed_to_its_end():
    steps = residual(0.5).steps("mean")
    kept = len(masks.kept("grid", (8, 8), 0.5))
    for name in "abc":
        assert len(steps[name].packing.computed) == kept
        assert steps[name].packing.spread is None
    assert steps["a"].packing.source is None and steps["b"].packing.source is not None
    assert set(steps) == {"a", "b", "c", "mean"}  # additions of like rows need no gathering
    assert np.bincount(steps["mean"].shown).sum() == 64


def test_branches_of_different_masks_go_over_to_the_pairs_that_occur():
    net = Network().conv("a", "x", 0.25, seed=1).conv("b", "x", 0.25, seed=2)
    net.add("add", "pointwise", "a", "b").add("mean", "global", "add")
    steps = net.steps("mean")
    rows = [gather.rows for gather in steps["add"].gathers]
    pairs = set(zip(*(each.tolist() for each in rows), strict=True))
    assert len(pairs) == len(rows[0]) <= LARGEST_SHARE * 64
    assert all(gather.size is None for gather in steps["add"].gathers)


def test_a_region_ends_where_nearly_all_positions_differ():
    net = Network().conv("a", "x", 0.5, seed=1).add("add", "pointwise", "a", "x")
    steps = net.add("mean", "global", "add").steps("mean")
    (gather, other) = steps["add"].gathers
    assert gather.size == (8, 8) and other is None
    assert "mean" not in steps


def test_a_pooling_computes_what_a_masked_projection_reads():
    steps = inception(0.5).steps("flat")
    assert len(steps["pool2"].table) == len(masks.kept("grid", (8, 8), 0.5))
    assert steps["pool2"].spread is None and steps["proj"].packing.spread is None
    (gather,) = steps["flat"].gathers
    assert gather.size == (8, 8)


def test_a_head_gets_its_map_back():
    steps = segmentation(0.5).steps("resize")
    assert steps["resize"].gathers[0].size == (8, 8)
    assert steps["down"].spread is not None and "pad" not in steps  # its windows all differ
    assert steps["up"].moved
    assert "head" not in steps  # it runs on the rows of what is before it


def test_rows_that_nobody_reads_are_not_computed():
    net = Network().conv("a", "x", 0.5).conv("b", "a", 0.1, mask="rows")
    net.add("relu", "pointwise", "b").add("mean", "global", "relu")
    steps, read = net.steps("mean"), net.read("mean")
    kept = masks.kept("grid", (8, 8), 0.5)
    shown = kept[nearest_spread((8, 8), kept)][read["a"]]
    np.testing.assert_array_equal(steps["a"].packing.computed, np.unique(shown))
    assert len(steps["a"].packing.computed) < len(kept)


def test_what_only_opaque_layers_read_is_spread_where_it_is_computed():
    net = Network().conv("a", "x", 0.5).add("flat", "opaque", "a")
    assert net.steps("flat") == {}
    net = Network().conv("a", "x", 0.5).conv("b", "a", 0.5)
    steps = net.steps("b")
    assert steps["b"].packing.spread is not None and steps["b"].packing.source is not None


def test_a_dear_pointwise_layer_gathers_what_is_read_first():
    net = Network().add("reduce", "mixing", "x").conv("a", "reduce", 0.25, mask="rows", size=1)
    steps = net.add("mean", "global", "a").steps("mean")
    assert len(steps["reduce"].gathers[0].rows) == len(masks.kept("rows", (8, 8), 0.25))
    assert steps["a"].packing.source is not None


def test_unknown_sizes_and_odd_inputs_stay_as_they_are():
    net = Network().conv("a", "x", 0.5)
    net.sizes[9] = (3, 3)
    net.nodes.append(Node(name="odd", kind="pointwise", inputs=(1, 9), outputs=(2,)))
    net.sizes[2] = (8, 8)
    assert regions(net.nodes, net.sizes, [2]) == {}
    net.sizes[1] = None
    assert regions(net.nodes, net.sizes, [2]) == {}
