"""Payloads: what is decoded is what was sent, every byte is accounted for, and nothing that is damaged gets through."""

import itertools
import struct
import zlib

import codec_oracles as slow
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparcl_core.codec import (
    KINDS,
    MASK_KINDS,
    PLACES_ONLY,
    VALUES,
    CodecError,
    Layout,
    SparseTensor,
    decode,
    encode,
    encode_places,
    payload,
    positions,
    quantise,
    reference,
    tokens,
    values,
)
from sparcl_core.codec.bits import varint

NOTHING = np.empty(0, np.float32)


def masks_for(kind: str) -> list[dict]:
    """A mask payload speaks of masks; a model payload may come before there are any."""
    return [slow.MASKS] if kind in MASK_KINDS else [slow.MASKS, {}]


@pytest.mark.parametrize("form", VALUES)
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in PLACES_ONLY])
def test_what_is_decoded_is_what_was_quantised(kind, form):
    """Every form of positions, block of scales and rounding, with and without masks; and the sizes are the receiver's too."""
    for where, block, stochastic, masks in itertools.product(slow.SHARES, (0, 7, 1000), (False, True), masks_for(kind)):
        encoded, tensors = slow.message(kind, form, where, masks, block, stochastic)
        decoded = decode(encoded.data, slow.SMALL, masks)
        assert (decoded.kind, decoded.model_version, decoded.mask_version) == (kind, 7, 3)
        slow.assert_same(decoded, tensors)
        slow.assert_fits(decoded, slow.SMALL, masks)
        assert decoded.sizes == encoded.sizes and encoded.sizes.total == len(encoded) == len(encoded.data)


@pytest.mark.parametrize("where", slow.SHARES)
@pytest.mark.parametrize("kind", PLACES_ONLY)
def test_mask_updates_carry_places_and_no_values(kind, where):
    rng, places = np.random.default_rng(3), {}
    for name in slow.MASKS:
        over = reference(kind, slow.SMALL, name, slow.MASKS)
        places[name] = slow.places_of(where, over.at(np.arange(over.total)), rng)
    encoded = encode_places(kind, slow.SMALL, places, slow.MASKS, versions=(7, 3))
    decoded = decode(encoded.data, slow.SMALL, slow.MASKS)
    slow.assert_same(decoded, {name: SparseTensor(own, NOTHING) for name, own in places.items()})
    assert decoded.sizes == encoded.sizes and encoded.sizes.masks == len(encoded)


def test_the_messages_above_use_every_form_of_positions_and_of_codes():
    """Otherwise the round trips would prove less than they seem to: the byte behind the first section's name says what was chosen."""
    seen = set()
    for form, where in itertools.product(VALUES, slow.SHARES):
        data = slow.message("whole", form, where, {})[0].data
        seen.add((positions.FORMS[data[13] & 7], VALUES[data[13] >> 3 & 15], bool(data[13] >> 7)))
    assert {where for where, _, _ in seen} == set(positions.FORMS)
    assert {form for _, form, _ in seen} == set(VALUES)
    assert {is_coded for _, _, is_coded in seen} == {False, True}


def subset(draw, places: np.ndarray) -> np.ndarray:
    """None, all, few or any of `places`."""
    how = draw(st.sampled_from(("none", "all", "few", "any")))
    if how in ("none", "all") or not places.size:
        return places if how == "all" else places[:0]
    chosen = draw(st.sets(st.integers(0, places.size - 1), max_size=3 if how == "few" else places.size))
    return places[sorted(chosen)]


TINY = Layout({"conv": (2, 3, 3, 3), "fc": (5, 7), "bias": (5,), "scale": (), "no": (0, 4)}, frozenset({"conv", "fc"}))


@st.composite
def messages(draw, form: str):
    """Masks of both sides and tensors inside them, with any values that the form can express; also masks of which nothing is left."""
    masks = {name: np.zeros(TINY.size(name), dtype=bool) for name in draw(st.sets(st.sampled_from(sorted(TINY.masked))))}
    for mask in masks.values():
        mask[subset(draw, np.arange(mask.size))] = True
    least, largest = (None, None) if form in ("f32", "f64") else (0.0 if form in ("u8", "u4") else -(2.0**127), 2.0**127)
    width = 64 if form == "f64" else 32
    numbers = st.floats(least, largest, width=width, allow_nan=False, allow_infinity=False)
    tensors = {}
    for name in draw(st.sets(st.sampled_from(list(TINY.shapes)))):
        over = reference("delta", TINY, name, masks)
        places = subset(draw, over.at(np.arange(over.total)))
        drawn = draw(st.lists(numbers, min_size=places.size, max_size=places.size))
        tensors[name] = SparseTensor(places, np.array(drawn, dtype=f"f{width // 8}"))
    return masks, tensors


@pytest.mark.parametrize("form", VALUES)
@given(st.data())
def test_any_message_round_trips(form, data):
    masks, tensors = data.draw(messages(form))
    block, seed = data.draw(st.sampled_from((0, 1, 3, 10**6))), data.draw(st.sampled_from((None, 5)))
    rng = None if seed is None else np.random.default_rng(seed)
    sent = {n: quantise(t, reference("delta", TINY, n, masks), form, n, rng=rng, block=block) for n, t in tensors.items()}
    encoded = encode("delta", TINY, sent, model_version=2**32 - 1, mask_version=0)
    decoded = decode(encoded.data, TINY, masks)
    slow.assert_same(decoded, {name: SparseTensor(own.places, own.values) for name, own in sent.items() if own.places.size})
    assert decoded.sizes == encoded.sizes and encoded.sizes.total == len(encoded) and decoded.model_version == 2**32 - 1
    if form in ("f32", "f64"):
        assert all(np.array_equal(tensor.values, tensors[name].values) for name, tensor in decoded.tensors.items())


def test_a_delta_leaves_out_what_did_not_change_and_others_do_not():
    none = SparseTensor(np.arange(0), np.empty(0, np.float32))
    for form in VALUES:
        tensors = {n: quantise(none, reference("delta", TINY, n, {}), form, n) for n in TINY.shapes}
        assert decode(encode("delta", TINY, tensors, model_version=1, mask_version=1).data, TINY, {}).tensors == {}
        assert decode(encode("whole", TINY, tensors, model_version=1, mask_version=1).data, TINY, {}).tensors.keys() == TINY.shapes.keys()


# --- bytes -----------------------------------------------------------------------------------------------------------

HAND = Layout({"w": (4, 5), "b": (2,)}, frozenset({"w"}))


def test_payload_byte_by_byte():
    """20 places, active at 1, 4, 7, 9, 18; values 1.0 at 4 and -2.0 at 18: ranks 1 and 4 of 5 active places. `b` did not change."""
    mask = {"w": np.isin(np.arange(20), (1, 4, 7, 9, 18))}
    tensor = SparseTensor(np.array([4, 18]), np.array([1.0, -2.0], dtype=np.float32))
    encoded = encode(
        "delta", HAND, {"w": quantise(tensor, reference("delta", HAND, "w", mask), "f32", "w")}, model_version=300, mask_version=2
    )

    head = b"SpC" + bytes([2, 0]) + struct.pack("<I", zlib.crc32(b"w[4, 5]TrueFalse;b[2]FalseFalse")) + b"\xac\x02" + bytes([2, 1])
    section = bytes([0, 2 | 1 << 3, 2])  # tensor 0, bitmap and f32, two values
    bitmap = bytes([0b01001000])  # the first place is the highest bit
    body = head + section + bitmap + struct.pack(">ff", 1.0, -2.0)
    assert encoded.data == body + struct.pack("<I", zlib.crc32(body))
    assert vars(encoded.sizes) == {
        "values": 8,
        "positions": 1,
        "rest": 0,
        "masks": 0,
        "header": len(head) + 3 + 4,
        "unread": 0,
        "auxiliary": 0,
    }


def test_integers_byte_by_byte():
    """3.0 and -127.0 of 20 places with a scale of 1 = 0x3F80: signs 01, sizes less 1 as 7 bits 2 and 126, in one part each."""
    tensor = SparseTensor(np.array([0, 1]), np.array([3.0, -127.0], dtype=np.float32))
    data = encode(
        "delta", HAND, {"b": quantise(tensor, reference("delta", HAND, "b", {}), "int8", "b")}, model_version=0, mask_version=0
    ).data
    section = bytes([1, 1 | 4 << 3, 0]) + b"\x80\x3f"  # one tensor left out; all, int8; one scale for all
    assert data[12:-4] == section + bytes([0b01000000]) + bytes([0b00000101, 0b11111000])


def everything_golden() -> bytes:
    """Whole numbers only, so that no rounding of a machine's mathematics comes in: both kinds of table, bits behind tokens, all parts."""
    layout = Layout({"w": (40, 50), "v": (30,), "b": (3,)}, frozenset({"w", "v"}))
    places = np.cumsum([1 + (i * i) % 23 + (200 if i == 40 else 0) for i in range(120)])
    numbers = np.array([((i * 7) % 11 - 5.5) * (1 + (i % 5 == 0) * 6) for i in range(120)], dtype=np.float32)
    tensors = {
        "w": quantise(SparseTensor(places, numbers), reference("delta", layout, "w", {}), "int8", "w", block=500),
        "v": quantise(SparseTensor(np.arange(1, 30), numbers[:29]), reference("delta", layout, "v", {}), "bf16", "v"),
        "b": quantise(SparseTensor(np.arange(3), numbers[:3]), reference("delta", layout, "b", {}), "f16", "b"),
    }
    return encode("delta", layout, tensors, model_version=5, mask_version=260).data


def test_golden_payload():
    """A change of any byte is a change of the format: raise VERSION, then renew this text."""
    assert payload.VERSION == 2
    assert everything_golden().hex() == GOLDEN_HEX


GOLDEN_HEX = (
    "5370430200693f3e720584020300a37800371e1b01ba0000b90000ba0000bf000000ba00a30000008f00008f95008f87f4039c3e9c3e9c3e0000001c1d0100f1"
    "0011775b4b696d2da5b4b696c21a3fc0c02040903f00c1c44060bf00c0904020c128c0b03fc0c02040904060c0604060bf00c090418cbfc0c0b03fc0c02041fc"
    "3f00c0604060f4d06200e5009ec2b500fc913e072826d2029adb4ea984a7a8f3995997a1f12408db4027a0439e0d64f9845b50bd0e799ddd25cde2790c0db3bb"
    "63874e0d196481e9faa3b72461dbd304a47bed234533d6e5258c34a5b9a8b5078dd842831fcdfd353dca33314b287411842bedec9214ec96e69908c1cc971cd5"
    "2433f3ef282aa1414141be50b3213fbe50b3213fbe94b97424"
)

# --- against the slow reader -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", VALUES)
@pytest.mark.parametrize("where", slow.SHARES)
def test_a_reader_written_from_the_description_understands_it(form, where, monkeypatch):
    """With geometric tables left out: these are compared with the distribution in test_tokens."""
    monkeypatch.setattr(tokens, "_geometric", lambda rate, last: tokens._explicit(0, bytes([1] * 255)))  # too dear to be chosen
    for kind, block in itertools.product(("delta", "importance", "adapt", "add", "whole"), (0, 7)):
        encoded, tensors = slow.message(kind, form, where, slow.MASKS, block)
        names = list(slow.SMALL.shapes)
        overs = [reference(kind, slow.SMALL, name, slow.MASKS) if name in slow.MASKS or kind not in MASK_KINDS else None for name in names]
        read = slow.read_payload(encoded.data, [list(over.at(np.arange(over.total))) if over else [] for over in overs])
        assert (read["magic"], read["version"], read["kind"], read["fingerprint"]) == (b"SpC", 2, kind, slow.SMALL.fingerprint)
        assert (read["model_version"], read["mask_version"]) == (7, 3)
        assert {names[index] for index in read["tensors"]} == tensors.keys()
        for index, (places, numbers) in read["tensors"].items():
            tensor = tensors[names[index]]
            assert places == tensor.places.tolist() and np.array(numbers, tensor.values.dtype).tobytes() == tensor.values.tobytes()


# --- damage ----------------------------------------------------------------------------------------------------------

SAMPLES = [("delta", "int8", "gaps"), ("whole", "f32", "bitmap"), ("importance", "u4", "holes"), ("adapt", "f32", "gaps")]


@pytest.mark.parametrize(("kind", "form", "where"), SAMPLES)
def test_every_truncation_and_extension_is_noticed(kind, form, where):
    data = slow.message(kind, form, where, slow.MASKS)[0].data
    for length in range(len(data)):
        with pytest.raises(CodecError):
            decode(data[:length], slow.SMALL, slow.MASKS)
        with pytest.raises(CodecError):  # the same with a checksum that fits: the sections do not add up
            decode(slow.checksummed(data[: min(length, len(data) - 5)]), slow.SMALL, slow.MASKS)
    for more in (b"\0", b"\xff\xff", data):
        with pytest.raises(CodecError, match="checksum"):
            decode(data + more, slow.SMALL, slow.MASKS)
        with pytest.raises(CodecError):
            decode(slow.checksummed(data[:-4] + more), slow.SMALL, slow.MASKS)


@pytest.mark.parametrize(("kind", "form", "where"), SAMPLES)
def test_every_flipped_bit_is_noticed(kind, form, where):
    data = slow.message(kind, form, where, slow.MASKS)[0].data
    for place, bit in itertools.product(range(len(data)), range(8)):
        damaged = bytearray(data)
        damaged[place] ^= 1 << bit
        with pytest.raises(CodecError):
            decode(bytes(damaged), slow.SMALL, slow.MASKS)


def with_bytes(data: bytes, place: int, new: bytes) -> bytes:
    return slow.checksummed(data[:place] + new + data[place + len(new) : -4])


def test_payload_of_another_format_is_refused():
    data = slow.message("delta", "f32", "gaps", {})[0].data
    with pytest.raises(CodecError, match="format version 1, this code reads 2"):
        decode(with_bytes(data, 3, b"\x01"), slow.SMALL, {})
    with pytest.raises(CodecError, match="not a SparCL payload"):
        decode(with_bytes(data, 0, b"PNG"), slow.SMALL, {})
    with pytest.raises(CodecError, match=f"kind {len(KINDS)}, which does not exist"):
        decode(with_bytes(data, 4, bytes([len(KINDS)])), slow.SMALL, {})
    with pytest.raises(CodecError, match="truncated"):
        decode(b"", slow.SMALL, {})


def test_payload_of_another_model_is_refused():
    data, shapes, masked = slow.message("delta", "f32", "gaps", {})[0].data, slow.SMALL.shapes, slow.SMALL.masked
    others = [
        Layout({**shapes, "bias": (7,)}, masked, slow.SMALL.statistics),
        Layout({("beta" if name == "bias" else name): shape for name, shape in shapes.items()}, masked, slow.SMALL.statistics),
        Layout(shapes, frozenset({"conv"}), slow.SMALL.statistics),
        Layout(shapes, masked),
        Layout(dict(reversed(shapes.items())), masked, slow.SMALL.statistics),
    ]
    for other in others:
        with pytest.raises(CodecError, match="another model"):
            decode(data, other, {})


@pytest.mark.parametrize("kind", KINDS)
def test_masks_of_another_round_give_an_error_or_places_inside_them(kind):
    """The mask version in the header is for the protocol to compare: masks with as many places decode to other places."""
    encoded, _ = slow.message(kind, "int8" if kind != "importance" else "u8", "gaps", slow.MASKS)
    fewer = {name: mask & (np.arange(mask.size) % 50 == 0) for name, mask in slow.MASKS.items()}
    for masks in (fewer, {name: ~mask for name, mask in fewer.items()}, {name: np.zeros_like(m) for name, m in fewer.items()}):
        try:
            slow.assert_fits(decode(encoded.data, slow.SMALL, masks), slow.SMALL, masks)
        except CodecError:
            continue
    if kind in MASK_KINDS:
        with pytest.raises(CodecError, match="has no mask"):
            decode(encoded.data, slow.SMALL, {})


FORGE = Layout({"w": (60,), "b": (6,), "e": ()}, frozenset({"w"}))
GAPS, ONE = bytes([1, 0, 1]), bytes([0, 1])  # a table with token 0 alone; nothing


def forged(*sections: bytes, kind: str = "delta", count: int | None = None, more: bytes = b"") -> bytes:
    """Sections written by hand, with a checksum that fits."""
    head = b"SpC" + bytes([2, KINDS.index(kind)]) + struct.pack("<I", FORGE.fingerprint)
    return slow.checksummed(head + bytes([1, 0]) + varint(len(sections) if count is None else count) + b"".join(sections) + more)


def flags(where: str, form: str, is_coded: bool = False) -> bytes:
    return bytes([positions.FORMS.index(where) | VALUES.index(form) << 3 | is_coded << 7])


def state(*numbers: int) -> bytes:
    return b"".join(struct.pack("<I", number) for number in numbers)


START = 1 << 16  # where a lane without data begins
B = b"\x01"  # leaves out "w"
NAN, INF = struct.pack(">f", np.nan), struct.pack(">f", np.inf)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (forged(b"\x03" + flags("none", "f32")), "section for tensor 3"),
        (forged(b"\x00" + flags("none", "f32"), b"\x02" + flags("none", "f32")), "section for tensor 3"),
        (forged(b"\x04" + flags("none", "f32")), "a number above 3"),
        (forged(count=4, more=bytes(30)), "a number above 3"),
        (forged(count=1), "too early"),
        (forged(b"\x00\x05"), "unknown form"),
        (forged(b"\x00\xff"), "unknown form"),
        (forged(b"\x00" + bytes([len(VALUES) << 3])), "unknown form"),
        (forged(B + flags("bitmap", "f32") + b"\x07"), "declares 7 values, but only 6 places"),
        (forged(B + flags("gaps", "f32") + b"\x80\x80\x80\x80\x80\x00"), "more than 5 bytes"),
        (forged(B + flags("gaps", "f32") + b"\xff\xff\xff\xff\x7f"), "a number above 4294967295"),
        (forged(B + flags("bitmap", "f32") + b"\x02" + b"\x80" + bytes(8)), "not 2 of its 6 places"),
        (forged(B + flags("bitmap", "f32") + b"\x02"), "too early"),
        (forged(B + flags("all", "f32") + bytes(23)), "too early"),
        (forged(B + flags("all", "f32") + bytes(25)), "1 bytes are left"),
        (forged(B + flags("all", "f32") + NAN * 6), "NaN or infinite"),
        (forged(B + flags("all", "f32") + INF * 6), "NaN or infinite"),
        (forged(B + flags("all", "bf16") + b"\xff\x80" * 6), "NaN or infinite"),
        (forged(B + flags("all", "f64") + struct.pack(">d", -np.inf) * 6), "NaN or infinite"),
        (forged(B + flags("all", "f16") + b"\x80" + b"\x7d\x01" * 6), "NaN or infinite"),  # a signalling NaN
        (forged(B + flags("all", "f16") + b"\xff" + b"\x78\x00" * 6), "NaN or infinite"),  # 2^15 * 2^127
        (forged(B + flags("all", "u8") + b"\x00\xc0\x7f" + bytes(6)), "scale that is"),  # NaN
        (forged(B + flags("all", "u8") + b"\x00\x80\xbf" + bytes(6)), "scale that is"),  # -1
        (forged(B + flags("all", "u4") + b"\x00\x80\x7f" + bytes(3)), "scale that is"),  # infinite
        (forged(B + flags("all", "int8") + b"\x00\x7f\x7f" + bytes(7)), "scale that is"),  # 127 times it is infinite
        (forged(B + flags("all", "int4") + b"\x00\x80\x3f" + b"\0" + b"\xff\xff\xfc"), "a code above 7"),  # 7 + 1: sizes are less 1
        (forged(B + flags("all", "int8") + b"\x00\x80\x3f" + b"\0" + b"\xff" * 6), "a code above 127"),
        (forged(B + flags("all", "u8") + b"\x01\x80\x3f"), "too early"),  # a scale for every place
        (forged(B + flags("gaps", "f32") + b"\x01" + bytes([1, 6, 1])), "tokens above 5"),
        (forged(B + flags("gaps", "f32") + b"\x01" + bytes([0, 9, 6])), "tokens above 5"),
        (forged(B + flags("gaps", "f32") + b"\x01" + bytes([0, 9, 200])), "tokens above 5"),
        (forged(B + flags("gaps", "f32") + b"\x01" + bytes([2, 0, 0, 0])), "or of none"),
        (forged(B + flags("gaps", "f32") + b"\x01" + bytes([255, 255]) + bytes([1] * 255)), "tokens above 5"),
        (forged(B + flags("all", "int4", True) + bytes([1, 7, 1])), "tokens above 6"),
        (forged(B + flags("gaps", "f32") + b"\x02" + bytes([1, 3, 1]), more=bytes(6) + state(START)), "not 2 of its 6 places"),
        (forged(B + flags("gaps", "f32") + b"\x01" + GAPS), "before its coded symbols"),
        (forged(B + flags("gaps", "f32") + b"\x01" + GAPS, more=bytes(2) + state(0)), "end too early"),
        (forged(B + flags("gaps", "f32") + b"\x01" + GAPS, more=bytes(2) + state(2**32 - 1)), "do not end where they began"),
        (forged(B + flags("all", "u8", True) + bytes([2, 0, 1, 1, 0, 128, 63]), more=state(START)), "end too early"),
        (forged(b"\x00" + flags("gaps", "f32") + b"\x01" + bytes([1, 20, 1]), more=bytes(2) + state(START)), "too early"),  # its bits
        (forged(B + flags("all", "f32"), kind="adapt"), "b has no mask, so a payload of kind 'adapt' cannot speak of it"),
    ],
)
def test_forged_sections_are_named(data, message):
    with pytest.raises(CodecError, match=message):
        decode(data, FORGE, {})


def test_what_a_forged_section_may_say():
    """The forgeries above fail for their own reason: this one of the same making is good. 4 raw bytes, 2 of them the lane's seed."""
    data = forged(B + flags("gaps", "f32") + b"\x01" + bytes([1, 3, 1]), more=b"\0\0" + state(START + 0x803F))
    tensor = decode(data, FORGE, {}).tensors["b"]
    assert tensor.places.tolist() == [3] and tensor.values.tolist() == [1.0]


def test_what_the_receiver_could_not_place_is_not_encoded():
    for places in ([3], [1, 399], [-1]):
        with pytest.raises(ValueError, match="conv has values outside its mask"):
            encode_places(
                "grow", slow.SMALL, {"conv": np.array(places)}, {"conv": slow.MASKS["conv"] & (np.arange(400) < 399)}, versions=(0, 0)
            )
    with pytest.raises(ValueError, match="outside its mask"):
        encode_places("add", slow.SMALL, {"conv": np.array([4])}, slow.MASKS, versions=(0, 0))
    for places in ([60], [-1, 3]):
        with pytest.raises(ValueError, match="fc has values outside its 60 places"):
            quantise(SparseTensor(np.array(places), np.ones(len(places))), reference("whole", slow.SMALL, "fc", {}), "f32", "fc")
    for places in ([8, 0], [2, 2]):
        with pytest.raises(ValueError, match="conv are not sorted"):
            encode_places("grow", slow.SMALL, {"conv": np.array(places)}, slow.MASKS, versions=(0, 0))


def test_values_are_not_written_for_kinds_of_places():
    assert set(PLACES_ONLY) < set(MASK_KINDS) < set(KINDS) and set(values.SIGNED) == {form for form in VALUES if form.startswith("int")}


def test_dense_bytes_are_four_per_value():
    assert slow.SMALL.dense_bytes == 4 * (400 + 60 + 6 + 7 + 1)
