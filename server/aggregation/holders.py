"""What rules that look at coordinates device by device share: values and weights of all holders, and a walk that keeps memory small."""

from collections.abc import Callable

import numpy as np

from server.aggregation.rule import Changes

BLOCK = 1 << 16  # coordinates at a time: what a rule computes takes several times the memory of their values


def with_server(changes: Changes) -> tuple[np.ndarray, np.ndarray]:
    """[K, P] changes of a tensor, NaN where a device does not count, and [K] weights; with tau > 0 the server is one more row, of 0."""
    values = changes.held().reshape(len(changes.updates), -1)
    weights = np.array(changes.counts, np.float64)
    if changes.tau > 0:
        values = np.concatenate([values, np.zeros((1, values.shape[1]))])
        weights = np.append(weights, changes.tau)
    return values, weights


def blocks(values: np.ndarray, combine: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """[P]: `combine`, [K, p] -> [p], over all coordinates of [K, P] values."""
    parts = [combine(values[:, begin : begin + BLOCK]) for begin in range(0, values.shape[1], BLOCK)]
    return np.concatenate(parts)
