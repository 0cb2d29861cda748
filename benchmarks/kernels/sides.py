"""The sides of one layer: PyTorch's convolution, ours and SparseProp's, each as a function that goes forward and backward once."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.kernels.settings import KEEP, SEED
from benchmarks.kernels.timing import fastest, in_turn
from sparcl_core.kernels.modules import SparseConv2d
from sparcl_core.kernels.operations import batch_first, batch_last
from sparcl_core.seeding import generator
from sparcl_core.sparsity.dgm import DGMConfig, gradient_sparsity
from sparcl_core.sparsity.masks import num_active, random_mask

LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
Pass = Callable[[], tuple[Tensor, Tensor]]  # gradients of input and weights


@dataclass(frozen=True)
class Layer:
    """A 3x3 convolution with padding 1 on square planes; `count`: how often ResNet-18 has it."""

    channels: int
    outs: int
    size: int
    stride: int
    count: int

    @property
    def name(self) -> str:
        return f"{self.channels}->{self.outs} {self.size}x{self.size}" + (" s2" if self.stride == 2 else "")


def resnet_layers(width: int, image: int) -> list[Layer]:
    """The different layers of the residual stages of ResNet-18."""
    made = [Layer(width, width, image, 1, 4)]
    for _ in range(3):
        made += [Layer(width, 2 * width, image, 2, 1), Layer(2 * width, 2 * width, image // 2, 1, 3)]
        width, image = 2 * width, image // 2
    return made


class Case:
    """A layer with input, gradient of the output and masked weights."""

    def __init__(self, layer: Layer, batch: int, sparsity: float):
        rng = generator(SEED, "benchmark", layer.name)
        shape, out = (layer.outs, layer.channels, 3, 3), -(-layer.size // layer.stride)
        self.layer, self.sparsity = layer, sparsity
        self.mask = random_mask(shape, num_active(int(np.prod(shape)), sparsity), rng)
        self.x = torch.from_numpy(rng.standard_normal((batch, layer.channels, layer.size, layer.size), dtype=np.float32))
        self.grad = torch.from_numpy(rng.standard_normal((batch, layer.outs, out, out), dtype=np.float32))
        scale = np.sqrt(2 / (9 * layer.channels * (1 - sparsity)))
        self.weight = torch.from_numpy((rng.standard_normal(shape) * scale * self.mask).astype(np.float32))
        kept = num_active(self.mask.size, gradient_sparsity(DGMConfig(keep=KEEP), sparsity))
        self.updated = np.sort(rng.permutation(np.count_nonzero(self.mask))[:kept])

    def conv(self, dtype: torch.dtype = torch.float32) -> nn.Conv2d:
        made = nn.Conv2d(self.layer.channels, self.layer.outs, 3, self.layer.stride, 1, bias=False, dtype=dtype)
        made.weight = nn.Parameter(self.weight.to(dtype))
        return made

    def dense(self, layout: str, dtype: torch.dtype = torch.float32) -> Pass:
        """PyTorch's side; all weights have gradients."""
        form = {"memory_format": LAYOUTS[layout]}
        conv, x, grad = self.conv(dtype).to(**form), self.x.to(dtype).contiguous(**form), self.grad.to(dtype).contiguous(**form)
        return _pass(conv, x, grad, conv.weight)

    def ours(self, with_masks: bool) -> Pass:
        """Our side, with or without gradient masks."""
        module = SparseConv2d(self.conv(), self.mask)
        if with_masks:
            module.set_updated(self.updated)
        return _pass(module, batch_first(batch_last(self.x)), batch_first(batch_last(self.grad)), module.values)

    def peer(self, over_columns: bool) -> Pass:
        """SparseProp's side, vectorised over columns or over samples; the latter works batch-last as we do, so it pays for no copy."""
        module = sparseprop()(self.weight, None, 1, self.layer.stride, vectorizing_over_on=over_columns)
        turned = (self.x, self.grad) if over_columns else [batch_first(batch_last(tensor)) for tensor in (self.x, self.grad)]
        return _pass(module, *turned, module.W_val)


def _pass(module: nn.Module, x: Tensor, grad: Tensor, weight: nn.Parameter) -> Pass:
    x = x.detach().requires_grad_()
    return lambda: torch.autograd.grad(module(x), [x, weight], grad)


def faster_layout(layer: Layer, batch: int, repeats: int) -> str:
    """The layout in which PyTorch does this layer faster."""
    case = Case(layer, batch, 0.0)
    return fastest(in_turn({layout: case.dense(layout) for layout in LAYOUTS}, repeats))


def faster_peer(case: Case, repeats: int) -> Pass:
    """SparseProp's faster vectorisation of this layer."""
    sides = {str(over_columns): case.peer(over_columns) for over_columns in (False, True)}
    return sides[fastest(in_turn(sides, repeats))]


@cache
def sparseprop() -> type[nn.Module] | None:
    """SparseProp's convolution, or None where it is not installed."""
    os.environ["OMP_NUM_THREADS"] = "1"  # its OpenMP is another one than PyTorch's, and reads this when it is loaded
    try:
        from sparseprop.modules import SparseConv2d as Peer
    except ImportError:
        return None
    return Peer
