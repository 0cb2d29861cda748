"""Averaging sparse updates, pure and in device order.

For coordinate j and devices k with n_k samples and update d_k (0 where a device sent nothing):

    update_j = sum_k v_kj n_k d_kj / sum_k v_kj n_k        (0 where the sum of weights is 0)

With shared masks every device holds every active coordinate, so v_kj = 1: FedAvg (McMahan et al. 2017) on the active set.
Only the rows of the classifier differ: a device votes on the rows of classes that it has seen (v_kj = 0 elsewhere), so that
devices that never met a class do not pull its row back. Sums run over devices in the order given, in float64.
"""

from dataclasses import dataclass

import numpy as np

from sparcl_core.codec import Layout, SparseTensor
from sparcl_core.masks import State


@dataclass(frozen=True)
class Update:
    """One device's decoded update. samples: n_k; seen: [C] bool, classes it has seen."""

    device: int
    samples: int
    seen: np.ndarray
    tensors: dict[str, SparseTensor]


def mean_update(updates: list[Update], layout: Layout, classifier: tuple[str, ...]) -> State:
    """The weighted mean of `updates`, float64 arrays in the layout's shapes.

    Args:
        updates: sorted by device.
        classifier: names of the tensors whose first axis is the class and whose rows are voted on; empty: none.

    Raises:
        ValueError: if there is no update, they are out of order, or all weights are 0.
    """
    order = [update.device for update in updates]
    if not updates or order != sorted(set(order)):
        raise ValueError(f"updates of devices {order}: at least one, each device once, in device order")
    total = float(sum(update.samples for update in updates))
    if total <= 0:
        raise ValueError("no update has a sample behind it: they cannot be weighted")
    result = {}
    for name, shape in layout.shapes.items():
        sums = np.zeros(shape)
        flat = sums.reshape(-1)
        weights = np.zeros(shape[0]) if name in classifier else total
        for update in updates:
            if name in update.tensors:
                dense = np.zeros(flat.size)
                dense[update.tensors[name].places] = update.tensors[name].values
                if name in classifier:
                    dense = (dense.reshape(shape[0], -1) * update.seen[:, None]).reshape(-1)
                flat += update.samples * dense
            if name in classifier:
                weights += update.samples * update.seen
        if name in classifier:
            rows = sums.reshape(shape[0], -1)
            rows /= np.where(weights > 0, weights, 1)[:, None]
        else:
            sums /= weights
        result[name] = sums
    return result


def mean_importance(reports: list[tuple[int, dict[str, SparseTensor]]], layout: Layout) -> dict[str, np.ndarray]:
    """sum_k n_k I_k / sum_k n_k per masked tensor, float64; `reports`: (n_k, decoded importance) in device order."""
    if not reports:
        raise ValueError("no device reported an importance: the masks cannot be updated")
    total = sum(samples for samples, _ in reports)
    result = {name: np.zeros(layout.shapes[name]) for name in layout.shapes if name in layout.masked}
    for samples, tensors in reports:
        for name, mean in result.items():
            mean.reshape(-1)[tensors[name].places] += samples / total * tensors[name].values
    return result
