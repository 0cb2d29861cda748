"""Integers as tokens, and the tables: the same integers on every machine, or nothing can be decoded."""

import hashlib
import math
from fractions import Fraction

import codec_oracles as slow
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sparcl_core.codec import tokens
from sparcl_core.codec.bits import Reader

NUMBERS = st.one_of(st.integers(0, 40), st.integers(0, 2**32 - 1))


@given(st.lists(NUMBERS, max_size=50))
@example([*range(300), *(2**e + d for e in range(5, 32) for d in (-1, 0, 1))])
def test_numbers_round_trip_and_tokens_are_the_slow_ones(numbers):
    array = np.array(numbers, dtype=np.int64)
    own, extra, widths = tokens.split(array)
    expected = [slow.token(number) for number in numbers]
    assert own.dtype == np.uint8 and own.tolist() == [t for t, _, _ in expected]
    assert list(zip(extra.tolist(), widths.tolist(), strict=True)) == [(rest, width) for t, rest, width in expected if t >= 16]
    assert tokens.widths_of(own).tolist() == widths.tolist()
    for highest in {int(own.max(initial=0)), 127}:
        assert tokens.join(own, extra.astype(np.uint32), highest).tolist() == numbers
    assert [tokens.token(number) for number in numbers] == own.tolist()


def test_tokens_by_hand():
    """16 to 31 make four tokens of four numbers, 32 to 63 four of eight."""
    expected = {0: 0, 15: 15, 16: 16, 19: 16, 20: 17, 31: 19, 32: 20, 39: 20, 40: 21, 63: 23, 64: 24, 2**32 - 1: 127}
    assert {number: tokens.token(number) for number in expected} == expected
    own, extra, widths = tokens.split(np.array([18, 45]))
    assert own.tolist() == [16, 21] and extra.tolist() == [2, 5] and widths.tolist() == [2, 3]


@pytest.mark.parametrize(
    ("highest", "dtype"), [(0, np.uint8), (31, np.uint8), (32, np.uint16), (63, np.uint16), (64, np.uint32), (127, np.uint32)]
)
def test_numbers_come_in_the_smallest_type_that_holds_all_of_the_table(highest, dtype):
    """Token 31 ends at 255, 63 at 2^16 - 1."""
    base, more = slow.number_of(highest)
    found = tokens.join(np.array([highest], np.uint8), np.array([2**more - 1] * (more > 0), np.uint32), highest)
    assert found.tolist() == [base + 2**more - 1] and found.dtype == dtype


def test_every_token_begins_where_the_one_before_it_ends():
    after = 0
    for own in range(128):
        base, more = slow.number_of(own)
        assert (int(tokens._BASE[own]), int(tokens._BITS[own])) == (base, more) and base == after
        after = base + 2**more
    assert after == 2**32


# --- constants of the wire format ------------------------------------------------------------------------------------


def test_rates_are_pinned():
    """2^32 * 2^(-k / 16), to the nearest integer: each is checked in whole numbers, since another library's power may round otherwise."""
    assert tokens._RATES == (
        4294967296, 4112874773, 3938502376, 3771522796, 3611622603, 3458501653, 3311872529, 3171459999,
        3037000500, 2908241642, 2784941738, 2666869345, 2553802834, 2445529972, 2341847524, 2242560872,
    )  # fmt: skip
    for k, rate in enumerate(tokens._RATES):
        half = Fraction(1, 2)
        assert (rate - half) ** 16 < Fraction(2) ** (512 - k) < (rate + half) ** 16


def test_weights_are_pinned():
    """16 * 2^(k / 20), to the nearest integer, for byte k + 1; 0 for byte 0."""
    assert tokens._WEIGHTS[:22] == (0, 16, 17, 17, 18, 18, 19, 20, 20, 21, 22, 23, 23, 24, 25, 26, 27, 28, 29, 30, 31, 32)
    assert tokens._WEIGHTS[-3:] == (99334, 102837, 106464) and len(tokens._WEIGHTS) == 256
    for k, weight in enumerate(tokens._WEIGHTS[1:]):
        half = Fraction(1, 2)
        assert ((weight - half) / 16) ** 20 < 2**k < ((weight + half) / 16) ** 20


def test_geometric_tables_are_pinned():
    """All that a sender may state: 2 bytes a frequency of every rate, for some numbers of tokens. A digest, for they are many."""
    digest = hashlib.sha256()
    for last in (0, 1, 15, 16, 19, 20, 40, 77, 127):
        for rate in range(256):
            digest.update(tokens._geometric(rate, last).freq.astype("<u2").tobytes())
    assert digest.hexdigest() == GEOMETRIC


GEOMETRIC = "dd6f8a3a4be8820812e8724bc99f61a9044190a94e6ae284b37235c6e33e1fa4"


def test_explicit_tables_are_pinned():
    assert tokens._explicit(3, bytes([1, 0, 21, 41])).freq.tolist() == [585, 0, 1170, 2341]  # 16, 32, 64 of 112: 585.1, 1170.3, 2340.6
    assert tokens._explicit(0, bytes([255])).freq.tolist() == [4096]


# --- properties of tables --------------------------------------------------------------------------------------------


@given(st.lists(st.one_of(st.just(0), st.just(1), st.integers(0, 10**6)), min_size=1, max_size=255).filter(any))
@example([1] * 254 + [10**6])
@example([1] * 255)
@example([10**6, 10**6] + [1] * 250)
def test_frequencies_add_up_and_are_the_slow_ones(weights):
    freq = tokens._normalised(weights)
    assert freq.sum() == 4096 and ((freq > 0) == (np.array(weights) > 0)).all()
    assert freq.tolist() == slow.normalised(weights)
    share = np.array(weights) * 4096 / sum(weights)
    assert (freq >= np.minimum(np.floor(share), share - 256)).all()  # at most one for each of the others is taken away


@given(st.binary(min_size=1, max_size=255).filter(any))
def test_explicit_tables_are_the_slow_ones(logs):
    table = tokens._explicit(0, logs)
    assert table.freq.tolist() == slow.explicit_table(logs)
    assert tokens.read_table(Reader(table.data, 0, len(table.data)), 255).freq.tolist() == table.freq.tolist()


@pytest.mark.parametrize("rate", [0, 1, 5, 16, 17, 40, 64, 80, 111, 160, 255])
@pytest.mark.parametrize("last", [0, 3, 15, 16, 17, 30, 60, 127])
def test_geometric_tables_follow_the_distribution(rate, last):
    """Rounded down by less than 1, up to 1 where it would be 0, and the most frequent takes or gives the difference."""
    freq = tokens._geometric(rate, last).freq
    share = np.array(slow.geometric_weights(rate, last)) * 4096
    assert freq.size == last + 1 and freq.sum() == 4096 and freq.min() >= 1
    most = int(np.floor(share).argmax())
    others = np.arange(last + 1) != most
    assert (np.abs(freq - share)[others] <= 1.01).all() and abs(freq[most] - share[most]) <= last + 1


def test_the_last_rate_s_power_is_not_one():
    """p = 2^(-255 / 16), about 1 in 62,758: 2^32 p is still 68,437, so 1 - p is below 1 in 32 bits."""
    assert tokens._RATES[15] >> 15 == 68437 and math.isclose(2 ** (32 - 255 / 16), 68437, abs_tol=1)


@given(st.lists(NUMBERS, min_size=1, max_size=60), st.booleans())
def test_the_chosen_table_codes_every_token_and_is_read_back(numbers, smooth):
    own = tokens.split(np.array(numbers))[0] if smooth else np.array(numbers).astype(np.uint8)
    table = tokens.best_table(np.bincount(own, minlength=256), smooth)
    assert (table.freq[own - table.first] > 0).all() and table.first >= 0 and table.last <= 255
    highest = 127 if smooth else 255
    reader = Reader(table.data + b"x", 0, len(table.data) + 1)
    read = tokens.read_table(reader, highest)
    assert reader.left == 1 and (read.first, read.freq.tolist(), read.data) == (table.first, table.freq.tolist(), table.data)


def test_a_table_of_all_bytes_does_not_pay():
    assert tokens.best_table(np.ones(256, dtype=int), smooth=False) is None
    assert tokens.best_table(np.ones(256, dtype=int) * (np.arange(256) < 255), smooth=False) is not None


@pytest.mark.parametrize("mean", [0.1, 1, 5, 20, 300, 50_000])
def test_geometric_numbers_are_coded_within_half_a_percent_of_their_entropy(mean):
    rng = np.random.default_rng(int(mean * 10))
    p = 1 / (1 + mean)
    numbers = rng.geometric(p, 200_000) - 1
    own, _, widths = tokens.split(numbers)
    histogram = np.bincount(own, minlength=256)
    table = tokens.best_table(histogram, smooth=True)
    entropy = -(math.log2(p) + mean * math.log2(1 - p)) * numbers.size
    assert 8 * len(table.data) + table.bits(histogram) + widths.sum() <= 1.005 * entropy


def test_peaked_counts_get_an_explicit_table_and_smooth_ones_a_geometric():
    """Two bytes and a parameter against two bytes and one for each token."""
    peaked = np.bincount([3, 30] * 500, minlength=256)
    assert tokens.best_table(peaked, smooth=True).data[0] == 28
    smooth = np.zeros(256, int)
    smooth[:10] = 2 ** np.arange(10, 0, -1)
    assert tokens.best_table(smooth, smooth=True).data == bytes([0, 16, 9])


def test_ideal_length_by_hand():
    """4 symbols of 1/4 and 2 of 1/2: 4 * 2 + 2 * 1 bits; tokens that do not come cost nothing."""
    table = tokens.Frequencies(5, np.array([1024, 0, 2048, 1024]), b"")
    assert table.bits(np.bincount([5, 5, 5, 5, 7, 7], minlength=256)) == 10


def test_tables_that_are_shared_cannot_be_written_to():
    with pytest.raises(ValueError, match="read-only"):
        tokens._geometric(5, 5).freq[0] = 1
