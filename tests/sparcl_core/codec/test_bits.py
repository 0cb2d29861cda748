"""Bits: what is unpacked is what was packed, and the reader never goes beyond its end."""

import codec_oracles as slow
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparcl_core.codec import CodecError, bits

WIDTHS = (1, 3, 4, 5, 7, 8)  # those of the value forms and of bitmaps


@given(st.integers(1, 8), st.data())
def test_small_integers_round_trip_and_match_one_bit_at_a_time(width, data):
    numbers = data.draw(st.lists(st.integers(0, 2**width - 1), max_size=40))
    packed = bits.pack(np.array(numbers, dtype=np.int64), width)
    assert packed == slow.pack(numbers, [width] * len(numbers))
    assert len(packed) == bits.packed_size(len(numbers), width)
    unpacked = bits.unpack(packed, len(numbers), width)
    assert unpacked.dtype == np.uint8 and unpacked.tolist() == numbers


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int64])
def test_every_type_of_numbers_packs_alike(width, dtype):
    numbers = np.arange(100) % (2 if dtype is bool else 2**width)
    assert bits.pack(numbers.astype(dtype), width) == slow.pack(numbers.tolist(), [width] * 100)


def test_packing_by_hand():
    assert bits.pack(np.array([1, 0, 1]), 1) == bytes([0b10100000])
    assert bits.pack(np.array([5, 2, 7]), 3) == bytes([0b10101011, 0b10000000])
    assert bits.pack(np.array([10, 3]), 4) == bytes([0b10100011])
    assert bits.pack(np.array([127, 0, 1]), 7) == bytes([0b11111110, 0b00000000, 0b00001000])


@st.composite
def ragged(draw):
    widths = draw(st.lists(st.integers(0, 32), max_size=60))
    return [draw(st.integers(0, 2**width - 1)) for width in widths], widths


@given(ragged())
def test_integers_of_many_widths_round_trip_and_match_one_bit_at_a_time(numbers_and_widths):
    numbers, widths = numbers_and_widths
    packed = bits.pack_ragged(np.array(numbers, dtype=np.int64), np.array(widths, dtype=np.int64))
    assert packed == slow.pack(numbers, widths)
    assert len(packed) == bits.packed_size(sum(widths), 1)
    for behind in (b"", b"\xff", b"\xff" * 9):  # what follows in the payload does not matter
        assert bits.unpack_ragged(packed + behind, np.array(widths, dtype=np.uint8)).tolist() == numbers
    assert slow.unpack(packed, widths) == numbers


@pytest.mark.parametrize("width", range(1, 33))
def test_all_ones_of_one_width_touch_no_neighbour(width):
    """Every place of a value within its window of 64 bits, and the longest carry if sums were not the same as unions."""
    numbers = np.full(100, 2**width - 1)
    numbers[1::2] = 0
    widths = np.full(100, width, dtype=np.uint8)
    packed = bits.pack_ragged(numbers, widths.astype(np.int64))
    assert packed == slow.pack(numbers.tolist(), widths.tolist())
    assert bits.unpack_ragged(packed, widths).tolist() == numbers.tolist()


def test_more_numbers_than_are_unpacked_at_a_time():
    rng = np.random.default_rng(0)
    for count in (bits._CHUNK - 1, bits._CHUNK, bits._CHUNK + 1, 2 * bits._CHUNK + 77):
        widths = rng.integers(0, 31, count)
        numbers = rng.integers(0, 1 << widths)
        assert np.array_equal(bits.unpack_ragged(bits.pack_ragged(numbers, widths), widths.astype(np.uint8)), numbers)


@given(st.integers(0, 2**32 - 1))
def test_numbers_of_variable_length_round_trip(value):
    data = bits.varint(value)
    assert data == slow.varint(value) and len(data) == max(1, -(-value.bit_length() // 7))
    reader = bits.Reader(b"\xff" + data + b"\xff", 1, 1 + len(data))
    assert reader.varint() == value and reader.left == 0


def test_numbers_of_variable_length_by_hand():
    numbers = {0: "00", 127: "7f", 128: "8001", 300: "ac02", 16_383: "ff7f", 16_384: "808001", 2**32 - 1: "ffffffff0f"}
    assert {value: bits.varint(value).hex() for value in numbers} == numbers


@pytest.mark.parametrize(
    ("data", "limit", "message"),
    [
        (b"", 5, "1 bytes too early"),
        (b"\x80", 5, "1 bytes too early"),
        (b"\x06", 5, "a number above 5"),
        (b"\xff\xff\xff\xff\x10", 2**32 - 1, "above 4294967295"),
        (b"\x80\x80\x80\x80\x80\x00", 2**32 - 1, "more than 5 bytes"),
        (b"\x80" * 50, 0, "more than 5 bytes"),
    ],
)
def test_numbers_that_are_refused(data, limit, message):
    with pytest.raises(CodecError, match=message):
        bits.Reader(data, 0, len(data)).varint(limit)


def test_the_reader_stops_at_its_end_not_at_the_data_s():
    reader = bits.Reader(b"abcdef", 1, 4)
    assert reader.take(2) == b"bc" and reader.left == 1 and reader.byte() == ord("d") and reader.take(0) == b""
    with pytest.raises(CodecError, match="3 bytes too early"):
        reader.take(3)
    assert reader.position == 4
