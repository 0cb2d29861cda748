"""The codec: what is decoded is what was sent, and nothing that is damaged gets through."""

import math
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparcl_core import codec
from sparcl_core.codec import CodecError, Layout, Payload, SparseTensor, decode, encode, quantised

LAYOUT = Layout({"conv": (4, 3, 3, 3), "fc": (5, 7), "bias": (5,), "scale": ()}, frozenset({"conv", "fc"}))
DTYPE = {"f32": np.float32, "f64": np.float64, "f16": np.float32, "u8": np.float32}


def subset(draw, places: np.ndarray) -> np.ndarray:
    """None, all, few or any of `places`."""
    how = draw(st.sampled_from(("none", "all", "few", "any")))
    if how in ("none", "all") or not places.size:
        return places if how == "all" else places[:0]
    limit = 3 if how == "few" else places.size
    chosen = draw(st.sets(st.integers(0, places.size - 1), max_size=limit))
    return places[sorted(chosen)]


@st.composite
def messages(draw, width: int, least: float | None = None, largest: float | None = None):
    """Masks of both sides and tensors inside them; values: any that a float of `width` bits can hold, or in [least, largest]."""
    masks = {}
    for name in sorted(LAYOUT.masked):
        mask = np.zeros(LAYOUT.size(name), dtype=bool)
        mask[subset(draw, np.arange(mask.size))] = True
        masks[name] = mask.reshape(LAYOUT.shapes[name])
    numbers = st.floats(least, largest, width=width, allow_nan=False, allow_infinity=False)
    tensors = {}
    for name in draw(st.sets(st.sampled_from(list(LAYOUT.shapes)))):
        reference = np.flatnonzero(masks[name]) if name in masks else np.arange(LAYOUT.size(name))
        places = subset(draw, reference)
        values = draw(st.lists(numbers, min_size=places.size, max_size=places.size))
        tensors[name] = SparseTensor(places, np.array(values, dtype=f"f{width // 8}"))
    return masks, tensors


def assert_same(decoded: Payload, tensors: dict[str, SparseTensor], values: dict[str, np.ndarray]) -> None:
    assert decoded.tensors.keys() == tensors.keys()
    for name, tensor in decoded.tensors.items():
        assert np.array_equal(tensor.places, tensors[name].places)
        assert tensor.values.dtype == values[name].dtype
        assert tensor.values.tobytes() == values[name].tobytes()  # bits, so that -0.0 counts too


@pytest.mark.parametrize("form", ["f32", "f64"])
@given(st.data())
def test_lossless_round_trip_is_exact(form, data):
    masks, tensors = data.draw(messages(width=32 if form == "f32" else 64))
    decoded = decode(encode("delta", LAYOUT, tensors, masks, form, 7, 3), LAYOUT, masks)
    assert (decoded.kind, decoded.model_version, decoded.mask_version) == ("delta", 7, 3)
    assert_same(decoded, tensors, {name: tensor.values for name, tensor in tensors.items()})


@given(messages(width=32))
def test_round_trip_without_masks_needs_no_knowledge_of_them(message):
    """A whole model goes to a device that has no masks yet: its positions count over all places."""
    _, tensors = message
    decoded = decode(encode("whole", LAYOUT, tensors, {}, "f32", 1, 0), LAYOUT, {})
    assert_same(decoded, tensors, {name: tensor.values for name, tensor in tensors.items()})


@given(messages(width=32, least=-(2.0**100), largest=2.0**100))  # what rounds up to 2^128 is no float32 any more
def test_quantised_is_what_the_receiver_gets_from_f16(message):
    masks, tensors = message
    decoded = decode(encode("delta", LAYOUT, tensors, masks, "f16", 1, 0), LAYOUT, masks)
    assert_same(decoded, tensors, {name: quantised(tensor.values, "f16") for name, tensor in tensors.items()})


@given(messages(width=64, least=0.0, largest=2.0**100))
def test_quantised_is_what_the_receiver_gets_from_u8(message):
    masks, tensors = message
    decoded = decode(encode("importance", LAYOUT, tensors, masks, "u8", 1, 0), LAYOUT, masks)
    assert_same(decoded, tensors, {name: quantised(tensor.values, "u8") for name, tensor in tensors.items()})


@given(st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1, max_size=40))
def test_f16_keeps_eleven_bits_of_everything_near_the_largest_value(numbers):
    """Half precision rounds to 11 significant bits: relative error 2^-11 in its normal range.

    Scaled so that the largest value lies in [2^14, 2^15), the range reaches down to 2^-14, that is 2^-29 of the largest; what
    is smaller is rounded to multiples of 2^-24, so it errs by at most 2^-25 of a scaled unit, 2^-39 of the largest.
    """
    values = np.array(numbers, dtype=np.float32)
    error = np.abs(quantised(values, "f16").astype(float) - values)
    floor = 2.0**-39 * np.abs(values).max().astype(float) + 2.0**-149  # and a float32 cannot say less than 2^-149
    assert (error <= np.maximum(2.0**-11 * np.abs(values.astype(float)), floor)).all()


def test_f16_does_not_lose_tiny_updates():
    """1e-9 is below the smallest half (6e-8): without the exponent of the tensor it would arrive as 0."""
    values = np.array([1e-9, -3e-10, 2e-12], dtype=np.float32)
    assert np.allclose(quantised(values, "f16"), values, rtol=2**-11, atol=0)


@given(st.lists(st.floats(0, 2.0**100, width=32), min_size=1, max_size=40))
def test_u8_errs_by_half_a_step_at_most(numbers):
    """255 steps of largest / 255."""
    values = np.array(numbers, dtype=np.float32)
    step = values.max().astype(float) / 255
    assert (np.abs(quantised(values, "u8") - values.astype(float)) <= 0.5001 * step + 2.0**-140).all()


@pytest.mark.parametrize("kind", codec.PLACES_ONLY)
@given(messages(width=32))
def test_mask_updates_carry_places_and_no_values(kind, message):
    masks, tensors = message
    payload = encode(kind, LAYOUT, tensors, masks, "f32", 1, 2)
    decoded = decode(payload, LAYOUT, masks)
    assert decoded.kind == kind and decoded.mask_version == 2
    assert_same(decoded, tensors, {name: np.empty(0, np.float32) for name in tensors})


def gap_bytes(places: np.ndarray) -> int:
    """Length of the gap code, counted one number at a time: 4 bytes of length, then 7 bits a byte."""
    gaps = [int(place) - int(before) - 1 for before, place in zip([-1, *places[:-1]], places, strict=True)]
    return 4 + sum(max(1, math.ceil(gap.bit_length() / 7)) for gap in gaps)


@settings(max_examples=150)
@given(st.integers(1, 3000), st.data())
def test_the_smallest_form_of_positions_is_chosen(total, data):
    layout = Layout({"w": (total,)}, frozenset())
    count = data.draw(st.one_of(st.just(0), st.just(total), st.integers(0, min(total, 40)), st.integers(0, total)))
    places = np.sort(np.random.default_rng(total).permutation(total)[:count])
    payload = encode("adapt", layout, {"w": SparseTensor(places, np.empty(0))}, {}, "f32", 1, 1)
    smallest = min(math.ceil(total / 8), gap_bytes(places)) if 0 < count < total else 0
    assert len(payload) == codec.HEADER.size + 7 + smallest + 4  # header, section head, positions, checksum
    assert np.array_equal(decode(payload, layout, {}).tensors["w"].places, places)


def test_gaps_of_every_length():
    """7 bits a byte: up to 127 in one, 16,383 in two, 2,097,151 in three."""
    gaps = {0: 1, 127: 1, 128: 2, 16_383: 2, 16_384: 3, 2_097_151: 3, 2_097_152: 4}
    places = np.cumsum(np.array(list(gaps)) + 1) - 1
    layout = Layout({"w": (5_000_000,)}, frozenset())
    payload = encode("adapt", layout, {"w": SparseTensor(places, np.empty(0))}, {}, "f32", 1, 1)
    assert len(payload) == codec.HEADER.size + 7 + 4 + sum(gaps.values()) + 4
    assert np.array_equal(decode(payload, layout, {}).tensors["w"].places, places)


def test_payload_byte_by_byte():
    """One tensor of 20 places, active at 1, 4, 7, 9, 18; values 1.0 at 4 and -2.0 at 18: ranks 1 and 4 of 5 active places."""
    layout = Layout({"w": (4, 5)}, frozenset({"w"}))
    mask = np.zeros(20, dtype=bool)
    mask[[1, 4, 7, 9, 18]] = True
    tensor = SparseTensor(np.array([4, 18]), np.array([1.0, -2.0], dtype=np.float32))
    payload = encode("delta", layout, {"w": tensor}, {"w": mask.reshape(4, 5)}, "f32", 5, 2)

    header = b"SpCL" + bytes([1, 0]) + struct.pack("<IIII", zlib.crc32(b"w[4, 5]True"), 5, 2, 1)
    section = struct.pack("<HBI", 0, 2 << 4 | 0, 2)  # tensor 0, bitmap and f32, two values
    bitmap = bytes([0b01001000])  # the first place is the highest bit
    body = header + section + bitmap + struct.pack("<ff", 1.0, -2.0)
    assert payload == body + struct.pack("<I", zlib.crc32(body))


def sample_payload(form: str = "f32", kind: str = "delta") -> tuple[bytes, dict[str, np.ndarray]]:
    """A payload with all forms of positions: gaps, bitmap, all, none."""
    layout, rng = BROAD, np.random.default_rng(1)
    masks = {"wide": rng.random(400) < 0.9, "half": rng.random(60) < 0.5}
    places = {
        "wide": np.flatnonzero(masks["wide"])[[3, 200, 201, 340]],
        "half": np.flatnonzero(masks["half"])[::2],
        "dense": np.arange(6),
        "quiet": np.arange(0),
    }
    tensors = {name: SparseTensor(where, rng.random(where.size).astype(DTYPE[form])) for name, where in places.items()}
    return encode(kind, layout, tensors, masks, form, 4, 2), masks


BROAD = Layout({"wide": (400,), "half": (60,), "dense": (6,), "quiet": (9,)}, frozenset({"wide", "half"}))


def checksummed(body: bytes) -> bytes:
    return body + struct.pack("<I", zlib.crc32(body))


def test_every_damaged_byte_is_noticed():
    payload, masks = sample_payload()
    for place in range(len(payload)):
        for flip in (1, 2, 4, 8, 16, 32, 64, 128, 255):
            damaged = bytearray(payload)
            damaged[place] ^= flip
            with pytest.raises(CodecError):
                decode(bytes(damaged), BROAD, masks)


def test_every_truncation_and_extension_is_noticed():
    payload, masks = sample_payload()
    for length in range(len(payload)):
        with pytest.raises(CodecError):
            decode(payload[:length], BROAD, masks)
        with pytest.raises(CodecError):  # the same with a checksum that fits: the sections do not add up
            decode(checksummed(payload[: min(length, len(payload) - 5)]), BROAD, masks)
    with pytest.raises(CodecError, match="checksum"):
        decode(payload + b"\0", BROAD, masks)
    with pytest.raises(CodecError, match="1 bytes are left"):
        decode(checksummed(payload[:-4] + b"\0"), BROAD, masks)


def mutate(body: bytes, rng: np.random.Generator) -> bytes:
    """One to three wounds of the kinds that a broken or hostile sender inflicts."""
    data = bytearray(body)
    for _ in range(rng.integers(1, 4)):
        start = int(rng.integers(len(data)))
        how = rng.integers(5)
        if how == 0:
            data[start] ^= int(rng.integers(1, 256))
        elif how == 1:  # a count or a length that is far too large, or 0
            data[start : start + 4] = struct.pack("<I", int(rng.choice([0, 1, 255, 2**16, 2**31, 2**32 - 1])))[: len(data) - start]
        elif how == 2:
            del data[start : start + int(rng.integers(1, 9))]
        elif how == 3:
            data[start:start] = rng.bytes(int(rng.integers(1, 9)))
        else:
            length = int(rng.integers(1, 20))
            data[start : start + length] = rng.bytes(min(length, len(data) - start))
        data = data or bytearray(b"\0")
    return bytes(data)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # a damaged scale may overflow on its way to being refused
@pytest.mark.parametrize(("form", "kind"), [("f32", "delta"), ("f64", "whole"), ("f16", "delta"), ("u8", "importance"), ("f32", "adapt")])
def test_damage_behind_a_good_checksum_decodes_or_is_refused(form, kind):
    """The checksum is no secret: past it, every length must still be checked. 100 kB is far more than this model needs, and far less
    than what a forged count of 2^32 would take."""
    payload, masks = sample_payload(form, kind)
    rng, decoded, refused = np.random.default_rng(0), 0, 0
    tracemalloc.start()
    try:
        for _ in range(900):
            damaged = checksummed(mutate(payload[:-4], rng))
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            try:
                result = decode(damaged, BROAD, masks)
            except CodecError:
                refused += 1
            else:
                decoded += 1
                for name, tensor in result.tensors.items():
                    is_coded_by_mask = name in masks and result.kind != "whole"
                    reference = np.flatnonzero(masks[name]) if is_coded_by_mask else np.arange(BROAD.size(name))
                    assert (np.diff(tensor.places) > 0).all() and np.isin(tensor.places, reference).all()
                    assert np.isfinite(tensor.values).all()
                    assert tensor.values.size == (0 if result.kind in codec.PLACES_ONLY else tensor.places.size)
            assert tracemalloc.get_traced_memory()[1] - before < 100_000
    finally:
        tracemalloc.stop()
    assert decoded and refused > 400  # both kinds of outcome were really met


def forged(section: bytes) -> bytes:
    """A payload for BROAD with one section, written by hand."""
    return checksummed(codec.HEADER.pack(b"SpCL", 1, 0, BROAD.fingerprint, 1, 0, 1) + section)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        (struct.pack("<HBI", 9, 0, 0), "out of range"),
        (struct.pack("<HBI", 0, 0x40, 0), "unknown form"),
        (struct.pack("<HBI", 0, 0x04, 0), "unknown form"),
        (struct.pack("<HBI", 2, 0x00, 1), "declares 1 values"),  # none, but one value
        (struct.pack("<HBI", 2, 0x10, 5), "declares 5 values"),  # all, but 5 of 6
        (struct.pack("<HBI", 2, 0x20, 7), "only 6 places"),
        (struct.pack("<HBI", 2, 0x20, 2) + b"\x80" + bytes(8), "codes 1 positions"),
        (struct.pack("<HBI", 2, 0x30, 1) + struct.pack("<I", 2**32 - 1), "impossible"),
        (struct.pack("<HBI", 2, 0x30, 1) + struct.pack("<I", 1) + b"\x06" + bytes(4), "beyond its 6 places"),
        (struct.pack("<HBI", 2, 0x30, 1) + struct.pack("<I", 1) + b"\x80" + bytes(4), "middle of a number"),
        (struct.pack("<HBI", 2, 0x30, 2) + struct.pack("<I", 7) + b"\x80\x80\x80\x80\x80\x00\x00", "more than 5 bytes"),
        (struct.pack("<HBI", 2, 0x30, 0) + struct.pack("<I", 0), "middle of a number"),
        (struct.pack("<HBI", 2, 0x20, 1) + b"\x80" + struct.pack("<f", math.nan), "NaN or infinite"),
    ],
)
def test_forged_sections_are_named(section, message):
    with pytest.raises(CodecError, match=message):
        decode(forged(section), BROAD, {})


def test_sections_out_of_order_or_twice_are_refused():
    section = struct.pack("<HBI", 3, 0x00, 0)
    for other in (section, struct.pack("<HBI", 2, 0x00, 0)):
        payload = checksummed(codec.HEADER.pack(b"SpCL", 1, 0, BROAD.fingerprint, 1, 0, 2) + section + other)
        with pytest.raises(CodecError, match="out of order"):
            decode(payload, BROAD, {})


def test_payload_of_another_model_is_refused():
    payload, masks = sample_payload()
    others = [
        Layout({**BROAD.shapes, "dense": (7,)}, BROAD.masked),
        Layout({("bias" if name == "dense" else name): shape for name, shape in BROAD.shapes.items()}, BROAD.masked),
        Layout(BROAD.shapes, frozenset({"wide"})),
        Layout(dict(reversed(BROAD.shapes.items())), BROAD.masked),
    ]
    for other in others:
        with pytest.raises(CodecError, match="another model"):
            decode(payload, other, masks)


def test_payload_of_another_format_is_refused():
    payload, masks = sample_payload()
    with pytest.raises(CodecError, match="format version 2"):
        decode(checksummed(payload[:4] + b"\x02" + payload[5:-4]), BROAD, masks)
    with pytest.raises(CodecError, match="not a SparCL payload"):
        decode(checksummed(b"PNG!" + payload[4:-4]), BROAD, masks)
    with pytest.raises(CodecError, match="truncated"):
        decode(b"", BROAD, masks)
    with pytest.raises(CodecError, match="another model"):  # a kind that does not exist
        decode(checksummed(payload[:5] + b"\x63" + payload[6:-4]), BROAD, masks)


@pytest.mark.parametrize("form", codec.VALUES)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_no_value_that_is_not_finite_is_sent(form, bad):
    tensors = {"bias": SparseTensor(np.arange(2), np.array([0.5, bad]))}
    with pytest.raises(ValueError, match="bias holds a value that is NaN or infinite"):
        encode("delta", LAYOUT, tensors, {}, form, 1, 0)


def test_what_the_receiver_could_not_place_is_not_encoded():
    mask = {"fc": np.eye(5, 7, dtype=bool)}
    for places in ([1], [34, 35], [-1]):
        with pytest.raises(ValueError, match="outside its mask"):
            encode("delta", LAYOUT, {"fc": SparseTensor(np.array(places), np.ones(len(places)))}, mask, "f32", 1, 0)
    for places in ([8, 0], [0, 0]):
        with pytest.raises(ValueError, match="not sorted"):
            encode("delta", LAYOUT, {"fc": SparseTensor(np.array(places), np.ones(2))}, mask, "f32", 1, 0)
    with pytest.raises(ValueError, match="negative"):
        encode("importance", LAYOUT, {"bias": SparseTensor(np.arange(1), np.array([-0.1]))}, {}, "u8", 1, 0)


def test_dense_bytes_are_four_per_value():
    assert LAYOUT.dense_bytes == 4 * (108 + 35 + 5 + 1)
