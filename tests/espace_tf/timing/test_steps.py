"""Convolutions timed as steps of one program: every layer gets the time of its own steps."""

import keras
import numpy as np
import pytest

from espace_tf.config import EspaceConfig
from espace_tf.deploy import comparison
from espace_tf.keras_layers import DecomposedConv2D, FusedGraph, MaskedConv2D
from espace_tf.kernels.loader import operations_now
from espace_tf.network import graph
from espace_tf.rewriting.fuse import fuse
from espace_tf.timing import runtimes
from espace_tf.timing import steps as step_times

NATIVE = pytest.mark.skipif(operations_now() is None, reason="no native operations")


def layers():
    options = {"filters": 8, "kernel_size": 3, "padding": "same"}
    return [
        MaskedConv2D(**options),
        DecomposedConv2D(rank=2, **options),
        MaskedConv2D(positions=[0, 7, 20], **options),
        DecomposedConv2D(rank=3, order="horizontal", positions=[0, 7, 20], **options),
    ]


class Recorded:
    """What alternate is given, called so often, without a clock."""

    def __init__(self, calls, *, repeats, seconds):
        for _ in range(repeats):
            calls[0]()


@NATIVE
def test_the_steps_of_a_layer_add_up_to_its_time(monkeypatch):
    counted = []

    def program(given, shape, threads):
        call, owners = made(given, shape, threads)
        assert call().shape == (len(owners),)
        counted.extend(owners)
        # Step i takes i + 1 ms, in all calls but the first two, which are for warming up.
        times = iter([99.0, 99.0, 1.0, 1.0, 1.0])
        return lambda: next(times) * 1e6 * np.arange(1, len(owners) + 1), owners

    made = step_times._program
    monkeypatch.setattr(step_times, "_program", program)
    monkeypatch.setattr(step_times.measure, "alternate", Recorded)
    monkeypatch.setattr(step_times, "_REPEATS", 5)
    found = step_times.step_times(layers(), (2, 6, 6, 5))
    assert counted == [0, 1, 2, 2, 3, 4, 4, 0]
    np.testing.assert_allclose(found, [2, 3 + 4, 5, 6 + 7])


@NATIVE
@pytest.mark.parametrize("batch", [1, 3, 16])
def test_every_layer_takes_time(batch):
    found = step_times.step_times(layers(), (batch, 6, 6, 5), seconds=0.0)
    assert len(found) == 4
    assert min(found) > 0


def network():
    """Two stretches, the second in a model of its own: a, a pooling and b; then another a."""
    x = image = keras.Input((12, 12, 3))
    x = keras.layers.Conv2D(8, 3, padding="same", name="a")(x)
    x = keras.layers.Conv2D(8, 3, name="b")(keras.layers.MaxPooling2D(2)(x))
    inside = [keras.Input((4, 4, 8)), keras.layers.Conv2D(4, 1, name="a")]
    return keras.Model(image, keras.Sequential(inside, name="in")(x))


@NATIVE
@pytest.mark.parametrize(
    "paths, first, second",
    [(["a", "b", "in/a"], 4, 1), (["b"], 3, 0), (["in/a"], 0, 1), ([], 0, 0)],
)
def test_a_profile_adds_the_steps_of_the_layers_named(paths, first, second, monkeypatch):
    fused = graph.layers(fuse(network()))
    parts = {path: layer for path, layer in fused.items() if isinstance(layer, FusedGraph)}
    assert [layer.step_layers() for layer in parts.values()] == [["a", None, "b"], ["a"]]

    class Operations:
        """Step i of every program takes i + 1 ms."""

        @staticmethod
        def espace_fused_graph(*, inputs, weights, program, outputs, profile, threads):
            assert profile and threads == 1 and outputs == 1 and len(inputs) == 1
            return [inputs[0]], 1e6 * np.arange(1.0, 1 + len(weights) * 3 // 4)

    monkeypatch.setattr(step_times, "operations_now", Operations)
    for (path, layer), ms in zip(parts.items(), (first, second), strict=True):
        prefix = path.removesuffix(layer.name)
        assert prefix == ("in/" if layer is parts["in/fused_a"] else "")
        assert step_times._profile(layer, prefix, paths, 2, 1)() == ms


@NATIVE
def test_whole_networks_get_three_times():
    model = network()
    config = EspaceConfig(batch_size=2)
    call = runtimes.runner(model, comparison.noise(model, 2), "tf")[0]
    plain, fused, other = step_times.network_times(call, fuse(model), ["a", "b"], config)
    assert plain > 0 and 0 <= other < fused
    *_, fused, everything = step_times.network_times(call, fuse(model), [], config)
    assert everything == fused > 0
