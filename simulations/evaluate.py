"""Accuracy of a model on the test data, at the server: it costs a device nothing."""

import numpy as np

from server.app import Evaluation
from sparcl_core.evaluation import TestData, Tester
from sparcl_core.learner import Learner
from sparcl_core.methods.given import Arrays
from sparcl_core.metrics.continual import accuracy_by_class, accuracy_by_task
from sparcl_core.replay.memory import Memory
from sparcl_core.sparsity.masks import State
from sparcl_core.sparsity.packnet import Owners


class Evaluator:
    """Class-IL and Task-IL accuracy of a model on the test data, per task and true class."""

    def __init__(self, learner: Learner, data: TestData):
        """`learner` lends its network."""
        self._tester = Tester(learner, data)

    def __call__(
        self, state: State, owners: Owners | None = None, received: Arrays | None = None, *, memory: Memory | None = None
    ) -> Evaluation:
        """
        Args:
            owners: whose each weight is, where tasks own weights: then there is no Class-IL accuracy, and NaN stands for it.
            received: what the server keeps for the learning method.
            memory: of the device whose own model it is, if it is one's.
        """
        correct, total = self._tester.count(state, {}, memory, owners=owners, received=received)
        found = Evaluation(accuracy_by_task(correct, total), accuracy_by_class(correct, total))
        if self._tester.learner.method.owns:
            found.accuracy[0] = found.by_class[0] = np.nan
        return found
