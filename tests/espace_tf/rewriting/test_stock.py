"""strip(stock=True): nothing but Keras's own is left, and what knows Keras takes it."""

import os
import subprocess
import sys

import keras
import numpy as np
import pytest
import tf_keras

import espace_tf
from espace_tf.keras_layers import for_library
from espace_tf.network import graph

onnxruntime = pytest.importorskip("onnxruntime", reason="the extra [onnx] is not installed")

LIBRARIES = pytest.mark.parametrize("library", [keras, tf_keras], ids=["keras", "tf_keras"])
SEED = 11


def compressed(library, *, groups=2, activation="elu"):
    """Masks and pairs with and without padding, groups and activations of all kinds."""
    library.utils.set_random_seed(SEED)
    layers, ours = library.layers, for_library(library)
    odd, third = range(0, 256, 2), range(1, 256, 3)
    image = library.Input((16, 16, 4), name="image")
    x = ours.MaskedConv2D(8, 3, padding="same", positions=third, name="m")(image)
    x = layers.Dropout(0.5)(layers.ReLU()(layers.BatchNormalization()(x)))
    options = {"rank": 2, "padding": "same", "groups": groups, "activation": activation}
    x = ours.DecomposedConv2D(8, 3, positions=odd, name="d", **options)(x)
    x = ours.DecomposedConv2D(8, 3, rank=2, activation="swish", name="m_part1")(x)
    y = ours.MaskedConv2D(6, 3, groups=groups, strides=2, positions=range(0, 36, 3), name="g")(x)
    head = layers.Dense(3, name="head")(layers.GlobalAveragePooling2D()(y))
    return library.Model(image, [head, y])


def batch(size=16):
    return np.random.default_rng(SEED).random((3, size, size, 4), np.float32)


def close(found, wanted, atol=1e-5):
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(np.asarray(one), np.asarray(other), atol=atol)


@LIBRARIES
def test_only_the_librarys_own_layers_are_left(library):
    model, x = compressed(library), batch()
    stock = espace_tf.strip(model, stock=True)
    close(stock(x), model(x))
    for layer in stock.layers:
        assert type(layer).__module__.split(".")[0] == library.__name__
    assert {"d", "g", "head"} <= {layer.name for layer in stock.layers}
    assert stock.input_names == ["image"] if library is tf_keras else stock.inputs[0].name
    assert not any(layer.name.startswith("batch") for layer in stock.layers)


@LIBRARIES
@pytest.mark.parametrize(("padding", "width", "taps"), [("valid", 3, 3), ("same", 2, 3)])
def test_a_second_half_of_one_channel_that_gives_one_column(library, padding, width, taps):
    library.utils.set_random_seed(SEED)
    pair = for_library(library).DecomposedConv2D(
        3, (1, taps), rank=1, order="vertical", strides=2, padding=padding, name="pair"
    )
    model = library.Sequential([library.Input((5, width, 1)), pair])
    x = np.random.default_rng(SEED).random((4, 5, width, 1), np.float32)
    first, second = (np.float64(each) for each in pair.get_weights()[:2])
    before = max(taps - width, 0) // 2 if padding == "same" else 0
    columns = np.pad(np.float64(x), [(0, 0), (0, 0), (before, taps), (0, 0)])[:, ::2, :taps]
    right = np.einsum("bhwc,cr,wrn->bhn", columns, first[0, 0], second[0])[:, :, None]
    for _ in range(3):  # what is found in memory differs
        close([espace_tf.strip(model, stock=True)(x)], [right], atol=1e-4)
        close([model(x)], [right], atol=1e-4)


@LIBRARIES
def test_a_pair_of_any_size_is_two_convolutions(library):
    pair = for_library(library).DecomposedConv2D(8, (5, 3), rank=3, strides=2, dilation_rate=1)
    model = library.Sequential([library.Input((None, None, 4)), pair])
    stock = espace_tf.strip(model, stock=True)
    assert [type(each).__name__ for each in stock.layers[1:]] == ["Conv2D", "Conv2D"]
    assert stock.layers[-1].name == pair.name
    for size in (9, 16):
        close([stock(batch(size))], [model(batch(size))])


def test_an_activation_with_weights_comes_after_the_positions():
    layer = keras.layers.PReLU(alpha_initializer="random_normal")
    options = {"positions": [0, 5, 9], "activation": layer}
    model = keras.Sequential(
        [keras.Input((6, 6, 4)), for_library(keras).MaskedConv2D(3, 3, **options)]
    )
    wanted = model(batch(6))
    stock = espace_tf.strip(model, stock=True)
    assert type(stock.layers[-1]) is keras.layers.PReLU
    close([stock(batch(6))], [wanted])


def test_a_fused_model_becomes_stock_too():
    model = compressed(keras)
    fused = espace_tf.strip(model)
    stock = espace_tf.strip(fused, stock=True)
    assert not any("espace" in type(e).__module__ for e in graph.layers(stock).values())
    close(stock(batch()), model(batch()))


def test_a_fused_graph_is_no_stock_layer():
    with pytest.raises(ValueError, match="stock=True makes .* Received: fuse=True too"):
        espace_tf.strip(compressed(keras), fuse=True, stock=True)


def test_fuse_makes_graphs_of_dense_models_too():
    model = keras.Sequential([keras.Input((8, 8, 4)), keras.layers.Conv2D(3, 3)])
    kinds = [type(e).__name__ for e in graph.layers(espace_tf.strip(model, fuse=True)).values()]
    assert kinds == ["FusedGraph"]
    assert "FusedGraph" not in str(graph.layers(espace_tf.strip(model)))


@pytest.mark.filterwarnings("ignore:Layer .* does not have a `quantize` method:UserWarning")
@pytest.mark.filterwarnings("ignore:In the future `np.object`:FutureWarning")  # Keras's export
def test_keras_quantizes_and_exports_it(tmp_path):
    model, x = compressed(keras, groups=1), batch()  # Keras's own export takes no groups
    stock = espace_tf.strip(model, stock=True)
    close(stock(x), model(x))  # Keras exports what has been called
    stock.export(str(tmp_path / "a.onnx"), format="onnx", verbose=False)
    session = onnxruntime.InferenceSession(tmp_path / "a.onnx")
    close(session.run(None, {"image": x}), model(x))
    stock.quantize("int8")
    assert stock.get_layer("head").kernel.dtype == "int8"
    close(stock(x), model(x), atol=0.05)


def run(code):
    """Runs lines of Python where espace_tf is not imported."""
    settings = {**os.environ, "TF_USE_LEGACY_KERAS": "1", "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code + "\nassert 'espace_tf' not in sys.modules"],
        env=settings, cwd="/", capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]


LOADED = """
import sys, numpy
import {library} as library
given = numpy.load("{folder}/given.npz")
model = library.models.load_model("{folder}/a.keras")
for one, other in zip(model(given["x"]), (given["a"], given["b"])):
    numpy.testing.assert_allclose(numpy.asarray(one), other, atol=1e-5)
"""
QUANTIZED = """
from tensorflow_model_optimization.quantization import keras as tfmot
import tf_keras
known = (tf_keras.layers.Conv2D, tf_keras.layers.Dense)
made = tf_keras.models.clone_model(model, clone_function=lambda layer:
    tfmot.quantize_annotate_layer(layer) if isinstance(layer, known) else layer)
made.set_weights(model.get_weights())
aware = tfmot.quantize_apply(made)
aware.compile("sgd", "mse")
loss = aware.fit(given["x"], [given["a"], given["b"]], verbose=0).history["loss"][0]
assert 0 < loss < numpy.square(given["a"]).mean() + numpy.square(given["b"]).mean()
wrapped = [layer for layer in aware.layers if "QuantizeWrapper" in type(layer).__name__]
assert len(wrapped) >= 5, [type(layer).__name__ for layer in aware.layers]
"""


@LIBRARIES
def test_a_file_opens_where_espace_tf_is_not_and_tfmot_takes_it(library, tmp_path):
    model, x = compressed(library, activation="relu"), batch()
    if library is tf_keras:  # tfmot knows few activations
        model.get_layer("m_part1").activation = tf_keras.activations.relu
    stock = espace_tf.strip(model, stock=True)
    stock.save(tmp_path / "a.keras")
    first, second = map(np.asarray, model(x))
    np.savez(tmp_path / "given.npz", x=x, a=first, b=second)
    loaded = LOADED.format(library=library.__name__, folder=tmp_path)
    run(loaded + (QUANTIZED if library is tf_keras else ""))
