"""An entropy coder that numpy can run: range asymmetric numeral systems (rANS), one lane per row of a vector.

Source: Duda, "Asymmetric numeral systems", arXiv 1311.2540 (2013); interleaved lanes: Giesen, arXiv 1402.3392 (2014). Symbol i belongs to
lane i mod L; all lanes take their step at once, and share one stream of 16-bit words. Every lane begins at a state of its
choice, and the decoder ends there; so the first state carries 16 bits of data that would be sent anyway (the `seeds`), and a lane
costs nothing but rounding. Frequencies are of 4096.

Where the C kernels are, they do the same to the bit, a symbol after the other.

The state x stays in [2^16, 2^32). Coding a symbol of frequency f and start c: x <- (x // f) * 4096 + x % f + c.
"""

import ctypes

import numpy as np

from sparcl_core.codec.bits import Reader
from sparcl_core.codec.layout import CodecError
from sparcl_core.kernels.build import backend

PRECISION = 12
TOTAL = 1 << PRECISION
_LOW = 1 << 16
_MAX_LANES = 4096


def num_lanes(symbols: int, seeds: int) -> int:
    """Lanes for a stream of `symbols`, with data for `seeds` free starting states: both sides compute it.

    A lane without such data costs two bytes, so there are few of them; more lanes take fewer steps.
    """
    return max(1, min(_MAX_LANES, symbols // 64, max(seeds, symbols // 1024)))


def encode(freq: np.ndarray, start: np.ndarray, seeds: np.ndarray) -> bytes:
    """One stream.

    Args:
        freq, start: uint32 [n], frequency (of 4096, above 0) and sum of the frequencies before it, for every symbol.
        seeds: uint16 [L], data to be carried by the lanes' first states.
    """
    state = seeds.astype(np.uint64) + _LOW
    native = backend().library
    words = _encode(freq, start, state) if native is None else _encode_native(native, freq, start, state)
    return state.astype("<u4").tobytes() + words


def _encode(freq: np.ndarray, start: np.ndarray, state: np.ndarray) -> bytes:
    """The words of all lanes; `state` becomes their last states."""
    lanes, words = state.size, []
    steps = -(-freq.size // lanes)
    for step in range(steps - 1, -1, -1):
        f = freq[step * lanes : (step + 1) * lanes].astype(np.uint64)
        x = state[: f.size]
        full = x >= f << 20  # x // f * 4096 would not fit into 32 bits
        words.append(x[full].astype("<u2"))  # the low 16 bits
        np.right_shift(x, full.astype(np.uint64) << 4, out=x)
        quotient = x // f
        x += quotient * (TOTAL - f)
        x += start[step * lanes : (step + 1) * lanes]
    return b"".join(part.tobytes() for part in reversed(words))


def _encode_native(native: ctypes.CDLL, freq: np.ndarray, start: np.ndarray, state: np.ndarray) -> bytes:
    symbols = [np.ascontiguousarray(array, dtype=np.uint32) for array in (freq, start)]
    words = np.empty(freq.size, dtype=np.uint16)
    native.sparcl_rans_encode.restype = ctypes.c_int64
    where = [ctypes.c_void_p(array.ctypes.data) for array in (*symbols, state, words)]
    count = native.sparcl_rans_encode(*where[:2], ctypes.c_int64(freq.size), where[2], ctypes.c_int64(state.size), where[3])
    return words[:count].astype("<u2", copy=False).tobytes()


def decode(reader: Reader, tables: np.ndarray, *, starts: np.ndarray, counts: list[int], lanes: int) -> tuple[np.ndarray, np.ndarray]:
    """The inverse of `encode`, up to looking the symbols up.

    Args:
        tables: uint16 [C, 4096]: the frequency of the symbol that owns each slot, per context; starts: its start, likewise.
        counts: symbols of each context, in the order in which they were coded.

    Returns:
        slots [n] uint16, one of 4096 per symbol, and seeds [L] uint16.

    Raises:
        CodecError: if the stream ends early, or a lane does not end in a state that a lane begins with.
    """
    state = np.frombuffer(reader.take(4 * lanes), dtype="<u4").astype(np.uint64)
    words = np.frombuffer(reader.data, dtype="<u2", count=reader.left // 2, offset=reader.position)
    native = backend().library
    if native is None:
        slots, used = _decode(words, tables, starts=starts, counts=counts, state=state)
    else:
        slots, used = _decode_native(native, words, tables, starts=starts, counts=counts, state=state)
    reader.take(2 * used)
    seeds = state - _LOW
    if (seeds >= _LOW).any():
        raise CodecError("coded symbols do not end where they began: damaged")
    return slots, seeds.astype(np.uint16)


def _decode(words: np.ndarray, tables: np.ndarray, *, starts: np.ndarray, counts: list[int], state: np.ndarray) -> tuple[np.ndarray, int]:
    """Slots, and how many words they took; `state` becomes the lanes' last states."""
    total, lanes = sum(counts), state.size
    frequency, start = tables.reshape(-1), starts.reshape(-1)
    base = np.repeat(np.arange(len(counts), dtype=np.int32) << PRECISION, counts)
    slots = np.empty(total, dtype=np.uint16)
    used = 0
    for begin in range(0, total, lanes):
        end = min(begin + lanes, total)
        x = state[: end - begin]
        slot = (x & (TOTAL - 1)).astype(np.int32)
        slots[begin:end] = slot
        key = slot + base[begin:end]
        x >>= PRECISION
        x *= frequency[key]
        x += slot.astype(np.uint64)
        x -= start[key]
        low = np.flatnonzero(x < _LOW)
        if used + low.size > words.size:
            raise CodecError("coded symbols end too early: truncated")
        x[low] = x[low] << 16 | words[used : used + low.size]
        used += low.size
    return slots, used


def _decode_native(
    native: ctypes.CDLL, words: np.ndarray, tables: np.ndarray, *, starts: np.ndarray, counts: list[int], state: np.ndarray
) -> tuple[np.ndarray, int]:
    contexts = [np.ascontiguousarray(array, dtype=np.uint16) for array in (tables, starts)]
    if any(array.shape != (len(counts), TOTAL) for array in contexts):
        raise ValueError(f"tables of shapes {[array.shape for array in contexts]} for {len(counts)} contexts")
    own, slots = np.ascontiguousarray(words, dtype=np.uint16), np.empty(sum(counts), dtype=np.uint16)
    native.sparcl_rans_decode.restype = ctypes.c_int64
    numbers = np.array(counts, np.int64)
    front = [ctypes.c_void_p(array.ctypes.data) for array in (*contexts, numbers, state, own, slots)]
    sizes = [ctypes.c_int64(value) for value in (len(numbers), state.size, own.size)]
    used = native.sparcl_rans_decode(*front[:3], sizes[0], front[3], sizes[1], front[4], sizes[2], front[5])
    if used < 0:
        raise CodecError("coded symbols end too early: truncated")
    return slots, used
