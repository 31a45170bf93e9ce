"""Fused models against what they were made of: their programs, and the native operation."""

import dataclasses
import os
import subprocess
import sys
import threading
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from fused_models import SIDE, check_programs, conv, images, randomized, same, stretches

from espace_tf import kernels, zoo
from espace_tf.deploy.export_saved_model import export_saved_model
from espace_tf.deploy.export_tflite import export_tflite
from espace_tf.keras_layers import DecomposedConv2D, MaskedConv2D
from espace_tf.network import costs
from espace_tf.records.plan import Plan
from espace_tf.rewriting.apply import apply
from espace_tf.rewriting.fuse import fuse
from espace_tf.rewriting.strip import strip
from espace_tf.timing.benchmark import benchmark

LAYERS = keras.layers


def sequential(x):
    x = conv(x, 7, 5, strides=2)
    x = conv(x, 9, 3, None, dilation_rate=2)
    x = LAYERS.ReLU(6.0)(LAYERS.MaxPooling2D(2)(x))
    x = LAYERS.Dropout(0.3)(conv(x, 5, 2, "relu6", padding="valid"))
    return LAYERS.Dense(3)(LAYERS.GlobalAveragePooling2D()(x))


def inception(x):
    x = conv(x, 6, 3)
    for _ in range(2):
        pooled = LAYERS.AveragePooling2D(3, 1, "same")(x)
        inner = LAYERS.Concatenate()([conv(x, 3, (1, 3)), conv(x, 2, (3, 1))])
        twice = conv(x, 4, 1)
        x = LAYERS.Concatenate()([conv(pooled, 3, 1), inner, twice, x, twice])
    return LAYERS.GlobalAveragePooling2D(keepdims=True)(x)


def residual(x):
    x = conv(x, 6, 3)
    for strides in (1, 2):
        y = conv(x, 8, 3, strides=strides, use_bias=False)
        y = LAYERS.BatchNormalization()(conv(y, 6, 3, None))
        x = x if strides == 1 else conv(x, 6, 1, None, strides=2)
        x = LAYERS.Activation("relu")(LAYERS.Add()([y, x]))
    return x


def preactivated(x):
    x = conv(LAYERS.ZeroPadding2D(((1, 2), (0, 3)))(x), 6, 3, None, padding="valid", strides=2)
    x = LAYERS.MaxPooling2D(3, 2)(LAYERS.ZeroPadding2D(1)(x))
    for _ in range(2):
        y = LAYERS.ReLU()(LAYERS.BatchNormalization(scale=False)(x))
        x = LAYERS.Add()([x, conv(conv(y, 4, 1), 6, 3, None)])
    return LAYERS.ReLU()(LAYERS.BatchNormalization(center=False)(x))


def dense_net(x):
    x = conv(x, 4, 3)
    for _ in range(3):
        y = LAYERS.ReLU()(LAYERS.BatchNormalization()(x))
        x = LAYERS.Concatenate()([x, conv(conv(y, 5, 1), 3, 3, None)])
    return LAYERS.Flatten()(x)


def depthwise(x):
    x = conv(x, 8, 3, strides=2)
    for strides in (1, 2):
        x = LAYERS.DepthwiseConv2D(3, strides, "same", use_bias=False)(x)
        x = conv(LAYERS.ReLU(6.0)(LAYERS.BatchNormalization()(x)), 8, 1)
    x = LAYERS.UpSampling2D(2)(LAYERS.Conv2D(8, 3, groups=8, padding="same")(x))
    return LAYERS.Cropping2D(((1, 0), (2, 1)))(x)


def foreign(x):
    x = conv(conv(x, 6, 3), 5, 3, "softplus")
    return conv(LAYERS.UnitNormalization()(conv(x, 4, 3)), 3, 3)


def nested(x):
    inside = keras.Sequential([keras.Input(x.shape[1:]), LAYERS.Conv2D(5, 3), LAYERS.ReLU()])
    return conv(LAYERS.Flatten()(inside(x))[:, :8][:, None, None, :], 3, 1)


def shared(x):
    both = LAYERS.Conv2D(3, 3, padding="same", activation="relu")
    apart = LAYERS.Conv2D(3, 1)
    x = apart(both(both(x)))
    return apart(LAYERS.UnitNormalization()(x))


def ours(x):
    for order in ("vertical", "horizontal"):
        side = -(-x.shape[1] // 2)
        kept = range(0, side * side, 3)
        options = {"padding": "same", "activation": "relu"}
        x = MaskedConv2D(6, 3, positions=range(0, x.shape[1] * x.shape[2], 2), **options)(x)
        x = DecomposedConv2D(7, 3, 4, order, 2, positions=kept, **options)(x)
        x = DecomposedConv2D(5, (3, 2), 3, order, **options)(x)
        x = MaskedConv2D(5, 2, activation="relu6")(x)
    return x


NETWORKS = (
    *(sequential, inception, residual, preactivated, dense_net, depthwise, foreign, nested),
    *(shared, ours),
)


def build(network, seed=0):
    x = keras.Input((SIDE, SIDE, 3), name="image")
    return randomized(keras.Model(x, network(x)), seed)


def compressed(model, **options):
    plan = Plan.uniform(model, rank_ratio=0.6, keep=0.4)
    return apply(model, dataclasses.replace(plan, **options))


@pytest.mark.parametrize("network", NETWORKS, ids=lambda each: each.__name__)
def test_a_fused_model_computes_what_the_model_computes(network):
    model = build(network)
    fused, x = fuse(model), images()
    assert stretches(fused)
    assert fused.count_params() == model.count_params()
    check_programs(fused, x)
    same(fused(x), model(x))
    with kernels.plain():
        same(tf.function(fused)(x), model(x))
    same(fused.predict(x, verbose=0), model(x))


def kinds(model):
    return [type(layer).__name__ for layer in model.layers]


def test_what_can_be_fused_is_one_layer():
    for network in (sequential, inception, residual, preactivated, depthwise, ours):
        assert kinds(fuse(build(network))) == ["InputLayer", "FusedGraph"], network.__name__
    assert kinds(fuse(build(foreign)))[1:] == ["FusedGraph", "Conv2D", "FusedGraph"] + [
        "UnitNormalization",
        "FusedGraph",
    ]
    model = build(residual)
    (stretch,) = stretches(fuse(model))
    names = {layer.name for layer in model.layers if layer.weights}
    assert names == {layer.name for layer in stretch.model.layers if layer.weights}


def test_two_inputs_and_two_outputs():
    one, two = keras.Input((8, 8, 3)), keras.Input((8, 8, 2), name="second")
    left, right = conv(one, 4, 3), conv(two, 4, 3)
    total = LAYERS.Add()([left, right])
    model = randomized(keras.Model([one, two], {"sum": conv(total, 3, 1), "left": left}))
    fused = fuse(model)
    rng = np.random.default_rng(5)
    x = [rng.normal(size=(3, 8, 8, c)).astype("float32") for c in (3, 2)]
    assert kinds(fused) == ["InputLayer", "InputLayer", "FusedGraph"]
    check_programs(fused, x)
    same(fused(x), model(x))


def test_a_sequential_model_stays_one():
    layers = [LAYERS.Conv2D(4, 3), LAYERS.ReLU(), LAYERS.Flatten(), LAYERS.Dense(2)]
    model = randomized(keras.Sequential([keras.Input((8, 8, 3)), *layers]))
    fused = fuse(model)
    assert isinstance(fused, keras.Sequential)
    assert kinds(fused) == ["FusedGraph"]
    same(fused(images(side=8)), model(images(side=8)))


@pytest.mark.parametrize("name", ["googlenet", "squeezenet"])
def test_networks_of_the_zoo(name):
    model = randomized(getattr(zoo, name)(input_shape=(48, 48, 3), classes=5), 2)
    fused = fuse(strip(model, fuse=False))
    x = images(3, 48)
    same(fused(x), model(x), 1e-4)
    assert costs.macs(fused) == costs.macs(model)
    assert max(len(each.program.filters) for each in stretches(fused)) > 20


@pytest.mark.parametrize("network", [sequential, inception, residual, depthwise])
def test_compressed_models_are_fused_by_strip(network):
    model = build(network)
    small = compressed(model)
    assert not stretches(small) and not stretches(strip(small, fuse=False))
    fused, x = strip(small), images()
    assert stretches(fused)
    assert fused.espace_plan is small.espace_plan
    check_programs(fused, x)
    same(fused(x), small(x))
    assert costs.macs(fused) == costs.macs(small)
    assert not stretches(strip(model))
    same(strip(fused)(x), small(x))


def test_files(tmp_path):
    small = compressed(build(residual))
    fused, x = strip(small), images()
    fused.save(tmp_path / "model.keras")
    same(keras.models.load_model(tmp_path / "model.keras")(x), small(x))
    fused.save_weights(tmp_path / "model.weights.h5")
    other = randomized(keras.models.clone_model(fused), 7)
    other.load_weights(tmp_path / "model.weights.h5")
    same(other(x), small(x))
    assert export_saved_model(fused, tmp_path / "saved").max_difference < 1e-5
    fused.export(str(tmp_path / "own"), format="tf_saved_model", verbose=False)
    loaded = tf.saved_model.load(str(tmp_path / "own"))
    assert "EspaceFusedGraph" not in str(loaded.signatures["serving_default"].graph.as_graph_def())
    same(loaded.serve(x), small(x))
    assert export_tflite(small, tmp_path / "model.tflite").max_difference < 1e-5


def test_weights_set_later_are_seen():
    small = compressed(build(residual))
    fused, plain, x = strip(small), strip(small, fuse=False), images()
    traced = tf.function(fused)
    before = np.asarray(traced(x))
    fused.set_weights([1.3 * weight for weight in fused.get_weights()])
    by_path = {weight.path.split("/")[-2:][0] + weight.name: weight for weight in fused.weights}
    for weight in plain.weights:
        weight.assign(by_path[weight.path.split("/")[-2:][0] + weight.name])
    assert np.abs(plain(x) - before).max() > 0.1
    for found in (fused(x), traced(x), fused.predict(x, verbose=0)):
        same(found, plain(x))


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_another_process_loads_fused_models(backend, tmp_path):
    small, x = compressed(build(inception)), images()
    strip(small).save(tmp_path / "model.keras")
    np.save(tmp_path / "x.npy", x)
    program = (
        "import keras, numpy, espace_tf\n"
        "model = keras.models.load_model('model.keras')\n"
        "numpy.save('y.npy', model.predict(numpy.load('x.npy'), verbose=0))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    environment["ESPACE_TF_BACKEND"] = backend
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    same(np.load(tmp_path / "y.npy"), small(x))


@pytest.mark.parametrize("policy", ["float16", "bfloat16", "mixed_float16", "float64"])
def test_other_types_are_left_alone(policy):
    x = keras.Input((SIDE, SIDE, 3), dtype="float64" if policy == "float64" else "float32")
    small = compressed(keras.Model(x, LAYERS.Conv2D(4, 3, dtype=policy)(x)))
    assert not stretches(strip(small))


def test_open_sizes_are_left_alone():
    x = keras.Input((None, SIDE, 3))
    small = apply(
        model := keras.Model(x, LAYERS.Conv2D(4, 3)(x)), Plan.uniform(model, rank_ratio=0.5)
    )
    fused = strip(small)
    assert not stretches(fused)
    same(fused(images()), small(images()))


def test_losses_of_activities_are_kept():
    x = keras.Input((SIDE, SIDE, 3))
    y = LAYERS.Conv2D(4, 3, activity_regularizer="l2")(conv(x, 4, 3))
    model = keras.Model(x, y)
    fused = fuse(model)
    assert kinds(fused) == ["InputLayer", "FusedGraph", "Conv2D"]
    for each in (model, fused):
        each(images())
    np.testing.assert_allclose(fused.losses, model.losses, rtol=1e-5)


def test_no_images_give_nothing():
    fused = strip(compressed(build(residual)))
    assert fused(images(0)).shape == (0, *fused.output_shape[1:])


def test_threads_at_once_get_their_own_results():
    small, x = compressed(build(inception)), images(5)
    fused, wanted, found = strip(small), np.asarray(small(x)), {}

    def work(number):
        for turn in range(10):
            batch = 1 + (number + turn) % 5
            found[number, turn] = batch, np.asarray(fused(x[:batch]))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 30
    for batch, values in found.values():
        same(values, wanted[:batch])


def test_a_benchmark_takes_fused_models():
    model = build(residual)
    plain, fused = benchmark(model, fuse(model), inputs=images(1), repeats=2)
    assert (fused.macs, fused.parameters) == (plain.macs, plain.parameters)
    assert fused.max_difference < 1e-5


def test_training_runs_the_layers():
    model = build(residual)
    fused, x = fuse(model), images(8)
    for each in (model, fused):
        each.compile(keras.optimizers.SGD(0.01), "mse")
        each.fit(x, np.zeros((8, *each.output_shape[1:])), verbose=0, epochs=2, batch_size=8)
    assert np.abs(fused(x) - build(residual)(x)).max() > 1e-3
    same(fused(x), model(x), 1e-3)


def test_names_are_unique_in_the_whole_container():
    x = keras.Input((SIDE, SIDE, 3))
    y = LAYERS.UnitNormalization(name="fused_conv1")(LAYERS.Conv2D(4, 3, name="conv1")(x))
    y = LAYERS.UnitNormalization()(LAYERS.Conv2D(4, 3, name="fused_conv1_1")(y))
    model = randomized(keras.Model(x, LAYERS.Conv2D(4, 3, name="last")(y)))
    fused = fuse(model)
    names = [layer.name for layer in fused.layers]
    assert len(set(names)) == len(names)
    own = ["fused_conv1_2", "fused_fused_conv1_1", "fused_last"]
    assert [each.name for each in stretches(fused)] == own
    same(fused(images()), model(images()))
