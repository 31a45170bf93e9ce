"""Least squares that move a layer's weights no further than what it reads tells (NumPy)."""

import numpy as np

from espace_tf.numerics.patches import lower_root

# Variances of relative errors in what is read that are tried; that of a dropout of a half is 1.
NOISES = (1e-4, 1e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)
# How much of the largest gain on held-out rows is enough.
_ENOUGH = 0.9
_FLOOR = 1e-9  # of the mean variance of what is read: values that depend on each other are solved
_CHUNK = 4096  # rows that are turned into float64 at a time


def refit(
    reads: np.ndarray,
    residuals: np.ndarray,
    held_reads: np.ndarray,
    held_residuals: np.ndarray,
    *,
    shift: bool = True,
    noises: tuple[float, ...] = NOISES,
) -> tuple[np.ndarray, np.ndarray] | None:
    """The change of a linear layer's weights that explains most of what its outputs lack.

    min |residuals - reads change - shift|^2 + noise * sum_j |reads_j|^2 |change_j|^2, in float64:
    what is left on average if each value that is read is off by a relative error of this variance
    (Bishop 1995; for dropout, where it is p / (1 - p), Wager et al. 2013, arXiv:1307.1493). Of
    several noises the largest is taken that leaves little more than the best on rows that were held
    out: large weights that cancel each other are worth little there, and a training with batch
    statistics and dropouts would begin with their errors.

    Args:
        reads: [groups, rows, d] what each output reads.
        residuals: [groups, rows, n] what is wanted minus what is there.
        held_reads, held_residuals: the same of other rows, at least one.
        shift: whether the outputs have a bias.
        noises: in ascending order.

    Returns:
        change [groups, d, n] and shift [groups, n] (zeros without one), float32; None if nothing
        makes the held-out rows better, or values are not finite.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> x, wanted = rng.normal(size=(1, 90, 3)), rng.normal(size=(1, 3, 2))
        >>> parts = x[:, :60], x[:, :60] @ wanted, x[:, 60:], x[:, 60:] @ wanted
        >>> change, _ = refit(*parts, noises=(0.0,))
        >>> bool(np.abs(change - wanted).max() < 1e-4)
        True
    """
    with np.errstate(all="ignore"):
        return _refit(reads, residuals, held_reads, held_residuals, shift, noises)


def _refit(reads, residuals, held_reads, held_residuals, shift: bool, noises: tuple[float, ...]):
    found = [_moments(*pair, shift) for pair in zip(reads, residuals, strict=True)]
    moments = [np.stack(each) for each in zip(*found, strict=True)]
    if not all(np.isfinite(each).all() for each in moments):
        return None
    tried, before = [], float(np.square(held_residuals, dtype=np.float64).sum())
    for noise in noises:
        change, shifts = (each.astype(np.float32) for each in _solved(*moments, noise, shift))
        left = held_residuals - (held_reads @ change + shifts[:, None])
        gain = before - float(np.square(left, dtype=np.float64).sum())
        tried.append((gain, change, shifts))
    most = max((gain for gain, *_ in tried if gain > 0), default=None)
    if most is None:
        return None
    return next(rest for gain, *rest in reversed(tried) if gain >= _ENOUGH * most)


def _moments(reads: np.ndarray, residuals: np.ndarray, shift: bool) -> tuple[np.ndarray, ...]:
    """Means, [d] and [n], and mean products about them, [d, d] and [d, n]; float64."""
    mean, lacking = (each.mean(0, dtype=np.float64) * shift for each in (reads, residuals))
    gram, cross = np.zeros((len(mean), len(mean))), np.zeros((len(mean), len(lacking)))
    for start in range(0, len(reads), _CHUNK):
        rows = slice(start, start + _CHUNK)
        read = reads[rows] - mean
        gram += read.T @ read
        cross += read.T @ (residuals[rows] - lacking)
    return mean, lacking, gram / len(reads), cross / len(reads)


def _solved(mean, lacking, gram, cross, noise: float, shift: bool) -> tuple[np.ndarray, np.ndarray]:
    """The changes and the shifts of all groups."""
    variances = np.einsum("gii->gi", gram)
    scale = variances.mean(1)[:, None]
    varies = scale > np.finfo(np.float64).tiny  # where anything is read that differs
    scale = np.where(varies, scale, 1.0)
    squares = noise * (variances + mean**2) / scale + _FLOOR
    metric = gram / scale[:, None] + squares[:, None] * np.eye(mean.shape[1])
    change = _quotient(metric, cross / scale[:, None]) * varies[:, None]
    return change, lacking - np.einsum("gd,gdn->gn", mean, change) if shift else lacking


def _quotient(metric: np.ndarray, cross: np.ndarray) -> np.ndarray:
    """What every definite matrix of `metric` turns into `cross`: one by Cholesky, many in one call.

    A depthwise layer has a small one for each channel.
    """
    from scipy import linalg

    if len(metric) > 1:
        return np.linalg.solve(metric, cross)
    return linalg.cho_solve((lower_root(metric[0]), True), cross[0], check_finite=False)[None]
