import math

import numpy as np
import oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparcl_core.seeding import generator
from sparcl_core.sparsity.masks import apply_masks_, count_active, grow, initial_masks, num_active, random_mask, rescale_, shrink

RNG = np.random.default_rng
layers = st.lists(st.tuples(st.booleans(), st.integers(-3, 3)), min_size=1, max_size=40)  # few scores: many ties


@settings(max_examples=500)
@given(st.integers(1, 5000), st.integers(0, 999))
def test_active_counts_are_exact_with_halves_up(size, per_mille):
    assert num_active(size, per_mille / 1000) == oracles.active_count(size, per_mille / 1000)


@pytest.mark.parametrize(
    ("size", "sparsity", "expected"),
    [(100, 0.0, 100), (36864, 0.75, 9216), (2359296, 0.95, 117965), (15, 0.9, 2), (10, 0.75, 3), (10, 0.999, 1)],
)
def test_active_counts_by_hand(size, sparsity, expected):
    # 0.05 * 2359296 = 117964.8; 0.1 * 15 = 1.5 and 0.25 * 10 = 2.5 go up; at least one weight stays
    assert num_active(size, sparsity) == expected


@given(layers, st.integers(0, 40), st.integers(0, 99))
def test_growth_adds_exactly_that_many_places_and_removes_none(layer, count, seed):
    mask = np.array([active for active, _ in layer])
    count = min(count, int((~mask).sum()))
    before = mask.copy()
    grown = grow(mask, count, RNG(seed))
    assert grown.dtype == bool and grown.sum() == mask.sum() + count
    assert grown[mask].all()
    assert np.array_equal(mask, before)


def test_growth_is_uniform_over_the_inactive_places():
    # 4 of 12 inactive places, 3000 times: each is expected 1000 times. The statistic below has 11 degrees of freedom and, as
    # the draws are without replacement, a mean of 12 * (1 - 4/12) = 8; 31.3 is the 99.9 % point of chi-square(11).
    mask = np.zeros(16, dtype=bool)
    mask[[0, 5, 6, 15]] = True
    rng = RNG(3)
    hits = sum(grow(mask, 4, rng).astype(int) for _ in range(3000))[~mask]
    assert ((hits - 1000) ** 2 / 1000).sum() < 31.3


def test_every_subset_is_a_possible_random_mask():
    rng = RNG(0)
    assert len({random_mask((2, 3), 3, rng).tobytes() for _ in range(600)}) == math.comb(6, 3)


@pytest.mark.parametrize("count", [3, -1])
def test_growing_more_than_there_is_is_refused(count):
    with pytest.raises(ValueError, match=f"cannot grow {count} weights: 2 of 4 are inactive"):
        grow(np.array([True, False, True, False]), count, RNG(0))


@given(layers, st.integers(0, 40))
def test_shrinking_keeps_what_the_slow_reference_keeps(layer, keep):
    active, score = [a for a, _ in layer], [float(s) for _, s in layer]
    keep = min(keep, sum(active))
    kept = shrink(np.array(active), np.array(score), keep)
    assert kept.sum() == keep
    assert kept.tolist() == oracles.keep_highest(active, score, keep)


def test_of_equal_scores_the_lower_flat_index_stays():
    mask = np.array([[False, True, True], [True, True, True]])
    kept = shrink(mask, np.full((2, 3), 0.5), 3)
    assert np.flatnonzero(kept).tolist() == [1, 2, 3]
    assert kept.shape == mask.shape


def test_scores_at_inactive_places_are_not_read():
    kept = shrink(np.array([False, True, True]), np.array([np.nan, 1.0, 2.0]), 1)
    assert kept.tolist() == [False, False, True]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_scores_that_cannot_be_ranked_are_refused(bad):
    with pytest.raises(ValueError, match="NaN or infinite"):
        shrink(np.array([True, True]), np.array([1.0, bad]), 1)


def test_shrinking_to_more_than_there_is_is_refused():
    with pytest.raises(ValueError, match="cannot shrink to 3 weights: only 2 are active"):
        shrink(np.array([True, True, False]), np.zeros(3), 3)


def test_initial_masks_have_exact_counts_and_an_address_each():
    shapes = {"a": (8, 8, 3, 3), "b": (10, 15)}
    masks = initial_masks(shapes, 0.9, seed=4)
    assert count_active(masks) == {"a": 58, "b": 15}  # 57.6 and 15
    assert {name: mask.shape for name, mask in masks.items()} == shapes
    alone = initial_masks({"b": (10, 15)}, 0.9, seed=4)  # another layer does not move this one's draw
    assert np.array_equal(alone["b"], masks["b"])
    assert not np.array_equal(initial_masks(shapes, 0.9, seed=5)["a"], masks["a"])
    twins = initial_masks({"a": (30,), "b": (30,)}, 0.5, seed=4)
    assert not np.array_equal(twins["a"], twins["b"])


def test_applying_masks_makes_inactive_weights_exactly_zero_and_touches_nothing_else():
    rng = RNG(0)
    state = {"w": rng.normal(size=(4, 5)).astype(np.float32), "bias": np.ones(4, dtype=np.float32)}
    before = {name: value.copy() for name, value in state.items()}
    mask = random_mask((4, 5), 6, generator(0, "m"))
    apply_masks_(state, {"w": mask})
    assert np.count_nonzero(state["w"]) == 6
    assert np.array_equal(state["w"][mask], before["w"][mask])
    assert np.array_equal(state["bias"], before["bias"])


def test_rescaling_keeps_the_variance_of_what_a_unit_sums_up():
    # A unit that sums n of N inputs with weights of variance v has variance n v; with 1 / sqrt(n / N) it is N v again.
    state, mask = {"w": np.full((2, 8), 3.0, dtype=np.float32)}, np.zeros((2, 8), dtype=bool)
    mask[:, :2] = True
    apply_masks_(state, {"w": mask})
    rescale_(state, {"w": mask})
    assert (state["w"] == np.where(mask, 6.0, 0.0)).all()  # density 1/4: twice as large
    assert (state["w"] ** 2).sum() == 16 * 9.0  # the dense layer's sum of squares
    assert state["w"].dtype == np.float32
