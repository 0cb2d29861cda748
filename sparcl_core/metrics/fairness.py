"""Figures of single devices, and how evenly they are spread over a fleet. Formulas and sources: docs/metrics.md.

Accuracy of a device: that of the model on test samples in the device's own mix of (task, class). Spread: standard deviation and mean of
the worst and best tenth, as in q-FFL (Li et al., "Fair Resource Allocation in Federated Learning", ICLR 2020), and Jain's index
(Jain, Chiu and Hawe, "A Quantitative Measure of Fairness and Discrimination for Resource Allocation in Shared Computer Systems", 1984).
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Fairness:
    """How a figure is spread over devices; all but the counts are NaN where no device has a value.

    Attributes:
        mean, std: over devices, each with the same weight; std of the population, in the figure's unit.
        worst_decile, best_decile: mean of the lowest and of the highest ceil(N / 10) values.
        jain: (sum v)^2 / (N sum v^2), from 1/N, one device has all, to 1, all have the same (also where all have 0); NaN if a value is
            negative.
        devices: N, how many have a value.
        missing: how many have none (NaN); they are in no figure.
    """

    mean: float
    std: float
    worst_decile: float
    best_decile: float
    jain: float
    devices: int
    missing: int


def fairness(values: np.ndarray) -> Fairness:
    """The spread of `values` [N], one per device, NaN where a device has none. Their order does not matter, not even to a bit.

    Raises:
        ValueError: if `values` is no list of numbers, or one is infinite.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or np.isinf(values).any():
        raise ValueError(f"values have shape {values.shape} or hold an infinite one: give a finite number per device, or NaN for none")
    known = np.sort(values[~np.isnan(values)])
    count, missing = len(known), len(values) - int(np.count_nonzero(~np.isnan(values)))
    if not count:
        return Fairness(*[math.nan] * 5, 0, missing)
    tenth = math.ceil(count / 10)
    spread = (np.mean(known), np.std(known), np.mean(known[:tenth]), np.mean(known[-tenth:]), _jain(known))
    return Fairness(*map(float, spread), count, missing)


def device_accuracy(accuracy: np.ndarray, weights: np.ndarray | Iterable[np.ndarray]) -> np.ndarray:
    """[N] float64: accuracy by each device's own mix, sum w a / sum w over its cells (task, class).

    Cells whose accuracy is NaN, as the test data has no such sample, are left out of both sums. A device that has nothing left is NaN.

    Args:
        accuracy: [T, C], of one scenario, from `metrics.accuracy_by_class`.
        weights: [N, T, C], how many samples (or which share) each device has; not negative. For a large fleet an iterable of such arrays
            for one part of the devices after another: the result is the same to the bit.

    Raises:
        ValueError: if a chunk does not fit `accuracy`, or holds a weight that is negative, infinite or NaN.
    """
    accuracy = np.asarray(accuracy, dtype=np.float64)
    known = ~np.isnan(accuracy.reshape(-1))
    cells = accuracy.reshape(-1)[known]
    parts = [np.empty(0)]
    for chunk in [weights] if isinstance(weights, np.ndarray) else weights:
        if chunk.shape[1:] != accuracy.shape:
            raise ValueError(f"weights have shape {chunk.shape}, accuracy {accuracy.shape}: they must be [N, T, C] and [T, C]")
        # C order fixes in which order a row is summed, whatever the memory layout and length of the chunk
        own = np.ascontiguousarray(chunk.reshape(len(chunk), accuracy.size)[:, known], dtype=np.float64)
        if not (np.isfinite(own) & (own >= 0)).all():
            raise ValueError("weights hold a negative, infinite or NaN value: give how many samples of each task and class a device has")
        total = own.sum(1)
        parts.append(np.divide((own * cells).sum(1), total, out=np.full(len(own), np.nan), where=total > 0))
    return np.concatenate(parts)


def _jain(values: np.ndarray) -> float:
    """Of ascending values. Divided by the largest first, so that no square is too small or too large for a float."""
    if values[0] < 0:
        return math.nan
    if values[-1] == 0:
        return 1.0
    shares = values / values[-1]
    return float(np.clip(shares.sum() ** 2 / (len(shares) * (shares**2).sum()), 1 / len(shares), 1.0))
