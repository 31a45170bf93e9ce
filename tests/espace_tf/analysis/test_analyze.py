"""What analyze times of networks whose compressed forms run in fused graphs, and of others."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from espace_tf import kernels
from espace_tf.analysis import analyze as analyzing
from espace_tf.analysis import offers
from espace_tf.analysis.analyze import analyze
from espace_tf.config import EspaceConfig
from espace_tf.deploy import comparison
from espace_tf.kernels.loader import operations_now
from espace_tf.records.option import Option
from espace_tf.timing import measure
from espace_tf.timing import steps as step_times

NATIVE = pytest.mark.skipif(operations_now() is None, reason="no native operations")
LAYERS = keras.layers


def network(activations=("relu", "relu", "relu"), policy="float32"):
    options = {"padding": "same", "dtype": policy}
    x = image = keras.Input((12, 12, 3))
    for name, activation in zip("abc", activations, strict=True):
        x = LAYERS.Conv2D(8, 3, activation=activation, name=name, **options)(x)
    x = LAYERS.DepthwiseConv2D(3, name="depthwise", dtype=policy)(x)
    return keras.Model(image, LAYERS.Dense(2)(LAYERS.GlobalAveragePooling2D()(x)))


def timed(monkeypatch, model, times=(5.0, 4.0, 3.0), config=None):
    """An analysis in which every option takes what is said here, and what was asked for it."""
    asked = []

    def options(site, *_):
        fused = _[-1]
        asked.append((site.site.path, fused))
        found = [Option(ms=1.0, macs=2), Option(rank=2, ms=0.5, macs=1)]
        return {"options": np.array(analyzing.json.dumps([vars(each) for each in found]))}

    def networks(plain, fused, inside, config):
        asked.append((sorted(inside), config))
        return times

    monkeypatch.setenv("ESPACE_TF_CACHE", "off")
    monkeypatch.setattr(analyzing, "_timed", options)
    monkeypatch.setattr(step_times, "network_times", networks)
    monkeypatch.setattr(measure, "alternate", lambda *_, **settings: [7.0])
    return analyze(model, None, config=config or EspaceConfig(), verbose=0), asked


@NATIVE
def test_convolutions_in_fused_graphs_are_timed_as_steps(monkeypatch):
    found, asked = timed(monkeypatch, network())
    assert asked == [("a", True), ("b", True), ("c", True), (["a", "b", "c"], EspaceConfig())]
    assert (found.model_ms, found.fused_ms, found.other_ms) == (5.0, 4.0, 3.0)


@NATIVE
def test_the_delegates_kernels_are_timed_as_steps_where_tensorflow_has_its_threads(monkeypatch):
    config = EspaceConfig(runtime="litert-fused")
    _, asked = timed(monkeypatch, network(), config=config)
    assert asked == [("a", True), ("b", True), ("c", True), (["a", "b", "c"], config)]
    # TensorFlow keeps the threads it has, whatever another runtime is to use.
    before = tf.config.threading.get_intra_op_parallelism_threads()
    config = EspaceConfig(runtime="litert-fused", threads=before + 3)
    _, asked = timed(monkeypatch, network(), config=config)
    assert asked == [("a", False), ("b", False), ("c", False)]
    assert tf.config.threading.get_intra_op_parallelism_threads() == before


@NATIVE
def test_the_delegates_network_is_timed_as_the_delegate_runs_it():
    config = EspaceConfig(runtime="litert-fused", keeps=(0.5,), mask_families=("rows",))
    found = analyze(network(), None, config=config, verbose=0)
    assert found.model_ms > 0 and found.fused_ms > 0 and found.other_ms >= 0
    assert all(option.ms > 0 for site in found.sites.values() for option in site.options)


@NATIVE
def test_a_convolution_that_stays_outside_is_no_part_of_the_rest(monkeypatch):
    found, asked = timed(monkeypatch, network(("relu", "softplus", "relu")))
    assert asked[:3] == [("a", True), ("b", False), ("c", True)]
    assert asked[3][0] == ["a", "c"]
    # Of the 3 ms that are not in the graphs' convolutions, 1 is in the one outside.
    assert (found.fused_ms, found.other_ms) == (4.0, 2.0)
    found, _ = timed(monkeypatch, network(("relu", "softplus", "relu")), times=(5.0, 4.0, 0.5))
    assert found.other_ms == 0.0


@pytest.mark.parametrize("change", ["policy", "runtime", "binary"])
def test_what_does_not_run_in_fused_graphs_is_timed_as_before(change, monkeypatch):
    model = network(policy="mixed_bfloat16" if change == "policy" else "float32")
    config = EspaceConfig(runtime="litert" if change == "runtime" else "tf")
    if change == "binary":
        monkeypatch.setattr(analyzing, "operations_now", lambda: None)
    found, asked = timed(monkeypatch, model, config=config)
    assert asked == [("a", False), ("b", False), ("c", False)]
    assert (found.model_ms, found.fused_ms, found.other_ms) == (7.0, None, None)


@NATIVE
def test_layers_left_alone_are_part_of_the_rest(monkeypatch):
    config = EspaceConfig(exclude=["b"])
    _, asked = timed(monkeypatch, network(), config=config)
    assert asked[-1][0] == ["a", "c"]


def test_without_a_binary_an_analysis_has_times_of_single_layers(monkeypatch):
    monkeypatch.setattr(offers, "_SECONDS", 0.0)
    monkeypatch.setattr(
        offers, "step_times", lambda *_, **__: pytest.fail("there is nothing that could run steps")
    )
    config = EspaceConfig(keeps=(0.5,), mask_families=("rows",), include="a")
    with kernels.plain():
        found = analyze(network(), None, config=config, verbose=0)
    assert found.fused_ms is None and found.model_ms > 0
    assert all(option.ms > 0 for option in found.sites["a"].options)


def network_of_any_size():
    """Maps of known size after a Resizing."""
    inputs = keras.Input((None, None, 2))
    x = keras.layers.Resizing(12, 12)(inputs)
    x = keras.layers.Conv2D(8, 3, padding="same", activation="relu")(x)
    x = keras.layers.Conv2D(8, 3, padding="same", activation="relu")(x)
    return keras.Model(inputs, keras.layers.Dense(3)(keras.layers.GlobalMaxPooling2D()(x)))


@pytest.mark.parametrize("runtime", ["tf", "litert"])
def test_where_a_size_is_open_that_of_the_data_is_timed(runtime, monkeypatch):
    seen, noise = [], comparison.noise

    def watched(model, batch_size, size=None):
        seen.append(size)
        return noise(model, batch_size, size)

    monkeypatch.setattr(comparison, "noise", watched)
    config = EspaceConfig(
        runtime=runtime, keeps=(), mask_families=(), calibration_images=8, damage_images=4
    )
    images = np.random.default_rng(0).random((8, 20, 30, 2), np.float32)
    found = analyze(network_of_any_size(), images, config=config, verbose=0)
    assert found.config.input_size == (20, 30)
    assert (20, 30) in seen
    assert found.model_ms > 0


def test_where_a_size_is_open_without_data_one_is_asked_for():
    with pytest.raises(ValueError, match=r"config must have an input_size, \(H, W\)"):
        analyze(network_of_any_size(), verbose=0)
