"""Domains: one transformation of the images per task, for streams whose classes stay and whose images change (Domain-IL).

- `permuted`: the pixels of every image change places by one permutation per task, the same for all channels; task 0 keeps them. Permuted
  MNIST (Goodfellow et al. 2013, arXiv:1312.6211; Kirkpatrick et al. 2017, "Overcoming catastrophic forgetting in neural networks").
- `rotated`: task t is turned by t * rotation degrees, counter-clockwise about the middle of the image, bilinear, 0 where nothing is.
  Rotated MNIST (Lopez-Paz and Ranzato 2017, arXiv:1706.08840).

Differences from the papers: task 0 is the plain data set in both; angles of `rotated` are evenly spaced, theirs are drawn from [0, 180).

A transformation is a function of (seed, task): nothing is stored but its map of pixels.
"""

import functools
import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from sparcl_core.seeding import generator

BATCH = 256  # images turned at once: bounds the memory for their float64 copies


@dataclass(frozen=True)
class Domains:
    """The transformations of a stream.

    Attributes:
        kind: `permuted` or `rotated`.
        seed: of the permutations.
        rotation: degrees from one task to the next; read by `rotated` only.
    """

    kind: Literal["permuted", "rotated"]
    seed: int
    rotation: float = 0.0

    def __post_init__(self):
        if self.kind not in ("permuted", "rotated"):
            raise ValueError(f"kind is {self.kind!r}: choose 'permuted' or 'rotated'")
        if not math.isfinite(self.rotation):
            raise ValueError(f"rotation is {self.rotation}: a finite number of degrees")

    def apply(self, x: np.ndarray, task: int) -> np.ndarray:
        """Images as task `task` shows them. Of task 0 they are `x` itself.

        Args:
            x: [N, C, H, W] uint8, not changed.
            task: from 0.

        Returns:
            [N, C, H, W] uint8.

        Raises:
            ValueError: if `x` is no such array or `task` is negative.
        """
        if x.ndim != 4 or x.dtype != np.uint8:
            raise ValueError(f"x is {x.dtype} of shape {x.shape}: images are uint8 of shape [N, C, H, W]")
        if task < 0:
            raise ValueError(f"task is {task}: tasks are numbered from 0")
        if task == 0:
            return x
        count, channels, height, width = x.shape
        pixels = x.reshape(count, channels, height * width)
        if self.kind == "permuted":
            moved = pixels[:, :, _permutation(self.seed, task, height * width)]
        else:
            moved = _turn(pixels, *_corners(task * self.rotation % 360, height, width))
        return np.ascontiguousarray(moved).reshape(x.shape)


@functools.lru_cache(64)
def _permutation(seed: int, task: int, pixels: int) -> np.ndarray:
    return generator(seed, "domain", task).permutation(pixels)


@functools.lru_cache(64)
def _corners(degrees: float, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Of every pixel the four that it is mixed from, [4, H * W] int64 (H * W: outside of the image), and their weights, float64."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    row, column = (axis.reshape(-1) for axis in np.mgrid[:height, :width])
    up, right = (height - 1) / 2 - row, column - (width - 1) / 2
    from_row = (height - 1) / 2 - (up * cos - right * sin)
    from_column = (width - 1) / 2 + (right * cos + up * sin)
    top, left = np.floor(from_row).astype(int), np.floor(from_column).astype(int)
    down, along = from_row - top, from_column - left
    places, weights = [], []
    for r, c, weight in (
        (top, left, (1 - down) * (1 - along)), (top, left + 1, (1 - down) * along),
        (top + 1, left, down * (1 - along)), (top + 1, left + 1, down * along),
    ):  # fmt: skip
        is_inside = (r >= 0) & (r < height) & (c >= 0) & (c < width)
        places.append(np.where(is_inside, r * width + c, height * width))
        weights.append(weight)
    return np.stack(places), np.stack(weights)


def _turn(pixels: np.ndarray, places: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """`pixels`: [N, C, H * W] uint8; the result is rounded to the nearest value."""
    turned = np.empty_like(pixels)
    for start in range(0, len(pixels), BATCH):
        part = pixels[start : start + BATCH]
        framed = np.concatenate([part, np.zeros((*part.shape[:2], 1), dtype=np.uint8)], axis=2)
        mixed = sum(weight * framed[:, :, place] for place, weight in zip(places, weights, strict=True))
        turned[start : start + BATCH] = np.rint(mixed).astype(np.uint8)
    return turned
