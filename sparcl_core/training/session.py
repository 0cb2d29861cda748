"""One session: some local epochs of SGD over what DDR keeps of the task's data, with fixed weight masks.

Gradient masks are drawn at its first step and every `dgm.interval` steps. Sparse weights are vectors over their active places, and so are
their gradients: no dense one is made.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from sparcl_core.batches import cut
from sparcl_core.costs.flops import Flops, Passes
from sparcl_core.methods.given import Arrays, Running
from sparcl_core.replay.memory import Memory
from sparcl_core.seeding import generator
from sparcl_core.sparsity import ddr as data_removal
from sparcl_core.sparsity import dgm as gradient_masking
from sparcl_core.sparsity.importance import combine
from sparcl_core.sparsity.masks import Masks, State, count_active, num_active
from sparcl_core.training import step
from sparcl_core.training.dense_twin import DenseTwin, step_flops
from sparcl_core.training.movable import Movable
from sparcl_core.training.setup import Setup
from sparcl_core.training.step import LossPart


@dataclass(frozen=True, kw_only=True)
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
        updated: union of the gradient masks drawn, per sparse tensor: whose gradients were computed; only there can weights have moved.
        upload: what is sent beside the update, by name.
        frozen: places that the learning method has kept as they were, see `LearningMethod.frozen`.
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
    upload: Arrays
    frozen: Masks
    importance: dict[str, np.ndarray] | None = None


class SessionLoop:
    """The moving parts of one session."""

    def __init__(self, setup: Setup, running: Running, device: int):
        """`running`: from `setup.run`, with a memory that may be written to."""
        self.setup, self.running, self.masks, self.device = setup, running, running.masks, device
        self.active = count_active(self.masks)
        self.gradient_sparsity = _gradient_sparsity(setup, self.masks, self.active)
        self.movable = Movable(setup, running)
        drawn_later = torch.zeros_like if setup.draws_gradient_masks else torch.clone
        self.union = {name: drawn_later(mask) for name, mask in self.movable.every.items()}  # over active places
        self.updated: dict[str, Tensor] = dict(self.movable.free)  # the gradient masks, likewise
        self.last: dict[str, Tensor] = {}  # gradients of the last step, where they are wanted
        self.cost = self.full_cost = self.movable.cost(self.movable.every)
        self.flops, self.twin = Flops(), DenseTwin(setup, running)
        self.steps = self.samples = self.replayed = self.dropped = 0
        self.total_loss = self.loss = 0.0
        self.is_spent = False  # the budget of FLOPs is used up
        self.names, self.parameters = list(setup.network.parameters), list(setup.network.parameters.values())
        self.weights = sum(parameter.numel() for parameter in self.parameters)

    def epoch(self) -> None:
        """One pass over the data that DDR keeps, and the dense twin's counts for the same epoch."""
        setup, memory, data = self.setup, self.running.memory, self.running.data
        if data_removal.is_due(memory.ddr, setup.ddr, memory.epochs, setup.task_epochs):
            size, epochs = setup.config.batch_size, setup.task_epochs
            memory = replace(memory, ddr=data_removal.remove(memory.ddr, data.y, size, setup.ddr, epochs=epochs, least=setup.least))
            self.running.memory = memory
        address = (self.device, data.task, memory.epochs)
        kept = np.flatnonzero(memory.ddr.kept)
        order = kept[generator(setup.seed, "batches", *address).permutation(kept.size)]
        step_rng = generator(setup.seed, "step", *address)
        offer_rng = generator(setup.seed, "reservoir", *address)
        lengths = setup.batch_sizes(order.size)
        for rows in cut(order, lengths):
            if self.steps and not self.fits(len(rows)):
                self.is_spent = True
            if self.is_spent:
                break
            self.step(rows, step_rng, offer_rng)
        self.dropped += order.size - sum(lengths)
        self.twin.epoch()
        self.running.memory = replace(self.running.memory, epochs=memory.epochs + 1)

    def fits(self, batch: int) -> bool:
        """Is there enough of the budget for a step on so many samples?"""
        setup, memory = self.setup, self.running.memory
        if not setup.config.flops_budget:
            return True
        drawn = setup.draw_size(batch, len(memory.buffer)) if setup.replays_in(self.running.data.task) else 0
        draws_masks = setup.draws_gradient_masks and self.steps % setup.dgm.interval == 0
        needs = step_flops(setup, self.full_cost if draws_masks else self.cost, batch, drawn, arrays=memory.arrays, weights=self.weights)
        ranking = sum(self.active.values()) if draws_masks else 0
        return self.flops.total + setup.frozen.flops.total + needs.total + ranking <= setup.config.flops_budget

    def step(self, rows: np.ndarray, step_rng: np.random.Generator, offer_rng: np.random.Generator) -> None:
        """One SGD step on `rows` of the task's data and the replay draws beside it."""
        setup, method, running = self.setup, self.setup.method, self.running
        drawn = step.draws(setup, running, len(rows), step_rng)
        draws_masks = setup.draws_gradient_masks and self.steps % setup.dgm.interval == 0
        ranks_both = draws_masks and setup.dgm.importance == "two-term"
        if draws_masks:
            self.movable.want_all()
        parts = step.loss_parts(setup, running, rows, drawn, rng=step_rng)
        current, of_draws, logits, right = self._backward(parts, rows, apart=ranks_both or method.apart)
        if ranks_both:
            self._draw_masks(current, of_draws)
            if of_draws and not method.apart:
                current, of_draws = _add(of_draws, current), None
        gradients = setup.correction.gradients(running, method.gradients(running, current, of_draws))
        if draws_masks and not ranks_both:
            self._draw_masks(gradients, None)
        self._move(gradients)
        data_removal.observe_(running.memory.ddr, rows, right)
        method.offer(running, rows, logits, offer_rng)
        cost, replayed = self.full_cost if draws_masks else self.cost, sum(map(len, drawn))
        self.flops += cost.step(len(rows) + replayed)
        corrected = setup.correction.step_flops(self.weights)
        self.flops += Flops(method=method.step_flops(self.weights, replayed, running.memory.arrays) + corrected)
        self.steps = running.steps = self.steps + 1
        self.samples += len(rows)
        self.replayed += replayed
        self.total_loss += self.loss

    def _backward(
        self, parts: Iterable[LossPart], rows: np.ndarray, apart: bool
    ) -> tuple[list[Tensor], list[Tensor] | None, Tensor, np.ndarray]:
        """Gradients of the loss, or of its current term and its draws `apart`; logits of the batch, and which of it the model has right."""
        current, of_draws, loss = None, None, 0.0
        if self.setup.is_joint and not apart:
            parts = [step.joined(parts)]
        for part in parts:
            gradients = self.movable.gradients(part.loss, part.shares_graph)
            if apart and part.is_drawn:
                of_draws = _add(gradients, of_draws)
            else:
                current = _add(gradients, current)
            loss += float(part.loss.detach())
            if not part.is_drawn:
                logits, judged = part.logits, part.seen if self.setup.ddr.judged_by == "seen-classes" else part.logits
                right = judged.argmax(1).numpy() == self.running.data.y[rows]
        if not math.isfinite(loss):
            raise self.diverged(f"the loss is {loss}")
        self.loss = loss
        return current, of_draws, logits, right

    def _draw_masks(self, current: list[Tensor], of_draws: list[Tensor] | None) -> None:
        """Draw new gradient masks from the gradients of the two parts (or of the whole loss, `of_draws` None)."""
        setup, one = self.setup, dict(zip(self.names, current, strict=True))
        other = dict(zip(self.names, of_draws, strict=True)) if of_draws else {}
        drawn = {
            name: gradient_masking.draw(combine(setup.dgm, one[name], other.get(name)), mask.size, self.gradient_sparsity[name])
            for name, mask in self.masks.items()
        }
        self.updated = drawn | {name: drawn[name] & free for name, free in self.movable.free.items()}
        computed = drawn | {name: drawn[name] & wanted for name, wanted in self.movable.wanted.items()}
        setup.network.want_gradients(computed)
        for name, mask in computed.items():
            self.union[name] |= mask
        self.flops += Flops(masks=sum(self.active.values()))
        self.cost = self.movable.cost(computed)

    @torch.no_grad()
    def _move(self, gradients: list[Tensor]) -> None:
        for name, gradient in zip(self.names, gradients, strict=True):
            if name in self.updated:
                gradient.mul_(self.updated[name])
            self.movable.hold_(name, gradient)
        torch._foreach_add_(self.parameters, gradients, alpha=-self.setup.config.lr)
        if self.setup.keeps_last_gradient:
            self.last = dict(zip(self.names, gradients, strict=True))

    def diverged(self, what: str) -> FloatingPointError:
        where = f"task {self.running.data.task}, local epoch {self.running.memory.epochs}, step {self.steps} of the round"
        return FloatingPointError(f"training diverged in {where}: {what}; lower learner.lr ({self.setup.config.lr:g})")

    def result(self) -> Session:
        """What the session leaves; the network is as the last step left it."""
        setup, spread, importance = self.setup, self.setup.network.spread, None
        setup.method.settle(self.running)
        state = setup.network.read()
        arrays = setup.method.end_session(self.running)  # may go through frozen networks, which count it
        corrected, upload = setup.correction.end_session(self.running), setup.auxiliary.upload(self.running)
        if self.last:
            importance = {name: spread(name, combine(setup.tdm, self.last[name], None), np.float64) for name in self.masks}
        paper = self.cost.forward * setup.method.paper_passes(Passes(self.samples, self.replayed, setup.frozen.samples))
        memory = self.running.memory
        between = setup.passes_between(self.running, memory.kept_samples, len(memory.buffer)).flops
        between += setup.method.session_flops(self.weights, memory.arrays) + setup.correction.session_flops(self.weights)
        return Session(
            state=state,
            memory=replace(self.running.memory, twin_offered=self.twin.offered, arrays=arrays, corrected=corrected),
            flops=self.flops + setup.frozen.flops + Flops(paper=paper, method=between),
            dense_flops=self.twin.flops + self.twin.session(),
            samples=self.samples,
            replayed=self.replayed,
            dropped=self.dropped,
            steps=self.steps,
            loss=self.total_loss / max(self.steps, 1),
            updated={name: spread(name, self.union[name], bool) for name in self.masks},
            upload=upload,
            frozen=self.movable.frozen,
            importance=importance,
        )


def _add(gradients: list[Tensor], found: list[Tensor] | None) -> list[Tensor]:
    if found is not None:
        torch._foreach_add_(gradients, found)
    return gradients


def _gradient_sparsity(setup: Setup, masks: Masks, active: dict[str, int]) -> dict[str, float]:
    """q of this session by tensor: where layers differ in density, and on a sparser device than the experiment's, masks keep as large a
    share of what is active."""
    updated = 1 - setup.gradient_sparsity
    if setup.masking.densities != "uniform":
        share = updated / (1 - setup.sparsity)
        return {name: 1 - share * active[name] / mask.size for name, mask in masks.items()}
    usual, held = sum(num_active(mask.size, setup.sparsity) for mask in masks.values()), sum(active.values())
    return dict.fromkeys(masks, setup.gradient_sparsity if held >= usual else 1 - updated * held / usual)
