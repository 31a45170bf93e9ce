"""Masks and low-rank pairs with weights in fewer bits: run, compared, and scaled as they should."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter
from deploy_networks import SEED, images, masked_network, relative, runs

from espace_tf.deploy import flatbuffer
from espace_tf.deploy.export_tflite import export_tflite
from espace_tf.keras_layers import DecomposedConv2D


@pytest.mark.parametrize(("quantize", "far"), [("float16", 5e-3), ("dynamic", 0.05), ("int8", 0.1)])
def test_agreement_is_that_of_the_written_file(quantize, far, tmp_path):
    model, batch = masked_network(), images(60)
    path = tmp_path / "small.tflite"
    result = export_tflite(model, path, quantize=quantize, representative_data=batch)
    expected, found = np.asarray(model(batch, training=False)), runs(path, batch)
    same = (expected.argmax(-1) == found.argmax(-1)).mean()
    assert result.agreement == pytest.approx(same), f"seed {SEED}"
    assert relative(found, expected) < far and same > 0.8
    assert f"{same:.1%}" in str(result)


def test_integers_from_input_to_output(tmp_path):
    model, batch = masked_network(), images(60)
    path = tmp_path / "small.tflite"
    result = export_tflite(model, path, quantize="full_int8", representative_data=batch)
    expected = np.asarray(model(batch, training=False))
    runner = Interpreter(str(path)).get_signature_runner()
    ((name, taken),) = runner.get_input_details().items()
    ((_, given),) = runner.get_output_details().items()
    assert taken["dtype"] == given["dtype"] == np.int8
    scale, zero = taken["quantization"]
    integers = np.clip(np.rint(batch / scale) + zero, -128, 127).astype(np.int8)
    (found,) = runner(**{name: integers}).values()
    scale, zero = given["quantization"]
    found = (found.astype(float) - zero) * scale
    assert relative(found, expected) < 0.1, f"seed {SEED}"
    same = (expected.argmax(-1) == found.argmax(-1)).mean()
    assert result.agreement == pytest.approx(same) and same > 0.8
    (graph,) = flatbuffer.read(path.read_bytes()).subgraphs
    types = flatbuffer.schema().TensorType
    assert {tensor.type for tensor in graph.tensors} <= {types.INT8, types.INT32, types.INT16}


def test_agreement_needs_data_and_several_numbers(tmp_path):
    path = tmp_path / "a.tflite"
    assert export_tflite(masked_network(), path, quantize="float16").agreement is None
    one = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    data = np.ones((4, 3), np.float32)
    result = export_tflite(one, path, quantize="dynamic", representative_data=data)
    assert result.agreement is None and "%" not in str(result)


def test_the_tensor_between_the_halves_of_a_pair_has_a_scale_of_its_own(tmp_path):
    """Its range is seen in the data, and neither that of the pair's input nor of its output."""
    keras.utils.set_random_seed(SEED)
    pair = DecomposedConv2D(8, 3, rank=3, padding="same")
    model = keras.Sequential([keras.Input((12, 12, 2)), pair])
    first, *rest = pair.get_weights()
    pair.set_weights([37 * first, *rest])
    batch, path = images(64), tmp_path / "pair.tflite"
    export_tflite(model, path, quantize="int8", representative_data=batch)
    (graph,) = flatbuffer.read(path.read_bytes()).subgraphs
    convolutions = [call for call in graph.operators if len(call.inputs) == 3]
    assert len(convolutions) == 2
    tensors = [graph.tensors[call.outputs[0]] for call in convolutions]
    assert {tensor.type for tensor in tensors} == {flatbuffer.schema().TensorType.INT8}
    middle = np.asarray(tf.nn.conv2d(batch, 37 * first, 1, "SAME"))
    wanted = (middle.max() - middle.min()) / 255
    (scale,) = tensors[0].quantization.scale
    assert scale == pytest.approx(wanted, rel=0.02), f"seed {SEED}"
    filters = [graph.tensors[call.inputs[1]].quantization.scale for call in convolutions]
    assert [len(scales) for scales in filters] == [3, 8], "one scale per output channel"
