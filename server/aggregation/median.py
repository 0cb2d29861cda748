"""u_j = median of the changes s_k d_kj over those that hold j, coordinate by coordinate: it lies among those of any half of the holders.

Yin, Chen, Kannan and Bartlett, "Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates", ICML 2018, Definition 1 (of
gradients there). Devices count alike, as in the paper: how many samples it has is a device's own claim. Of an even number it is the mean of
the two in the middle.

Beyond the paper: where weights are given, the lower and upper weighted median are averaged. With `stale = "normalise"` an old update has
weight s_k, and the server's own value is one more holder, with change 0 and weight tau = shrinkage * K.
"""

import numpy as np

from server.aggregation.holders import blocks, with_server
from server.aggregation.rule import Changes, Rule
from server.aggregation.update import Update


class Median(Rule):
    """The median over the devices that hold a coordinate (Yin et al. 2018)."""

    def count(self, update: Update) -> float:
        return 1.0

    def combine(self, changes: Changes) -> np.ndarray:
        values, weights = with_server(changes)
        return blocks(values, lambda part: weighted_median(part, weights)).reshape(changes.shape)


def weighted_median(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """[P] float64 of [K, P] values, NaN where one does not count: the mean of lower and upper weighted median; 0 where none counts.

    `weights`: [K], not negative.
    """
    order = np.argsort(values, axis=0, kind="stable")  # NaN last
    values = np.take_along_axis(values, order, axis=0)
    up_to = np.cumsum(np.where(np.isnan(values), 0.0, weights[order]), axis=0)
    half = up_to[-1] / 2
    lower, upper = (up_to >= half).argmax(axis=0), (up_to > half).argmax(axis=0)
    columns = np.arange(values.shape[1])
    found = (values[lower, columns] + values[upper, columns]) / 2
    return np.where(half > 0, found, 0.0)
