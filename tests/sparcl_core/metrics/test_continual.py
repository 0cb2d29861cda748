"""Figures of an accuracy matrix, counts behind it, and their spread over devices."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparcl_core.metrics.continual import accuracy_by_class, accuracy_by_task, correct_by_task, count_correct, count_task, scores
from sparcl_core.metrics.fairness import Fairness, device_accuracy, fairness

# After task 0, 1, 2 (rows) on task 0, 1, 2 (columns); the untrained model has 0.10, 0.10 and 0.05.
MATRIX = np.array([[0.90, 0.00, 0.10], [0.95, 0.80, 0.20], [0.60, 0.70, 0.90]])
UNTRAINED = np.array([0.10, 0.10, 0.05])


def test_the_figures_of_a_matrix_by_hand():
    result = scores(MATRIX, UNTRAINED)
    assert result.average == pytest.approx((0.60 + 0.70 + 0.90) / 3)
    assert result.learning == pytest.approx((0.90 + 0.80 + 0.90) / 3)
    assert result.forgetting == pytest.approx(((0.95 - 0.60) + (0.80 - 0.70)) / 2)  # from the best, not from R[i, i]
    assert result.forgetting_first_last == pytest.approx(((0.90 - 0.60) + (0.80 - 0.70)) / 2)  # from R[i, i]
    assert result.backward_transfer == pytest.approx(((0.60 - 0.90) + (0.70 - 0.80)) / 2)
    assert result.forward_transfer == pytest.approx(((0.00 - 0.10) + (0.20 - 0.05)) / 2)


def test_improving_on_an_old_task_is_positive_transfer_and_no_forgetting():
    result = scores([[0.5, 0.0], [0.7, 0.6]])
    assert result.backward_transfer == pytest.approx(0.2)
    assert result.forgetting == 0.0
    assert result.forgetting_first_last == pytest.approx(-0.2)  # Avalanche's may be negative


def test_what_was_learned_late_is_forgotten_by_mammoth_only():
    """Task 0: 0.2 when trained, 0.6 after task 1, 0.4 at the end. mammoth: 0.6 - 0.4; Avalanche: 0.2 - 0.4. Task 1: both 0.9 - 0.9."""
    result = scores([[0.2, 0.0, 0.0], [0.6, 0.9, 0.0], [0.4, 0.9, 0.7]])
    assert result.forgetting == pytest.approx(0.2 / 2)
    assert result.forgetting_first_last == pytest.approx(-0.2 / 2)


def test_accuracy_before_training_counts_as_a_best():
    """Where Task-IL starts above chance: task 1 has 0.8 before it is trained, 0.7 and 0.6 after. From the best: 0.8 - 0.6."""
    result = scores([[1.0, 0.8, 0.0], [1.0, 0.7, 0.0], [1.0, 0.6, 1.0]])
    assert result.forgetting == pytest.approx(0.2 / 2)
    assert result.forgetting_first_last == pytest.approx(0.1 / 2)


def test_one_task_has_an_accuracy_and_nothing_to_forget():
    result = scores([[0.4]], np.array([0.1]))
    assert result.average == result.learning == 0.4
    open_figures = (result.forgetting, result.forgetting_first_last, result.backward_transfer, result.forward_transfer)
    assert all(math.isnan(value) for value in open_figures)


def test_forward_transfer_needs_the_untrained_model():
    assert math.isnan(scores(MATRIX).forward_transfer)


@given(st.integers(2, 5).flatmap(lambda n: st.lists(st.lists(st.floats(0, 1), min_size=n, max_size=n), min_size=n, max_size=n)))
def test_forgetting_bounds_backward_transfer_and_adding_a_constant_moves_only_accuracies(matrix):
    matrix = np.array(matrix)
    result, moved = scores(matrix), scores(matrix + 0.25)
    assert result.forgetting >= -result.backward_transfer - 1e-12  # the best is at least R[i, i]
    assert result.forgetting >= 0
    assert result.forgetting_first_last == -result.backward_transfer  # Avalanche's forgetting and mammoth's transfer, to the bit
    assert moved.average == pytest.approx(result.average + 0.25) and moved.learning == pytest.approx(result.learning + 0.25)
    assert moved.forgetting == pytest.approx(result.forgetting)
    assert moved.backward_transfer == pytest.approx(result.backward_transfer)


@pytest.mark.parametrize("shape", [(2, 3), (3,), (0, 0)])
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


# -- counts


LOGITS = np.array([[9.0, 1, 2, 3], [0, 5, 9, 1], [7, 1, 0, 0], [0, 0, 1, 4]])
LABELS = np.array([0, 1, 1, 3])
TASKS = [(0, 1), (2, 3)]


def test_counts_by_hand():
    """The rows of `test_class_il_and_task_il_by_hand`, class by class."""
    correct, total = count_correct(LOGITS, LABELS, TASKS)
    assert correct.tolist() == [[[1, 0, 0, 0], [0, 0, 0, 1]], [[1, 1, 0, 0], [0, 0, 0, 1]]]
    assert total.tolist() == [[1, 2, 0, 0], [0, 0, 0, 1]]
    assert correct.dtype == total.dtype == np.int64
    by_class = accuracy_by_class(correct, total)
    assert by_class[:, 0, 1].tolist() == [0.0, 0.5] and np.isnan(by_class[:, 0, 2]).all()


def by_means(logits, labels, tasks):
    """Accuracy per task without counts: the mean of what is right."""
    result = np.full((2, len(tasks)), np.nan)
    for i, classes in enumerate(tasks):
        rows = np.isin(labels, classes)
        if rows.any():
            own = np.full_like(logits[rows], -np.inf)
            own[:, list(classes)] = logits[rows][:, list(classes)]
            result[:, i] = np.mean(logits[rows].argmax(1) == labels[rows]), np.mean(own.argmax(1) == labels[rows])
    return result


task_lists = st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=6, unique=True).map(tuple), min_size=1, max_size=4)


@given(st.lists(st.tuples(st.integers(0, 5), st.lists(st.integers(0, 3), min_size=6, max_size=6)), min_size=1, max_size=40), task_lists)
def test_counts_and_accuracies_say_the_same_to_the_bit(rows, tasks):
    """Also with equal logits, tasks that share classes (domain-IL) and classes of no task."""
    labels, logits = (np.array(column) for column in zip(*rows, strict=True))
    logits = logits.astype(np.float32)
    correct, total = count_correct(logits, labels, tasks)
    accuracy = correct_by_task(logits, labels, tasks)
    assert np.array_equal(accuracy, accuracy_by_task(correct, total), equal_nan=True)
    assert np.array_equal(accuracy, by_means(logits, labels, tasks), equal_nan=True)
    assert (correct <= total).all() and (correct[0] <= correct[1]).all()
    assert total.sum(1).tolist() == [int(np.isin(labels, classes).sum()) for classes in tasks]


def test_domains_are_counted_one_by_one():
    """Two domains of the same two classes: counted apart, then stacked, they are tasks like others."""
    parts = [count_task(LOGITS[rows], LABELS[rows], (0, 1)) for rows in ([0, 1], [2])]
    correct, total = np.stack([part[0] for part in parts], axis=1), np.stack([part[1] for part in parts])
    assert accuracy_by_task(correct, total).tolist() == [[0.5, 0.0], [1.0, 0.0]]


def test_counting_what_does_not_belong_to_a_task_is_refused():
    with pytest.raises(ValueError, match=r"labels hold \[3\]: only classes of the task, \(0, 1\)"):
        count_task(LOGITS, LABELS, (0, 1))
    for classes in ((0, 4), (-1, 0), ()):
        with pytest.raises(ValueError, match="the classes of a task are .* from 0 to 3, as there are 4 logits"):
            count_task(LOGITS, LABELS, classes)


# -- devices


def test_accuracy_of_devices_by_hand():
    """Two tasks of two classes; nobody tested class 1 of task 1. Device 0 has one sample of each of the two cells of task 0: the mean of
    1 and 0.5. Device 1: 3 of task 1's class 0, where the 5 of class 1 say nothing. Device 2: 1 x 0.5 and 3 x 0.2. Device 3 has what
    nobody tested; device 4 nothing."""
    accuracy = np.array([[1.0, 0.5], [0.2, np.nan]])
    weights = np.array([[[1, 1], [0, 0]], [[0, 0], [3, 5]], [[0, 1], [3, 0]], [[0, 0], [0, 2]], [[0, 0], [0, 0]]])
    result = device_accuracy(accuracy, weights)
    assert result[:3] == pytest.approx([0.75, 0.2, (0.5 + 3 * 0.2) / 4]) and np.isnan(result[3:]).all()
    assert result.dtype == np.float64


def test_a_device_with_the_mix_of_the_test_data_has_its_accuracy():
    correct, total = count_correct(LOGITS, LABELS, TASKS)
    by_class = accuracy_by_class(correct, total)
    for row in range(2):
        assert device_accuracy(by_class[row], total[None])[0] == pytest.approx(correct[row].sum() / total.sum())


@given(st.integers(1, 40), st.integers(1, 17), st.booleans(), st.integers(0, 99))
def test_chunks_of_devices_give_the_same_bits(count, chunk, is_fortran, seed):
    rng = np.random.default_rng(seed)
    accuracy, weights = rng.random((5, 9)), rng.integers(0, 40, (count, 5, 9)) * rng.random((count, 5, 9))
    whole = device_accuracy(accuracy, np.asfortranarray(weights) if is_fortran else weights)
    parts = device_accuracy(accuracy, (weights[start : start + chunk] for start in range(0, count, chunk)))
    assert np.array_equal(whole, parts, equal_nan=True)
    assert np.nanmin(whole) >= accuracy.min() - 1e-12 and np.nanmax(whole) <= accuracy.max() + 1e-12
    order = rng.permutation(count)
    assert np.array_equal(device_accuracy(accuracy, weights[order]), whole[order], equal_nan=True)


def test_a_fleet_without_devices_has_no_accuracies():
    assert device_accuracy(np.ones((2, 3)), np.zeros((0, 2, 3))).shape == device_accuracy(np.ones((2, 3)), iter(())).shape == (0,)


def test_weights_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match=r"weights have shape \(4, 3, 2\), accuracy \(2, 3\)"):
        device_accuracy(np.ones((2, 3)), np.ones((4, 3, 2)))
    for value in (-1.0, np.nan, np.inf):
        with pytest.raises(ValueError, match="negative, infinite or NaN"):
            device_accuracy(np.ones((1, 2)), np.array([[[1.0, value]]]))


def test_the_spread_over_devices_by_hand():
    """0.1 to 1.1 in steps of 0.1, and one device without a value. 11 devices: a tenth is 2 of them, rounded up. Sum 6.6, sum of squares
    0.01 * 506 = 5.06; variance 5.06 / 11 - 0.6^2 = 0.1."""
    result = fairness(np.array([0.3, np.nan, *(np.arange(11, 3, -1) / 10), 0.1, 0.2]))
    assert (result.devices, result.missing) == (11, 1)
    assert result.mean == pytest.approx(0.6) and result.std == pytest.approx(math.sqrt(0.1))
    assert result.worst_decile == pytest.approx(0.15) and result.best_decile == pytest.approx(1.05)
    assert result.jain == pytest.approx(6.6**2 / (11 * 5.06))


def test_jain_by_hand():
    """One of four has all: 1/4. Two of four share: 1/2. Nobody has anything: as even as can be."""
    assert [fairness(np.array(v, dtype=float)).jain for v in ([0, 0, 3, 0], [2, 0, 2, 0], [0, 0, 0])] == [0.25, 0.5, 1.0]
    assert math.isnan(fairness(np.array([-0.1, 0.3])).jain)  # forgetting, say: mean and deciles still make sense


spreads = st.lists(st.one_of(st.floats(0, 1), st.floats(0, 1e150), st.just(math.nan)), min_size=1, max_size=40)


@given(spreads, st.randoms(use_true_random=False))
def test_spreads_are_ordered_bounded_and_do_not_depend_on_the_order_of_devices(values, random):
    result = fairness(np.array(values))
    shuffled = values[:]
    random.shuffle(shuffled)
    assert repr(fairness(np.array(shuffled))) == repr(result)  # repr: NaN is not equal to itself
    assert result.devices + result.missing == len(values)
    if result.devices:
        assert 1 / result.devices <= result.jain <= 1
        slack = 1e-12 * np.nanmax(values)
        assert result.worst_decile <= result.mean + slack and result.mean <= result.best_decile + slack


@given(st.floats(1e-300, 1e150), st.integers(1, 40))
def test_equal_values_are_perfectly_fair(value, count):
    result = fairness(np.full(count, value))
    assert result.jain == pytest.approx(1) and result.std == pytest.approx(0, abs=1e-12 * value)
    assert [result.mean, result.worst_decile, result.best_decile] == pytest.approx([value] * 3)


def test_a_fleet_without_values_has_no_spread():
    for values, missing in ((np.array([np.nan, np.nan]), 2), (np.empty(0), 0)):
        result = fairness(values)
        assert (result.devices, result.missing) == (0, missing)
        assert all(math.isnan(getattr(result, name)) for name in ("mean", "std", "worst_decile", "best_decile", "jain"))
        assert isinstance(result, Fairness)


@pytest.mark.parametrize("values", [np.array([1.0, np.inf]), np.ones((2, 2))])
def test_values_that_are_no_figures_of_devices_are_refused(values):
    with pytest.raises(ValueError, match="give a finite number per device, or NaN for none"):
        fairness(values)
