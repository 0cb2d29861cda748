import numpy as np
import oracles
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_learning import INPUTS, SEED, tiny_method, without

from sparcl_core.learner import Learner
from sparcl_core.networks.models import initial_weights
from sparcl_core.solo import start_model
from sparcl_core.sparsity.densities import active_counts
from sparcl_core.sparsity.initial import highest_masks
from sparcl_core.sparsity.masks import count_active
from sparcl_core.sparsity.settings import MaskConfig

GLOBAL = MaskConfig(initial="snip", densities="global")


@given(st.lists(st.lists(st.integers(0, 3), min_size=2, max_size=9), min_size=1, max_size=4), st.integers(1, 9))
def test_one_ranking_of_all_layers_equals_the_slow_reference(layers, tenths):
    scores = {f"layer{number}": np.array(layer, float) for number, layer in enumerate(layers)}
    found = highest_masks(scores, GLOBAL, tenths / 10)
    keep = oracles.active_count(sum(map(len, layers)), tenths / 10)
    assert [mask.tolist() for mask in found.values()] == oracles.highest_of_all(layers, keep)


def test_layer_by_layer_counts_are_exact_and_ties_go_to_the_lower_index():
    scores = {"a": np.array([[1.0, 3.0], [3.0, 2.0]]), "b": np.zeros(4)}
    found = highest_masks(scores, MaskConfig(initial="magnitude"), 0.5)
    assert found["a"].tolist() == [[False, True], [True, False]] and found["b"].tolist() == [True, True, False, False]


def test_what_is_not_finite_cannot_be_ranked():
    with pytest.raises(ValueError, match="a score of a is NaN or infinite"):
        highest_masks({"a": np.array([1.0, np.nan])}, GLOBAL, 0.5)


@pytest.mark.parametrize("densities", ["uniform", "erk", "global"])
def test_magnitude_keeps_the_largest_initial_weights(densities):
    method = without(tiny_method(), "dgm")
    method = method.__class__(**{**vars(method), "masks": MaskConfig("static", "magnitude", densities)})
    learner = Learner(method, INPUTS, 10, SEED)
    state, masks = start_model(learner, method, SEED)
    dense = initial_weights(learner.model, SEED)
    shapes = {name: mask.shape for name, mask in masks.items()}
    if densities == "global":
        assert sum(count_active(masks).values()) == 240  # a quarter of 576 + 384
        least = min(np.abs(dense[name][mask]).min() for name, mask in masks.items())
        assert all(np.abs(dense[name][~mask]).max() < least for name, mask in masks.items())
    else:
        assert count_active(masks) == active_counts(densities, shapes, 0.75)
        assert all(np.abs(dense[name][mask]).min() > np.abs(dense[name][~mask]).max() for name, mask in masks.items())
    for name, mask in masks.items():
        assert np.array_equal(state[name], dense[name] * mask)
