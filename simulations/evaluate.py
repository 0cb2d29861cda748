"""Accuracy of a model on the test data, at the server: it costs a device nothing."""

import numpy as np
import torch

from simulations.data import Raw
from sparcl_core.inputs import normalise
from sparcl_core.learner import Learner
from sparcl_core.masks import State
from sparcl_core.metrics import correct_by_task
from sparcl_core.models import load_state_

EVALUATION_BATCH = 512


class Evaluator:
    """Class-IL and Task-IL accuracy of a model on the test data, per task."""

    def __init__(self, learner: Learner, raw: Raw, classes: tuple[tuple[int, ...], ...]):
        """`learner` lends its model and input form; `classes`: per task."""
        self.learner, self.raw, self.tasks = learner, raw, list(classes)

    def __call__(self, state: State) -> np.ndarray:
        """[2, T]; row 0 Class-IL, row 1 Task-IL."""
        model = self.learner.model
        load_state_(model, state)
        model.eval()
        outputs = []
        with torch.inference_mode():
            for start in range(0, len(self.raw.test_y), EVALUATION_BATCH):
                x = torch.from_numpy(self.raw.test_x[start : start + EVALUATION_BATCH])
                outputs.append(model(normalise(x, self.learner.inputs, self.learner.dtype)).numpy())
        return correct_by_task(np.concatenate(outputs), self.raw.test_y, self.tasks)
