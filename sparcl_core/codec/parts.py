"""What sections are made of: numbers sent as they are, or tokens for the entropy coder that all sections share.

A payload first states everything that has a fixed size, so that the decoder knows how many symbols of which table follow:

    header | section headers | raw bits | rANS stream | remaining bits of the tokens | CRC-32

The rANS stream's lanes carry the first raw bytes as their seeds (see rans.py).
"""

from dataclasses import dataclass

import numpy as np

from sparcl_core.codec import rans, tokens
from sparcl_core.codec.bits import Reader, pack, pack_ragged, packed_size, unpack, unpack_ragged
from sparcl_core.codec.layout import CodecError


@dataclass(frozen=True)
class Plain:
    """Numbers of `width` bits each; both sides know how many."""

    numbers: np.ndarray
    width: int

    @property
    def bits(self) -> float:
        return 8.0 * packed_size(self.numbers.size, self.width)

    @property
    def data(self) -> bytes:
        return pack(self.numbers, self.width)

    stated = b""


@dataclass(frozen=True)
class Coded:
    """Tokens for the entropy coder with their table, and the bits that follow them."""

    symbols: np.ndarray
    extra: np.ndarray
    widths: np.ndarray
    table: tokens.Frequencies
    bits: float

    @classmethod
    def of(cls, numbers: np.ndarray, smooth: bool = True) -> "Coded | None":
        """`numbers` as hybrid integers, or (not `smooth`) bytes that are tokens themselves; None where no table pays."""
        if smooth:
            symbols, extra, widths = tokens.split(numbers)
        else:
            symbols, (extra, widths) = numbers.astype(np.uint8), np.zeros((2, 0), np.int64)
        histogram = np.bincount(symbols, minlength=256)
        table = tokens.best_table(histogram, smooth)
        if table is None:
            return None
        return cls(symbols, extra, widths, table, 8 * len(table.data) + table.bits(histogram) + float(widths.sum()))

    @property
    def stated(self) -> bytes:
        return self.table.data


Part = Plain | Coded


def cheapest(options: dict[str, Part | None]) -> tuple[str, Part]:
    """The option that takes the fewest bits; of equals the first."""
    name = min((name for name, part in options.items() if part is not None), key=lambda name: options[name].bits)
    return name, options[name]


@dataclass(frozen=True)
class Expected:
    """What the decoder knows of a part before it is read: how many numbers, and their width or their table.

    width: bits each, of a raw part. smooth: tokens are hybrid integers.
    """

    count: int
    width: int = 0
    table: tokens.Frequencies | None = None
    smooth: bool = True


def write(parts: list[Part]) -> bytes:
    """All parts, behind the section headers."""
    raw = b"".join(part.data for part in parts if isinstance(part, Plain))
    coded = [part for part in parts if isinstance(part, Coded)]
    total = sum(part.symbols.size for part in coded)
    if not total:
        return raw
    seeds = np.zeros(rans.num_lanes(total, len(raw) // 2), dtype=np.uint16)
    carried = np.frombuffer(raw, dtype="<u2", count=min(seeds.size, len(raw) // 2))
    seeds[: carried.size] = carried
    freq, start = np.empty((2, total), dtype=np.uint32)
    begin = 0
    for part in coded:
        index, end = part.symbols - np.uint8(part.table.first), begin + part.symbols.size
        part.table.freq.astype(np.uint32).take(index, out=freq[begin:end], mode="clip")  # other modes go through a buffer
        part.table.cumulative.astype(np.uint32).take(index, out=start[begin:end], mode="clip")
        begin = end
    extra = np.concatenate([part.extra for part in coded])
    widths = np.concatenate([part.widths for part in coded])
    return raw[2 * carried.size :] + rans.encode(freq, start, seeds) + pack_ragged(extra, widths)


def read(reader: Reader, expected: list[Expected]) -> list[tuple[np.ndarray, float]]:
    """The numbers of all parts, in small unsigned types, and their ideal length in bits, as the encoder counted it.

    Raises:
        CodecError: if the payload ends too early, or coded symbols are damaged.
    """
    coded = [part for part in expected if part.table is not None]
    total = sum(part.count for part in coded)
    raw_size = sum(packed_size(part.count, part.width) for part in expected if part.table is None)
    symbols, raw = _read_raw_and_symbols(reader, coded, total, raw_size)
    widths = [tokens.widths_of(own) if part.smooth else _NOTHING for own, part in zip(symbols, coded, strict=True)]
    all_widths = np.concatenate([_NOTHING, *widths])
    extra = unpack_ragged(reader.take(packed_size(int(all_widths.sum()), 1)), all_widths)
    numbers, position, used, stream = [], 0, 0, zip(symbols, widths, strict=True)
    for part in expected:
        if part.table is None:
            size = packed_size(part.count, part.width)
            numbers.append((unpack(raw[position : position + size], part.count, part.width), 8.0 * size))
            position += size
            continue
        own, own_widths = next(stream)
        bits = 8 * len(part.table.data) + part.table.bits(np.bincount(own, minlength=256))
        if part.smooth:
            bits += float(own_widths.sum())
            numbers.append((tokens.join(own, extra[used : used + own_widths.size], part.table.last), bits))
            used += own_widths.size
        else:
            numbers.append((own, bits))
    return numbers


_NOTHING = np.empty(0, dtype=np.uint8)


def _read_raw_and_symbols(reader: Reader, coded: list[Expected], total: int, raw_size: int) -> tuple[list[np.ndarray], bytes]:
    if not total:
        return [_NOTHING] * len(coded), reader.take(raw_size)
    lanes = rans.num_lanes(total, raw_size // 2)
    carried = 2 * min(lanes, raw_size // 2)
    if reader.left < raw_size - carried + 4 * lanes:
        raise CodecError("payload ends before its coded symbols: truncated")
    behind = reader.take(raw_size - carried)
    tables = np.empty((2, len(coded), rans.TOTAL), dtype=np.uint16)
    lookup = np.empty((len(coded), rans.TOTAL), dtype=np.uint8)
    for row, part in enumerate(coded):
        table = part.table
        tables[0, row], tables[1, row] = np.repeat(table.freq, table.freq), np.repeat(table.cumulative, table.freq)
        lookup[row] = np.repeat(np.arange(table.freq.size) + table.first, table.freq)
    counts = [part.count for part in coded]
    slots, seeds = rans.decode(reader, tables[0], starts=tables[1], counts=counts, lanes=lanes)
    symbols = [row[own] for row, own in zip(lookup, np.split(slots, np.cumsum(counts)[:-1]), strict=True)]
    return symbols, seeds[: carried // 2].astype("<u2").tobytes() + behind
