"""Training FLOPs, counted from shapes and exact mask counts. 1 multiply-accumulate (MAC) = 2 FLOPs.

For a layer with A dense MACs per sample, k of its n weights active and g of them in the gradient mask:
- forward 2 A k/n; gradient of the input the same (none for the first layer); gradient of the weights 2 A g/n;
- a step that re-draws the gradient mask computes the weight gradient at all active weights, 2 A k/n;
- for every sample of current data and of every replay draw.
Convolutions and linear layers are counted, as torch.utils.flop_counter does (padding included), and so are products outside of them
(`Products`: attention's of tokens with tokens); normalisation, ReLU, softmax and pooling are not. Dense `exact` counts equal
torch.utils.flop_counter on the same step, but for what that has too many of convolutions in groups (see `.products`).

The `paper` convention re-derives the published column: 3 x forward for current data, replay draws count their forward only,
nothing else.

How many samples go through a network is its learning method's to say (`Passes`); what a pass costs is worked out here.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sparcl_core.costs.products import count_products, products
from sparcl_core.probe import look_through
from sparcl_core.sparsity.masks import Masks

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class LayerShape:
    """A counted layer: parameter name, number of weights, weight uses per sample (A = weights * uses); is it the first, so that no gradient
    of its input is needed?"""

    name: str
    weights: int
    uses: int
    first: bool

    @property
    def macs(self) -> int:
        return self.weights * self.uses


@dataclass(frozen=True)
class Products:
    """All products of a sample that no counted layer computes, which no mask makes fewer: FLOPs of the forward and the backward pass."""

    forward: int
    backward: int


Layers = tuple[LayerShape | Products, ...]  # in the order of a forward pass; products, where there are any, stand first


@dataclass(frozen=True)
class Flops:
    """FLOPs by column, and what a cost model wants to know beside them. `train_sparse` + `train_dense` = training in layers that may be
    sparse, and in all others.

    Training is what steps compute: forward and backward passes, and forward passes of a teacher beside them.
    `importance`: gradients computed for a ranking of weights (TDM, RigL, SNIP), counted as whole training passes (an upper bound: those of
    tensors that are never sparse are not needed for it), and those that a method computes where a task begins or ends. `masks`: one
    operation per weight that a ranking looks at.
    `statistics`: forward passes that train nothing: those that recompute BatchNorm statistics, those whose loss tells a change of task, and
    those that a method computes where a task begins or ends.
    `method`: what a learning method computes beside passes, on weights or features: penalties, projections, herding.
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
    method: int = 0

    @property
    def train(self) -> int:
        return self.train_sparse + self.train_dense

    @property
    def columns(self) -> dict[str, int]:
        """What adds up to `total`, by the names that tables have for it: the only list of them."""
        return {
            "train_flops": self.train, "importance_flops": self.importance, "mask_flops": self.masks, "statistics_flops": self.statistics,
            "method_flops": self.method,
        }  # fmt: skip

    @property
    def total(self) -> int:
        return sum(self.columns.values())

    def __add__(self, other: "Flops") -> "Flops":
        return Flops(*[mine + its for mine, its in zip(vars(self).values(), vars(other).values(), strict=True)])


Count = int | np.ndarray  # a whole number, or one for each of many devices


@dataclass(frozen=True)
class Counted:
    """FLOPs of a device, and those that its dense twin would have computed meanwhile: no DDR, every weight, the same schedule."""

    flops: Flops = Flops()
    dense_flops: Flops = Flops()

    def __add__(self, other: "Counted") -> "Counted":
        return Counted(self.flops + other.flops, self.dense_flops + other.dense_flops)


@dataclass(frozen=True)
class Passes:
    """Samples that go through a network; they add up, also over the steps of a round.

    Attributes:
        current: of the task's own data, forward and backward.
        replayed: besides, forward and backward.
        taught: forward only, through a network that is not trained.
        flops: what is computed beside passes, see `Flops.method`.
    """

    current: Count = 0
    replayed: Count = 0
    taught: Count = 0
    flops: Count = 0

    @property
    def trained(self) -> Count:
        """Those that go forward and backward."""
        return self.current + self.replayed

    def __add__(self, other: "Passes") -> "Passes":
        return Passes(*[mine + its for mine, its in zip(vars(self).values(), vars(other).values(), strict=True)])


FLOP_COLUMNS = tuple(Flops().columns)


def layer_shapes(model: "nn.Module", input_shape: tuple[int, ...]) -> Layers:
    """The counted layers in the order in which a forward pass runs them, measured on one sample; one that runs twice is there twice."""
    from torch import nn  # late, as in `look_through`

    names = {module: name for name, module in model.named_modules()}
    layers: list[LayerShape] = []

    def note(module, x, output):
        uses = output[0, 0].numel() if isinstance(module, nn.Conv2d) else output[0].numel() // module.out_features
        layers.append(LayerShape(names[module] + ".weight", module.weight.numel(), uses, first=not x.requires_grad))

    look_through(model, input_shape, (nn.Conv2d, nn.Linear), note)
    return (*_outside(model, input_shape, tuple(layers)), *layers)


def _outside(model: "nn.Module", input_shape: tuple[int, ...], layers: tuple[LayerShape, ...]) -> tuple[Products, ...]:
    training = model.training
    try:
        model.eval()
        if count_products(model, input_shape) <= len(layers):
            return ()
        forward, backward = products(model, input_shape)
    finally:
        model.train(training)
    own = per_sample(layers, {}, {})
    return (Products(forward - own.forward, backward - (own.whole - own.forward)),)


@dataclass(frozen=True)
class SampleFlops:
    """FLOPs of one sample: `sparse` and `dense` of a forward and backward pass, in layers that may be sparse and in all others.

    `forward`: of a forward pass; `forward_sparse`: of that in layers that may be sparse.
    """

    sparse: int
    dense: int
    forward: int
    forward_sparse: int

    @property
    def whole(self) -> int:
        """Forward and backward, all layers."""
        return self.sparse + self.dense

    def step(self, samples: int) -> Flops:
        """One step with `samples`, replay included."""
        return Flops(train_sparse=self.sparse * samples, train_dense=self.dense * samples, samples=samples, steps=1)

    def teach(self, samples: int) -> Flops:
        """Forward passes of a teacher beside a step."""
        return Flops(train_sparse=self.forward_sparse * samples, train_dense=(self.forward - self.forward_sparse) * samples)

    def between_tasks(self, passes: Passes) -> Flops:
        """What a method computes where a task begins or ends."""
        return Flops(
            importance=self.whole * passes.trained, statistics=self.forward * passes.taught, samples=passes.trained, method=passes.flops
        )


def per_sample(layers: Layers, active: dict[str, int], updated: dict[str, int]) -> SampleFlops:
    """FLOPs of a forward and backward pass of one sample.

    Args:
        layers: from `layer_shapes`.
        active: active weights k of each sparse tensor; layers not named are dense.
        updated: weights g whose gradient is computed, likewise; of layers that are not named, that of all.
    """
    sparse = dense = forward = forward_sparse = 0
    for layer in layers:
        if isinstance(layer, Products):
            dense += layer.forward + layer.backward
            forward += layer.forward
            continue
        k, g = active.get(layer.name, layer.weights), updated.get(layer.name, layer.weights)
        cost = 2 * layer.uses * (k + (0 if layer.first else k) + g)
        forward += 2 * layer.uses * k
        if layer.name in active:
            sparse += cost
            forward_sparse += 2 * layer.uses * k
        else:
            dense += cost
    return SampleFlops(sparse, dense, forward, forward_sparse)


def dense_forward(layers: Layers) -> int:
    """Forward FLOPs of one sample in the dense network."""
    return per_sample(layers, {}, {}).forward


def sizes(masks: Masks) -> dict[str, int]:
    """Weights per masked tensor: as `active` in `per_sample`, it gives the dense twin with the same split into columns."""
    return {name: int(mask.size) for name, mask in masks.items()}
