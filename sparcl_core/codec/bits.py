"""Bits and small integers <-> bytes, vectorised; the reader that never goes beyond its end."""

import numpy as np

from sparcl_core.codec.layout import CodecError

_CHUNK = 1 << 15  # numbers at a time: 64-bit temporaries stay small, and in the cache


def pack(values: np.ndarray, width: int) -> bytes:
    """`values` [n], 0 <= v < 2^width, as width bits each (1 to 8), most significant first, padded to whole bytes."""
    if width == 8:
        return values.astype(np.uint8).tobytes()
    if width == 1:
        return np.packbits(values.astype(bool)).tobytes()
    planes = np.empty((values.size, width), dtype=np.uint8)
    for bit in range(width):
        planes[:, bit] = (values >> (width - 1 - bit)) & 1
    return np.packbits(planes).tobytes()


def unpack(data: bytes, count: int, width: int) -> np.ndarray:
    """The inverse of `pack`, width 1 to 8: uint8 [count]; `data` has at least `packed_size(count, width)` bytes."""
    if width == 8:
        return np.frombuffer(data, dtype=np.uint8, count=count)
    planes = np.unpackbits(np.frombuffer(data, dtype=np.uint8), count=count * width).reshape(count, width)
    values = planes[:, 0].copy()
    for bit in range(1, width):
        values <<= 1
        values |= planes[:, bit]
    return values


def packed_size(count: int, width: int) -> int:
    """Bytes of `count` values of `width` bits."""
    return (count * width + 7) // 8


def pack_ragged(values: np.ndarray, widths: np.ndarray) -> bytes:
    """`values` [n] as `widths` [n] bits each, at most 32, one behind the other; every v < 2^width.

    A value lies within a window of 64 bits that begins at a multiple of 32. Values share no bit, so a sum puts together those of a window.
    """
    if not values.size:
        return b""
    ends = np.cumsum(widths)
    starts = ends - widths
    index = starts >> 5
    windows = values.astype(np.uint64) << (64 - (starts & 31) - widths).astype(np.uint64)
    first = np.flatnonzero(np.diff(index, prepend=-1))
    windows, index = np.add.reduceat(windows, first), index[first]
    words = np.zeros(int(index[-1]) + 2, dtype=np.uint64)
    words[index] = windows >> 32
    words[index + 1] += windows & 0xFFFFFFFF
    return words.astype(">u4").tobytes()[: packed_size(int(ends[-1]), 1)]


def unpack_ragged(data: bytes, widths: np.ndarray) -> np.ndarray:
    """The inverse of `pack_ragged`, uint32; `data` has at least the bits that the widths add up to."""
    words = np.frombuffer(data + bytes(-len(data) % 4 + 8), dtype=">u4").astype(np.uint64)  # behind the last: what a window may touch
    values, position = np.empty(widths.size, dtype=np.uint32), 0
    for begin in range(0, widths.size, _CHUNK):
        own = widths[begin : begin + _CHUNK]
        ends = np.cumsum(own, dtype=np.int64) + position
        position, starts = int(ends[-1]), ends - own
        index = starts >> 5
        windows = words[index] << 32 | words[index + 1]
        windows <<= (starts & 31).view(np.uint64)
        windows >>= np.uint64(64) - own
        values[begin : begin + _CHUNK] = windows
    return values


def varint(value: int) -> bytes:
    """A non-negative integer, 7 bits a byte, least significant first, the high bit meaning that more follow."""
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


class Reader:
    """Reads a byte string from `position` to `end`, and never beyond."""

    def __init__(self, data: bytes, position: int, end: int):
        self.data, self.position, self.end = data, position, end

    @property
    def left(self) -> int:
        return self.end - self.position

    def take(self, count: int) -> bytes:
        if count > self.left:
            raise CodecError(f"payload ends {count - self.left} bytes too early: truncated")
        self.position += count
        return self.data[self.position - count : self.position]

    def byte(self) -> int:
        return self.take(1)[0]

    def varint(self, limit: int = 2**32 - 1) -> int:
        value = shift = 0
        while True:
            byte = self.byte()
            value |= (byte & 0x7F) << shift
            if value > limit:
                raise CodecError(f"payload holds a number above {limit}: damaged")
            if byte < 0x80:
                return value
            shift += 7
            if shift > 28:
                raise CodecError("payload holds a number of more than 5 bytes: damaged")
