"""Every entry of the table of layers, in a small network, through all that relies on it."""

import keras
import numpy as np
import pytest
import tf_keras
from fuzz_graphs import failure
from random_graphs import MAKERS, Graph, Line, Random

from espace_tf.keras_layers import for_library
from espace_tf.network import costs, graph
from espace_tf.network.activations import activation
from espace_tf.network.layer_rules import RULES, UNKNOWN, kin, rule

SEED = 0
SHAPES = {2: (4,), 3: (9, 4), 4: (7, 6, 4), 5: (3, 4, 5, 4)}
NAMES = sorted(set(RULES) - {"FusedGraph"})  # graphs of FusedGraph are what strip makes of these
LIBRARIES = pytest.mark.parametrize("library", [keras, tf_keras], ids=["keras", "tf_keras"])


def network(name, seed):
    """A convolution, the layer, which another one reads too, batch norm, ReLU, and both shown."""
    rank, make = MAKERS[name]
    shape = SHAPES[rank or 4]
    code = make(Random(seed), shape)
    several = name in ("Add", "Concatenate", "Multiply")
    lines = [
        Line("x0", f"Input({shape})"),
        Line("t1", "layers.Dense(4)({})", ("x0",)),
        Line("t2", code + ("([{}, {}])" if several else "({})"), ("t1", "x0")[: 1 + several]),
        Line("t3", "layers.BatchNormalization()({})", ("t2",)),
        Line("t4", "layers.ReLU()({})", ("t3",)),
        Line("t5", "layers.Dense(3)({})", ("t1",)),
    ]
    if rank in (None, 4):
        lines[1] = Line("t1", "layers.Conv2D(4, 3, padding='same')({})", ("x0",))
        lines[5] = Line("t5", "layers.Conv2D(3, 2)({})", ("t1",))
    return Graph(lines, ["x0"], ["t4", "t5", "t2"])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", NAMES)
def test_a_network_with_the_layer_stays_what_it_is(name):
    made = network(name, SEED)
    found = failure(made, SEED)
    assert not found, f"{found[0]}\n{made.code()}"


@pytest.mark.parametrize("name", [name for name in NAMES if RULES[name].macs])
@pytest.mark.parametrize("seed", range(3))
def test_multiply_accumulates_are_positions_times_kernels(name, seed):
    model = network(name, seed).build(seed)
    layer = next(
        each for each in graph.layers(model).values() if kin(each) is RULES[name] and not_end(each)
    )
    found = costs.layer_macs(model)[layer.name]
    kernels = [np.array(weight) for weight in layer.get_weights() if weight.ndim > 1]
    after, before = layer.output.shape[1:-1], layer.input.shape[1:-1]
    rows = [int(np.prod(before if "Transpose" in name else after))] * len(kernels)
    if name in ("MaskedConv2D", "DecomposedConv2D"):
        rows = [len(each.table) for _, _, each in layer.index_maps(tuple(before))]
        if layer.positions is not None:
            assert rows[-1] == len(layer.positions)
    assert found == sum(count * kernel.size for count, kernel in zip(rows, kernels, strict=True))


def not_end(layer):
    return layer.name not in ("first", "last") and layer._outbound_nodes


@LIBRARIES
def test_exactly_the_classes_of_both_libraries_are_known(library):
    known = {**vars(library.layers), **vars(for_library(library))}
    for name in NAMES:
        own = known.get(name)
        if own is None:
            continue
        made = object.__new__(own)
        assert rule(made) is RULES[name], name
        subclass = type(name, (own,), {"call": lambda self, inputs: inputs})
        assert rule(object.__new__(subclass)) is UNKNOWN
        assert kin(object.__new__(subclass)) is RULES[name]
    namesake = type("Conv2D", (library.layers.Layer,), {})
    assert rule(namesake()) is kin(namesake()) is UNKNOWN


@LIBRARIES
def test_activations_are_known_by_what_they_are(library):
    layers = library.layers

    def relu(x):
        return x

    for wanted, made in (
        ("none", layers.Conv2D(1, 1)),
        ("none", layers.Activation("linear")),
        ("relu", layers.Dense(1, activation="relu")),
        ("relu", layers.ReLU()),
        ("relu6", layers.ReLU(6)),
        ("relu6", layers.Activation("relu6")),
        (None, layers.ReLU(5)),
        ("leaky_relu", layers.ReLU(negative_slope=0.1)),
        (None, layers.ReLU(6, negative_slope=0.1)),
        ("leaky_relu", layers.PReLU()),
        ("elu", layers.ELU(0.5)),
        ("softmax", layers.Softmax()),
        (None, layers.Softmax(axis=1)),
        (None, layers.ReLU(threshold=1.0)),
        (None, layers.Activation(relu)),
        (None, layers.Conv2D(1, 1, activation="softplus")),
        ("silu" if library is keras else None, layers.Conv2D(1, 1, activation="swish")),
    ):
        assert activation(made) == wanted
