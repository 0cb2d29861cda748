"""Masks of PackNet (Mallya and Lazebnik, CVPR 2018, arXiv:1711.05769, section 3): one network packed with a sub-network for every task.

A run begins with all places active. In every task

    at its start               what is active and free belongs to the task before; every free place becomes active again, at 0
    behind `masks.until`       of the free weights of each layer the share `sparsity` is dropped, those of smallest magnitude
    for the rest of the task   those that are left retrain

The network of task t is what the tasks up to t own. Which task owns a place is kept beside the masks (`owners`): 0 says that none does yet.
A layer whose free weights are n keeps max(1, (1 - s) n) of them, halves up; where n is 0, nothing.

Difference: the paper prunes where a task's training is over and retrains half as long again; here both share the task's epochs.
"""

import numpy as np

from sparcl_core.sparsity.masks import Masks, State, highest, num_active
from sparcl_core.sparsity.schedule import Pruning
from sparcl_core.sparsity.scheme import Scheme
from sparcl_core.sparsity.update import Action, MaskUpdate, drop_

# by tensor, uint8 in its shape: 0, free; t + 1, of task t. Where tasks choose among the weights of earlier ones (`methods.lps`), beside
# these by `selected(t, tensor)` the choice of task t, a bit a place
Owners = dict[str, np.ndarray]
MOST_TASKS = 255
SELECTED = "selected/"


def selected(task: int, name: str) -> str:
    return f"{SELECTED}{task}/{name}"


def num_kept(free: int, sparsity: float) -> int:
    """Of a layer's free weights, those that pruning leaves."""
    return num_active(free, sparsity) if free else 0


def nobody(masks: Masks) -> Owners:
    """Before a task has ended."""
    return {name: np.zeros(mask.shape, np.uint8) for name, mask in masks.items()}


def claimed(owners: Owners, masks: Masks, task: int) -> Owners:
    """As `task`, from 0, ends: what is active and free is its own from now on.

    Raises:
        ValueError: if there is no number for so many tasks.
    """
    if task >= MOST_TASKS:
        raise ValueError(f"task {task} cannot own weights: there are numbers for {MOST_TASKS} tasks")
    return {name: np.where((own == 0) & masks[name], np.uint8(task + 1), own) for name, own in owners.items()}


def network_of(owners: Owners, task: int) -> Masks:
    """Places of the network of `task`: what it and the tasks before own, of these what it has chosen, if it has; while it has not ended,
    all that are active and free, too."""
    by_tensor = {name: own for name, own in owners.items() if not name.startswith(SELECTED)}
    ended, networks = tasks_over(owners), {}
    for name, own in by_tensor.items():
        networks[name] = own <= task + 1 if task >= ended else (own > 0) & (own <= task + 1)
        bits = owners.get(selected(task, name))
        if bits is not None:
            chosen = np.unpackbits(bits, count=own.size).view(bool).reshape(own.shape)
            networks[name] &= chosen | (own == 0) | (own == task + 1)
    return networks


def tasks_over(owners: Owners) -> int:
    """How many tasks own weights, which is the number of the task that is running."""
    return max((int(own.max(initial=0)) for name, own in owners.items() if not name.startswith(SELECTED)), default=0)


class PackNet(Scheme):
    """`masks.scheme = "packnet"`."""

    needs = "owners"
    begins_dense = True

    @property
    def until(self) -> float:
        return 0.7 if self.config.until is None else self.config.until

    def check(self) -> None:
        if self.config.initial != "random" or self.config.densities != "uniform":
            raise ValueError(
                f"masks.initial is {self.config.initial!r}, masks.densities {self.config.densities!r}: scheme packnet begins with all "
                f"weights, and prunes every layer alike; leave both out"
            )
        if self.until == 1:
            raise ValueError("masks.until is 1: scheme packnet prunes there, and needs epochs behind it to retrain; take 0.7")

    def schedule(self, session_epochs: int) -> Pruning:
        return Pruning(self.task_epochs, session_epochs, self.until)

    def plan(self, what: Action, masks: Masks, state: State, found: State, *, number: int, epoch: int) -> MaskUpdate:
        """`found`: whose each place is."""
        dropped = {}
        for name, mask in masks.items():
            free = np.flatnonzero(mask & (found[name] == 0)) if what == "adapt" else np.zeros(0, np.int64)
            kept = num_kept(free.size, self.sparsity)
            dropped[name] = free[~highest(np.abs(state[name].reshape(-1)[free]), kept)]
        return MaskUpdate(number, what, dropped)

    def redo(self, masks: Masks, states: list[State], update: MaskUpdate) -> Masks:
        kept = drop_(masks, states, update)
        return {name: np.ones_like(mask) for name, mask in kept.items()} if update.what == "grow" else kept
