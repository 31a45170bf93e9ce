"""No covariance makes factorisation fail or leaves a pair worse than the plain SVD's (float64)."""

import numpy as np
import pytest

from espace_tf.numerics import factors, low_rank

SHAPES = [
    ((3, 3), 3, 6, 1),
    ((3, 1), 5, 4, 1),
    ((1, 1), 6, 8, 1),
    ((2, 3), 2, 6, 2),
    ((5, 5), 1, 4, 1),
]


def covariance_of(rng, size):
    """Of any rank, with dead units, units of other sizes, rounding, in any unit."""
    rank = rng.integers(0, size + 1)
    data = rng.normal(size=(rank, size)) * 10.0 ** (rng.uniform(-6, 6, size) * rng.integers(0, 2))
    data[:, rng.random(size) < rng.choice([0, 0.3, 0.9])] = 0
    found = data.T @ data / max(rank, 1)
    if rng.random() < 0.5:  # as sums in float32 leave it: neither symmetric nor semidefinite
        limit = np.sqrt(np.outer(np.diag(found), np.diag(found)))
        found = found + 1e-7 * rng.normal(size=found.shape) * limit
    found = found * 10.0 ** rng.uniform(-30, 30)
    return found.astype(np.float32) if abs(found).max() < 1e35 and rng.random() < 0.3 else found


def root(covariance):
    """R of R^T R, the symmetric, semidefinite part."""
    covariance = np.asarray(covariance, np.float64)
    values, vectors = np.linalg.eigh((covariance + covariance.T) / 2)
    return np.sqrt(np.maximum(values, 0))[:, None] * vectors.T


def lost(kernel, pair, order, groups, roots):
    """E |(W - W~)^T x|^2."""
    change = kernel - factors.reconstruct(pair, order, groups).astype(np.float64)
    parts = np.split(change.reshape(-1, kernel.shape[3]), groups, axis=1)
    return sum(np.square(each @ part).sum() for part, each in zip(parts, roots, strict=True))


def check(seed):
    rng = np.random.default_rng(seed)
    (kh, kw), channels, filters, groups = SHAPES[seed % len(SHAPES)]
    kernel = rng.normal(size=(kh, kw, channels, filters)) * 10.0 ** rng.uniform(-8, 8)
    kernel[..., rng.random(filters) < rng.choice([0, 0.5])] = 0
    covariances = [covariance_of(rng, kh * kw * channels) for _ in range(groups)]
    order = factors.ORDERS[rng.integers(2)]
    gradient = None
    if rng.random() < 0.2:
        gradient = covariance_of(rng, filters)
    found = low_rank.decompose(
        kernel,
        order,
        groups,
        covariance=covariances if groups > 1 else covariances[0],
        gradient=gradient,
        shrinkage=rng.choice([0.0, 1e-8, 1e-3, 0.1]),
    )
    errors = found.errors
    assert ((errors >= 0) & (errors <= 1)).all() and (np.diff(errors) <= 0).all(), f"seed {seed}"
    place = (order, groups, [root(each) for each in covariances])
    whole = lost(kernel, factors.plain_factors(0 * kernel, 1, order, groups), *place)
    for rank in range(1, found.max_rank + 1):
        plain = factors.plain_factors(kernel, rank, order, groups)
        allowed = lost(kernel, plain, *place)
        for rounds in range(3):
            pair = found.factors(rank, rounds)
            message = f"seed {seed}, rank {rank}, rounds {rounds}"
            assert np.isfinite(pair.first).all() and np.isfinite(pair.second).all(), message
            if gradient is None:
                error = lost(kernel, pair, *place)
                # 1e-12 of the response: what one rounding to float32 changes.
                assert error <= allowed * (1 + 1e-6) + 1e-12 * whole, f"{message}: {error, allowed}"


@pytest.mark.parametrize("block", range(4))
def test_no_covariance_fails_or_is_worse_than_the_plain_svd(block):
    for seed in range(block * 25, block * 25 + 25):
        check(seed)


def test_a_group_without_response_counts_nothing():
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(3, 3, 2, 6))
    data = rng.normal(size=(200, 18)) * 1e-4
    alone = low_rank.decompose(kernel[..., :3], covariance=np.cov(data.T))
    both = low_rank.decompose(kernel, groups=2, covariance=[np.cov(data.T), np.zeros((18, 18))])
    np.testing.assert_allclose(both.errors, alone.errors, atol=1e-12)
