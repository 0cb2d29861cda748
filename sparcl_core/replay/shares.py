"""A buffer that is filled where a task ends, in equal shares: of each task, or of each class, as many as fit."""

import numpy as np

from sparcl_core.replay.buffer import Buffer


def first_of_each(groups: np.ndarray, most: int) -> np.ndarray:
    """Ascending rows of the first `most` of every group. groups: [n], of which group each row is."""
    order = np.argsort(groups, kind="stable")
    ordered = groups[order]
    rank = np.arange(len(groups)) - np.searchsorted(ordered, ordered)
    return np.sort(order[rank < most])


def refilled(buffer: Buffer, kept: np.ndarray, *, x: np.ndarray, y: np.ndarray, logits: np.ndarray) -> Buffer:
    """A buffer of the same capacity with the rows `kept` of `buffer` at the front, in that order, and the new samples behind them.

    Args:
        kept: [k], rows that are in use.
        x, y, logits: [n, ...], new samples; k + n is at most the capacity.
    """
    fresh = Buffer(np.zeros_like(buffer.x), np.zeros_like(buffer.y), np.zeros_like(buffer.logits), len(kept) + len(y))
    for name, new in (("x", x), ("y", y), ("logits", logits)):
        target = getattr(fresh, name)
        target[: len(kept)] = getattr(buffer, name)[kept]
        target[len(kept) : fresh.offered] = new
    return fresh
