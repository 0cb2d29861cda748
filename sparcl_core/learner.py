"""The local training loop: one session of SGD on current data and replay, with the three sparsities at work.

A session is what a device does in one round (or, alone, in one stage): some epochs over the rest of the task's data that
DDR keeps, with fixed weight masks. Gradient masks are drawn at its first step and every `dgm.interval` steps. Plain SGD, no
momentum, no weight decay, as in the paper: so there is no optimiser state to drop with a weight.

Sparse weights are vectors over their active places (`sparcl_core.kernels`), and so are their gradients: no dense one is made. The parts of
the loss run one after the other, each backward before the next forward, where they cannot share a forward pass.

Differences from the released code: replay starts as soon as the buffer holds something (`replay_from` restores the
second task); augmentation draws per sample; NumPy and torch randomness both have addresses.
"""

from collections.abc import Iterator
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
from sparcl_core.footprint import Held
from sparcl_core.importance import combine
from sparcl_core.inputs import InputSpec, augment, normalise
from sparcl_core.kernels.convert import convert, sparse_layers, trainable
from sparcl_core.losses import REPLAY_DRAWS, Replay, current_term, draw_term, single_head
from sparcl_core.masks import Masks, State, count_active, num_active
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
    """Trains one device after another with one reusable model; nothing of a device stays in it between calls.

    Attributes:
        model: the dense model until the first device with masks comes, from then on a sparse one (`kernels.convert`).
        held, layers, layout: of the dense model.
    """

    def __init__(self, method: MethodConfig, inputs: InputSpec, task_epochs: int, seed: int):
        """`task_epochs`: K, local epochs of a whole task, from which the schedules of DDR derive."""
        self.inputs, self.config, self.tdm, self.ddr, self.dgm = inputs, method.learner, method.tdm, method.ddr, method.dgm
        self.task_epochs, self.seed, self.sparsity = task_epochs, seed, method.sparsity
        self.draws_gradient_masks = method.is_sparse and method.dgm.enabled
        self.gradient_sparsity = gradient_masking.gradient_sparsity(method.dgm, method.sparsity) if self.draws_gradient_masks else 0.0
        self.model = build_model(method.model, inputs.shape, inputs.num_classes)
        self.dtype = DTYPES[method.model.dtype]
        self.layers = layer_shapes(self.model, inputs.shape)
        self.layout = make_layout(self.model, method)
        self.held = Held.of(self.model)
        self.is_joint = self.config.joint_forward and not has_batch_statistics(self.model)
        masked = tuple(name for name in self.layout.shapes if name in self.layout.masked)
        self.choices = method.kernels.choices(masked, self.dtype) if masked else {}

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
        self._bring(state, masks)
        own = replace(memory, buffer=rehearsal.copy(memory.buffer), ddr=data_removal.copy(memory.ddr))
        run = _Run(self, masks, data, own, device)
        for _ in range(epochs):
            run.epoch()
        for name, value in self._tensors().items():
            if not value.isfinite().all():
                largest = max(float(np.abs(own).max(initial=0)) for own in state.values())
                raise FloatingPointError(
                    f"training diverged: {name} is not finite after {run.steps} steps; lower learner.lr ({self.config.lr}), unless the "
                    f"model that training began with is to blame: its largest value is {largest:.3g}"
                )
        return run.session(self._read())

    def importance(self, state: State, masks: Masks, data: TaskData, memory: Memory, device: int) -> tuple[dict[str, np.ndarray], Flops]:
        """I per sparse tensor for TDM (float64, the tensor's shape, 0 at inactive places), and what computing it cost.

        Gradients are means over `tdm.batches` batches of the data that DDR keeps (0: all of it), each beside its replay
        draws, taken before the absolute value. Neither the weights nor `memory` change.
        """
        self._bring(state, masks)
        address = (device, data.task, memory.epochs)
        kept = np.flatnonzero(memory.ddr.kept)
        order = kept[generator(self.seed, "importance", *address).permutation(kept.size)]
        size = self.config.batch_size
        batches = [order[i : i + size] for i in range(0, order.size, size)][: self.tdm.batches or None]
        rng, used = generator(self.seed, "importance-replay", *address), sum(map(len, batches))
        parameters = [self._parameters[name] for name in masks]
        current = [torch.zeros_like(parameter) for parameter in parameters]
        replay: list[Tensor] = []
        samples = 0
        for batch in batches:
            draws = self._draws(batch, memory.buffer, rng, second_task=data.task > 0)
            for part in self._parts(data, batch, memory.buffer, draws, rng):
                gradients = torch.autograd.grad(part.loss, parameters, retain_graph=part.shares_graph)
                if part.is_replay and not replay:
                    replay = [torch.zeros_like(parameter) for parameter in parameters]
                torch._foreach_add_(replay if part.is_replay else current, gradients, alpha=len(batch) / used)
                samples += part.samples
        scores = {}
        for number, (name, mask) in enumerate(masks.items()):
            score = combine(self.tdm, current[number], replay[number] if replay else None)
            scores[name] = np.zeros(mask.shape)
            scores[name].reshape(-1)[self.sparse[name].places.numpy()] = score.numpy()
        active = count_active(masks)
        cost = per_sample(self.layers, active, active)
        return scores, Flops(importance=(cost.sparse + cost.dense) * samples, masks=3 * sum(active.values()), samples=samples)

    def loss(self, state: State, masks: Masks, data: TaskData, batches: int) -> tuple[float, Flops]:
        """Mean cross-entropy over all classes of `state` on the first samples of `data`, which lie in random order, and what that cost.

        At most `batches` batches; statistics of BatchNorm are those of the batch, as in training. Nothing changes.
        """
        self._bring(state, masks)
        size, total, count = self.config.batch_size, 0.0, min(len(data.y), batches * self.config.batch_size)
        with torch.no_grad():
            for begin in range(0, count, size):
                own = slice(begin, min(begin + size, count))
                logits = self.model(normalise(torch.from_numpy(data.x[own]), self.inputs, self.dtype))
                total += float(current_term(logits, torch.from_numpy(data.y[own]))) * (own.stop - own.start)
        active = count_active(masks)
        return total / count, Flops(statistics=per_sample(self.layers, active, active).forward * count)

    def statistics(self, state: State, masks: Masks, data: TaskData, memory: Memory) -> tuple[State, int, Flops]:
        """BatchNorm statistics of `state` on what DDR keeps of the current data and on the buffer, recomputed in one pass.

        Returns:
            Mean and variance per statistics tensor, averaged over batches; how many samples they rest on; and what that cost.
        """
        self._bring(state, masks)
        x = np.concatenate([data.x[memory.ddr.kept], memory.buffer.x[: len(memory.buffer)]])
        batches = np.array_split(x, max(1, len(x) // self.config.batch_size))
        collect_statistics(self.model, [normalise(torch.from_numpy(batch), self.inputs, self.dtype) for batch in batches])
        own = {name: value for name, value in self._read().items() if name in self.layout.statistics}
        active = count_active(masks)
        return own, len(x), Flops(statistics=per_sample(self.layers, active, active).forward * len(x))

    def _bring(self, state: State, masks: Masks) -> None:
        """Let the model be `state` over `masks`, in training mode, every gradient wanted."""
        if not masks:
            self.sparse = {}
        elif not sparse_layers(self.model):
            convert(self.model, masks, {name: self.choices[name] for name in masks})
            self.sparse = sparse_layers(self.model)
        else:
            for name, layer in self.sparse.items():
                layer.set_mask(masks[name])
        self._parameters = trainable(self.model)
        load_state_(self.model, state)
        self.model.train()

    def _tensors(self) -> dict[str, Tensor]:
        """Parameters and floating-point buffers; sparse weights as they are."""
        buffers = {name: value for name, value in self.model.named_buffers() if value.is_floating_point()}
        return {name: parameter.detach() for name, parameter in self._parameters.items()} | buffers

    def _read(self) -> State:
        state = read_state(self.model)
        return {name: state[name] for name in self.layout.shapes}

    def _draws(self, indices: np.ndarray, buffer: Buffer, rng: np.random.Generator, second_task: bool) -> list[np.ndarray]:
        """Which samples of the buffer are replayed beside a batch, per draw."""
        replays = second_task or self.config.replay_from == "first-sample"
        count = REPLAY_DRAWS[self.config.method] if replays and len(buffer) else 0
        return [rehearsal.draw(buffer, len(indices), rng) for _ in range(count)]

    def _parts(
        self, data: TaskData, indices: np.ndarray, buffer: Buffer, draws: list[np.ndarray], rng: np.random.Generator
    ) -> Iterator["_Part"]:
        """The parts of one step's loss, current data first; `rng` serves augmentation.

        Where they cannot share a forward pass, a part's runs when it is asked for: go backward before asking for the next.
        """
        config = self.config
        raw = [data.x[indices], *(buffer.x[draw] for draw in draws)]
        inputs = [normalise(augment(torch.from_numpy(x), config.augment, rng), self.inputs, self.dtype) for x in raw]
        joint = self.model(torch.cat(inputs)).split([len(x) for x in inputs]) if self.is_joint else None
        alpha = config.replay_weight if config.method == "er" else config.alpha
        for number in range(len(inputs)):
            logits = self.model(inputs[number]) if joint is None else joint[number]
            inputs[number] = None
            shares = joint is not None and number < len(draws)
            if number == 0:
                seen = single_head(logits, torch.tensor(data.classes)) if config.single_head else logits
                loss = current_term(seen, torch.from_numpy(data.y[indices]))
                yield _Part(loss, len(indices), False, shares, logits.detach(), seen.detach())
            else:
                draw = draws[number - 1]
                held = Replay(logits, torch.from_numpy(buffer.y[draw]), torch.from_numpy(buffer.logits[draw]))
                yield _Part(draw_term(config.method, number - 1, held, alpha, config.beta), len(draw), True, shares, None, None)


@dataclass(frozen=True)
class _Part:
    """One part of a step's loss.

    Attributes:
        samples: of its forward pass. `is_replay`: it is of a buffer draw.
        shares_graph: a later part goes backward through the same forward pass.
        logits, seen: full and seen logits [B, classes] of current data.
    """

    loss: Tensor
    samples: int
    is_replay: bool
    shares_graph: bool
    logits: Tensor | None
    seen: Tensor | None


def _joined(parts: list[_Part]) -> _Part:
    """All parts of one forward pass as one, whose backward pass is one."""
    first, *others = parts
    loss = first.loss
    if others:
        loss = loss + sum((part.loss for part in others[1:]), others[0].loss)
    return replace(first, loss=loss, shares_graph=False)


class _Run:
    """The moving parts of one session."""

    def __init__(self, learner: Learner, masks: Masks, data: TaskData, memory: Memory, device: int):
        self.learner, self.masks, self.data, self.device = learner, masks, data, device
        self.buffer, self.ddr, self.epochs_done, self.twin_offered = memory.buffer, memory.ddr, memory.epochs, memory.twin_offered
        self.active = count_active(masks)
        self.gradient_sparsity = learner.gradient_sparsity
        usual = sum(num_active(mask.size, learner.sparsity) for mask in masks.values())
        if (held := sum(self.active.values())) < usual:  # a sparser device than the experiment's: as large a share of what it has
            self.gradient_sparsity = 1 - (1 - learner.gradient_sparsity) * held / usual
        self.union = {name: torch.zeros(count, dtype=torch.bool) for name, count in self.active.items()}  # over active places
        self.updated: dict[str, Tensor] = {}  # the gradient masks, likewise
        self.cost = self.full_cost = per_sample(learner.layers, self.active, self.active)
        self.flops, self.dense_flops = Flops(), Flops()
        self.steps = self.samples = self.replayed = 0
        self.total_loss = 0.0
        self.names = list(learner._parameters)
        self.parameters = list(learner._parameters.values())
        if not learner.draws_gradient_masks:
            self.union = {name: torch.ones_like(mask) for name, mask in self.union.items()}

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
        draws = learner._draws(indices, self.buffer, step_rng, second_task=data.task > 0)
        draw_now = learner.draws_gradient_masks and self.steps % learner.dgm.interval == 0
        apart = draw_now and learner.dgm.importance == "two-term"  # both gradients are ranked, so they are kept apart
        if draw_now:
            self._want(None)
        current, gradients, loss, num_replayed = None, None, 0.0, 0
        parts = learner._parts(data, indices, self.buffer, draws, step_rng)
        if learner.is_joint and not apart:
            parts = [_joined(list(parts))]
        for part in parts:
            if part.is_replay and apart and current is None:
                current, gradients = gradients, None
            gradients = self._add_gradients(part, gradients)
            loss += float(part.loss.detach())
            if part.logits is not None:
                logits, right = part.logits, part.seen.argmax(1).numpy() == data.y[indices]
        num_replayed = sum(map(len, draws))
        if draw_now:
            merged = gradients if current is None else current
            self._draw(dict(zip(self.names, merged, strict=True)), dict(zip(self.names, gradients, strict=True)) if current else {})
        if current is not None:
            torch._foreach_add_(gradients, current)
        with torch.no_grad():
            for name, gradient in zip(self.names, gradients, strict=True):
                if name in self.updated:
                    gradient.mul_(self.updated[name])
            torch._foreach_add_(self.parameters, gradients, alpha=-learner.config.lr)

        data_removal.observe_(self.ddr, indices, right)
        if self.buffer.capacity:
            rehearsal.offer_(self.buffer, data.x[indices], data.y[indices], logits.numpy(), offer_rng)
        cost = self.full_cost if draw_now else self.cost
        self.flops += cost.step(len(indices) + num_replayed)
        self.flops += Flops(paper=paper_flops(cost.forward, len(indices), num_replayed))
        self.steps += 1
        self.samples += len(indices)
        self.replayed += num_replayed
        self.total_loss += loss

    def _add_gradients(self, part: "_Part", found: list[Tensor] | None) -> list[Tensor]:
        gradients = list(torch.autograd.grad(part.loss, self.parameters, retain_graph=part.shares_graph))
        if found is not None:
            torch._foreach_add_(gradients, found)
        return gradients

    def session(self, state: State) -> Session:
        memory = Memory(self.buffer, self.ddr, self.epochs_done, self.twin_offered)
        loss, updated = self.total_loss / max(self.steps, 1), {}
        for name, mask in self.masks.items():
            updated[name] = np.zeros(mask.shape, dtype=bool)
            updated[name].reshape(-1)[self.learner.sparse[name].places[self.union[name]].numpy()] = True
        return Session(state, memory, self.flops, self.dense_flops, self.samples, self.replayed, self.steps, loss, updated)

    def _want(self, masks: dict[str, Tensor] | None) -> None:
        """Which weight gradients are computed from now on: those of `masks`, or all."""
        for name, layer in self.learner.sparse.items():
            layer.set_updated(None if masks is None else masks[name].nonzero().squeeze(1).numpy())

    def _draw(self, current: dict[str, Tensor], replay: dict[str, Tensor]) -> None:
        """Draw new gradient masks from the gradients of the two parts (or of the whole loss, `replay` empty)."""
        learner = self.learner
        self.updated = {
            name: gradient_masking.draw(
                combine(learner.dgm, current[name], replay.get(name)), self.masks[name].size, self.gradient_sparsity
            )
            for name in self.masks
        }
        self._want(self.updated)
        for name, mask in self.updated.items():
            self.union[name] |= mask
        self.flops += Flops(masks=sum(self.active.values()))
        self.cost = per_sample(learner.layers, self.active, {name: int(mask.sum()) for name, mask in self.updated.items()})

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
            self.dense_flops += cost.step(batch + replayed) + Flops(paper=paper_flops(forward, batch, replayed))
            self.twin_offered += batch
            left -= batch
