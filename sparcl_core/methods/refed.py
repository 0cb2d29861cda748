"""Re-Fed, replay by importance (Li et al. 2024, "Towards Efficient Replay in Federated Incremental Learning", CVPR, arXiv:2403.05890).

Where a task ends, a device trains a personalised informative model v on the task's data and what it has cached, for s iterations p:

    v <- v - eta (grad CE(v) + q (v - w)),  q = (1 - lambda) / (2 lambda)
    I(x, y) = sum_p 1/p ||grad CE(v_p(x), y)||^2

w: the model that the server has sent. The samples with the largest I, of old and new ones, are cached, and replayed beside the data of the
next task. A small lambda keeps v near the server's model: what counts for all devices; a large one lets it be the device's own.

Differences: an iteration is a pass over all samples in batches, so that every sample has a gradient in each; cached samples are drawn
beside a batch, as ER does, and not joined with the data; BatchNorm has the statistics of w. A gradient of each single sample is computed:
that costs s passes forward and backward, one sample at a time, counted. A device keeps v over its active weights.
"""

from dataclasses import dataclass, replace

import numpy as np

from sparcl_core.batches import cut
from sparcl_core.config import LearnerConfig
from sparcl_core.costs.flops import Passes
from sparcl_core.methods.er import ER
from sparcl_core.methods.given import Border
from sparcl_core.replay.shares import refilled
from sparcl_core.sparsity.packed import pack, unpack

PIM = "pim/"


@dataclass(frozen=True)
class ReFedConfig(LearnerConfig):
    """pim_lambda: lambda, how much the informative model is the device's own. pim_iterations: s, in which importance is measured."""

    pim_lambda: float = 0.5
    pim_iterations: int = 5

    def __post_init__(self):
        super().__post_init__()
        if not 0 < self.pim_lambda <= 1:
            raise ValueError(f"pim_lambda is {self.pim_lambda}: a share in (0, 1]; 1 does not hold the model near the server's")
        if self.pim_iterations < 1:
            raise ValueError(f"pim_iterations is {self.pim_iterations}: at least 1, in which importance is measured")
        if self.lr * self.pull >= 1:
            raise ValueError(
                f"pim_lambda is {self.pim_lambda}: with lr {self.lr:g} a step would go beyond the server's model, to which it pulls; take "
                f"more than {self.lr / (2 + self.lr):.3g}"
            )

    @property
    def pull(self) -> float:
        """q."""
        return (1 - self.pim_lambda) / (2 * self.pim_lambda)


class ReFed(ER):
    name = "refed"
    Config = ReFedConfig
    needs_server = True

    def offer(self, running, rows, logits, rng):
        """Nothing: samples are cached where a task ends."""

    def end_task(self, border: Border):
        memory, buffer, data = border.memory, border.memory.buffer, border.data
        if not buffer.capacity:
            return memory, Passes()
        old = len(buffer)
        x, y = np.concatenate([buffer.x[:old], data.x]), np.concatenate([buffer.y[:old], data.y])
        scores, arrays = self._importance(border, x, y)
        chosen = np.sort(np.argsort(-scores, kind="stable")[: buffer.capacity])
        logits = np.zeros((len(chosen), buffer.logits.shape[1]), buffer.logits.dtype)
        fresh = refilled(buffer, np.zeros(0, np.int64), x=x[chosen], y=y[chosen], logits=logits)
        weights = sum(parameter.numel() for parameter in border.network.parameters.values())
        return replace(memory, buffer=fresh, arrays=arrays), self._passes(len(y), weights)

    def held_by_twin(self, buffer, offered):
        return len(buffer)

    def task_passes(self, samples, buffered, weights):
        return self._passes(samples + buffered, weights)

    def arrays_bytes(self, model, active, *, buffered, classes):
        return model.packed_bytes(active)

    def _importance(self, border: Border, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """I of each sample, float64 [n], and v as it is kept."""
        import torch

        network = border.network
        network.load(_started(border), border.masks)
        network.model.eval()
        served = [network.gather(name, border.state[name]) for name in network.parameters]
        batches = cut(border.rng.permutation(len(y)), _lengths(len(y), self.config.batch_size))
        scores = np.zeros(len(y))
        for number in range(1, self.config.pim_iterations + 1):
            for rows in batches:
                gradients = self._step_gradient(network, x, y, rows=rows, scores=scores, number=number)
                with torch.no_grad():
                    parameters = list(network.parameters.values())
                    torch._foreach_add_(gradients, torch._foreach_sub(parameters, served), alpha=self.config.pull)
                    torch._foreach_add_(parameters, gradients, alpha=-self.config.lr)
        if not np.isfinite(scores).all():
            raise FloatingPointError(f"the informative model of task {border.data.task} diverged; lower learner.lr ({self.config.lr:g})")
        own = network.read()
        return scores, pack({name: own[name] for name in network.parameters}, border.masks, PIM)

    def _step_gradient(self, network, x, y, *, rows, scores, number):
        """Mean gradient of these samples; what each adds to its importance goes to `scores`."""
        import torch
        import torch.nn.functional as F

        parameters = list(network.parameters.values())
        mean = [torch.zeros_like(parameter) for parameter in parameters]
        for row in rows:
            loss = F.cross_entropy(network.model(network.feed(x[row : row + 1])), torch.from_numpy(y[row : row + 1]))
            own = torch.autograd.grad(loss, parameters)
            scores[row] += sum(float((one.double() ** 2).sum()) for one in own) / number
            torch._foreach_add_(mean, own, alpha=1 / len(rows))
        return mean

    def _passes(self, samples: int, weights: int) -> Passes:
        """Two FLOPs a weight for a norm, one for the mean, and four for each step, of which there are fewer than samples."""
        iterations = self.config.pim_iterations
        steps = -(-samples // self.config.batch_size)
        return Passes(current=iterations * samples, flops=iterations * weights * (3 * samples + 4 * steps))


def _lengths(count: int, size: int) -> list[int]:
    return [min(size, count - start) for start in range(0, count, size)]


def _started(border: Border) -> dict[str, np.ndarray]:
    """v as it begins: as it was left, over the masks of now; the server's model where a weight was not there, or v was never made."""
    arrays = border.memory.arrays
    if not arrays:
        return border.state
    shapes = {name: border.network.layout.shapes[name] for name in border.network.parameters}
    own, masks = unpack(arrays, shapes, PIM)
    for name, mask in masks.items():
        own[name] = np.where(mask & border.masks[name], own[name], border.state[name])
    return border.state | own
