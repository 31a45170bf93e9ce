"""A convolution as two consecutive thin convolutions: the matrices, and kernels made of factors.

A kernel W[a, b, c, n] (kh x kw, Cin / g channels, Cout filters) becomes, vertical first,
V[a, 0, c, k] followed by H[0, b, k, n]; horizontal first is the twin with the axes exchanged. Both
are one matrix factorisation, M[(a, c), (b, n)] ~ V H, one per group. Stride, dilation and padding
act on each axis by itself, so they are irrelevant here. The scheme: Jaderberg et al. 2014,
https://arxiv.org/abs/1405.3866, section 2.2; its closed form: Tai et al. 2016,
https://arxiv.org/abs/1511.06067, equations 4 to 6.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

ORDERS = ("vertical", "horizontal")


@dataclass(frozen=True, eq=False, repr=False)
class Factors:
    """The two kernels of a DecomposedConv2D, float32 HWIO, and its bias.

    Args:
        first: vertical first [kh, 1, Cin / g, g K], horizontal first [1, kw, Cin / g, g K].
        second: vertical first [1, kw, K, Cout], horizontal first [kh, 1, K, Cout].
        bias: [Cout], replaces the layer's bias; without one that stays as it is.
    """

    first: np.ndarray
    second: np.ndarray
    bias: np.ndarray | None = None

    @property
    def rank(self) -> int:
        """Rank of the pair, per group."""
        return self.second.shape[2]

    def __repr__(self) -> str:
        arrays = {"first": self.first, "second": self.second, "bias": self.bias}
        shapes = (f"{name}={np.shape(a)}" for name, a in arrays.items() if a is not None)
        return f"Factors({', '.join(shapes)})"


def kernel_matrix(kernel: np.ndarray, order: str = "vertical", groups: int = 1) -> np.ndarray:
    """The matrices M[(a, c), (b, n)] (vertical) or M[(b, c), (a, n)] (horizontal) of a kernel.

    Args:
        kernel: [kh, kw, Cin / g, Cout].
        order: "vertical" or "horizontal": the axis of the first thin convolution.
        groups: g; group i owns the output channels [i Cout / g, (i + 1) Cout / g).

    Returns:
        float64 [g, kh Cin / g, kw Cout / g], or with kh and kw exchanged.

    Raises:
        ValueError: no kernel of this shape, an unknown order, values that are not finite.

    Example:
        >>> kernel_matrix(np.ones((3, 5, 8, 16)), "vertical").shape
        (1, 24, 80)
    """
    kernel = _checked_kernel(kernel, order, groups)
    if order == "horizontal":
        kernel = kernel.swapaxes(0, 1)
    along, across, channels, filters = kernel.shape
    grouped = kernel.reshape(along, across, channels, groups, filters // groups)
    return grouped.transpose(3, 0, 2, 1, 4).reshape(groups, along * channels, -1)


def reconstruct(factors: Factors, order: str = "vertical", groups: int = 1) -> np.ndarray:
    """The one kernel [kh, kw, Cin / g, Cout] that does what the pair does, float32.

    Example:
        >>> kernel = np.random.default_rng(0).normal(size=(3, 3, 4, 8))
        >>> bool(np.allclose(reconstruct(plain_factors(kernel, 12)), kernel, atol=1e-6))
        True
    """
    first, second = (np.asarray(part, np.float64) for part in (factors.first, factors.second))
    rank, filters = second.shape[2:]
    first = first.reshape(*first.shape[:3], groups, rank)
    second = second.reshape(*second.shape[:2], rank, groups, filters // groups)
    kernel = np.einsum("abcgk,xykgn->axbycgn", first, second, optimize=True)
    # Vertical: first is [kh, 1], second [1, kw]; horizontal: first is [1, kw], second [kh, 1].
    kernel = kernel[:, 0, 0] if order == "vertical" else kernel[0, :, :, 0]
    return kernel.reshape(*kernel.shape[:3], filters).astype(np.float32)


def plain_factors(
    kernel: np.ndarray, rank: int, order: str = "vertical", groups: int = 1
) -> Factors:
    """The pair of the truncated SVD, the best one in the kernel's own (Frobenius) norm.

    V = U_K S_K^1/2, H = S_K^1/2 Q_K^T (Tai et al. 2016, equation 6; that it is the best one: Eckart
    and Young 1936, "The approximation of one matrix by another of lower rank").

    Args:
        kernel: [kh, kw, Cin / g, Cout].
        rank: K, per group; at most min(kh Cin / g, kw Cout / g).
        order: "vertical" or "horizontal".
        groups: one SVD a group, the same rank each.

    Raises:
        ValueError: the rank is out of range, or see `kernel_matrix`.

    Example:
        >>> plain_factors(np.ones((3, 5, 8, 16)), 2).first.shape
        (3, 1, 8, 2)
    """
    matrix = kernel_matrix(kernel, order, groups)
    check_rank(rank, min(matrix.shape[1:]))
    first, second = truncated(*singular(matrix), rank)
    return as_factors(first, second, np.shape(kernel)[:2], order)


def truncated(
    left: np.ndarray, values: np.ndarray, right: np.ndarray, rank: int
) -> tuple[np.ndarray, np.ndarray]:
    """U_K S_K^1/2 and S_K^1/2 V_K^T of U [..., m, k], S [..., k] and V^T [..., k, n].

    Tai et al. 2016, equation 6.
    """
    half = np.sqrt(values[..., :rank])
    return left[..., :rank] * half[..., None, :], half[..., :, None] * right[..., :rank, :]


def singular(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """U [g, m, k], S [g, k] and V^T [g, k, n] of matrices [g, m, n]; S is 0 where U's column is.

    From the eigenvectors of the smaller Gram matrix (Golub and Van Loan, "Matrix Computations",
    section 8.6), several times faster than LAPACK's svd. They are orthonormal, so that
    U S V^T = A V V^T = A to rounding, whatever the small values are.
    """
    if matrix.shape[1] < matrix.shape[2]:
        right, values, left = singular(matrix.swapaxes(1, 2))
        return left.swapaxes(1, 2), values, right.swapaxes(1, 2)
    vectors = np.linalg.eigh(matrix.swapaxes(1, 2) @ matrix)[1][:, :, ::-1]
    projected = matrix @ vectors
    values = np.linalg.norm(projected, axis=1)
    left = projected / np.maximum(values, np.finfo(values.dtype).tiny)[:, None]
    return left, values, vectors.swapaxes(1, 2)


def energy_rank(singular_values: np.ndarray, energy: float) -> int:
    """The smallest K whose leading values hold more than `energy` of the squared sum, at least 1.

    This is the rule of LRDKT (Lin et al. 2018), there with 0.5 and 0.7. All values when none
    suffices.

    Raises:
        ValueError: energy is not in [0, 1].

    Example:
        >>> energy_rank(np.array([2.0, 1.0, 1.0]), 0.7)
        2
    """
    if not 0 <= energy <= 1:
        raise ValueError(f"energy must lie in [0, 1]. Received: {energy}")
    held = np.cumsum(np.square(np.asarray(singular_values, np.float64)))
    if not held.size or held[-1] == 0:
        return 1
    return int(min(np.searchsorted(held, energy * held[-1], side="right") + 1, held.size))


def balanced(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same product from factors that share its singular values evenly.

    From thin QR factors the SVD is that of a K x K matrix (Golub and Van Loan, "Matrix
    Computations", section 8.6). Even shares are those of Tai et al. 2016, equation 6.
    """
    left, left_core = np.linalg.qr(first)
    right, right_core = np.linalg.qr(second.T)
    turn, values, back = np.linalg.svd(left_core @ right_core.T)
    half = np.sqrt(values)
    first, second = (left @ turn) * half, half[:, None] * (back @ right.T)
    return first, second


def as_factors(
    first: np.ndarray, second: np.ndarray, kernel_size: tuple[int, int], order: str
) -> Factors:
    """[g, rows, K] and [g, K, columns] as the kernels of a DecomposedConv2D."""
    groups, _, rank = first.shape
    along, across = kernel_size if order == "vertical" else kernel_size[::-1]
    first = first.reshape(groups, along, 1, -1, rank).transpose(1, 2, 3, 0, 4)
    first = first.reshape(along, 1, -1, groups * rank)
    second = second.reshape(groups, rank, 1, across, -1).transpose(2, 3, 1, 0, 4)
    second = second.reshape(1, across, rank, -1)
    if order == "horizontal":
        first, second = first.swapaxes(0, 1), second.swapaxes(0, 1)
    return Factors(*(np.ascontiguousarray(part, np.float32) for part in (first, second)))


def check_rank(rank: int, largest: int) -> None:
    """Raises ValueError unless `rank` is an integer in [1, largest]."""
    if not isinstance(rank, int | np.integer) or not 1 <= rank <= largest:
        raise ValueError(f"rank must be an integer in [1, {largest}]. Received: {rank}")


def _checked_kernel(kernel: np.ndarray, order: str, groups: int) -> np.ndarray:
    kernel = np.asarray(kernel, np.float64)
    if order not in ORDERS:
        raise ValueError(f"order must be one of {ORDERS}. Received: {order!r}")
    if kernel.ndim != 4 or 0 in kernel.shape:
        raise ValueError(f"kernel must be [kh, kw, Cin / g, Cout]. Received shape: {kernel.shape}")
    if groups < 1 or kernel.shape[3] % groups:
        raise ValueError(
            f"groups must divide the kernel's {kernel.shape[3]} filters. Received: {groups}"
        )
    if not np.isfinite(kernel).all():
        raise ValueError("kernel must be finite. Received: NaN or infinity")
    return kernel


def group_list(
    moments: np.ndarray | Sequence[np.ndarray] | None, dimensions: int
) -> list[np.ndarray] | None:
    """One array a group, whichever way they came."""
    if moments is None:
        return None
    return [moments] if np.ndim(moments[0]) == dimensions - 1 else list(moments)


def checked_arrays(
    name: str, arrays: list[np.ndarray] | None, shape: tuple[int, ...], groups: int = 1
) -> list[np.ndarray] | None:
    """The arrays, of which there must be one a group, of this shape and finite."""
    if arrays is not None and len(arrays) != groups:
        raise ValueError(f"{name} must be one array per group, {groups}. Received: {len(arrays)}")
    for array in arrays or ():
        if np.shape(array) != shape:
            raise ValueError(f"{name} must have shape {shape}. Received: {np.shape(array)}")
        if not np.isfinite(array).all():
            raise ValueError(f"{name} must be finite. Received: NaN or infinity")
    return arrays
