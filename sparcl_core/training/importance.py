"""Importance for TDM: gradients over the data that DDR keeps, without a step."""

import numpy as np
import torch
from torch import Tensor

from sparcl_core.batches import cut
from sparcl_core.costs.flops import Flops
from sparcl_core.methods.base import Running
from sparcl_core.seeding import generator
from sparcl_core.sparsity.importance import combine
from sparcl_core.sparsity.masks import count_active
from sparcl_core.training import step
from sparcl_core.training.setup import Setup


def importance(setup: Setup, running: Running, device: int) -> tuple[dict[str, np.ndarray], Flops]:
    """See `Learner.importance`."""
    current, of_draws, samples = _mean_gradients(setup, running, device)
    scores = {}
    for number, name in enumerate(running.masks):
        score = combine(setup.tdm, current[number], of_draws[number] if of_draws else None)
        if not score.isfinite().all():
            raise FloatingPointError(
                f"training diverged in task {running.data.task}: gradients of {name} are not finite; lower learner.lr ({setup.config.lr:g})"
            )
        scores[name] = setup.network.spread(name, score, np.float64)
    passes = setup.cost_at(running.masks).whole * samples + setup.frozen.flops.total
    return scores, Flops(importance=passes, masks=3 * sum(count_active(running.masks).values()), samples=samples)


def _mean_gradients(setup: Setup, running: Running, device: int) -> tuple[list[Tensor], list[Tensor], int]:
    """Of every sparse tensor, of the terms on current data and on draws (empty where nothing was drawn); and the samples they took."""
    data, memory = running.data, running.memory
    address = (device, data.task, memory.epochs)
    kept = np.flatnonzero(memory.ddr.kept)
    order = kept[generator(setup.seed, "importance", *address).permutation(kept.size)]
    batches = cut(order, setup.batch_sizes(order.size))[: setup.tdm.batches or None]
    rng, used = generator(setup.seed, "importance-replay", *address), sum(map(len, batches))
    parameters = [setup.network.parameters[name] for name in running.masks]
    current = [torch.zeros_like(parameter) for parameter in parameters]
    of_draws: list[Tensor] = []
    samples = 0
    for rows in batches:
        drawn = step.draws(setup, running, len(rows), rng)
        for part in step.loss_parts(setup, running, rows, drawn, rng=rng):
            gradients = torch.autograd.grad(part.loss, parameters, retain_graph=part.shares_graph)
            if part.is_drawn and not of_draws:
                of_draws = [torch.zeros_like(parameter) for parameter in parameters]
            torch._foreach_add_(of_draws if part.is_drawn else current, gradients, alpha=len(rows) / used)
            samples += part.samples
    return current, of_draws, samples
