"""The local training loop: one session of SGD on current data and replay, with the three sparsities at work.

A session is what a device does in one round (or, alone, in one stage): some epochs over the rest of the task's data that
DDR keeps, with fixed weight masks. Gradient masks are drawn at its first step and every `dgm.interval` steps. Plain SGD, no
momentum, no weight decay, as in the paper: so there is no optimiser state to drop with a weight.

Differences from the released code: replay starts as soon as the buffer holds something (`replay_from` restores the
second task); augmentation draws per sample; NumPy and torch randomness both have addresses.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from sparcl_core import buffer as rehearsal
from sparcl_core import ddr as data_removal
from sparcl_core import dgm as gradient_masking
from sparcl_core.buffer import Buffer
from sparcl_core.ddr import DDRState
from sparcl_core.flops import Flops, dense_forward, layer_shapes, paper_flops, per_sample, sizes
from sparcl_core.importance import combine
from sparcl_core.inputs import InputSpec, augment, normalise
from sparcl_core.losses import REPLAY_DRAWS, Replay, current_term, replay_term, single_head
from sparcl_core.masks import Masks, State, count_active
from sparcl_core.method import MethodConfig, make_layout
from sparcl_core.models import DTYPES, build_model, collect_statistics, has_batch_statistics, load_state_, read_state
from sparcl_core.seeding import generator


@dataclass(frozen=True)
class TaskData:
    """One task on one device: x [N, C, H, W] uint8, y [N] int64, the classes of the task, its number from 0."""

    x: np.ndarray
    y: np.ndarray
    classes: tuple[int, ...]
    task: int


@dataclass(frozen=True)
class Memory:
    """What a device keeps over time, as values.

    Attributes:
        buffer: rehearsal buffer.
        ddr: data removal state of the current task.
        epochs: local epochs done in the current task.
        twin_offered: samples that the dense twin would have offered to its buffer so far (it trains on all data).
    """

    buffer: Buffer
    ddr: DDRState
    epochs: int = 0
    twin_offered: int = 0


@dataclass(frozen=True)
class Session:
    """What a training session leaves behind.

    Attributes:
        state: weights and buffers after training.
        memory: what the device keeps.
        flops: what was computed; `dense_flops`: what the dense twin would have computed, no DDR, same schedule.
        samples: current-task samples processed, replay not counted (n_k). `replayed`: replay samples processed.
        steps: optimiser steps.
        loss: mean training loss over the steps.
        updated: union of the gradient masks drawn, per sparse tensor; only there can weights have moved.
    """

    state: State
    memory: Memory
    flops: Flops
    dense_flops: Flops
    samples: int
    replayed: int
    steps: int
    loss: float
    updated: Masks


class Learner:
    """Trains one device after another with one reusable model; nothing of a device stays in it between calls."""

    def __init__(self, method: MethodConfig, inputs: InputSpec, task_epochs: int, seed: int):
        """`task_epochs`: K, local epochs of a whole task, from which the schedules of DDR derive."""
        self.inputs, self.config, self.tdm, self.ddr, self.dgm = inputs, method.learner, method.tdm, method.ddr, method.dgm
        self.task_epochs, self.seed = task_epochs, seed
        self.draws_gradient_masks = method.is_sparse and method.dgm.enabled
        self.gradient_sparsity = gradient_masking.gradient_sparsity(method.dgm, method.sparsity) if self.draws_gradient_masks else 0.0
        self.model = build_model(method.model, inputs.shape, inputs.num_classes)
        self.dtype = DTYPES[method.model.dtype]
        self.layers = layer_shapes(self.model, inputs.shape)
        self.layout = make_layout(self.model, method)
        self.is_joint = self.config.joint_forward and not has_batch_statistics(self.model)
        self._parameters = dict(self.model.named_parameters())

    def begin_task(self, memory: Memory, num_samples: int) -> Memory:
        """`memory` at the start of a task of `num_samples` samples."""
        return replace(memory, ddr=data_removal.start(num_samples), epochs=0)

    def train(self, state: State, masks: Masks, data: TaskData, memory: Memory, epochs: int, device: int) -> Session:
        """One session of `epochs` local epochs.

        Args:
            state: weights to start from; not changed. Inactive weights must be 0.
            masks: weight masks of the sparse tensors; fixed during the session.
            memory: not changed: a session that is lost can be run again.
            device: the device's number, part of every random address.

        Raises:
            FloatingPointError: if a weight is not finite afterwards.
        """
        load_state_(self.model, state)
        self.model.train()
        own = replace(memory, buffer=rehearsal.copy(memory.buffer), ddr=data_removal.copy(memory.ddr))
        run = _Run(self, masks, data, own, device)
        for _ in range(epochs):
            run.epoch()
        result = read_state(self.model)
        for name, value in result.items():
            if not np.isfinite(value).all():
                raise FloatingPointError(
                    f"training diverged: {name} is not finite after {run.steps} steps; lower learner.lr ({self.config.lr})"
                )
        return run.session(result)

    def importance(self, state: State, masks: Masks, data: TaskData, memory: Memory, device: int) -> tuple[dict[str, np.ndarray], Flops]:
        """I per sparse tensor for TDM (float64, the tensor's shape, 0 at inactive places), and what computing it cost.

        Gradients are means over `tdm.batches` batches of the data that DDR keeps (0: all of it), each beside its replay
        draws, taken before the absolute value. Neither the weights nor `memory` change.
        """
        load_state_(self.model, state)
        self.model.train()
        address = (device, data.task, memory.epochs)
        kept = np.flatnonzero(memory.ddr.kept)
        order = kept[generator(self.seed, "importance", *address).permutation(kept.size)]
        size = self.config.batch_size
        batches = [order[i : i + size] for i in range(0, order.size, size)][: self.tdm.batches or None]
        rng, used = generator(self.seed, "importance-replay", *address), sum(map(len, batches))
        current = {name: torch.zeros_like(self._parameters[name]) for name in masks}
        replay: dict[str, Tensor] = {}
        samples = 0
        for batch in batches:
            parts = self._forward(data, batch, memory.buffer, rng, second_task=data.task > 0)
            share = len(batch) / used
            for name, gradient in zip(masks, self._gradients(parts.current, masks, retain=parts.replay is not None), strict=True):
                current[name] += share * gradient
            if parts.replay is not None:
                for name, gradient in zip(masks, self._gradients(parts.replay, masks), strict=True):
                    replay[name] = replay.get(name, 0) + share * gradient
            samples += parts.samples
        scores = {name: combine(self.tdm, current[name], replay.get(name)).double().numpy() * mask for name, mask in masks.items()}
        active = count_active(masks)
        cost = per_sample(self.layers, active, active)
        return scores, Flops(importance=(cost.sparse + cost.dense) * samples, masks=3 * sum(active.values()))

    def statistics(self, state: State, masks: Masks, data: TaskData, memory: Memory) -> tuple[State, int, Flops]:
        """BatchNorm statistics of `state` on what DDR keeps of the current data and on the buffer, recomputed in one pass.

        Returns:
            Mean and variance per statistics tensor, averaged over batches; how many samples they rest on; and what that cost.
        """
        load_state_(self.model, state)
        x = np.concatenate([data.x[memory.ddr.kept], memory.buffer.x[: len(memory.buffer)]])
        batches = np.array_split(x, max(1, len(x) // self.config.batch_size))
        collect_statistics(self.model, [normalise(torch.from_numpy(batch), self.inputs, self.dtype) for batch in batches])
        own = {name: value for name, value in read_state(self.model).items() if name in self.layout.statistics}
        active = count_active(masks)
        return own, len(x), Flops(statistics=per_sample(self.layers, active, active).forward * len(x))

    def _gradients(self, loss: Tensor, names, retain: bool = False) -> tuple[Tensor, ...]:
        return torch.autograd.grad(loss, [self._parameters[name] for name in names], retain_graph=retain)

    def _forward(self, data: TaskData, indices: np.ndarray, buffer: Buffer, rng: np.random.Generator, second_task: bool) -> "_Parts":
        """Forward passes of one step and both parts of the loss; `rng` serves buffer draws and augmentation."""
        config = self.config
        replays = second_task or config.replay_from == "first-sample"
        draws = [rehearsal.draw(buffer, len(indices), rng) for _ in range(REPLAY_DRAWS[config.method])] if replays and len(buffer) else []
        raw = [data.x[indices], *(buffer.x[draw] for draw in draws)]
        inputs = [normalise(augment(torch.from_numpy(x), config.augment, rng), self.inputs, self.dtype) for x in raw]
        if self.is_joint:
            outputs = self.model(torch.cat(inputs)).split([len(x) for x in inputs])
        else:
            outputs = [self.model(x) for x in inputs]
        seen = single_head(outputs[0], torch.tensor(data.classes)) if config.single_head else outputs[0]
        current = current_term(seen, torch.from_numpy(data.y[indices]))
        replay = None
        if draws:
            held = [
                Replay(z, torch.from_numpy(buffer.y[d]), torch.from_numpy(buffer.logits[d]))
                for z, d in zip(outputs[1:], draws, strict=True)
            ]
            replay = replay_term(config.method, held, config.replay_weight if config.method == "er" else config.alpha, config.beta)
        return _Parts(current, replay, outputs[0], seen, len(indices), sum(map(len, draws)))


@dataclass(frozen=True)
class _Parts:
    """Both parts of the loss of one step, full and seen logits [B, classes] of current data, and sample counts."""

    current: Tensor
    replay: Tensor | None
    logits: Tensor
    seen: Tensor
    num_current: int
    num_replayed: int

    @property
    def samples(self) -> int:
        return self.num_current + self.num_replayed

    @property
    def loss(self) -> Tensor:
        return self.current if self.replay is None else self.current + self.replay


class _Run:
    """The moving parts of one session."""

    def __init__(self, learner: Learner, masks: Masks, data: TaskData, memory: Memory, device: int):
        self.learner, self.masks, self.data, self.device = learner, masks, data, device
        self.buffer, self.ddr, self.epochs_done, self.twin_offered = memory.buffer, memory.ddr, memory.epochs, memory.twin_offered
        self.weight_masks = {name: torch.from_numpy(mask) for name, mask in masks.items()}
        self.gradient_masks = dict(self.weight_masks)
        self.union = {name: torch.zeros_like(mask) for name, mask in self.weight_masks.items()}
        self.active = count_active(masks)
        self.cost = self.full_cost = per_sample(learner.layers, self.active, self.active)
        self.flops, self.dense_flops = Flops(), Flops()
        self.steps = self.samples = self.replayed = 0
        self.total_loss = 0.0
        self.names = list(learner._parameters)
        self.parameters = list(learner._parameters.values())
        if not learner.draws_gradient_masks:
            self._use(self.weight_masks)

    def epoch(self) -> None:
        """One pass over the data that DDR keeps, and the dense twin's counts for the same epoch."""
        learner, size = self.learner, self.learner.config.batch_size
        if data_removal.is_due(self.ddr, learner.ddr, self.epochs_done, learner.task_epochs):
            self.ddr = data_removal.remove(self.ddr, self.data.y, size, learner.ddr, learner.task_epochs)
        address = (self.device, self.data.task, self.epochs_done)
        kept = np.flatnonzero(self.ddr.kept)
        order = kept[generator(learner.seed, "batches", *address).permutation(kept.size)]
        step_rng = generator(learner.seed, "step", *address)
        offer_rng = generator(learner.seed, "reservoir", *address)
        for start in range(0, order.size, size):
            self.step(order[start : start + size], step_rng, offer_rng)
        self.epochs_done += 1
        self._count_twin()

    def step(self, indices: np.ndarray, step_rng: np.random.Generator, offer_rng: np.random.Generator) -> None:
        """One SGD step on `indices` of the task's data and the replay draws beside it."""
        learner, data = self.learner, self.data
        parts = learner._forward(data, indices, self.buffer, step_rng, second_task=data.task > 0)
        draw_now = learner.draws_gradient_masks and self.steps % learner.dgm.interval == 0
        if draw_now and learner.dgm.importance == "two-term" and parts.replay is not None:
            current = learner._gradients(parts.current, self.names, retain=True)
            replay = learner._gradients(parts.replay, self.names)
            self._draw(dict(zip(self.names, current, strict=True)), dict(zip(self.names, replay, strict=True)))
            gradients = [a + b for a, b in zip(current, replay, strict=True)]
        else:
            gradients = learner._gradients(parts.loss, self.names)
            if draw_now:
                self._draw(dict(zip(self.names, gradients, strict=True)), {})
        with torch.no_grad():
            for name, gradient in zip(self.names, gradients, strict=True):
                if name in self.gradient_masks:
                    gradient.mul_(self.gradient_masks[name])
            torch._foreach_add_(self.parameters, list(gradients), alpha=-learner.config.lr)

        right = parts.seen.argmax(1).numpy() == data.y[indices]
        data_removal.observe_(self.ddr, indices, right)
        if self.buffer.capacity:
            rehearsal.offer_(self.buffer, data.x[indices], data.y[indices], parts.logits.detach().numpy(), offer_rng)
        cost = self.full_cost if draw_now else self.cost
        self.flops += cost.times(parts.samples)
        self.flops += Flops(paper=paper_flops(cost.forward, parts.num_current, parts.num_replayed))
        self.steps += 1
        self.samples += parts.num_current
        self.replayed += parts.num_replayed
        self.total_loss += float(parts.loss.detach())

    def session(self, state: State) -> Session:
        memory = Memory(self.buffer, self.ddr, self.epochs_done, self.twin_offered)
        union = {name: mask.numpy() for name, mask in self.union.items()}
        loss = self.total_loss / max(self.steps, 1)
        return Session(state, memory, self.flops, self.dense_flops, self.samples, self.replayed, self.steps, loss, union)

    def _draw(self, current: dict[str, Tensor], replay: dict[str, Tensor]) -> None:
        """Draw new gradient masks from the gradients of the two parts (or of the whole loss, `replay` empty)."""
        learner = self.learner
        self._use(
            {
                name: gradient_masking.draw(combine(learner.dgm, current[name], replay.get(name)), mask, learner.gradient_sparsity)
                for name, mask in self.weight_masks.items()
            }
        )
        self.flops += Flops(masks=sum(self.active.values()))

    def _use(self, gradient_masks: dict[str, Tensor]) -> None:
        self.gradient_masks = gradient_masks
        updated = {name: int(mask.sum()) for name, mask in gradient_masks.items()}
        self.cost = per_sample(self.learner.layers, self.active, updated)
        for name, mask in gradient_masks.items():
            self.union[name] |= mask

    def _count_twin(self) -> None:
        """The dense twin's FLOPs for this epoch: all data, every weight, a buffer that was offered every sample."""
        learner = self.learner
        whole = sizes(self.masks)
        cost, forward = per_sample(learner.layers, whole, whole), dense_forward(learner.layers)
        replays = self.data.task > 0 or learner.config.replay_from == "first-sample"
        left, size = self.ddr.kept.size, learner.config.batch_size
        while left > 0:
            batch = min(size, left)
            held = min(batch, self.buffer.capacity, self.twin_offered) if replays else 0
            replayed = REPLAY_DRAWS[learner.config.method] * held
            self.dense_flops += cost.times(batch + replayed) + Flops(paper=paper_flops(forward, batch, replayed))
            self.twin_offered += batch
            left -= batch
