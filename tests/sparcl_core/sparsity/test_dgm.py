import numpy as np
import oracles
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparcl_core.sparsity.dgm import DGMConfig, draw, gradient_sparsity

layers = st.lists(st.tuples(st.booleans(), st.integers(0, 4)), min_size=1, max_size=60)  # few scores: many ties


def draw_flat(active, score, q):
    """The gradient mask over all places, from a draw among the active ones."""
    active = torch.tensor(active)
    mask = torch.zeros_like(active)
    mask[active] = draw(torch.tensor(score, dtype=torch.float32)[active], active.numel(), q)
    return mask


@given(layers, st.integers(0, 99))
def test_a_draw_equals_the_slow_reference(layer, percent):
    active, score = [a for a, _ in layer], [float(s) for _, s in layer]
    assert draw_flat(active, score, percent / 100).tolist() == oracles.dgm_mask(active, score, percent / 100)


@given(layers, st.integers(0, 99))
def test_a_gradient_mask_has_an_exact_count_and_holds_active_weights_only(layer, percent):
    active = np.array([a for a, _ in layer])
    mask = draw_flat(active, [float(s) for _, s in layer], percent / 100).numpy()
    assert mask.dtype == bool and not (mask & ~active).any()
    assert mask.sum() == min(oracles.active_count(active.size, percent / 100), active.sum())


def test_the_share_is_of_all_weights_and_the_choice_among_active_ones():
    # q = 0.8 keeps 2 of 10 weights. Of the active scores 1, 5, 3, 4 those are 5 and 4; 9 is inactive.
    active = [False, True, True, False, True, True] + [False] * 4
    assert draw_flat(active, [9.0, 1, 5, 9, 3, 4, 9, 9, 9, 9], 0.8).nonzero().flatten().tolist() == [2, 5]


def test_of_equal_scores_the_lower_flat_index_is_kept():
    assert draw_flat([False, True, True, True] * 3, [1.0] * 12, 0.75).nonzero().flatten().tolist() == [1, 2, 3]


def test_ties_are_stable_in_a_layer_too_large_for_a_simple_sort():
    mask = draw(torch.zeros(50_000), 50_000, 0.9)
    assert mask[:5000].all() and mask.sum() == 5000


def test_q_equal_to_the_sparsity_keeps_every_active_weight():
    assert draw(torch.zeros(2), 4, 0.5).tolist() == [True, True]


@pytest.mark.parametrize(("sparsity", "q"), [(0.75, 0.80), (0.90, 0.92), (0.95, 0.96)])
def test_the_default_q_is_that_of_the_released_code(sparsity, q):
    assert gradient_sparsity(DGMConfig(), sparsity) == pytest.approx(q)


@given(st.integers(1, 10), st.integers(0, 99))
def test_the_share_of_active_weights_that_is_kept_can_be_set(tenths, percent):
    size, sparsity = 3000, percent / 100
    q = gradient_sparsity(DGMConfig(keep=tenths / 10), sparsity)
    kept = draw(torch.zeros(oracles.active_count(size, sparsity)), size, q).sum()
    assert kept == size * (100 - percent) * tenths // 1000


@given(st.integers(0, 99), st.integers(0, 99))
def test_a_set_q_is_taken_as_it_is_and_never_below_the_sparsity(s, q):
    config = DGMConfig(sparsity=q / 100)
    if q >= s:
        assert gradient_sparsity(config, s / 100) == q / 100
    else:
        with pytest.raises(ValueError, match=rf"dgm.sparsity is {q / 100}: gradient sparsity must be in \[sparsity, 1\)"):
            gradient_sparsity(config, s / 100)


def test_a_q_of_one_is_refused_with_a_way_out():
    with pytest.raises(ValueError, match="dgm.sparsity is 1.0.*try 0.92"):
        gradient_sparsity(DGMConfig(sparsity=1.0), 0.9)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"keep": 0.0}, r"keep is 0.0.*in \(0, 1\]"),
        ({"keep": 1.1}, r"keep is 1.1.*in \(0, 1\]"),
        ({"interval": 0}, "interval is 0.*>= 1 steps"),
        ({"alpha": -1}, "alpha is -1.*negative"),
        ({"beta": -1}, "beta -1.*negative"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        DGMConfig(**settings)
