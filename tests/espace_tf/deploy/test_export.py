"""Exported files run on LiteRT and compute what the model computes."""

import os
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from ai_edge_litert.interpreter import Interpreter

from espace_tf.deploy import tflite
from espace_tf.deploy.export import export_saved_model, export_tflite
from espace_tf.keras_layers import DecomposedConv2D, MaskedConv2D

SEED = 7
BOTH_LIBRARIES = pytest.mark.parametrize("library", [keras, tf_keras], ids=["keras", "tf_keras"])


def images(count: int, channels: int = 2) -> np.ndarray:
    return np.random.default_rng(SEED).random((count, 12, 12, channels), np.float32)


def network(library=keras):
    """A convolution with a batch norm whose statistics are not the initial ones, and a head."""
    library.utils.set_random_seed(SEED)
    inputs = library.Input((12, 12, 2), name="image")
    x = library.layers.Conv2D(8, 3, padding="same", use_bias=False)(inputs)
    x = library.layers.BatchNormalization()(x)
    x = library.layers.ReLU()(x)
    x = library.layers.Dropout(0.3)(x)
    x = library.layers.GlobalAveragePooling2D()(x)
    model = library.Model(inputs, library.layers.Dense(5, name="logits")(x), name="small")
    generator = np.random.default_rng(SEED)
    model.set_weights([generator.uniform(0.2, 1, w.shape) - 0.5 * (w.ndim > 1)
                       for w in model.get_weights()])  # fmt: skip
    return model


def masked_network():
    keras.utils.set_random_seed(SEED)
    positions = np.flatnonzero(np.random.default_rng(SEED).random(144) < 0.4)
    return keras.Sequential(
        [
            keras.Input((12, 12, 2)),
            MaskedConv2D(6, 3, padding="same", positions=positions, activation="relu"),
            DecomposedConv2D(8, 3, rank=3, padding="same", positions=positions[::2]),
            keras.layers.GlobalMaxPooling2D(),
            keras.layers.Dense(4),
        ]
    )


def runs(path: Path, batch: np.ndarray) -> np.ndarray:
    """The file's first output, by the plain interpreter: an own oracle of how to run it."""
    interpreter = Interpreter(model_path=str(path))
    (entry,) = interpreter.get_input_details()
    interpreter.resize_tensor_input(entry["index"], batch.shape)
    interpreter.allocate_tensors()
    interpreter.set_tensor(entry["index"], batch)
    interpreter.invoke()
    return interpreter.get_tensor(interpreter.get_output_details()[0]["index"])


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


@BOTH_LIBRARIES
def test_float_file_equals_the_model_for_any_batch(library, tmp_path, capsys):
    model = network(library)
    before = [weight.copy() for weight in model.get_weights()]
    result = export_tflite(model, tmp_path / "small.tflite")
    assert capsys.readouterr().out == ""
    assert os.listdir(tmp_path) == ["small.tflite"]
    assert result.bytes == result.path.stat().st_size
    assert result.max_difference < 1e-4
    for count in (1, 5):
        expected = model(images(count), training=False).numpy()
        assert relative(runs(result.path, images(count)), expected) < 1e-4, f"seed {SEED}"
    (entry,) = Interpreter(model_path=str(result.path)).get_input_details()
    assert entry["shape_signature"].tolist() == [-1, 12, 12, 2]
    for now, then in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(now, then)


def test_batch_norm_is_folded(tmp_path):
    found = set(export_tflite(network(), tmp_path / "a.tflite").operators)
    assert "CONV_2D" in found
    assert not found & {"MUL", "ADD", "SUB", "RSQRT"}, found


def test_masked_and_decomposed_layers_become_builtin_operators(tmp_path):
    model = masked_network()
    result = export_tflite(model, tmp_path / "masked.tflite")
    assert "GATHER" in result.operators
    assert not [name for name in result.operators if "CUSTOM" in name or "VAR" in name]
    expected = model(images(3), training=False).numpy()
    assert relative(runs(result.path, images(3)), expected) < 1e-4, f"seed {SEED}"


@pytest.mark.parametrize(
    ("quantize", "tolerance", "smaller"), [("float16", 5e-3, 0.75), ("dynamic", 5e-2, 0.6)]
)
def test_weights_in_fewer_bits(quantize, tolerance, smaller, tmp_path):
    model = keras.Sequential(
        [keras.Input((12, 12, 2)), keras.layers.Conv2D(64, 3), keras.layers.Conv2D(64, 3)]
    )
    dense = export_tflite(model, tmp_path / "float.tflite")
    result = export_tflite(model, tmp_path / "small.tflite", quantize=quantize)
    assert result.bytes < smaller * dense.bytes
    assert 0 < result.max_difference < tolerance


@pytest.mark.parametrize("form", ["array", "dataset"])
def test_int8_keeps_the_predictions(form, tmp_path):
    """Two classes a wide margin apart stay the same, and the arithmetic is integer."""
    model, batch = masked_network(), images(64)
    data = batch if form == "array" else tf.data.Dataset.from_tensor_slices(batch).batch(16)
    result = export_tflite(
        model, tmp_path / "int8.tflite", quantize="int8", representative_data=data
    )
    assert {"QUANTIZE", "DEQUANTIZE"} <= set(result.operators)
    assert result.max_difference < 0.1
    expected = model(batch, training=False).numpy()
    found = runs(result.path, batch)
    clear = np.diff(np.sort(expected)[:, -2:])[:, 0] > 0.1 * np.abs(expected).max()
    assert clear.sum() > 5
    same = found.argmax(-1) == expected.argmax(-1)
    assert same[clear].all(), f"seed {SEED}"


@BOTH_LIBRARIES
@pytest.mark.parametrize("form", ["list", "dictionary", "dataset"])
def test_int8_calibrates_several_inputs_with_equal_batches(library, form, tmp_path, monkeypatch):
    """45 examples in batches of 32: the rest of 13 must not be taken for another size."""
    left, right = library.Input((12, 12, 2), name="left"), library.Input((3,), name="right")
    pooled = library.layers.GlobalAveragePooling2D()(library.layers.Conv2D(4, 3)(left))
    mixed = library.layers.Concatenate()([pooled, library.layers.Dense(4)(right)])
    model = library.Model([left, right], library.layers.Dense(3)(mixed))
    side = np.random.default_rng(SEED).normal(size=(45, 3)).astype("float32")
    data = {
        "list": [images(45), side],
        "dictionary": {"right": side, "left": images(45)},
        "dataset": tf.data.Dataset.from_tensor_slices({"left": images(45), "right": side}).batch(
            20
        ),
    }[form]
    seen, convert = [], tflite.convert

    def watched(model, *, quantize, examples):
        seen.extend([array.shape for array in batch] for batch in examples)
        return convert(model, quantize=quantize, examples=examples)

    monkeypatch.setattr(tflite, "convert", watched)
    path = tmp_path / "two.tflite"
    result = export_tflite(model, path, quantize="int8", representative_data=data)
    assert seen and all(shapes == [(32, 12, 12, 2), (32, 3)] for shapes in seen)
    assert {"QUANTIZE", "DEQUANTIZE"} <= set(result.operators)
    found = tflite.run_function(model, result.path)([images(45)[:7], side[:7]])[0]
    expected = np.asarray(model([images(45)[:7], side[:7]], training=False))
    assert relative(found, expected) < 0.1, f"seed {SEED}"


@BOTH_LIBRARIES
def test_several_inputs_and_outputs(library, tmp_path):
    left, right = library.Input((12, 12, 2), name="left"), library.Input((3,), name="right.side")
    maps = library.layers.Conv2D(4, 3)(left)
    pooled = library.layers.Concatenate()([library.layers.GlobalMaxPooling2D()(maps), right])
    model = library.Model([left, right], [pooled, maps])
    result = export_tflite(model, tmp_path / "many.tflite")
    assert result.max_difference < 1e-4
    assert tflite.input_names(model) == ["left", "right_side"]
    side = np.arange(6, dtype=np.float32).reshape(2, 3)
    found = tflite.run_function(model, result.path)([images(2), side])
    expected = model([images(2), side], training=False)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_named_outputs_keep_their_names(tmp_path):
    image = keras.Input((12, 12, 2), name="image")
    maps = keras.layers.Conv2D(4, 3)(image)
    outputs = {"mean": keras.layers.GlobalAveragePooling2D()(maps), "all": maps}
    model = keras.Model({"image": image}, outputs)
    data = {"image": images(8)}
    result = export_tflite(model, tmp_path / "named.tflite", representative_data=data)
    run = Interpreter(model_path=str(result.path)).get_signature_runner()
    found = run(image=images(3))
    for name, expected in model({"image": images(3)}, training=False).items():
        np.testing.assert_allclose(found[name], expected, atol=1e-5)


def test_half_precision_models_become_float32_files(tmp_path):
    model = keras.Sequential(
        [
            keras.Input((12, 12, 2)),
            keras.layers.Conv2D(4, 3, dtype="mixed_float16", activation="relu"),
            keras.layers.GlobalMaxPooling2D(dtype="mixed_float16"),
        ]
    )
    result = export_tflite(model, tmp_path / "half.tflite")
    assert result.max_difference < 5e-3
    assert model.layers[0].compute_dtype == "float16"


@BOTH_LIBRARIES
def test_saved_model_serves_what_the_model_computes(library, tmp_path, capsys):
    model = network(library)
    for _ in range(2):  # The second export replaces the first.
        result = export_saved_model(model, tmp_path / "served")
    assert capsys.readouterr().out == ""
    assert os.listdir(tmp_path) == ["served"]
    assert result.max_difference < 1e-4
    loaded = tf.saved_model.load(str(result.path))
    assert (
        relative(loaded.serve(images(3)).numpy(), model(images(3), training=False).numpy()) < 1e-4
    )


def test_a_folder_with_other_things_is_not_replaced(tmp_path):
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds something else"):
        export_saved_model(network(), tmp_path / "served")
    assert (tmp_path / "served" / "thesis.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("a.onnx", {}, "must end in '.tflite'"),
        ("a.tflite", {"quantize": "int4"}, "'dynamic' or 'int8'. Received: 'int4'"),
        ("a.tflite", {"quantize": "int8"}, "representative_data is needed"),
        ("a.tflite", {"kernel": "delegate"}, "planned"),
        ("a.tflite", {"kernel": "fast"}, "Received: 'fast'"),
        (
            "a.tflite",
            {"quantize": "int8", "representative_data": np.zeros((4, 9, 9, 2), np.float32)},
            r"Received: \(4, 9, 9, 2\)",
        ),
        ("a.tflite", {"representative_data": np.zeros((0, 12, 12, 2), np.float32)}, "empty"),
    ],
)
def test_arguments_that_make_no_sense(name, options, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        export_tflite(network(), tmp_path / name, **options)
    assert os.listdir(tmp_path) == []


def test_other_objects_and_models_without_inputs(tmp_path):
    with pytest.raises(TypeError):
        export_tflite("model.keras", tmp_path / "a.tflite")
    with pytest.raises(ValueError, match="known inputs"):
        export_tflite(keras.Sequential([keras.layers.Dense(2)]), tmp_path / "a.tflite")


def test_read_only_folder(tmp_path):
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o500)
    if os.access(folder, os.W_OK):
        folder = Path("/proc/self")  # The superuser writes anywhere but there.
    with pytest.raises(OSError, match="path must lie in a folder that can be written"):
        export_tflite(network(), folder / "a.tflite")


@keras.saving.register_keras_serializable("tests")
class Inverse(keras.layers.Layer):
    def call(self, inputs):
        return tf.linalg.inv(inputs)


def test_operations_without_a_builtin_operator_are_named(tmp_path):
    model = keras.Sequential([keras.Input((4, 4)), Inverse()])
    with pytest.raises(ValueError, match="MatrixInverse"):
        export_tflite(model, tmp_path / "a.tflite")
    assert os.listdir(tmp_path) == []


def test_a_file_that_computes_something_else_is_not_left(tmp_path, monkeypatch):
    monkeypatch.setattr(tflite, "run_function", lambda *_: lambda inputs: [np.zeros((1, 5))])
    (tmp_path / "a.tflite").write_text("the one before")
    with pytest.raises(RuntimeError, match="differ from"):
        export_tflite(network(), tmp_path / "a.tflite")
    assert os.listdir(tmp_path) == ["a.tflite"]
    assert (tmp_path / "a.tflite").read_text() == "the one before"


@pytest.mark.parametrize("quantize", [None, "float16", "dynamic"])
def test_a_model_that_computes_nan_is_not_written(quantize, tmp_path):
    model = network()
    kernel, bias = model.get_layer("logits").get_weights()
    model.get_layer("logits").set_weights([kernel, np.full_like(bias, np.nan)])
    with pytest.raises(RuntimeError, match="computes NaN or infinity"):
        export_tflite(model, tmp_path / "nan.tflite", quantize=quantize)
    assert list(tmp_path.iterdir()) == []


def test_what_needs_foreign_operators_is_refused_with_a_way_out(tmp_path, monkeypatch):
    monkeypatch.setattr(tflite, "operators", lambda content: ("ADD", "CUSTOM:Magic"))
    with pytest.raises(ValueError, match="needs CUSTOM:Magic; .* export_saved_model"):
        export_tflite(network(), tmp_path / "a.tflite")
    assert list(tmp_path.iterdir()) == []
