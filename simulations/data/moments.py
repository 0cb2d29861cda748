"""Mean and standard deviation of every channel of a data set, also of one that is larger than memory."""

import math

import numpy as np

from simulations.data.raw import Moments

ONE_GO = 256 * 2**20  # bytes: NumPy's own formula makes float64 copies of eight times that
CHUNK = 64 * 2**20
LEAST = 1e-6  # of a standard deviation: a channel of one value is divided by it


def moments(x: np.ndarray) -> Moments:
    """Of [N, C, H, W] uint8, N >= 1. Large arrays are read in pieces, in whole numbers and so without rounding."""
    if x.nbytes <= ONE_GO:
        mean, std = x.mean((0, 2, 3)).tolist(), x.std((0, 2, 3)).tolist()
    else:
        mean, std = _in_pieces(x)
    return tuple(mean), tuple(max(value, LEAST) for value in std)


def _in_pieces(x: np.ndarray) -> tuple[list[float], list[float]]:
    count, rows = x.size // x.shape[1], max(1, CHUNK // (x.nbytes // len(x)))
    total = squares = np.zeros(x.shape[1], dtype=np.uint64)
    for start in range(0, len(x), rows):
        part = x[start : start + rows]
        total = total + part.sum((0, 2, 3), dtype=np.uint64)
        squares = squares + np.square(part, dtype=np.uint16).sum((0, 2, 3), dtype=np.uint64)
    pairs = list(zip(total.tolist(), squares.tolist(), strict=True))  # Python's integers do not overflow
    return [s / count for s, _ in pairs], [math.sqrt((count * q - s * s) / count**2) for s, q in pairs]
