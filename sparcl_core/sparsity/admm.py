"""Pruning by ADMM, alternating direction method of multipliers (Zhang et al. 2018, arXiv:1804.03294): min f(W), W in S, as

    W <- steps on f(W) + rho / 2 ||W - Z + U||^2        Z <- P(W + U)        U <- U + W - Z

S: at most so many weights are not 0; P, the projection on S, keeps those of largest magnitude. All arrays are vectors.
"""

import numpy as np

from sparcl_core.sparsity.masks import highest


def projected(weights: np.ndarray, count: int) -> np.ndarray:
    """P: `weights` [n] with all but `count` set to 0; of equal magnitudes those with the lower index stay."""
    return np.where(highest(np.abs(weights), count), weights, weights.dtype.type(0))


def updated(weights: np.ndarray, u: np.ndarray | None, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Z and U [n] behind some steps; `u`: as it was. At first, None: Z = P(W), U = 0."""
    if u is None:
        return projected(weights, count), np.zeros_like(weights)
    z = projected(weights + u, count)
    return z, u + weights - z
