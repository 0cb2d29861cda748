"""SparCL on a single device that sees the whole stream: the paper's own setting, no federation.

The same sessions, mask updates and random addresses as a federation's, with device number 0; a federation of one device
with lossless codec gives the same masks, batches and buffers, and weights equal up to rounding.
"""

from collections.abc import Callable
from dataclasses import dataclass

from sparcl_core.config import MethodConfig
from sparcl_core.costs.flops import Counted, Flops
from sparcl_core.inputs import InputSpec
from sparcl_core.learner import Learner
from sparcl_core.models import initial_weights
from sparcl_core.pretrained import read_weights
from sparcl_core.replay.memory import Memory
from sparcl_core.sparsity import tdm
from sparcl_core.sparsity.masks import Masks, State, apply_masks_, initial_masks, rescale_
from sparcl_core.task_data import TaskData


@dataclass(frozen=True, kw_only=True)
class Progress:
    """State after a session. `task` and `epoch` from 0; `epoch` counts the epochs of the task that are done."""

    task: int
    epoch: int
    state: State
    masks: Masks
    memory: Memory
    flops: Flops
    dense_flops: Flops
    loss: float


def start_model(learner: Learner, method: MethodConfig, seed: int) -> tuple[State, Masks]:
    """The weights and masks of a new run: He-normal or from a file, masked, kept weights rescaled by 1/sqrt(density) if the model asks.

    Raises:
        ValueError: if `model.weights` does not fit the model, see `sparcl_core.pretrained`.
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
) -> Progress:
    """Learn `tasks` in order, calling `observe` after every session. What a method computes where a task begins or ends counts for the
    first or the last session of the task.

    Args:
        task_epochs: K, epochs per task.
        session_epochs: epochs per session; 0 takes TDM's stage length.
    """
    tdm.check(method.tdm, method.sparsity, task_epochs)
    learner = Learner(method, inputs, task_epochs, seed)
    state, masks = start_model(learner, method, seed)
    memory = learner.new_memory(sum(len(task.y) for task in tasks))
    schedule = tdm.Schedule(method.tdm, method.sparsity, task_epochs, session_epochs or tdm.stage_length(method.tdm, task_epochs))
    updates, progress = 0, None
    for task in tasks:
        memory, counted = learner.begin_task(state, masks, task, memory, device=0)
        importance = {}
        for session in range(schedule.sessions):
            what = schedule.action(task.task, session)
            if what != "rest":
                updates += 1
                state = {name: value.copy() for name, value in state.items()}  # the observer may have kept the old one
                update = tdm.plan_update(what, masks, state, importance, method.tdm, method.sparsity, updates)
                masks = tdm.update_masks(masks, [state], update, method.tdm, method.sparsity, seed)
            done = learner.train(state, masks, task, memory, epochs=schedule.epochs(session), device=0)
            state, memory, counted = done.state, done.memory, counted + Counted(done.flops, done.dense_flops)
            if schedule.action(task.task, session + 1) == "adapt":
                importance, cost = learner.importance_after(done, masks, task, device=0)
                counted += Counted(cost)
            if session == schedule.sessions - 1:
                memory, cost = learner.end_task(state, masks, task, memory, device=0)
                counted += cost
            progress = Progress(
                task=task.task, epoch=memory.epochs, state=state, masks=masks, memory=memory, flops=counted.flops,
                dense_flops=counted.dense_flops, loss=done.loss,
            )  # fmt: skip
            observe(progress)
            counted = Counted()
    return progress
