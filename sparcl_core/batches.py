"""How an epoch's samples become batches, and what becomes of those that do not fill the last one.

A net with BatchNorm over feature maps of 1x1 sees one value per channel of a sample: a batch of one has no variance, and torch refuses
it. ResNet-18 is such a net on images of up to 8x8. There a batch has two samples at least, and a single one that is left joins the batch
before it, but for `drop`; all other nets train on a batch of one.
"""

from typing import Literal

import numpy as np

LastBatch = Literal["keep", "join", "drop"]


def batch_sizes(count: int, size: int, least: int = 1, last: LastBatch = "keep") -> list[int]:
    """Samples of each batch, in order; their sum is `count`, but with `drop`, where it may be less by up to `size` - 1.

    Args:
        count: samples of the epoch. Those that do not fill a single batch are one batch, whatever `last` is.
        size: of a batch, at least `least`.
        least: samples that a batch must have, see `models.smallest_batch`.
        last: what becomes of the rest: `keep`, a batch of its own; `join`, it joins the batch before it; `drop`, it is left out.
    """
    whole, rest = divmod(count, size)
    if not whole or not rest:
        return [size] * whole + ([rest] if rest else [])
    if last == "drop":
        return [size] * whole
    if last == "join" or rest < least:
        return [size] * (whole - 1) + [size + rest]
    return [size] * whole + [rest]


def cut(order: np.ndarray, sizes: list[int]) -> list[np.ndarray]:
    """`order` [n] in consecutive batches of `sizes`; views."""
    ends = np.cumsum(sizes, dtype=np.int64)
    return [order[end - size : end] for size, end in zip(sizes, ends.tolist(), strict=True)]


def largest_batch(samples: np.ndarray, size: int, least: int = 1, last: LastBatch = "keep") -> np.ndarray:
    """The most samples that one batch of an epoch over up to `samples` [n] of them can have, [n]."""
    above = {"keep": least - 1, "join": size - 1, "drop": 0}[last]
    return np.minimum(samples, size + above)
