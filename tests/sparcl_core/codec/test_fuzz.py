"""Whatever bytes come: a payload that fits the model, or CodecError. Never another exception, never more memory than stated."""

import itertools
import random
import struct
import tracemalloc

import codec_oracles as slow
import numpy as np
import pytest

from sparcl_core.codec import (
    KINDS,
    MASK_KINDS,
    PLACES_ONLY,
    VALUES,
    CodecError,
    Layout,
    Quantised,
    Reference,
    SparseTensor,
    decode,
    encode,
    encode_places,
    positions,
    quantise,
    rans,
    reference,
)
from sparcl_core.codec.bits import varint

HEAD = 9  # bytes that are the same in all payloads of a kind: hits there are refused at once, so few are aimed there
NUMBERS = (*range(9), 15, 16, 59, 60, 61, 127, 128, 255, 399, 400, 401, 2**14, 2**31, 2**32 - 1, 2**32, 2**35 - 1)  # for headers


def corpus() -> list[tuple[str, dict, bytes]]:
    """Payloads of every kind, form of values and of positions, with one scale and with many, without their checksums."""
    found = []
    for kind in KINDS:
        forms = ("f32",) if kind in PLACES_ONLY else VALUES
        for form, where, block in itertools.product(forms, slow.SHARES, (0, 50)):
            masks = slow.MASKS if kind in MASK_KINDS or block else {}
            if block and (form not in slow.LIMITS):
                continue
            found.append((kind, masks, slow.message(kind, form, where, masks, block)[0].data[:-4]))
    return found


def mutated(body: bytes, others: list[bytes], rng: random.Random) -> bytes:
    """One to three wounds of the kinds that a broken or hostile sender inflicts."""
    data = bytearray(body)
    for _ in range(rng.choice((1, 1, 2, 3))):
        end = len(data)
        first = 0 if rng.random() < 0.02 else min(HEAD, end)
        last = end if rng.random() < 0.5 else min(end, HEAD + 40)  # half of them into the headers of the sections
        place = rng.randrange(first, max(last, first + 1))
        how = rng.randrange(7)
        if how == 0 and place < end:
            data[place] ^= 1 << rng.randrange(8)
        elif how == 1 and place < end:
            data[place] = rng.choice((0, 1, 2, 4, 127, 128, 240, 255, rng.randrange(256)))
        elif how == 2:  # a number of the header becomes another one
            number = varint(rng.choice(NUMBERS))
            data[place : place + rng.randrange(4)] = number
        elif how == 3:
            del data[place : place + rng.randrange(1, 9)]
        elif how == 4:
            data[place:place] = rng.randbytes(rng.randrange(1, 9))
        elif how == 5:  # a piece of another payload, or of this one
            other = rng.choice(others) if rng.random() < 0.5 else body
            start = rng.randrange(len(other))
            piece = other[start : start + rng.randrange(1, 60)]
            data[place : place + rng.choice((0, len(piece)))] = piece
        else:
            del data[place:]
    return bytes(data)


def attack(count: int, seed: int, is_checksummed: bool) -> dict[str, int]:
    """Decode `count` damaged payloads; outcomes by name."""
    rng, payloads = random.Random(seed), corpus()
    bodies, outcomes = [body for _, _, body in payloads], {"decoded": 0, "refused": 0}
    with np.errstate(all="raise", under="ignore"):  # values below float32's range are legitimate
        for _ in range(count):
            _, masks, body = rng.choice(payloads)
            data = mutated(body, bodies, rng)
            data = slow.checksummed(data) if is_checksummed else data + body[-4:]
            try:
                payload = decode(data, slow.SMALL, masks)
            except CodecError:
                outcomes["refused"] += 1
            except Exception as error:
                raise AssertionError(f"{error!r} from {data.hex()}") from error
            else:
                slow.assert_fits(payload, slow.SMALL, masks)
                assert payload.sizes.total == len(data)
                outcomes["decoded"] += 1
    return outcomes


@pytest.mark.filterwarnings("error")
def test_damage_behind_a_good_checksum_decodes_or_is_refused():
    """The checksum is no secret: past it, everything must still be checked. Both kinds of outcome are really met."""
    outcomes = attack(10_000, 1, is_checksummed=True)
    assert outcomes["decoded"] > 500 and outcomes["refused"] > 5_000


@pytest.mark.slow
@pytest.mark.filterwarnings("error")
def test_much_damage_behind_a_good_checksum_decodes_or_is_refused():
    outcomes = attack(100_000, 2, is_checksummed=True)
    assert outcomes["decoded"] > 5_000 and outcomes["refused"] > 50_000


def test_damage_is_noticed_by_the_checksum():
    """All but where the wound changed nothing."""
    rng, payloads = random.Random(3), corpus()
    bodies, refused = [body for _, _, body in payloads], 0
    for _ in range(10_000):
        _, masks, body = rng.choice(payloads)
        data = mutated(body, bodies, rng)
        if data == body:
            continue
        with pytest.raises(CodecError):
            decode(data + slow.checksummed(body)[-4:], slow.SMALL, masks)
        refused += 1
    assert refused > 9_000


@pytest.mark.filterwarnings("error")
def test_a_lying_encoder_is_found_out():
    """Good streams of bad numbers, which wounds seldom make: codes above the limit, places beyond the end, scales of any bits."""
    rng, outcomes = np.random.default_rng(4), {"decoded": 0, "refused": 0}
    for _ in range(1_000):
        tensors = {}
        for name in slow.SMALL.shapes:
            size, form = slow.SMALL.size(name), VALUES[rng.integers(len(VALUES))]
            total = size if rng.random() < 0.8 else size + int(rng.integers(1, 4))
            ranks = np.flatnonzero(rng.random(total) < rng.choice([0.0, 0.05, 0.5, 0.95, 1.0]))
            if form in slow.LIMITS:
                limit = slow.LIMITS[form] + (rng.random() < 0.2)
                codes = rng.integers(1, limit + 1, ranks.size) * (rng.choice([-1, 1], ranks.size) if form.startswith("int") else 1)
                block = int(rng.choice([0, 1, 7, 2**31]))
                count = -(-total // block) if block else 1
                scales = rng.integers(0, 2**16 if rng.random() < 0.2 else 0x7C00, count).astype(np.uint16)
            else:
                kind, block = np.dtype(f"u{slow.WIDTHS[form] // 8}"), 0
                codes = rng.integers(0, np.iinfo(kind).max, ranks.size, dtype=kind)
                if rng.random() < 0.8:  # exponents below that of infinity
                    codes &= kind.type(np.iinfo(kind).max ^ 1 << slow.WIDTHS[form] - 2)
                scales = np.array([rng.integers(0, 256)], np.uint16)[: form == "f16"]
            tensors[name] = Quantised(ranks, ranks, total, form, codes, scales, block)
        data = encode("delta" if rng.random() < 0.5 else "whole", slow.SMALL, tensors, model_version=1, mask_version=1).data
        with np.errstate(all="raise", under="ignore"):
            try:
                slow.assert_fits(decode(data, slow.SMALL, {}), slow.SMALL, {})
                outcomes["decoded"] += 1
            except CodecError:
                outcomes["refused"] += 1
    assert min(outcomes.values()) > 100, outcomes


# --- memory ----------------------------------------------------------------------------------------------------------

MILLION = 1_000_000
BROAD = Layout({"w": (MILLION,)}, frozenset({"w"}))
ALL = {"w": np.ones(MILLION, bool)}
STATED = 40 * MILLION  # of `decode`


def peak(data: bytes, masks: dict) -> tuple[int, bool]:
    """Bytes allocated at the worst moment of a decode, and whether it went through."""
    tracemalloc.start()
    try:
        decode(data, BROAD, masks)
        return tracemalloc.get_traced_memory()[1], True
    except CodecError:
        return tracemalloc.get_traced_memory()[1], False
    finally:
        tracemalloc.stop()


def forged(kind: str, where: str, form: str, tables: bytes, count: bytes = b"", scales: bytes = b"", symbols: int = 0) -> bytes:
    """One section for all of BROAD, of which every symbol is certain: its lanes end where they begin, and no word is read."""
    head = b"SpC" + bytes([2, KINDS.index(kind)]) + struct.pack("<I", BROAD.fingerprint) + bytes([0, 0, 1])
    is_coded = kind not in PLACES_ONLY and len(scales) > 0
    flags = bytes([positions.FORMS.index(where) | VALUES.index(form) << 3 | is_coded << 7])
    lanes = struct.pack("<I", 1 << 16) * rans.num_lanes(symbols, 0) if symbols else b""
    return slow.checksummed(head + b"\0" + flags + count + tables + scales + lanes)


CERTAIN = bytes([1, 0, 1])  # the table of which token 0 has all 4096 slots
N, SCALE = varint(MILLION), b"\0\x80\x3f"


@pytest.mark.parametrize(
    ("data", "goes_through"),
    [
        (forged("adapt", "all", "f32", b""), True),
        (forged("adapt", "gaps", "f32", CERTAIN, N, symbols=MILLION), True),
        (forged("adapt", "holes", "f32", CERTAIN, b"\0", symbols=MILLION), True),
        (forged("delta", "all", "u8", CERTAIN, scales=SCALE, symbols=MILLION), True),
        (forged("delta", "gaps", "u8", CERTAIN * 2, N, SCALE, 2 * MILLION), True),
        (forged("delta", "gaps", "u8", CERTAIN * 2, N, SCALE), False),
        (forged("delta", "all", "u8", CERTAIN, scales=SCALE), False),
        (forged("delta", "all", "f64", CERTAIN, scales=b"x"), False),
        (forged("adapt", "bitmap", "f32", b"", N), False),
    ],
)
@pytest.mark.parametrize("masks", [ALL, {}])
def test_a_small_payload_that_declares_a_million_values(data, goes_through, masks):
    """A symbol that is certain takes no bits, so its number is bounded by the layout alone; and every 1024 of them take a lane of 4
    bytes, so a few dozen bytes cannot even declare that many. What is refused for its length costs next to nothing, but for the
    places of the mask."""
    assert len(data) < 9_000
    if not masks and data[4] == KINDS.index("adapt"):
        goes_through = False  # a mask payload without a mask
    allocated, went = peak(data, masks)
    assert went == goes_through and allocated < (STATED if went else 100_000 + 8 * MILLION * bool(masks))


@pytest.mark.parametrize("form", ["f64", "f32", "int8", "u8"])  # the widest, and those with bits behind their tokens
@pytest.mark.parametrize("share", [1.0, 0.999, 0.3])
def test_good_payloads_of_a_million_values_keep_the_bound_too(form, share):
    rng = np.random.default_rng(0)
    places = np.flatnonzero(rng.random(MILLION) < share)
    tensor = SparseTensor(places, np.abs(rng.laplace(size=places.size)) + 0.3)
    for masks in (ALL, {}):
        sent = quantise(tensor, reference("delta", BROAD, "w", masks), form, "w")
        allocated, went = peak(encode("delta", BROAD, {"w": sent}, model_version=0, mask_version=0).data, masks)
        assert went and allocated < STATED


def test_the_dearest_payload_keeps_the_bound():
    """Bits behind every token, and a scale for every place."""
    values = np.where(np.arange(MILLION) % 2, 200.0, 255.0)
    tensor = SparseTensor(np.arange(MILLION), values)
    data = encode("delta", BROAD, {"w": quantise(tensor, Reference(MILLION), "u8", "w", block=1)}, model_version=0, mask_version=0).data
    allocated, went = peak(data, ALL)
    assert went and allocated < STATED


def test_bytes_that_belong_to_nothing_are_not_copied():
    """100 MB behind a good payload: refused without a second copy."""
    data = encode_places("adapt", BROAD, {"w": np.arange(10)}, ALL, versions=(0, 0)).data
    allocated, went = peak(slow.checksummed(data[:-4] + bytes(100_000_000)), ALL)
    assert not went and allocated < 20 * MILLION
