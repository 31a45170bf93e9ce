"""The rank-K pair that changes a layer's responses least, and the error of every rank (NumPy).

Which rank-K matrix is best depends on what the layer reads. Without statistics it is the truncated
SVD (Tai et al. 2016, https://arxiv.org/abs/1511.06067). With the covariance of the input patches
it is the one that changes the layer's *responses* least: see `decompose`.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from espace_tf.numerics.factors import (
    ORDERS,
    Factors,
    balanced,
    check_rank,
    checked_arrays,
    energy_rank,
    group_list,
    kernel_matrix,
    matrix_kernel,
    pack,
    plain_factors,
    reconstruct,
    response_error,
)
from espace_tf.numerics.patches import Patches

__all__ = [
    "ORDERS",
    "Decomposition",
    "Factors",
    "decompose",
    "energy_rank",
    "kernel_matrix",
    "matrix_kernel",
    "plain_factors",
    "reconstruct",
    "response_error",
]

# Share of the identity in the output metric: a few filters must not take all the rank.
IDENTITY_SHARE = 0.5
# Least shrinkage: float64 factorises covariances of any rank with it.
LEAST_SHRINKAGE = 1e-8
_GRADIENT_STEPS = 2  # of the first factor in a round: 1 % from the exact solution


@dataclass(frozen=True, eq=False)
class _Group:
    """One group's matrix with a nested basis: the first K columns serve rank K."""

    weights: np.ndarray  # [taps, m, N]: M by taps of the second convolution
    basis: np.ndarray  # [m, Kmax]
    patches: Patches | None
    output_root: np.ndarray | None  # a root of F, [N, N]: F = output_root output_root^T

    @functools.cached_property
    def products(self) -> np.ndarray:
        """Sigma W, [taps, m, N]."""
        return self.weights if self.patches is None else self.patches.times(self.weights)

    @property
    def output_metric(self) -> np.ndarray | None:
        """F, [N, N]."""
        return None if self.output_root is None else self.output_root @ self.output_root.T

    def pair(self, rank: int, rounds: int) -> tuple[np.ndarray, np.ndarray]:
        """First [m, K] and exactly fitting second factor [K, taps * N]."""
        first = self.basis[:, :rank]
        second = self._second_for(first)
        for _ in range(rounds if self.patches is not None else 0):
            first = self._first_for(first, second)
            second = self._second_for(first)
        return first, second

    def _second_for(self, first: np.ndarray) -> np.ndarray:
        """The least-squares second factor, H = (B^T Sigma B)^-1 B^T Sigma W."""
        from scipy import linalg

        taps, _, filters = self.weights.shape
        rank = first.shape[1]
        right = np.tensordot(first, self.products, [0, 1]).reshape(rank * taps, filters)
        if self.patches is not None:  # else the first factor is orthonormal and B^T W solves it
            right = linalg.solve(self.patches.gram(first), right, assume_a="pos")
        return right.reshape(rank, taps * filters)

    def _first_for(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """A better first factor for this second one, by a few steps of conjugate gradients.

        The normal equations are sum_ij G_ij V Q_ji = sum_j (Sigma W)_j F H_j^T with
        Q_ij = H_i F H_j^T. As G_ij ~ R_ij C, the step C^-1 X (sum_ij R_ij Q_ij)^-1 nearly solves
        them: a good preconditioner. Started at `first`, no step increases the error.
        """
        from scipy import linalg

        taps, _, filters = self.weights.shape
        second = second.reshape(len(second), taps, filters).swapaxes(0, 1)
        measured = second if self.output_metric is None else second @ self.output_metric
        inner = np.einsum("ikn,jln->ijkl", measured, second, optimize=True)
        metric, ratios = self.patches.input_metric()
        core = np.einsum("ij,ijkl->kl", ratios, inner)
        core[np.diag_indices(len(core))] += 1e-10 * np.trace(core) / len(core) + 1e-300
        left, right = linalg.cho_factor(metric), linalg.cho_factor(core)

        def apply(x):
            return sum(
                self.patches.block(i, j) @ x @ inner[j, i] for i in range(taps) for j in range(taps)
            )

        residual = np.einsum("tmn,tkn->mk", self.products, measured, optimize=True) - apply(first)
        step, before = np.zeros_like(first), None
        for _ in range(_GRADIENT_STEPS):
            ahead = linalg.cho_solve(right, linalg.cho_solve(left, residual).T).T
            size = float(np.vdot(ahead, residual))
            step = ahead if before is None else ahead + size / before * step
            image = apply(step)
            curvature = float(np.vdot(step, image))
            if not (size > 0 and curvature > 0):
                break
            first = first + size / curvature * step
            residual = residual - size / curvature * image
            before = size
        return first

    def powers(self) -> tuple[float, np.ndarray]:
        """The response's power, and what each further rank takes off it after the exact refit.

        The least-squares problems of all ranks are nested, so one Cholesky factor L of the largest
        normal matrix solves them all: with Z = L^-1 B^T Sigma W the power that rank K explains is
        the squared sum of the first K * taps rows of Z (measured in the output metric).
        """
        from scipy import linalg

        taps, _, filters = self.weights.shape
        products = self.products
        right = np.tensordot(self.basis, products, [0, 1]).reshape(-1, filters)
        if self.patches is not None:
            lower = linalg.cholesky(
                self.patches.gram(self.basis), lower=True, overwrite_a=True, check_finite=False
            )
            right = linalg.solve_triangular(lower, right, lower=True, check_finite=False)
        weights = self.weights
        if self.output_root is not None:
            right, weights = right @ self.output_root, weights @ self.output_root
            products = products @ self.output_root
        explained = np.square(right).reshape(-1, taps * filters).sum(axis=1)
        return float(np.vdot(weights, products)), explained


@dataclass(frozen=True, eq=False)
class Decomposition:
    """Every rank's predicted error and factors of one kernel in one order; made by `decompose`.

    Args:
        order, groups: as given to `decompose`.
    """

    order: str
    groups: int
    _kernel: np.ndarray = field(repr=False)
    _parts: tuple[_Group, ...] = field(repr=False)
    _mean: np.ndarray | None = field(repr=False)  # [g, d]
    _bias: np.ndarray | None = field(repr=False)

    @functools.cached_property
    def errors(self) -> np.ndarray:
        """[Kmax + 1], the relative squared response error of the pair of every rank K.

        E |y - y~|^2 over the variance of y: 1 at rank 0, never increasing, 0 at full rank. Exact
        for the (shrunk) patch covariance after refit and bias correction, so a bound for
        `factors(K)`, whose further round lowers it by some 10 to 20 %; without covariance the tail
        energy of the kernel; with a gradient measured in its metric.
        """
        return _errors(self._parts)

    @property
    def max_rank(self) -> int:
        """Full rank, per group: min(kh Cin / g, kw Cout / g) vertical first."""
        return self._parts[0].basis.shape[1]

    @functools.cached_property
    def singular_values(self) -> np.ndarray:
        """[Kmax] of the kernel itself (of all groups together: root of the sum of squares)."""
        matrix = kernel_matrix(self._kernel, self.order, self.groups)
        return np.sqrt(np.square(np.linalg.svd(matrix, compute_uv=False)).sum(axis=0))

    def factors(self, rank: int, rounds: int = 1) -> Factors:
        """The balanced pair of this rank, refitted and with its corrected bias.

        The refit solves for the second factor exactly, H = (B^T Sigma B)^-1 B^T Sigma W with
        B = I kron V. A round then improves the first factor for this second one and refits again.
        At last both factors get the same singular values, and the mean response that the change
        of kernel costs is put into the bias, b + (W - W~)^T mean.

        Args:
            rank: K, per group.
            rounds: alternations of the two factors. On a trained ResNet-20 the first one takes
                9 to 19 % off the error, two more together 2 to 4 %. Without covariance, not used.

        Raises:
            ValueError: the rank is not in [1, max_rank], or rounds is negative.
        """
        if rounds < 0:
            raise ValueError(f"rounds must be at least 0. Received: {rounds}")
        check_rank(rank, self.max_rank)
        pairs = [balanced(*part.pair(rank, rounds)) for part in self._parts]
        first, second = (np.stack(side) for side in zip(*pairs, strict=True))
        factors = pack(first, second, self._kernel.shape[:2], self.order)
        return Factors(factors.first, factors.second, self._corrected_bias(factors))

    def _corrected_bias(self, factors: Factors) -> np.ndarray | None:
        if self._mean is None:
            return None if self._bias is None else self._bias.astype(np.float32)
        change = self._kernel - reconstruct(factors, self.order, self.groups)
        change = change.reshape(self._mean.shape[1], self.groups, -1)
        bias = np.einsum("gd,dgn->gn", self._mean, change).ravel()
        return (bias if self._bias is None else self._bias + bias).astype(np.float32)


def decompose(
    kernel: np.ndarray,
    order: str = "vertical",
    groups: int = 1,
    *,
    bias: np.ndarray | None = None,
    mean: np.ndarray | Sequence[np.ndarray] | None = None,
    covariance: np.ndarray | Sequence[np.ndarray] | None = None,
    gradient: np.ndarray | None = None,
    shrinkage: float = 1e-3,
) -> Decomposition:
    """Factorises a kernel so that the layer's responses to its real inputs change least.

    With G_bb' the blocks of the patch covariance Sigma between taps b and b' of the second
    convolution, C = mean_b G_bb, R_bb' = tr(G_bb') / tr(C) and F the metric of the outputs,
    A = C^1/2 M (R^1/2 kron F^1/2) = U S Q^T gives the first factor of every rank,
    V = C^-1/2 U_K (asymmetric whitening after Zhang et al. 2015,
    https://arxiv.org/abs/1505.06798); the second one is then solved for exactly, see
    `Decomposition.factors`. Without covariance this is the plain SVD.

    Args:
        kernel: [kh, kw, Cin / g, Cout].
        order: "vertical" or "horizontal": the axis of the first thin convolution.
        groups: one factorisation a group.
        bias: [Cout], the layer's bias; the factors then carry the whole new bias.
        mean: of the input patches, [d] with d = kh kw Cin / g ordered (a, b, c); for g > 1 [g, d].
        covariance: of the input patches, [d, d]; for g > 1 [g, d, d] or one array a group.
        gradient: [Cout, Cout], second moment of the loss gradient at the outputs; mixed half and
            half with the identity.
        shrinkage: alpha in Sigma + alpha tr(Sigma) / d I.

    Raises:
        ValueError: an argument has a wrong shape or range, or is not finite.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> patches = rng.normal(size=(500, 4)) @ rng.normal(size=(4, 36))  # only 4 dimensions
        >>> kernel = rng.normal(size=(3, 3, 4, 8))
        >>> found = decompose(kernel, covariance=np.cov(patches.T), mean=patches.mean(0))
        >>> bool(found.errors[4] < decompose(kernel).errors[4] / 10)
        True
    """
    matrix = kernel_matrix(kernel, order, groups)
    kernel = np.asarray(kernel, np.float64)
    size, filters = int(np.prod(kernel.shape[:3])), kernel.shape[3]
    if not shrinkage >= 0:
        raise ValueError(f"shrinkage must be at least 0. Received: {shrinkage}")
    mean = checked_arrays("mean", group_list(mean, 1), (size,), groups)
    covariance = checked_arrays("covariance", group_list(covariance, 2), (size, size), groups)
    bias = checked_arrays("bias", None if bias is None else [np.asarray(bias)], (filters,))
    roots = _output_roots(gradient, filters, groups)
    if roots and not covariance:
        raise ValueError("gradient needs covariance too. Received: covariance=None")
    taps = kernel.shape[1 if order == "vertical" else 0]
    parts = []
    for group in range(groups):
        patches = None
        if covariance and np.trace(covariance[group]) > 0:
            view = np.asarray(covariance[group]).reshape(kernel.shape[:3] * 2)
            patches = Patches(view, order, max(shrinkage, LEAST_SHRINKAGE))
        weights = matrix[group].reshape(len(matrix[group]), taps, -1).swapaxes(0, 1)
        root = roots[group] if roots else None
        parts.append(_Group(weights, _basis(weights, patches, root), patches, root))
    return Decomposition(
        order=order,
        groups=groups,
        _kernel=kernel,
        _parts=tuple(parts),
        _mean=None if mean is None else np.stack(mean).astype(np.float64),
        _bias=None if bias is None else bias[0].astype(np.float64),
    )


def _basis(
    weights: np.ndarray, patches: Patches | None, output_root: np.ndarray | None
) -> np.ndarray:
    """Columns of the first factor, the most important one first: C^-1/2 U, [m, Kmax].

    Any root serves, and a Cholesky factor costs a tenth of the symmetric one: with C = L L^T,
    L^T = Q C^1/2 for an orthogonal Q, so that L^T M has the left singular vectors Q U, and
    L^-T Q U = C^-1/2 U.
    """
    from scipy import linalg

    lower = None
    if patches is not None:
        metric, taps_metric = patches.input_metric()
        lower = np.linalg.cholesky(metric)
        weights = np.tensordot(_root(taps_metric), lower.T @ weights, 1)
    if output_root is not None:
        weights = weights @ output_root
    flat = weights.swapaxes(0, 1).reshape(weights.shape[1], -1)
    outer = None
    if flat.shape[0] > flat.shape[1]:
        outer, flat = np.linalg.qr(flat)
    # Left singular vectors as eigenvectors of the Gram matrix: several times faster than an svd.
    left = np.linalg.eigh(flat @ flat.T)[1][:, ::-1][:, : min(flat.shape)]
    left = left if outer is None else outer @ left
    if lower is None:
        return left
    return linalg.solve_triangular(lower, left, trans="T", lower=True, check_finite=False)


def _errors(parts: Sequence[_Group]) -> np.ndarray:
    powers = [part.powers() for part in parts]
    total = sum(power for power, _ in powers)
    explained = np.sum([steps for _, steps in powers], axis=0)
    if total <= 0:  # a kernel without response: any rank keeps it
        return np.zeros(len(explained) + 1)
    left = np.concatenate([[1.0], 1 - np.cumsum(explained) / total])
    left[-1] = 0.0  # exact up to rounding
    return np.minimum.accumulate(np.clip(left, 0, 1))


def _root(metric: np.ndarray) -> np.ndarray:
    """The symmetric square root of a positive semidefinite matrix."""
    values, vectors = np.linalg.eigh(metric)
    return (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T


def _output_roots(
    gradient: np.ndarray | None, filters: int, groups: int
) -> list[np.ndarray] | None:
    """A Cholesky factor of F for each group.

    F has mean diagonal 1 before and after the identity is mixed in.
    """
    if gradient is None:
        return None
    gradient = checked_arrays("gradient", [np.asarray(gradient)], (filters, filters))[0]
    scale = np.trace(gradient) / filters
    if scale <= 0:
        return None
    metric = (1 - IDENTITY_SHARE) / scale * gradient.astype(np.float64)
    metric[np.diag_indices(filters)] += IDENTITY_SHARE
    width = filters // groups
    starts = range(0, filters, width)
    return [np.linalg.cholesky(metric[i : i + width, i : i + width]) for i in starts]
