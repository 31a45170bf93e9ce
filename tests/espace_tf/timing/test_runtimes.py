"""Every runtime computes what the model does; users' own are called as they are documented."""

import doctest
import importlib.util

import keras
import numpy as np
import pytest
import tensorflow as tf

import espace_tf
from espace_tf.config import RUNTIMES, EspaceConfig
from espace_tf.deploy import comparison
from espace_tf.keras_layers import DecomposedConv2D
from espace_tf.records.analysis import Analysis
from espace_tf.records.plan import Plan
from espace_tf.timing import runtimes

SEED = 5


def network():
    keras.utils.set_random_seed(0)
    layers = [keras.Input((6, 6, 3)), keras.layers.Conv2D(4, 3, activation="relu")]
    return keras.Sequential([*layers, keras.layers.GlobalAveragePooling2D()])


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_runner_computes_what_the_model_does(runtime):
    model = network()
    arrays = comparison.noise(model, 2)
    run, outputs = runtimes.runner(model, arrays, runtime, None if runtime == "tf" else 1)
    run()
    atol = 2e-2 if runtime == "litert-int8" else 1e-5
    np.testing.assert_allclose(outputs()[0], model(arrays[0]), atol=atol)


def test_noise_needs_a_known_size_and_is_the_same_every_time():
    model = network()
    np.testing.assert_array_equal(comparison.noise(model, 3)[0], comparison.noise(model, 3)[0])
    assert comparison.noise(model, 3)[0].shape == (3, 6, 6, 3)
    anysize = keras.Sequential([keras.Input((None, None, 3)), keras.layers.Conv2D(4, 3)])
    with pytest.raises(ValueError, match="takes any size"):
        comparison.noise(anysize, 1)


def test_threads_are_refused_once_tensorflow_computes():
    tf.constant(1.0) + 1.0
    with pytest.raises(ValueError, match="threads=77 must be set before"):
        runtimes.set_threads(77)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_single_layer_runs_everywhere(runtime):
    options = {"rank": 3, "padding": "same", "positions": range(0, 36, 2), "activation": "relu"}
    layer = DecomposedConv2D(8, 3, **options)
    assert runtimes.find(runtime).layer(layer, (2, 6, 6, 4), None)() is None
    runtimes.nothing(runtime, None)()


@pytest.mark.parametrize(
    ("runtime", "package", "extra"),
    [("onnxruntime", "tf2onnx", "onnx"), ("openvino", "openvino", "openvino")],
)
def test_what_is_not_installed_is_named_with_its_extra(runtime, package, extra, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == package else find(name)
    )
    with pytest.raises(ImportError, match=rf"{package} must be .*install 'espace_tf\[{extra}\]'"):
        espace_tf.benchmark(network(), runtime=runtime)


class Slow:
    """A runtime that runs in NumPy's time: what it was asked is written down."""

    name = "the slow one"

    def __init__(self):
        self.asked = []

    def prepare(self, model, inputs, threads):
        self.asked.append((model, [array.shape for array in inputs], threads))
        return model, inputs

    def run(self, prepared):
        model, inputs = prepared
        return 1e-3 * sum(layer.count_params() for layer in model.layers)

    def outputs(self, prepared):
        model, inputs = prepared
        return [model(*inputs)]


def convolutions():
    keras.utils.set_random_seed(SEED)
    layers = [keras.layers.Conv2D(12, 3, padding="same", activation="relu") for _ in range(3)]
    return keras.Sequential([keras.Input((12, 12, 3)), *layers, keras.layers.Flatten()])


def test_every_name_has_a_runtime():
    assert list(runtimes.RUNTIMES) == list(RUNTIMES)


def test_a_network_is_compressed_for_a_users_runtime():
    slow, model = Slow(), convolutions()
    config = EspaceConfig(runtime=slow, batch_size=2, threads=3, mask_families=(), rounds=2)
    small = espace_tf.compress(model, speedup=2, config=config, verbose=0)
    before, after = model.count_params(), small.count_params()
    assert small.espace_plan.measured_speedup == pytest.approx(before / after, rel=1e-6)
    assert 1.8 < before / after < 2.2
    assert {threads for *_, threads in slow.asked} == {3}
    assert [(2, 12, 12, 3)] in [shapes for _, shapes, _ in slow.asked]
    assert [(2, 12, 12, 12)] in [shapes for _, shapes, _ in slow.asked]


def test_benchmark_times_and_compares_on_a_users_runtime():
    model = convolutions()
    small = espace_tf.apply(model, Plan.uniform(model, rank_ratio=0.4))
    first, second = espace_tf.benchmark(model, small, runtime=Slow(), repeats=2)
    assert second.speedup == pytest.approx(model.count_params() / small.count_params())
    assert second.max_difference > 0


def test_an_analysis_for_a_users_runtime_is_saved_with_its_name(tmp_path):
    config = EspaceConfig(runtime=Slow(), cache_dir=tmp_path / "cache", mask_families=())
    found = espace_tf.analyze(convolutions(), config=config, verbose=0)
    found.save(tmp_path / "a.json")
    loaded = Analysis.load(tmp_path / "a.json")
    assert not list((tmp_path / "cache").rglob("*.npz"))  # of whose times nobody knows
    assert loaded.config.runtime.name == "the slow one"
    assert espace_tf.plan(loaded, speedup=1.5).layers
    with pytest.raises(ValueError, match="'the slow one' was an object in the process that saved"):
        loaded.config.runtime.prepare(None, [], None)


class Halves:
    """Lacks a method."""

    prepare = run = print


@pytest.mark.parametrize("wrong", [Halves(), Halves, Slow, None, "TF"])
def test_what_is_no_runtime_is_refused(wrong):
    with pytest.raises(ValueError, match="runtime must be one of tf, .* prepare, run, outputs"):
        EspaceConfig(runtime=wrong)


def test_the_documented_runtime_works():
    model = convolutions()
    small = espace_tf.apply(model, Plan.uniform(model, rank_ratio=0.4))
    examples = doctest.DocTestParser().get_examples(runtimes.Runtime.__doc__)
    names = {"tf": tf, "espace_tf": espace_tf, "model": model, "small": small}
    for example in examples[:2]:
        exec(compile(example.source, "example", "single"), names)
    first, second = names["rows"]
    assert first.speedup == 1 and 0 < second.max_difference < 1


def test_steps_are_timed_on_the_threads_that_the_runtime_takes():
    known = {name: runtimes.find(name).step_threads(None) for name in RUNTIMES}
    assert known == {**dict.fromkeys(RUNTIMES), "tf": 0, "litert-fused": 1}
    assert runtimes.find("litert-fused").step_threads(100_000) is None
    with pytest.raises(ValueError, match="threads=77 must be set before"):
        runtimes.find("tf").step_threads(77)
