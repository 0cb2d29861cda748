"""Positions: every set of places comes back, in the cheapest form, near its information content."""

import codec_oracles as slow
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparcl_core.codec import Layout, decode, encode_places, positions, tokens
from sparcl_core.codec.parts import Coded, Plain


def payload_bytes(places: np.ndarray, total: int) -> int:
    """Length of a whole payload of these places; they come back out of it."""
    layout, masks = Layout({"w": (total,)}, frozenset({"w"})), {"w": np.ones(total, bool)}
    data = encode_places("drop", layout, {"w": places}, masks, versions=(0, 0)).data
    assert np.array_equal(decode(data, layout, masks).tensors["w"].places, places)
    return len(data)


def numbers_of(part) -> np.ndarray:
    """What the decoder would find in a part."""
    if isinstance(part, Plain):
        return part.numbers.astype(np.uint8)
    return tokens.join(part.symbols, part.extra, part.table.last)


@settings(max_examples=200)
@given(st.integers(1, 2000), st.data())
def test_any_places_come_back(total, data):
    count = data.draw(st.one_of(st.just(0), st.just(total), st.integers(0, min(total, 9)), st.integers(0, total)))
    ranks = np.sort(np.random.default_rng(total * 7919 + count).permutation(total)[:count])
    form, part = positions.encode(ranks, total)
    assert (form == "none") == (count == 0) and (form == "all") == (0 < count == total) and (part is None) == (form in ("none", "all"))
    numbers = None if part is None else numbers_of(part)
    assert positions.listed(form, count, total) == (0 if numbers is None else numbers.size)
    found = positions.decode(form, numbers, count, total)
    assert found.dtype == np.int64 and np.array_equal(found, ranks)
    if numbers is not None:
        assert slow.ranks_of(form, numbers.tolist(), total) == ranks.tolist()
    payload_bytes(ranks, total)


@given(st.sets(st.integers(0, 400), min_size=1), st.integers(401, 402))
def test_gaps_are_distances_and_holes_are_what_is_missing(places, total):
    ranks = sorted(places)
    meant = ranks if len(ranks) <= total // 2 else [rank for rank in range(total) if rank not in places]
    numbers = [rank - before - 1 for before, rank in zip([-1, *meant], meant, strict=False)]
    coded = positions._gaps(np.array(meant))
    assert numbers_of(coded).tolist() == numbers
    form, part = positions.encode(np.array(ranks), total)
    if form != "bitmap":
        assert form == ("gaps" if meant is ranks else "holes") and numbers_of(part).tolist() == numbers


def test_forms_by_hand():
    """Of 8 places: 1 and 5 as bits, as gaps 1 and 3, and as holes of all the others."""
    assert positions.decode("bitmap", np.array([0, 1, 0, 0, 0, 1, 0, 0], np.uint8), 2, 8).tolist() == [1, 5]
    assert positions.decode("gaps", np.array([1, 3], np.uint8), 2, 8).tolist() == [1, 5]
    assert positions.decode("holes", np.array([1, 3], np.uint8), 6, 8).tolist() == [0, 2, 3, 4, 6, 7]
    assert positions.decode("all", None, 8, 8).tolist() == list(range(8)) and positions.decode("none", None, 0, 8).tolist() == []


@pytest.mark.parametrize(
    ("form", "numbers", "count"),
    [
        ("bitmap", [1, 1, 0, 0], 1),
        ("bitmap", [0, 0, 0, 0], 1),
        ("gaps", [4], 1),
        ("gaps", [1, 2], 2),
        ("holes", [3, 0], 2),
        ("holes", [9], 3),
    ],
)
def test_numbers_that_are_no_places_are_noticed(form, numbers, count):
    assert positions.decode(form, np.array(numbers, np.uint8), count, 4) is None


def test_gaps_that_would_leave_small_integers_do_not_wrap_around():
    """Numbers come in the smallest type: 255 + 1 is 256 all the same, and 300 gaps of 255 add up to 76,800 places."""
    found = positions.decode("gaps", np.full(300, 255, np.uint8), 300, 10**6)
    assert found.tolist() == [256 * (i + 1) - 1 for i in range(300)]
    assert positions.decode("gaps", np.full(300, 2**32 - 1, np.uint32), 300, 10**6) is None


@given(st.integers(8, 3000), st.floats(0, 1), st.integers(0, 99))
def test_the_cheapest_form_is_chosen(total, share, seed):
    """The other forms, priced by themselves, are none cheaper; gaps and holes compete with the bitmap only on their own half."""
    ranks = np.sort(np.random.default_rng(seed).permutation(total)[: round(share * total)])
    form, part = positions.encode(ranks, total)
    if part is None:
        return
    missing = np.setdiff1d(np.arange(total), ranks)
    fewer = Coded.of(np.diff(ranks if ranks.size <= total // 2 else missing, prepend=-1) - 1)
    assert part.bits == min(fewer.bits, 8 * -(-total // 8))
    assert form == ("bitmap" if 8 * -(-total // 8) <= fewer.bits else "gaps" if ranks.size <= total // 2 else "holes")


@pytest.mark.parametrize(
    ("share", "form"),
    [(0.0, "none"), (0.001, "gaps"), (0.05, "gaps"), (0.3, "gaps"), (0.5, "bitmap"), (0.7, "holes"), (0.95, "holes"), (1.0, "all")],
)
def test_which_form_it_is(share, form):
    total = 100_000
    ranks = np.sort(np.random.default_rng(1).permutation(total)[: int(share * total)])
    assert positions.encode(ranks, total)[0] == form


@pytest.mark.parametrize("share", [0.001, 0.003, 0.01, 0.03, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 0.95, 0.999])
def test_a_random_support_takes_its_information_content(share):
    """Within 2 % of log2 C(n, k) / 8, and 40 bytes: header 15, checksum 4, table, one lane's state and a last word."""
    total = 1_000_000
    ranks = np.sort(np.random.default_rng(int(share * 1000)).permutation(total)[: int(share * total)])
    limit = slow.information(total, ranks.size)
    assert limit - 16 <= payload_bytes(ranks, total) <= 1.02 * limit + 40


@pytest.mark.parametrize("total", [20, 300, 5000])
@pytest.mark.parametrize("share", [0.01, 0.1, 0.5, 0.9])
def test_small_tensors_take_their_information_content_too(total, share):
    """Nearly every draw of many: the constant is what a table and a lane cost."""
    sizes = []
    count = max(1, int(share * total))
    for seed in range(30):
        sizes.append(payload_bytes(np.sort(np.random.default_rng(seed).permutation(total)[:count]), total))
    assert np.mean(sizes) <= 1.02 * slow.information(total, count) + 40


def test_a_clustered_support_takes_less():
    """Whole filters: 1000 runs of 50 places, which an explicit table of gaps knows, against 50,000 places anywhere."""
    starts = np.sort(np.random.default_rng(0).permutation(10_000)[:1000]) * 100
    ranks = (starts[:, None] + np.arange(50)).reshape(-1)
    assert payload_bytes(ranks, 1_000_000) < 0.2 * slow.information(1_000_000, ranks.size)


def test_information_by_hand():
    """C(4, 2) = 6 and C(10, 3) = 120."""
    assert slow.information(4, 2) * 8 == pytest.approx(np.log2(6)) and slow.information(10, 3) * 8 == pytest.approx(np.log2(120))
