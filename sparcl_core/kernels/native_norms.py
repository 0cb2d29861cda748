"""Normalisation and pooling in C, under Python names: as `native`, which has the layers with connections, and the checks for both."""

import ctypes
import math

import torch
from torch import Tensor

from sparcl_core.kernels.native import buffer, check, deal, library, optional, plane


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance, each [channels], of x [channels, rows, columns, batch]."""
    at, channels = plane("x", x), len(x)
    mean, variance = x.new_empty(channels), x.new_empty(channels)
    _over(channels, "sparcl_moments", at, ctypes.c_int64(x[0].numel()), mean.data_ptr(), variance.data_ptr())
    return mean, variance


def affine(x: Tensor, scale: Tensor, shift: Tensor, other: Tensor | None, is_active: bool) -> Tensor:
    """scale * x + shift (+ other), clipped at zero if `is_active`. x, other: [channels, rows, columns, batch]; scale, shift: [channels]."""
    at, channels = plane("x", x), len(x)
    numbers = check("scale", scale, (channels,)), check("shift", shift, (channels,))
    out, floats = torch.empty_like(x), ctypes.c_int64(x[0].numel())
    added = optional("other", other, x.shape)
    _over(channels, "sparcl_affine", at, *numbers, added, ctypes.c_int32(is_active), out.data_ptr(), floats)
    return out


def norm_backward(
    grad: Tensor,
    x: Tensor,
    out: Tensor | None,
    numbers: tuple[Tensor, Tensor, Tensor, Tensor],
    is_active: bool,
    into: Tensor,
    other: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Backward pass of a batch normalisation with ReLU, see `sparcl_norm_backward` in sparse.c; returns gradients of gamma and beta.

    Args:
        numbers: scale, shift, mean and 1 / deviation, each [channels].
        into: gets the gradient of x; may be `grad`.
        other: gets the gradient of the addend, or None.
    """
    at, channels = plane("x", x), len(x)
    tensors = [check("grad", grad, x.shape), at, optional("out", out, x.shape)]
    names = ("scale", "shift", "mean", "inverse")
    tensors += [check(name, number, (channels,)) for name, number in zip(names, numbers, strict=True)]
    gamma, beta, floats = x.new_empty(channels), x.new_empty(channels), ctypes.c_int64(x[0].numel())
    results = check("into", into, x.shape), optional("other", other, x.shape), gamma.data_ptr(), beta.data_ptr()
    _over(channels, "sparcl_norm_backward", *tensors, ctypes.c_int32(is_active), *results, floats)
    return gamma, beta


def group_norm(x: Tensor, groups: int, gamma: Tensor, beta: Tensor, epsilon: float, is_active: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Normalised x [channels, rows, columns, batch], clipped at zero if `is_active`; mean and 1 / deviation, each [groups, batch].

    `groups` divides the channels. `epsilon`: finite, at least 0.
    """
    at, (channels, rows, columns, batch) = plane("x", x), x.shape
    _check_groups(groups, channels)
    if not 0 <= epsilon < math.inf:
        raise ValueError(f"epsilon is {epsilon}: what is added to a variance is finite and not negative")
    numbers = check("gamma", gamma, (channels,)), check("beta", beta, (channels,))
    out, mean, inverse = torch.empty_like(x), x.new_empty(groups, batch), x.new_empty(groups, batch)
    sizes = [ctypes.c_int32(value) for value in (channels, rows, columns, batch)]

    def work(first: int, end: int) -> None:
        front = [ctypes.c_void_p(p) for p in (at, *numbers)]
        results = [out.data_ptr(), mean.data_ptr(), inverse.data_ptr(), buffer("rows", 2 * columns * batch)]
        middle = [ctypes.c_float(epsilon), ctypes.c_int32(is_active), *map(ctypes.c_void_p, results)]
        library().sparcl_group_norm(*front, *middle, *sizes, *map(ctypes.c_int32, (first, end, groups)))

    deal(groups, work)
    return out, mean, inverse


def group_norm_backward(
    grad: Tensor, x: Tensor, gamma: Tensor, beta: Tensor, is_active: bool, mean: Tensor, inverse: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, gamma and beta of `group_norm`."""
    at, (channels, rows, columns, batch), groups = plane("x", x), x.shape, len(mean) if mean.dim() else 0
    _check_groups(groups, channels)
    inputs = check("grad", grad, x.shape), at, check("gamma", gamma, (channels,)), check("beta", beta, (channels,))
    held = check("mean", mean, (groups, batch)), check("inverse", inverse, (groups, batch))
    found = torch.empty_like(x), torch.empty_like(gamma), torch.empty_like(beta)
    sizes = [ctypes.c_int32(value) for value in (channels, rows, columns, batch)]

    def work(first: int, end: int) -> None:
        front = [*map(ctypes.c_void_p, inputs), ctypes.c_int32(is_active), *map(ctypes.c_void_p, held)]
        results = [*(ctypes.c_void_p(tensor.data_ptr()) for tensor in found), ctypes.c_void_p(buffer("rows", 5 * columns * batch))]
        library().sparcl_group_norm_backward(*front, *results, *sizes, *map(ctypes.c_int32, (first, end, groups)))

    deal(groups, work)
    return found


def max_pool(x: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Maximum of size x size windows of x [channels, rows, columns, batch], and which place of its window it is (int8)."""
    at, (channels, rows, columns, batch) = plane("x", x), x.shape
    _check_window(size, rows, columns)
    out = x.new_empty(channels, rows // size, columns // size, batch)
    which = torch.empty_like(out, dtype=torch.int8)
    sizes = [ctypes.c_int32(value) for value in (rows, columns, batch, size)]
    _over(channels, "sparcl_max_pool", at, *sizes, out.data_ptr(), which.data_ptr())
    return out, which


def max_pool_backward(grad: Tensor, which: Tensor, shape: tuple[int, ...], size: int) -> Tensor:
    """Gradient of x of `shape` of `max_pool`."""
    channels, rows, columns, batch = shape
    _check_window(size, rows, columns)
    wanted = (channels, rows // size, columns // size, batch)
    inputs = check("grad", grad, wanted), check("which", which, wanted, torch.int8)
    plane("grad", grad)
    out, sizes = grad.new_empty(shape), [ctypes.c_int32(value) for value in (rows, columns, batch, size)]
    _over(channels, "sparcl_max_pool_backward", *inputs, *sizes, out.data_ptr())
    return out


def _check_groups(groups: int, channels: int) -> None:
    if not isinstance(groups, int) or groups < 1 or channels % groups:
        raise ValueError(f"groups is {groups}: a whole number of at least 1 that divides the {channels} channels")


def _check_window(size: int, rows: int, columns: int) -> None:
    if not isinstance(size, int) or not 1 <= size <= min(rows, columns, 11):
        raise ValueError(f"a window of {size} does not fit into {rows}x{columns} (and 11 is the largest)")


def _over(channels: int, name: str, *arguments) -> None:
    """Call a kernel whose last two arguments are a range of channels; plain integers and None are addresses."""
    given = [value if isinstance(value, ctypes._SimpleCData) else ctypes.c_void_p(value) for value in arguments]
    call = getattr(library(), name)
    deal(channels, lambda first, end: call(*given, ctypes.c_int32(first), ctypes.c_int32(end)))
