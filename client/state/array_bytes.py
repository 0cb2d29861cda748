"""Arrays as one byte string and back: copied once when written, not at all when read.

    magic "SpD2" | length of the head, uint32 | head, JSON | arrays, one after another

Head and arrays each begin at a multiple of 8 bytes. No checksum: these bytes never leave the machine that keeps the devices.
"""

import json
import math
import struct
from collections.abc import Iterable

import numpy as np

_MAGIC = b"SpD2"
_START = struct.Struct("<4sI")


def write(head: dict, arrays: Iterable[np.ndarray]) -> bytes:
    """`head` (what JSON can say) and `arrays`, which must be C-contiguous; any shapes and plain dtypes.

    Raises:
        ValueError: if an array has a dtype that bytes cannot say: of objects or of fields.
    """
    held = list(arrays)
    for array in held:
        if array.dtype.hasobject or array.dtype.fields:
            raise ValueError(f"an array to save has dtype {array.dtype}: a learning method keeps arrays of numbers")
    described = head | {"arrays": [[array.dtype.str, list(array.shape)] for array in held]}
    text = json.dumps(described, separators=(",", ":")).encode()
    pieces: list = [_START.pack(_MAGIC, len(text)), text, _padding(len(text))]
    for array in held:
        pieces += (array, _padding(array.nbytes)) if array.size else ()
    return b"".join(pieces)


def read(data: bytes) -> tuple[dict, list[np.ndarray]]:
    """The inverse of `write`; the arrays are read-only views of `data`.

    Raises:
        ValueError: if `data` is nothing that this release wrote, or not all of it.
    """
    if data[:4] != _MAGIC:
        raise ValueError(f"a saved device starts with {data[:4]!r}, not {_MAGIC!r}: another release saved it; begin the run anew")
    _expect(data, _START.size)
    (_, length), arrays = _START.unpack_from(data), []
    _expect(data, _START.size + length)
    head = json.loads(data[_START.size : _START.size + length])
    position = _START.size + length + len(_padding(length))
    for dtype, shape in head.pop("arrays"):
        count = math.prod(shape)
        size = count * np.dtype(dtype).itemsize
        _expect(data, position + size)
        arrays.append(np.frombuffer(data, dtype, count, position).reshape(shape))
        position += size + len(_padding(size))
    return head, arrays


def _expect(data: bytes, size: int) -> None:
    if len(data) < size:
        raise ValueError(f"a saved device has {len(data)} bytes where at least {size} must be: it is cut off; begin the run anew")


def _padding(size: int) -> bytes:
    return bytes(-size % 8)
