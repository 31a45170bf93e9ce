"""refit: against NumPy's least squares in float64, on hostile values, and never worse."""

import numpy as np
import pytest

from espace_tf.numerics.refit import refit


def rows(rng, groups: int, count: int, noise: float):
    reads = rng.normal(2, 1, size=(groups, count, 5)).astype(np.float32)
    weights = rng.normal(size=(groups, 5, 3))
    residuals = reads @ weights + 0.7 + noise * rng.normal(size=(groups, count, 3))
    return reads, residuals.astype(np.float32)


@pytest.mark.parametrize("shift", [True, False])
def test_is_the_least_squares_solution_of_numpy(shift):
    rng = np.random.default_rng(0)
    reads, residuals = rows(rng, 2, 400, 0.3)
    held = slice(300, None)
    change, bias = refit(
        reads[:, :300],
        residuals[:, :300],
        reads[:, held],
        residuals[:, held],
        shift=shift,
        noises=(0.0,),
    )
    for group in range(2):
        x = reads[group, :300].astype(np.float64)
        x = np.hstack([x, np.ones((300, 1))]) if shift else x
        wanted = np.linalg.lstsq(x, residuals[group, :300].astype(np.float64), rcond=None)[0]
        np.testing.assert_allclose(change[group], wanted[:5], atol=1e-5)
        np.testing.assert_allclose(bias[group], wanted[5] if shift else 0, atol=1e-5)


@pytest.mark.parametrize("shift", [True, False])
def test_noise_is_that_of_dropped_values(shift):
    """As least squares in float64 on a row more for each value that may be off."""
    rng, noise = np.random.default_rng(4), 0.25
    reads, residuals = rows(rng, 1, 200, 0.3)
    change, bias = refit(reads, residuals, reads, residuals, shift=shift, noises=(noise,))
    x, y = reads[0].astype(np.float64), residuals[0].astype(np.float64)
    extra = np.diag(np.sqrt(noise * np.square(x).sum(0)))
    x = np.hstack([np.vstack([x, extra]), np.r_[np.ones(200), np.zeros(5)][:, None] * shift])
    wanted = np.linalg.lstsq(x, np.vstack([y, np.zeros((5, 3))]), rcond=None)[0]
    np.testing.assert_allclose(change[0], wanted[:5], atol=1e-5)
    np.testing.assert_allclose(bias[0], wanted[5], atol=1e-5)


def test_large_weights_that_cancel_are_left_out():
    """Two values that nearly agree: their difference would explain a little more, at a price."""
    rng = np.random.default_rng(5)
    values, apart = rng.normal(size=(2, 1, 400, 1)).astype(np.float32)
    reads = np.concatenate([values, values + 0.01 * apart], axis=2)
    residuals = values + 0.2 * apart + 0.05 * rng.normal(size=(1, 400, 1)).astype(np.float32)
    parts = reads[:, :300], residuals[:, :300], reads[:, 300:], residuals[:, 300:]
    (exact, _), (change, shift) = refit(*parts, noises=(0.0,)), refit(*parts)
    assert np.abs(exact).max() > 10 and np.abs(change).max() < 1
    left = np.square(parts[3] - parts[2] @ change - shift).sum()
    assert left < 0.12 * np.square(parts[3]).sum()


def test_groups_are_solved_as_each_by_itself():
    rng = np.random.default_rng(6)
    reads, residuals = rows(rng, 40, 60, 0.3)
    reads[7] = 0.0  # reads nothing
    reads[8] = 3.0  # nothing that differs
    parts = reads[:, :50], residuals[:, :50], reads[:, 50:], residuals[:, 50:]
    change, bias = refit(*parts, noises=(0.01,))
    for group in range(40):
        alone = refit(*(each[group : group + 1] for each in parts), noises=(0.01,))
        np.testing.assert_allclose(change[group], alone[0][0], atol=1e-5)
        np.testing.assert_allclose(bias[group], alone[1][0], atol=1e-5)


def test_noise_alone_is_not_learned():
    rng = np.random.default_rng(1)
    reads = rng.normal(size=(1, 12, 10)).astype(np.float32)
    noise = rng.normal(size=(1, 12, 2)).astype(np.float32)
    found = refit(reads[:, :6], noise[:, :6], reads[:, 6:], noise[:, 6:])
    if found is not None:
        left = noise[:, 6:] - reads[:, 6:] @ found[0] - found[1][:, None]
        assert np.square(left).sum() < np.square(noise[:, 6:]).sum()


@pytest.mark.parametrize("value", [np.nan, np.inf, 3e38, 1e-38, 0.0])
@pytest.mark.parametrize("where", ["reads", "residuals", "both"])
@pytest.mark.parametrize("groups", [1, 3])
def test_hostile_values_raise_nothing_and_make_nothing_worse(value, where, groups):
    rng = np.random.default_rng(2)
    reads, residuals = rows(rng, groups, 40, 0.1)
    if where != "residuals":
        reads[0, :20, 2] = value
    if where != "reads":
        residuals[0, 3] = value
    parts = reads[:, :30], residuals[:, :30], reads[:, 30:], residuals[:, 30:]
    found = refit(*parts)
    if found is None:
        return
    assert all(np.isfinite(each).all() for each in found)
    left = parts[3] - (parts[2] @ found[0] + found[1][:, None])
    assert np.square(left).sum() <= np.square(parts[3]).sum()


def test_dependent_columns_and_few_rows_are_solved():
    rng = np.random.default_rng(3)
    narrow = rng.normal(size=(1, 20, 2)).astype(np.float32)
    reads = np.concatenate([narrow, narrow, 1e-9 * narrow], axis=2)
    wanted = narrow @ rng.normal(size=(1, 2, 4)).astype(np.float32)
    parts = reads[:, :6], wanted[:, :6], reads[:, 6:], wanted[:, 6:]
    change, bias = refit(*parts, noises=(0.0,))
    np.testing.assert_allclose(reads @ change + bias[:, None], wanted, atol=1e-3)
