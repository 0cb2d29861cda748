"""What a method is given: samples of a step, the border of a task, the steps of a session as they run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from sparcl_core.replay.memory import Memory
from sparcl_core.sparsity.masks import Masks, State
from sparcl_core.sparsity.scheme import Scheme
from sparcl_core.task_data import TaskData

if TYPE_CHECKING:
    from torch import Tensor

    from sparcl_core.networks.masked import Network

Arrays = dict[str, np.ndarray]


class Samples(NamedTuple):
    """A batch of the task's data, or a draw from the buffer, as a step sees it.

    Attributes:
        x: [B, C, H, W], augmented and normalised.
        y: [B] int64.
        rows: [B], which samples of the task or of the buffer these are.
        logits: [B, classes], as the buffer holds them; None for the task's data.
        features: [B, D], what the classifier is given, with its gradient; None unless the method `wants_features`.
    """

    x: Tensor
    y: Tensor
    rows: np.ndarray
    logits: Tensor | None
    features: Tensor | None = None


@dataclass(frozen=True, eq=False, kw_only=True)
class Border:
    """The beginning or the end of a task on one device.

    Attributes:
        state, masks: the model that the device has then: at the end of a task in a federation, the one that came with the next task.
        data: of the task that begins or ends.
        memory: what the device keeps; its arrays and its buffer may be read-only.
        rng: for what is drawn here.
        load: see `network`.
    """

    state: State
    masks: Masks
    data: TaskData
    memory: Memory
    rng: np.random.Generator
    load: Callable[[], Network]

    @cached_property
    def network(self) -> Network:
        """The learner's network with that model, in training mode; whoever changes it changes nothing else."""
        return self.load()


@dataclass(eq=False, kw_only=True)
class Running:
    """The steps of a session, as its method sees them.

    Attributes:
        network: the one that is trained. Its `parameters` are those of the step: of a sparse tensor the active weights.
        state, masks: the model that the session began with.
        data: of the task.
        memory: what the device keeps; the steps write to its buffer.
        freeze: state, masks -> a network that is not trained; [B, C, H, W] -> logits [B, classes] in evaluation mode. What goes through
            it is counted.
        scheme: what changes the masks; it knows how long a task is.
        received: what the server has sent for the method (`SendsArrays`), by name; empty where nothing came, as on a single device.
        prepared: what `LearningMethod.prepare` returned.
        correction: what `Correction.prepare` returned.
        steps: that were done.
        rng: of the step, for what a term draws.
    """

    network: Network
    state: State
    masks: Masks
    data: TaskData
    memory: Memory
    freeze: Callable[[State, Masks], Callable[[Tensor], Tensor]]
    scheme: Scheme
    received: Arrays = field(default_factory=dict)
    prepared: Any = None
    correction: Any = None
    steps: int = 0
    rng: np.random.Generator | None = None
