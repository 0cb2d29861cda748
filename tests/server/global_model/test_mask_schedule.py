"""Where in a task the fleet is: by the number of the round, and by what devices say."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.global_model.mask_schedule import MaskSchedule


def test_by_number_a_task_has_its_rounds_whatever_devices_say():
    stages = MaskSchedule(4, follows_reports=False)
    for server_round in range(1, 10):
        assert stages.position(server_round) == divmod(server_round - 1, 4)
        stages.advance([True, True])


def test_by_reports_a_task_begins_when_half_of_the_devices_say_so():
    """Two of four are enough, one is not; a round without reports is one more of the same task."""
    stages, found = MaskSchedule(4, follows_reports=True), []
    told = [[False] * 4, [True, False, False, False], [True, True, False, False], [], [False] * 3, [True, True, False], [True]]
    for server_round, have_changed in enumerate(told, 1):
        found.append(stages.position(server_round))
        stages.advance(have_changed)
    assert found == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (2, 0)] and stages.position(8) == (3, 0)


def test_a_task_that_nobody_noticed_goes_on():
    """Behind its last stage: the schedule rests there."""
    stages = MaskSchedule(2, follows_reports=True)
    for _ in range(9):
        stages.advance([False])
    assert stages.position(10) == (0, 9)


def test_changes_that_come_one_by_one_are_counted_together():
    """Four devices, one after the other: with the fourth the task has begun for all, and the count begins again."""
    stages, found = MaskSchedule(9, follows_reports=True), []
    for who in (0, 1, None, 2, 3, None, 0):
        stages.advance([device == who for device in range(4)])
        found.append(stages.position(1))
    assert found == [(0, 1), (0, 2), (0, 3), (0, 4), (1, 0), (1, 1), (1, 2)]


@given(st.lists(st.lists(st.booleans(), max_size=5), max_size=12))
def test_every_round_is_a_stage_on_or_a_task_on(told):
    stages, before, since = MaskSchedule(3, follows_reports=True), (0, 0), 0
    for have_changed in told:
        stages.advance(have_changed)
        since += sum(have_changed)
        begins = bool(have_changed) and (2 * sum(have_changed) >= len(have_changed) or since >= len(have_changed))
        since = 0 if begins else since
        task, session = stages.position(1)
        assert (task, session) == ((before[0] + 1, 0) if begins else (before[0], before[1] + 1))
        before = (task, session)
    other = MaskSchedule(3, follows_reports=True)
    other.restore(stages.snapshot())
    assert other.position(1) == before and [type(part) for part in before] == [int, int]


@pytest.mark.parametrize("changes", [1, 2])
def test_many_who_noticed_are_one_task(changes):
    """However long ago each of them was in its own task."""
    stages = MaskSchedule(3, follows_reports=True)
    stages.advance([True] * changes)
    assert stages.position(2) == (1, 0)
