"""Accuracy of a model on the test data, at the server: it costs a device nothing."""

import numpy as np
import torch

from server.app import Evaluation
from simulations.data.raw import Raw
from sparcl_core.domains import Domains
from sparcl_core.inputs import normalise
from sparcl_core.learner import Learner
from sparcl_core.metrics.continual import accuracy_by_class, accuracy_by_task, count_correct, count_task
from sparcl_core.replay.memory import Memory
from sparcl_core.sparsity.masks import State

EVALUATION_BATCH = 512


class Evaluator:
    """Class-IL and Task-IL accuracy of a model on the test data, per task and true class."""

    def __init__(self, learner: Learner, raw: Raw, classes: tuple[tuple[int, ...], ...], domains: Domains | None = None):
        """`learner` lends its model and input form; `classes`: per task; `domains`: what is done to the images of a task, if anything."""
        self.learner, self.raw, self.tasks, self.domains = learner, raw, list(classes), domains

    def __call__(self, state: State, memory: Memory | None = None) -> Evaluation:
        """`memory`: of the device whose own model it is, if it is one's."""
        network = self.learner.network
        network.load(state, {})
        network.model.eval()
        self._score = self.learner.method.scorer(network, memory)
        if self.domains is None:
            correct, total = count_correct(self._outputs(self.raw.test_x), self.raw.test_y, self.tasks)
        else:
            found = []
            for task, classes in enumerate(self.tasks):
                found.append(count_task(self._outputs(self.domains.apply(self.raw.test_x, task)), self.raw.test_y, classes))
            correct, total = np.stack([hits for hits, _ in found], axis=1), np.stack([count for _, count in found])
        return Evaluation(accuracy_by_task(correct, total), accuracy_by_class(correct, total))

    def _outputs(self, images: np.ndarray) -> np.ndarray:
        """How much each of [N, C, H, W] uint8 is of each class, [N, classes]: logits, if the method says nothing else."""
        outputs = []
        with torch.inference_mode():
            for start in range(0, len(images), EVALUATION_BATCH):
                x = torch.from_numpy(images[start : start + EVALUATION_BATCH])
                outputs.append(self._score(normalise(x, self.learner.inputs, self.learner.dtype)).numpy())
        return np.concatenate(outputs)
