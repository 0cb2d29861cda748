"""The C kernels under Python names: everything is checked before a pointer is taken.

Tensors are batch-last, [channels, rows, columns, samples], float32, contiguous, on the CPU. Work is dealt to torch.get_num_threads()
threads, and no bit depends on how many they are. Scratch memory belongs to a thread and is kept.
"""

import ctypes
import math
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import torch
from torch import Tensor

from sparcl_core.kernels.build import backend
from sparcl_core.kernels.connections import Connections, Lists
from sparcl_core.kernels.geometry import LIMIT, Shape

_scratch = threading.local()


def has_kernels() -> bool:
    """True if this machine has the C kernels."""
    return backend().library is not None


def vector_floats() -> int:
    """Floats per vector register of the C kernels.

    Raises:
        RuntimeError: if this machine has none.
    """
    return _library().sparcl_vector_floats()


def _library() -> ctypes.CDLL:
    found = backend()
    if found.library is None:
        raise RuntimeError(f"there are no sparse kernels here: {found.reason}")
    return found.library


def check(name: str, tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> int:
    """The address of `tensor`'s first element, if it is what the kernels expect.

    Raises:
        TypeError: if it is no dense tensor, of another type or lies elsewhere than on the CPU.
        ValueError: if it has another shape or is not contiguous.
    """
    if not isinstance(tensor, Tensor) or tensor.layout != torch.strided:
        found = tensor.layout if isinstance(tensor, Tensor) else f"a {type(tensor).__name__}"
        raise TypeError(f"{name} is {found}: the kernels take dense tensors")
    if tensor.dtype != dtype or tensor.device.type != "cpu":
        raise TypeError(f"{name} is {tensor.dtype} on {tensor.device}: the kernels take {dtype} on the CPU")
    if tuple(tensor.shape) != tuple(shape):
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}: the layer needs {tuple(shape)}")
    if not tensor.is_contiguous():
        raise ValueError(f"{name} of shape {tuple(shape)} is not contiguous (strides {tensor.stride()}): call .contiguous() first")
    return tensor.data_ptr()


def _plane(name: str, x: Tensor, dtype: torch.dtype = torch.float32) -> int:
    """The address of a tensor [channels, rows, columns, batch] of any sizes that C can count.

    Raises:
        TypeError: as `check`.
        ValueError: as `check`, and if it has other dimensions, holds nothing, or a row of it has 2**31 values or more.
    """
    at = check(name, x, getattr(x, "shape", ()), dtype)
    if x.dim() != 4 or not x.numel():
        raise ValueError(f"{name} has shape {tuple(x.shape)}: the kernels take [channels, rows, columns, samples], at least 1 of each")
    if max(*x.shape, x.shape[2] * x.shape[3]) >= LIMIT:
        raise ValueError(f"{name} has shape {tuple(x.shape)}: the kernels count with 32 bits; take a smaller batch")
    return at


def _optional(name: str, tensor: Tensor | None, shape: tuple[int, ...]) -> int | None:
    return None if tensor is None else check(name, tensor, shape)


def _buffer(name: str, floats: int) -> int:
    """Address of scratch memory of this thread."""
    held = getattr(_scratch, name, None)
    if held is None or held.numel() < floats:
        held = torch.zeros(floats)  # zeros: what lies behind a row is read, though never used
        setattr(_scratch, name, held)
    return held.data_ptr()


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, "sparcl-kernels")


def deal(count: int, work: Callable[[int, int], None]) -> None:
    """Call work(first, last + 1) for parts of `count`, one per thread. ctypes lets go of the interpreter's lock in C."""
    threads = min(torch.get_num_threads(), count)
    if threads <= 1:
        work(0, count)
        return
    ends = [count * i // threads for i in range(threads + 1)]
    for future in [_pool(threads).submit(work, a, b) for a, b in zip(ends, ends[1:], strict=False)]:
        future.result()


def _made_for_us(connections: Connections) -> None:
    """Lists for vectors of another length would have C read behind its buffers."""
    if connections.vector != vector_floats():
        told = f"connections are made for vectors of {connections.vector} floats: the kernels here have {vector_floats()}"
        raise ValueError(f"{told}; make them with native.vector_floats()")


def _gather(lists: Lists, source: int, pre: tuple, weights: Tensor, bias: int | None, accumulate: bool, out: int) -> None:
    part, vector = lists.part, vector_floats()
    struct, values, call = part.struct(), lists.pick(weights.detach()), _library().sparcl_gather
    where = [tensor.data_ptr() for tensor in (lists.order, lists.ptr, lists.off, values)]

    def work(first: int, end: int) -> None:
        scratch = _buffer("packed", part.packed_floats), _buffer("sums", part.tile_floats(vector))
        pointers = [ctypes.c_void_p(p) for p in (source, *pre, *where, bias)]
        tail = [ctypes.c_void_p(p) for p in (out, *scratch)]
        call(ctypes.byref(struct), *pointers, ctypes.c_int32(accumulate), *tail, ctypes.c_int32(first), ctypes.c_int32(end))

    deal(part.units, work)


def forward(
    connections: Connections, shape: Shape, x: Tensor, weights: Tensor, bias: Tensor | None, pre: tuple[Tensor, Tensor] | None = None
) -> Tensor:
    """Output [outs, rows, columns, batch] of a layer.

    Args:
        x: [channels, rows, columns, batch].
        weights: [active weights].
        bias: [outs] or None.
        pre: (scale, shift), each [channels]: the layer sees max(0, scale * x + shift), which is never stored.
    """
    _made_for_us(connections)
    source = check("x", x, (shape.channels, *shape.size, shape.batch))
    check("weights", weights, (connections.count,))
    added = _optional("bias", bias, (shape.outs,))
    out = x.new_empty(shape.outs, *shape.out_size, shape.batch)
    _gather(connections.forward(shape), source, _pre(pre, shape), weights, added, False, out.data_ptr())
    return out


def input_gradient(connections: Connections, shape: Shape, grad: Tensor, weights: Tensor, onto: Tensor | None = None) -> Tensor:
    """Gradient [channels, rows, columns, batch] of the input. `onto`: a tensor of that shape that it is added to, in place."""
    _made_for_us(connections)
    source = check("grad", grad, (shape.outs, *shape.out_size, shape.batch))
    check("weights", weights, (connections.count,))
    parts, is_whole = connections.backward(shape)
    wanted = (shape.channels, *shape.size, shape.batch)
    if onto is None:
        out = grad.new_empty(wanted) if is_whole else grad.new_zeros(wanted)
    else:
        check("onto", onto, wanted)
        out = onto
    for lists in parts:
        _gather(lists, source, (None, None), weights, None, onto is not None, out.data_ptr())
    return out


def weight_gradient(connections: Connections, shape: Shape, x: Tensor, grad: Tensor, pre: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """Gradient [active weights], computed at `connections.updated` and 0 elsewhere. `x`, `pre`: as in `forward`."""
    _made_for_us(connections)
    source = check("x", x, (shape.channels, *shape.size, shape.batch))
    above = check("grad", grad, (shape.outs, *shape.out_size, shape.batch))
    before, part, vector = _pre(pre, shape), connections.forward(shape).part, vector_floats()
    ptr, off = connections.gradient(shape)
    found, struct, call = x.new_empty(off.numel()), part.struct(), _library().sparcl_weight_gradient

    def work(first: int, end: int) -> None:
        scratch = _buffer("packed", part.packed_floats), _buffer("band", part.band_floats(vector))
        where = (source, *before, above, ptr.data_ptr(), off.data_ptr(), found.data_ptr(), *scratch)
        call(ctypes.byref(struct), *[ctypes.c_void_p(p) for p in where], ctypes.c_int32(first), ctypes.c_int32(end))

    deal(shape.outs, work)
    if connections.updated is None:
        return found
    gradient = x.new_zeros(connections.count)
    return gradient.index_copy_(0, torch.from_numpy(connections.updated), found)


def _pre(pre: tuple[Tensor, Tensor] | None, shape: Shape) -> tuple[int | None, int | None]:
    if pre is None:
        return None, None
    scale, shift = pre
    return check("scale", scale, (shape.channels,)), check("shift", shift, (shape.channels,))


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance, each [channels], of x [channels, rows, columns, batch]."""
    at, channels = _plane("x", x), len(x)
    mean, variance = x.new_empty(channels), x.new_empty(channels)
    _over(channels, "sparcl_moments", at, ctypes.c_int64(x[0].numel()), mean.data_ptr(), variance.data_ptr())
    return mean, variance


def affine(x: Tensor, scale: Tensor, shift: Tensor, other: Tensor | None, is_active: bool) -> Tensor:
    """scale * x + shift (+ other), clipped at zero if `is_active`. x, other: [channels, rows, columns, batch]; scale, shift: [channels]."""
    at, channels = _plane("x", x), len(x)
    numbers = check("scale", scale, (channels,)), check("shift", shift, (channels,))
    out, floats = torch.empty_like(x), ctypes.c_int64(x[0].numel())
    added = _optional("other", other, x.shape)
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
    at, channels = _plane("x", x), len(x)
    tensors = [check("grad", grad, x.shape), at, _optional("out", out, x.shape)]
    names = ("scale", "shift", "mean", "inverse")
    tensors += [check(name, number, (channels,)) for name, number in zip(names, numbers, strict=True)]
    gamma, beta, floats = x.new_empty(channels), x.new_empty(channels), ctypes.c_int64(x[0].numel())
    results = check("into", into, x.shape), _optional("other", other, x.shape), gamma.data_ptr(), beta.data_ptr()
    _over(channels, "sparcl_norm_backward", *tensors, ctypes.c_int32(is_active), *results, floats)
    return gamma, beta


def group_norm(x: Tensor, groups: int, gamma: Tensor, beta: Tensor, epsilon: float, is_active: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Normalised x [channels, rows, columns, batch], clipped at zero if `is_active`; mean and 1 / deviation, each [groups, batch].

    `groups` divides the channels. `epsilon`: finite, at least 0.
    """
    at, (channels, rows, columns, batch) = _plane("x", x), x.shape
    _check_groups(groups, channels)
    if not 0 <= epsilon < math.inf:
        raise ValueError(f"epsilon is {epsilon}: what is added to a variance is finite and not negative")
    numbers = check("gamma", gamma, (channels,)), check("beta", beta, (channels,))
    out, mean, inverse = torch.empty_like(x), x.new_empty(groups, batch), x.new_empty(groups, batch)
    sizes = [ctypes.c_int32(value) for value in (channels, rows, columns, batch)]

    def work(first: int, end: int) -> None:
        front = [ctypes.c_void_p(p) for p in (at, *numbers)]
        results = [out.data_ptr(), mean.data_ptr(), inverse.data_ptr(), _buffer("rows", 2 * columns * batch)]
        middle = [ctypes.c_float(epsilon), ctypes.c_int32(is_active), *map(ctypes.c_void_p, results)]
        _library().sparcl_group_norm(*front, *middle, *sizes, *map(ctypes.c_int32, (first, end, groups)))

    deal(groups, work)
    return out, mean, inverse


def group_norm_backward(
    grad: Tensor, x: Tensor, gamma: Tensor, beta: Tensor, is_active: bool, mean: Tensor, inverse: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, gamma and beta of `group_norm`."""
    at, (channels, rows, columns, batch), groups = _plane("x", x), x.shape, len(mean) if mean.dim() else 0
    _check_groups(groups, channels)
    inputs = check("grad", grad, x.shape), at, check("gamma", gamma, (channels,)), check("beta", beta, (channels,))
    held = check("mean", mean, (groups, batch)), check("inverse", inverse, (groups, batch))
    found = torch.empty_like(x), torch.empty_like(gamma), torch.empty_like(beta)
    sizes = [ctypes.c_int32(value) for value in (channels, rows, columns, batch)]

    def work(first: int, end: int) -> None:
        front = [*map(ctypes.c_void_p, inputs), ctypes.c_int32(is_active), *map(ctypes.c_void_p, held)]
        results = [*(ctypes.c_void_p(tensor.data_ptr()) for tensor in found), ctypes.c_void_p(_buffer("rows", 5 * columns * batch))]
        _library().sparcl_group_norm_backward(*front, *results, *sizes, *map(ctypes.c_int32, (first, end, groups)))

    deal(groups, work)
    return found


def max_pool(x: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Maximum of size x size windows of x [channels, rows, columns, batch], and which place of its window it is (int8)."""
    at, (channels, rows, columns, batch) = _plane("x", x), x.shape
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
    _plane("grad", grad)
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
    call = getattr(_library(), name)
    deal(channels, lambda first, end: call(*given, ctypes.c_int32(first), ctypes.c_int32(end)))
