"""The roster and the cohort of a round."""

import numpy as np
import pytest

from server.fleet import Member, Roster

# node ids in another order than devices, as a runtime deals them; devices 1 and 4 have nothing for task 1
ROSTER = Roster.of([Member(device, 900 - device, (5, 0 if device in (1, 4) else 5)) for device in (3, 0, 5, 1, 4, 2)])


def numbers(members) -> list[int]:
    return [member.device for member in members]


def test_members_are_kept_in_device_order():
    assert numbers(ROSTER.members) == [0, 1, 2, 3, 4, 5]


def test_a_device_registers_once():
    with pytest.raises(ValueError, match="same device"):
        Roster.of([Member(0, 1, (1,)), Member(0, 2, (1,))])


def test_everyone_with_data_is_in_a_full_cohort():
    assert numbers(ROSTER.cohort(0, 1, task=0, size=0)) == [0, 1, 2, 3, 4, 5]
    assert numbers(ROSTER.cohort(0, 1, task=1, size=0)) == [0, 2, 3, 5]
    assert numbers(ROSTER.without_data(1)) == [1, 4]
    assert numbers(ROSTER.cohort(0, 1, task=1, size=5)) == [0, 2, 3, 5]  # no more than there are


def test_a_cohort_is_a_function_of_seed_and_round():
    cohorts = {(seed, r): tuple(numbers(ROSTER.cohort(seed, r, 0, 3))) for seed in range(3) for r in range(1, 20)}
    assert cohorts == {(seed, r): tuple(numbers(ROSTER.cohort(seed, r, 0, 3))) for seed, r in reversed(cohorts)}
    assert len(set(cohorts.values())) > 10
    for cohort in cohorts.values():
        assert len(cohort) == 3 and list(cohort) == sorted(set(cohort))


def test_cohorts_are_drawn_uniformly_from_those_with_data():
    """2 of 4 in 2000 rounds: each expects 1000, with a standard deviation of sqrt(2000 / 4) = 22.4; allowed: 5 of them."""
    drawn = np.bincount([d for r in range(2000) for d in numbers(ROSTER.cohort(7, r, 1, 2))], minlength=6)
    assert drawn[[1, 4]].tolist() == [0, 0] and drawn.sum() == 4000
    assert (np.abs(drawn[[0, 2, 3, 5]] - 1000) < 112).all()
