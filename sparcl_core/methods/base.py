"""What a learning method is: a class derived from `LearningMethod`, in a file of its own.

The learner runs the steps: it cuts batches, goes forward and backward, masks gradients and moves weights. It asks its method

    where a task begins or ends     begin_task, end_task         what to keep, having computed what it likes
    before the steps of a session   prepare                      what their terms need: a teacher, old weights
                                    frozen, watched              which weights stay as they are
    in a step                       draw                         which samples of the buffer are replayed beside the batch
                                    current_term, draw_term      the loss on the batch, and on each draw
                                    gradients                    what is made of the gradients before weights move
                                    offer                        what of the batch goes into the buffer
    behind the steps of a session   end_session                  what to keep
    before anything                 problems                     why it cannot run in this situation

and the cost code, the server's estimate of a round and its bounds ask it how many samples go through a network (`step_passes` and the
others below). Where a method replays from the buffer or asks a teacher, `draws` and `teachers` say all of that.

A method has no state of its own: what it keeps between sessions are arrays in a device's `Memory`, which are counted and stored with the
device; what it needs within a session is what `prepare` returned. All random draws come from the generators that it is given.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from sparcl_core.config import LearnerConfig
from sparcl_core.costs.flops import Count, Passes
from sparcl_core.costs.memory import Held
from sparcl_core.methods.given import Arrays, Border, Running, Samples
from sparcl_core.methods.sends_arrays import SendsArrays
from sparcl_core.methods.situation import Situation
from sparcl_core.replay import buffer as rehearsal
from sparcl_core.replay.buffer import Buffer
from sparcl_core.replay.memory import Memory
from sparcl_core.sparsity.masks import Masks
from sparcl_core.sparsity.packnet import Owners

if TYPE_CHECKING:
    from torch import Tensor

    from sparcl_core.networks.masked import Network


class LearningMethod(SendsArrays):
    """A method, made of its settings. As it is: cross-entropy on current data, nothing kept, nothing replayed.

    Attributes:
        name: of a method of ours, as `learner.method` has it; others are named by their import path.
        Config: `LearnerConfig`, or a frozen dataclass derived from it with settings of the method's own, which are keys of [learner].
        reads: which of the keys alpha, beta and replay_weight of [learner] it reads, those of `LearnerConfig` that are not for all.
        draws: draws from the buffer beside a batch, each of as many samples.
        teachers: networks through which each batch of current data goes forward.
        keeps_data: the device keeps the data of all tasks, and a task's data are those of all tasks so far.
        apart: `gradients` wants those of the draws beside those of current data.
        wants_features: its terms are given features beside logits.
        needs_server: it is for a federation, and not for a device alone.
        personal: devices have models of their own, so that it is these that are evaluated.
        needs_task_ids: a test must say which task an image is of, so that it is for stream.setting=task-il.
        moves_weights: `gradients` moves weights by itself, in a dense network, so that nothing can mask or correct its steps.
        owns: every task owns weights (`sparsity.packnet`), and has a network of its own: there is no accuracy but Task-IL.
    """

    name: ClassVar[str] = ""
    Config: ClassVar[type[LearnerConfig]] = LearnerConfig
    reads: ClassVar[tuple[str, ...]] = ()
    draws: ClassVar[int] = 0
    teachers: ClassVar[int] = 0
    keeps_data: ClassVar[bool] = False
    apart: ClassVar[bool] = False
    wants_features: ClassVar[bool] = False
    needs_server: ClassVar[bool] = False
    personal: ClassVar[bool] = False
    needs_task_ids: ClassVar[bool] = False
    moves_weights: ClassVar[bool] = False
    owns: ClassVar[bool] = False

    def __init__(self, config: LearnerConfig):
        self.config = config

    def problems(self, situation: Situation) -> Iterator[str]:
        """Why it cannot run in this situation: of each, the value, the rule and the way out. Asked before anything starts."""
        yield from ()

    # -- where a task begins and ends

    def begin_task(self, border: Border) -> tuple[Memory, Passes]:
        """What the device keeps from now on, and the samples that went through its network for that (`task_passes`)."""
        return border.memory, Passes()

    def end_task(self, border: Border) -> tuple[Memory, Passes]:
        """As `begin_task`. A device of a federation learns that a task has ended when it is told of the next, or finds out."""
        return border.memory, Passes()

    # -- a session

    def prepare(self, running: Running) -> Any:
        """What the terms of the steps need, made once. Also called where importance is computed, and then no session follows."""
        return None

    def frozen(self, running: Running, classifier: tuple[str, ...]) -> Masks:
        """Places that stay as they are in this session, bool in the shapes of tensors, of BatchNorm's statistics among them; of tensors
        that are not named, none. Their gradients are not computed. `classifier`: tensors of the last layer, whose rows are classes."""
        return {}

    def watched(self, running: Running) -> Masks:
        """Places among the frozen ones of sparse tensors whose gradients are computed all the same, for `gradients` to make use of."""
        return {}

    # -- where tasks own weights (`sparsity.packnet`)

    def owners(self, memory: Memory) -> Owners:
        """Of a device alone, whose each place is, and what tasks have chosen of earlier ones'; empty where nobody asks."""
        return {}

    def told(self, owners: Owners, kept: Arrays, begins: bool) -> Arrays:
        """In a federation, what the server sends of whose each place is.

        Args:
            kept: what it has kept so far, by the same names.
            begins: a task begins with this round.
        """
        return {}

    def chosen(self, kept: Arrays, task: int) -> Owners:
        """In a federation, what `task` has chosen of earlier tasks' weights, by what the server keeps as it runs or ends."""
        return {}

    def draw(self, buffer: Buffer, size: int, rng: np.random.Generator) -> list[np.ndarray]:
        """Which samples of the buffer are replayed: rows [size] for each of `draws`, uniform without replacement."""
        return [rehearsal.draw(buffer, size, rng) for _ in range(self.draws)]

    def current_term(self, running: Running, batch: Samples, logits: Tensor, seen: Tensor) -> Tensor:
        """The loss on a batch of current data.

        Args:
            logits: [B, classes].
            seen: the same, with -inf outside the task's classes where the learner is single-headed.
        """
        import torch.nn.functional as F

        return F.cross_entropy(seen, batch.y)

    def draw_term(self, running: Running, number: int, drawn: Samples, logits: Tensor) -> Tensor:
        """What the draw with this number, from 0, adds to the loss."""
        raise NotImplementedError(f"{type(self).__name__} has {self.draws} draws: it needs a draw_term, which says what they add")

    def gradients(self, running: Running, current: list[Tensor], drawn: list[Tensor] | None) -> list[Tensor]:
        """The gradients that weights move by, in the order of `running.network.parameters`; may write to those that it is given.

        Args:
            current: of the whole loss; where gradients are kept apart, of the term on current data.
            drawn: of the terms on draws; None where they are in `current`, or nothing was drawn.
        """
        if drawn is None:
            return current
        import torch

        torch._foreach_add_(drawn, current)
        return drawn

    def offer(self, running: Running, rows: np.ndarray, logits: Tensor, rng: np.random.Generator) -> None:
        """Put what is wanted of a batch into the buffer, in place: by reservoir sampling. `rows`: of the task's data; `logits`: theirs."""
        buffer, data = running.memory.buffer, running.data
        if buffer.capacity:
            rehearsal.offer_(buffer, data.x[rows], data.y[rows], logits.numpy(), rng=rng)

    def settle(self, running: Running) -> None:
        """Behind the last step, let the network be the model that the device goes on with, and sends: as it is, if nothing is done."""

    def end_session(self, running: Running) -> Arrays:
        """The arrays to keep, none of them a view of what the network or the buffer holds; `running.network` has been trained."""
        return running.memory.arrays

    # -- at a test

    def scorer(self, network: Network, memory: Memory | None, received: Arrays) -> Callable[[Tensor], Tensor]:
        """What says of which class an image is: normalised images [B, C, H, W] -> [B, classes], of which the largest counts; -inf: none.

        Args:
            network: in evaluation mode, loaded with the model that is tested.
            memory: what the device keeps whose model that is; None: it is nobody's own.
            received: what the server keeps for the method (`SendsArrays`), where it `scores`; empty otherwise, and on a single device.
        """
        return network.model

    # -- what it costs

    def buffer_capacity(self, stream_samples: int) -> int:
        """Samples that the buffer of a device holds whose stream has `stream_samples`."""
        if not self.draws:
            return 0
        return self.config.buffer_size or math.ceil(self.config.buffer_share * stream_samples - 1e-9)

    def least_buffer(self, classes: int) -> int:
        """Samples that the buffer of a device alone must have room for, which meets so many classes."""
        return 0

    def held_by_twin(self, buffer: Buffer, offered: int) -> int:
        """Samples that the dense twin's buffer would hold, had it been offered `offered`."""
        return min(buffer.capacity, offered)

    def step_passes(self, current: Count, drawn: Count, arrays: Arrays | None = None) -> Passes:
        """Samples that go through a network in a step, or in many.

        Args:
            current: samples of the batch, or of all batches.
            drawn: samples of one draw beside it, or of one draw beside each of them; 0 while nothing is replayed.
            arrays: what the device keeps; None: not known, so count the most that there can be.
        """
        has_teacher = arrays is None or bool(arrays)
        return Passes(current, self.draws * drawn, self.teachers * current * has_teacher)

    def step_flops(self, weights: Count, drawn: Count, arrays: Arrays | None = None) -> Count:
        """FLOPs that terms and gradients of a step, or of many, take beside passes.

        Args:
            weights: that the network holds, times the steps.
            drawn, arrays: as in `step_passes`.
        """
        return 0 * weights

    def paper_passes(self, passes: Passes) -> Count:
        """Forward passes that published FLOPs count for `passes`: 3 for each sample of current data, 1 for each that is replayed."""
        return 3 * passes.current + passes.replayed

    def forward_passes(self, is_joint: bool) -> int:
        """How often a step calls a network. `is_joint`: draws share the forward pass of current data."""
        return (1 if is_joint else 1 + self.draws) + self.teachers

    def samples_per_forward(self, batch: Count, is_joint: bool) -> Count:
        """The most samples of a forward pass of the network that is trained, beside batches of `batch`."""
        return self.step_passes(batch, batch).trained if is_joint else batch

    def task_passes(self, samples: int, buffered: int, weights: int) -> Passes:
        """The most that `begin_task` and `end_task` together count.

        Args:
            samples: in a task.
            buffered: samples in the buffer.
            weights: of the dense network; there are fewer features than that.
        """
        return Passes()

    def session_passes(self, samples: Count) -> Passes:
        """What `prepare` and `end_session` compute, with `samples` in the task; those that go through `Running.freeze` among them."""
        return Passes()

    def upload_passes(self, samples: Count, buffered: Count) -> Passes:
        """The same of `upload`, in a federation; `buffered`: samples in the buffer."""
        return Passes()

    def session_flops(self, weights: Count, arrays: Arrays | None = None) -> Count:
        """FLOPs that `prepare` and `end_session` take beside passes; arguments as in `step_flops`."""
        return 0 * weights

    def kept_samples(self, samples: Count) -> Count:
        """Of a task with `samples`, those that the device keeps beyond the task; the buffer has its own."""
        return samples if self.keeps_data else 0 * samples

    def arrays_bytes(self, model: Held, active: dict[str, int], *, buffered: Count, classes: int) -> Count:
        """The most that its arrays take on a device with `active` weights in each sparse tensor of the model, and `buffered` samples."""
        return 0
