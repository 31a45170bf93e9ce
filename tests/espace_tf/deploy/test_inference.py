"""Models in other types than float32 as LiteRT needs them."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from deploy_networks import BOTH_LIBRARIES, SEED, network, relative

from espace_tf.deploy.export_tflite import export_tflite
from espace_tf.deploy.inference import inference_copy

TOLERANCES = {"float16": 5e-3, "mixed_float16": 5e-3, "bfloat16": 4e-2, "mixed_bfloat16": 4e-2,
              "float64": 1e-5}  # fmt: skip


def network_of(library, policy: str):
    """`network` in another type."""
    used = keras.config if library is keras else tf_keras.mixed_precision
    switch = used.set_dtype_policy if library is keras else used.set_global_policy
    switch(policy)
    try:
        return network(library)
    finally:
        switch("float32")


@BOTH_LIBRARIES
@pytest.mark.parametrize("policy", TOLERANCES)
@pytest.mark.filterwarnings("ignore:.*mixed_float16")
def test_the_copy_for_litert_is_in_float32(library, policy, tmp_path):
    """Against stock Keras in float32 with the same weights."""
    model, plain = network_of(library, policy), network(library)
    plain.set_weights([np.asarray(weight, np.float32) for weight in model.get_weights()])
    copy = inference_copy(model)
    assert {tf.as_dtype(weight.dtype) for weight in copy.weights} == {tf.float32}
    assert {layer.compute_dtype for layer in copy.layers[1:]} == {"float32"}
    batch = np.random.default_rng(SEED).random((3, 12, 12, 2), np.float32)
    expected = np.asarray(plain(batch, training=False))
    assert relative(np.asarray(copy(batch, training=False)), expected) < 1e-5, f"seed {SEED}"
    assert export_tflite(model, tmp_path / "a.tflite").max_difference < TOLERANCES[policy]
    assert model.layers[1].compute_dtype == policy.removeprefix("mixed_")  # it is not touched


def test_layers_inside_layers_are_in_float32_too():
    x = keras.Input((4, 6, 6, 2))
    inner = keras.layers.Conv2D(3, 3, dtype="float16")
    model = keras.Model(x, keras.layers.TimeDistributed(inner, dtype="float16")(x))
    (layer,) = inference_copy(model).layers[1:]
    assert (layer.compute_dtype, layer.layer.compute_dtype) == ("float32", "float32")
    assert layer.layer.kernel.dtype == "float32"


@pytest.mark.parametrize("policy", ["mixed_float16", "float16", "float64"])
def test_a_policy_of_the_process_changes_nothing(policy, tmp_path):
    model = network()
    keras.config.set_dtype_policy(policy)
    try:
        assert export_tflite(model, tmp_path / "a.tflite").max_difference < 1e-5
    finally:
        keras.config.set_dtype_policy("float32")
