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
from sparcl_core.networks.models import initial_weights
from sparcl_core.networks.pretrained import read_weights
from sparcl_core.replay.memory import Memory
from sparcl_core.sparsity import tdm
from sparcl_core.sparsity.masks import Masks, State, apply_masks_, count_active, initial_masks, rescale_
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


def start_model(learner: Learner, method: MethodConfig, seed: int) -> tuple[State, Masks]:
    """The weights and masks of a new run: He-normal or from a file, masked, kept weights rescaled by 1/sqrt(density) if the model asks.

    Raises:
        ValueError: if `model.weights` does not fit the model, see `sparcl_core.networks.pretrained`.
    """
    state = initial_weights(learner.model, seed)
    if method.model.weights:
        state |= read_weights(method.model, learner.layout.shapes, learner.classifier)
    masks = initial_masks({name: state[name].shape for name in state if name in learner.layout.masked}, method.sparsity, seed)
    apply_masks_(state, masks)
    if method.model.rescale:
        rescale_(state, masks)
    return state, masks


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
        session_epochs: epochs per session; 0 takes TDM's stage length.
    """
    tdm.check(method.tdm, method.sparsity, task_epochs)
    length = session_epochs or tdm.stage_length(method.tdm, task_epochs)
    schedule, samples = tdm.Schedule(method.tdm, method.sparsity, task_epochs, length), sum(len(task.y) for task in tasks)
    alone = _Alone(method, Learner(method, inputs, task_epochs, seed), schedule, samples)
    if done:
        alone.go_on(done)
    for task in tasks[done.task if done else 0 :]:
        first = done.session + 1 if done and task.task == done.task else 0
        if not first:
            alone.begin(task)
        for session in range(first, alone.schedule.sessions):
            done = alone.session(task, session)
            observe(done)
    return done


class _Alone:
    """The moving parts: model, masks, memory, and what was counted since the last session was shown."""

    def __init__(self, method: MethodConfig, learner: Learner, schedule: tdm.Schedule, samples: int):
        self.method, self.learner, self.schedule = method, learner, schedule
        self.state, self.masks = start_model(learner, method, learner.seed)
        self.memory = learner.new_memory(samples)
        self.importance: dict[str, np.ndarray] = {}
        self.counted, self.updates = Counted(), 0
        self.activations = activation_bytes(learner.model, learner.inputs.shape)

    def go_on(self, done: Progress) -> None:
        """Be where `done` was seen."""
        self.state, self.masks, self.memory = done.state, done.masks, done.memory
        self.importance, self.updates = done.importance, done.updates

    def begin(self, task: TaskData) -> None:
        self.memory, self.counted = self.learner.begin_task(self.state, self.masks, task, self.memory, device=0)
        self.importance = {}

    def session(self, task: TaskData, session: int) -> Progress:
        """Session number `session` of the task, and what stands between it and the next."""
        self._update_masks(self.schedule.action(task.task, session))
        done = self.learner.train(self.state, self.masks, task, self.memory, epochs=self.schedule.epochs(session), device=0)
        self.state, self.memory = done.state, done.memory
        self.counted += Counted(done.flops, done.dense_flops)
        if self.schedule.action(task.task, session + 1) == "adapt":
            self.importance, cost = self.learner.importance_after(done, self.masks, task, device=0)
            self.counted += Counted(cost)
        if session == self.schedule.sessions - 1:
            self.memory, cost = self.learner.end_task(self.state, self.masks, task, self.memory, device=0)
            self.counted += cost
        counted, self.counted = self.counted, Counted()
        return Progress(
            task=task.task, session=session, epoch=self.memory.epochs, state=self.state, masks=self.masks, memory=self.memory,
            importance=self.importance, updates=self.updates, flops=counted.flops, dense_flops=counted.dense_flops, loss=done.loss,
            peak_memory=self._memory_bytes(done),
        )  # fmt: skip

    def _memory_bytes(self, done: Session) -> int:
        learner, samples = self.learner, done.memory.ddr.kept.size
        return footprint(
            learner.held,
            active=count_active(self.masks),
            updated=count_active(done.updated),
            activations=self.activations * learner.samples_per_forward(samples),
            method_bytes=kept_bytes(self.memory) + learner.kept_data_bytes(samples),
            federated=False,
        ).total

    def _update_masks(self, what: tdm.Action) -> None:
        if what == "rest":
            return
        method, self.updates = self.method, self.updates + 1
        self.state = {name: value.copy() for name, value in self.state.items()}  # the observer may have kept the old one
        update = tdm.plan_update(
            what, self.masks, self.state, self.importance, config=method.tdm, sparsity=method.sparsity, number=self.updates
        )
        self.masks = tdm.update_masks(self.masks, [self.state], update, config=method.tdm, sparsity=method.sparsity, seed=self.learner.seed)
