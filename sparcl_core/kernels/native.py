"""The C kernels under Python names: everything is checked before a pointer is taken.

Tensors are batch-last, [channels, rows, columns, samples], float32, contiguous, on the CPU. Work is dealt to torch.get_num_threads()
threads, and no bit depends on how many they are. Scratch memory belongs to a thread and is kept.
"""

import ctypes
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
    return library().sparcl_vector_floats()


def library() -> ctypes.CDLL:
    """The loaded kernels. Raises RuntimeError if this machine has none."""
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


def plane(name: str, x: Tensor, dtype: torch.dtype = torch.float32) -> int:
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


def optional(name: str, tensor: Tensor | None, shape: tuple[int, ...]) -> int | None:
    """As `check`, of a tensor that need not be there."""
    return None if tensor is None else check(name, tensor, shape)


def buffer(name: str, floats: int) -> int:
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
    struct, values, call = part.struct(), lists.pick(weights.detach()), library().sparcl_gather
    where = [tensor.data_ptr() for tensor in (lists.order, lists.ptr, lists.off, values)]

    def work(first: int, end: int) -> None:
        scratch = buffer("packed", part.packed_floats), buffer("sums", part.tile_floats(vector))
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
    added = optional("bias", bias, (shape.outs,))
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
    found, struct, call = x.new_empty(off.numel()), part.struct(), library().sparcl_weight_gradient

    def work(first: int, end: int) -> None:
        scratch = buffer("packed", part.packed_floats), buffer("band", part.band_floats(vector))
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
