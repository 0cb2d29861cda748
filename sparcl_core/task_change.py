"""Noticing that the task has changed, where nobody says so: from the loss of the model on data that has just come in.

Before a device trains in a round it takes the loss of the model that it received, on a first batch of the data that it has now. While the
task stays, that loss falls and then varies little; classes that the model has never seen make it jump. With mu and sigma, mean and standard
deviation over the last `window` rounds of the task, it has changed where

    loss > mu + max(threshold * sigma, rise * mu)

Aljundi, Kelchtermans and Tuytelaars, "Task-Free Continual Learning" (CVPR 2019), look for plateaus and peaks of the same statistics; theirs
are of the training loss over a window of steps, ours of one batch a round, because a fleet's device trains in rounds, and between two of
them the model is another one. A change that brings nothing new, as when a task recurs that the model has kept, is not noticed, and need
not be.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np


@dataclass(frozen=True)
class ChangeConfig:
    """Section [change]: how a change of task is noticed; read with stream.boundaries = "detected".

    Attributes:
        window: rounds over which mean and deviation are taken; at least 2 of them must have passed since the last change.
        threshold: deviations above the mean.
        rise: least rise, as a share of the mean.
        batches: batches whose loss is taken.
    """

    read_with: ClassVar[dict[str, tuple[str, ...]]] = {"stream.boundaries=detected": ("window", "threshold", "rise", "batches")}
    window: int = 5
    threshold: float = 3.0
    rise: float = 1.0
    batches: int = 2

    def __post_init__(self):
        if self.window < 2 or self.batches < 1:
            raise ValueError(f"window is {self.window}, batches {self.batches}: at least 2 rounds, and 1 batch")
        for name in ("threshold", "rise"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}: finite and above 0")


def has_changed(losses: np.ndarray, loss: float, config: ChangeConfig) -> bool:
    """`losses`: [n] float64, those of the task so far, at most `window`, oldest first; `loss`: that of now."""
    if len(losses) < 2:
        return False
    mean, deviation = float(losses.mean()), float(losses.std())
    return loss > mean + max(config.threshold * deviation, config.rise * mean)


def remember(losses: np.ndarray, loss: float, config: ChangeConfig) -> np.ndarray:
    """`losses` with one more, the oldest ones forgotten."""
    return np.append(losses, loss)[-config.window :]
