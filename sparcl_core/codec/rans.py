"""An entropy coder that numpy can run: range asymmetric numeral systems (rANS), one lane per row of a vector.

Source: Duda, "Asymmetric numeral systems", arXiv 1311.2540 (2013); interleaved lanes: Giesen, arXiv 1402.3392 (2014). Symbol i belongs to
lane i mod L; all lanes take their step at once, and share one stream of 16-bit words. Every lane begins at a state of its
choice, and the decoder ends there; so the first state carries 16 bits of data that would be sent anyway (the `seeds`), and a lane
costs nothing but rounding. Frequencies are of 4096.

The state x stays in [2^16, 2^32). Coding a symbol of frequency f and start c: x <- (x // f) * 4096 + x % f + c.
"""

import numpy as np

from sparcl_core.codec.bits import Reader
from sparcl_core.codec.layout import CodecError

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
    lanes = seeds.size
    state = seeds.astype(np.uint64) + _LOW
    words = []
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
    return state.astype("<u4").tobytes() + b"".join(part.tobytes() for part in reversed(words))


def decode(reader: Reader, tables: np.ndarray, starts: np.ndarray, counts: list[int], lanes: int) -> tuple[np.ndarray, np.ndarray]:
    """The inverse of `encode`, up to looking the symbols up.

    Args:
        tables: uint16 [C, 4096]: the frequency of the symbol that owns each slot, per context; starts: its start, likewise.
        counts: symbols of each context, in the order in which they were coded.

    Returns:
        slots [n] uint16, one of 4096 per symbol, and seeds [L] uint16.

    Raises:
        CodecError: if the stream ends early, or a lane does not end in a state that a lane begins with.
    """
    total = sum(counts)
    state = np.frombuffer(reader.take(4 * lanes), dtype="<u4").astype(np.uint64)
    words = np.frombuffer(reader.data, dtype="<u2", count=reader.left // 2, offset=reader.position)
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
    reader.take(2 * used)
    seeds = state - _LOW
    if (seeds >= _LOW).any():
        raise CodecError("coded symbols do not end where they began: damaged")
    return slots, seeds.astype(np.uint16)
