"""What methods have in common whose buffer is filled where a task ends, every task with an equal share: A-GEM and FDR."""

from dataclasses import replace

import numpy as np

from sparcl_core.costs.flops import Passes
from sparcl_core.methods.base import LearningMethod
from sparcl_core.methods.given import Border
from sparcl_core.replay.memory import Memory
from sparcl_core.replay.shares import first_of_each, refilled

OF_TASK = "buffer/task"  # [capacity] uint16, the number of the task that each row of the buffer is of, counted from the device's first


class FilledAtTheEnd(LearningMethod):
    """With t tasks so far, every task holds capacity / t samples, drawn at random; what fits besides is of the last task.

    Attributes:
        stores_logits: what the model answers to a sample where its task ends is stored with it.
    """

    draws = 1
    stores_logits = False

    def offer(self, running, rows, logits, rng):
        """Nothing while a task is learned."""

    def end_task(self, border: Border) -> tuple[Memory, Passes]:
        memory, buffer, data = border.memory, border.memory.buffer, border.data
        if not buffer.capacity:
            return memory, Passes()
        of_task = memory.arrays.get(OF_TASK, np.zeros(0, np.uint16))[: len(buffer)]
        number = int(of_task.max()) + 1 if len(of_task) else 0
        kept = first_of_each(of_task, buffer.capacity // (number + 1))
        rows = border.rng.permutation(len(data.y))[: buffer.capacity - len(kept)]
        logits = np.zeros((len(rows), buffer.logits.shape[1]), buffer.logits.dtype)
        if self.stores_logits and len(rows):
            logits = border.network.outputs(data.x[rows])
        fresh = refilled(buffer, kept, x=data.x[rows], y=data.y[rows], logits=logits)
        tasks = np.zeros(buffer.capacity, np.uint16)
        tasks[: len(fresh)] = np.append(of_task[kept], np.full(len(rows), number, np.uint16))
        passes = Passes(taught=len(rows) if self.stores_logits else 0)
        return replace(memory, buffer=fresh, arrays=memory.arrays | {OF_TASK: tasks}), passes

    def held_by_twin(self, buffer, offered):
        return len(buffer)

    def task_passes(self, samples, buffered, weights):
        return Passes(taught=buffered if self.stores_logits else 0)

    def arrays_bytes(self, model, active, *, buffered, classes):
        return 2 * buffered
