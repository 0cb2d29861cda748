"""theta_j = (sum_k n_k v_kj (w_j + d_kj) + tau w_j) / (sum_k n_k + tau), u_j = theta_j - w_j: 0 for what a device does not hold.

FedAvg (McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data", AISTATS 2017, Algorithm 1). It shrinks
a coordinate to its share of holders: kept as the baseline that shows the danger. In the row of a class, devices that have not seen it leave
both sums: to have no data of a class is not to want its weights at 0.
"""

import numpy as np

from server.aggregation.rule import Changes, Rule, quotient


class ZeroFilled(Rule):
    """FedAvg with 0 for what a device does not hold, which shrinks it: kept to show the danger."""

    def combine(self, changes: Changes) -> np.ndarray:
        """theta - w = (sum n v d - (weight of those without the coordinate) w) / (sum n + tau): exact where nobody is without."""
        total, everybody = changes.total(), changes.support.electorate_weight
        without = everybody - changes.support.weight
        if without.any():
            total -= without * changes.old
        return quotient(total, everybody + changes.tau)
