"""Bad input of every kind to every public function: refused in words, before any work."""

import functools
import importlib.util

import keras
import numpy as np
import pytest
import tensorflow as tf

import espace_tf
from espace_tf.analysis import analyze as analyzing
from espace_tf.deploy import inference
from espace_tf.numerics.factors import plain_factors
from espace_tf.records.layer_plan import LayerPlan
from espace_tf.records.plan import Plan
from espace_tf.timing import measure
from espace_tf.timing.benchmark import Row

SEED = 14
CONFIG = espace_tf.EspaceConfig(
    keeps=(0.5,), mask_families=("grid",), calibration_images=24, damage_images=8
)


@functools.cache
def network() -> keras.Model:
    keras.utils.set_random_seed(SEED)
    inputs = keras.Input((10, 10, 2))
    x = keras.layers.Conv2D(4, 3, name="conv")(inputs)
    return keras.Model(inputs, keras.layers.Dense(3)(keras.layers.GlobalMaxPooling2D()(x)))


def other() -> keras.Model:
    return keras.Sequential([keras.Input((5,)), keras.layers.Dense(2)])


X = np.random.default_rng(SEED).random((24, 10, 10, 2), np.float32)
Y = np.random.default_rng(SEED).integers(0, 3, 24)
LATE = np.where(np.arange(24) < 20, Y, 9)
HUGE = (X * 3.4e38).astype(np.float32)
RAGGED = tf.ragged.constant([[1.0], [2.0, 3.0]])
LITERT = espace_tf.EspaceConfig(runtime="litert")
ANALYSIS = espace_tf.Analysis(fingerprint="f", config=CONFIG, sites={})


def analyze(data, **options):
    return espace_tf.analyze(network(), data, **{"config": CONFIG, "verbose": 0, **options})


def benchmark(*models, **options):
    return espace_tf.benchmark(network(), *models, repeats=1, **options)


def tune(data, **options):
    return espace_tf.fine_tune(keras.models.clone_model(network()), data, verbose=0, **options)


def applied(**layers):
    return espace_tf.apply(network(), Plan(layers=layers))


def one_plan(**options):
    return espace_tf.plan(ANALYSIS, **{"speedup": 2, **options})


@functools.cache
def stripped() -> keras.Model:
    return espace_tf.strip(applied(conv=LayerPlan(rank=1)))


CASES = {
    "config": (lambda: analyze(X, config=3), "config must be an EspaceConfig or None. Received: 3"),
    "verbose": (lambda: analyze(X, verbose="a"), "verbose must be one of 0, 1, 2"),
    "loss": (lambda: analyze((X, Y), loss="zzz"), "loss must be as in compile.*Received: 'zzz'"),
    "loss 3": (lambda: analyze((X, Y), loss=3), "loss must be as in compile.*Received: 3"),
    "ragged": (lambda: analyze(RAGGED), "data must be dense"),
    "sparse": (lambda: analyze(tf.sparse.from_dense(X)), "data must be dense"),
    "ragged batches": (
        lambda: analyze(tf.data.Dataset.from_tensors(RAGGED)),
        "dataset of dense tensors",
    ),
    "late label": (
        lambda: analyze(tf.data.Dataset.from_tensor_slices((X, LATE)).batch(5)),
        r"labels do not go with .* in batch 2: Received a label value of 9 .*\[0, 3\)",
    ),
    "late NaN": (lambda: analyze(np.concatenate([X[:17], X[:7] * np.nan])), "NaN or infinite"),
    "too large": (lambda: analyze((HUGE, Y)), "first batch must be finite.*inputs are such"),
    "too large for float32": (lambda: analyze(X.astype(float) * 1e300), "too large for float32"),
    "complex": (lambda: analyze(X.astype(complex)), "must be real numbers.*complex128"),
    "dates": (lambda: analyze(np.zeros(X.shape, "datetime64[s]")), "real numbers.*datetime64"),
    "uneven batches": (
        lambda: analyze(
            tf.data.Dataset.from_generator(
                lambda: iter([X[:3], X[:3, :5]]),
                output_signature=tf.TensorSpec((None, None, None, 2)),
            )
        ),
        r"must fit the model.*\(3, 5, ",
    ),
    "speed": (lambda: one_plan(speedup=10**400), "speedup must be a finite number above 1"),
    "previous": (lambda: one_plan(previous=3), "previous must be a Plan or None. Received: 3"),
    "scales": (lambda: one_plan(time_scale=[1]), "time_scale must be a dictionary"),
    "scale of another layer": (
        lambda: one_plan(time_scale={"zzz": 1.0}),
        "time_scale must name layers .* Received: 'zzz'",
    ),
    "stripped, fine_tune": (
        lambda: espace_tf.fine_tune(stripped(), (X, Y), verbose=0),
        "fused graph .*; train or compress the model that strip was given",
    ),
    "stripped, compress": (
        lambda: espace_tf.compress(stripped(), (X, Y), speedup=2),
        "fused graph .*; train or compress the model that strip was given",
    ),
    "stripped, analyze": (
        lambda: espace_tf.analyze(stripped(), (X, Y)),
        "fused graph .*; train or compress the model that strip was given",
    ),
    "path 3": (lambda: applied(**{"a": 3}), r"layers\['a'\] must be a LayerPlan"),
    "number as path": (lambda: Plan(layers={3: LayerPlan(rank=1)}), "a layer path must be a text"),
    "rank": (lambda: applied(conv=LayerPlan(rank=99)), "the rank 99; the largest"),
    "position": (lambda: applied(conv=LayerPlan(positions=[99])), "position 99 of 'conv'"),
    "name": (lambda: applied(cnv=LayerPlan(rank=1)), "did you mean conv"),
    "factors": (
        lambda: applied(conv=LayerPlan(rank=2, factors=plain_factors(np.ones((5, 5, 7, 8)), 2))),
        "weights of layer 'conv' must have the shapes",
    ),
    "strip": (lambda: espace_tf.strip(Plan()), "model must be a keras.Model"),
    "inputs": (lambda: benchmark(inputs="abc"), "inputs must be a tf.data"),
    "inputs of objects": (
        lambda: benchmark(inputs=X[:1].astype(object)),
        "inputs's arrays .*dtype object",
    ),
    "inputs NaN": (lambda: benchmark(inputs=X[:1] * np.nan), "inputs holds NaN"),
    "inputs of fewer": (
        lambda: benchmark(inputs=X[:2], batch_size=3),
        "inputs must hold at least the 3 examples that batch_size says. Received: 2",
    ),
    "names 3": (lambda: benchmark(names=[3]), "a name must be a text. Received: 3"),
    "names of names": (lambda: benchmark(names=[["a"]]), r"a name must be a text. .*\['a'\]"),
    "a list of images and labels": (
        lambda: espace_tf.compress(network(), [X, Y], speedup=2),
        r"data must .* go into a tuple, \(x, y\)",
    ),
    "a dictionary of another model": (
        lambda: espace_tf.compress(network(), {"picture": X}, speedup=2),
        "data's dictionary of inputs must have the keys .*Received: 'picture'",
    ),
    "representative data": (
        lambda: espace_tf.export_tflite(network(), "a.tflite", representative_data=X * np.nan),
        "representative_data holds NaN",
    ),
    "threads": (lambda: benchmark(threads=0), "threads must be at least 1"),
    "threads a": (lambda: benchmark(threads="a"), "threads must be an integer. Received: 'a'"),
    "names": (lambda: benchmark(names="a"), "names must be a list of texts. Received: 'a'"),
    "models": (lambda: benchmark(other()), "models must take the same inputs"),
    "not built": (
        lambda: espace_tf.benchmark(keras.Sequential([keras.layers.Dense(2)])),
        "has no known inputs",
    ),
    "not built, stripped": (
        lambda: espace_tf.strip(keras.Sequential([keras.layers.Conv2D(2, 3)])),
        "has no known inputs: call it on data",
    ),
    "accuracy": (lambda: espace_tf.report(Plan(), "a.html", accuracy=3), "accuracy must be"),
    "accuracy x": (
        lambda: espace_tf.report(Plan(), "a.html", accuracy={"after": "x"}),
        "accuracy must be .*'x'",
    ),
    "report": (lambda: espace_tf.report(Plan(), "a.keras"), r"path must end in .\.html.*a\.keras"),
    "batches 0": (
        lambda: espace_tf.callbacks.ReestimateBatchNorm(X, batches=0),
        "batches must be at least 1. Received: 0",
    ),
    "rows": (lambda: espace_tf.report(Plan(), "a.html", rows=[1]), "rows must be what benchmark"),
    "rows 3": (lambda: espace_tf.report(Plan(), "a.html", rows=3), "rows must be what benchmark"),
    "analysis": (lambda: espace_tf.report(Plan(), "a.html", analysis="x"), "analysis must be an A"),
    "weights NaN": (lambda: tune((X, Y, np.full(24, np.nan))), "weights must be finite and >= 0"),
    "weights < 0": (lambda: tune((X, Y, np.full(24, -1.0))), "weights must be finite and >= 0"),
    "weights count": (lambda: tune((X, Y, np.ones(5))), r"one for each of the 24 .*\(5,\)"),
    "weights text": (lambda: tune((X, Y, np.full(24, "a"))), "sample weights must be real numbers"),
    "batches": (
        lambda: espace_tf.reestimate_batch_norm(network(), X, batches="a"),
        "batches must be an integer",
    ),
    "folder": (lambda: espace_tf.Analysis.load("."), "there is no analysis at"),
}


@pytest.mark.parametrize(("call", "words"), CASES.values(), ids=list(CASES))
def test_is_refused_in_words(call, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((TypeError, ValueError, OSError), match=words):
        call()
    assert list(tmp_path.iterdir()) == []


GRAPH = {
    "compress": lambda: espace_tf.compress(network(), X, speedup=2),
    "apply": lambda: espace_tf.apply(network(), Plan()),
    "strip": lambda: espace_tf.strip(network()),
    "fine_tune": lambda: tune((X, Y)),
    "reconstruct": lambda: espace_tf.reconstruct(network(), X, teacher=other()),
    "benchmark": lambda: benchmark(),
    "export_tflite": lambda: espace_tf.export_tflite(network(), "a.tflite"),
    "export_saved_model": lambda: espace_tf.export_saved_model(network(), "saved"),
}


@pytest.mark.parametrize("call", GRAPH.values(), ids=list(GRAPH))
def test_graph_mode_is_refused_in_words(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    network()
    # What tf.compat.v1.disable_eager_execution() and tf.function leave one in.
    with tf.Graph().as_default(), pytest.raises(RuntimeError, match="only .* in eager execution"):
        call()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "call",
    [
        lambda: espace_tf.export_tflite(network(), "a.tflite"),
        lambda: benchmark(runtime="litert"),
        lambda: espace_tf.analyze(network(), X, config=LITERT),
        lambda: espace_tf.compress(network(), X, speedup=2, config=LITERT),
        lambda: espace_tf.sweep(network(), X, speedups=[2], config=LITERT),
        lambda: espace_tf.compress_in_stages(network(), (X, Y), speedup=2, config=LITERT),
    ],
    ids=["export_tflite", "benchmark", "analyze", "compress", "sweep", "stages"],
)
def test_a_runtime_that_is_not_installed_is_missed_before_any_work(call, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("work began")

    def found(name, *rest, find=importlib.util.find_spec):
        return None if name == "ai_edge_litert" else find(name, *rest)

    monkeypatch.setattr(importlib.util, "find_spec", found)
    for module, name in ((analyzing, "run"), (inference, "strip"), (measure, "rounds")):
        monkeypatch.setattr(module, name, refuse)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ImportError, match=r"ai_edge_litert must be installed.*espace_tf\[litert"):
        call()
    assert list(tmp_path.iterdir()) == []


def test_examples_that_overflow_make_no_file(tmp_path):
    """They crashed or confused the converter, which takes a range for what it is."""
    for examples in (HUGE, X.astype(float) * 1e300):
        with pytest.raises(ValueError, match="finite outputs|too large"):
            espace_tf.export_tflite(
                network(), tmp_path / "a.tflite", quantize="int8", representative_data=examples
            )
    assert list(tmp_path.iterdir()) == []


def test_good_input_in_other_forms_passes(tmp_path):
    rows = [Row("a", 1.0, 1.0, 1, 1, 0.0), Row("b", 0.5, 0.5, 1, 1, 0.0)]
    espace_tf.report(Plan(), tmp_path / "a.html", rows=tuple(rows), accuracy={"before": 1})
    for inputs in ([X[:2]], X[:2].astype("float64"), (X[:2] * 255).astype("uint8")):
        (row,) = benchmark(inputs=inputs, batch_size=2)
        assert row.max_difference == 0
    history = tune((X, Y, np.ones(24, int)), batch_size=24).history
    assert np.isfinite(history["loss"]).all()
