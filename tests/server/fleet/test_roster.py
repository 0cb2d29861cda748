"""The roster: who is there, in device order. Who takes part in a round: test_cohort.py."""

import numpy as np
import pytest
from effort import at_most
from hypothesis import given
from hypothesis import strategies as st

from server.fleet.roster import Member, Roster

# node ids in another order than devices, as a runtime deals them; devices 1 and 4 have nothing for task 1
ROSTER = Roster.of([Member(device, 900 - device, (5, 0 if device in (1, 4) else 5)) for device in (3, 0, 5, 1, 4, 2)])


def test_devices_are_kept_in_order():
    assert ROSTER.devices.tolist() == [0, 1, 2, 3, 4, 5] and len(ROSTER) == 6
    assert ROSTER.node_ids.tolist() == [900, 899, 898, 897, 896, 895]
    assert ROSTER.samples.tolist() == [[5, 5], [5, 0], [5, 5], [5, 5], [5, 0], [5, 5]]


def test_a_node_id_may_have_64_bits():
    """Flower deals them out at random; a device without it could not be written to."""
    (member,) = Roster.of([Member(0, 2**64 - 1, (1,))]).members(np.array([0]))
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


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=30), st.randoms(use_true_random=False))
def test_members_are_those_that_were_put_in(samples, random):
    members = [Member(3 * device, 2**63 + device, own) for device, own in enumerate(samples)]
    shuffled = members.copy()
    random.shuffle(shuffled)
    rows = np.array([row for row in range(len(members)) if random.random() < 0.5], dtype=np.int64)
    found = Roster.of(shuffled).members(rows)
    assert found == tuple(members[row] for row in rows)
    assert {type(value) for member in found for value in (member.device, member.node_id, *member.samples)} <= {int}  # they go into messages


def test_a_million_devices():
    """No work per device in Python."""
    with at_most(calls=1000):
        devices = np.arange(1_000_000)
        roster = Roster(devices, (devices + 1).astype(np.uint64), np.broadcast_to(np.int64(20), (1_000_000, 5)))
    assert len(roster) == 1_000_000
