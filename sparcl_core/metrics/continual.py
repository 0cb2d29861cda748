"""Right answers -> accuracies -> the figures of continual learning. Formulas, sources and differences: docs/metrics.md.

R[t, i]: accuracy on task i after training task t, both from 0, of T tasks. Definitions (mammoth's, used by SparCL, but for one):
- average accuracy:      mean_i R[T-1, i]
- learning accuracy:     mean_i R[i, i]
- forgetting:            mean_{i<T-1} (max_{t<T} R[t, i] - R[T-1, i])
- forgetting_first_last: mean_{i<T-1} (R[i, i] - R[T-1, i]), Avalanche's `StreamForgetting`; its `StreamBWT` is minus that
- backward transfer:     mean_{i<T-1} (R[T-1, i] - R[i, i])
- forward transfer:      mean_{i>0} (R[i-1, i] - accuracy of the untrained model on i)
Class-IL: no task id at test, argmax over all classes. Task-IL: argmax over the classes of the sample's task.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Scores:
    """Figures of one accuracy matrix, as shares in [-1, 1]; NaN where one task defines none."""

    average: float
    forgetting: float
    forgetting_first_last: float
    learning: float
    backward_transfer: float
    forward_transfer: float


def count_task(logits: np.ndarray, labels: np.ndarray, classes: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Right answers on the test samples of one task, per true class: what to call domain by domain where tasks share classes.

    Args:
        logits: [N, C].
        labels: [N], integers, each one of `classes`.
        classes: of the task, in any order.

    Returns:
        correct: [2, C] int64; row 0 argmax over all C classes (Class-IL), row 1 over `classes` only (Task-IL).
        total: [C] int64, samples of each class. Among equal logits the lowest class wins.

    Raises:
        ValueError: if a label is not among `classes`, or a class is not among those of the logits.
    """
    allowed, count = np.array(sorted(classes), dtype=np.int64), logits.shape[1]
    if not len(allowed) or allowed[0] < 0 or allowed[-1] >= count:
        raise ValueError(f"the classes of a task are {tuple(classes)}: at least one, from 0 to {count - 1}, as there are {count} logits")
    if len(foreign := np.setdiff1d(labels, allowed)):
        raise ValueError(f"labels hold {foreign.tolist()}: only classes of the task, {tuple(classes)}, are counted; leave out the others")
    right = (logits.argmax(1) == labels, allowed[logits[:, allowed].argmax(1)] == labels)
    correct = np.stack([np.bincount(labels[hits], minlength=count) for hits in right])
    return correct.astype(np.int64), np.bincount(labels, minlength=count).astype(np.int64)


def count_correct(logits: np.ndarray, labels: np.ndarray, tasks: list[tuple[int, ...]]) -> tuple[np.ndarray, np.ndarray]:
    """Right answers per task and true class. A sample belongs to every task that has its class, to none if none has.

    Args:
        logits: [N, C].
        labels: [N], integers.
        tasks: the classes of each of T tasks.

    Returns:
        correct: [2, T, C] int64, row 0 Class-IL, row 1 Task-IL.
        total: [T, C] int64, samples.
    """
    correct = np.zeros((2, len(tasks), logits.shape[1]), dtype=np.int64)
    total = np.zeros((len(tasks), logits.shape[1]), dtype=np.int64)
    for i, classes in enumerate(tasks):
        rows = np.isin(labels, classes)
        correct[:, i], total[i] = count_task(logits[rows], labels[rows], classes)
    return correct, total


def accuracy_by_class(correct: np.ndarray, total: np.ndarray) -> np.ndarray:
    """Share of right answers, float64 in the shape of `correct`; NaN where there is no sample. Counts from `count_correct`."""
    total = np.broadcast_to(total, correct.shape)
    return np.divide(correct, total, out=np.full(correct.shape, np.nan), where=total > 0)


def accuracy_by_task(correct: np.ndarray, total: np.ndarray) -> np.ndarray:
    """[2, T] float64 from the counts of `count_correct`, every sample with the same weight; NaN for a task without samples."""
    return accuracy_by_class(correct.sum(-1), total.sum(-1))


def correct_by_task(logits: np.ndarray, labels: np.ndarray, tasks: list[tuple[int, ...]]) -> np.ndarray:
    """Accuracy per task, [2, T]: row 0 Class-IL, row 1 Task-IL. logits [N, classes], labels [N]; NaN for a task without samples."""
    return accuracy_by_task(*count_correct(logits, labels, tasks))


def scores(accuracy: np.ndarray, untrained: np.ndarray | None = None) -> Scores:
    """The figures of `accuracy` [T, T] (rows: after task t); `untrained` [T] is the fresh model's accuracy, for forward transfer.

    Raises:
        ValueError: if `accuracy` is not square, or has no task.
    """
    accuracy = np.asarray(accuracy, dtype=float)
    if accuracy.ndim != 2 or accuracy.shape[0] != accuracy.shape[1] or not len(accuracy):
        raise ValueError(f"accuracy has shape {accuracy.shape}: it must be square, tasks x tasks, with one task at least")
    last, diagonal, count = accuracy[-1], np.diag(accuracy), len(accuracy)

    def mean(values):
        return float(np.mean(values)) if len(values) else float("nan")

    ahead = [] if untrained is None else [accuracy[i - 1, i] - untrained[i] for i in range(1, count)]
    return Scores(
        average=mean(last),
        forgetting=mean(accuracy.max(0)[:-1] - last[:-1]),
        forgetting_first_last=mean(diagonal[:-1] - last[:-1]),
        learning=mean(diagonal),
        backward_transfer=mean(last[:-1] - diagonal[:-1]),
        forward_transfer=mean(ahead),
    )
