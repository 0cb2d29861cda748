import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparcl_core.metrics import correct_by_task, scores

# After task 0, 1, 2 (rows) on task 0, 1, 2 (columns); the untrained model has 0.10, 0.10 and 0.05.
MATRIX = np.array([[0.90, 0.00, 0.10], [0.95, 0.80, 0.20], [0.60, 0.70, 0.90]])
UNTRAINED = np.array([0.10, 0.10, 0.05])


def test_the_figures_of_a_matrix_by_hand():
    result = scores(MATRIX, UNTRAINED)
    assert result.average == pytest.approx((0.60 + 0.70 + 0.90) / 3)
    assert result.learning == pytest.approx((0.90 + 0.80 + 0.90) / 3)
    assert result.forgetting == pytest.approx(((0.95 - 0.60) + (0.80 - 0.70)) / 2)  # from the best, not from R[i, i]
    assert result.backward_transfer == pytest.approx(((0.60 - 0.90) + (0.70 - 0.80)) / 2)
    assert result.forward_transfer == pytest.approx(((0.00 - 0.10) + (0.20 - 0.05)) / 2)


def test_improving_on_an_old_task_is_positive_transfer_and_no_forgetting():
    result = scores([[0.5, 0.0], [0.7, 0.6]])
    assert result.backward_transfer == pytest.approx(0.2)
    assert result.forgetting == 0.0


def test_one_task_has_an_accuracy_and_nothing_to_forget():
    result = scores([[0.4]], np.array([0.1]))
    assert result.average == result.learning == 0.4
    assert all(math.isnan(value) for value in (result.forgetting, result.backward_transfer, result.forward_transfer))


def test_forward_transfer_needs_the_untrained_model():
    assert math.isnan(scores(MATRIX).forward_transfer)


@given(st.integers(2, 5).flatmap(lambda n: st.lists(st.lists(st.floats(0, 1), min_size=n, max_size=n), min_size=n, max_size=n)))
def test_forgetting_bounds_backward_transfer_and_adding_a_constant_moves_only_accuracies(matrix):
    matrix = np.array(matrix)
    result, moved = scores(matrix), scores(matrix + 0.25)
    assert result.forgetting >= -result.backward_transfer - 1e-12  # the best is at least R[i, i]
    assert result.forgetting >= 0
    assert moved.average == pytest.approx(result.average + 0.25) and moved.learning == pytest.approx(result.learning + 0.25)
    assert moved.forgetting == pytest.approx(result.forgetting)
    assert moved.backward_transfer == pytest.approx(result.backward_transfer)


@pytest.mark.parametrize("shape", [(2, 3), (3,)])
def test_a_matrix_that_is_not_square_is_refused(shape):
    with pytest.raises(ValueError, match=rf"shape \({shape[0]},.*must be square, tasks x tasks"):
        scores(np.zeros(shape))


def test_class_il_and_task_il_by_hand():
    # tasks (0, 1) and (2, 3). Rows: right among all; right only among its task's; wrong in both; right among all (task 1).
    logits = np.array([[9.0, 1, 2, 3], [0, 5, 9, 1], [7, 1, 0, 0], [0, 0, 1, 4]])
    labels = np.array([0, 1, 1, 3])
    accuracy = correct_by_task(logits, labels, [(0, 1), (2, 3)])
    assert accuracy[0].tolist() == pytest.approx([1 / 3, 1.0])
    assert accuracy[1].tolist() == pytest.approx([2 / 3, 1.0])


def test_tasks_may_hold_classes_in_any_order():
    logits = np.array([[9.0, 1, 2, 3], [0, 5, 9, 1]])
    assert correct_by_task(logits, np.array([3, 0]), [(3, 1), (2, 0)])[1].tolist() == [1.0, 0.0]


def test_a_task_without_samples_has_no_accuracy():
    accuracy = correct_by_task(np.zeros((1, 4)), np.array([0]), [(0, 1), (2, 3)])
    assert np.isnan(accuracy[:, 1]).all() and not np.isnan(accuracy[:, 0]).any()


@given(st.lists(st.tuples(st.integers(0, 3), st.lists(st.integers(0, 9), min_size=4, max_size=4)), min_size=1, max_size=20))
def test_task_il_is_never_below_class_il(rows):
    labels, logits = (np.array(column) for column in zip(*rows, strict=True))
    class_il, task_il = correct_by_task(logits.astype(float), labels, [(0, 1), (2, 3)])
    assert np.nan_to_num(task_il - class_il).min() >= 0


def test_evaluation_leaves_the_logits_alone():
    logits = np.arange(8.0).reshape(2, 4)
    correct_by_task(logits, np.array([0, 2]), [(0, 1), (2, 3)])
    assert np.array_equal(logits, np.arange(8.0).reshape(2, 4))
