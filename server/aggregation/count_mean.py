"""u_j = sum_k v_kj d_kj / (sum_k v_kj + tau): `masked_mean` with n_k = 1, the plain mean over holders.

HeteroFL (Diao, Ding and Tarokh, "HeteroFL: Computation and Communication Efficient Federated Learning for Heterogeneous Clients", ICLR
2021, section 3) averages so.
"""

from server.aggregation.masked_mean import MaskedMean
from server.aggregation.update import Update


class CountMean(MaskedMean):
    """The mean over the devices that hold a coordinate, each alike (HeteroFL)."""

    def count(self, update: Update) -> float:
        return 1.0
