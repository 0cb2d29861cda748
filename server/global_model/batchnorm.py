"""BatchNorm statistics of several devices as if their samples had been seen together."""

from dataclasses import dataclass, replace

import numpy as np

from server.aggregation.config import AggregationConfig
from server.aggregation.update import Update
from server.defence.clipping import Seen, Unusual, bounded
from sparcl_core.codec import Layout, SparseTensor
from sparcl_core.sparsity.masks import State


@dataclass(frozen=True, eq=False)
class Observed:
    """A device's statistics by name, and how many samples they rest on."""

    device: int
    samples: int
    statistics: State


def bounded_statistics(
    found: list[Observed], before: State, seen: Seen, *, layout: Layout, config: AggregationConfig
) -> tuple[list[Observed], list[Unusual], Seen]:
    """Statistics as they may be pooled, what was done to some of them, and what is remembered.

    How far each device's lie from those of the global model, `before`, is held against the others as updates are (see `clipping`). What
    stands out is scaled down, and never refused: the device's update is another matter. What does not is the same object.
    """
    changes = []
    for one in found:
        moved = {name: (own.astype(np.float64) - before[name]).reshape(-1) for name, own in one.statistics.items()}
        tensors = {name: SparseTensor(np.arange(values.size), values) for name, values in moved.items()}
        changes.append(Update(one.device, one.samples, np.zeros(0, bool), tensors))
    held, seen = bounded(changes, seen, layout, replace(config, probation=0))
    scaled, result = {one.device for one in held.unusual}, []
    for one, change in zip(found, held.updates, strict=True):
        if one.device in scaled:
            moved = {name: change.tensors[name].values.reshape(before[name].shape) for name in one.statistics}
            one = replace(one, statistics={name: before[name] + values for name, values in moved.items()})
        result.append(one)
    return result, held.unusual, seen


def pooled_statistics(found: list[tuple[int, State]]) -> State:
    """Mean and variance over the union of the devices' samples, float64.

    Args:
        found: (n_k, statistics by name) in device order; every `X.running_mean` has its `X.running_var`.

    mean = sum n_k m_k / n, variance = sum n_k (v_k + m_k^2) / n - mean^2 (law of total variance): the plain mean of variances would
    leave out how far the devices' means lie apart. `batchnorm = global` averages them plainly, as FedAvg on BatchNorm does.

    Raises:
        ValueError: without a device, or if no sample stands behind them.
    """
    total = sum(samples for samples, _ in found)
    if total < 1:
        raise ValueError("no statistics rest on a sample: there is nothing to pool")
    result = {}
    for name in found[0][1]:
        if not name.endswith("running_mean"):
            continue
        of_variance = name.removesuffix("mean") + "var"
        mean = sum(samples / total * own[name].astype(np.float64) for samples, own in found)
        square = sum(samples / total * (own[of_variance].astype(np.float64) + own[name].astype(np.float64) ** 2) for samples, own in found)
        result[name], result[of_variance] = mean, np.maximum(square - mean**2, 0.0)
    return result
