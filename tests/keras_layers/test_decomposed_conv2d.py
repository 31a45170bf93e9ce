import keras
import numpy as np
import pytest
import tensorflow as tf

from espace_tf.keras_layers import DecomposedConv2D, for_library
from espace_tf.kernels.index_map import Geometry, conv_table, rows_read

GEOMETRIES = {
    "valid": {},
    "same": {"padding": "same"},
    "strided": {"strides": (2, 3), "padding": "same"},
    "strided valid": {"strides": (1, 2)},
    "dilated": {"dilation_rate": (2, 3), "padding": "same"},
    "groups": {"groups": 2, "padding": "same"},
    "pointwise": {"kernel_size": 1},
    "oblong": {"kernel_size": (2, 5), "padding": "same"},
    "a column": {"kernel_size": (3, 1)},
}
ORDERS = ("vertical", "horizontal")


def make_inputs(seed):
    rng = np.random.default_rng(seed)
    return rng, rng.normal(size=(3, 9, 11, 4)).astype("float32")


def options_of(geometry):
    options = {"kernel_size": 3, **GEOMETRIES[geometry]}
    return options.pop("kernel_size"), options


def pair_options(options, order):
    """The options of the two stock convolutions: each has the steps of its own axis."""
    first, second = dict(options), dict(options)
    for name in ("strides", "dilation_rate"):
        if name in options:
            vertical, horizontal = (options[name][0], 1), (1, options[name][1])
            swap = order == "horizontal"
            first[name], second[name] = (horizontal, vertical) if swap else (vertical, horizontal)
    return first, second


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_equals_two_stock_convolutions(library, geometry, order, build, stock_conv):
    rng, inputs = make_inputs(0)
    size, options = options_of(geometry)
    layer = for_library(library).DecomposedConv2D(6, size, 2, order, **options)
    layer, (first, second, bias) = build(layer, inputs, rng)
    height, width = layer.kernel_size
    thin = [(height, 1), (1, width)][:: 1 if order == "vertical" else -1]
    groups = options.get("groups", 1)
    assert first.shape == (*thin[0], 4 // groups, 2 * groups)
    assert second.shape == (*thin[1], 2, 6)
    of_first, of_second = pair_options(options, order)
    between = stock_conv(library, inputs, first, **of_first)
    expected = stock_conv(library, between, second, bias, **of_second)
    outputs = np.array(layer(inputs))
    np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-4, err_msg="seed 0")
    assert outputs.shape == layer.compute_output_shape(inputs.shape)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("geometry", ["strided", "dilated", "groups"])
def test_equals_one_convolution_with_the_product_kernel(geometry, order, build, stock_conv):
    rng, inputs = make_inputs(1)
    size, options = options_of(geometry)
    layer, (first, second, bias) = build(
        DecomposedConv2D(6, size, 3, order, **options), inputs, rng
    )
    groups = options.get("groups", 1)
    product = "aick,ibkn->abcn" if order == "vertical" else "ibck,aikn->abcn"
    halves = zip(np.split(first, groups, -1), np.split(second, groups, -1), strict=True)
    kernel = np.concatenate([np.einsum(product, one, two) for one, two in halves], -1)
    expected = stock_conv(keras, inputs, kernel, bias, **options)
    np.testing.assert_allclose(layer(inputs), expected, rtol=1e-4, atol=1e-4, err_msg="seed 1")


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("keep", [0.03, 0.3, 1.0])
def test_a_position_shows_its_nearest_kept_one(library, geometry, order, keep, build, show_nearest):
    seed = round(100 * keep)
    rng, inputs = make_inputs(seed)
    size, options = options_of(geometry)
    classes = for_library(library)
    dense, weights = build(
        classes.DecomposedConv2D(6, size, 2, order, activation="relu", **options), inputs, rng
    )
    everywhere = np.array(dense(inputs))
    rows = everywhere[0, ..., 0].size
    positions = rng.choice(rows, max(1, int(keep * rows)), replace=False)
    masked = classes.DecomposedConv2D(
        6, size, 2, order, activation="relu", positions=positions, **options
    )
    masked.build(inputs.shape)
    masked.set_weights(weights)
    np.testing.assert_allclose(
        masked(inputs),
        show_nearest(everywhere, positions),
        rtol=1e-4,
        atol=1e-4,
        err_msg=f"seed {seed}",
    )


def test_the_first_half_computes_just_what_the_second_reads():
    layer = DecomposedConv2D(6, 3, 2, padding="same", positions=[0, 1, 46])
    layer.build((None, 9, 11, 4))
    first, second = layer._maps.maps
    geometry = Geometry(kernel_size=(1, 3), input_size=(9, 11), padding="same")
    read = rows_read(conv_table(geometry, [0, 1, 46]))
    assert len(first.table) == second.rows_in == len(read) == 6
    assert first.spread is None


def test_whole_rows_cut_both_halves_by_the_keep_rate():
    rows = np.arange(99).reshape(9, 11)[::3].ravel()
    layer = DecomposedConv2D(6, 3, 2, padding="same", positions=rows)
    layer.build((None, 9, 11, 4))
    assert [len(index_map.table) for index_map in layer._maps.maps] == [33, 33]


def test_a_kernel_that_reads_only_padding_gives_the_bias(build):
    rng, inputs = make_inputs(2)
    inputs = inputs[:, :, :4]
    layer = DecomposedConv2D(
        3, (1, 2), 2, padding="same", dilation_rate=(1, 8), positions=[0, 5], name="far"
    )
    layer, (*_, bias) = build(layer, inputs, rng)
    np.testing.assert_allclose(layer(inputs), np.broadcast_to(bias, (3, 9, 4, 3)), rtol=1e-6)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("positions", [None, [0, 17, 35, 62]])
def test_gradients_equal_those_of_the_stock_composition(
    library, order, positions, build, nearest_kept
):
    rng, inputs = make_inputs(3)
    layer = for_library(library).DecomposedConv2D(
        6, 3, 2, order, positions=positions, activation="tanh"
    )
    layer, (first, second, bias) = build(layer, inputs, rng)
    stock = library.Sequential(
        [
            library.layers.Conv2D(2, first.shape[:2], use_bias=False),
            library.layers.Conv2D(6, second.shape[:2], activation="tanh"),
        ]
    )
    stock.build(inputs.shape)
    stock.set_weights([first, second, bias])
    weight = rng.normal(size=(3, 63, 6)).astype("float32")
    gradients = []
    for run in (layer, stock):
        values = tf.constant(inputs)
        with tf.GradientTape() as tape:
            tape.watch(values)
            rows = tf.reshape(run(values), [3, 63, 6])
            if run is stock and positions is not None:
                rows = tf.gather(rows, nearest_kept((7, 9), positions), axis=1)
            loss = tf.reduce_sum(rows * weight)
        gradients.append(tape.gradient(loss, [values, *run.trainable_weights]))
    for own, expected in zip(*gradients, strict=True):
        np.testing.assert_allclose(own, expected, rtol=1e-3, atol=1e-3, err_msg="seed 3")


def test_the_halves_do_not_start_from_the_same_draws():
    layer = DecomposedConv2D(4, 1, 4, kernel_initializer="random_normal")
    layer.build((None, 5, 5, 4))
    first, second, _ = layer.get_weights()
    assert first.shape == second.shape
    assert np.abs(first - second).max() > 1e-3


@pytest.mark.parametrize("positions", [None, range(0, 99, 4)], ids=["all", "some"])
def test_index_maps_are_the_same_before_the_layer_is_built(positions):
    def maps(layer):
        return layer.index_maps((9, 11))

    unbuilt, built = (
        DecomposedConv2D(5, 3, rank=2, padding="same", positions=positions) for _ in range(2)
    )
    built.build((None, 9, 11, 4))
    for (name, filters, one), (other, others, two) in zip(maps(unbuilt), maps(built), strict=True):
        assert (name, filters) == (other, others)
        np.testing.assert_array_equal(one.table, two.table)
        assert (one.spread is None) == (two.spread is None)
        if one.spread is not None:
            np.testing.assert_array_equal(one.spread, two.spread)
