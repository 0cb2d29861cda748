"""u = the geometric median of whole updates, argmin_v sum_k n_k ||v - d_k||: the mean over holders with n_k / max(nu, ||v - d_k||) for n_k.

Pillutla, Kakade and Harchaoui, "Robust Aggregation for Federated Learning", IEEE Transactions on Signal Processing 70, 2022 (arXiv
1912.13445), Algorithm 2, the smoothed Weiszfeld algorithm, from the weighted mean on; nu = 1e-6 as there. Half of all samples must be
another device's before one moves it far.

Differences from the paper: it runs 3 rounds of Weiszfeld, each of which costs a secure sum over the network; here they cost the server a
few sums of K x K numbers, so there are 100. Distances are those of `server.aggregation.distances` (0 for what a device does not hold); the
weights that they end with are then used in a mean over the holders of each coordinate, as by `masked-mean`.
"""

import numpy as np

from server.aggregation.distances import squared_distances
from server.aggregation.masked_mean import MaskedMean
from server.aggregation.update import Update
from sparcl_core.codec import Layout

NU = 1e-6
ITERATIONS = 100


class GeometricMedian(MaskedMean):
    """The geometric median of whole updates, by samples (Pillutla et al. 2022)."""

    def counts(self, updates: list[Update], layout: Layout) -> list[float]:
        return weiszfeld(squared_distances(updates, layout), np.array(super().counts(updates, layout))).tolist()


def weiszfeld(squared: np.ndarray, samples: np.ndarray) -> np.ndarray:
    """[K] weights with which the weighted mean of K points is near their geometric median, summing to the sum of `samples`.

    For v = sum_l w_l d_l with sum_l w_l = 1: ||v - d_k||^2 = sum_l w_l D_kl - 1/2 sum_l sum_m w_l w_m D_lm, so that pairs of squared
    distances D, [K, K], are all that it takes.
    """
    share = samples / samples.sum()
    weights = share
    for _ in range(ITERATIONS):
        apart = squared @ weights
        apart = np.sqrt(np.maximum(apart - weights @ apart / 2, 0.0))
        weights = share / np.maximum(NU, apart)
        weights /= weights.sum()
    return weights * samples.sum()
