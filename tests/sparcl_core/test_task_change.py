"""When a loss says that the task has changed: by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparcl_core.task_change import ChangeConfig, has_changed, remember

CONFIG = ChangeConfig(window=3, threshold=3.0, rise=0.5)


def test_a_jump_is_one_that_leaves_the_mean_far_behind():
    """Mean 2, deviation 1: with threshold 3 above 5. Mean 2 without deviation: with rise 0.5 above 3."""
    spread, even = np.array([1.0, 3.0]), np.array([2.0, 2.0])
    assert [has_changed(spread, loss, CONFIG) for loss in (4.9, 5.0, 5.1)] == [False, False, True]
    assert [has_changed(even, loss, CONFIG) for loss in (2.9, 3.0, 3.1)] == [False, False, True]


@pytest.mark.parametrize("losses", [[], [1.0]])
def test_a_single_round_says_nothing_yet(losses):
    assert not has_changed(np.array(losses), 1e9, CONFIG)


def test_only_the_last_rounds_are_remembered():
    losses = np.zeros(0)
    for loss in (5.0, 4.0, 3.0, 2.0):
        losses = remember(losses, loss, CONFIG)
    assert losses.tolist() == [4.0, 3.0, 2.0] and losses.dtype == np.float64


@given(st.lists(st.floats(0.1, 10), min_size=2, max_size=5), st.floats(0, 30), st.floats(0.25, 8))
def test_it_does_not_matter_in_what_unit_losses_are(losses, loss, unit):
    own = np.array(losses)
    level = own.mean() + max(3 * own.std(), 0.5 * own.mean())
    if abs(loss - level) > 1e-6:  # next to it, rounding decides
        assert has_changed(own, loss, CONFIG) == has_changed(unit * own, unit * loss, CONFIG) == (loss > level)


@given(st.lists(st.floats(0.1, 10), min_size=2, max_size=5))
def test_a_loss_that_falls_is_no_change(losses):
    assert not has_changed(np.array(losses), min(losses), CONFIG)


def test_a_loss_that_is_no_number_is_no_change():
    """The round that follows says what is wrong with it."""
    assert not has_changed(np.array([1.0, 1.0]), float("nan"), CONFIG)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"window": 1}, "window is 1, batches 2: at least 2 rounds, and 1 batch"),
        ({"batches": 0}, "window is 5, batches 0"),
        ({"threshold": 0.0}, "threshold is 0.0: finite and above 0"),
        ({"rise": float("inf")}, "rise is inf"),
        ({"rise": float("nan")}, "rise is nan"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        ChangeConfig(**settings)
