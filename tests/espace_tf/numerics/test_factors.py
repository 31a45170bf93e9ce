"""Kernels as matrices and pairs, against the definition and naive convolutions."""

import doctest

import numpy as np
import pytest

from espace_tf.numerics import factors

CASES = [  # kernel size, channels per group, filters, groups
    ((3, 3), 6, 10, 1),
    ((5, 2), 3, 8, 2),
    ((1, 7), 4, 5, 1),
    ((1, 1), 8, 12, 1),
    ((1, 1), 4, 9, 3),
    ((11, 11), 1, 6, 1),
]
ORDERS = pytest.mark.parametrize("order", factors.ORDERS)
SHAPES = pytest.mark.parametrize("size, channels, filters, groups", CASES)


def naive_convolution(images, kernel, groups, strides=(1, 1), dilations=(1, 1)):
    """VALID convolution by loops over output positions; float64."""
    kh, kw, channels, filters = kernel.shape
    height = (images.shape[1] - (kh - 1) * dilations[0] - 1) // strides[0] + 1
    width = (images.shape[2] - (kw - 1) * dilations[1] - 1) // strides[1] + 1
    out = np.zeros((len(images), height, width, filters))
    share = filters // groups
    for y in range(height):
        for x in range(width):
            for a in range(kh):
                for b in range(kw):
                    pixel = images[
                        :, y * strides[0] + a * dilations[0], x * strides[1] + b * dilations[1]
                    ]
                    for g in range(groups):
                        read = pixel[:, g * channels : (g + 1) * channels]
                        own = slice(g * share, (g + 1) * share)
                        out[:, y, x, own] += read @ kernel[a, b, :, own]
    return out


def naive_pair(images, pair, order, groups, strides=(1, 1), dilations=(1, 1)):
    """The two convolutions, each with the stride and dilation of its own axis."""
    axes = ((strides[0], 1), (dilations[0], 1)), ((1, strides[1]), (1, dilations[1]))
    if order == "horizontal":
        axes = axes[::-1]
    between = naive_convolution(images, pair.first, groups, *axes[0])
    return naive_convolution(between, pair.second, groups, *axes[1])


@ORDERS
@SHAPES
def test_the_matrix_has_the_entries_of_the_definition(size, channels, filters, groups, order):
    kernel = np.random.default_rng(1).normal(size=(*size, channels, filters))
    matrix = factors.kernel_matrix(kernel, order, groups)
    share = filters // groups
    for (a, b, c, n), value in np.ndenumerate(kernel):
        along, across = (a, b) if order == "vertical" else (b, a)
        g, m = divmod(n, share)
        assert matrix[g, along * channels + c, across * share + m] == value


@ORDERS
@SHAPES
@pytest.mark.parametrize(
    "strides, dilations", [((1, 1), (1, 1)), ((2, 3), (1, 1)), ((1, 1), (2, 1))]
)
def test_a_pair_does_what_its_kernel_does(
    size, channels, filters, groups, order, strides, dilations
):
    seed = 2
    rng = np.random.default_rng(seed)
    kernel = rng.normal(size=(*size, channels, filters))
    side = (2 * size[0] + 2, size[1] + 4)
    images = rng.normal(size=(2, *side, channels * groups))
    pair = factors.plain_factors(kernel, 2, order, groups)
    whole = factors.reconstruct(pair, order, groups)
    assert pair.first.dtype == pair.second.dtype == whole.dtype == np.float32
    assert pair.rank == 2 and pair.bias is None
    np.testing.assert_allclose(
        naive_pair(images, pair, order, groups, strides, dilations),
        naive_convolution(images, whole, groups, strides, dilations),
        atol=1e-4,
        err_msg=f"seed {seed}",
    )


def test_energy_rank_counts_until_the_energy_is_exceeded():
    for seed in range(50):
        rng = np.random.default_rng(seed)
        values = np.sort(rng.exponential(size=rng.integers(1, 20)))[::-1]
        energy = rng.uniform()
        held, rank = 0.0, 0
        while held <= energy * np.square(values).sum() and rank < len(values):
            held += values[rank] ** 2
            rank += 1
        assert factors.energy_rank(values, energy) == rank, f"seed {seed}"
    assert factors.energy_rank(values, 1.0) == len(values)


def test_examples_run():
    found = doctest.testmod(factors)
    assert found.attempted and not found.failed


def test_ranks_and_shapes_out_of_range_are_refused():
    kernel = np.ones((3, 3, 4, 5))
    for rank in (0, 13, 1.5):
        with pytest.raises(ValueError, match=rf"rank must be an integer in \[1, 12\].*{rank}"):
            factors.plain_factors(kernel, rank)
    with pytest.raises(ValueError, match="energy must lie in"):
        factors.energy_rank(np.ones(3), 1.5)
