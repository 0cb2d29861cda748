"""A payload: header, one section per tensor, checksum. The decoder trusts nothing.

    magic "SpC" | format version | kind | layout fingerprint | model version | mask version | number of sections
    section: how many tensors were left out before it | form | [count] | [tables] | [block] [scales]
    raw bits, entropy-coded symbols and their remaining bits of all sections (parts.py) | CRC-32

Numbers in headers are variable-length. Positions refer to the reference set of the payload's kind, so a masked tensor of which
every active weight is sent costs no positions at all.
"""

import struct
import zlib
from dataclasses import dataclass, fields

import numpy as np

from sparcl_core.codec import parts, positions, tokens, values
from sparcl_core.codec.bits import Reader, varint
from sparcl_core.codec.layout import CodecError, Layout, Reference, SparseTensor, reference_set
from sparcl_core.codec.parts import Expected
from sparcl_core.codec.values import VALUES, Quantised

VERSION = 2
MAGIC = b"SpC"
_FIXED = struct.Struct("<3sBBI")  # magic, format version, kind, layout fingerprint
# Kinds of model payloads, and of mask payloads. `add` counts its places over the inactive weights, others of these over all weights.
MODEL_KINDS = ("delta", "whole", "statistics")
MASK_KINDS = ("importance", "votes", "grow", "adapt", "drop", "add", "candidates", "keep", "flip")
AUXILIARY = "auxiliary"  # arrays that a method sends beside the model
KINDS = (*MODEL_KINDS, *MASK_KINDS, AUXILIARY)
PLACES_ONLY = ("votes", "grow", "adapt", "drop", "add", "candidates", "keep", "flip")
OVER_ALL = ("whole", "candidates", "keep", "flip")


@dataclass(frozen=True)
class Sizes:
    """Bytes of a message by what they are for; `Sizes() + a + b`.

    values, positions: of the masked tensors; rest: all of the dense tensors; masks: everything about masks (importance, votes,
    mask updates); header: headers, checksums, control; unread: payloads that could not be decoded; auxiliary: all of what a method sends
    beside the model.

    Entropy-coded symbols of all sections share one stream: its bytes are dealt out in proportion to the ideal code lengths.
    """

    values: int = 0
    positions: int = 0
    rest: int = 0
    masks: int = 0
    header: int = 0
    unread: int = 0
    auxiliary: int = 0

    def __add__(self, other: "Sizes") -> "Sizes":
        return Sizes(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    @property
    def total(self) -> int:
        return sum(getattr(self, f.name) for f in fields(self))


@dataclass(frozen=True)
class Payload:
    """A decoded payload."""

    kind: str
    model_version: int
    mask_version: int
    tensors: dict[str, SparseTensor]
    sizes: Sizes


@dataclass(frozen=True)
class Encoded:
    """A payload's bytes, and what they are for."""

    data: bytes
    sizes: Sizes

    def __len__(self) -> int:
        return len(self.data)


def reference(kind: str, layout: Layout, name: str, masks: dict[str, np.ndarray]) -> Reference:
    """The places that positions of `name` are counted over in a payload of `kind`."""
    if kind in OVER_ALL:  # a whole model brings its own masks; those that a device may hold are out of date
        return Reference(layout.size(name))
    if kind == "add":
        places = np.flatnonzero(~masks[name])
        return Reference(places.size, places)
    return reference_set(layout, name, masks)


def encode_places(
    kind: str, layout: Layout, places: dict[str, np.ndarray], masks: dict[str, np.ndarray], *, versions: tuple[int, int]
) -> Encoded:
    """A payload of places only. `places`: sorted flat int64 per tensor; `versions`: of the model and of the masks."""
    empty = np.empty(0, dtype=np.int64)
    tensors = {}
    for name, own in places.items():
        over = reference(kind, layout, name, masks)
        tensors[name] = Quantised(own, over.ranks(own, name), over.total, "f32", empty, empty, 0)
    return encode(kind, layout, tensors, model_version=versions[0], mask_version=versions[1])


def encode(kind: str, layout: Layout, tensors: dict[str, Quantised], *, model_version: int, mask_version: int) -> Encoded:
    """Encode `tensors`, a subset of the layout, quantised against the references of `kind`. A `delta` leaves out what did not change."""
    order = {name: index for index, name in enumerate(layout.shapes)}
    head = _FIXED.pack(MAGIC, VERSION, KINDS.index(kind), layout.fingerprint)
    present = [name for name in sorted(tensors, key=order.__getitem__) if tensors[name].ranks.size or kind != "delta"]
    head += varint(model_version) + varint(mask_version) + varint(len(present))
    everything, tally, last = [], _Tally(layout), -1
    for name in present:
        tensor = tensors[name]
        form, where = positions.encode(tensor.ranks, tensor.total)
        is_coded, codes = (False, []) if kind in PLACES_ONLY else values.parts(tensor)
        own = [where, *codes] if where else codes
        head += varint(order[name] - last - 1)
        head += bytes([positions.FORMS.index(form) | VALUES.index(tensor.form) << 3 | is_coded << 7])
        if form not in ("none", "all"):
            head += varint(tensor.ranks.size)
        head += b"".join(part.stated for part in own)
        scales = b""
        if codes and tensor.form in (*values.LIMIT, "f16"):
            scales = tensor.scales.astype("<u2" if tensor.form != "f16" else np.uint8).tobytes()
            head += (varint(tensor.block) if tensor.form in values.LIMIT else b"") + scales
        everything += own
        ideal = where.bits if where else 0, sum(part.bits for part in codes)
        tally.add(name, *ideal, stated=sum(len(part.stated) for part in own), scales=len(scales))
        last = order[name]
    body = head + parts.write(everything)
    body += struct.pack("<I", zlib.crc32(body))
    return Encoded(body, tally.sizes(kind, len(body), len(head) + 4))


def decode(payload: bytes, layout: Layout, masks: dict[str, np.ndarray]) -> Payload:
    """The inverse of `encode`, given the same layout and masks. Values come back as float32 (float64 for `f64`).

    Raises:
        CodecError: if anything about the payload is wrong.

    Memory: whatever the payload declares, at most 40 bytes per value of the layout at any time, which is ten times the model in float32
    (12 are the result, 16 of f64, and 8 the places of a mask), and 20 kB for each table of frequencies.
    """
    if len(payload) < _FIXED.size + 7:
        raise CodecError(f"payload of {len(payload)} bytes is shorter than a header: truncated")
    magic, version, kind, fingerprint = _FIXED.unpack_from(payload)
    if magic != MAGIC:
        raise CodecError(f"payload starts with {magic!r}, not {MAGIC!r}: not a SparCL payload")
    if version != VERSION:
        raise CodecError(f"payload has format version {version}, this code reads {VERSION}: use the same release on both sides")
    if zlib.crc32(memoryview(payload)[:-4]) != struct.unpack_from("<I", payload, len(payload) - 4)[0]:
        raise CodecError("checksum does not match: the payload is damaged")
    if kind >= len(KINDS):
        raise CodecError(f"payload is of kind {kind}, which does not exist")
    if fingerprint != layout.fingerprint:
        raise CodecError("payload was made for another model: names, shapes or sparse layers differ")
    reader = Reader(payload, _FIXED.size, len(payload) - 4)
    model_version, mask_version, count = reader.varint(), reader.varint(), reader.varint(len(layout.shapes))
    sections = _read_sections(reader, kind=KINDS[kind], count=count, layout=layout, masks=masks)
    head = reader.position + 4
    found = parts.read(reader, [part for section in sections for part in section.expected])[::-1]
    if reader.left:
        raise CodecError(f"{reader.left} bytes are left behind the last section")
    tensors, tally = {}, _Tally(layout)
    for section in sections:
        own = [found.pop() for _ in section.expected]  # so that nothing holds them for longer than `tensor` does
        bits = [bits for _, bits in own]
        tensors[section.name] = section.tensor([own.pop(0)[0] for _ in section.expected])
        stated = sum(len(part.table.data) for part in section.expected if part.table)
        lists, values = sum(bits[: section.lists]), sum(bits[section.lists :])
        tally.add(section.name, lists, values, stated=stated, scales=section.scale_bytes)
    return Payload(KINDS[kind], model_version, mask_version, tensors, tally.sizes(KINDS[kind], len(payload), head))


@dataclass(frozen=True)
class _Section:
    """A section as its header describes it."""

    name: str
    over: Reference
    where: str
    count: int
    form: str
    has_values: bool
    is_coded: bool
    expected: list[Expected]
    scales: np.ndarray
    scale_bytes: int
    block: int

    @property
    def lists(self) -> int:
        """1 if the first of the parts is the positions, else 0."""
        return int(self.where not in ("none", "all"))

    def tensor(self, numbers: list[np.ndarray]) -> SparseTensor:
        """What the section says. Takes the numbers out of the list, so that they are gone before all of it is in memory."""
        ranks = positions.decode(self.where, numbers.pop(0) if self.lists else None, self.count, self.over.total)
        if ranks is None:
            raise CodecError(f"{self.name} codes positions that are not {self.count} of its {self.over.total} places")
        if not self.has_values:
            return SparseTensor(self.over.at(ranks), np.empty(0, np.float32))
        codes = values.joined(self.form, self.is_coded, self.count, numbers=numbers, name=self.name)
        numbers.clear()
        found = values.dequantise(self.form, codes, self.scales, ranks=ranks, block=self.block)
        if found.size and not np.isfinite(found).all():
            raise CodecError(f"{self.name} holds a value that is NaN or infinite")
        return SparseTensor(self.over.at(ranks), found)


def _read_sections(reader: Reader, *, kind: str, count: int, layout: Layout, masks: dict[str, np.ndarray]) -> list[_Section]:
    names, last, sections = list(layout.shapes), -1, []
    for _ in range(count):
        index = last + 1 + reader.varint(len(names))
        if index >= len(names):
            raise CodecError(f"section for tensor {index}, but the model has {len(names)}")
        last = index
        if kind in MASK_KINDS and names[index] not in masks:
            raise CodecError(f"{names[index]} has no mask, so a payload of kind {kind!r} cannot speak of it")
        sections.append(_read_section(reader, kind, names[index], reference(kind, layout, names[index], masks)))
    return sections


def _read_section(reader: Reader, kind: str, name: str, over: Reference) -> _Section:
    flags = reader.byte()
    if flags & 7 >= len(positions.FORMS) or flags >> 3 & 15 >= len(VALUES):
        raise CodecError(f"unknown form {flags:#x} for {name}")
    where, form, is_coded = positions.FORMS[flags & 7], VALUES[flags >> 3 & 15], bool(flags >> 7)
    count = {"none": 0, "all": over.total}.get(where)
    if count is None:
        count = reader.varint()
        if count > over.total:
            raise CodecError(f"{name} declares {count} values, but only {over.total} places exist")
    listed = positions.listed(where, count, over.total)
    expected = []
    if where == "bitmap":
        expected.append(Expected(listed, 1))
    elif where in ("gaps", "holes"):
        expected.append(Expected(listed, table=tokens.read_table(reader, tokens.token(max(over.total - 1, 0)))))
    has_values, scales, block, scale_bytes = kind not in PLACES_ONLY, np.empty(0, np.uint16), 0, 0
    if has_values and count:
        table = tokens.read_table(reader, values.highest_token(form)) if is_coded else None
        expected += values.expected(form, is_coded, count, table)
        block = reader.varint() if form in values.LIMIT else 0
        scale_bytes = (1 if form == "f16" else 2) * values.num_scales(form, over.total, block)
        scales = np.frombuffer(reader.take(scale_bytes), dtype="<u2" if form != "f16" else np.uint8).astype(np.uint16)
        if form in values.LIMIT and (scales > values.highest_scale(form)).any():
            raise CodecError(f"{name} has a scale that is negative, infinite or too large: damaged")
    return _Section(name, over, where, count, form, has_values, is_coded, expected, scales, scale_bytes, block)


class _Tally:
    """What a payload's bytes are for: exact for headers, in proportion to ideal code lengths for the rest."""

    def __init__(self, layout: Layout):
        self.layout = layout
        self.values = self.positions = self.rest = 0.0
        self.stated = 0

    def add(self, name: str, positions: float, values: float, *, stated: int, scales: int) -> None:
        """One section: ideal bits (tables included) of its parts, bytes of its tables, bytes of its scales."""
        self.stated += stated + scales
        if name in self.layout.masked:
            self.positions += positions
            self.values += values + 8 * scales
        else:
            self.rest += positions + values + 8 * scales

    def sizes(self, kind: str, total: int, head: int) -> Sizes:
        """`head`: bytes of headers and checksum, tables and scales included."""
        if kind in MASK_KINDS:
            return Sizes(masks=total)
        if kind == AUXILIARY:
            return Sizes(auxiliary=total)
        header = head - self.stated
        ideal = self.values + self.positions + self.rest
        unit = (total - header) / ideal if ideal else 0.0
        own = round(self.values * unit)
        where = round((self.values + self.positions) * unit) - own
        return Sizes(own, where, total - header - own - where, 0, header)
