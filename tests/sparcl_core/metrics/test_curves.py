"""Accuracy matrices read off a curve, and curves over what a run costs."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparcl_core.metrics.continual import scores
from sparcl_core.metrics.curves import area, matrix_at, reach

# -- a device's own matrix


def test_a_matrix_off_a_curve_by_hand():
    """The device trains task 2, then 0, then 1; its steps end at 10, 25 and 99. Evaluations at 0, 10, 20, 30, 40: the one at 10 is in
    time for its first step, that at 30 for the second; none is as late as 99, so the last one stands in. Columns: tasks 2, 0, 1."""
    accuracy = np.array([[0.0, 0.1, 0.2], [1.0, 1.1, 1.2], [2.0, 2.1, 2.2], [3.0, 3.1, 3.2], [4.0, 4.1, 4.2]])
    matrix = matrix_at(np.array([10, 25, 99]), np.arange(0, 50, 10), accuracy, np.array([2, 0, 1]))
    assert matrix.tolist() == [[1.2, 1.0, 1.1], [3.2, 3.0, 3.1], [4.2, 4.0, 4.1]]
    assert matrix.dtype == np.float64


def test_of_a_recurring_task_the_first_occurrence_counts():
    """Tasks 1, 0, 1, 2: the third step has neither row nor column."""
    accuracy = np.arange(12.0).reshape(4, 3)
    ends = np.array([1.0, 2.0, 3.0, 4.0])
    matrix = matrix_at(ends, ends, accuracy, np.array([1, 0, 1, 2]))
    assert matrix.tolist() == [[1.0, 0.0, 2.0], [4.0, 3.0, 5.0], [10.0, 9.0, 11.0]]


def test_a_step_that_did_not_end_is_seen_at_the_last_evaluation():
    accuracy = np.array([[0.5, 0.0], [0.4, 0.9]])
    assert matrix_at(np.array([1.0, np.inf]), np.array([1.0, 2.0]), accuracy, np.array([0, 1])).tolist() == accuracy.tolist()


def test_devices_that_saw_little():
    """Without a step there is no matrix; steps that end together read the same evaluation, the first of several at that instant."""
    assert matrix_at([], [0.0], np.zeros((1, 2)), np.empty(0, dtype=np.int64)).shape == (0, 0)
    accuracy = np.array([[0.1, 0.2], [0.3, 0.4], [0.5, 0.6]])
    assert matrix_at([5, 5], [5, 5, 9], accuracy, [0, 1]).tolist() == [[0.1, 0.2], [0.1, 0.2]]


@st.composite
def synchronous(draw):
    """A fleet in step: tasks in order, evaluations on the way, the last one of task t when it ends."""
    tasks = draw(st.integers(1, 5))
    per_task = draw(st.lists(st.integers(1, 4), min_size=tasks, max_size=tasks))
    times = np.cumsum(draw(st.lists(st.floats(0.01, 100), min_size=sum(per_task), max_size=sum(per_task))))
    last = np.cumsum(per_task) - 1
    accuracy = np.random.default_rng(draw(st.integers(0, 99))).random((len(times), tasks))
    return times, last, accuracy


@given(synchronous())
def test_where_all_devices_go_in_step_it_is_the_plain_matrix(case):
    times, last, accuracy = case
    matrix = matrix_at(times[last], times, accuracy, np.arange(accuracy.shape[1]))
    assert np.array_equal(matrix, accuracy[last])
    assert repr(scores(matrix)) == repr(scores(accuracy[last]))  # repr: NaN is not equal to itself


@given(synchronous(), st.randoms(use_true_random=False))
def test_the_order_of_a_device_names_rows_and_columns(case, random):
    """Tasks that are numbered otherwise give the same matrix."""
    times, last, accuracy = case
    names = list(range(accuracy.shape[1]))
    random.shuffle(names)
    renamed = np.empty_like(accuracy)
    renamed[:, names] = accuracy
    assert np.array_equal(matrix_at(times[last], times, renamed, np.array(names)), accuracy[last])


@pytest.mark.parametrize(
    ("ends", "times", "shape", "order", "message"),
    [
        ([1.0], [1.0, 2.0], (3, 2), [0], r"the arrays of a curve are .* they must be \[S\], \[E\], \[E, T\] and \[S\]"),
        ([1.0, 2.0], [1.0], (1, 2), [0], "the arrays of a curve are"),
        ([1.0], [], (0, 2), [0], "with one evaluation at least"),
        ([2.0, 1.0], [1.0], (1, 2), [0, 1], "ends holds a NaN or goes back"),
        ([1.0], [2.0, 1.0], (2, 2), [0], "times holds a NaN or goes back"),
        ([np.nan], [1.0], (1, 2), [0], "ends holds a NaN"),
        ([[1.0]], [1.0], (1, 2), [0], r"ends has shape \(1, 1\)"),
        ([1.0], [1.0], (1, 2), [2], r"order is \[2\]: tasks are numbered from 0 to 1"),
        ([1.0], [1.0], (1, 2), [-1], r"order is \[-1\]"),
    ],
)
def test_curves_that_do_not_fit_are_refused(ends, times, shape, order, message):
    with pytest.raises(ValueError, match=message):
        matrix_at(np.array(ends), np.array(times), np.zeros(shape), np.array(order))


# -- over time, joules, bytes


def test_the_area_by_hand():
    """0.2 for 10 s, 0.6 for 30 s; the 0.9 at the end has no width: (2 + 18) / 40."""
    assert area(np.array([0, 10, 40]), np.array([0.2, 0.6, 0.9])) == pytest.approx(0.5)
    assert area(np.array([100, 110, 140]), np.array([0.2, 0.6, 0.9])) == pytest.approx(0.5)


def test_where_x_repeats_the_last_value_counts():
    assert area([0, 1, 1, 2], [0.0, 0.9, 0.5, 0.7]) == pytest.approx(0.25)


def test_a_point_has_no_area():
    assert all(math.isnan(area(x, y)) for x, y in (([], []), ([1.0], [0.5]), ([1.0, 1.0], [0.5, 0.6])))


def test_an_unknown_value_is_no_obstacle_where_it_has_no_width():
    assert area([0, 0, 1, 2], [np.nan, 0.5, 0.7, np.nan]) == pytest.approx(0.6)
    assert math.isnan(area([0, 1, 2], [0.5, np.nan, 0.7]))


def test_what_it_took_by_hand():
    x, y = np.array([0, 10, 20, 30]), np.array([0.1, 0.6, 0.4, 0.7])
    assert [reach(x, y, target) for target in (0.1, 0.5, 0.6, 0.65)] == [0, 10, 10, 30]  # later dips do not matter
    assert math.isnan(reach(x, y, 0.8)) and math.isnan(reach([], [], 0.8))
    assert reach([0, 1, 2], [np.nan, np.nan, 0.9], 0.5) == 2  # what was not evaluated reached nothing


# x in quarters, so that other units of it are exact
curves = st.lists(st.tuples(st.integers(0, 10**6), st.floats(0, 1)), min_size=2, max_size=30).map(
    lambda points: (np.array(sorted(x for x, _ in points)) / 4, np.array([y for _, y in points]))
)


@given(curves, st.floats(0, 1))
def test_an_area_is_a_mean_and_a_target_is_reached_where_it_is_first_met(curve, target):
    x, y = curve
    mean = area(x, y)
    assert math.isnan(mean) == (x[0] == x[-1])
    if not math.isnan(mean):
        assert y.min() - 1e-12 <= mean <= y.max() + 1e-12
        assert area(7 * x + 3, 2 * y) == pytest.approx(2 * mean, abs=1e-12)  # in other units
    took = reach(x, y, target)
    assert math.isnan(took) == (y.max() < target)
    if not math.isnan(took):
        assert (y[x < took] < target).all() and (y[x == took] >= target).any()


@given(curves, st.floats(0, 1))
def test_an_evaluation_that_changes_nothing_changes_no_area(curve, share):
    """A point put between two, with the value of the one before."""
    x, y = curve
    place = x[0] + share * (x[-1] - x[0])
    after = int(np.searchsorted(x, place, side="right"))
    longer = np.insert(x, after, place), np.insert(y, after, y[after - 1])
    assert area(*longer) == pytest.approx(area(x, y), nan_ok=True, abs=1e-9)


@pytest.mark.parametrize("function", [area, lambda x, y: reach(x, y, 0.5)])
@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        ([0, 1], [0.5], r"x has shape \(2,\), y \(1,\): a curve has one y per x"),
        ([1, 0], [0.5, 0.5], "x holds a NaN or goes back"),
        ([0, np.inf], [0.5, 0.5], "x is not finite everywhere"),
        ([[0], [1]], [[0], [1]], r"x has shape \(2, 1\): it must be a list of numbers"),
    ],
)
def test_curves_that_go_back_or_have_gaps_are_refused(function, x, y, message):
    with pytest.raises(ValueError, match=message):
        function(np.array(x, dtype=float), np.array(y, dtype=float))


def test_a_target_that_is_no_number_is_refused():
    with pytest.raises(ValueError, match="target is nan"):
        reach([0, 1], [0.1, 0.2], math.nan)
