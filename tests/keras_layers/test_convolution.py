"""Every contract of a Keras layer, for every layer; then what all of them do in a call."""

import doctest
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from espace_tf import keras_layers
from espace_tf.keras_layers import (
    DecomposedConv2D,
    MaskedConv2D,
    decomposed_conv2d,
    masked_conv2d,
    texts,
)

SIZE = (8, 9, 4)
PAIR = {"rank": 2, "kernel_size": 3}
# A new layer gets all contracts by adding a line.
DESCRIPTORS = {
    "masked": (MaskedConv2D, {"kernel_size": 3}),
    "masked, positions": (
        MaskedConv2D,
        {"kernel_size": (3, 2), "positions": [0, 7, 30], "activation": "relu"},
    ),
    "masked, strides": (
        MaskedConv2D,
        {"kernel_size": 3, "strides": 2, "padding": "same", "positions": [0, 9, 19]},
    ),
    "masked, dilation, groups": (
        MaskedConv2D,
        {"kernel_size": 3, "dilation_rate": 2, "groups": 2, "positions": [3, 4]},
    ),
    "vertical": (DecomposedConv2D, {**PAIR, "kernel_regularizer": "l2"}),
    "horizontal, positions": (
        DecomposedConv2D,
        {**PAIR, "order": "horizontal", "positions": [0, 7, 30], "activation": "softmax"},
    ),
    "vertical, strides, positions": (
        DecomposedConv2D,
        {**PAIR, "strides": (2, 1), "padding": "same", "positions": range(0, 36, 5)},
    ),
    "horizontal, dilation, groups": (
        DecomposedConv2D,
        {**PAIR, "order": "horizontal", "dilation_rate": (1, 2), "groups": 2, "use_bias": False},
    ),
    "pointwise pair, positions": (
        DecomposedConv2D,
        {"kernel_size": 1, "rank": 3, "positions": [2, 71], "kernel_constraint": "non_neg"},
    ),
}


@pytest.fixture(params=DESCRIPTORS)
def described(request):
    layer, options = DESCRIPTORS[request.param]
    return layer, {"filters": 6, **options}


@pytest.fixture
def inputs():
    return np.random.default_rng(0).normal(size=(3, *SIZE)).astype("float32")


def make_model(described, **options):
    keras.utils.set_random_seed(0)
    layer, arguments = described
    return keras.Sequential(
        [keras.Input(SIZE), layer(**arguments, **options, name="one"), keras.layers.Flatten()]
    )


def test_configuration_round_trip(described):
    layer = make_model(described).layers[0]
    config = layer.get_config()
    again = type(layer).from_config(config)
    again.build((None, *SIZE))
    assert again.get_config() == config
    assert set(config) >= set(described[1])


@pytest.mark.parametrize("batch", [1, 5])
def test_any_batch_and_the_announced_shape(described, batch):
    layer = make_model(described).layers[0]
    outputs = layer(np.zeros((batch, *SIZE), "float32"))
    assert outputs.shape == layer.compute_output_shape((batch, *SIZE))
    assert layer.compute_output_spec(keras.KerasTensor((None, *SIZE))).shape[0] is None


def test_saved_and_loaded(described, inputs, tmp_path):
    model = make_model(described)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(again(inputs), model(inputs))


def test_weights_saved_and_loaded(described, inputs, tmp_path):
    model, other = make_model(described), make_model(described)
    other.set_weights([0 * weight for weight in other.get_weights()])
    model.save_weights(tmp_path / "model.weights.h5")
    other.load_weights(tmp_path / "model.weights.h5")
    np.testing.assert_array_equal(other(inputs), model(inputs))


def test_cloned(described, inputs):
    model = make_model(described)
    clone = keras.models.clone_model(model)
    clone.set_weights(model.get_weights())
    np.testing.assert_array_equal(clone(inputs), model(inputs))


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "float64"])
def test_dtype_policies(described, inputs, policy):
    model, mixed = make_model(described), make_model(described, dtype=policy)
    mixed.set_weights(model.get_weights())
    layer = mixed.layers[0]
    outputs = layer(inputs)
    assert outputs.dtype == layer.compute_dtype
    assert {weight.dtype for weight in layer.weights} == {layer.variable_dtype}
    expected = model.layers[0](inputs)
    np.testing.assert_allclose(tf.cast(outputs, "float32"), expected, rtol=0.05, atol=0.05)


def train_one_step(model, inputs, jit):
    model.compile("adam", "mse", jit_compile=jit)
    before = model.get_weights()
    targets = np.ones((3, model.output_shape[1]), "float32")
    history = model.fit(inputs, targets, verbose=0, batch_size=2)
    assert np.isfinite(history.history["loss"][0])
    for old, new in zip(before, model.get_weights(), strict=True):
        assert np.abs(old - new).max() > 0


def test_one_step_of_training(described, inputs):
    train_one_step(make_model(described, dtype="mixed_bfloat16"), inputs, jit=False)


@pytest.mark.parametrize("name", ["masked, dilation, groups", "vertical, strides, positions"])
def test_one_step_of_training_compiled_with_xla(name, inputs):
    layer, options = DESCRIPTORS[name]
    train_one_step(make_model((layer, {"filters": 6, **options})), inputs, jit=True)


def test_compiled_with_xla(described, inputs):
    layer = make_model(described).layers[0]
    assert layer.supports_jit
    compiled = tf.function(layer, jit_compile=True)
    np.testing.assert_allclose(compiled(inputs), layer(inputs), rtol=1e-4, atol=1e-5)


FRESH = """
import sys
import numpy as np, tensorflow as tf
inputs = np.load("inputs.npy")
exported = tf.saved_model.load("exported")
served = exported.serve(tf.constant(inputs))
import keras
def load():
    return keras.models.load_model("model.keras")(inputs)
try:
    load()
except TypeError as error:
    assert "MaskedConv2D" in str(error), error
else:
    raise SystemExit("loaded without the classes")
assert not any(name.startswith("espace_tf") for name in sys.modules)
sys.path.insert(0, sys.argv[1])
import espace_tf.keras_layers
np.savez("outputs.npz", served=served, loaded=load())
"""


@pytest.mark.parametrize("module", [keras_layers, decomposed_conv2d, masked_conv2d, texts])
def test_examples_run(module):
    results = doctest.testmod(module)
    assert results.attempted and not results.failed


@pytest.fixture
def everything():
    keras.utils.set_random_seed(0)
    values = first = keras.Input(SIZE)
    values = MaskedConv2D(4, 3, padding="same", positions=range(0, 72, 3))(values)
    values = DecomposedConv2D(6, 3, 2, "horizontal", positions=[0, 5, 41], activation="elu")(values)
    return keras.Model(first, DecomposedConv2D(4, 3, 2, groups=2)(values))


def test_files_in_a_fresh_process(everything, inputs, tmp_path):
    everything.save(tmp_path / "model.keras")
    everything.export(tmp_path / "exported", verbose=False)
    np.save(tmp_path / "inputs.npy", inputs)
    root = str(Path(__file__).parents[2])
    command = [sys.executable, "-c", FRESH, root]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    outputs = np.load(tmp_path / "outputs.npz")
    expected = np.array(everything(inputs))
    np.testing.assert_allclose(outputs["served"], expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(outputs["loaded"], expected, rtol=1e-5, atol=1e-5)


def test_exports_plain_operations(everything, inputs, tmp_path):
    everything.export(tmp_path / "exported", verbose=False)
    signature = tf.saved_model.load(tmp_path / "exported").signatures["serving_default"]
    graph = signature.graph.as_graph_def()
    nodes = [*graph.node, *(node for f in graph.library.function for node in f.node_def)]
    assert {node.op for node in nodes} <= set(dir(tf.raw_ops)) | {"Placeholder"}
    assert sum(node.op == "GatherV2" for node in nodes) == 5  # table and spread; the first half


def test_a_layer_is_shared_by_maps_of_several_sizes():
    layer = DecomposedConv2D(3, 3, 2, padding="same")
    layer.build((None, 8, 8, 2))
    rng = np.random.default_rng(1)
    large = rng.normal(size=(1, 11, 8, 2)).astype("float32")
    np.testing.assert_allclose(layer(large)[:, :6], layer(large[:, :8])[:, :6], rtol=1e-5)


@pytest.mark.parametrize("sizes", [(None, None), (8, None)])
def test_a_map_of_unknown_size(inputs, sizes):
    model = keras.Sequential([keras.Input((*sizes, 4)), MaskedConv2D(5, 3, strides=2)])
    assert model.output_shape == (None, None if sizes[0] is None else 3, None, 5)
    fixed = keras.Sequential([keras.Input(SIZE), MaskedConv2D(5, 3, strides=2)])
    fixed.set_weights(model.get_weights())
    np.testing.assert_allclose(model(inputs), fixed(inputs), rtol=1e-6)


@pytest.mark.parametrize("positions", [None, [0, 30]])
def test_a_pipeline_that_hides_its_sizes(inputs, positions):
    layer = MaskedConv2D(5, 3, positions=positions)
    layer.build((None, *SIZE))
    hidden = tf.function(layer, input_signature=[tf.TensorSpec([None, None, None, 4])])
    np.testing.assert_allclose(hidden(inputs), layer(inputs), rtol=1e-6)


class TestFade:
    @pytest.fixture(params=["masked", "pair"])
    def pair(self, request, inputs):
        """The layer with positions, and the same one without."""
        make = {
            "masked": lambda **o: MaskedConv2D(6, 3, padding="same", activation="tanh", **o),
            "pair": lambda **o: DecomposedConv2D(6, 3, 2, padding="same", activation="tanh", **o),
        }[request.param]
        keras.utils.set_random_seed(0)
        layer, dense = make(positions=[0, 13, 40]), make()
        dense(inputs)
        layer(inputs)
        layer.set_weights(dense.get_weights())
        return layer, dense

    @pytest.mark.parametrize("fade", [0.0, 0.5, 1.0])
    def test_training_mixes_and_inference_masks(self, pair, inputs, fade):
        layer, dense = pair
        layer.fade = fade
        masked = layer(inputs, training=False)
        expected = fade * masked + (1 - fade) * dense(inputs)
        np.testing.assert_allclose(layer(inputs, training=True), expected, rtol=1e-4, atol=1e-5)
        layer.fade = None
        np.testing.assert_allclose(layer(inputs, training=True), masked, rtol=1e-6)

    def test_gradients_reach_the_dense_part(self, pair, inputs):
        layer, dense = pair
        gradients = []
        for run, fade in ((layer, 0.0), (dense, None)):
            run.fade = fade
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(run(inputs, training=True) ** 2)
            gradients.append(tape.gradient(loss, run.trainable_weights))
        for own, expected in zip(*gradients, strict=True):
            np.testing.assert_allclose(own, expected, rtol=1e-3, atol=1e-3)

    @pytest.mark.parametrize("kind", [tf.Variable, keras.Variable])
    def test_a_variable_changes_it_without_tracing_again(self, pair, inputs, kind):
        layer, dense = pair
        layer.fade = kind(0.0)
        step = tf.function(lambda values: layer(values, training=True))
        np.testing.assert_allclose(step(inputs), dense(inputs), rtol=1e-4, atol=1e-5)
        layer.fade.assign(1.0)
        np.testing.assert_allclose(step(inputs), layer(inputs), rtol=1e-4, atol=1e-5)
        assert step.experimental_get_tracing_count() == 1

    def test_a_function_gives_it(self, pair, inputs):
        layer, dense = pair
        layer.fade = lambda: tf.constant(0.0)
        np.testing.assert_allclose(
            layer(inputs, training=True), dense(inputs), rtol=1e-4, atol=1e-5
        )

    def test_it_is_neither_tracked_nor_saved(self, pair, inputs, tmp_path):
        layer, _ = pair
        model = keras.Sequential([keras.Input(SIZE), layer])
        config, count = layer.get_config(), len(model.variables)
        layer.fade = keras.Variable(0.5)
        assert len(model.variables) == count
        assert layer.get_config() == config
        model.save(tmp_path / "model.keras")
        assert keras.models.load_model(tmp_path / "model.keras").layers[0].fade is None

    def test_it_works_in_mixed_precision(self, inputs):
        layer = MaskedConv2D(6, 3, positions=[0, 13], dtype="mixed_float16")
        layer(inputs)
        layer.fade = tf.Variable(0.5)
        assert layer(inputs, training=True).dtype == "float16"
