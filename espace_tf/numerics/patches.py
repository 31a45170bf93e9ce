"""What a low-rank pair needs to know of the patches that a layer reads: their second moments."""

import functools
from dataclasses import dataclass

import numpy as np

ROUNDING = 1e-6  # of sums in float32, as a share of the variances


@dataclass(frozen=True, eq=False)
class Patches:
    """Second moments of one group's patches, in blocks of the second convolution's taps.

    Sums in finite precision need not give a covariance: it is made symmetric, limited to what
    the variances allow (|s_ij|^2 <= s_ii s_jj, Cauchy and Schwarz), and scaled to a mean variance
    of 1, so that no unit of the data is too large or too small. That is done once, since every rank
    and every round of a pair read all of it again.

    Args:
        covariance: [kh, kw, C, kh, kw, C] view; its `scale` must not be 0.
        order: "vertical" or "horizontal".
        shrinkage: what is added to the diagonal, as a share of its mean (Ledoit and Wolf 2004,
            "A well-conditioned estimator for large-dimensional covariance matrices", equation 6).
    """

    covariance: np.ndarray
    order: str
    shrinkage: float

    @functools.cached_property
    def _variances(self) -> np.ndarray:
        """[taps, m], none negative."""
        found = np.einsum("abcabc->abc", self.covariance).astype(np.float64)
        found = np.maximum(found if self.order == "horizontal" else found.swapaxes(0, 1), 0)
        return found.reshape(len(found), -1)

    @property
    def scale(self) -> float:
        """The mean variance, in the unit of the data; 0 if the patches do not differ."""
        mean = float(self._variances.mean())
        return mean if mean > np.finfo(np.float64).tiny else 0.0

    @property
    def taps(self) -> int:
        """How many the second convolution has."""
        return len(self._variances)

    @functools.cached_property
    def blocks(self) -> np.ndarray:
        """Covariance of what each two taps of the second convolution see, with shrinkage.

        [taps, m, taps, m] with m = (taps of the first convolution) * channels.
        """
        axes = (0, 1, 2, 3, 4, 5) if self.order == "horizontal" else (1, 0, 2, 4, 3, 5)
        shape, scale = self._variances.shape, self.scale
        matrix = self.covariance.transpose(axes).reshape(self._variances.size, -1)
        matrix = matrix.astype(np.float64)
        matrix /= scale  # first: sums of the largest numbers would overflow
        matrix += matrix.T  # NumPy copies where memory overlaps
        matrix /= 2
        deviations = np.sqrt(self._variances.ravel() / scale)
        for rows, some in zip(
            np.split(matrix, self.taps), np.split(deviations, self.taps), strict=True
        ):
            limit = np.outer(some, deviations)
            np.clip(rows, -limit, limit, out=rows)
        matrix[np.diag_indices(len(matrix))] += self.shrinkage
        return matrix.reshape(*shape, *shape)

    @functools.cached_property
    def input_metric(self) -> tuple[np.ndarray, np.ndarray]:
        """C = mean_b G_bb and R_bb' = tr(G_bb') / tr(C): Sigma ~ R kron C.

        A separable approximation in the manner of Van Loan and Pitsianis 1993, "Approximation with
        Kronecker products", by traces instead of their singular value decomposition.
        """
        mean = np.einsum("imin->mn", self.blocks) / self.taps
        return mean, np.einsum("imjm->ij", self.blocks) / np.trace(mean)

    def gram(self, basis: np.ndarray) -> np.ndarray:
        """B^T Sigma B for B = I kron basis, [K taps, K taps], index k * taps + tap."""
        rank = basis.shape[1]
        gram = np.empty((rank, self.taps, rank, self.taps))
        for i in range(self.taps):
            for j in range(i, self.taps):
                part = basis.T @ (self.blocks[i, :, j] @ basis)
                gram[:, i, :, j] = part
                gram[:, j, :, i] = part.T
        return gram.reshape(rank * self.taps, rank * self.taps)

    def times(self, weights: np.ndarray) -> np.ndarray:
        """Sigma W, both [taps, m, N]."""
        return np.tensordot(self.blocks, weights, 2)

    def power(self, weights: np.ndarray) -> float:
        """E |W^T x|^2 of weights [taps, m, N] over the patches as measured, without shrinkage.

        What rounding of the sums may have made negative is added: a share of every variance.
        """
        measured = self.times(weights) - self.shrinkage * weights
        rounding = ROUNDING * np.square(weights).sum(axis=2) * self._variances / self.scale
        return max(float(np.vdot(weights, measured) + rounding.sum()), 0.0)


def lower_root(metric: np.ndarray) -> np.ndarray:
    """The Cholesky factor L of a positive semidefinite matrix, L L^T = metric.

    A matrix that is singular, or indefinite by rounding, gets the least multiple of its mean
    diagonal that makes it definite (Higham 2002, "Accuracy and Stability of Numerical Algorithms",
    section 10.3: rounding needs some n 1e-16 of it).
    """
    from scipy import linalg

    scale, ridge = np.abs(np.diag(metric)).mean() or np.abs(metric).max() or 1.0, 0.0
    while True:
        raised = metric + ridge * scale * np.eye(len(metric)) if ridge else metric
        try:
            return linalg.cholesky(raised, lower=True, check_finite=False)
        except linalg.LinAlgError:
            ridge = max(100 * ridge, 1e-14)
