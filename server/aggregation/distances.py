"""How far updates lie from each other, for rules that compare devices as wholes."""

import numpy as np

from server.aggregation.update import Update
from sparcl_core.codec import Layout

FAR = 1e300  # squares of float64 weights may overflow, and infinity minus infinity is no distance


def squared_distances(updates: list[Update], layout: Layout) -> np.ndarray:
    """[K, K] float64: ||d_k - d_l||^2 over all weights, symmetric, 0 on the diagonal; at most `FAR`.

    What a device does not hold, or did not send, counts as a change of 0: with masks of their own, two devices lie apart by what only
    one of them holds, all pairs alike. Updates are compared as they came, however old. Running statistics, whose scale is another, do not
    count. Takes K^2 passes over an update, and K times the memory of the largest tensor.
    """
    found = np.zeros((len(updates), len(updates)))
    for name in layout.shapes:
        if name in layout.statistics or not any(name in update.tensors for update in updates):
            continue
        whole = np.zeros((len(updates), layout.size(name)))
        for row, update in zip(whole, updates, strict=True):
            if name in update.tensors:
                row[update.tensors[name].places] = update.tensors[name].values
        with np.errstate(over="ignore"):
            for one in range(len(updates) - 1):
                found[one, one + 1 :] += np.square(whole[one + 1 :] - whole[one]).sum(axis=1)
    return np.minimum(found + found.T, FAR)
