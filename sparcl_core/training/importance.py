"""What masks are ranked by: gradients over the data that DDR keeps, without a step. See `Learner.importance` and `Learner.sensitivity`."""

import numpy as np
import torch
from torch import Tensor

from sparcl_core.batches import cut
from sparcl_core.costs.flops import Flops, per_sample, sizes
from sparcl_core.methods.given import Running
from sparcl_core.seeding import generator
from sparcl_core.sparsity import snip
from sparcl_core.sparsity.importance import combine
from sparcl_core.sparsity.masks import State, count_active
from sparcl_core.training import step
from sparcl_core.training.setup import Setup


def importance(setup: Setup, running: Running, device: int) -> tuple[State, Flops]:
    """I of active weights, for TDM."""
    names = list(running.masks)
    current, of_draws, samples = _mean_gradients(setup, running, device, names=names, batches=setup.tdm.batches)
    scores = {}
    for number, name in enumerate(names):
        score = combine(setup.tdm, current[number], of_draws[number] if of_draws else None)
        _expect_finite(setup, running, name, score)
        scores[name] = setup.network.spread(name, score, np.float64)
    passes = setup.cost_at(running.masks).whole * samples + setup.frozen.flops.total
    return scores, Flops(importance=passes, masks=3 * sum(count_active(running.masks).values()), samples=samples)


def gradients(setup: Setup, running: Running, device: int) -> tuple[State, Flops]:
    """|dL/dw| of every weight, for RigL. `running`: on the dense network.

    Counted as what a device computes: forward, and the gradients of inputs, by active weights; the gradients of all weights.
    """
    found, samples = _whole_gradients(setup, running, device, list(running.masks))
    active, whole = count_active(running.masks), sizes(running.masks)
    passes = per_sample(setup.layers, active, whole).whole * samples + setup.frozen.flops.total
    ranked = sum(whole.values()) + sum(active.values())
    return {name: np.abs(one) for name, one in found.items()}, Flops(importance=passes, masks=ranked, samples=samples)


def sensitivity(setup: Setup, running: Running, device: int) -> tuple[State, Flops]:
    """SNIP's of every weight that may be sparse. `running`: on the dense network, of dense weights; all of it is counted so."""
    names = [name for name in setup.layout.shapes if name in setup.layout.masked]
    found, samples = _whole_gradients(setup, running, device, names)
    passes = per_sample(setup.layers, {}, {}).whole * samples + setup.frozen.flops.total
    ranked = 2 * sum(setup.layout.size(name) for name in names)  # a product and a place in the order
    return snip.sensitivity(running.state, found), Flops(importance=passes, masks=ranked, samples=samples)


def _whole_gradients(setup: Setup, running: Running, device: int, names: list[str]) -> tuple[State, int]:
    """Of the whole loss, float64 in the tensors' shapes; and the samples that they took."""
    current, of_draws, samples = _mean_gradients(setup, running, device, names=names, batches=setup.masking.batches)
    found = {}
    for number, name in enumerate(names):
        gradient = current[number] + of_draws[number] if of_draws else current[number]
        _expect_finite(setup, running, name, gradient)
        found[name] = gradient.numpy().astype(np.float64)
    return found, samples


def _mean_gradients(
    setup: Setup, running: Running, device: int, *, names: list[str], batches: int
) -> tuple[list[Tensor], list[Tensor], int]:
    """Of these tensors, of the terms on current data and on draws (empty where nothing was drawn); and the samples they took.

    `batches`: of current data; 0: all of it.
    """
    data, memory = running.data, running.memory
    address = (device, data.task, memory.epochs)
    kept = np.flatnonzero(memory.ddr.kept)
    order = kept[generator(setup.seed, "importance", *address).permutation(kept.size)]
    rows_of = cut(order, setup.batch_sizes(order.size))[: batches or None]
    rng, used = generator(setup.seed, "importance-replay", *address), sum(map(len, rows_of))
    parameters = [running.network.parameters[name] for name in names]
    current = [torch.zeros_like(parameter) for parameter in parameters]
    of_draws: list[Tensor] = []
    samples = 0
    for rows in rows_of:
        drawn = step.draws(setup, running, len(rows), rng)
        for part in step.loss_parts(setup, running, rows, drawn, rng=rng):
            gradients = torch.autograd.grad(part.loss, parameters, retain_graph=part.shares_graph)
            if part.is_drawn and not of_draws:
                of_draws = [torch.zeros_like(parameter) for parameter in parameters]
            torch._foreach_add_(of_draws if part.is_drawn else current, gradients, alpha=len(rows) / used)
            samples += part.samples
    return current, of_draws, samples


def _expect_finite(setup: Setup, running: Running, name: str, gradient: Tensor) -> None:
    if not gradient.isfinite().all():
        raise FloatingPointError(
            f"training diverged in task {running.data.task}: gradients of {name} are not finite; lower learner.lr ({setup.config.lr:g})"
        )
