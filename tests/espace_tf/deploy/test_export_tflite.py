"""Exported files run on LiteRT and compute what the model computes."""

import os
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter
from deploy_networks import BOTH_LIBRARIES, SEED, images, masked_network, network, relative, runs
from structures import STRUCTURES

from espace_tf.config import EspaceWarning
from espace_tf.deploy import tflite
from espace_tf.deploy.export_tflite import export_tflite
from espace_tf.keras_layers import MaskedConv2D


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


def test_nothing_is_told_of_folders_that_are_not_the_users(tmp_path, caplog):
    with caplog.at_level("INFO", logger="tensorflow"):
        export_tflite(network(), tmp_path / "a.tflite")
    assert not caplog.records


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
    """45 examples at most 32 at a time: a rest of 13 would be taken for another size."""
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

    def watched(model, *, examples, **options):
        seen.extend([array.shape for array in batch] for batch in examples)
        return convert(model, examples=examples, **options)

    monkeypatch.setattr(tflite, "convert", watched)
    path = tmp_path / "two.tflite"
    result = export_tflite(model, path, quantize="int8", representative_data=data)
    assert seen == 2 * [[(22, 12, 12, 2), (22, 3)]]
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


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("a.onnx", {}, "must end in '.tflite'"),
        ("a.tflite", {"quantize": "int4"}, "'int8' or 'full_int8'. Received: 'int4'"),
        ("a.tflite", {"quantize": "int8"}, "representative_data is needed"),
        ("a.tflite", {"kernel": "delegate"}, "kernel must be"),
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


@pytest.mark.parametrize("axis", [-1, [1, 3]])
def test_rows_of_zeros_are_normalised_to_zeros(axis, tmp_path):
    # LiteRT with XNNPACK computes 0 times the reciprocal square root of 0, which is NaN.
    layers = [keras.layers.ZeroPadding2D(1), keras.layers.UnitNormalization(axis)]
    export_tflite(keras.Sequential([keras.Input((12, 12, 2)), *layers]), tmp_path / "model.tflite")
    rows = np.pad(images(2).astype(np.float64), ((0, 0), (1, 1), (1, 1), (0, 0)))
    norm = np.sqrt(np.square(rows).sum(tuple(np.atleast_1d(axis)), keepdims=True))
    found = runs(tmp_path / "model.tflite", images(2))
    np.testing.assert_allclose(found, rows / np.where(norm > 0, norm, 1), atol=1e-6)


def test_what_needs_foreign_operators_is_refused_with_a_way_out(tmp_path, monkeypatch):
    monkeypatch.setattr(tflite, "operators", lambda content: ("ADD", "CUSTOM:Magic"))
    with pytest.raises(ValueError, match="needs CUSTOM:Magic; .* export_saved_model"):
        export_tflite(network(), tmp_path / "a.tflite")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("make", STRUCTURES.values(), ids=list(STRUCTURES))
def test_any_structure_of_inputs_and_outputs(make, tmp_path):
    model, inputs = make()
    result = export_tflite(model, tmp_path / "a.tflite")
    run = tflite.run_function(model, result.path)
    found = run([np.asarray(each) for each in keras.tree.flatten(inputs)])
    expected = keras.tree.flatten(model(inputs, training=False))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_representative_data_may_be_nested(tmp_path):
    model, _ = STRUCTURES["nested dictionary"]()
    generator = np.random.default_rng(SEED)
    shapes = {"maps": {"b": (6, 6, 2), "a": (8, 8, 2)}, "c": (3,)}
    data = {
        name: {key: generator.random((8, *each)) for key, each in shape.items()}
        if isinstance(shape, dict)
        else generator.random((8, *shape))
        for name, shape in shapes.items()
    }
    path = tmp_path / "a.tflite"
    result = export_tflite(model, path, quantize="int8", representative_data=data)
    assert result.max_difference < 0.1


def test_names_that_signatures_do_not_take(tmp_path):
    """Of inputs, outputs and layers: not ASCII, alike but for their case, words of Python."""
    names = ("größe", "图像", "像", "A", "a", "self", "class", "_x")
    inputs = [keras.Input((index + 1,), name=name) for index, name in enumerate(names)]
    layers = ("_conv", "x-y", "x.y", "B", "b", "None", "self1", "if")
    outputs = [
        keras.layers.Dense(index + 1, name=name)(x)
        for index, (x, name) in enumerate(zip(inputs, layers, strict=True))
    ]
    model = keras.Model(inputs, outputs)
    result = export_tflite(model, tmp_path / "a.tflite")
    assert result.max_difference < 1e-5  # they differ in width: none was taken for another
    single = keras.Model(inputs[0], outputs[0])
    assert tflite.input_names(single) == ["gr__e"]
    assert tflite.output_names(single) == ["output_conv"]


def test_an_open_size_that_the_converter_cannot_follow_is_named(tmp_path):
    inputs = keras.Input((None, None, 2))
    maps = keras.layers.Conv2D(3, 3)(keras.layers.UpSampling2D()(inputs))
    with pytest.raises(ValueError, match=r"while it leaves .*\(None, 64, 64, 2\) it can: build"):
        export_tflite(keras.Model(inputs, maps), tmp_path / "a.tflite")


def test_a_file_that_tables_make_larger_than_the_dense_one_is_told_of(tmp_path):
    positions = np.arange(0, 40 * 40, 2)
    inputs = keras.Input((40, 40, 2))
    x = MaskedConv2D(2, 3, padding="same", positions=positions, name="wide")(inputs)
    model = keras.Model(inputs, x)
    with pytest.warns(EspaceWarning, match=r"masks need tables .* most of them for wide"):
        result = export_tflite(model, tmp_path / "a.tflite")
    assert result.dense_bytes == 4 * (3 * 3 * 2 * 2 + 2)
    tables = 2 * (9 * len(positions) + 40 * 40)  # of 16 bits
    assert tables < result.bytes < tables + 4000


def test_checks_of_numerics_are_named_as_the_reason(tmp_path):
    tf.debugging.enable_check_numerics()
    try:
        with pytest.raises(ValueError, match=r"Call tf.debugging.disable_check_numerics\(\) first"):
            export_tflite(network(), tmp_path / "a.tflite")
    finally:
        tf.debugging.disable_check_numerics()


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
def test_depthwise_convolutions_behind_enlarged_maps(interpolation, tmp_path):
    # Of Keras's repetitions the converter does not know the size, and then has no operator.
    keras.utils.set_random_seed(SEED)
    x = inputs = keras.Input((7, 4, 2))
    x = keras.layers.UpSampling2D((1, 2))(x)
    x = keras.layers.UpSampling2D((2, 3), interpolation=interpolation)(x)
    x = keras.layers.SeparableConv2D(4, (3, 1), padding="same", activation="relu")(x)
    model = keras.Model(inputs, x)
    result = export_tflite(model, tmp_path / "a.tflite")
    assert result.max_difference < 1e-5
    assert "DEPTHWISE_CONV_2D" in result.operators and "RESIZE_NEAREST_NEIGHBOR" in result.operators
    open_size = keras.Sequential([keras.Input((None, None, 2)), keras.layers.UpSampling2D(2)])
    batch = np.random.default_rng(SEED).random((2, 5, 4, 2), np.float32)
    result = export_tflite(open_size, tmp_path / "b.tflite", representative_data=batch)
    assert result.max_difference < 1e-6
