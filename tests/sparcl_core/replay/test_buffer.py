import numpy as np
import oracles
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparcl_core.replay.buffer import copy, draw, empty, offer_

SHAPE = (1, 2, 2)


def offer_numbers(buffer, numbers, rng):
    """Offer samples that can be told apart: number n is everywhere in its input, label and logits."""
    numbers = np.asarray(numbers)
    x = np.broadcast_to(numbers[:, None, None, None], (len(numbers), *SHAPE)).astype(np.uint8)
    offer_(buffer, x, numbers, np.repeat(numbers[:, None] + 0.5, 3, axis=1), rng=rng)


def filled(offers, capacity, seed=0, batch=1):
    buffer, rng = empty(capacity, SHAPE, 3), np.random.default_rng(seed)
    for begin in range(0, offers, batch):
        offer_numbers(buffer, range(begin, min(begin + batch, offers)), rng)
    return buffer


@given(st.integers(0, 60), st.integers(0, 20), st.integers(1, 9), st.integers(0, 99))
def test_a_buffer_holds_whole_samples_each_once_and_no_more_than_it_can(offers, capacity, batch, seed):
    buffer = filled(offers, capacity, seed, batch)
    used = len(buffer)
    assert buffer.offered == offers and used == min(offers, capacity) and buffer.capacity == capacity
    held = buffer.y[:used]
    assert len(set(held.tolist())) == used and set(held.tolist()) <= set(range(offers))
    assert (buffer.x[:used] == held[:, None, None, None]).all()  # input, label and logits belong to one sample
    assert (buffer.logits[:used] == held[:, None] + np.float32(0.5)).all()


def test_the_first_samples_fill_the_buffer_in_order():
    assert filled(7, 10).y[:7].tolist() == list(range(7))


def test_every_offer_is_held_with_the_same_chance():
    # 30 offers, capacity 10, 3000 buffers: each offer is expected 1000 times. The statistic below has 29 degrees of freedom
    # and a mean of 30 * (1 - 1/3) = 20; 58.3 is the 99.9 % point of chi-square(29).
    hits = np.zeros(30)
    for seed in range(3000):
        hits[filled(30, 10, seed, batch=30).y] += 1
    assert ((hits - 1000) ** 2 / 1000).sum() < 58.3


@pytest.mark.parametrize(("offers", "capacity"), [(5, 2), (5, 3)])
def test_contents_come_up_as_often_as_in_the_exact_reference(offers, capacity):
    # Not only each sample's chance: every content, slot by slot. Bound: chi-square's mean plus five standard deviations.
    chances, draws = oracles.reservoir_distribution(offers, capacity), 4000
    assert sum(chances.values()) == 1
    seen = dict.fromkeys(chances, 0)
    for seed in range(draws):
        seen[tuple(filled(offers, capacity, seed, batch=2).y.tolist())] += 1
    statistic = sum((seen[content] - draws * chance) ** 2 / (draws * chance) for content, chance in chances.items())
    freedom = len(chances) - 1
    assert statistic < freedom + 5 * (2 * freedom) ** 0.5


def test_the_exact_reference_gives_every_offer_the_chance_capacity_over_offers():
    for content_size, offers in ((2, 5), (3, 4)):
        chances = oracles.reservoir_distribution(offers, content_size)
        for sample in range(offers):
            assert sum(chance for content, chance in chances.items() if sample in content) * offers == content_size


def test_stored_logits_are_never_refreshed():
    buffer = filled(4, 4)
    before = buffer.logits.copy()
    for seed in range(20):
        drawn = draw(buffer, 3, np.random.default_rng(seed))
        assert drawn.size == 3
    assert np.array_equal(buffer.logits, before)


@given(st.integers(0, 30), st.integers(1, 12), st.integers(0, 40), st.integers(0, 99))
def test_a_draw_takes_distinct_held_samples(offers, capacity, size, seed):
    buffer = filled(offers, capacity)
    drawn = draw(buffer, size, np.random.default_rng(seed))
    assert drawn.size == min(size, len(buffer)) == len(set(drawn.tolist()))
    assert all(0 <= index < len(buffer) for index in drawn)


def test_draws_are_uniform_and_independent_of_each_other():
    # 10 held, 4 drawn, 2500 times: each is expected 1000 times; mean of the statistic 10 * (1 - 0.4) = 6, 27.9 is the
    # 99.9 % point of chi-square(9). A second draw from the same generator meets the first by chance only: 4 * 4 / 10 = 1.6.
    buffer, rng = filled(10, 10), np.random.default_rng(1)
    hits, common = np.zeros(10), 0
    for _ in range(2500):
        first, second = draw(buffer, 4, rng), draw(buffer, 4, rng)
        hits[first] += 1
        common += np.isin(first, second).sum()
    assert ((hits - 1000) ** 2 / 1000).sum() < 27.9
    assert common / 2500 == pytest.approx(1.6, abs=0.08)  # five standard errors; its variance is 0.64


def test_a_copy_shares_nothing():
    buffer = filled(3, 4)
    twin = copy(buffer)
    offer_numbers(twin, [9], np.random.default_rng(0))
    twin.logits[0] = 7
    assert buffer.offered == 3 and buffer.y.tolist() == [0, 1, 2, 0] and (buffer.logits[0] == 0.5).all()


def test_an_empty_buffer_has_the_types_it_was_asked_for():
    buffer = empty(4, (3, 8, 8), 10, "float64")
    assert buffer.x.shape == (4, 3, 8, 8) and buffer.x.dtype == np.uint8
    assert buffer.y.dtype == np.int64
    assert buffer.logits.shape == (4, 10) and buffer.logits.dtype == np.float64


def test_a_negative_capacity_is_refused():
    with pytest.raises(ValueError, match="capacity is -1: a buffer holds 0 or more"):
        empty(-1, SHAPE, 3)
