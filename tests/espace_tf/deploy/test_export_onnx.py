"""ONNX files compute what the Keras model does, in a runtime that knows nothing of this package."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

import espace_tf
from espace_tf.keras_layers import DecomposedConv2D, MaskedConv2D, for_library

onnxruntime = pytest.importorskip("onnxruntime", reason="the extra [onnx] is not installed")
openvino = pytest.importorskip("openvino", reason="the extra [openvino] is not installed")

SEED = 7


def compressed(library=keras):
    """Every way in which positions, ranks and groups meet, and what lies between."""
    library.utils.set_random_seed(SEED)
    layers, ours = library.layers, for_library(library)
    odd = range(1, 144, 2)
    made = [
        ours.MaskedConv2D(8, 3, groups=2, padding="same", positions=odd),
        layers.BatchNormalization(),
        layers.ReLU(),
        ours.DecomposedConv2D(8, 3, rank=2, groups=2, padding="same", positions=range(0, 144, 5)),
        ours.DecomposedConv2D(8, (5, 3), rank=4, order="horizontal", strides=2, activation="elu"),
        layers.Conv2D(8, 3, groups=4, padding="same", dilation_rate=2),
        layers.DepthwiseConv2D(3, padding="same"),
        layers.Dropout(0.5),
        layers.GlobalAveragePooling2D(),
        layers.Dense(5, activation="softmax"),
    ]
    return library.Sequential([library.Input((12, 12, 4)), *made])


@pytest.mark.parametrize("library", [keras, tf_keras])
def test_a_compressed_network_computes_the_same_in_both_runtimes(library, tmp_path):
    model, path = compressed(library), tmp_path / "a.onnx"
    result = espace_tf.export_onnx(model, path)
    assert result.path == path and result.max_difference < 1e-5
    x = np.random.default_rng(SEED).random((3, 12, 12, 4), np.float32)
    expected = np.asarray(model(x))
    session = onnxruntime.InferenceSession(path.read_bytes())
    (name,) = [each.name for each in session.get_inputs()]
    np.testing.assert_allclose(session.run(None, {name: x})[0], expected, atol=1e-5)
    core = openvino.Core()
    settings = {"INFERENCE_PRECISION_HINT": "f32"}
    found = core.compile_model(core.read_model(path), "CPU", settings)(x)[0]
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_inputs_and_outputs_keep_their_names_and_order(tmp_path):
    big, small = keras.Input((8, 8, 2), name="big"), keras.Input((4, 4, 2), name="small")
    pooled = keras.layers.MaxPooling2D()(big)
    outputs = {
        "map": MaskedConv2D(3, 3, positions=[0, 3])(pooled),
        "both": [keras.layers.Add()([pooled, small]), DecomposedConv2D(2, 3, rank=1)(big)],
    }
    model = keras.Model([big, small], outputs)
    espace_tf.export_onnx(model, tmp_path / "a.onnx")
    session = onnxruntime.InferenceSession((tmp_path / "a.onnx").read_bytes())
    generator = np.random.default_rng(SEED)
    given = {n: generator.random((2, s, s, 2), np.float32) for n, s in (("big", 8), ("small", 4))}
    assert [each.name for each in session.get_inputs()] == ["big", "small"]
    found = session.run(["map", "both_0", "both_1"], given)
    expected = model([given["big"], given["small"]])
    for output, right in zip(found, [expected["map"], *expected["both"]], strict=True):
        np.testing.assert_allclose(output, right, atol=1e-5)


def test_what_has_no_operator_is_refused_and_nothing_is_left(tmp_path):
    spectrum = keras.layers.Lambda(lambda x: tf.abs(tf.signal.rfft(x)))
    model = keras.Sequential([keras.Input((4, 4, 2)), spectrum])
    with pytest.raises(ValueError, match="cannot be exported to ONNX: there is no .* ComplexAbs"):
        espace_tf.export_onnx(model, tmp_path / "a.onnx")
    assert list(tmp_path.iterdir()) == []
    assert not tf.config.functions_run_eagerly()
