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
    Factors,
    as_factors,
    balanced,
    check_rank,
    checked_arrays,
    group_list,
    kernel_matrix,
    reconstruct,
    singular,
    truncated,
)
from espace_tf.numerics.patches import Patches, lower_root

# Share of the identity in the output metric: a few filters must not take all the rank.
IDENTITY_SHARE = 0.5
# Least shrinkage: a covariance of any rank is definite with it.
LEAST_SHRINKAGE = 1e-8
_GRADIENT_STEPS = 2  # of the first factor in a round: 1 % from the exact solution


@dataclass(frozen=True, eq=False)
class _Group:
    """One group's matrix, what it is factored by, and how good a pair is."""

    weights: np.ndarray  # [taps, m, N]: M by taps of the second convolution
    patches: Patches | None  # without them, the plain truncated SVD
    output_root: np.ndarray | None  # L of F = L L^T, [N, N]

    @functools.cached_property
    def singular(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """U [m, k], S [k] and V^T [k, taps * N] of the matrix itself."""
        flat = self.weights.swapaxes(0, 1).reshape(1, self.weights.shape[1], -1)
        return tuple(part[0] for part in singular(flat))

    @functools.cached_property
    def products(self) -> np.ndarray:
        """Sigma W, [taps, m, N]."""
        return self.patches.times(self.weights)

    @functools.cached_property
    def basis(self) -> np.ndarray:
        """Columns of the first factor, the most important one first: C^-1/2 U, [m, Kmax].

        Any root serves, and a Cholesky factor costs a tenth of the symmetric one: with C = L L^T,
        L^T = Q C^1/2 for an orthogonal Q, so that L^T M has the left singular vectors Q U, and
        L^-T Q U = C^-1/2 U.
        """
        from scipy import linalg

        metric, taps_metric = self.patches.input_metric
        lower = lower_root(metric)
        white = np.tensordot(lower_root(taps_metric).T, lower.T @ self.weights, 1)
        flat = self._measured(white).swapaxes(0, 1).reshape(len(lower), -1)
        outer = None
        if flat.shape[0] > flat.shape[1]:
            outer, flat = np.linalg.qr(flat)
        # Left singular vectors as eigenvectors of the Gram matrix: several times faster than svd.
        left = np.linalg.eigh(flat @ flat.T)[1][:, ::-1][:, : min(flat.shape)]
        left = left if outer is None else outer @ left
        return linalg.solve_triangular(lower, left, trans="T", lower=True, check_finite=False)

    def _measured(self, weights: np.ndarray) -> np.ndarray:
        """Weights whose plain squares are those in the metric of the outputs."""
        return weights if self.output_root is None else weights @ self.output_root

    def pair(self, rank: int, rounds: int) -> tuple[np.ndarray, np.ndarray]:
        """Balanced first [m, K] and second factor [K, taps * N].

        That of the truncated SVD where the other one changes the measured responses more: the
        metric of a first factor is an approximation, and shrinkage is not in the data.
        """
        plain = truncated(*self.singular, rank)
        if self.patches is None:
            return plain
        first = self.basis[:, :rank]
        second = self._second_for(first)
        for _ in range(rounds):
            first = self._first_for(first, second)
            second = self._second_for(first)
        return min(balanced(first, second), plain, key=self._lost)

    def _lost(self, pair: tuple[np.ndarray, np.ndarray]) -> float:
        """Power of the change of response that a pair makes once it is in float32."""
        first, second = (part.astype(np.float32).astype(np.float64) for part in pair)
        taps, size, filters = self.weights.shape
        made = (first @ second).reshape(size, taps, filters).swapaxes(0, 1)
        return self.patches.power(self._measured(self.weights - made))

    def _second_for(self, first: np.ndarray) -> np.ndarray:
        """The least-squares second factor, H = (B^T Sigma B)^-1 B^T Sigma W."""
        from scipy import linalg

        taps, _, filters = self.weights.shape
        rank = first.shape[1]
        right = np.tensordot(first, self.products, [0, 1]).reshape(rank * taps, filters)
        lower = lower_root(self.patches.gram(first))
        return linalg.cho_solve((lower, True), right).reshape(rank, taps * filters)

    def _first_for(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """A better first factor for this second one, by a few steps of conjugate gradients.

        The normal equations are sum_ij G_ij V Q_ji = sum_j (Sigma W)_j F H_j^T with
        Q_ij = H_i F H_j^T. As G_ij ~ R_ij C, the step C^-1 X (sum_ij R_ij Q_ij)^-1 nearly solves
        them: a good preconditioner (Hestenes and Stiefel 1952; preconditioned as in Golub and Van
        Loan, "Matrix Computations", section 11.5). Started at `first`, no step increases the error.
        """
        from scipy import linalg

        taps, _, filters = self.weights.shape
        second = second.reshape(len(second), taps, filters).swapaxes(0, 1)
        measured = second
        if self.output_root is not None:
            measured = second @ (self.output_root @ self.output_root.T)
        inner = np.einsum("ikn,jln->ijkl", measured, second, optimize=True)
        metric, ratios = self.patches.input_metric
        core = np.einsum("ij,ijkl->kl", ratios, inner)
        core[np.diag_indices(len(core))] += 1e-10 * np.trace(core) / len(core)
        left, right = ((lower_root(part), True) for part in (metric, core))

        blocks = self.patches.blocks.reshape(taps, len(first), -1)

        def apply(x):  # sum_ij G_ij x Q_ji
            right = x @ inner
            return sum(blocks[i] @ right[:, i].reshape(-1, x.shape[1]) for i in range(taps))

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

    def powers(self, most: int) -> tuple[float, np.ndarray]:
        """The response's power, and what each rank up to `most` takes off it after the exact refit.

        The least-squares problems of all ranks are nested, so one Cholesky factor L of the largest
        normal matrix solves them all: with Z = L^-1 B^T Sigma W the power that rank K explains is
        the squared sum of the first K * taps rows of Z (measured in the output metric).
        """
        from scipy import linalg

        if self.patches is None:
            squares = np.square(self.singular[1])
            return float(squares.sum()), squares[:most]
        taps, _, filters = self.weights.shape
        basis = self.basis[:, :most]
        right = np.tensordot(basis, self.products, [0, 1]).reshape(-1, filters)
        lower = lower_root(self.patches.gram(basis))
        right = linalg.solve_triangular(lower, self._measured(right), lower=True)
        explained = np.square(right).reshape(-1, taps * filters).sum(axis=1)
        total = np.vdot(self._measured(self.weights), self._measured(self.products))
        return float(total), explained


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
        return self.errors_to(self.max_rank)

    def errors_to(self, most: int) -> np.ndarray:
        """[most + 1], those of `errors` up to this rank, in a fraction of the time.

        Raises:
            ValueError: `most` is not in [1, max_rank].
        """
        check_rank(most, self.max_rank)
        found = _errors(self._parts, most)
        if most == self.max_rank:
            found[-1] = 0.0  # exact up to rounding
        return found

    @property
    def max_rank(self) -> int:
        """Full rank, per group: min(kh Cin / g, kw Cout / g) vertical first."""
        return min(kernel_matrix(self._kernel, self.order, self.groups).shape[1:])

    @functools.cached_property
    def singular_values(self) -> np.ndarray:
        """[Kmax] of the kernel itself (of all groups together: root of the sum of squares)."""
        return np.sqrt(sum(np.square(part.singular[1]) for part in self._parts))

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
        pairs = [part.pair(rank, rounds) for part in self._parts]
        first, second = (np.stack(side) for side in zip(*pairs, strict=True))
        factors = as_factors(first, second, self._kernel.shape[:2], self.order)
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
        if covariance:
            view = np.asarray(covariance[group]).reshape(kernel.shape[:3] * 2)
            patches = Patches(view, order, max(shrinkage, LEAST_SHRINKAGE))
        if patches and not patches.scale:
            patches = None
        weights = matrix[group].reshape(len(matrix[group]), taps, -1).swapaxes(0, 1)
        parts.append(_Group(weights, patches, roots[group] if roots and patches else None))
    return Decomposition(
        order=order,
        groups=groups,
        _kernel=kernel,
        _parts=tuple(parts),
        _mean=None if mean is None else np.stack(mean).astype(np.float64),
        _bias=None if bias is None else bias[0].astype(np.float64),
    )


def _errors(parts: Sequence[_Group], most: int) -> np.ndarray:
    # A group whose patches do not vary counts nothing beside groups whose patches do.
    scales = np.array([part.patches.scale if part.patches else 0.0 for part in parts])
    scales = scales / scales.max() if scales.any() else np.ones(len(parts))
    powers = [part.powers(most) for part in parts]
    total = sum(scale * power for scale, (power, _) in zip(scales, powers, strict=True))
    explained = scales @ [steps for _, steps in powers]
    if total <= 0:  # a kernel without response: any rank keeps it
        return np.zeros(len(explained) + 1)
    left = np.concatenate([[1.0], 1 - np.cumsum(explained) / total])
    return np.minimum.accumulate(np.clip(left, 0, 1))


def _output_roots(
    gradient: np.ndarray | None, filters: int, groups: int
) -> list[np.ndarray] | None:
    """A Cholesky factor of F for each group.

    F has mean diagonal 1 before and after the identity is mixed in.
    """
    if gradient is None:
        return None
    gradient = checked_arrays("gradient", [np.asarray(gradient)], (filters, filters))[0]
    gradient = gradient.astype(np.float64)
    scale = np.trace(gradient) / filters
    if scale <= np.finfo(np.float64).tiny:
        return None
    metric = (1 - IDENTITY_SHARE) / scale * (gradient + gradient.T) / 2
    metric[np.diag_indices(filters)] += IDENTITY_SHARE
    width = filters // groups
    starts = range(0, filters, width)
    return [lower_root(metric[i : i + width, i : i + width]) for i in starts]
