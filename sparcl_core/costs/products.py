"""Products of a forward and backward pass that belong to no counted layer: attention's of tokens with tokens, convolutions and matrices of
modules of other classes. torch's own counter finds them (`torch.utils.flop_counter`), and what the layers account for is taken off.

One of its counts is not taken: of the weight gradient of a convolution in groups it has as many times too many as there are groups.
"""

from math import prod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

# how the names of torch's operations begin that multiply matrices
MULTIPLY = ("mm.", "addmm.", "bmm.", "baddbmm.", "convolution.", "_scaled_dot_product")


def count_products(model: "nn.Module", input_shape: tuple[int, ...]) -> int:
    """Operations that multiply matrices in a forward pass. Takes a fraction of what `products` takes, and of what that imports."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Counting(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.count += func.__name__.startswith(MULTIPLY)
            return func(*args, **(kwargs or {}))

    with Counting() as counting:
        _forward(model, input_shape)
    return counting.count


def products(model: "nn.Module", input_shape: tuple[int, ...]) -> tuple[int, int]:
    """FLOPs of all products of one sample, forward and backward. The model must be in evaluation mode.

    Args:
        input_shape: [C, H, W].
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False, custom_mapping={torch.ops.aten.convolution_backward: _convolution_backward}) as counter:
        out = _forward(model, input_shape)
        forward = counter.get_total_flops()
        torch.autograd.grad(out.sum(), [p for p in model.parameters() if p.requires_grad], allow_unused=True)
    return forward, counter.get_total_flops() - forward


def _forward(model: "nn.Module", input_shape: tuple[int, ...]):
    import torch

    with torch.enable_grad():
        return model(torch.zeros(1, *input_shape, dtype=next(model.parameters()).dtype))


def _convolution_backward(grad, x, weight, *rest, out_shape=None) -> int:
    """From shapes: each weight meets each place of the output once, for each gradient that is wanted."""
    _bias, _stride, _padding, _dilation, transposed, *_, wanted = rest
    return 2 * grad[0] * prod(weight) * prod((x if transposed else grad)[2:]) * (wanted[0] + wanted[1])
