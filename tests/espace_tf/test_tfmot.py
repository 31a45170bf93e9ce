"""tensorflow-model-optimization's own calls on networks with layers of this package."""

import os
import subprocess
import sys
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

import espace_tf.tfmot
from espace_tf import keras_layers
from espace_tf.keras_layers import legacy

SEED = 13
LOSS = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)


@pytest.fixture(scope="module")
def tfmot():
    import tensorflow_model_optimization

    return tensorflow_model_optimization


def samples():
    random = np.random.default_rng(SEED)
    return random.normal(size=(32, 8, 8, 3)).astype("float32"), random.integers(0, 4, 32)


def network():
    """Each of our layers, masked and dense, before a batch norm, a ReLU, or with an activation."""
    tf_keras.utils.set_random_seed(SEED)
    layers, options = tf_keras.layers, {"padding": "same", "use_bias": False}
    inputs = layers.Input((8, 8, 3))
    x = layers.Conv2D(6, 3, name="stock", **options)(inputs)
    first = layers.ReLU()(layers.BatchNormalization()(x))
    half = [8 * y + z for y in range(0, 8, 2) for z in range(8)]
    x = legacy.DecomposedConv2D(6, 3, 4, positions=half, name="both", **options)(first)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    x = legacy.MaskedConv2D(6, 3, positions=range(0, 64, 2), name="masked", **options)(x)
    x = layers.Add()([layers.BatchNormalization()(x), first])
    x = legacy.DecomposedConv2D(8, 3, 4, strides=2, activation="relu", name="thin")(x)
    return tf_keras.Model(inputs, layers.Dense(4)(layers.GlobalAveragePooling2D()(x)))


def trained(model, callbacks=()):
    model.compile("sgd", LOSS)
    model.fit(*samples(), verbose=0, callbacks=list(callbacks))
    return model


def kernels(model):
    return {
        f"{layer.name}/{name}": weight.numpy()
        for layer in model.layers
        if isinstance(layer, legacy.MaskedConv2D | legacy.DecomposedConv2D)
        for name, weight in layer.get_clusterable_weights()
    }


def assert_loads_alike(model, path):
    model.save(path)
    x = samples()[0]
    np.testing.assert_array_equal(tf_keras.models.load_model(path)(x), model(x))


def test_the_import_leaves_the_process_its_keras():
    assert tf.keras.Model is keras.Model and "TF_USE_LEGACY_KERAS" not in os.environ
    program = (
        "import os, sys, espace_tf\n"
        "assert 'tensorflow_model_optimization' not in sys.modules\n"
        "assert espace_tf.tfmot.quantize_scope is not None\n"
        "import keras, tensorflow as tf\n"
        "assert tf.keras.Model is keras.Model and os.environ['TF_USE_LEGACY_KERAS'] == '0'\n"
    )
    environment = {**os.environ, "TF_USE_LEGACY_KERAS": "0", "TF_CPP_MIN_LOG_LEVEL": "3"}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_pruning(tfmot, tmp_path):
    schedule = tfmot.sparsity.keras.ConstantSparsity(0.5, begin_step=0, frequency=1)
    pruned = tfmot.sparsity.keras.prune_low_magnitude(network(), pruning_schedule=schedule)
    trained(pruned, [tfmot.sparsity.keras.UpdatePruningStep()])
    found = tfmot.sparsity.keras.strip_pruning(pruned)
    assert len(kernels(found)) == 5
    for name, kernel in kernels(found).items():
        assert (kernel == 0).mean() == pytest.approx(0.5, abs=0.5 / kernel.size), name
    assert_loads_alike(found, tmp_path / "pruned.keras")


def test_clustering(tfmot, tmp_path):
    evenly = tfmot.clustering.keras.CentroidInitialization.LINEAR
    clustered = trained(tfmot.clustering.keras.cluster_weights(network(), 4, evenly))
    found = tfmot.clustering.keras.strip_clustering(clustered)
    assert len(kernels(found)) == 5
    for name, kernel in kernels(found).items():
        assert len(np.unique(kernel)) <= 4, name
    assert_loads_alike(found, tmp_path / "clustered.keras")


def quantized(tfmot, model):
    annotated = espace_tf.tfmot.quantize_annotate(model)
    with espace_tf.tfmot.quantize_scope():
        return tfmot.quantization.keras.quantize_apply(annotated)


def test_a_network_trained_for_int8_becomes_a_file_without_float_operations(tfmot, tmp_path):
    model = trained(network())
    found = quantized(tfmot, model)
    x = samples()[0]
    found(x, training=True)  # finds ranges
    scale = np.abs(model(x, training=False)).max()
    np.testing.assert_allclose(found(x), model(x, training=False), atol=0.3 * scale)
    found = trained(found)

    found.save(tmp_path / "saved")
    with espace_tf.tfmot.quantize_scope():
        np.testing.assert_array_equal(tf_keras.models.load_model(tmp_path / "saved")(x), found(x))

    converter = tf.lite.TFLiteConverter.from_keras_model(found)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of statistics, which the network holds
        content = converter.convert()
    lite = interpreter(content)
    tensors = {each["index"]: each["dtype"] for each in lite.get_tensor_details()}
    for operation in lite._get_ops_details():
        if operation["op_name"] not in ("QUANTIZE", "DEQUANTIZE"):
            types = {tensors[index] for index in operation["outputs"]}
            assert types == {np.int8}, operation["op_name"]
    entry, exit_ = lite.get_input_details()[0]["index"], lite.get_output_details()[0]["index"]
    lite.resize_tensor_input(entry, x.shape)
    lite.allocate_tensors()
    lite.set_tensor(entry, x)
    lite.invoke()
    np.testing.assert_allclose(lite.get_tensor(exit_), found(x), atol=0.2 * scale)


def test_ranges_begin_at_those_of_images(tfmot):
    model = trained(network())
    x = samples()[0]
    found = quantized(tfmot, model)
    before = [norm.get_weights() for norm in norms(found)]
    espace_tf.tfmot.calibrate(found, x)
    for norm, values in zip(norms(found), before, strict=True):
        np.testing.assert_array_equal(norm.get_weights(), values)
        assert norm.trainable
    name = next(each.name for each in found.layers if each.name.endswith("thin"))
    low, high = (
        next(w.numpy() for w in found.get_layer(name).weights if f"output_post_activation_{end}" in
             w.name)
        for end in ("min", "max")
    )  # fmt: skip
    inner = tf_keras.Model(model.input, model.get_layer("thin").output)(x).numpy()
    assert low == pytest.approx(0, abs=1e-6) and high == pytest.approx(inner.max(), rel=0.1)
    expected = model(x).numpy()
    np.testing.assert_allclose(found(x), expected, atol=0.1 * np.abs(expected).max())
    with pytest.raises(ValueError, match="quantize_apply returned"):
        espace_tf.tfmot.calibrate(model, x)
    with pytest.raises(TypeError, match="must be a tf_keras model"):
        espace_tf.tfmot.calibrate(keras.Sequential([keras.Input([4])]), x)


def norms(model):
    kind = tf_keras.layers.BatchNormalization
    return [each for each in model._flatten_layers() if isinstance(each, kind)]


def interpreter(content):
    from ai_edge_litert.interpreter import Interpreter

    return Interpreter(model_content=content)


def test_what_tfmot_does_not_take_is_refused_in_words():
    with pytest.raises(TypeError, match="must be a tf_keras model.*a keras model"):
        espace_tf.tfmot.quantize_annotate(keras.Sequential([keras.Input([4])]))
    with pytest.raises(TypeError, match="model must be"):
        espace_tf.tfmot.quantize_annotate("model")


def keras3_network():
    """Each of our layers, masked and dense, among what tf_keras has as well."""
    keras.utils.set_random_seed(SEED)
    layers = keras.layers
    inputs = layers.Input((8, 8, 3), name="image")
    x = layers.Conv2D(6, 3, padding="same", kernel_regularizer="l2", name="stock")(inputs)
    first = layers.ReLU(max_value=6.0)(layers.BatchNormalization()(x))
    x = keras_layers.DecomposedConv2D(6, 3, 4, positions=range(0, 64, 2), padding="same")(first)
    x = keras_layers.MaskedConv2D(6, 3, padding="same", activation="relu")(x)
    x = layers.Concatenate()([x, first])
    x = layers.DepthwiseConv2D(3)(layers.MaxPooling2D()(x))
    return keras.Model(inputs, layers.Dense(4, "softmax")(layers.GlobalAveragePooling2D()(x)))


def test_a_keras_3_network_is_the_same_in_tf_keras():
    model = keras3_network()
    random = np.random.default_rng(SEED)
    model.set_weights([random.uniform(0.1, 1, each.shape) for each in model.get_weights()])
    model.get_layer("stock").trainable = False
    copy = espace_tf.tfmot.from_keras(model)
    assert isinstance(copy, tf_keras.Model)
    assert [each.name for each in copy.layers] == [each.name for each in model.layers]
    assert not copy.get_layer("stock").trainable
    assert copy.get_layer("stock").kernel_regularizer.l2 == pytest.approx(0.01)
    x = samples()[0]
    np.testing.assert_allclose(copy(x), model(x), atol=1e-5)


def test_batch_norms_of_a_keras_3_network_are_folded_in_its_copy():
    inputs = keras.Input((8, 8, 3), name="image")
    x = keras_layers.DecomposedConv2D(6, 3, 4, positions=range(0, 36, 2))(inputs)
    outputs = keras.layers.ReLU()(keras.layers.BatchNormalization()(x))
    model = keras.Model(inputs, outputs)
    random = np.random.default_rng(SEED)
    model.set_weights([random.uniform(0.1, 1, each.shape) for each in model.get_weights()])
    annotated = espace_tf.tfmot.quantize_annotate(espace_tf.tfmot.from_keras(model))
    kinds = {type(getattr(each, "layer", each)).__name__ for each in annotated.layers}
    assert "BatchNormalization" not in kinds
    x = samples()[0]
    np.testing.assert_allclose(annotated(x), model(x), rtol=1e-4, atol=1e-5)


def test_what_tf_keras_does_not_have_stays_in_keras_3():
    inputs = keras.Input((8, 8, 3))
    for layer in (keras.layers.RMSNormalization(), keras.Sequential([keras.layers.ReLU()])):
        with pytest.raises(ValueError, match=f"layers that tf_keras has.*{layer.name}"):
            espace_tf.tfmot.from_keras(keras.Model(inputs, layer(inputs)))
    with pytest.raises(ValueError, match="layers that tf_keras has"):
        espace_tf.tfmot.from_keras(keras.Model(inputs, keras.ops.relu(inputs)))
    with pytest.raises(TypeError, match="must be a Keras 3 model"):
        espace_tf.tfmot.from_keras(network())


@pytest.mark.filterwarnings("ignore:Layer .* does not have a `quantize` method:UserWarning")
def test_keras_itself_quantizes_no_convolution():
    model = keras3_network()
    model.quantize("int8")
    found = {type(each).__name__: each for each in model.layers}
    assert found["Dense"].quantization_mode == "int8"
    assert found["Conv2D"].quantization_mode is None
    assert found["Conv2D"].kernel.dtype == "float32"
