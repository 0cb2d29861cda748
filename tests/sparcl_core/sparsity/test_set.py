from dataclasses import replace

import numpy as np
import oracles
from hypothesis import given
from hypothesis import strategies as st

from sparcl_core.sparsity.masks import apply_masks_, count_active, initial_masks
from sparcl_core.sparsity.schemes import make_scheme
from sparcl_core.sparsity.set import removed
from sparcl_core.sparsity.settings import MaskConfig
from sparcl_core.sparsity.tdm import TDMConfig

CONFIG = MaskConfig(scheme="set", stage_epochs=1)
SHAPES = {"conv": (10, 5, 2, 2), "fc": (20, 10)}


def scheme_of(config=CONFIG, epochs=10, seed=3):
    return make_scheme(config, TDMConfig(), 0.75, task_epochs=epochs, seed=seed)


@given(st.lists(st.integers(-3, 3), max_size=30), st.integers(1, 9))
def test_what_goes_equals_the_slow_reference(weights, tenths):
    assert removed(np.array(weights, float), tenths / 10).tolist() == oracles.set_removed(weights, tenths / 10)


def test_what_goes_by_hand():
    """A third: one of three positive ones, the smallest; one of three negative ones, the largest. The others stay, however small."""
    weights = np.array([0.1, 5.0, 6.0, -0.2, -7.0, -8.0])
    assert removed(weights, 1 / 3).tolist() == [True, False, False, True, False, False]


def test_an_update_every_epoch_of_a_task_and_none_at_its_start():
    schedule = scheme_of().schedule(1)
    for task in (0, 3):
        assert [schedule.action(task, session) for session in range(11)] == ["rest", *["adapt"] * 9, "rest"]
    coarse = scheme_of(replace(CONFIG, stage_epochs=3)).schedule(2)  # epochs 2, 4, 6, 8; stages begin at 3, 6 and 9
    assert [coarse.action(0, session) for session in range(5)] == ["rest", "rest", "adapt", "adapt", "rest"]
    assert [scheme_of(replace(CONFIG, until=0.5)).schedule(1).action(0, s) for s in range(10)].count("adapt") == 4


def test_counts_stay_exact_and_inactive_weights_are_zero_through_a_run_of_updates():
    scheme, rng = scheme_of(), np.random.default_rng(0)
    masks = initial_masks(SHAPES, 0.75, 0)
    before, state = count_active(masks), {name: rng.normal(size=shape) for name, shape in SHAPES.items()}
    apply_masks_(state, masks)
    for number in range(1, 6):
        update = scheme.plan("adapt", masks, state, {}, number=number, epoch=number)
        assert all(abs(places.size - 15) <= 1 for places in update.dropped.values())  # 0.3 of 50, rounded for each sign
        again = scheme.redo(masks, [], update)
        masks = scheme.redo(masks, [state], update)
        assert count_active(masks) == before and all(np.array_equal(again[name], mask) for name, mask in masks.items())
        for name, mask in masks.items():
            assert not state[name][~mask].any() and not state[name].reshape(-1)[update.dropped[name]].any()
            state[name] += mask * rng.normal(size=mask.shape)


def test_growth_has_an_address():
    masks = initial_masks(SHAPES, 0.75, 0)
    state = {name: mask * np.random.default_rng(1).normal(size=mask.shape) for name, mask in masks.items()}
    update = scheme_of().plan("adapt", masks, state, {}, number=1, epoch=1)
    drawn = [
        scheme_of(seed=seed).redo(masks, [], replace(update, number=number, device=device))["fc"].tobytes()
        for seed, number, device in ((3, 1, None), (4, 1, None), (3, 2, None), (3, 1, 0), (3, 1, 1))
    ]
    assert len(set(drawn)) == 5
