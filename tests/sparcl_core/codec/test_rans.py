"""The entropy coder: exact, near the entropy, and the same stream as Duda's coder one symbol at a time."""

import codec_oracles as slow
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparcl_core.codec import CodecError, rans
from sparcl_core.codec.bits import Reader


def table(weights: list[int]) -> np.ndarray:
    return np.array(slow.normalised(weights))


def coded(symbols: np.ndarray, freq: np.ndarray, seeds: np.ndarray) -> bytes:
    start = np.cumsum(freq) - freq
    return rans.encode(freq[symbols].astype(np.uint32), start[symbols].astype(np.uint32), seeds.astype(np.uint16))


def decoded(data: bytes, freqs: list[np.ndarray], counts: list[int], lanes: int) -> tuple[list, list, int]:
    """Symbols, seeds and bytes left, by the tables that parts.py makes."""
    tables = np.array([np.repeat(freq, freq) for freq in freqs], dtype=np.uint16)
    starts = np.array([np.repeat(np.cumsum(freq) - freq, freq) for freq in freqs], dtype=np.uint16)
    reader = Reader(data, 0, len(data))
    slots, seeds = rans.decode(reader, tables, starts=starts, counts=counts, lanes=lanes)
    context = np.repeat(np.arange(len(counts)), counts)
    lookup = [np.repeat(np.arange(freq.size), freq) for freq in freqs]
    return [int(lookup[c][slot]) for c, slot in zip(context, slots, strict=True)], seeds.tolist(), reader.left


@given(st.data())
def test_symbols_and_seeds_come_back_and_the_stream_is_the_slow_one(data):
    weights = data.draw(st.lists(st.integers(0, 1000), min_size=1, max_size=12).filter(any))
    freq = table(weights)
    used = [symbol for symbol in range(len(weights)) if weights[symbol]]
    symbols = data.draw(st.lists(st.sampled_from(used), min_size=1, max_size=300))
    seeds = data.draw(st.lists(st.integers(0, 65535), min_size=1, max_size=9))
    start = np.cumsum(freq) - freq
    stream = coded(np.array(symbols), freq, np.array(seeds))
    assert stream == slow.rans_encode([(int(freq[s]), int(start[s])) for s in symbols], seeds)
    assert slow.rans_decode(stream, [freq.tolist()] * len(symbols), len(seeds)) == (symbols, seeds, len(stream))
    assert decoded(stream + b"\1\2\3", [freq], [len(symbols)], len(seeds)) == (symbols, seeds, 3)


@given(st.lists(st.integers(0, 200), min_size=1, max_size=5).filter(any), st.integers(1, 7), st.integers(0, 99))
def test_symbols_of_several_tables_share_a_stream(counts, lanes, seed):
    rng = np.random.default_rng(seed)
    freqs = [table(rng.integers(1, 100, rng.integers(1, 20)).tolist()) for _ in counts]
    each = [rng.integers(0, freq.size, count) for freq, count in zip(freqs, counts, strict=True)]
    pairs = [(f[s], (np.cumsum(f) - f)[s]) for f, s in zip(freqs, each, strict=True)]
    seeds = rng.integers(0, 65536, lanes)
    freq, start = (np.concatenate([pair[i] for pair in pairs]).astype(np.uint32) for i in (0, 1))
    stream = rans.encode(freq, start, seeds.astype(np.uint16))
    assert stream == slow.rans_encode(list(zip(freq.tolist(), start.tolist(), strict=True)), seeds.tolist())
    assert decoded(stream, freqs, counts, lanes) == (np.concatenate(each).tolist(), seeds.tolist(), 0)


def test_one_symbol_by_hand():
    """x = 65536 + 5, f = 1024, c = 2048: x div f = 64, x mod f = 5; 64 * 4096 + 5 + 2048 = 264197 = 0x40805."""
    stream = rans.encode(np.array([1024], np.uint32), np.array([2048], np.uint32), np.array([5], np.uint16))
    assert stream == bytes.fromhex("05080400")


def test_a_word_by_hand():
    """f = 1, c = 7: the second time x = (65536 + 0) * 4096 + 7 = 0x10000007 and 0x10000007 >= 1 << 20: its low half 0x0007 goes out."""
    stream = rans.encode(np.array([1, 1], np.uint32), np.array([7, 7], np.uint32), np.array([0], np.uint16))
    assert stream == (0x1000 * 4096 + 7).to_bytes(4, "little") + b"\x07\x00"


def test_a_symbol_that_is_certain_costs_nothing():
    stream = coded(np.zeros(100_000, int), np.array([4096]), np.array([1, 2, 3]))
    assert stream == b"".join((65536 + seed).to_bytes(4, "little") for seed in (1, 2, 3))


@pytest.mark.parametrize("lanes", [16, 64, 1000])
def test_length_is_the_entropy_and_lanes_carry_two_bytes_each(lanes):
    """100,000 symbols with the table's own frequencies: ideal length, and 4 bytes a lane, of which 2 are data, up to a word a lane."""
    rng = np.random.default_rng(lanes)
    freq = table([2 ** (12 - k) for k in range(12)])
    symbols = rng.choice(freq.size, 100_000, p=freq / 4096)
    ideal = float((12 - np.log2(freq[symbols])).sum()) / 8
    size = len(coded(symbols, freq, rng.integers(0, 65536, lanes)))
    assert abs(size - (ideal + 2 * lanes)) <= 0.001 * ideal + 2 * lanes + 2


@given(st.integers(1, 10**8), st.integers(0, 10**6))
def test_number_of_lanes(symbols, seeds):
    lanes = rans.num_lanes(symbols, seeds)
    assert lanes == slow.num_lanes(symbols, seeds) and 1 <= lanes <= 4096
    assert lanes > seeds or lanes * 64 <= max(symbols, 64)


def test_number_of_lanes_by_hand():
    assert [rans.num_lanes(*pair) for pair in ((1, 99), (639, 99), (640, 99), (640, 3), (10_240, 0), (10**7, 0), (10**7, 10**6))] == [
        1, 9, 10, 3, 10, 4096, 4096,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\0\0\1", "1 bytes too early"),
        ((1 << 16).to_bytes(4, "little"), "end too early"),  # frequency 1: the state falls below 2^16, and no word follows
        ((2**32 - 1).to_bytes(4, "little") * 1 + b"\0\0", "do not end where they began"),
        (bytes(4) + bytes(20), "do not end where they began"),  # a state that no encoder leaves
    ],
)
def test_damaged_streams_are_refused(data, message):
    freq = np.array([1] * 4096) if message != "do not end where they began" else np.array([2048, 2048])
    with pytest.raises(CodecError, match=message):
        decoded(data, [freq], [1], 1)


def test_any_four_bytes_are_a_stream_or_refused():
    """No state leaves 32 bits or reads beyond the end, whatever it begins with."""
    rng = np.random.default_rng(0)
    freqs = [table(rng.integers(1, 50, 20).tolist()) for _ in range(3)]
    refused = 0
    for _ in range(2000):
        data = rng.bytes(int(rng.integers(8, 60)))
        try:
            _, seeds, left = decoded(data, freqs, [5, 0, 9], 2)
            assert left >= 0 and all(0 <= seed < 65536 for seed in seeds)
        except CodecError:
            refused += 1
    assert refused > 1500
