"""u = the change of the device whose n - f - 2 nearest others lie nearest: s(k) = sum over these of ||d_k - d_l||^2, and the lowest s wins.

Blanchard, El Mhamdi, Guerraoui and Stainer, "Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent", NeurIPS 2017,
section 4, `krum`; section 6, `multi-krum`: the mean of the m lowest. n updates of a round, of which f = `byzantine` may be anything; the
paper's guarantee needs n >= 2 f + 3. With fewer, at least one neighbour is looked at. Of equal scores the lower device wins.

The paper's devices draw from one distribution. Where devices have different classes, a device alone with a class lies far from the
others and is left out: a robust rule that looks at coordinates, with row voting, loses less there. Distances:
`server.aggregation.distances`. Those that are chosen are averaged as by `count-mean`, over the holders of each coordinate, with votes, old
updates and the server's own value as everywhere; the others have a row `rejected`, and no say in the masks.
"""

from typing import Any

import numpy as np

from server.aggregation.count_mean import CountMean
from server.aggregation.distances import squared_distances
from server.aggregation.update import Update
from sparcl_core.codec import Layout


class MultiKrum(CountMean):
    """The mean of the devices whose updates lie nearest to those of most others (Blanchard et al. 2017).

    byzantine: f, devices that may be anything; keep: m, how many are averaged, 0 for n - f.
    """

    def __init__(self, settings: Any, *, byzantine: int = 1, keep: int = 0):
        if byzantine < 0 or keep < 0:
            raise ValueError(
                f"aggregation.options.byzantine is {byzantine} and keep {keep}: numbers of devices, not negative; keep=0 keeps all but "
                f"byzantine"
            )
        super().__init__(settings)
        self.byzantine, self.keep = byzantine, keep
        self.least_updates = 2 * byzantine + 3

    def chosen(self, updates: list[Update], layout: Layout) -> list[Update]:
        keep = self.keep or max(1, len(updates) - self.byzantine)
        best = np.argsort(scores(squared_distances(updates, layout), self.byzantine), kind="stable")[:keep]
        return [updates[row] for row in np.sort(best)]


class Krum(MultiKrum):
    """The one device whose update lies nearest to those of most others (Blanchard et al. 2017)."""

    def __init__(self, settings: Any, *, byzantine: int = 1):
        super().__init__(settings, byzantine=byzantine, keep=1)


def scores(squared: np.ndarray, byzantine: int) -> np.ndarray:
    """[n] s(k) from [n, n] squared distances."""
    neighbours = max(1, len(squared) - byzantine - 2)
    return np.sort(squared, axis=1)[:, 1 : 1 + neighbours].sum(axis=1)  # the nearest of all is the device itself, at 0
