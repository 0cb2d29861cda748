"""Integers as tokens, and how often each token comes: what the entropy coder is told.

A token stands for a number below 16, or for a quarter of an octave above; the bits that say which number of it are sent as
they are (a "hybrid integer", as in JPEG XL). So any number below 2^32 has one of 128 tokens.

A table of frequencies is stated in the cheaper of two ways: `geometric`, one byte for the parameter of a geometric distribution
(gaps of a support that is drawn at random have it, and magnitudes nearly), or `explicit`, one byte a token, its logarithm
in steps of 1/20 octave. Both become integers that add up to 4096 by integer arithmetic alone, so every machine gets the same.
"""

from bisect import bisect_right
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from sparcl_core.codec.bits import Reader
from sparcl_core.codec.layout import CodecError
from sparcl_core.codec.rans import TOTAL

DIRECT = 16
_WEIGHTS = (0, *(round(16 * 2 ** (step / 20)) for step in range(255)))  # of the explicit table's bytes
_RATES = tuple(round(2 ** (32 - step / 16)) for step in range(16))  # p = 2^(-k/16), of 2^32


def split(numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens [n] uint8 of `numbers` [n], 0 <= v < 2^32, their remaining bits [n] and how many these are [n]."""
    tokens = numbers.astype(np.uint8)
    large = np.flatnonzero(numbers >= DIRECT)
    extra, widths = np.zeros((2, 0), np.int64)
    if large.size:
        values = numbers[large]
        exponent = np.frexp(values.astype(np.float64))[1].astype(np.int64) - 1
        widths = exponent - 2
        tokens[large] = DIRECT + (exponent - 4) * 4 + (values >> widths & 3)
        extra = values & (np.int64(1) << widths) - 1
    return tokens, extra, widths


def widths_of(tokens: np.ndarray) -> np.ndarray:
    """How many bits follow each of `tokens` that is not direct, in order; uint8."""
    return _BITS.astype(np.uint8)[tokens[tokens >= DIRECT]]


def join(tokens: np.ndarray, extra: np.ndarray, highest: int) -> np.ndarray:
    """The inverse of `split`, in the smallest unsigned type that holds what tokens up to `highest` stand for.

    `extra`: remaining bits of the tokens that are not direct.
    """
    dtype = np.min_scalar_type(int(_BASE[highest] + (1 << _BITS[highest]) - 1))
    numbers = _BASE.astype(dtype)[tokens]
    if highest >= DIRECT:
        numbers[np.flatnonzero(tokens >= DIRECT)] += extra.astype(dtype)
    return numbers


def token(number: int) -> int:
    """The token of one number."""
    return bisect_right(_BASE, number) - 1


@dataclass(frozen=True)
class Frequencies:
    """Frequencies [A] int64 of tokens `first` to `first + A - 1`, adding up to 4096, and the bytes that state them."""

    first: int
    freq: np.ndarray
    data: bytes

    @property
    def last(self) -> int:
        return self.first + self.freq.size - 1

    def bits(self, histogram: np.ndarray) -> float:
        """Ideal length of tokens that come `histogram` [256] times."""
        own = histogram[self.first : self.last + 1]
        some = own > 0
        return float((own[some] * (np.log2(TOTAL) - np.log2(self.freq[some]))).sum())

    @property
    def cumulative(self) -> np.ndarray:
        return np.cumsum(self.freq) - self.freq


def best_table(histogram: np.ndarray, smooth: bool) -> Frequencies | None:
    """The table that states and codes tokens with `histogram` [256] (not all 0) in the fewest bytes.

    `smooth`: tokens stand for numbers, so that a geometric distribution makes sense. None if 256 tokens are in use and they do
    not: such a table does not pay.
    """
    used = np.flatnonzero(histogram)
    first, last = int(used[0]), int(used[-1])
    share = histogram[first : last + 1] * (TOTAL / histogram.sum())
    logs = np.zeros(share.size, dtype=np.int64)
    some = share > 0
    logs[some] = 1 + np.rint(20 * np.log2(share[some].clip(1))).astype(np.int64)
    explicit = _explicit(first, logs.astype(np.uint8).tobytes()) if share.size < 256 else None
    if not smooth:
        return explicit
    mean = float((histogram[:128] * _MIDDLE).sum() / histogram[:128].sum())
    rate = int(np.clip(np.rint(16 * np.log2(1 + mean)), 0, 255))
    geometric = _geometric(rate, last)
    return min((explicit, geometric), key=lambda table: 8 * len(table.data) + table.bits(histogram))


def read_table(reader: Reader, highest: int) -> Frequencies:
    """The table stated at the reader's position.

    Raises:
        CodecError: if it speaks of tokens above `highest`, or of none.
    """
    form = reader.byte()
    if form == 0:
        rate, last = reader.take(2)
        table = _geometric(rate, last) if last < len(_BASE) else None
    else:
        first = reader.byte()
        logs = reader.take(form)
        table = _explicit(first, logs) if any(logs) and first + form <= 256 else None
    if table is None or table.last > highest:
        raise CodecError(f"a table of frequencies speaks of tokens above {highest}, or of none: damaged")
    return table


def _explicit(first: int, logs: bytes) -> Frequencies:
    return Frequencies(first, _normalised([_WEIGHTS[step] for step in logs]), bytes([len(logs), first]) + logs)


@lru_cache(maxsize=1024)  # tensors of one density share it, and 127 steps in Python are not free
def _geometric(rate: int, last: int) -> Frequencies:
    """P(v) = p (1 - p)^v with p = 2^(-rate/16), tokens 0 to `last`, which takes the tail."""
    power = (1 << 32) - (_RATES[rate % 16] >> rate // 16)  # 1 - p
    masses, left = [], 1 << 32
    for number in range(last):
        if number >= DIRECT + 4 and number % 4 == 0:
            power = power * power >> 32  # the next octave: each token stands for twice as many numbers
        elif number == DIRECT:
            power = (power * power >> 32) ** 2 >> 32  # four numbers a token
        after = left * power >> 32
        masses.append(left - after)
        left = after
    masses.append(left)
    return Frequencies(0, _normalised([max(1, mass) for mass in masses]), bytes([0, rate, last]))


def _normalised(weights: list[int]) -> np.ndarray:
    """Integers in proportion to `weights`, at least 1 where a weight is, that add up to 4096."""
    total = sum(weights)
    freq = [max(1, weight * TOTAL // total) if weight else 0 for weight in weights]
    left = TOTAL - sum(freq)
    for index in sorted(range(len(freq)), key=lambda i: -freq[i]) if left < 0 else [freq.index(max(freq))]:
        step = max(left, 1 - freq[index]) if left < 0 else left
        freq[index] += step
        left -= step
        if not left:
            break
    shared = np.array(freq, dtype=np.int64)
    shared.setflags(write=False)
    return shared


_BASE = np.array([*range(DIRECT), *((4 + m) << e - 2 for e in range(4, 32) for m in range(4))], dtype=np.int64)
_BITS = np.array([*[0] * DIRECT, *(e - 2 for e in range(4, 32) for _ in range(4))], dtype=np.int64)
_MIDDLE = _BASE + (1 << _BITS) // 2  # the mean of what a token stands for, nearly
