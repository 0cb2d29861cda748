"""DDR, dynamic data removal: a device stops training on samples that teach it little (SparCL, section 3.2).

Over the first `k_cut` epochs of a task, at every dk epochs, an equal share of the task's original data is removed, so that
rho * |D_t| is gone in the end. Least informative first; two criteria:
- `misclassified` (paper): fewest misclassifications since the last stage;
- `forgetting` (released code): fewest forgetting events (right, then wrong) since the last stage, a sample that was never
  right counting as the maximum.
Equal scores: the lower index goes first. Statistics come from the training passes themselves and are reset after every
stage; removed samples do not come back within the task. Protected: one batch or a quarter of the task's data, whichever is
smaller, and one sample per class.

What counts as right is the highest logit, over the classes that the loss on current data sees, or over all (`judged_by`).
The outcome of a sample's last pass is carried over the reset, so that a change from right to wrong across a stage counts.
Epochs are the device's own local epochs in the task, also in a federation. A stage is postponed by one epoch while any
remaining sample has not been seen since the last stage (a federated device that sat out rounds).
"""

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np


@dataclass(frozen=True)
class DDRConfig:
    """Settings of DDR.

    Attributes:
        enabled: off trains on all data of the task in every epoch.
        remove: rho, share of a task's data that is removed in total.
        cut: share of a task's epochs in which removal happens (k_cut / K; 20 of 50 in the paper).
        stage_epochs: dk; 0 takes max(1, round(K / 10)).
        criterion: `misclassified` or `forgetting`, see module.
        judged_by: the classes over which a sample's prediction is taken: `seen-classes`, those that the loss on current data sees, which
            are the task's where learner.single_head is on; or `all-classes` (released code). Without single-head masking both are the same.
    """

    read_with: ClassVar[dict[str, tuple[str, ...]]] = {"learner.single_head": ("judged_by",)}
    enabled: bool = True
    remove: float = 0.3
    cut: float = 0.4
    stage_epochs: int = 0
    criterion: Literal["misclassified", "forgetting"] = "misclassified"
    judged_by: Literal["seen-classes", "all-classes"] = "seen-classes"

    def __post_init__(self):
        if not 0 <= self.remove < 1:
            raise ValueError(f"remove is {self.remove}: the removed share of a task's data must be in [0, 1)")
        if not 0 < self.cut <= 1:
            raise ValueError(f"cut is {self.cut}: the share of epochs in which data is removed must be in (0, 1]")
        if self.stage_epochs < 0:
            raise ValueError(f"stage_epochs is {self.stage_epochs}: it may not be negative")


@dataclass(frozen=True)
class DDRState:
    """What DDR remembers of one task on one device. All arrays have one entry per original sample of the task, [N].

    Attributes:
        kept: bool, still trained on.
        misses: int32, misclassifications since the last stage.
        forgotten: int32, right-to-wrong changes since the last stage.
        learned: bool, was right at least once since the last stage.
        was_right: bool, the outcome of the last pass.
        passes: int32, passes since the last stage.
        stages: removals done so far.
    """

    kept: np.ndarray
    misses: np.ndarray
    forgotten: np.ndarray
    learned: np.ndarray
    was_right: np.ndarray
    passes: np.ndarray
    stages: int = 0


def start(num_samples: int) -> DDRState:
    """State at the beginning of a task of `num_samples` samples."""

    def integers():
        return np.zeros(num_samples, dtype=np.int32)

    def flags():
        return np.zeros(num_samples, dtype=bool)

    return DDRState(np.ones(num_samples, dtype=bool), integers(), integers(), flags(), flags(), integers())


def copy(state: DDRState) -> DDRState:
    arrays = (state.kept, state.misses, state.forgotten, state.learned, state.was_right, state.passes)
    return DDRState(*(array.copy() for array in arrays), stages=state.stages)


def observe_(state: DDRState, indices: np.ndarray, right: np.ndarray) -> None:
    """Record one training pass over distinct samples `indices` [B] with outcomes `right` [B] bool, in place: it runs every step."""
    state.misses[indices] += ~right
    state.forgotten[indices] += state.was_right[indices] & ~right
    state.learned[indices] |= right
    state.was_right[indices] = right
    state.passes[indices] += 1


def stage_length(config: DDRConfig, epochs: int) -> int:
    """dk for a task of `epochs` epochs."""
    return config.stage_epochs or max(1, round(epochs / 10))


def num_stages(config: DDRConfig, epochs: int) -> int:
    """How many removals a task of `epochs` epochs has: at dk, 2 dk, ..., k_cut."""
    return math.floor(config.cut * epochs / stage_length(config, epochs) + 1e-9) if config.enabled else 0


def is_due(state: DDRState, config: DDRConfig, epoch: int, epochs: int) -> bool:
    """Whether to remove before local epoch `epoch` (from 0) of a task of `epochs` epochs."""
    if state.stages >= num_stages(config, epochs):
        return False
    return epoch >= (state.stages + 1) * stage_length(config, epochs) and bool((state.passes[state.kept] > 0).all())


def remove(state: DDRState, labels: np.ndarray, batch_size: int, config: DDRConfig, *, epochs: int, least: int = 1) -> DDRState:
    """The state after one removal stage, statistics reset.

    Args:
        labels: [N] classes of the task's samples.
        batch_size: samples per batch, for the protected rest.
        epochs: K, the task's epochs.
        least: samples without which the model cannot be trained, see `models.smallest_batch`.
    """
    size = state.kept.size
    done, stages = state.stages + 1, num_stages(config, epochs)
    target_removed = math.floor(config.remove * size * done / stages + 1e-9)
    floor = max(min(batch_size, math.ceil(size / 4)), least)
    count = min(target_removed - int(np.count_nonzero(~state.kept)), int(np.count_nonzero(state.kept)) - floor)

    candidates = np.flatnonzero(state.kept)
    if config.criterion == "misclassified":
        score = state.misses[candidates]
    else:
        never = np.iinfo(np.int32).max
        score = np.where(state.learned[candidates], state.forgotten[candidates], never)
    kept = state.kept.copy()
    left = dict(zip(*np.unique(labels[candidates], return_counts=True), strict=True))
    for index in candidates[np.argsort(score, kind="stable")]:
        if count <= 0:
            break
        if left[labels[index]] > 1:
            kept[index] = False
            left[labels[index]] -= 1
            count -= 1
    return replace(start(size), kept=kept, was_right=state.was_right.copy(), stages=done)
