"""What a run was worth on the way: curves of accuracy over virtual time, joules or bytes. Formulas and sources: docs/metrics.md.

In a fleet whose devices go their own ways there is no instant at which a task ends for all. Accuracy is then evaluated at instants
of its own, and a device's accuracy matrix is read off that curve at the ends of the device's own steps.
"""

import numpy as np


def matrix_at(ends: np.ndarray, times: np.ndarray, accuracy: np.ndarray, order: np.ndarray) -> np.ndarray:
    """The accuracy matrix of one device's own stream, for `metrics.scores`.

    R[k, i] is the accuracy on the device's i-th task at the first evaluation at or after the end of its k-th step; at the last
    evaluation if none is as late. Of steps that repeat an earlier task only the first occurrence counts: it has the row and the
    column, so that no task counts twice. Then R is [D, D] for D distinct tasks, and its last row is the end of the device's last
    new task, not of its stream.

    Args:
        ends: [S] float, when the device's steps ended, not descending; infinite for a step that did not end. Same unit as `times`.
        times: [E] float, when accuracy was evaluated, not descending; one at least.
        accuracy: [E, T], accuracy on every task of the fleet at each of them.
        order: [S] int, the task that was step k of this device.

    Returns:
        [S, S] float64, if no task recurs.

    Raises:
        ValueError: if the arrays do not fit each other, times go back, or there is no such task.
    """
    ends, times = _ascending("ends", ends), _ascending("times", times)
    accuracy, order = np.asarray(accuracy, dtype=np.float64), np.asarray(order)
    if accuracy.ndim != 2 or len(accuracy) != len(times) or not len(times) or order.shape != ends.shape:
        shapes = f"ends {ends.shape}, times {times.shape}, accuracy {accuracy.shape}, order {order.shape}"
        raise ValueError(f"the arrays of a curve are {shapes}: they must be [S], [E], [E, T] and [S], with one evaluation at least")
    if len(order) and not 0 <= order.min() <= order.max() < accuracy.shape[1]:
        raise ValueError(f"order is {order.tolist()}: tasks are numbered from 0 to {accuracy.shape[1] - 1}, the last column of accuracy")
    steps = np.sort(np.unique(order, return_index=True)[1])
    rows = np.minimum(np.searchsorted(times, ends[steps], side="left"), len(times) - 1)
    return accuracy[np.ix_(rows, order[steps])]


def area(x: np.ndarray, y: np.ndarray) -> float:
    """Mean of y over x: the area under the step function that keeps each y until the next x, divided by the range of x.

    The last y has no width; it only ends the range. Where x repeats, the last y counts from there on.

    Args:
        x: [E], not descending: virtual seconds, joules or bytes.
        y: [E]; a NaN that has a width makes the result NaN.

    Returns:
        A mean in y's unit; NaN for fewer than 2 points or a range of 0.

    Raises:
        ValueError: if x and y differ in length, or x goes back or is not finite.
    """
    x, y = _curve(x, y)
    widths = np.diff(x)
    wide = widths > 0
    return float(np.sum(y[:-1][wide] * (widths[wide] / (x[-1] - x[0])))) if wide.any() else float("nan")


def reach(x: np.ndarray, y: np.ndarray, target: float) -> float:
    """What it took: the first x [E] at which y [E] is at least `target`; NaN if it never is.

    Raises:
        ValueError: if x and y differ in length, x goes back or is not finite, or the target is NaN.
    """
    x, y = _curve(x, y)
    if np.isnan(target):
        raise ValueError("target is nan: nothing reaches it; give a number")
    there = np.flatnonzero(y >= target)
    return float(x[there[0]]) if len(there) else float("nan")


def _curve(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    x, y = _ascending("x", x), np.asarray(y, dtype=np.float64)
    if y.shape != x.shape:
        raise ValueError(f"x has shape {x.shape}, y {y.shape}: a curve has one y per x")
    if not np.isfinite(x).all():
        raise ValueError("x is not finite everywhere: leave out the points without a place")
    return x, y


def _ascending(name: str, values: np.ndarray) -> np.ndarray:
    """As float64; what accuracy is drawn over never goes back."""
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1:
        raise ValueError(f"{name} has shape {values.shape}: it must be a list of numbers")
    if np.isnan(values).any() or (values[1:] < values[:-1]).any():
        raise ValueError(f"{name} holds a NaN or goes back: it must be in ascending order; equal neighbours are allowed")
    return values
