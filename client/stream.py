"""Which samples and which task a device sees."""

from dataclasses import dataclass

import numpy as np

from sparcl_core.learner import TaskData


@dataclass(frozen=True)
class Stream:
    """One device's tasks in order: views into shared arrays, cut out when a task is asked for.

    Attributes:
        x: [N, C, H, W] uint8, all training images of the experiment.
        y: [N] int64.
        samples: per task, the indices of this device's samples, in an order that means nothing.
        classes: per task, its classes.
    """

    x: np.ndarray
    y: np.ndarray
    samples: tuple[np.ndarray, ...]
    classes: tuple[tuple[int, ...], ...]

    @property
    def sizes(self) -> list[int]:
        """Samples per task."""
        return [len(indices) for indices in self.samples]

    def task(self, number: int) -> TaskData:
        """Task `number`, from 0.

        Raises:
            ValueError: if the device has no such task, or no data for it.
        """
        if not 0 <= number < len(self.samples):
            raise ValueError(f"task is {number}: the stream has tasks 0 to {len(self.samples) - 1}")
        indices = self.samples[number]
        if not len(indices):
            raise ValueError(f"the device has no data for task {number}: it must not be asked to train on it")
        return TaskData(self.x[indices], self.y[indices], self.classes[number], number)
