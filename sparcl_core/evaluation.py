"""Right answers of a model on the test data, at the server or on a device: a measurement of the simulation, which costs nobody anything."""

from dataclasses import dataclass

import numpy as np
import torch

from sparcl_core.domains import Domains
from sparcl_core.inputs import normalise
from sparcl_core.learner import Learner
from sparcl_core.methods.given import Arrays
from sparcl_core.metrics.continual import count_correct, count_task
from sparcl_core.replay.memory import Memory
from sparcl_core.sparsity.masks import Masks, State
from sparcl_core.sparsity.packnet import Owners, network_of

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

    def count(
        self,
        state: State,
        masks: Masks,
        memory: Memory | None = None,
        *,
        owners: Owners | None = None,
        received: Arrays | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Right answers of a model, [2, T, C] by scenario (Class-IL, Task-IL), task and true class; and of how many, [T, C].

        `memory`: what the device keeps whose model it is; None: it is nobody's own. `owners`: whose each weight is; then every task is
        tested with its own network (`sparsity.packnet`), on its own samples. `received`: what the server keeps for the method.
        """
        if owners:
            return self._count_apart(state, owners)
        network, data, tasks = self.learner.network, self.data, list(self.data.classes)
        network.load(state, masks)
        network.model.eval()
        score = self.learner.method.scorer(network, memory, received or {})
        if data.domains is None:
            return count_correct(self._scores(score, data.x), data.y, tasks)
        found = [count_task(self._scores(score, data.domains.apply(data.x, task)), data.y, own) for task, own in enumerate(tasks)]
        return np.stack([hits for hits, _ in found], axis=1), np.stack([count for _, count in found])

    def _count_apart(self, state: State, owners: Owners) -> tuple[np.ndarray, np.ndarray]:
        network, data, found = self.learner.network, self.data, []
        for task, own in enumerate(data.classes):
            places, rows = network_of(owners, task), np.isin(data.y, own)
            network.load({name: np.where(places.get(name, True), value, 0).astype(value.dtype) for name, value in state.items()}, {})
            network.model.eval()
            x = data.x[rows] if data.domains is None else data.domains.apply(data.x[rows], task)
            found.append(count_task(self._scores(self.learner.method.scorer(network, None, {}), x), data.y[rows], own))
        return np.stack([hits for hits, _ in found], axis=1), np.stack([count for _, count in found])

    def _scores(self, score, images: np.ndarray) -> np.ndarray:
        """How much each of [N, C, H, W] uint8 is of each class, [N, classes]."""
        outputs = []
        with torch.inference_mode():
            for start in range(0, len(images), BATCH):
                x = torch.from_numpy(images[start : start + BATCH])
                outputs.append(score(normalise(x, self.learner.inputs, self.learner.dtype)).numpy())
        return np.concatenate(outputs)
