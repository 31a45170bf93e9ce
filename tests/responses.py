"""What a convolution makes of patches whose covariance is known."""

import numpy as np


def response_error(kernel, approximation, covariances=None):
    """E |y - y~|^2 / E |y - E y|^2 for patches of these covariances, one a group."""
    groups = 1 if covariances is None else len(covariances)
    shape = (-1, groups, kernel.shape[-1] // groups)
    given = np.eye(kernel[..., 0].size)[None] if covariances is None else covariances
    powers = [
        np.einsum("dgn,gde,egn->", each.reshape(shape), given, each.reshape(shape), optimize=True)
        for each in (kernel - approximation, kernel)
    ]
    return powers[0] / powers[1]
