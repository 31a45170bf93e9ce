"""Rows of numbers: what they are made of, not how fast this machine is."""

import keras
import numpy as np
import pytest
import tf_keras

from espace_tf.keras_layers import DecomposedConv2D
from espace_tf.timing import measure
from espace_tf.timing.benchmark import _difference, benchmark

SEED = 3
# Quotients of four rounds each.
RUNS = [0.5, 0.5, 0.5, 0.5, 0.625, 0.625, 0.375, 0.375]


def network(library=keras, *, name="dense", rank=None):
    library.utils.set_random_seed(SEED)
    first = (
        library.layers.Conv2D(8, 3, activation="relu")
        if rank is None
        else DecomposedConv2D(8, 3, rank=rank, activation="relu")
    )
    layers = [library.Input((10, 10, 2)), first, library.layers.GlobalMaxPooling2D()]
    return library.Sequential([*layers, library.layers.Dense(3)], name=name)


@pytest.mark.parametrize("runtime", ["tf", "litert"])
def test_rows(runtime):
    dense, small = network(), network(name="small", rank=2)
    rows = benchmark(dense, small, dense, batch_size=2, runtime=runtime, threads=None, repeats=3)
    assert [row.name for row in rows] == ["dense", "small", "dense_1"]
    assert all(row.milliseconds > 0 for row in rows)
    assert rows[0].ratio == 1
    assert rows[1].ratio > 0
    assert [row.parameters for row in rows] == [
        each.count_params() for each in (dense, small, dense)
    ]
    head = 8 * 3
    assert rows[0].macs == 8 * 8 * 3 * 3 * 2 * 8 + head
    assert rows[1].macs == 8 * 10 * 3 * 2 * 2 + 8 * 8 * 3 * 2 * 8 + head
    assert rows[0].max_difference == 0
    assert rows[2].max_difference < 1e-6


def test_the_error_is_that_of_the_ratio(monkeypatch):
    seconds = np.repeat([[2.0, 1.0], [3.0, 1.5], [2.0, 1.25], [2.0, 0.75]], 8, axis=0)
    monkeypatch.setattr(measure, "rounds", lambda runs, repeats: seconds[:repeats])
    first, second = benchmark(network(), network(name="small", rank=2), repeats=32)
    assert (first.error, second.error) == (
        0,
        pytest.approx(2 * np.std(RUNS, ddof=1) / 8**0.5 / 0.5),
    )
    _, second = benchmark(network(), network(name="small", rank=2), repeats=8)
    assert second.error == 0
    assert all(row.error is None for row in benchmark(network(), network(), repeats=1))


def test_difference_is_relative_to_the_first_models_outputs():
    dense = network()
    other = network()
    other.layers[-1].bias.assign([0.5, 0, 0])
    batch = np.random.default_rng(SEED).random((4, 10, 10, 2), np.float32)
    rows = benchmark(dense, other, batch_size=4, inputs=batch, names=("a", "b"), repeats=1)
    expected = 0.5 / np.abs(dense(batch)).max()
    assert rows[1].name == "b"
    assert rows[1].max_difference == pytest.approx(expected, rel=1e-3), f"seed {SEED}"


def test_models_of_both_libraries_and_other_outputs():
    headless = tf_keras.Sequential([tf_keras.Input((10, 10, 2)), tf_keras.layers.Conv2D(1, 3)])
    rows = benchmark(network(), headless, repeats=1)
    assert rows[1].max_difference is None


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"runtime": "onnx"}, "runtime must be one of tf, litert"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"repeats": 0}, "repeats must be at least 1"),
        ({"names": ["a", "b"]}, "names must be 1"),
        (
            {"inputs": np.zeros((2, 10, 10, 2)), "batch_size": 3},
            "at least the 3 examples .* Received: 2",
        ),
    ],
)
def test_arguments_that_make_no_sense(options, words):
    with pytest.raises(ValueError, match=words):
        benchmark(network(), **options)


@pytest.mark.parametrize("runtime", ["tf", "litert"])
@pytest.mark.parametrize("shape", [(9, 9, 2), (7, 5)], ids=["convolution", "dense"])
def test_open_sizes_need_inputs(shape, runtime):
    layers = keras.layers
    layer = layers.Conv2D(1, 3) if len(shape) == 3 else layers.Dense(3)
    model = keras.Sequential([keras.Input((*[None] * (len(shape) - 1), shape[-1])), layer])
    with pytest.raises(ValueError, match="inputs must be given"):
        benchmark(model)
    x = np.zeros((3, *shape), np.float32)
    (row,) = benchmark(model, inputs=x, repeats=1, runtime=runtime)
    assert row.macs is None and row.inputs == "given"
    with pytest.raises(TypeError):
        benchmark("model.keras")


@pytest.mark.parametrize("place", [0, 1])
def test_nan_and_integers_are_not_hidden_in_the_difference(place):
    outputs = [np.ones((2, 3), np.float32), np.array([[1, 200]], np.uint8)]
    assert _difference(outputs, [outputs[0], np.array([[3, 100]], np.uint8)]) == 0.5
    broken = [array.astype(float) for array in outputs]
    broken[place][0, 0] = np.nan
    assert np.isnan(_difference(outputs, broken)) and np.isnan(_difference(broken, outputs))
    assert _difference(outputs, outputs[:1]) is None


def test_ratios_are_of_turns_so_that_phases_of_the_machine_cancel(monkeypatch):
    """Two turns are three times as slow for all: medians of times alone would not say 2."""
    seconds = np.array([[1.0, 0.5], [3.0, 1.5], [1.0, 0.5], [3.0, 1.5], [1.0, 3.0]])
    monkeypatch.setattr(measure, "rounds", lambda calls, repeats: seconds)

    first, second = benchmark(network(), network(name="same"))
    assert (first.ratio, second.ratio) == (1.0, 0.5)
    assert (first.milliseconds, second.milliseconds) == (1000.0, 1500.0)
    assert (first.speedup, second.speedup) == (1.0, 2.0)
