"""Sparse tensors <-> bytes: what really crosses the wire, versioned, checksummed, no pickle.

A payload is `header | sections | CRC-32`. Both sides know the layout (names, shapes, which tensors are masked) and, except
for a whole model, the weight masks; the header carries a fingerprint of the layout, so a payload made for another model is
refused. Every tensor has one section: a form byte, then positions, then values.

Positions are coded over a reference set, the active places of a masked tensor or all places of a dense one, in the
smallest of: `none` (empty), `all` (nothing to send: both sides know the set), `bitmap` (one bit per place of the set),
`gaps` (distances between places, variable-length bytes).
Values: `f32`, `f64` lossless; `f16` IEEE half of value / 2^e with one exponent e per tensor, so that the largest value sits
high in the range and small updates are not lost to subnormals; `u8` non-negative 8-bit with one float32 scale per tensor.

The decoder trusts nothing: every length is checked against the payload and the layout before an array is made.
"""

import math
import struct
import zlib
from dataclasses import dataclass
from typing import Literal

import numpy as np

VERSION = 1
MAGIC = b"SpCL"
HEADER = struct.Struct("<4sBBIIII")  # magic, format version, kind, layout fingerprint, model version, mask version, sections
KINDS = ("delta", "whole", "importance", "grow", "adapt")
PLACES_ONLY = ("grow", "adapt")
Values = Literal["f32", "f64", "f16", "u8"]
VALUES: tuple[Values, ...] = ("f32", "f64", "f16", "u8")
WIDTH = {"f32": 4, "f64": 8, "f16": 2, "u8": 1}
POSITIONS = ("none", "all", "bitmap", "gaps")


class CodecError(ValueError):
    """A payload that cannot be decoded: truncated, damaged, made for another model or another version."""


@dataclass(frozen=True)
class Layout:
    """Names and shapes of the tensors on the wire, in order, and which of them are masked."""

    shapes: dict[str, tuple[int, ...]]
    masked: frozenset[str]

    @property
    def fingerprint(self) -> int:
        text = ";".join(f"{name}{list(shape)}{name in self.masked}" for name, shape in self.shapes.items())
        return zlib.crc32(text.encode())

    @property
    def dense_bytes(self) -> int:
        """4 bytes for every parameter and float buffer: one message of a federation that sends everything."""
        return 4 * sum(map(self.size, self.shapes))

    def size(self, name: str) -> int:
        return math.prod(self.shapes[name])


@dataclass(frozen=True)
class SparseTensor:
    """`values` [k] at the sorted flat `places` [k] int64 of a tensor; everything else is 0."""

    places: np.ndarray
    values: np.ndarray


@dataclass(frozen=True)
class Payload:
    """A decoded payload."""

    kind: str
    model_version: int
    mask_version: int
    tensors: dict[str, SparseTensor]


def reference_set(layout: Layout, name: str, masks: dict[str, np.ndarray]) -> np.ndarray:
    """Sorted flat places that a section's positions refer to."""
    if name in layout.masked and name in masks:
        return np.flatnonzero(masks[name])
    return np.arange(layout.size(name))


def _masks_for(kind: str, masks: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The masks that positions refer to. A device that gets a whole model may hold masks, but they are out of date."""
    return {} if kind == "whole" else masks


def encode(
    kind: str,
    layout: Layout,
    tensors: dict[str, SparseTensor],
    masks: dict[str, np.ndarray],
    values: Values,
    model_version: int,
    mask_version: int,
) -> bytes:
    """Encode `tensors`, a subset of the layout, whose places lie inside their reference sets.

    Args:
        masks: weight masks both sides hold; not read for a `whole` model, which brings its own: its positions count over all places.
        values: how values are coded; payloads of mask updates (`grow`, `adapt`) are places only and send none.

    Raises:
        ValueError: if a value is not finite, or negative under `u8`, or a place lies outside its reference set.
    """
    parts = [HEADER.pack(MAGIC, VERSION, KINDS.index(kind), layout.fingerprint, model_version, mask_version, len(tensors))]
    order = {name: index for index, name in enumerate(layout.shapes)}
    masks = _masks_for(kind, masks)
    for name in sorted(tensors, key=order.__getitem__):
        tensor = tensors[name]
        ranks = _ranks(tensor.places, reference_set(layout, name, masks), name)
        form, positions = _encode_positions(ranks.rank, ranks.total)
        parts.append(struct.pack("<HBI", order[name], POSITIONS.index(form) << 4 | VALUES.index(values), tensor.places.size))
        parts.append(positions)
        if kind not in PLACES_ONLY:
            parts.append(_encode_values(tensor.values, values, name))
    body = b"".join(parts)
    return body + struct.pack("<I", zlib.crc32(body))


def decode(payload: bytes, layout: Layout, masks: dict[str, np.ndarray]) -> Payload:
    """The inverse of `encode`, given the same layout and masks. Values come back as float32 (float64 for `f64`).

    Raises:
        CodecError: if anything about the payload is wrong; nothing larger than the declared model is allocated.
    """
    if len(payload) < HEADER.size + 4:
        raise CodecError(f"payload of {len(payload)} bytes is shorter than a header: truncated")
    magic, version, kind, fingerprint, model_version, mask_version, sections = HEADER.unpack_from(payload)
    if magic != MAGIC:
        raise CodecError(f"payload starts with {magic!r}, not {MAGIC!r}: not a SparCL payload")
    if version != VERSION:
        raise CodecError(f"payload has format version {version}, this code reads {VERSION}: use the same release on both sides")
    if zlib.crc32(payload[:-4]) != struct.unpack_from("<I", payload, len(payload) - 4)[0]:
        raise CodecError("checksum does not match: the payload is damaged")
    if kind >= len(KINDS) or fingerprint != layout.fingerprint:
        raise CodecError("payload was made for another model: names, shapes or sparse layers differ")
    names, masks = list(layout.shapes), _masks_for(KINDS[kind], masks)
    reader = _Reader(payload, HEADER.size, len(payload) - 4)
    tensors, last = {}, -1
    for _ in range(sections):
        index, form, count = struct.unpack("<HBI", reader.take(7))
        if not last < index < len(names):
            raise CodecError(f"section for tensor {index} is out of order or out of range")
        name, last = names[index], index
        reference = reference_set(layout, name, masks)
        if form >> 4 >= len(POSITIONS) or form & 15 >= len(VALUES):
            raise CodecError(f"unknown form byte {form:#x} for {name}")
        places = reference[_decode_positions(reader, POSITIONS[form >> 4], count, reference.size, name)]
        has_values = KINDS[kind] not in PLACES_ONLY
        values = np.empty(0, np.float32) if not has_values else _decode_values(reader, VALUES[form & 15], count, name)
        tensors[name] = SparseTensor(places, values)
    if reader.position != reader.end:
        raise CodecError(f"{reader.end - reader.position} bytes are left behind the last section")
    return Payload(KINDS[kind], model_version, mask_version, tensors)


def quantised(values: np.ndarray, form: Values) -> np.ndarray:
    """What the receiver will get for `values`: decode(encode(x)) without the bytes."""
    data = _encode_values(values, form, "values")
    return _decode_values(_Reader(data, 0, len(data)), form, values.size, "values")


@dataclass(frozen=True)
class _Ranks:
    rank: np.ndarray
    total: int


def _ranks(places: np.ndarray, reference: np.ndarray, name: str) -> _Ranks:
    """Index of each place within the reference set."""
    rank = np.searchsorted(reference, places)
    inside = rank < reference.size
    if not inside.all() or not np.array_equal(reference[rank], places):
        raise ValueError(f"{name} has values outside its mask: they cannot be encoded")
    if places.size > 1 and not (np.diff(places) > 0).all():
        raise ValueError(f"places of {name} are not sorted")
    return _Ranks(rank, reference.size)


def _encode_positions(rank: np.ndarray, total: int) -> tuple[str, bytes]:
    if rank.size == 0:
        return "none", b""
    if rank.size == total:
        return "all", b""
    gaps = _encode_gaps(np.diff(rank, prepend=-1) - 1)
    if len(gaps) < math.ceil(total / 8):
        return "gaps", gaps
    bits = np.zeros(total, dtype=bool)
    bits[rank] = True
    return "bitmap", np.packbits(bits).tobytes()


def _encode_gaps(gaps: np.ndarray) -> bytes:
    """Variable-length bytes, 7 bits each, least significant first, the high bit meaning that more follow; length first."""
    lengths = np.ones(gaps.size, dtype=np.int64)
    for shift in range(7, 35, 7):
        lengths += (gaps >> shift) > 0
    starts = np.cumsum(lengths) - lengths
    out = np.zeros(int(lengths.sum()), dtype=np.uint8)
    for byte in range(int(lengths.max())):
        has = lengths > byte
        out[starts[has] + byte] = (gaps[has] >> (7 * byte) & 0x7F) | np.where(lengths[has] > byte + 1, 0x80, 0)
    return struct.pack("<I", out.size) + out.tobytes()


def _decode_positions(reader: "_Reader", form: str, count: int, total: int, name: str) -> np.ndarray:
    """Ranks within the reference set."""
    if count > total:
        raise CodecError(f"{name} declares {count} values, but only {total} places exist")
    if form == "none" or form == "all":
        if count != (0 if form == "none" else total):
            raise CodecError(f"{name} declares {count} values with positions {form!r} of {total} places")
        return np.arange(count)
    if form == "bitmap":
        data = np.frombuffer(reader.take(math.ceil(total / 8)), dtype=np.uint8)
        rank = np.flatnonzero(np.unpackbits(data, count=total)) if total else np.empty(0, np.int64)
    else:
        size = struct.unpack("<I", reader.take(4))[0]
        if not count <= size <= 5 * count:
            raise CodecError(f"{name} codes {count} gaps in {size} bytes: impossible")
        rank = np.cumsum(_decode_gaps(np.frombuffer(reader.take(size), dtype=np.uint8), name) + 1) - 1
        if rank.size and rank[-1] >= total:
            raise CodecError(f"{name} has a position beyond its {total} places")
    if rank.size != count:
        raise CodecError(f"{name} declares {count} values but codes {rank.size} positions")
    return rank


def _decode_gaps(data: np.ndarray, name: str) -> np.ndarray:
    ends = np.flatnonzero(data < 0x80)
    if not data.size or not ends.size or ends[-1] != data.size - 1:
        raise CodecError(f"gap code of {name} ends in the middle of a number")
    starts = np.concatenate([[0], ends[:-1] + 1])
    if (ends - starts).max() > 4:
        raise CodecError(f"gap code of {name} holds a number of more than 5 bytes")
    shift = 7 * (np.arange(data.size) - np.repeat(starts, ends - starts + 1))
    return np.add.reduceat((data & 0x7F).astype(np.int64) << shift, starts)


def _encode_values(values: np.ndarray, form: Values, name: str) -> bytes:
    if not np.isfinite(values).all():
        raise ValueError(f"{name} holds a value that is NaN or infinite: it is not sent")
    if form in ("f32", "f64"):
        return values.astype("<f4" if form == "f32" else "<f8").tobytes()
    largest = float(np.abs(values).max(initial=0.0))
    if form == "f16":
        exponent = int(np.clip(math.frexp(largest)[1] - 15, -126, 127)) if largest > 0 else 0
        return struct.pack("<b", exponent) + np.ldexp(values, -exponent).astype("<f2").tobytes()
    if values.size and values.min() < 0:
        raise ValueError(f"{name} holds a negative value: u8 is for importance, which has none")
    scale = np.float32(largest / 255)
    codes = np.rint(values / scale).clip(0, 255) if scale > 0 else np.zeros(values.size)
    return struct.pack("<f", scale) + codes.astype(np.uint8).tobytes()


def _decode_values(reader: "_Reader", form: Values, count: int, name: str) -> np.ndarray:
    if form in ("f32", "f64"):
        values = np.frombuffer(reader.take(count * WIDTH[form]), dtype="<f4" if form == "f32" else "<f8")
        values = values.astype(np.float32 if form == "f32" else np.float64)
    elif form == "f16":
        (exponent,) = struct.unpack("<b", reader.take(1))
        values = np.ldexp(np.frombuffer(reader.take(count * 2), dtype="<f2").astype(np.float32), exponent)
    else:
        (scale,) = struct.unpack("<f", reader.take(4))
        values = np.frombuffer(reader.take(count), dtype=np.uint8) * np.float32(scale)
    if not np.isfinite(values).all():
        raise CodecError(f"{name} holds a value that is NaN or infinite")
    return values


class _Reader:
    """Reads a byte string from `position` to `end`, and never beyond."""

    def __init__(self, data: bytes, position: int, end: int):
        self.data, self.position, self.end = data, position, end

    def take(self, count: int) -> bytes:
        if self.position + count > self.end:
            raise CodecError(f"payload ends {self.position + count - self.end} bytes too early: truncated")
        self.position += count
        return self.data[self.position - count : self.position]
