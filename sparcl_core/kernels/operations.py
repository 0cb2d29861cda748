"""The kernels as PyTorch operations with gradients, on batch-last tensors [channels, rows, columns, samples].

What backward needs again is computed again where that is cheaper than keeping it: a normalisation with ReLU keeps its input only, and
a convolution behind one (`NormConvolve`) keeps that same input, so their product in between is never stored at all.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd import Function

from sparcl_core.kernels import native, native_norms
from sparcl_core.kernels.connections import Connections
from sparcl_core.kernels.geometry import Shape


@dataclass(frozen=True)
class Layer:
    """What a convolution is beside its weights: connections and, as pairs, stride and padding."""

    connections: Connections
    stride: tuple[int, int]
    pad: tuple[int, int]

    def shape(self, x: Tensor) -> Shape:
        channels, rows, columns, batch = x.shape
        outs, _, *kernel = self.connections.weight_shape
        return Shape(batch, channels, outs, (rows, columns), tuple(kernel), self.stride, self.pad)


def batch_last(x: Tensor) -> Tensor:
    """x [B, C, H, W] or [B, F] as [C, H, W, B] or [F, 1, 1, B]: a view where x lies batch-last already, else a copy.

    Raises:
        ValueError: if x has other dimensions.
    """
    if x.dim() not in (2, 4):
        raise ValueError(f"an input of shape {tuple(x.shape)}: the kernels take [batch, channels, rows, columns] or [batch, features]")
    turned = x.permute(1, 2, 3, 0) if x.dim() == 4 else x.t()[:, None, None]
    return turned.contiguous()


def batch_first(x: Tensor) -> Tensor:
    """The inverse of `batch_last` for four dimensions: always a view. ReLU, sums and flatten of it stay batch-last in memory."""
    return x.permute(3, 0, 1, 2)


class Convolve(Function):
    """x [C, H, W, B] -> [O, H', W', B] for weights [active]."""

    @staticmethod
    def forward(ctx, x: Tensor, weights: Tensor, bias: Tensor | None, layer: Layer) -> Tensor:
        ctx.save_for_backward(x, weights)
        ctx.layer, ctx.has_bias = layer, bias is not None
        return native.forward(layer.connections, layer.shape(x), x, weights, bias)

    @staticmethod
    def backward(ctx, grad: Tensor):
        x, weights = ctx.saved_tensors
        connections, shape, grad = ctx.layer.connections, ctx.layer.shape(x), grad.contiguous()
        grad_weights = native.weight_gradient(connections, shape, x, grad) if ctx.needs_input_grad[1] else None
        grad_x = native.input_gradient(connections, shape, grad, weights) if ctx.needs_input_grad[0] else None
        return grad_x, grad_weights, grad.sum((1, 2, 3)) if ctx.has_bias else None, None


class ForkConvolve(Function):
    """`Convolve` of an x that a shortcut needs, too: the convolution, and x. In backward the gradient of the input is added to the
    shortcut's where that lies, which must be nobody else's: it is the one that `Normalise` makes for its addend."""

    @staticmethod
    def forward(ctx, x: Tensor, weights: Tensor, bias: Tensor | None, layer: Layer) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(x, weights)
        ctx.layer, ctx.has_bias = layer, bias is not None
        return native.forward(layer.connections, layer.shape(x), x, weights, bias), x.view_as(x)

    @staticmethod
    def backward(ctx, grad: Tensor, shortcut: Tensor):
        x, weights = ctx.saved_tensors
        connections, shape, grad = ctx.layer.connections, ctx.layer.shape(x), grad.contiguous()
        grad_weights = native.weight_gradient(connections, shape, x, grad)
        grad_x = native.input_gradient(connections, shape, grad, weights, onto=shortcut.contiguous())
        return grad_x, grad_weights, grad.sum((1, 2, 3)) if ctx.has_bias else None, None


class Pointwise(Function):
    """A dense 1x1 convolution without padding, as a product of matrices: x [C, H, W, B], weight [O, C] -> [O, H', W', B]."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None, stride: tuple[int, int]) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.has_bias = stride, bias is not None
        seen = x[:, :: stride[0], :: stride[1]]
        out = (weight @ seen.reshape(len(x), -1)).view(len(weight), *seen.shape[1:])
        return out if bias is None else out.add_(bias[:, None, None, None])

    @staticmethod
    def backward(ctx, grad: Tensor):
        x, weight = ctx.saved_tensors
        flat, (rows, columns) = grad.reshape(len(weight), -1), ctx.stride
        seen = x[:, ::rows, ::columns]
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = (weight.t() @ flat).view(seen.shape)
            if ctx.stride != (1, 1):
                spread = torch.zeros_like(x)
                spread[:, ::rows, ::columns] = grad_x
                grad_x = spread
        return grad_x, flat @ seen.reshape(len(x), -1).t(), flat.sum(1) if ctx.has_bias else None, None


@dataclass(frozen=True)
class Statistics:
    """Batch statistics of a normalisation, each [channels], and the affine map that it is with them."""

    mean: Tensor
    variance: Tensor
    inverse: Tensor
    scale: Tensor
    shift: Tensor

    @property
    def numbers(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.scale, self.shift, self.mean, self.inverse


def statistics(x: Tensor, gamma: Tensor, beta: Tensor, epsilon: float) -> Statistics:
    """Of x [C, H, W, B]; the variance is the biased one."""
    mean, variance = native_norms.moments(x.detach())
    inverse = torch.rsqrt(variance + epsilon)
    scale = gamma.detach() * inverse
    return Statistics(mean, variance, inverse, scale, beta.detach() - mean * scale)


class Normalise(Function):
    """Batch normalisation by `found` (of x itself), plus `other` if given, clipped at zero if `is_active`."""

    @staticmethod
    def forward(ctx, x: Tensor, gamma: Tensor, beta: Tensor, other: Tensor | None, found: Statistics, is_active: bool) -> Tensor:
        out = native_norms.affine(x, found.scale, found.shift, other, is_active)
        ctx.save_for_backward(x, out if other is not None and is_active else None)
        ctx.found, ctx.is_active, ctx.has_other = found, is_active, other is not None
        return out

    @staticmethod
    def backward(ctx, grad: Tensor):
        x, out = ctx.saved_tensors
        grad = grad.contiguous()
        into, other = torch.empty_like(x), torch.empty_like(x) if ctx.has_other and ctx.is_active else None
        gamma, beta = native_norms.norm_backward(grad, x, out, ctx.found.numbers, ctx.is_active, into, other)
        return into, gamma, beta, (grad if other is None else other) if ctx.has_other else None, None, None


class NormConvolve(Function):
    """Convolution of max(0, norm(x)), by statistics `found` of x; what lies in between is not stored."""

    @staticmethod
    def forward(
        ctx, x: Tensor, gamma: Tensor, beta: Tensor, weights: Tensor, bias: Tensor | None, found: Statistics, layer: Layer
    ) -> Tensor:
        ctx.save_for_backward(x, weights)
        ctx.layer, ctx.found, ctx.has_bias = layer, found, bias is not None
        return native.forward(layer.connections, layer.shape(x), x, weights, bias, (found.scale, found.shift))

    @staticmethod
    def backward(ctx, grad: Tensor):
        x, weights = ctx.saved_tensors
        connections, shape, grad, found = ctx.layer.connections, ctx.layer.shape(x), grad.contiguous(), ctx.found
        grad_weights = native.weight_gradient(connections, shape, x, grad, (found.scale, found.shift))
        inner = native.input_gradient(connections, shape, grad, weights)
        gamma, beta = native_norms.norm_backward(inner, x, None, found.numbers, True, inner, None)
        return inner, gamma, beta, grad_weights, grad.sum((1, 2, 3)) if ctx.has_bias else None, None, None


class GroupNormalise(Function):
    """Group normalisation, clipped at zero if `is_active`; keeps its input and a mean and deviation per group and sample."""

    @staticmethod
    def forward(ctx, x: Tensor, gamma: Tensor, beta: Tensor, groups: int, epsilon: float, is_active: bool) -> Tensor:
        out, mean, inverse = native_norms.group_norm(x, groups, gamma.detach(), beta.detach(), epsilon, is_active)
        ctx.save_for_backward(x, gamma, beta)
        ctx.numbers, ctx.is_active = (mean, inverse), is_active
        return out

    @staticmethod
    def backward(ctx, grad: Tensor):
        x, gamma, beta = ctx.saved_tensors
        found = native_norms.group_norm_backward(grad.contiguous(), x, gamma.detach(), beta.detach(), ctx.is_active, *ctx.numbers)
        return *found, None, None, None


class MaxPool(Function):
    """Maximum of size x size windows that do not overlap; what is left at the far edges is dropped."""

    @staticmethod
    def forward(ctx, x: Tensor, size: int) -> Tensor:
        out, which = native_norms.max_pool(x, size)
        ctx.save_for_backward(which)
        ctx.shape, ctx.size = x.shape, size
        return out

    @staticmethod
    def backward(ctx, grad: Tensor):
        return native_norms.max_pool_backward(grad.contiguous(), *ctx.saved_tensors, tuple(ctx.shape), ctx.size), None


def supported(conv: nn.Conv2d) -> tuple[tuple[int, int], tuple[int, int]]:
    """Stride and padding of a convolution that the kernels can do.

    Raises:
        ValueError: for groups, dilation, or another padding than zeros of a given number.
    """
    if conv.groups != 1 or tuple(conv.dilation) != (1, 1) or conv.padding_mode != "zeros" or isinstance(conv.padding, str):
        raise ValueError(f"{conv}: the kernels do convolutions with groups=1, dilation=1 and a number of zeros as padding")
    return tuple(conv.stride), tuple(conv.padding)


def can_do(layer: nn.Module) -> bool:
    """Can the kernels do this convolution or linear layer?"""
    if isinstance(layer, nn.Linear):
        return True
    try:
        supported(layer)
    except ValueError:
        return False
    return True
