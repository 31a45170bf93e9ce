"""Files with fused stretches compute what the model computes, with the delegate and without."""

import os

import keras
import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from deploy_networks import SEED, images, masked_network, network, relative, runs

from espace_tf import Plan, apply, kernels, litert
from espace_tf.config import EspaceWarning
from espace_tf.deploy import flatbuffer, tflite
from espace_tf.deploy.export_tflite import export_tflite


def with_delegate(path, batch: np.ndarray) -> np.ndarray:
    interpreter = Interpreter(str(path), experimental_delegates=[litert.delegate(strict=True)])
    (entry,) = interpreter.get_input_details()
    interpreter.resize_tensor_input(entry["index"], batch.shape)
    interpreter.allocate_tensors()
    interpreter.set_tensor(entry["index"], batch)
    interpreter.invoke()
    return interpreter.get_tensor(interpreter.get_output_details()[0]["index"])


def test_a_compressed_network_in_each_form(tmp_path):
    model = masked_network()
    expected = model(images(5), training=False).numpy()
    builtin = export_tflite(model, tmp_path / "builtin.tflite")
    fused = export_tflite(model, tmp_path / "fused.tflite", kernel="fused")
    assert "STABLEHLO_COMPOSITE" in fused.operators and fused.max_difference < 1e-5
    assert not [name for name in fused.operators if name.startswith("CUSTOM")]
    for found in (runs(fused.path, images(5)), with_delegate(fused.path, images(5))):
        assert relative(found, expected) < 1e-5, f"seed {SEED}"
    custom = export_tflite(model, tmp_path / "custom.tflite", kernel="custom")
    assert custom.operators == ("CUSTOM:EspaceFusedGraph",)
    assert relative(with_delegate(custom.path, images(5)), expected) < 1e-5
    assert custom.bytes < fused.bytes
    assert builtin.dense_bytes == fused.dense_bytes == custom.dense_bytes


def test_weights_lie_in_the_file_once(tmp_path):
    inputs = keras.Input((8, 8, 32))
    x = keras.layers.Conv2D(64, 3, activation="relu")(inputs)
    x = keras.layers.DepthwiseConv2D(3)(x)
    model = keras.Model(inputs, keras.layers.Conv2D(48, 1)(x))
    sizes = [weight.size for weight in model.get_weights()]
    for quantize, width in ((None, 4), ("float16", 2)):
        path = tmp_path / "once.tflite"
        result = export_tflite(model, path, quantize=quantize, kernel="fused")
        file = flatbuffer.read(path.read_bytes())
        lengths = [len(each.data) for each in file.buffers if each.data is not None]
        for size in (size for size in sizes if size > 100):
            assert lengths.count(width * size) == 1, (size, lengths)
        assert result.max_difference < (1e-5 if quantize is None else 2e-3)
        starts = flatbuffer.schema().Model.GetRootAsModel(path.read_bytes(), 0)
        data = [starts.Buffers(i)._tab for i in range(starts.BuffersLength())]
        offsets = [each.Vector(each.Offset(4)) for each in data if each.Offset(4)]
        assert all(offset % 16 == 0 for offset in offsets), "constants are to be aligned"


def test_large_dense_layers_of_float16(tmp_path):
    """Whose filters stay in 16 bits; weights that 16 bits hold lose nothing."""
    model = keras.Sequential(
        [
            keras.Input((16, 17, 3)),
            keras.layers.Conv2D(4, 1, activation="relu"),
            keras.layers.Flatten(),
            keras.layers.Dense(251),
        ]
    )
    model.set_weights([w.astype(np.float16).astype(np.float32) for w in model.get_weights()])
    path = tmp_path / "large.tflite"
    export_tflite(model, path, quantize="float16", kernel="fused")
    random = np.random.default_rng(SEED)
    for batch in (1, 3, 40):
        batch = random.normal(size=(batch, 16, 17, 3)).astype(np.float32)
        expected = model(batch, training=False).numpy()
        assert relative(with_delegate(path, batch), expected) < 1e-5, f"seed {SEED}"


def test_several_stretches_inputs_outputs_and_calls(tmp_path):
    """What a layer of the user's divides; a model called twice in one stretch; a pass-through."""
    part = keras.Sequential([keras.Input((6, 6, 4)), keras.layers.Conv2D(4, 3, padding="same")])
    left, right = keras.Input((6, 6, 4), name="left"), keras.Input((3,), name="right")
    x = keras.layers.Activation("gelu")(part(part(left)))
    y = keras.layers.Conv2D(5, 3)(x)
    z = keras.layers.Conv2D(5, 3, strides=1)(left)
    flat = keras.layers.Flatten()(keras.layers.Add()([y, z]))
    model = keras.Model(
        [right, left], {"wide": keras.layers.Concatenate()([flat, right]), "maps": y, "far": z}
    )
    plan = Plan.uniform(model, rank_ratio=0.5, keep=0.6)
    small = apply(model, plan)
    result = export_tflite(small, tmp_path / "many.tflite", kernel="fused")
    assert result.max_difference < 1e-5
    file = flatbuffer.read(result.path.read_bytes())
    # The model that is called twice is one stretch with two operators.
    composites = [each for each in file.subgraphs[0].operators if each.builtinOptions2 is not None]
    assert len(composites) == 3 and len(file.subgraphs) == 1 + 2


def test_what_cannot_be_fused(tmp_path, monkeypatch):
    dense = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    with pytest.warns(EspaceWarning, match="no stretch"):
        result = export_tflite(dense, tmp_path / "dense.tflite", kernel="fused")
    assert result.operators == ("FULLY_CONNECTED",)
    for quantize in ("int8", "dynamic"):
        with pytest.raises(ValueError, match="kernel must be 'builtin'"):
            export_tflite(network(), tmp_path / "a.tflite", quantize=quantize, kernel="fused",
                          representative_data=images(4))  # fmt: skip
    monkeypatch.setattr(kernels, "__file__", str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match="make native"):
        export_tflite(network(), tmp_path / "b.tflite", kernel="fused")
    assert os.listdir(tmp_path) == ["dense.tflite"]


def test_an_open_size_stays_open(tmp_path):
    model = keras.Sequential([keras.Input((None, None, 3)), keras.layers.Conv2D(4, 3)])
    with pytest.warns(EspaceWarning, match="known size"):
        result = export_tflite(model, tmp_path / "open.tflite", kernel="fused")
    found = tflite.run_function(model, result.path)([np.ones((1, 9, 11, 3), np.float32)])
    assert found[0].shape == (1, 7, 9, 4)


def test_batches_of_changing_size(tmp_path):
    """A resized interpreter of LiteRT 2.3 is wrong in one of some fifty runs without a delegate."""
    model, random = masked_network(), np.random.default_rng(SEED)
    path = tmp_path / "fused.tflite"
    export_tflite(model, path, kernel="fused")
    expected = model(images(7), training=False).numpy()
    run, kept = tflite.run_function(model, path), []
    for _ in range(400):
        # What else lies in memory decides whether a buffer comes to lie where one was.
        kept = [*kept[-50:], np.ones(random.integers(10, 200_000), np.uint8)]
        batch = random.integers(1, 8)
        assert relative(run([images(7)[:batch]])[0], expected[:batch]) < 1e-5, f"seed {SEED}"
