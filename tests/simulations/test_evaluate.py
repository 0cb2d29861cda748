"""Accuracy of a model on the test data, against counts by hand."""

import numpy as np
import pytest
from tiny_learning import start, tiny_method

from server.app import Evaluation
from simulations.evaluate import Evaluator
from sparcl_core import evaluation
from sparcl_core.evaluation import TestData

LABELS = np.array([0, 1, 1, 1, 2, 3, 3])
IMAGES = np.zeros((7, 1, 4, 4), np.uint8)


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    """More than one batch, and the last one is not full."""
    monkeypatch.setattr(evaluation, "BATCH", 3)


def of_a_model_that_answers_1(**settings) -> Evaluation:
    """Whatever it sees; second comes class 2, then 3, then 0."""
    learner, state, _, _ = start(tiny_method("mlp"))
    evaluator = Evaluator(learner, TestData(IMAGES, LABELS, **settings))
    weights = {name: np.zeros_like(value) for name, value in state.items()}
    return evaluator(weights | {"classifier.bias": np.array([0, 3, 2, 1], np.float32)})


def test_answers_are_counted_among_all_classes_and_among_those_of_the_task():
    """Task 0: three of four samples are of class 1. Task 1: none is; of classes 2 and 3 it answers 2, and one of three samples is one."""
    found = of_a_model_that_answers_1(classes=((0, 1), (2, 3)))
    assert found.accuracy.tolist() == [[3 / 4, 0], [3 / 4, 1 / 3]]
    np.testing.assert_equal(found.by_class[0], [[0, 1, np.nan, np.nan], [np.nan, np.nan, 0, 0]])
    np.testing.assert_equal(found.by_class[1], [[0, 1, np.nan, np.nan], [np.nan, np.nan, 1, 0]])


def test_where_tasks_are_domains_each_sees_all_samples_in_its_own_way():
    seen = []

    class Recording:
        def apply(self, images, task):
            seen.append((len(images), task))
            return images

    everything = ((0, 1, 2, 3), (0, 1, 2, 3))
    found = of_a_model_that_answers_1(classes=everything, domains=Recording())
    assert seen == [(7, 0), (7, 1)] and found.accuracy.tolist() == [[3 / 7, 3 / 7], [3 / 7, 3 / 7]]
