"""u_j = mean of the changes s_k d_kj of those that hold j, without the b_j largest and the b_j smallest, b_j = floor(trim * holders of j).

Yin, Chen, Kannan and Bartlett, "Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates", ICML 2018, Definition 2 (of
gradients there; `trim` is its beta, at least the share of devices that are not to be trusted). Devices count alike, as in the paper.

Beyond the paper: holders differ by coordinate under masks and row voting, so b_j does, and where fewer than 1 / trim hold a coordinate
nothing is trimmed. With `stale = "normalise"` an old update counts s_k in the mean, and the server's own value counts tau = shrinkage * K
in it; who is trimmed does not depend on either.
"""

from typing import Any

import numpy as np

from server.aggregation.holders import blocks
from server.aggregation.rule import Changes, Rule, quotient
from server.aggregation.update import Update


class TrimmedMean(Rule):
    """The mean over the holders of a coordinate without the largest and the smallest (Yin et al. 2018).

    trim: share of the holders that is left out at either end.
    """

    def __init__(self, settings: Any, *, trim: float = 0.2):
        if not 0 <= trim < 0.5:
            raise ValueError(f"aggregation.options.trim is {trim}: a share in [0, 0.5), so that somebody is left between the two ends")
        super().__init__(settings)
        self.trim = trim

    def count(self, update: Update) -> float:
        return 1.0

    def combine(self, changes: Changes) -> np.ndarray:
        values, weights = changes.held().reshape(len(changes.updates), -1), np.array(changes.counts, np.float64)
        return blocks(values, lambda part: self._mean(part, weights, changes.tau)).reshape(changes.shape)

    def _mean(self, values: np.ndarray, weights: np.ndarray, tau: float) -> np.ndarray:
        order = np.argsort(values, axis=0, kind="stable")  # NaN, those that do not count, last
        values, weights = np.take_along_axis(values, order, axis=0), weights[order]
        holders = np.count_nonzero(~np.isnan(values), axis=0)
        left_out = np.floor(np.round(self.trim * holders, 9))  # rounded first: 0.29 of 100 must not be 28 because of the last bit
        rank = np.arange(len(values))[:, None]
        kept = (rank >= left_out) & (rank < holders - left_out)
        total = np.where(kept, values * weights, 0.0).sum(axis=0)
        return quotient(total, np.where(kept, weights, 0.0).sum(axis=0) + tau)
