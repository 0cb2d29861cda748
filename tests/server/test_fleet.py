"""The roster and the cohort of a round."""

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.fleet import Member, Roster
from sparcl_core.seeding import generator

# node ids in another order than devices, as a runtime deals them; devices 1 and 4 have nothing for task 1
ROSTER = Roster.of([Member(device, 900 - device, (5, 0 if device in (1, 4) else 5)) for device in (3, 0, 5, 1, 4, 2)])


def numbers(members) -> list[int]:
    return [member.device for member in members]


def test_devices_are_kept_in_order():
    assert ROSTER.devices.tolist() == [0, 1, 2, 3, 4, 5] and len(ROSTER) == 6
    assert ROSTER.node_ids.tolist() == [900, 899, 898, 897, 896, 895]
    assert ROSTER.samples.tolist() == [[5, 5], [5, 0], [5, 5], [5, 5], [5, 0], [5, 5]]


def test_a_node_id_may_have_64_bits():
    """Flower deals them out at random; a device without it could not be written to."""
    (member,) = Roster.of([Member(0, 2**64 - 1, (1,))]).cohort(0, 1, 0, 0)
    assert member == Member(0, 2**64 - 1, (1,))


def test_an_empty_roster():
    assert len(Roster.of([])) == 0


def test_a_device_registers_once():
    with pytest.raises(ValueError, match=r"same device: \[0, 7\]"):
        Roster.of([Member(device, node, (1,)) for node, device in enumerate((7, 0, 7, 3, 0, 7))])


def test_all_devices_speak_of_the_same_tasks():
    with pytest.raises(ValueError, match=r"there are \[1, 2\] tasks"):
        Roster.of([Member(0, 1, (1, 2)), Member(1, 2, (1,))])


@pytest.mark.parametrize("devices", [[1, 0], [0, 0]])
def test_arrays_in_another_order_are_refused(devices):
    with pytest.raises(ValueError, match="in ascending order, and none twice"):
        Roster(np.array(devices), np.array([1, 2], dtype=np.uint64), np.ones((2, 1), dtype=np.int64))


@pytest.mark.parametrize("shapes", [(2, 3, (2, 1)), (2, 2, (3, 1)), (2, 2, (2,))])
def test_arrays_that_do_not_fit_are_refused(shapes):
    devices, nodes, samples = shapes
    with pytest.raises(ValueError, match=r"they must be \[N\], \[N\] and \[N, T\]"):
        Roster(np.arange(devices), np.arange(nodes, dtype=np.uint64), np.ones(samples, dtype=np.int64))


# -- cohorts


def cohort_by_hand(members: list[Member], seed: int, server_round: int, task: int, size: int) -> tuple[Member, ...]:
    """Device by device, without arrays."""
    able = [member for member in sorted(members, key=lambda member: member.device) if member.samples[task] > 0]
    if size == 0 or size >= len(able):
        return tuple(able)
    return tuple(able[place] for place in sorted(generator(seed, "cohort", server_round).permutation(len(able))[:size]))


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=30),
    st.integers(0, 5), st.integers(1, 9), st.integers(0, 1), st.integers(0, 31), st.randoms(use_true_random=False),
)  # fmt: skip
def test_a_cohort_is_that_of_a_walk_over_all_devices(samples, seed, server_round, task, size, random):
    members = [Member(3 * device, 2**63 + device, own) for device, own in enumerate(samples)]
    random.shuffle(members)
    roster = Roster.of(members)
    cohort = roster.cohort(seed, server_round, task, size)
    assert cohort == cohort_by_hand(members, seed, server_round, task, size)
    idle = [member.device for member in sorted(members, key=lambda member: member.device) if not member.samples[task]]
    assert numbers(roster.without_data(task)) == idle
    kinds = {type(value) for member in cohort for value in (member.device, member.node_id, *member.samples)}
    assert kinds <= {int}  # they go into messages and ledger rows


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


def test_a_million_devices():
    """Bounds are ten times what two busy cores need: they catch work per device in Python, not a slow machine."""
    started = time.perf_counter()
    devices = np.arange(1_000_000)
    roster = Roster(devices, (devices + 1).astype(np.uint64), np.broadcast_to(np.int64(20), (1_000_000, 5)))
    made = time.perf_counter()
    cohort = roster.cohort(0, 1, 4, 100)
    drawn = time.perf_counter()
    assert len(set(numbers(cohort))) == 100
    assert made - started < 0.5 and drawn - made < 0.5
