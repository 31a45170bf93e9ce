"""Layers of packed regions: the contract of Keras layers, and stock Keras on the maps."""

import doctest
import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from espace_tf.keras_layers import (
    DecomposedConv2D,
    GatherRows,
    MaskedConv2D,
    PackedGlobalAveragePooling2D,
    PackedPooling2D,
    packed,
    packing,
)
from espace_tf.kernels.index_map import Geometry, conv_table, nearest_spread

SIZE = (7, 6)
ROWS = 9
RANDOM = np.random.default_rng(0)
SHOWN = RANDOM.integers(0, ROWS, SIZE[0] * SIZE[1]).astype(np.int32)
WINDOWS = Geometry(kernel_size=(3, 3), input_size=SIZE, padding="same")
TABLE = SHOWN[conv_table(WINDOWS)]
TABLE[conv_table(WINDOWS) < 0] = -1
CONV = {"filters": 5, "kernel_size": 3, "padding": "same"}
COMPUTED = np.arange(0, 42, 3)
PACKED = {"input_size": SIZE, "source": SHOWN, "computed": COMPUTED, "spread": None}
SPREAD = {**PACKED, "spread": nearest_spread(SIZE, COMPUTED)}
# A new layer gets all contracts by adding a line.
DESCRIPTORS = {
    "gather": (GatherRows, {"rows": [3, 3, -1, 0]}),
    "gather a map": (GatherRows, {"rows": SHOWN, "output_size": SIZE}),
    "largest": (PackedPooling2D, {"pooling": "max", "table": TABLE}),
    "average, spread": (
        PackedPooling2D,
        {"pooling": "average", "table": TABLE[:4], "spread": [0, 3, 3, 1], "output_size": (2, 2)},
    ),
    "global": (PackedGlobalAveragePooling2D, {"shown": [*range(ROWS), 4, 4, -1]}),
    "global, keepdims": (PackedGlobalAveragePooling2D, {"shown": SHOWN, "keepdims": True}),
    "convolution": (MaskedConv2D, {**CONV, "packing": PACKED}),
    "convolution to a map": (MaskedConv2D, {**CONV, "packing": SPREAD}),
    "pair": (DecomposedConv2D, {**CONV, "rank": 2, "packing": PACKED}),
    "pair to a map": (
        DecomposedConv2D,
        {**CONV, "rank": 2, "order": "horizontal", "packing": SPREAD, "activation": "relu"},
    ),
}


@pytest.fixture(params=DESCRIPTORS)
def described(request):
    return DESCRIPTORS[request.param]


@pytest.fixture
def inputs():
    return np.random.default_rng(1).normal(size=(3, ROWS, 1, 4)).astype("float32")


def make_model(described, **options):
    keras.utils.set_random_seed(0)
    layer, arguments = described
    first = keras.layers.Conv2D(4, 1, name="first")
    made = layer(**arguments, **options, name="one")
    return keras.Sequential([keras.Input((ROWS, 1, 4)), first, made, keras.layers.Flatten()])


def test_configuration_round_trip_is_plain_json(described):
    layer = make_model(described).layers[1]
    text = json.dumps(keras.saving.serialize_keras_object(layer))
    again = keras.saving.deserialize_keras_object(json.loads(text))
    assert again.get_config() == layer.get_config()


@pytest.mark.parametrize("batch", [1, 5])
def test_any_batch_and_the_announced_shape(described, batch):
    layer = make_model(described).layers[1]
    outputs = layer(np.zeros((batch, ROWS, 1, 4), "float32"))
    assert outputs.shape == layer.compute_output_shape((batch, ROWS, 1, 4))
    assert layer.compute_output_spec(keras.KerasTensor((None, ROWS, 1, 4))).shape[0] is None


def test_saved_loaded_and_cloned(described, inputs, tmp_path):
    model = make_model(described)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(again(inputs), model(inputs))
    clone = keras.models.clone_model(model)
    clone.set_weights(model.get_weights())
    np.testing.assert_array_equal(clone(inputs), model(inputs))


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "float64"])
def test_dtype_policies(described, inputs, policy):
    model, mixed = make_model(described), make_model(described, dtype=policy)
    mixed.set_weights(model.get_weights())
    layer = mixed.layers[1]
    values = tf.cast(inputs, layer.compute_dtype)
    assert layer(values).dtype == layer.compute_dtype
    np.testing.assert_allclose(
        tf.cast(layer(values), "float32"), model.layers[1](inputs), rtol=0.05, atol=0.05
    )


def test_one_step_of_training_also_with_xla(described, inputs):
    for jit in (False, True):
        model = make_model(described)
        model.compile("adam", "mse", jit_compile=jit)
        before = model.get_weights()
        model.fit(inputs, np.ones((3, model.output_shape[1]), "float32"), verbose=0)
        for old, new in zip(before, model.get_weights(), strict=True):
            assert np.isfinite(new).all() and np.abs(old - new).max() > 0


def shown_map(inputs):
    return inputs.reshape(len(inputs), ROWS, -1)[:, SHOWN].reshape(len(inputs), *SIZE, -1)


def test_gathering_shows_rows_and_zeros(inputs):
    np.testing.assert_array_equal(GatherRows(SHOWN, SIZE)(inputs), shown_map(inputs))
    found = np.array(GatherRows([2, -1, 2])(inputs))
    np.testing.assert_array_equal(found[:, [0, 2], 0], inputs[:, [2, 2], 0])
    assert not found[:, 1].any()


@pytest.mark.parametrize("pooling", ["max", "average"])
def test_pooling_is_the_stock_one_on_the_map(pooling, inputs):
    stock = {"max": keras.layers.MaxPooling2D, "average": keras.layers.AveragePooling2D}[pooling]
    expected = np.array(stock(3, 1, "same")(shown_map(inputs)))
    layer = PackedPooling2D(pooling, TABLE)
    np.testing.assert_allclose(
        np.reshape(layer(inputs), expected.shape), expected, rtol=1e-6, atol=1e-6
    )
    lines, spread = np.unique(TABLE, axis=0, return_inverse=True)
    layer = PackedPooling2D(pooling, lines, spread=spread.reshape(-1), output_size=SIZE)
    np.testing.assert_allclose(layer(inputs), expected, rtol=1e-6, atol=1e-6)


def test_global_average_is_the_stock_one_on_the_map(inputs):
    expected = shown_map(inputs).mean((1, 2))
    np.testing.assert_allclose(PackedGlobalAveragePooling2D(SHOWN)(inputs), expected, atol=1e-6)
    half = PackedGlobalAveragePooling2D([0, -1])(inputs)  # zeros count as positions
    np.testing.assert_allclose(half, inputs[:, 0, 0] / 2, rtol=1e-6)


@pytest.mark.parametrize("kind", ["masked", "vertical", "horizontal"])
@pytest.mark.parametrize("steps", [{}, {"strides": 2}, {"dilation_rate": 2}, {"padding": "valid"}])
def test_a_packed_convolution_is_the_one_on_the_map(kind, steps, inputs, build):
    make = {
        "masked": lambda **o: MaskedConv2D(**o),
        "vertical": lambda **o: DecomposedConv2D(**o, rank=3),
        "horizontal": lambda **o: DecomposedConv2D(**o, rank=3, order="horizontal"),
    }[kind]
    options, image = {**CONV, **steps, "activation": "tanh"}, shown_map(inputs)
    dense, weights = build(make(**options), image, np.random.default_rng(2))
    expected = np.array(dense(image)).reshape(3, -1, 5)
    size = dense.compute_output_shape(image.shape)[1:3]
    computed = np.arange(0, size[0] * size[1], 2)
    spread = nearest_spread(size, computed)
    packing_of = {"input_size": SIZE, "source": SHOWN, "computed": computed}
    for shown in (None, spread):
        layer = make(**options, packing={**packing_of, "spread": shown})
        layer(inputs)
        layer.set_weights(weights)
        wanted = expected[:, computed] if shown is None else expected[:, computed[shown]]
        found = np.array(layer(inputs)).reshape(wanted.shape)
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4, err_msg="seeds 1, 2")


def test_a_packed_mask_does_not_fade(inputs):
    layer = MaskedConv2D(**CONV, packing=PACKED)
    layer.fade = 0.5
    layer(inputs, training=False)
    with pytest.raises(ValueError, match="packed=False"):
        layer(inputs, training=True)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GatherRows([]), "not empty"),
        (lambda: GatherRows([0.5]), "integers"),
        (lambda: GatherRows("what?"), "encode_rows"),
        (lambda: GatherRows([0, 1], (2, 2)), "2 positions"),
        (lambda: PackedPooling2D("sum", TABLE), "pooling must be one of"),
        (lambda: PackedPooling2D("max", [[-1, -1]]), "at least one row"),
        (lambda: PackedPooling2D("max", TABLE, spread=[99], output_size=(1, 1)), "spread"),
        (lambda: MaskedConv2D(**CONV, packing={"source": None}), "packing must be"),
        (lambda: MaskedConv2D(**CONV, packing={**PACKED, "computed": None}), "computed"),
    ],
)
def test_arguments_that_make_no_sense(make, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make()


@pytest.mark.parametrize(
    "layer",
    [
        lambda: GatherRows([ROWS]),
        lambda: PackedPooling2D("max", [[0, ROWS]]),
        lambda: PackedGlobalAveragePooling2D([ROWS]),
        lambda: MaskedConv2D(**CONV, packing={**PACKED, "source": SHOWN + 1}),
        lambda: MaskedConv2D(**CONV, packing={**PACKED, "source": None}),
    ],
)
def test_an_input_without_those_rows_is_refused(layer, inputs):
    with pytest.raises(ValueError, match=r"\[-1, |height and width"):
        layer()(inputs)


def test_rows_are_encoded_compactly():
    rows = nearest_spread((112, 112), np.arange(0, 112 * 112, 2))
    text = packing.encode_rows(rows)
    np.testing.assert_array_equal(packing.decode_rows(text), rows)
    assert len(text) < len(rows) / 10


@pytest.mark.parametrize("module", [packed, packing])
def test_examples_run(module):
    results = doctest.testmod(module)
    assert results.attempted and not results.failed
