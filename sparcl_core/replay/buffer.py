"""Rehearsal buffer: reservoir sampling as in mammoth.

Every batch of every epoch is offered after its step: the un-augmented input with the logits of that training forward.
Logits are never refreshed, whatever model wrote them. After n offers each offer is held with probability capacity / n.
"""

from dataclasses import dataclass

import numpy as np


@dataclass
class Buffer:
    """At most `capacity` samples; the first `len(buffer)` rows of each array are in use.

    Attributes:
        x: [capacity, C, H, W] uint8, raw inputs.
        y: [capacity] int64 classes.
        logits: [capacity, classes] float, as they were when the sample was offered.
        offered: samples offered so far.
    """

    x: np.ndarray
    y: np.ndarray
    logits: np.ndarray
    offered: int = 0

    @property
    def capacity(self) -> int:
        return self.y.size

    def __len__(self) -> int:
        return min(self.offered, self.capacity)


def empty(capacity: int, input_shape: tuple[int, ...], num_classes: int, dtype: str = "float32") -> Buffer:
    """A buffer for `capacity` samples; capacity 0 holds nothing and replays nothing."""
    if capacity < 0:
        raise ValueError(f"capacity is {capacity}: a buffer holds 0 or more samples")
    return Buffer(
        np.zeros((capacity, *input_shape), dtype=np.uint8),
        np.zeros(capacity, dtype=np.int64),
        np.zeros((capacity, num_classes), dtype=dtype),
    )


def copy(buffer: Buffer) -> Buffer:
    return Buffer(buffer.x.copy(), buffer.y.copy(), buffer.logits.copy(), buffer.offered)


def offer_(buffer: Buffer, x: np.ndarray, y: np.ndarray, logits: np.ndarray, *, rng: np.random.Generator) -> None:
    """Offer a batch, in place. x: [B, C, H, W] uint8, y: [B], logits: [B, classes]."""
    for row in range(len(y)):
        if buffer.offered < buffer.capacity:
            place = buffer.offered
        else:
            place = int(rng.integers(0, buffer.offered + 1))
        if place < buffer.capacity:
            buffer.x[place], buffer.y[place], buffer.logits[place] = x[row], y[row], logits[row]
        buffer.offered += 1


def draw(buffer: Buffer, size: int, rng: np.random.Generator) -> np.ndarray:
    """Indices [min(size, len(buffer))] of a uniform draw without replacement."""
    held = len(buffer)
    return np.argsort(rng.random(held), kind="stable")[: min(size, held)]
