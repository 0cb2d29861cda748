"""Online EWC, elastic weight consolidation (Kirkpatrick et al. 2017, arXiv:1612.00796; online: Schwarz et al. 2018, arXiv:1805.06370).

    CE(f(x), y) + e_lambda / 2 * sum_i F_i (theta_i - theta*_i)^2

theta*: the weights where the last task ended. F: the diagonal of the Fisher information, of which each task that ends adds its own,

    F <- gamma F + 1/N sum_n (d log p(y_n | x_n) / d theta)^2

over the N samples of the task with their labels (the empirical Fisher information), each gone through forward and backward alone, with the
statistics of BatchNorm that evaluation has. mammoth's e_lambda is half of ours, and it weighs its squares by the mean likelihood besides.

The penalty's gradient is added to that of the loss; the reported loss is without it. A weight that a mask has dropped and grown again
has no past: F is 0 there. A device keeps F and theta*, over the weights that are active where the task ends.
"""

import math
from dataclasses import dataclass, replace

from sparcl_core.config import LearnerConfig, weight_of_a_loss
from sparcl_core.costs.flops import Passes
from sparcl_core.methods.base import LearningMethod
from sparcl_core.methods.given import Border, Running
from sparcl_core.sparsity.packed import pack, unpack

FISHER, THEN = "fisher/", "then/"


@dataclass(frozen=True)
class EWCConfig(LearnerConfig):
    """e_lambda: weight of the penalty, twice mammoth's. gamma: share of the Fisher information that outlives a task."""

    e_lambda: float = 100.0
    gamma: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        weight_of_a_loss("e_lambda", self.e_lambda)
        if not 0 <= self.gamma <= 1:
            raise ValueError(f"gamma is {self.gamma}: the share of the Fisher information that outlives a task, in [0, 1]")


class EWCOnline(LearningMethod):
    name = "ewc_on"
    Config = EWCConfig

    def prepare(self, running: Running):
        """F and theta* as the parameters lie here, or None in the first task."""
        arrays, network = running.memory.arrays, running.network
        if not arrays:
            return None
        shapes = {name: network.layout.shapes[name] for name in network.parameters}
        (fisher, _), (then, _) = (unpack(arrays, shapes, prefix) for prefix in (FISHER, THEN))
        return [(network.gather(name, fisher[name]), network.gather(name, then[name])) for name in network.parameters]

    def gradients(self, running, current, drawn):
        if running.prepared:
            for gradient, parameter, (fisher, then) in zip(current, running.network.parameters.values(), running.prepared, strict=True):
                gradient.add_((parameter.detach() - then).mul_(fisher), alpha=self.config.e_lambda)
        return current

    def end_task(self, border: Border):
        fisher, arrays = _fisher(border, self.config.single_head), border.memory.arrays
        if arrays:
            before, _ = unpack(arrays, {name: value.shape for name, value in fisher.items()}, FISHER)
            for name, value in fisher.items():
                value += self.config.gamma * before[name] * border.masks.get(name, 1)
        then = {name: border.state[name] for name in fisher}
        kept = pack(fisher, border.masks, FISHER) | pack(then, border.masks, THEN)
        count = len(border.data.y)
        weights = sum(parameter.numel() for parameter in border.network.parameters.values())
        return replace(border.memory, arrays=kept), Passes(current=count, flops=3 * count * weights)

    def step_flops(self, weights, drawn, arrays=None):
        """A difference, its product with F, and that, scaled, added to the gradient."""
        return 4 * weights * (arrays is None or bool(arrays))

    def task_passes(self, samples, buffered, weights):
        return Passes(current=samples, flops=3 * samples * weights)

    def arrays_bytes(self, model, active, *, buffered, classes):
        return 2 * model.packed_bytes(active)


def _fisher(border: Border, single_head: bool) -> dict:
    """The mean square of the gradients of log p(y | x) over the samples of the task, in the shapes of the parameters."""
    import numpy as np
    import torch
    import torch.nn.functional as F

    network, data, classes = border.network, border.data, torch.tensor(border.data.classes)
    network.model.eval()
    parameters = list(network.parameters.values())
    squares = [torch.zeros_like(parameter) for parameter in parameters]
    for row in range(len(data.y)):
        logits, label = network.model(network.feed(data.x[[row]])), torch.from_numpy(data.y[[row]])
        if single_head:
            logits, label = logits[:, classes], (classes == label).nonzero()[0]
        for square, gradient in zip(squares, torch.autograd.grad(F.cross_entropy(logits, label), parameters), strict=True):
            square.addcmul_(gradient, gradient, value=1 / len(data.y))
    network.model.train()
    found = {}
    for name, square in zip(network.parameters, squares, strict=True):
        if not math.isfinite(float(square.sum())):
            raise FloatingPointError(f"the Fisher information of {name} is not finite where task {data.task} ends; lower learner.lr")
        found[name] = network.spread(name, square, square.numpy().dtype) if name in network.sparse else np.array(square.numpy())
    return found
