"""Least squares that move a layer's weights no further than what it reads tells (NumPy)."""

import numpy as np

from espace_tf.numerics.patches import lower_root

# Of the mean variance of what is read: the strengths of the ridge that are tried.
RIDGES = (1e-6, 1e-4, 1e-2, 1e-1)
_CHUNK = 4096  # rows that are turned into float64 at a time


def refit(
    reads: np.ndarray,
    residuals: np.ndarray,
    held_reads: np.ndarray,
    held_residuals: np.ndarray,
    *,
    shift: bool = True,
    ridges: tuple[float, ...] = RIDGES,
) -> tuple[np.ndarray, np.ndarray] | None:
    """The change of a linear layer's weights that explains most of what its outputs lack.

    min |residuals - reads change - shift|^2 + ridge * mean variance * rows * |change|^2, in
    float64: a ridge regression (Hoerl and Kennard 1970) that draws towards the weights as they are,
    not towards 0. Of several ridges the one is taken that leaves least on rows that were held out.

    Args:
        reads: [groups, rows, d] what each output reads.
        residuals: [groups, rows, n] what is wanted minus what is there.
        held_reads, held_residuals: the same of other rows, at least one.
        shift: whether the outputs have a bias.
        ridges: as shares of the mean variance of what is read.

    Returns:
        change [groups, d, n] and shift [groups, n] (zeros without one), float32; None if nothing
        makes the held-out rows better, or values are not finite.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> x, wanted = rng.normal(size=(1, 90, 3)), rng.normal(size=(1, 3, 2))
        >>> change, _ = refit(x[:, :60], x[:, :60] @ wanted, x[:, 60:], x[:, 60:] @ wanted)
        >>> bool(np.abs(change - wanted).max() < 1e-4)
        True
    """
    with np.errstate(all="ignore"):
        return _refit(reads, residuals, held_reads, held_residuals, shift, ridges)


def _refit(reads, residuals, held_reads, held_residuals, shift: bool, ridges: tuple[float, ...]):
    found = [_moments(*pair, shift) for pair in zip(reads, residuals, strict=True)]
    if not all(np.isfinite(part).all() for moments in found for part in moments):
        return None
    best, least = None, float(np.square(held_residuals, dtype=np.float64).sum())
    for ridge in ridges:
        solved = [_solved(*moments, ridge, shift) for moments in found]
        change, shifts = (np.stack(each).astype(np.float32) for each in zip(*solved, strict=True))
        left = held_residuals - (held_reads @ change + shifts[:, None])
        lost = float(np.square(left, dtype=np.float64).sum())
        if lost < least:
            best, least = (change, shifts), lost
    return best


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


def _solved(mean, lacking, gram, cross, ridge: float, shift: bool) -> tuple[np.ndarray, np.ndarray]:
    """The change and the shift of one group."""
    from scipy import linalg

    scale = np.trace(gram) / len(gram)
    if scale <= np.finfo(np.float64).tiny:  # nothing is read that differs
        return np.zeros(cross.shape), lacking
    lower = lower_root(gram / scale + ridge * np.eye(len(gram)))
    change = linalg.cho_solve((lower, True), cross / scale, check_finite=False)
    return change, lacking - mean @ change if shift else lacking
