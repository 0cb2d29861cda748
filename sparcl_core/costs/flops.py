"""Training FLOPs, counted from shapes and exact mask counts. 1 multiply-accumulate (MAC) = 2 FLOPs.

For a layer with A dense MACs per sample, k of its n weights active and g of them in the gradient mask:
- forward 2 A k/n; gradient of the input the same (none for the first layer); gradient of the weights 2 A g/n;
- a step that re-draws the gradient mask computes the weight gradient at all active weights, 2 A k/n;
- for every sample of current data and of every replay draw.
Convolutions and linear layers are counted, as torch.utils.flop_counter does (padding included); normalisation, ReLU and
pooling are not. Dense `exact` counts equal torch.utils.flop_counter on the same step.

The `paper` convention re-derives the published column: 3 x forward for current data, replay draws count their forward only,
nothing else.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sparcl_core.sparsity.masks import Masks

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class LayerShape:
    """A counted layer: parameter name, number of weights, weight uses per sample (A = weights * uses), is it the first?"""

    name: str
    weights: int
    uses: int
    first: bool

    @property
    def macs(self) -> int:
        return self.weights * self.uses


@dataclass(frozen=True)
class Flops:
    """FLOPs by column, and what a cost model wants to know beside them. `train_sparse` + `train_dense` = training in layers that may be
    sparse, and in all others.

    `importance`: gradients computed for TDM's ranking, counted as whole training passes at all active weights (an upper
    bound: gradients of dense weights are not needed for it). `masks`: one operation per weight that a ranking looks at.
    `statistics`: forward passes that train nothing: those that recompute BatchNorm statistics, and those whose loss tells a change of task.
    `paper`: the published convention for the same steps; not part of `total`.
    No FLOPs: `samples` that went forward and backward (replay and importance included) and optimiser `steps`.
    """

    train_sparse: int = 0
    train_dense: int = 0
    importance: int = 0
    masks: int = 0
    paper: int = 0
    statistics: int = 0
    samples: int = 0
    steps: int = 0

    @property
    def train(self) -> int:
        return self.train_sparse + self.train_dense

    @property
    def total(self) -> int:
        return self.train + self.importance + self.masks + self.statistics

    def __add__(self, other: "Flops") -> "Flops":
        return Flops(
            self.train_sparse + other.train_sparse,
            self.train_dense + other.train_dense,
            self.importance + other.importance,
            self.masks + other.masks,
            self.paper + other.paper,
            self.statistics + other.statistics,
            self.samples + other.samples,
            self.steps + other.steps,
        )


def layer_shapes(model: "nn.Module", input_shape: tuple[int, ...]) -> tuple[LayerShape, ...]:
    """The counted layers in the order in which a forward pass runs them, measured on one sample."""
    import torch  # late: whoever only adds counts up, a check of settings for one, should not wait for it
    from torch import nn

    names = {module: name for name, module in model.named_modules()}
    layers: list[LayerShape] = []

    def record(module, inputs, output):
        uses = output[0, 0].numel() if isinstance(module, nn.Conv2d) else output[0].numel() // module.out_features
        layers.append(LayerShape(names[module] + ".weight", module.weight.numel(), uses, first=not layers))

    handles = [m.register_forward_hook(record) for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    training = model.training
    try:
        model.eval()
        with torch.no_grad():
            model(torch.zeros(1, *input_shape, dtype=next(model.parameters()).dtype))
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()
    return tuple(layers)


@dataclass(frozen=True)
class StepFlops:
    """FLOPs of one sample in one training step, all weight gradients and those of the gradient mask apart."""

    sparse: int
    dense: int
    forward: int

    def step(self, samples: int) -> Flops:
        """One step with `samples`, replay included."""
        return Flops(train_sparse=self.sparse * samples, train_dense=self.dense * samples, samples=samples, steps=1)


def per_sample(layers: tuple[LayerShape, ...], active: dict[str, int], updated: dict[str, int]) -> StepFlops:
    """FLOPs of a forward and backward pass of one sample.

    Args:
        layers: from `layer_shapes`.
        active: active weights k of each sparse tensor; layers not named are dense.
        updated: weights g whose gradient is computed, likewise.
    """
    sparse = dense = forward = 0
    for layer in layers:
        k, g = active.get(layer.name, layer.weights), updated.get(layer.name, layer.weights)
        cost = 2 * layer.uses * (k + (0 if layer.first else k) + g)
        if layer.name in active:
            sparse += cost
        else:
            dense += cost
        forward += 2 * layer.uses * k
    return StepFlops(sparse, dense, forward)


def paper_flops(forward: int, current: int, replayed: int) -> int:
    """The published convention: 3 x forward for `current` samples, forward only for `replayed` ones."""
    return forward * (3 * current + replayed)


def dense_forward(layers: tuple[LayerShape, ...]) -> int:
    """Forward FLOPs of one sample in the dense network."""
    return 2 * sum(layer.macs for layer in layers)


def sizes(masks: Masks) -> dict[str, int]:
    """Weights per masked tensor: as `active` in `per_sample`, it gives the dense twin with the same split into columns."""
    return {name: int(mask.size) for name, mask in masks.items()}
