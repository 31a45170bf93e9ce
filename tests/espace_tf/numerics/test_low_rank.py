"""Response-aware pairs against NumPy's SVD and least squares on the patches."""

import doctest

import numpy as np
import pytest
from responses import response_error

from espace_tf.numerics import factors, low_rank

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


def correlated_images(rng, size, channels, count=4):
    """Images with spatial and channel correlation and a mean, [count, *size, channels]."""
    noise = rng.normal(size=(count, size[0] + 3, size[1] + 3, channels))
    smooth = sum(noise[:, i : i + size[0], j : j + size[1]] for i in range(4) for j in range(4))
    mixed = smooth @ (rng.normal(size=(channels, channels)) * np.exp(-np.arange(channels) / 3))
    return np.maximum(mixed, 0) + rng.uniform(size=channels)


def all_patches(images, size, groups):
    """[n, g, d] by loops."""
    kh, kw = size
    rows = []
    for y in range(images.shape[1] - kh + 1):
        for x in range(images.shape[2] - kw + 1):
            patch = images[:, y : y + kh, x : x + kw]
            parts = np.split(patch, groups, axis=3)
            rows.append(np.stack([part.reshape(len(images), -1) for part in parts], axis=1))
    return np.concatenate(rows)


def responses(patches, kernel):
    """What the convolution makes of [n, g, d] patches: [n, Cout]."""
    weights = np.split(kernel.reshape(patches.shape[2], -1), patches.shape[1], axis=1)
    return np.concatenate([patches[:, g] @ part for g, part in enumerate(weights)], axis=1)


def moments(patches):
    mean = patches.mean(axis=0)
    centred = patches - mean
    return mean, np.einsum("ngd,nge->gde", centred, centred) / len(patches)


def by_group(array):
    return array[0] if len(array) == 1 else list(array)


def random_case(seed, size, channels, filters, groups):
    rng = np.random.default_rng(seed)
    kernel = rng.normal(size=(*size, channels, filters))
    images = correlated_images(rng, (size[0] + 9, size[1] + 8), channels * groups)
    return rng, kernel, images, all_patches(images, size, groups)


def test_examples_run():
    found = doctest.testmod(low_rank)
    assert found.attempted and not found.failed


@ORDERS
@SHAPES
def test_plain_errors_are_the_tail_energies_of_the_svd(size, channels, filters, groups, order):
    seed = 3
    _, kernel, _, _ = random_case(seed, size, channels, filters, groups)
    found = low_rank.decompose(kernel, order, groups)
    tails = 0
    for matrix in factors.kernel_matrix(kernel, order, groups):
        squares = np.linalg.svd(matrix, compute_uv=False) ** 2
        tails = tails + np.append(np.cumsum(squares[::-1])[::-1], 0)
    np.testing.assert_allclose(found.errors, tails / tails[0], atol=1e-12, err_msg=f"seed {seed}")
    np.testing.assert_allclose(found.singular_values**2, -np.diff(tails), atol=1e-9)
    for rank in (1, found.max_rank):
        pair = factors.plain_factors(kernel, rank, order, groups)
        whole = factors.reconstruct(pair, order, groups)
        error = response_error(kernel, whole)
        np.testing.assert_allclose(error, found.errors[rank], atol=1e-6, err_msg=f"seed {seed}")
        again = factors.reconstruct(found.factors(rank), order, groups)
        np.testing.assert_allclose(again, whole, atol=1e-5, err_msg=f"seed {seed}")


@ORDERS
@SHAPES
def test_predicted_errors_are_those_of_the_responses(size, channels, filters, groups, order):
    seed = 4
    rng, kernel, images, patches = random_case(seed, size, channels, filters, groups)
    mean, covariance = moments(patches)
    bias = rng.normal(size=filters)
    found = low_rank.decompose(
        kernel,
        order,
        groups,
        bias=bias,
        mean=by_group(mean),
        covariance=by_group(covariance),
        shrinkage=1e-7,
    )
    assert found.errors[0] == 1 and found.errors[-1] == 0
    assert (np.diff(found.errors) <= 0).all() and (found.errors >= 0).all()
    want = responses(patches, kernel) + bias
    power = np.square(want - want.mean(axis=0)).sum()
    for rank in sorted({1, 2, found.max_rank // 2 or 1, found.max_rank}):
        pair = found.factors(rank, rounds=0)
        whole = factors.reconstruct(pair, order, groups)
        got = responses(patches, whole) + pair.bias
        message = f"seed {seed}, rank {rank}"
        error = np.square(want - got).sum() / power
        np.testing.assert_allclose(error, found.errors[rank], rtol=2e-3, atol=1e-6, err_msg=message)
        np.testing.assert_allclose(got.mean(axis=0), want.mean(axis=0), atol=2e-4, err_msg=message)
        by_moments = response_error(kernel, whole, covariance)
        np.testing.assert_allclose(by_moments, error, rtol=1e-3, atol=1e-6, err_msg=message)


@ORDERS
@SHAPES
def test_the_second_factor_is_the_least_squares_solution(size, channels, filters, groups, order):
    seed = 5
    _, kernel, _, patches = random_case(seed, size, channels, filters, groups)
    _, covariance = moments(patches)
    found = low_rank.decompose(
        kernel, order, groups, covariance=by_group(covariance), shrinkage=1e-7
    )
    rank = max(found.max_rank // 3, 1)
    pair = found.factors(rank, rounds=0)
    left = power = 0.0
    for g in range(groups):
        weights = np.split(kernel.reshape(-1, filters), groups, axis=1)[g]
        first = pair.first[:, 0] if order == "vertical" else pair.first[0]
        first = first[:, :, g * rank : (g + 1) * rank].astype(np.float64)  # [along, c, K]
        across = size[1] if order == "vertical" else size[0]
        between = np.einsum("acK,bB->abcKB", first, np.eye(across))
        if order == "horizontal":
            between = between.swapaxes(0, 1)
        centred = patches[:, g] - patches[:, g].mean(axis=0)
        read = centred @ between.reshape(len(weights), -1)
        residual = centred @ weights
        power += np.square(residual).sum()
        residual = residual - read @ np.linalg.lstsq(read, residual, rcond=None)[0]
        left += np.square(residual).sum()
    np.testing.assert_allclose(
        found.errors[rank], left / power, rtol=1e-3, atol=1e-6, err_msg=f"seed {seed}"
    )


@ORDERS
@SHAPES
def test_every_round_lowers_the_error(size, channels, filters, groups, order):
    seed = 13
    rng, kernel, _, patches = random_case(seed, size, channels, filters, groups)
    covariance = moments(patches)[1]
    gradient = np.cov(rng.normal(size=(20, filters)).T)
    found = low_rank.decompose(
        kernel, order, groups, covariance=by_group(covariance), shrinkage=1e-7
    )
    shaped = low_rank.decompose(
        kernel, order, groups, covariance=by_group(covariance), gradient=gradient, shrinkage=1e-7
    )
    for rank in (1, max(found.max_rank // 3, 1)):
        for decomposition, metric in ((found, np.eye(filters)), (shaped, gradient)):
            share = low_rank.IDENTITY_SHARE
            metric = metric / np.trace(metric) * (1 - share) * filters + share * np.eye(filters)
            errors = []
            for rounds in (0, 1, 3):
                whole = factors.reconstruct(decomposition.factors(rank, rounds), order, groups)
                errors.append(metric_error(kernel, whole, covariance, metric))
            message = f"seed {seed}, rank {rank}: {errors}"
            bound = decomposition.errors[rank]
            np.testing.assert_allclose(errors[0], bound, rtol=1e-3, atol=1e-6, err_msg=message)
            assert errors[2] <= errors[1] * 1.0001 + 1e-9 <= errors[0] * 1.0003 + 2e-9, message


def metric_error(kernel, whole, covariance, metric):
    """tr(F dW^T Sigma dW) / tr(F W^T Sigma W), summed over groups; F by blocks."""
    powers = np.zeros(2)
    groups = len(covariance)
    share = kernel.shape[3] // groups
    for g in range(groups):
        own = slice(g * share, (g + 1) * share)
        for index, part in enumerate((kernel - whole, kernel)):
            weights = part[..., own].reshape(len(covariance[g]), share)
            powers[index] += np.trace(metric[own, own] @ weights.T @ covariance[g] @ weights)
    return powers[0] / powers[1]


def test_a_round_is_near_the_exact_alternation():
    """Both least-squares problems of a round solved by brute force on the patches."""
    for seed in range(3):
        _, kernel, _, patches = random_case(seed, (3, 3), 5, 6, 1)
        centred = patches[:, 0] - patches[:, 0].mean(axis=0)
        found = low_rank.decompose(kernel, covariance=np.cov(patches[:, 0].T), shrinkage=1e-8)
        pair = found.factors(4, rounds=0)
        responses = centred @ kernel.reshape(45, 6)
        # The response is linear in the first factor: one column for each of its entries.
        taps = centred.reshape(-1, 3, 3, 5)
        design = np.einsum("pabc,bkn->pnack", taps, pair.second[0].astype(float))
        design = design.reshape(responses.size, -1)
        first = np.linalg.lstsq(design, responses.ravel(), rcond=None)[0].reshape(3, 5, 4)
        read = np.einsum("pabc,ack->pbk", taps, first).reshape(len(taps), -1)
        left = responses - read @ np.linalg.lstsq(read, responses, rcond=None)[0]
        exact = np.square(left).sum() / np.square(responses).sum()
        whole = factors.reconstruct(found.factors(4, rounds=1))
        error = response_error(kernel, whole, np.cov(patches[:, 0].T)[None])
        gain, best = found.errors[4] - error, found.errors[4] - exact
        assert gain > 0.8 * best, f"seed {seed}: {found.errors[4]}, {error}, {exact}"


@ORDERS
def test_response_aware_pairs_beat_the_plain_svd(order):
    for seed in range(6):
        rng, kernel, images, _ = random_case(seed, (3, 3), 6, 10, 1)
        held_out = correlated_images(rng, (30, 30), 6, count=2)
        mean, covariance = moments(all_patches(images, (3, 3), 1))
        unseen = by_group(moments(all_patches(held_out, (3, 3), 1))[1])
        found = low_rank.decompose(kernel, order, mean=mean[0], covariance=covariance[0])
        for rank in (2, 4, 8):
            errors = [
                response_error(kernel, factors.reconstruct(pair, order), unseen[None])
                for pair in (factors.plain_factors(kernel, rank, order), found.factors(rank))
            ]
            assert errors[1] < errors[0], f"seed {seed}, rank {rank}: {errors}"


@SHAPES
def test_horizontal_first_is_the_twin_of_vertical_first(size, channels, filters, groups):
    seed = 6
    _, kernel, _, patches = random_case(seed, size, channels, filters, groups)
    turned = patches.reshape(len(patches), groups, *size, channels).swapaxes(2, 3)
    turned = turned.reshape(patches.shape)
    one = low_rank.decompose(kernel, "horizontal", groups, covariance=by_group(moments(patches)[1]))
    other = low_rank.decompose(
        kernel.swapaxes(0, 1), "vertical", groups, covariance=by_group(moments(turned)[1])
    )
    np.testing.assert_allclose(one.errors, other.errors, atol=1e-9, err_msg=f"seed {seed}")


def test_a_pointwise_pair_is_optimal():
    """Then one least-squares problem is left, which the whitened SVD solves (Eckart and Young)."""
    seed = 7
    _, kernel, _, patches = random_case(seed, (1, 1), 8, 12, 1)
    covariance = moments(patches)[1][0]
    values, vectors = np.linalg.eigh(covariance)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    squares = np.linalg.svd(root @ kernel[0, 0], compute_uv=False) ** 2
    tail = np.append(np.cumsum(squares[::-1])[::-1], 0) / squares.sum()
    found = low_rank.decompose(kernel, covariance=covariance, shrinkage=0)
    np.testing.assert_allclose(found.errors, tail, atol=1e-6, err_msg=f"seed {seed}")


@ORDERS
def test_factors_are_balanced(order):
    seed = 8
    _, kernel, _, patches = random_case(seed, (3, 5), 4, 6, 2)
    found = low_rank.decompose(kernel, order, 2, covariance=list(moments(patches)[1]))
    pair = found.factors(3)
    for g in range(2):
        first = pair.first[..., 3 * g : 3 * g + 3].reshape(-1, 3)
        second = pair.second[..., 3 * g : 3 * g + 3].transpose(2, 0, 1, 3).reshape(3, -1)
        sizes = np.linalg.norm(first, axis=0), np.linalg.norm(second, axis=1)
        np.testing.assert_allclose(*sizes, rtol=1e-5, err_msg=f"seed {seed}")


def test_the_gradient_shifts_the_error_to_filters_that_do_not_matter():
    seed = 9
    _, kernel, _, patches = random_case(seed, (3, 3), 6, 10, 1)
    covariance = moments(patches)[1][0]
    gradient = np.diag([1.0] * 3 + [1e-3] * 7)
    for rank in (1, 3, 6):
        errors = []
        for metric in (None, gradient):
            found = low_rank.decompose(kernel, covariance=covariance, gradient=metric)
            change = (kernel - factors.reconstruct(found.factors(rank))).reshape(-1, 10)
            errors.append(np.trace((change.T @ covariance @ change) @ gradient))
        assert errors[1] < errors[0], f"seed {seed}, rank {rank}: {errors}"
    aware = low_rank.decompose(kernel, covariance=covariance, gradient=gradient)
    assert aware.errors[0] == 1 and (np.diff(aware.errors) <= 0).all()
    useless = low_rank.decompose(kernel, covariance=covariance, gradient=np.zeros((10, 10)))
    blind = low_rank.decompose(kernel, covariance=covariance)
    np.testing.assert_allclose(useless.errors, blind.errors, atol=1e-12)


def degenerate_statistics():
    rng = np.random.default_rng(10)
    patches = rng.normal(size=(400, 36))
    dead, constant = patches.copy(), patches.copy()
    dead[:, ::4] = 0
    constant[:, 1::4] = 3
    yield "dead channels", np.cov(dead.T)
    yield "constant channel", np.cov(constant.T)
    yield "two samples", np.cov(patches[:2].T)
    yield "no variance", np.zeros((36, 36))
    yield "one pixel of 1e12", np.diag([1e12] + [0.0] * 35)
    yield "tiny", np.cov(patches.T) * 1e-30
    yield "float32", np.cov(patches.T).astype(np.float32)


@ORDERS
@pytest.mark.parametrize(
    "covariance", [pytest.param(value, id=name) for name, value in degenerate_statistics()]
)
@pytest.mark.parametrize("shrinkage", [0.0, 1e-3])
def test_degenerate_statistics_give_finite_pairs(covariance, order, shrinkage):
    kernel = np.random.default_rng(11).normal(size=(3, 3, 4, 5))
    found = low_rank.decompose(kernel, order, covariance=covariance, shrinkage=shrinkage)
    assert np.isfinite(found.errors).all() and (np.diff(found.errors) <= 0).all()
    for rank in (1, 4, found.max_rank):
        pair = found.factors(rank)
        assert np.isfinite(pair.first).all() and np.isfinite(pair.second).all()
    np.testing.assert_allclose(factors.reconstruct(pair, order), kernel, atol=2e-3)


@ORDERS
def test_a_kernel_of_zeros_stays_zero(order):
    found = low_rank.decompose(np.zeros((3, 3, 4, 5)), order, covariance=np.eye(36))
    assert not found.errors.any()
    assert not factors.reconstruct(found.factors(2), order).any()
    assert factors.energy_rank(found.singular_values, 0.9) == 1


def test_the_bias():
    rng = np.random.default_rng(12)
    kernel, bias, mean = rng.normal(size=(3, 3, 4, 5)), rng.normal(size=5), rng.normal(size=36)
    assert low_rank.decompose(kernel).factors(2).bias is None
    np.testing.assert_allclose(low_rank.decompose(kernel, bias=bias).factors(2).bias, bias, 1e-6)
    correction = low_rank.decompose(kernel, mean=mean).factors(2)
    change = (kernel - factors.reconstruct(correction)).reshape(36, 5)
    np.testing.assert_allclose(correction.bias, mean @ change, atol=1e-5)
    both = low_rank.decompose(kernel, bias=bias, mean=mean).factors(2).bias
    np.testing.assert_allclose(both, bias + mean @ change, atol=1e-5)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"order": "diagonal"}, "order must be one of .* Received: 'diagonal'"),
        ({"groups": 2}, "groups must divide the kernel's 5 filters. Received: 2"),
        ({"kernel": np.zeros((3, 3, 4))}, r"kernel must be \[kh, kw.*Received shape: \(3, 3, 4\)"),
        ({"kernel": np.full((3, 3, 4, 5), np.nan)}, "kernel must be finite"),
        ({"covariance": np.eye(9)}, r"covariance must have shape \(36, 36\). Received: \(9, 9\)"),
        ({"covariance": np.full((36, 36), np.inf)}, "covariance must be finite"),
        (
            {"covariance": [np.eye(36)] * 2},
            "covariance must be one array per group, 1. Received: 2",
        ),
        ({"mean": np.zeros(4)}, r"mean must have shape \(36,\). Received: \(4,\)"),
        ({"bias": np.zeros(4)}, r"bias must have shape \(5,\). Received: \(4,\)"),
        ({"gradient": np.eye(4), "covariance": np.eye(36)}, "gradient must have shape"),
        ({"gradient": np.eye(5)}, "gradient needs covariance"),
        ({"shrinkage": -1.0}, "shrinkage must be at least 0. Received: -1.0"),
    ],
)
def test_errors_name_the_argument(change, message):
    arguments = {"kernel": np.ones((3, 3, 4, 5)), **change}
    with pytest.raises(ValueError, match=message):
        low_rank.decompose(**arguments)


def test_ranks_out_of_range_are_refused():
    kernel = np.ones((3, 3, 4, 5))
    for rank in (0, 13, 1.5):
        with pytest.raises(ValueError, match=rf"rank must be an integer in \[1, 12\].*{rank}"):
            low_rank.decompose(kernel).factors(rank)
    with pytest.raises(ValueError, match="rounds must be at least 0. Received: -1"):
        low_rank.decompose(kernel).factors(2, rounds=-1)


@ORDERS
def test_errors_up_to_a_rank_are_the_first_of_all(order):
    random = np.random.default_rng(5)
    patches = random.normal(size=(400, 54)) @ random.normal(size=(54, 54))
    options = {"covariance": np.cov(patches.T), "gradient": np.eye(10)}
    found = low_rank.decompose(random.normal(size=(3, 3, 6, 10)), order, **options)
    for most in (1, 7, found.max_rank):
        np.testing.assert_allclose(found.errors_to(most), found.errors[: most + 1], atol=1e-12)
    with pytest.raises(ValueError, match="rank must be an integer"):
        found.errors_to(found.max_rank + 1)
