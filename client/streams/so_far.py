"""Streams whose every step brings the data of all steps so far: what joint training sees, the upper bound of continual learning."""

from dataclasses import dataclass

import numpy as np

from client.streams.derived import DerivedStreams
from client.streams.stream import Stream
from sparcl_core.task_data import TaskData


@dataclass(frozen=True)
class StreamSoFar(Stream):
    """A device's stream; `samples` are those of each step alone, `sizes` those of all steps so far."""

    @property
    def sizes(self) -> list[int]:
        return np.cumsum([len(indices) for indices in self.samples]).tolist()

    def task(self, number: int) -> TaskData:
        so_far = [step for step, own in enumerate(self.samples[: number + 1]) if len(own)]
        if not so_far or not 0 <= number < len(self.samples):
            return super().task(number)  # which says what is wrong
        parts = [super(StreamSoFar, self).task(step) for step in so_far]
        classes = tuple(sorted({label for part in parts for label in part.classes}))
        return TaskData(np.concatenate([part.x for part in parts]), np.concatenate([part.y for part in parts]), classes, number)


@dataclass(frozen=True, eq=False, kw_only=True)
class StreamsSoFar(DerivedStreams):
    """The steps of `base` put together. A sample of a task that recurs is there once more with every recurrence."""

    @property
    def sizes(self) -> np.ndarray:
        return np.cumsum(self.base.sizes, axis=1)

    def __getitem__(self, device: int) -> StreamSoFar:
        return StreamSoFar(**vars(self.base[device]))
