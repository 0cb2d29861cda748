"""Accuracy matrix -> the figures of continual learning.

R[t, i]: accuracy on task i after training task t, both from 0, of T tasks. Definitions (mammoth's, used by SparCL):
- average accuracy:  mean_i R[T-1, i]
- learning accuracy: mean_i R[i, i]
- forgetting:        mean_{i<T-1} (max_{t<T} R[t, i] - R[T-1, i])
- backward transfer: mean_{i<T-1} (R[T-1, i] - R[i, i])
- forward transfer:  mean_{i>0} (R[i-1, i] - accuracy of the untrained model on i)
Class-IL: no task id at test, argmax over all classes. Task-IL: argmax over the classes of the sample's task.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Scores:
    """Figures of one accuracy matrix, as shares in [-1, 1]; NaN where one task defines none."""

    average: float
    forgetting: float
    learning: float
    backward_transfer: float
    forward_transfer: float


def correct_by_task(logits: np.ndarray, labels: np.ndarray, tasks: list[tuple[int, ...]]) -> np.ndarray:
    """Accuracy per task, [2, T]: row 0 Class-IL, row 1 Task-IL. logits [N, classes], labels [N]; NaN for a task without samples."""
    result = np.full((2, len(tasks)), np.nan)
    for i, classes in enumerate(tasks):
        rows = np.isin(labels, classes)
        if rows.any():
            own = np.full_like(logits[rows], -np.inf)
            own[:, list(classes)] = logits[rows][:, list(classes)]
            result[0, i] = np.mean(logits[rows].argmax(1) == labels[rows])
            result[1, i] = np.mean(own.argmax(1) == labels[rows])
    return result


def scores(accuracy: np.ndarray, untrained: np.ndarray | None = None) -> Scores:
    """The figures of `accuracy` [T, T] (rows: after task t); `untrained` [T] is the fresh model's accuracy, for forward transfer."""
    accuracy = np.asarray(accuracy, dtype=float)
    if accuracy.ndim != 2 or accuracy.shape[0] != accuracy.shape[1]:
        raise ValueError(f"accuracy has shape {accuracy.shape}: it must be square, tasks x tasks")
    last, diagonal, count = accuracy[-1], np.diag(accuracy), len(accuracy)

    def mean(values):
        return float(np.mean(values)) if len(values) else float("nan")

    ahead = [] if untrained is None else [accuracy[i - 1, i] - untrained[i] for i in range(1, count)]
    return Scores(
        average=mean(last),
        forgetting=mean(accuracy.max(0)[:-1] - last[:-1]),
        learning=mean(diagonal),
        backward_transfer=mean(last[:-1] - diagonal[:-1]),
        forward_transfer=mean(ahead),
    )
