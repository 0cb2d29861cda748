"""The loss of one step, in parts: the current batch, and each draw from the buffer beside it.

Where the parts cannot share a forward pass, a part's runs when it is asked for: go backward before asking for the next. So one at a time is
held in memory.

Single-head masking (the released SparCL code's `use_cl_mask`): the first part sees the logits of the current task's classes only, all
others are -inf. Plain DER++ does not do this; it moves Class-IL accuracy by ten points and more.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sparcl_core.inputs import augment, normalise
from sparcl_core.methods.given import Running, Samples
from sparcl_core.networks.masked import Network
from sparcl_core.training.setup import Setup


class LossPart(NamedTuple):
    """One part of a step's loss.

    Attributes:
        samples: of its forward pass. `is_drawn`: it is of a draw from the buffer.
        shares_graph: a later part goes backward through the same forward pass.
        logits, seen: all logits [B, classes] of current data, and those that its loss sees; None of a draw.
    """

    loss: Tensor
    samples: int
    is_drawn: bool
    shares_graph: bool
    logits: Tensor | None = None
    seen: Tensor | None = None


def single_head(logits: Tensor, task_classes: Tensor) -> Tensor:
    """`logits` [B, classes] with all classes outside `task_classes` [k] set to -inf."""
    masked = torch.full_like(logits, float("-inf"))
    return masked.index_copy(1, task_classes, logits.index_select(1, task_classes))


def draws(setup: Setup, running: Running, batch: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Which samples of the buffer are replayed beside a batch of so many samples, per draw."""
    buffer = running.memory.buffer
    size = setup.draw_size(batch, len(buffer)) if setup.replays_in(running.data.task) else 0
    return setup.method.draw(buffer, size, rng) if size else []


def loss_parts(
    setup: Setup, running: Running, rows: np.ndarray, drawn: list[np.ndarray], *, rng: np.random.Generator
) -> Iterator[LossPart]:
    """The parts of one step's loss, current data first; `rng` serves augmentation.

    Args:
        rows: of the task's data.
        drawn: from `draws`.
    """
    data, buffer, running.rng = running.data, running.memory.buffer, rng
    raw = [data.x[rows], *(buffer.x[draw] for draw in drawn)]
    inputs = [normalise(augment(torch.from_numpy(x), setup.config.augment, rng), setup.inputs, setup.dtype) for x in raw]
    joint = _joint(setup, running.network, inputs) if setup.is_joint else None
    for number in range(len(inputs)):
        x, inputs[number] = inputs[number], None
        features, logits = _forward(setup, running.network, x) if joint is None else joint[number]
        shares = joint is not None and number < len(drawn)
        if number == 0:
            batch = Samples(x, torch.from_numpy(data.y[rows]), rows, None, features)
            yield _current(setup, running, batch, logits=logits, shares=shares)
        else:
            draw = drawn[number - 1]
            samples = Samples(x, torch.from_numpy(buffer.y[draw]), draw, torch.from_numpy(buffer.logits[draw]), features)
            yield LossPart(setup.method.draw_term(running, number - 1, samples, logits), len(draw), True, shares)


def _forward(setup: Setup, network: Network, x: Tensor) -> tuple[Tensor | None, Tensor]:
    """Features, where the method wants them, and logits."""
    return network.features(x) if setup.method.wants_features else (None, network.model(x))


def _joint(setup: Setup, network: Network, inputs: list[Tensor]) -> list[tuple[Tensor | None, Tensor]]:
    """Of each of the inputs, from one forward pass of all."""
    sizes = [len(x) for x in inputs]
    features, logits = _forward(setup, network, torch.cat(inputs))
    parts = logits.split(sizes)
    return list(zip(features.split(sizes) if features is not None else [None] * len(parts), parts, strict=True))


def _current(setup: Setup, running: Running, batch: Samples, *, logits: Tensor, shares: bool) -> LossPart:
    seen = single_head(logits, torch.tensor(running.data.classes)) if setup.config.single_head else logits
    loss = setup.method.current_term(running, batch, logits, seen)
    return LossPart(loss, len(batch.rows), False, shares, logits.detach(), seen.detach())


def joined(parts: Iterable[LossPart]) -> LossPart:
    """All parts of one forward pass as one, whose backward pass is one."""
    first, *others = parts
    loss = first.loss
    if others:
        loss = loss + sum((part.loss for part in others[1:]), others[0].loss)
    return first._replace(loss=loss, shares_graph=False)
