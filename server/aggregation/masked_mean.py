"""u_j = sum_k n_k v_kj d_kj / (sum_k n_k v_kj + tau): the mean of the changes over those that hold a coordinate, by samples.

The sparse weighted average of FedDST (Bibikar et al., "Federated Dynamic Sparse Training", AAAI 2022: sum n m theta / sum n m), of changes
instead of weights. A coordinate that one device holds takes that device's change whole.
"""

import numpy as np

from server.aggregation.rule import Changes, Rule, quotient


class MaskedMean(Rule):
    """The mean over the devices that hold a coordinate, by samples (FedDST)."""

    def combine(self, changes: Changes) -> np.ndarray:
        return quotient(changes.total(), changes.support.weight + changes.tau)
