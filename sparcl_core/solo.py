"""SparCL on a single device that sees the whole stream: the paper's own setting, no federation.

The same sessions, mask updates and random addresses as a federation's, with device number 0; a federation of one device
with lossless codec gives the same masks, batches and buffers, and weights equal up to rounding.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from sparcl_core.config import MethodConfig
from sparcl_core.costs.flops import Counted, Flops
from sparcl_core.costs.memory import activation_bytes, footprint, kept_bytes
from sparcl_core.inputs import InputSpec
from sparcl_core.learner import Learner
from sparcl_core.networks.models import first_weights
from sparcl_core.networks.pretrained import read_weights
from sparcl_core.replay.memory import Memory
from sparcl_core.sparsity.initial import highest_masks, laid_over, random_masks
from sparcl_core.sparsity.masks import Masks, State, count_active
from sparcl_core.sparsity.schedule import Sessions
from sparcl_core.sparsity.update import Action
from sparcl_core.task_data import TaskData
from sparcl_core.training.session import Session


@dataclass(frozen=True, kw_only=True)
class Progress:
    """State after a session: all that the next one begins with, and what was counted in this one.

    Attributes:
        task, session: from 0. `epoch`: epochs of the task that are done.
        importance: for the next update of the masks; empty where the next session has none.
        updates: of the masks, so far.
        peak_memory: bytes that training took, see `costs.memory`.
    """

    task: int
    session: int
    epoch: int
    state: State
    masks: Masks
    memory: Memory
    importance: dict[str, np.ndarray]
    updates: int
    flops: Flops
    dense_flops: Flops
    loss: float
    peak_memory: int


def dense_weights(learner: Learner, method: MethodConfig, seed: int) -> State:
    """The weights of a new run before any mask: drawn or from a file.

    Raises:
        ValueError: if `model.weights` does not fit the model, see `sparcl_core.networks.pretrained`.
    """
    state = first_weights(method.model, learner.model, learner.inputs, seed)
    if method.model.weights:
        state |= read_weights(method.model, learner.layout.shapes, learner.classifier)
    return state


def start_model(learner: Learner, method: MethodConfig, seed: int) -> tuple[State, Masks]:
    """The weights and masks of a new run: masked, kept weights rescaled by 1/sqrt(density) if the model asks.

    With `masks.initial = "snip"` the masks are random ones that stand in until there is data of the first task.

    Raises:
        ValueError: as `dense_weights`.
    """
    weights = dense_weights(learner, method, seed)
    masked = {name: weights[name] for name in weights if name in learner.layout.masked}
    if method.masks.initial == "magnitude":
        masks = highest_masks({name: np.abs(value) for name, value in masked.items()}, method.masks, method.sparsity)
    else:
        masks = random_masks({name: value.shape for name, value in masked.items()}, method.masks, method.first_sparsity, seed)
    return laid_over(weights, masks, method.model.rescale), masks


def train_stream(
    method: MethodConfig,
    inputs: InputSpec,
    tasks: list[TaskData],
    *,
    task_epochs: int,
    seed: int,
    observe: Callable[[Progress], None],
    session_epochs: int = 0,
    done: Progress | None = None,
) -> Progress:
    """Learn `tasks` in order, calling `observe` after every session. What a method computes where a task begins or ends counts for the
    first or the last session of the task.

    Args:
        task_epochs: K, epochs per task.
        done: go on behind this session, of the same settings; the result is the same to the bit.
        session_epochs: epochs per session; 0 takes those between two updates of the masks.
    """
    learner, samples = Learner(method, inputs, task_epochs, seed), sum(len(task.y) for task in tasks)
    learner.scheme.check()
    alone = _Alone(method, learner, learner.scheme.schedule(session_epochs or learner.scheme.stage_epochs), samples)
    if done:
        alone.go_on(done)
    for task in tasks[done.task if done else 0 :]:
        first = done.session + 1 if done and task.task == done.task else 0
        if not first:
            alone.begin(task, is_first=done is None)
        for session in range(first, alone.schedule.sessions):
            done = alone.session(task, session)
            observe(done)
    return done


class _Alone:
    """The moving parts: model, masks, memory, and what was counted since the last session was shown."""

    def __init__(self, method: MethodConfig, learner: Learner, schedule: Sessions, samples: int):
        self.method, self.learner, self.schedule = method, learner, schedule
        self.state, self.masks = start_model(learner, method, learner.seed)
        self.memory = learner.new_memory(samples)
        self.importance: dict[str, np.ndarray] = {}
        self.counted, self.updates = Counted(), 0
        self.first_peak = 0  # bytes that finding the first masks took
        self.activations = activation_bytes(learner.model, learner.inputs.shape)

    def go_on(self, done: Progress) -> None:
        """Be where `done` was seen."""
        self.state, self.masks, self.memory = done.state, done.masks, done.memory
        self.importance, self.updates = done.importance, done.updates

    def begin(self, task: TaskData, is_first: bool) -> None:
        cost = self._choose_masks(task) if is_first and self.method.asks_first else Flops()
        self.memory, counted = self.learner.begin_task(self.state, self.masks, task, self.memory, device=0)
        self.counted, self.importance = Counted(cost) + counted, {}

    def session(self, task: TaskData, session: int) -> Progress:
        """Session number `session` of the task, and what stands between it and the next."""
        self._update_masks(self.schedule.action(task.task, session), session)
        done = self.learner.train(self.state, self.masks, task, self.memory, epochs=self.schedule.epochs(session), device=0)
        self.state, self.memory = done.state, done.memory
        self.counted += Counted(done.flops, done.dense_flops)
        has_ranked = self.learner.scheme.asks and self.schedule.action(task.task, session + 1) == "adapt"
        if has_ranked:
            self.importance, cost = self.learner.importance_after(done, self.masks, task, device=0)
            self.counted += Counted(cost)
        if session == self.schedule.sessions - 1:
            self.memory, cost = self.learner.end_task(self.state, self.masks, task, self.memory, device=0)
            self.counted += cost
        counted, self.counted, first_peak, self.first_peak = self.counted, Counted(), self.first_peak, 0
        return Progress(
            task=task.task, session=session, epoch=self.memory.epochs, state=self.state, masks=self.masks, memory=self.memory,
            importance=self.importance, updates=self.updates, flops=counted.flops, dense_flops=counted.dense_flops, loss=done.loss,
            peak_memory=max(first_peak, self._memory_bytes(done, has_ranked)),
        )  # fmt: skip

    def _choose_masks(self, task: TaskData) -> Flops:
        """The first masks, where SNIP finds them; and what that cost."""
        method, learner = self.method, self.learner
        weights = dense_weights(learner, method, learner.seed)
        scores, cost = learner.sensitivity(weights, task, self.memory.in_task(len(task.y)), device=0)
        self.masks = highest_masks(scores, method.masks, method.sparsity)
        self.state = laid_over(weights, self.masks, method.model.rescale)
        activations = self.activations * learner.config.batch_size
        held = footprint(learner.held, active={}, updated={}, activations=activations, method_bytes=0, federated=False)
        self.first_peak = held.total
        return cost

    def _memory_bytes(self, done: Session, has_ranked: bool) -> int:
        learner, samples = self.learner, done.memory.ddr.kept.size
        return footprint(
            learner.held,
            active=count_active(self.masks),
            updated=count_active(done.updated),
            activations=self.activations * learner.samples_per_forward(samples),
            method_bytes=kept_bytes(self.memory) + learner.kept_data_bytes(samples),
            federated=False,
            ranked=learner.scheme.gradients_held(mask.size for mask in self.masks.values()) if has_ranked else 0,
        ).total

    def _update_masks(self, what: Action, session: int) -> None:
        if what == "rest":
            return
        scheme, epoch, self.updates = self.learner.scheme, session * self.schedule.session_epochs, self.updates + 1
        self.state = {name: value.copy() for name, value in self.state.items()}  # the observer may have kept the old one
        found = self.learner.method.owners(self.memory) if scheme.needs == "owners" else self.importance
        update = scheme.plan(what, self.masks, self.state, found, number=self.updates, epoch=epoch)
        self.masks = scheme.redo(self.masks, [self.state], update)
