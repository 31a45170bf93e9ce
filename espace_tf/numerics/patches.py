"""What a low-rank pair needs to know of the patches that a layer reads: their second moments."""

import functools
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Patches:
    """Second moments of one group's patches, in blocks of the second convolution's taps.

    Args:
        covariance: [kh, kw, C, kh, kw, C] view.
        order: "vertical" or "horizontal".
        shrinkage: what is added to the diagonal, as a share of its mean.
    """

    covariance: np.ndarray
    order: str
    shrinkage: float

    @functools.cached_property
    def ridge(self) -> float:
        """What is added to the diagonal."""
        size = int(np.prod(self.covariance.shape[:3]))
        return self.shrinkage * np.trace(self.covariance.reshape(size, size)) / size

    @property
    def taps(self) -> int:
        """Of the second convolution."""
        return self.covariance.shape[1 if self.order == "vertical" else 0]

    def block(self, i: int, j: int) -> np.ndarray:
        """Covariance of what taps i and j of the second convolution see.

        [m, m] with m = (taps of the first convolution) * channels.
        """
        if self.order == "vertical":
            block = self.covariance[:, i, :, :, j]
        else:
            block = self.covariance[i, :, :, j]
        size = block.shape[0] * block.shape[1]
        block = block.reshape(size, size).astype(np.float64)
        if i == j:
            block[np.diag_indices(size)] += self.ridge
        return block

    def input_metric(self) -> tuple[np.ndarray, np.ndarray]:
        """C = mean_b G_bb and R_bb' = tr(G_bb') / tr(C): Sigma ~ R kron C."""
        mean = sum(self.block(i, i) for i in range(self.taps)) / self.taps
        traces = [[np.trace(self.block(i, j)) for j in range(self.taps)] for i in range(self.taps)]
        ratios = np.array(traces) / np.trace(mean)
        return mean, (ratios + ratios.T) / 2

    def gram(self, basis: np.ndarray) -> np.ndarray:
        """B^T Sigma B for B = I kron basis, [K taps, K taps], index k * taps + tap."""
        rank = basis.shape[1]
        gram = np.empty((rank, self.taps, rank, self.taps))
        for i in range(self.taps):
            for j in range(i, self.taps):
                part = basis.T @ (self.block(i, j) @ basis)
                gram[:, i, :, j] = part
                gram[:, j, :, i] = part.T
        return gram.reshape(rank * self.taps, rank * self.taps)

    def times(self, weights: np.ndarray) -> np.ndarray:
        """Sigma W, both [taps, m, N]."""
        products = [
            sum(self.block(i, j) @ weights[j] for j in range(self.taps)) for i in range(self.taps)
        ]
        return np.stack(products)
