import numpy as np
import pytest

from espace_tf.keras_layers.chain import Link, chain_maps
from espace_tf.kernels.index_map import Geometry


def link(size, strides=(1, 1), padding="same"):
    return Link(
        weight="kernel",
        filters=1,
        kernel_size=size,
        strides=strides,
        dilation_rate=(1, 1),
        padding=padding,
    )


def run(index_map, rows, weights):
    """One channel, plain loops: what the operator does with a map."""
    padded = np.append(rows, 0.0)
    computed = [
        sum(w * padded[i] for w, i in zip(weights, line, strict=True)) for line in index_map.table
    ]
    return np.array(computed) if index_map.spread is None else np.array(computed)[index_map.spread]


@pytest.mark.parametrize("positions", [[0], [3, 4, 19], [0, 1, 2, 3, 4], range(20)])
def test_a_masked_chain_shows_what_the_full_one_computes(positions):
    rng = np.random.default_rng(0)
    links = [link((3, 1)), link((1, 3), (1, 2)), link((2, 2))]
    rows, weights = rng.normal(size=36), [rng.normal(size=n) for n in (3, 3, 4)]
    full = chain_maps(links, (4, 9), None)
    masked = chain_maps(links, (4, 9), np.array(positions))
    assert full.output_size == masked.output_size == (4, 5)
    values = expected = rows
    for one, other, w in zip(masked.maps, full.maps, weights, strict=True):
        values, expected = run(one, values, w), run(other, expected, w)
    shown = np.arange(20) if masked.shown is None else masked.shown
    np.testing.assert_allclose(values, expected[shown], err_msg="seed 0")
    np.testing.assert_array_equal(shown[list(positions)], positions)


def test_a_full_chain_carries_its_geometries():
    maps = chain_maps([link((3, 1)), link((1, 3))], (4, 5), np.arange(20))
    assert [index_map.geometry.kernel_size for index_map in maps.maps] == [(3, 1), (1, 3)]
    assert maps.shown is None


@pytest.mark.parametrize("padding", ["valid", "same"])
def test_output_length_is_that_of_the_geometry(padding):
    for length in range(3, 12):
        for stride in (1, 2, 3):
            one = link((3, 2), (stride, 1), padding)
            assert one.output_length(length, 0) == Geometry.of(one, (length, 4)).output_size[0]
    assert one.output_length(None, 0) is None


def test_a_kernel_that_does_not_fit_is_refused_in_words():
    with pytest.raises(ValueError, match="does not fit into an input whose height is 2"):
        link((3, 3), padding="valid").output_length(2, 0)
