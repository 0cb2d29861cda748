"""Right answers of a model on the test data, at the server or on a device: a measurement of the simulation, which costs nobody anything."""

from dataclasses import dataclass

import numpy as np
import torch

from sparcl_core.domains import Domains
from sparcl_core.inputs import normalise
from sparcl_core.learner import Learner
from sparcl_core.metrics.continual import count_correct, count_task
from sparcl_core.replay.memory import Memory
from sparcl_core.sparsity.masks import Masks, State

BATCH = 512


@dataclass(frozen=True, eq=False)
class TestData:
    """x: [N, C, H, W] uint8; y: [N] int64; classes: of each task; domains: what is done to the images of a task, if anything."""

    __test__ = False  # pytest takes it for a test

    x: np.ndarray
    y: np.ndarray
    classes: tuple[tuple[int, ...], ...]
    domains: Domains | None = None


class Tester:
    """Counts right answers, asking the learning method what is of which class (`LearningMethod.scorer`)."""

    def __init__(self, learner: Learner, data: TestData):
        """`learner`: lends its network."""
        self.learner, self.data = learner, data

    def count(self, state: State, masks: Masks, memory: Memory | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Right answers of a model, [2, T, C] by scenario (Class-IL, Task-IL), task and true class; and of how many, [T, C].

        `memory`: what the device keeps whose model it is; None: it is nobody's own.
        """
        network, data, tasks = self.learner.network, self.data, list(self.data.classes)
        network.load(state, masks)
        network.model.eval()
        score = self.learner.method.scorer(network, memory)
        if data.domains is None:
            return count_correct(self._scores(score, data.x), data.y, tasks)
        found = [count_task(self._scores(score, data.domains.apply(data.x, task)), data.y, own) for task, own in enumerate(tasks)]
        return np.stack([hits for hits, _ in found], axis=1), np.stack([count for _, count in found])

    def _scores(self, score, images: np.ndarray) -> np.ndarray:
        """How much each of [N, C, H, W] uint8 is of each class, [N, classes]."""
        outputs = []
        with torch.inference_mode():
            for start in range(0, len(images), BATCH):
                x = torch.from_numpy(images[start : start + BATCH])
                outputs.append(score(normalise(x, self.learner.inputs, self.learner.dtype)).numpy())
        return np.concatenate(outputs)
