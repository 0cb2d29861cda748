"""Slow references for the wire codec in plain Python, written from the description of the format, and the messages its tests share.

Lists and integers, one number and one bit at a time; nothing is taken from `sparcl_core.codec` but the names of things.

    magic "SpC" | format version | kind | layout fingerprint | model version | mask version | number of sections
    section: how many tensors were left out before it | form | [count] | [tables] | [block] [scales]
    raw bits | entropy-coded symbols | remaining bits of their tokens | CRC-32
"""

import math
import struct
import zlib

import numpy as np

from sparcl_core.codec import KINDS, PLACES_ONLY, VALUES, Encoded, Layout, Payload, SparseTensor, encode, quantise, reference
from sparcl_core.codec.payload import OVER_ALL

# --- bits ------------------------------------------------------------------------------------------------------------


def pack_bits(bits: str) -> bytes:
    """A text of 0 and 1 as bytes, the first bit highest, the last byte filled up with 0."""
    bits += "0" * (-len(bits) % 8)
    return bytes(int(bits[i : i + 8], 2) for i in range(0, len(bits), 8))


def text_bits(data: bytes) -> str:
    return "".join(f"{byte:08b}" for byte in data)


def pack(values: list[int], widths: list[int]) -> bytes:
    """Each value in as many bits as its width says."""
    return pack_bits("".join(f"{value:0{width}b}" if width else "" for value, width in zip(values, widths, strict=True)))


def unpack(data: bytes, widths: list[int]) -> list[int]:
    bits, values = text_bits(data), []
    for width in widths:
        values.append(int(bits[:width] or "0", 2))
        bits = bits[width:]
    return values


def varint(value: int) -> bytes:
    """7 bits a byte, least significant first; the high bit says that more follow."""
    groups = [value & 127]
    while value := value >> 7:
        groups.append(value & 127)
    return bytes([group | 128 for group in groups[:-1]] + groups[-1:])


# --- entropy coder ---------------------------------------------------------------------------------------------------


def num_lanes(symbols: int, seeds: int) -> int:
    """As many as there are free seeds, else one for 1024 symbols; never more than one for 64 symbols, nor than 4096; at least one."""
    return max(1, min(4096, symbols // 64, max(seeds, symbols // 1024)))


def rans_encode(symbols: list[tuple[int, int]], seeds: list[int]) -> bytes:
    """Duda's range variant: symbols are pairs (frequency f of 4096, start c); symbol i belongs to lane i mod L.

    From the last symbol to the first: where x would leave 32 bits, its low 16 bits move to the front of the stream; then
    x <- (x div f) * 4096 + x mod f + c.
    """
    states = [65536 + seed for seed in seeds]
    words: list[int] = []
    for i in reversed(range(len(symbols))):
        (f, c), lane = symbols[i], i % len(seeds)
        x = states[lane]
        if x // f * 4096 + x % f + c >= 2**32:
            words.insert(0, x % 65536)
            x //= 65536
        states[lane] = x // f * 4096 + x % f + c
    return b"".join(x.to_bytes(4, "little") for x in states) + b"".join(word.to_bytes(2, "little") for word in words)


def rans_decode(data: bytes, tables: list[list[int]], lanes: int) -> tuple[list[int], list[int], int]:
    """`tables`: for every symbol the frequencies of its table. Returns which entries were coded, the seeds and the bytes read."""
    states = [int.from_bytes(data[4 * i : 4 * i + 4], "little") for i in range(lanes)]
    position, found = 4 * lanes, []
    for i, frequencies in enumerate(tables):
        x, symbol, start = states[i % lanes], 0, 0
        while start + frequencies[symbol] <= x % 4096:
            start += frequencies[symbol]
            symbol += 1
        found.append(symbol)
        x = frequencies[symbol] * (x // 4096) + x % 4096 - start
        if x < 65536:
            x = x * 65536 + int.from_bytes(data[position : position + 2], "little")
            position += 2
        states[i % lanes] = x
    return found, [x - 65536 for x in states], position


# --- tokens ----------------------------------------------------------------------------------------------------------


def token(number: int) -> tuple[int, int, int]:
    """Token, remaining bits and how many: numbers below 16 are tokens; above, the octave and its quarter are."""
    if number < 16:
        return number, 0, 0
    octave = number.bit_length() - 1
    quarter, rest = divmod(number - 2**octave, 2 ** (octave - 2))
    return 16 + 4 * (octave - 4) + quarter, rest, octave - 2


def number_of(own: int) -> tuple[int, int]:
    """The lowest number of a token, and how many bits follow it."""
    if own < 16:
        return own, 0
    octave, quarter = 4 + (own - 16) // 4, (own - 16) % 4
    return 2**octave + quarter * 2 ** (octave - 2), octave - 2


def explicit_table(logs: bytes) -> list[int]:
    """A byte b above 0 means a weight of 16 * 2^((b - 1) / 20), 0 means none."""
    return normalised([round(16 * 2 ** ((b - 1) / 20)) if b else 0 for b in logs])


def geometric_weights(rate: int, last: int) -> list[float]:
    """P(v) = p (1 - p)^v with p = 2^(-rate / 16), summed over the numbers of each token; the last token takes the tail."""
    keep = 1 - 2 ** (-rate / 16)
    edges = [number_of(own)[0] for own in range(last + 1)]
    tails = [keep**edge for edge in edges] + [0.0]
    return [above - beyond for above, beyond in zip(tails, tails[1:], strict=False)]


def normalised(weights: list[int]) -> list[int]:
    """Shares of 4096, rounded down but never to 0. What is missing goes to the most frequent; what is too much is taken from the
    most frequent, and the next, as far as they go."""
    shares = [max(1, 4096 * weight // sum(weights)) if weight else 0 for weight in weights]
    while sum(shares) > 4096:
        index = max((i for i in range(len(shares)) if shares[i] > 1), key=lambda i: (4096 * weights[i] // sum(weights), -i))
        shares[index] -= 1
    shares[shares.index(max(shares))] += 4096 - sum(shares)
    return shares


# --- values ----------------------------------------------------------------------------------------------------------

LIMITS = {"int8": 127, "int6": 31, "int4": 7, "u8": 255, "u4": 15}
WIDTHS = {"f64": 64, "f32": 32, "f16": 16, "bf16": 16, "int8": 8, "int6": 6, "int4": 4, "u8": 8, "u4": 4}


def single(value: float) -> float:
    """To the nearest float32."""
    return struct.unpack("<f", struct.pack("<f", value))[0]


def upper_half(bits: int) -> float:
    return struct.unpack(">f", bits.to_bytes(2, "big") + b"\0\0")[0]


def scale_of(largest: float, form: str) -> int:
    """The upper half of the float32 largest / limit, rounded up; of the square law of largest."""
    exact = struct.unpack(">I", struct.pack(">f", largest if form == "u4" else single(largest / LIMITS[form])))[0]
    return -(-exact // 65536)


def value_of(form: str, code: int, scale: int) -> float:
    """`code` as unsigned bits of a float, or as signed number of a form with a scale."""
    if form == "f64":
        return struct.unpack(">d", code.to_bytes(8, "big"))[0]
    if form == "f32":
        return struct.unpack(">f", code.to_bytes(4, "big"))[0]
    if form == "bf16":
        return upper_half(code)
    if form == "f16":
        return single(struct.unpack(">e", code.to_bytes(2, "big"))[0] * 2.0 ** (scale - 128))
    if form == "u4":
        return single(single(single(code / 15) ** 2) * upper_half(scale))
    return single(code * upper_half(scale))


def nearest_code(form: str, value: float, scale: int) -> int:
    """Ties to even, as everywhere in IEEE arithmetic."""
    step = upper_half(scale)
    scaled = single(value / step) if step else 0.0
    if form == "u4":
        scaled = single(single(math.sqrt(scaled)) * 15)
    return max(-LIMITS[form], min(LIMITS[form], round(scaled)))


# --- positions -------------------------------------------------------------------------------------------------------


def information(total: int, count: int) -> float:
    """log2 C(total, count), in bytes."""
    return (math.lgamma(total + 1) - math.lgamma(count + 1) - math.lgamma(total - count + 1)) / math.log(2) / 8


def ranks_of(where: str, numbers: list[int], total: int) -> list[int]:
    """What bits or gaps mean."""
    if where == "bitmap":
        return [rank for rank, bit in enumerate(numbers) if bit]
    ranks, last = [], -1
    for gap in numbers:
        last += gap + 1
        ranks.append(last)
    return ranks if where == "gaps" else [rank for rank in range(total) if rank not in set(ranks)]


# --- payload ---------------------------------------------------------------------------------------------------------


class Cursor:
    def __init__(self, data: bytes):
        self.data, self.position = data, 0

    def take(self, count: int) -> bytes:
        self.position += count
        return self.data[self.position - count : self.position]

    def varint(self) -> int:
        value, shift = 0, 0
        while True:
            byte = self.take(1)[0]
            value += (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    def table(self) -> tuple[int, list[int]]:
        """First token and frequencies of an explicit table. (Geometric ones are checked by their properties, not here.)"""
        length, first = self.take(2)
        assert length, "this reference reads explicit tables only"
        return first, explicit_table(self.take(length))


def read_payload(data: bytes, references: list[list[int]]) -> dict:
    """A good payload, of which all tables are explicit. `references`: for every tensor of the layout its reference places, in order."""
    assert zlib.crc32(data[:-4]) == int.from_bytes(data[-4:], "little")
    cursor = Cursor(data[:-4])
    magic, version, kind = cursor.take(3), *cursor.take(2)
    result: dict = {"magic": magic, "version": version, "kind": KINDS[kind], "fingerprint": int.from_bytes(cursor.take(4), "little")}
    result |= {"model_version": cursor.varint(), "mask_version": cursor.varint()}
    sections, index = [], -1
    for _ in range(cursor.varint()):
        index += 1 + cursor.varint()
        sections.append(_section(cursor, index, len(references[index]), KINDS[kind]))
    parts = [part for section in sections for part in section["parts"]]
    numbers = iter(_numbers(cursor, parts))
    assert cursor.position == len(cursor.data)
    result["tensors"] = {}
    for section in sections:
        found = [next(numbers) for _ in section["parts"]]
        total, where = len(references[section["index"]]), section["where"]
        ranks = list(range(section["count"])) if where in ("none", "all") else ranks_of(where, found.pop(0), total)
        assert len(ranks) == section["count"]
        values = _values(section, found, ranks) if kind < len(KINDS) and KINDS[kind] not in PLACES_ONLY else []
        result["tensors"][section["index"]] = ([references[section["index"]][rank] for rank in ranks], values)
    return result


def _section(cursor: Cursor, index: int, total: int, kind: str) -> dict:
    """`parts`: (how many numbers, bits of each or None, table or None, whether bits follow its tokens)."""
    byte = cursor.take(1)[0]
    where, form, is_coded = ("none", "all", "bitmap", "gaps", "holes")[byte % 8], VALUES[byte // 8 % 16], byte >= 128
    count = {"none": 0, "all": total}.get(where)
    count = cursor.varint() if count is None else count
    parts = []
    if where == "bitmap":
        parts.append((total, 1, None, False))
    elif where != "none" and where != "all":
        parts.append((count if where == "gaps" else total - count, None, cursor.table(), True))
    scales, block = [], 0
    if count and kind not in PLACES_ONLY:
        table = cursor.table() if is_coded else None
        if form in LIMITS:
            signed = form.startswith("int")
            size = (count, None, table, True) if is_coded else (count, WIDTHS[form] - signed, None, False)
            parts += [(count, 1, None, False)] * signed + [size]
            block = cursor.varint()
            scales = [int.from_bytes(cursor.take(2), "little") for _ in range(-(-total // block) if block else 1)]
        else:
            octets = WIDTHS[form] // 8
            rest = (count * (octets - is_coded), 8, None, False)
            parts += [(count, None, table, False), rest] if is_coded else [rest]  # first octets are tokens themselves
            scales = list(cursor.take(1)) if form == "f16" else []
    return {
        "index": index, "where": where, "form": form, "is_coded": is_coded, "count": count,
        "parts": parts, "scales": scales, "block": block,
    }  # fmt: skip


def _numbers(cursor: Cursor, parts: list[tuple]) -> list[list[int]]:
    """Raw parts fill whole bytes each; the first of these are the seeds of the lanes, two bytes each; the rest comes before the stream.

    The tokens of all parts make one stream, and so do the bits that follow them.
    """
    sizes = [(count * width + 7) // 8 if width else 0 for count, width, _, _ in parts]
    coded = [(count, table) for count, _, table, _ in parts if table]
    total = sum(count for count, _ in coded)
    raw, symbols = b"", []
    if total:
        lanes = num_lanes(total, sum(sizes) // 2)
        carried = 2 * min(lanes, sum(sizes) // 2)
        behind = cursor.take(sum(sizes) - carried)
        tables = [table[1] for count, table in coded for _ in range(count)]
        symbols, seeds, used = rans_decode(cursor.data[cursor.position :], tables, lanes)
        cursor.take(used)
        assert all(0 <= seed < 65536 for seed in seeds)
        raw = b"".join(seed.to_bytes(2, "little") for seed in seeds)[:carried] + behind
    else:
        raw = cursor.take(sum(sizes))
    symbols, numbers, bits = iter(symbols), [], text_bits(cursor.data[cursor.position :])
    for (count, width, table, is_hybrid), size in zip(parts, sizes, strict=True):
        if width:
            numbers.append(unpack(raw[:size], [width] * count))
            raw = raw[size:]
            continue
        own = [next(symbols) + table[0] for _ in range(count)]
        for i in range(count if is_hybrid else 0):
            base, more = number_of(own[i])
            own[i], bits = base + int(bits[:more] or "0", 2), bits[more:]
        numbers.append(own)
    cursor.take((8 * (len(cursor.data) - cursor.position) - len(bits) + 7) // 8)
    return numbers


def _values(section: dict, numbers: list[list[int]], ranks: list[int]) -> list[float]:
    form, scales, block, count = section["form"], section["scales"], section["block"], section["count"]
    if not count:
        return []
    if form in LIMITS:
        codes = [(1 - 2 * sign) * (size + 1) for sign, size in zip(*numbers, strict=True)] if form.startswith("int") else numbers[0]
        return [value_of(form, code, scales[rank // block if block else 0]) for code, rank in zip(codes, ranks, strict=True)]
    octets = WIDTHS[form] // 8
    rest = numbers[-1]
    each = octets - 1 if section["is_coded"] else octets
    rows = [([numbers[0][i]] if section["is_coded"] else []) + rest[i * each : (i + 1) * each] for i in range(count)]
    return [value_of(form, int.from_bytes(bytes(row), "big"), scales[0] if scales else 0) for row in rows]


# --- messages that several tests send ----------------------------------------------------------------------------------

SMALL = Layout(
    {"conv": (4, 4, 5, 5), "fc": (6, 10), "bias": (6,), "mean": (7,), "scale": ()}, frozenset({"conv", "fc"}), frozenset({"mean"})
)
SHARES = {"none": 0.0, "all": 1.0, "bitmap": 0.5, "gaps": 0.04, "holes": 0.96}  # of 400 places, these forms are the cheapest
MASKS = {"conv": np.arange(400) % 10 != 3, "fc": np.arange(60) % 3 > 0}


def places_of(where: str, over: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Sorted places among `over`, as many as the form of positions is good for."""
    count = round(SHARES[where] * over.size)
    return np.sort(rng.permutation(over)[:count])


def message(
    kind: str, form: str, where: str, masks: dict[str, np.ndarray], block: int = 0, stochastic: bool = False, seed: int = 0
) -> tuple[Encoded, dict[str, SparseTensor]]:
    """A payload of all tensors that it may speak of, and what its receiver is to get."""
    rng = np.random.default_rng(seed)
    quantised = {}
    for name in SMALL.shapes:
        if name in masks or kind not in KINDS[3:]:
            over = reference(kind, SMALL, name, masks)
            places = places_of(where, over.at(np.arange(over.total)), rng)
            values = rng.laplace(size=places.size) * 0.01
            if form in ("u8", "u4") or kind == "importance":
                values = np.abs(values)
            tensor = SparseTensor(places, values)
            quantised[name] = quantise(tensor, over, form, name, rng=rng if stochastic else None, block=block)
    sent = {name: own for name, own in quantised.items() if own.places.size or kind != "delta"}
    empty = np.empty(0, np.float32)
    tensors = {name: SparseTensor(own.places, empty if kind in PLACES_ONLY else own.values) for name, own in sent.items()}
    return encode(kind, SMALL, quantised, model_version=7, mask_version=3), tensors


def checksummed(body: bytes) -> bytes:
    return body + struct.pack("<I", zlib.crc32(body))


def assert_same(decoded: Payload, tensors: dict[str, SparseTensor]) -> None:
    """Bit for bit, so that -0.0 counts too."""
    assert decoded.tensors.keys() == tensors.keys()
    for name, tensor in decoded.tensors.items():
        assert tensor.places.dtype == np.int64 and np.array_equal(tensor.places, tensors[name].places), name
        assert tensor.values.dtype == tensors[name].values.dtype and tensor.values.tobytes() == tensors[name].values.tobytes(), name


def assert_fits(payload: Payload, layout: Layout, masks: dict[str, np.ndarray]) -> None:
    """Whatever was decoded can be used without a further look: it lies in the model, in the masks, and is finite."""
    for name, tensor in payload.tensors.items():
        allowed = np.ones(layout.size(name), dtype=bool)
        if payload.kind not in OVER_ALL and name in masks:
            allowed = ~masks[name] if payload.kind == "add" else masks[name]
        places, values = tensor.places, tensor.values
        assert places.dtype == np.int64 and values.dtype in (np.float32, np.float64)
        if places.size:
            assert places[0] >= 0 and places[-1] < allowed.size and (places[1:] > places[:-1]).all() and allowed[places].all()
        assert values.size == (0 if payload.kind in PLACES_ONLY else places.size) and np.isfinite(values).all()
    assert min(vars(payload.sizes).values()) >= 0
