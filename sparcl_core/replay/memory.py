"""What a device keeps between sessions."""

from dataclasses import dataclass, field, replace

import numpy as np

from sparcl_core.replay import buffer as rehearsal
from sparcl_core.replay.buffer import Buffer
from sparcl_core.sparsity import ddr as data_removal
from sparcl_core.sparsity.ddr import DDRState


@dataclass(frozen=True)
class Memory:
    """What a device keeps over time, as values.

    Attributes:
        buffer: rehearsal buffer.
        ddr: data removal state of the current task.
        epochs: local epochs done in the current task.
        twin_offered: samples that the dense twin would have offered to its buffer so far (it trains on all data).
        arrays: what its learning method keeps besides, by name; not written to, as they may be read-only.
        corrected: the same of the correction of its steps, see `sparcl_core.methods.correction`.
        received: what came with the instruction beside the model; used in the round, and not kept.
    """

    buffer: Buffer
    ddr: DDRState
    epochs: int = 0
    twin_offered: int = 0
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    corrected: dict[str, np.ndarray] = field(default_factory=dict)
    received: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def kept_samples(self) -> int:
        """Samples of the current task that data removal has left."""
        return int(np.count_nonzero(self.ddr.kept))

    def in_task(self, num_samples: int) -> "Memory":
        """This at the start of a task of `num_samples` samples."""
        return replace(self, ddr=data_removal.start(num_samples), epochs=0)

    def copy(self) -> "Memory":
        """One whose buffer and data removal can be written to."""
        return replace(self, buffer=rehearsal.copy(self.buffer), ddr=data_removal.copy(self.ddr))


def empty(capacity: int, input_shape: tuple[int, ...], num_classes: int, dtype: str = "float32") -> Memory:
    """Of a device that has seen nothing; `capacity`: of its buffer, in samples."""
    return Memory(rehearsal.empty(capacity, input_shape, num_classes, dtype), data_removal.start(0))
