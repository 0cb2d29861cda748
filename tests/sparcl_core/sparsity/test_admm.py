"""Pruning by ADMM beside a reference that is written from the paper with sorted lists."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sparcl_core.sparsity.admm import projected, updated

vectors = st.lists(st.integers(-4, 4), min_size=1, max_size=12)


def by_hand(weights: list[float], count: int) -> list[float]:
    order = sorted(range(len(weights)), key=lambda place: (-abs(weights[place]), place))
    return [weights[place] if place in order[:count] else 0.0 for place in range(len(weights))]


@given(vectors, st.data())
def test_the_projection_keeps_the_largest_and_no_more(weights, data):
    count = data.draw(st.integers(0, len(weights)))
    z = projected(np.array(weights, float), count)
    assert z.tolist() == by_hand([float(w) for w in weights], count)
    assert np.count_nonzero(z) <= count and np.count_nonzero(z) == min(count, np.count_nonzero(weights))


@given(st.lists(st.lists(st.integers(-4, 4), min_size=5, max_size=5), min_size=1, max_size=4), st.integers(0, 5))
def test_updates_equal_the_slow_reference(steps, count):
    u, by_paper = None, [0.0] * 5
    for number, weights in enumerate(steps):
        moved = [w + one * (number > 0) for w, one in zip(weights, by_paper, strict=True)]
        z_by_paper = by_hand([float(one) for one in moved], count)
        if number:
            by_paper = [one + w - z for one, w, z in zip(by_paper, weights, z_by_paper, strict=True)]
        z, u = updated(np.array(weights, float), u, count)
        assert z.tolist() == z_by_paper and u.tolist() == by_paper


def test_three_updates_by_hand():
    """One of two weights may stay. What is drawn to 0 and does not go there is drawn harder, until it is the other's turn."""
    weights = np.array([2.0, 1.0])
    z, u = updated(weights, None, 1)
    assert (z.tolist(), u.tolist()) == ([2, 0], [0, 0])
    z, u = updated(weights, u, 1)
    assert (z.tolist(), u.tolist()) == ([2, 0], [0, 1])
    z, u = updated(np.array([1.0, 1.0]), u, 1)  # W + U = (1, 2)
    assert (z.tolist(), u.tolist()) == ([0, 2], [1, 0])


def test_types_stay():
    z, u = updated(np.array([2, 1], np.float32), np.zeros(2, np.float32), 1)
    assert z.dtype == u.dtype == np.float32
