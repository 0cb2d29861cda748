"""BatchNorm statistics of several devices as if their samples had been seen together."""

import numpy as np

from sparcl_core.masks import State


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
