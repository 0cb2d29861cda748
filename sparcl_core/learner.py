"""The local training loop: one session of SGD on current data and replay, with the three sparsities at work.

A session is what a device does in one round (or, alone, in one stage): some epochs over the rest of the task's data that
DDR keeps, with fixed weight masks. Gradient masks are drawn at its first step and every `dgm.interval` steps. Plain SGD, no
momentum, no weight decay, as in the paper: so there is no optimiser state to drop with a weight.

Sparse weights are vectors over their active places (`sparcl_core.kernels`), and so are their gradients: no dense one is made. The parts of
the loss run one after the other, each backward before the next forward, where they cannot share a forward pass.

Differences from the released code: replay starts as soon as the buffer holds something (`replay_from` restores the
second task); augmentation draws per sample; NumPy and torch randomness both have addresses.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from sparcl_core.batches import batch_sizes, cut, largest_batch
from sparcl_core.config import REPLAY_DRAWS, MethodConfig
from sparcl_core.costs.flops import Flops, dense_forward, layer_shapes, paper_flops, per_sample, sizes
from sparcl_core.costs.memory import Held
from sparcl_core.inputs import InputSpec, augment, normalise
from sparcl_core.kernels.choice import choices
from sparcl_core.kernels.convert import convert, sparse_layers, trainable
from sparcl_core.models import (
    DTYPES,
    build_model,
    collect_statistics,
    has_batch_statistics,
    load_state_,
    make_layout,
    read_state,
    smallest_batch,
)
from sparcl_core.replay import buffer as rehearsal
from sparcl_core.replay.buffer import Buffer
from sparcl_core.replay.losses import Replay, current_term, draw_term, single_head
from sparcl_core.seeding import generator
from sparcl_core.sparsity import ddr as data_removal
from sparcl_core.sparsity import dgm as gradient_masking
from sparcl_core.sparsity.ddr import DDRState
from sparcl_core.sparsity.importance import combine
from sparcl_core.sparsity.masks import Masks, State, count_active, num_active

SOUND_WEIGHT = 1e3  # trained weights and running statistics stay far below; a model with more was spoilt before it came here


@dataclass(frozen=True)
class TaskData:
    """One task on one device: x [N, C, H, W] uint8, y [N] int64, the classes of the task, its number from 0.

    Raises:
        ValueError: if the arrays are of other kinds or lengths, or there is no sample.
    """

    x: np.ndarray
    y: np.ndarray
    classes: tuple[int, ...]
    task: int

    def __post_init__(self):
        where = f"task {self.task} of this device"
        if self.x.dtype != np.uint8 or self.x.ndim != 4:
            raise ValueError(
                f"{where} has images of {self.x.dtype} {list(self.x.shape)}: [samples, channels, height, width] of uint8 are needed; "
                f"scale other pixels to 0 to 255, and none may be missing or infinite"
            )
        if not np.issubdtype(self.y.dtype, np.integer) or self.y.shape != self.x.shape[:1] or not len(self.y):
            raise ValueError(
                f"{where} has {len(self.x)} images and labels of {self.y.dtype} {list(self.y.shape)}: one integer for each, and one sample"
            )


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
        dropped: current-task samples left out, as they did not fill the last batch of an epoch (`last_batch = "drop"`).
        steps: optimiser steps.
        loss: mean training loss over the steps.
        updated: union of the gradient masks drawn, per sparse tensor; only there can weights have moved.
        importance: I of the last step, as `Learner.importance` gives it; None unless tdm.gradient is `last-step`.
    """

    state: State
    memory: Memory
    flops: Flops
    dense_flops: Flops
    samples: int
    replayed: int
    dropped: int
    steps: int
    loss: float
    updated: Masks
    importance: dict[str, np.ndarray] | None = None


class Learner:
    """Trains one device after another with one reusable model; nothing of a device stays in it between calls.

    Attributes:
        model: the dense model until the first device with masks comes, from then on a sparse one (`kernels.convert`).
        held, layers, layout: of the dense model.
        least: samples that a batch must have, see `models.smallest_batch`.

    Raises:
        ValueError: if `learner.batch_size` is below `least`.
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
        self.least = smallest_batch(self.model, inputs.shape)
        if self.config.batch_size < self.least:
            raise ValueError(
                f"learner.batch_size is {self.config.batch_size}: BatchNorm of {method.model.name} on images of {inputs.shape[1]}x"
                f"{inputs.shape[2]} sees one value per channel of a sample, so a batch needs at least {self.least}; "
                f"take more, or a net without BatchNorm (model.name=cnn)"
            )
        masked = tuple(name for name in self.layout.shapes if name in self.layout.masked)
        self.choices = choices(method.kernels, masked, self.dtype) if masked else {}

    @property
    def classifier(self) -> tuple[str, ...]:
        """The tensors of the last linear layer: their first axis is the class."""
        last = self.layers[-1].name.removesuffix(".weight")
        return tuple(name for name in self.layout.shapes if name in (f"{last}.weight", f"{last}.bias"))

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
            ValueError: if `data` is not for this model, or too little for it.
            FloatingPointError: if the loss of a step, or a weight afterwards, is not finite.
        """
        self._check(data, int(np.count_nonzero(memory.ddr.kept)))
        self._bring(state, masks)
        own = replace(memory, buffer=rehearsal.copy(memory.buffer), ddr=data_removal.copy(memory.ddr))
        run = _Run(self, masks, data, own, device)
        try:
            for _ in range(epochs):
                run.epoch()
            for name, value in self._tensors().items():
                if not value.isfinite().all():
                    raise run.diverged(f"{name} is not finite, the last loss was {run.loss:.4g}")
        except FloatingPointError as error:
            largest = max(float(np.abs(own).max(initial=0)) for own in state.values())
            if largest < SOUND_WEIGHT:
                raise
            blame = f"unless the model that it began with is to blame: its largest value is {largest:.3g}"
            raise FloatingPointError(f"{error}, {blame}") from None
        return run.session(self._read())

    def importance(self, state: State, masks: Masks, data: TaskData, memory: Memory, device: int) -> tuple[dict[str, np.ndarray], Flops]:
        """I per sparse tensor for TDM (float64, the tensor's shape, 0 at inactive places), and what computing it cost.

        Gradients are means over `tdm.batches` batches of the data that DDR keeps (0: all of it), each beside its replay
        draws, taken before the absolute value. Neither the weights nor `memory` change.

        Raises:
            ValueError: as `train`.
            FloatingPointError: if a gradient is not finite.
        """
        self._check(data, int(np.count_nonzero(memory.ddr.kept)))
        self._bring(state, masks)
        address = (device, data.task, memory.epochs)
        kept = np.flatnonzero(memory.ddr.kept)
        order = kept[generator(self.seed, "importance", *address).permutation(kept.size)]
        batches = cut(order, self.batch_sizes(order.size))[: self.tdm.batches or None]
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
        for number, name in enumerate(masks):
            score = combine(self.tdm, current[number], replay[number] if replay else None)
            if not score.isfinite().all():
                raise FloatingPointError(
                    f"training diverged in task {data.task}: gradients of {name} are not finite; lower learner.lr ({self.config.lr:g})"
                )
            scores[name] = self._spread(name, score, np.float64)
        active = count_active(masks)
        cost = per_sample(self.layers, active, active)
        return scores, Flops(importance=(cost.sparse + cost.dense) * samples, masks=3 * sum(active.values()), samples=samples)

    def importance_after(self, done: Session, masks: Masks, data: TaskData, device: int) -> tuple[dict[str, np.ndarray], Flops]:
        """I per sparse tensor behind a session: what it left, or what `importance` computes for it; and what that cost."""
        if done.importance is not None:
            return done.importance, Flops(masks=3 * sum(count_active(masks).values()))
        return self.importance(done.state, masks, data, done.memory, device)

    def loss(self, state: State, masks: Masks, data: TaskData, batches: int) -> tuple[float, Flops]:
        """Mean cross-entropy over all classes of `state` on the first samples of `data`, which lie in random order, and what that cost.

        At most `batches` batches; statistics of BatchNorm are those of the batch, as in training. Nothing changes.

        Raises:
            ValueError: as `train`.
            FloatingPointError: if the loss is not finite.
        """
        self._check(data, len(data.y))
        self._bring(state, masks)
        total, count = 0.0, min(len(data.y), batches * self.config.batch_size)
        with torch.no_grad():
            for own in cut(np.arange(count), batch_sizes(count, self.config.batch_size, self.least)):
                logits = self.model(normalise(torch.from_numpy(data.x[own]), self.inputs, self.dtype))
                total += float(current_term(logits, torch.from_numpy(data.y[own]))) * len(own)
        if not math.isfinite(total):
            raise FloatingPointError(f"the model that came has a loss of {total} on this device's data: it diverged in the rounds before")
        active = count_active(masks)
        return total / count, Flops(statistics=per_sample(self.layers, active, active).forward * count)

    def statistics(self, state: State, masks: Masks, data: TaskData, memory: Memory) -> tuple[State, int, Flops]:
        """BatchNorm statistics of `state` on what DDR keeps of the current data and on the buffer, recomputed in one pass.

        Returns:
            Mean and variance per statistics tensor, averaged over batches; how many samples they rest on; and what that cost.

        Raises:
            ValueError: as `train`.
        """
        self._check(data, int(np.count_nonzero(memory.ddr.kept)) + len(memory.buffer))
        self._bring(state, masks)
        x = np.concatenate([data.x[memory.ddr.kept], memory.buffer.x[: len(memory.buffer)]])
        batches = np.array_split(x, max(1, len(x) // self.config.batch_size))
        collect_statistics(self.model, [normalise(torch.from_numpy(batch), self.inputs, self.dtype) for batch in batches])
        own = {name: value for name, value in self._read().items() if name in self.layout.statistics}
        active = count_active(masks)
        return own, len(x), Flops(statistics=per_sample(self.layers, active, active).forward * len(x))

    def batch_sizes(self, count: int) -> list[int]:
        """Samples of each batch of an epoch over `count` samples."""
        return batch_sizes(count, self.config.batch_size, self.least, self.config.last_batch)

    def samples_per_forward(self, samples: int) -> int:
        """The most samples whose activations are alive at once on a device with `samples` in a task."""
        largest = int(largest_batch(np.int64(samples), self.config.batch_size, self.least, self.config.last_batch))
        return largest * (1 + REPLAY_DRAWS[self.config.method] if self.is_joint else 1)

    def draw_size(self, batch: int, held: int) -> int:
        """Samples that each replay draw beside a batch has, from a buffer that holds `held`; 0 while these are too few for the model."""
        return min(batch, held) if held >= self.least else 0

    def _check(self, data: TaskData, count: int) -> None:
        """`count`: samples of a pass."""
        if data.x.shape[1:] != tuple(self.inputs.shape) or max(data.classes) >= self.inputs.num_classes or min(data.classes) < 0:
            raise ValueError(
                f"the model is for images of {tuple(self.inputs.shape)} in classes 0 to {self.inputs.num_classes - 1}: task {data.task} of "
                f"this device has {tuple(data.x.shape[1:])} and classes {tuple(data.classes)}"
            )
        if not (known := np.isin(data.y, data.classes)).all():
            raise ValueError(f"task {data.task} of this device has label {data.y[~known][0]}, which is none of its classes {data.classes}")
        if 0 < count < self.least:
            raise ValueError(
                f"this device has {count} sample to train on in task {data.task}: BatchNorm on images of this size needs {self.least} at "
                f"once; give it more data, or take a net without BatchNorm (model.name=cnn)"
            )

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

    def _spread(self, name: str, active: Tensor, dtype: type) -> np.ndarray:
        """A sparse tensor of its shape, from what lies at its active places; 0 elsewhere."""
        whole = np.zeros(self.layout.shapes[name], dtype)
        whole.reshape(-1)[self.sparse[name].places.numpy()] = active.numpy()
        return whole

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
        size = self.draw_size(len(indices), len(buffer)) if replays else 0
        return [rehearsal.draw(buffer, size, rng) for _ in range(REPLAY_DRAWS[self.config.method] if size else 0)]

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
        self.gradients: dict[str, Tensor] = {}  # of the last step, where they are wanted
        self.cost = self.full_cost = per_sample(learner.layers, self.active, self.active)
        self.flops, self.dense_flops = Flops(), Flops()
        self.steps = self.samples = self.replayed = self.dropped = 0
        self.total_loss = self.loss = 0.0
        self.names = list(learner._parameters)
        self.parameters = list(learner._parameters.values())
        if not learner.draws_gradient_masks:
            self.union = {name: torch.ones_like(mask) for name, mask in self.union.items()}

    def epoch(self) -> None:
        """One pass over the data that DDR keeps, and the dense twin's counts for the same epoch."""
        learner, size = self.learner, self.learner.config.batch_size
        if data_removal.is_due(self.ddr, learner.ddr, self.epochs_done, learner.task_epochs):
            self.ddr = data_removal.remove(self.ddr, self.data.y, size, learner.ddr, learner.task_epochs, learner.least)
        address = (self.device, self.data.task, self.epochs_done)
        kept = np.flatnonzero(self.ddr.kept)
        order = kept[generator(learner.seed, "batches", *address).permutation(kept.size)]
        step_rng = generator(learner.seed, "step", *address)
        offer_rng = generator(learner.seed, "reservoir", *address)
        sizes = learner.batch_sizes(order.size)
        for batch in cut(order, sizes):
            self.step(batch, step_rng, offer_rng)
        self.dropped += order.size - sum(sizes)
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
                logits, judged = part.logits, part.seen if learner.ddr.judged_by == "seen-classes" else part.logits
                right = judged.argmax(1).numpy() == data.y[indices]
        if not math.isfinite(loss):
            raise self.diverged(f"the loss is {loss}")
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
        if learner.tdm.gradient == "last-step":
            self.gradients = dict(zip(self.names, gradients, strict=True))

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
        self.loss = loss

    def diverged(self, what: str) -> FloatingPointError:
        where = f"task {self.data.task}, local epoch {self.epochs_done}, step {self.steps} of the round"
        return FloatingPointError(f"training diverged in {where}: {what}; lower learner.lr ({self.learner.config.lr:g})")

    def _add_gradients(self, part: "_Part", found: list[Tensor] | None) -> list[Tensor]:
        gradients = list(torch.autograd.grad(part.loss, self.parameters, retain_graph=part.shares_graph))
        if found is not None:
            torch._foreach_add_(gradients, found)
        return gradients

    def session(self, state: State) -> Session:
        memory = Memory(self.buffer, self.ddr, self.epochs_done, self.twin_offered)
        loss, spread = self.total_loss / max(self.steps, 1), self.learner._spread
        updated, importance = {name: spread(name, self.union[name], bool) for name in self.masks}, None
        if self.gradients:
            importance = {name: spread(name, combine(self.learner.tdm, self.gradients[name], None), np.float64) for name in self.masks}
        counts = (self.samples, self.replayed, self.dropped, self.steps)
        return Session(state, memory, self.flops, self.dense_flops, *counts, loss, updated, importance)

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
        for batch in learner.batch_sizes(self.ddr.kept.size):
            held = min(self.buffer.capacity, self.twin_offered) if replays else 0
            replayed = REPLAY_DRAWS[learner.config.method] * learner.draw_size(batch, held)
            self.dense_flops += cost.step(batch + replayed) + Flops(paper=paper_flops(forward, batch, replayed))
            self.twin_offered += batch
