"""Streams whose every step brings the data of all steps so far: what joint training sees, the upper bound of continual learning."""

from dataclasses import dataclass

import numpy as np

from client.streams.stream import Stream, Streams
from sparcl_core.domains import Domains
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


@dataclass(frozen=True, eq=False)
class StreamsSoFar(Streams):
    """`base`: the streams whose steps are put together. A sample of a task that recurs is there once more with every recurrence."""

    base: Streams

    @classmethod
    def of(cls, base: Streams) -> "StreamsSoFar":
        return cls(base.x, base.y, base.classes, base=base, blur=base.blur)

    @property
    def sizes(self) -> np.ndarray:
        return np.cumsum(self.base.sizes, axis=1)

    def all_samples(self, device: int) -> tuple[np.ndarray, ...]:
        return self.base.all_samples(device)

    @property
    def order(self) -> np.ndarray:
        return self.base.order

    @property
    def chunks(self) -> int:
        return self.base.chunks

    @property
    def domains(self) -> Domains | None:
        return self.base.domains

    def order_of(self, device: int) -> tuple[int, ...]:
        return self.base.order_of(device)

    def __len__(self) -> int:
        return len(self.base)

    def __getitem__(self, device: int) -> StreamSoFar:
        return StreamSoFar(**vars(self.base[device]))
