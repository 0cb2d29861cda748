"""Who takes part in a round: who is there, has data and fits, who is chosen of them, and how long the server waits for somebody."""

import numpy as np
import pytest
from effort import at_most
from hypothesis import given
from hypothesis import strategies as st
from worlds import TOY, assert_same_arrays

from server.fleet.availability_rules import Always, Availability
from server.fleet.battery import make_batteries
from server.fleet.charging import EnergyConfig
from server.fleet.conditions import Conditions
from server.fleet.hardware import Hardware
from server.fleet.local_time import HOUR
from server.fleet.roster import Member, Roster
from server.fleet.stream_progress import Pace
from server.selection.cohort import Cohorts
from server.selection.estimate import Workload
from server.selection.history import DOWN, UP, History
from server.selection.policies import SelectionConfig
from server.selection.sparsity_tiers import Tiers
from sparcl_core.config import LearnerConfig, MethodConfig
from sparcl_core.costs.device import DeviceProfile
from sparcl_core.costs.flops import LayerShape
from sparcl_core.costs.memory import Held
from sparcl_core.networks.models import ModelConfig
from sparcl_core.seeding import generator
from sparcl_core.sparsity.ddr import DDRConfig
from sparcl_core.sparsity.dgm import DGMConfig
from sparcl_core.sparsity.tdm import TDMConfig

METHOD = MethodConfig(ModelConfig("mlp"), LearnerConfig(batch_size=4), TDMConfig(), DDRConfig(), DGMConfig(), sparsity=0.5)
WORK = Workload(METHOD, 1, (LayerShape("w", 100, 1, False),), Held({"w": 100}, 4, 0), {"w": (100,)}, 0, 16, 10, True)


class Windows(Availability):
    """On from begin to end, per device."""

    def __init__(self, *windows: tuple[float, float]):
        self.begin, self.end = np.array(windows, np.float64).T

    def until(self, devices, time):
        time = np.broadcast_to(np.asarray(time, np.float64), (len(devices),))
        return np.where((self.begin[devices] <= time) & (time < self.end[devices]), self.end[devices], time)

    def next_on(self, devices, time):
        time = np.broadcast_to(np.asarray(time, np.float64), (len(devices),))
        return np.where(time < self.end[devices], np.maximum(time, self.begin[devices]), np.inf)


def cohorts_of(roster: Roster, seed=0, availability=None, selection=None, tier_of=None, pace=None, energy=None, **figures) -> Cohorts:
    """A fleet of `TOY` devices, as many as the roster's highest number says, two rounds a task; `figures`: of all of them."""
    count = int(roster.devices[-1]) + 1 if len(roster) else 0
    hardware = Hardware.alike(DeviceProfile("toy", **(TOY | figures)), count)
    of = np.zeros(count, np.int64) if tier_of is None else np.array(tier_of)
    conditions = Conditions(
        hardware=hardware,
        availability=availability or Always(),
        batteries=make_batteries(energy or EnergyConfig(), hardware, np.zeros(count), seed),
        pace=pace or Pace.of(seed, max(count, 1), max(1, roster.samples.shape[1]), 2),
        failure=0.0,
        seed=seed,
    )
    cohorts = Cohorts(conditions, Tiers((WORK.level(0.5),), of, {}), WORK, selection or SelectionConfig())
    cohorts.enrol(roster)
    return cohorts


# devices 1 and 4 have nothing for task 1, which begins with round 3
ROSTER = Roster.of([Member(device, 900 - device, (5, 0 if device in (1, 4) else 5)) for device in (3, 0, 5, 1, 4, 2)])
ALL, TASK_0, TASK_1 = 0, 1, 3


def numbers(chosen) -> list[int]:
    return [one.member.device for one in chosen]


def cohort(cohorts: Cohorts, server_round: int, size: int, time: float = 0.0, **options) -> list[int]:
    return numbers(cohorts.choose(server_round, time, size, np.inf, **options))


# -- cohorts


def cohort_by_hand(members: list[Member], seed: int, server_round: int, task: int, size: int) -> tuple[Member, ...]:
    """Device by device, without arrays."""
    able = [member for member in sorted(members, key=lambda member: member.device) if member.samples[task] > 0]
    if size == 0 or size >= len(able):
        return tuple(able)
    return tuple(able[place] for place in sorted(generator(seed, "cohort", server_round).permutation(len(able))[:size]))


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=30),
    st.integers(0, 5), st.integers(1, 9), st.integers(0, 31), st.randoms(use_true_random=False),
)  # fmt: skip
def test_a_cohort_is_that_of_a_walk_over_all_devices(samples, seed, server_round, size, random):
    members = [Member(3 * device, 2**63 + device, own) for device, own in enumerate(samples)]
    random.shuffle(members)
    cohorts, task = cohorts_of(Roster.of(members), seed), int(server_round > 2)
    chosen = cohorts.choose(server_round, 0.0, size, np.inf)
    assert tuple(one.member for one in chosen) == cohort_by_hand(members, seed, server_round, task, size)
    idle = [(member.device, task) for member in sorted(members, key=lambda member: member.device) if not member.samples[task]]
    assert cohorts.without_data(server_round, 0.0) == idle
    kinds = {type(value) for one in chosen for value in (one.step, one.member.device, one.member.node_id, *one.member.samples)}
    assert kinds <= {int}  # they go into messages and ledger rows


def test_everyone_with_data_is_in_a_full_cohort():
    cohorts = cohorts_of(ROSTER)
    assert cohort(cohorts, TASK_0, ALL) == [0, 1, 2, 3, 4, 5]
    assert cohort(cohorts, TASK_1, ALL) == [0, 2, 3, 5]
    assert cohorts.without_data(TASK_1, 0.0) == [(1, 1), (4, 1)]
    assert cohort(cohorts, TASK_1, 5) == [0, 2, 3, 5]  # no more than there are


def test_a_cohort_is_a_function_of_seed_and_round():
    fleets = [cohorts_of(ROSTER, seed, pace=Pace.of(seed, 6, 2, 20)) for seed in range(3)]
    cohorts = {(seed, r): tuple(cohort(fleets[seed], r, 3)) for seed in range(3) for r in range(1, 20)}
    assert cohorts == {(seed, r): tuple(cohort(fleets[seed], r, 3)) for seed, r in reversed(cohorts)}
    assert len(set(cohorts.values())) > 10
    for found in cohorts.values():
        assert len(found) == 3 and list(found) == sorted(set(found))


def test_cohorts_are_drawn_uniformly_from_those_with_data():
    """2 of 4 in 2000 rounds: each expects 1000, with a standard deviation of sqrt(2000 / 4) = 22.4; allowed: 5 of them."""
    cohorts = cohorts_of(ROSTER, 7)
    drawn = np.bincount([d for r in range(3, 2003) for d in cohort(cohorts, r, 2)], minlength=6)
    assert drawn[[1, 4]].tolist() == [0, 0] and drawn.sum() == 4000
    assert (np.abs(drawn[[0, 2, 3, 5]] - 1000) < 112).all()


def test_a_million_devices():
    """No work per device in Python."""
    devices = np.arange(1_000_000)
    roster = Roster(devices, (devices + 1).astype(np.uint64), np.broadcast_to(np.int64(20), (1_000_000, 5)))
    cohorts = cohorts_of(roster)
    with at_most(calls=5000):
        chosen = cohort(cohorts, 1, 100)
    assert len(set(chosen)) == 100


def test_a_further_draw_of_a_round_is_another_draw():
    """An asynchronous round draws whenever a device is done: who is at work, or was asked, is left out."""
    cohorts = cohorts_of(ROSTER)
    first, second = cohort(cohorts, 1, 2), cohort(cohorts, 1, 2, draw=2)
    assert second != first
    rest = cohort(cohorts, 1, 4, draw=2, busy=set(first))
    assert sorted(rest + first) == [0, 1, 2, 3, 4, 5]
    assert cohort(cohorts, 1, ALL, busy={0, 5}) == [1, 2, 3, 4]


def test_who_does_not_fit_is_never_there():
    cohorts = cohorts_of(ROSTER, tier_of=[0, -1, 0, -1, 0, -1])
    assert cohort(cohorts, TASK_0, ALL) == [0, 2, 4]
    assert cohorts.without_data(TASK_1, 0.0) == [(4, 1)]  # devices 1, 3 and 5 would not take part with data either


def test_a_device_that_the_experiment_does_not_know_is_refused():
    cohorts = cohorts_of(ROSTER)
    with pytest.raises(ValueError, match="device 6 is connected, but the experiment has devices 0 to 5: set stream.devices"):
        cohorts.enrol(Roster.of([Member(6, 1, (1, 1))]))


# -- who is there, and when


def test_only_who_is_there_is_chosen():
    windows = Windows((0, 10), (5, 10), (0, 5), (20, 30), (0, 30), (40, 50))
    cohorts = cohorts_of(ROSTER, availability=windows)
    assert cohort(cohorts, TASK_0, ALL, 0.0) == [0, 2, 4]
    assert cohort(cohorts, TASK_0, ALL, 5.0) == [0, 1, 4]
    assert cohort(cohorts, TASK_0, ALL, 30.0) == []
    assert cohorts.without_data(TASK_1, 5.0) == [(1, 1), (4, 1)]
    assert cohorts.without_data(TASK_1, 20.0) == [(4, 1)]


def test_the_wait_ends_when_enough_devices_are_there():
    """One at 0, a second at 5, a third never with these two: they leave at 10."""
    windows = Windows((0, 10), (5, 10), (20, 30), (21, 30), (22, 30), (40, 41))
    cohorts = cohorts_of(ROSTER, availability=windows)
    waits = {least: cohorts.wait(TASK_0, 0.0, least, np.inf) for least in (1, 2, 3, 4)}
    assert waits == {1: 0.0, 2: 5.0, 3: 22.0, 4: np.inf}
    assert cohorts.wait(TASK_0, 10.0, 1, np.inf) == 20.0
    assert cohorts.wait(TASK_0, 10.0, 1, 15.0) == np.inf  # not before the horizon
    assert cohorts.wait(TASK_0, 41.0, 1, np.inf) == np.inf
    assert cohorts.wait(TASK_0, 0.0, 1, np.inf, busy={0, 1}) == 20.0
    assert cohorts.anyone_comes(40.5) and not cohorts.anyone_comes(41.0)


def test_no_more_are_waited_for_than_can_ever_take_part():
    cohorts = cohorts_of(ROSTER, tier_of=[0, 0, -1, -1, -1, -1], availability=Windows((0, 9), (3, 9), *[(0, 99)] * 4))
    assert cohorts.wait(TASK_0, 0.0, 5, np.inf) == 3.0


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(1, 9)), min_size=6, max_size=6), st.integers(0, 25), st.integers(1, 6))
def test_nobody_waits_a_moment_too_long(windows, now, least):
    """Against a walk over all whole seconds, at which all windows begin. Who is gone for good is not waited for."""
    cohorts = cohorts_of(ROSTER, availability=Windows(*[(begin, begin + length) for begin, length in windows]))
    least = min(least, sum(begin + length > now for begin, length in windows)) or 99
    there = (t for t in range(now, 31) if sum(begin <= t < begin + length for begin, length in windows) >= least)
    assert cohorts.wait(TASK_0, float(now), least, np.inf) == next(there, np.inf)


def test_streams_that_go_by_time_begin_when_the_run_does():
    """Steps of an hour: a device is at step 1 an hour after `origin`; until a device has begun it has no data, and is waited for."""
    pace = Pace.of(0, 6, 2, 2, advance="time", task_s=HOUR, start_spread=1.0)
    cohorts = cohorts_of(ROSTER, pace=pace)
    begins = pace.delay * HOUR
    assert cohort(cohorts, 1, ALL, 0.0) == [] and cohorts.without_data(1, 0.0) == []
    middle = float(np.sort(begins)[2])
    assert cohort(cohorts, 1, ALL, middle) == sorted(np.argsort(begins)[:3].tolist())
    assert cohorts.wait(1, 0.0, 1, np.inf) == HOUR  # nothing says when data comes: it is looked for every hour
    steps = [one.step for one in cohorts.choose(1, 1.5 * HOUR, ALL, np.inf)]
    assert steps == [int(begin <= HOUR / 2) for begin, own in zip(begins, ROSTER.samples, strict=True) if own[int(begin <= HOUR / 2)]]
    cohorts.origin = 10 * HOUR
    assert cohort(cohorts, 1, ALL, 10 * HOUR + middle + 1) == sorted(np.argsort(begins)[:3].tolist())


def test_a_fleet_is_where_its_median_device_is():
    """By participation, two rounds a task: three of six have finished two rounds, so half of the fleet is in task 1."""
    pace = Pace.of(0, 6, 2, 2, advance="participation")
    cohorts = cohorts_of(ROSTER, pace=pace)
    assert cohorts.usual_task(5, 0.0) == 0
    cohorts.history.finished[[0, 1, 2]] = 2  # device 1 has nothing of task 1, and stays
    assert cohorts.usual_task(5, 0.0) == 0
    cohorts.history.finished[3] = 2
    assert cohorts.usual_task(5, 0.0) == 1
    cohorts.chunks = 2  # two steps make a task
    assert cohorts.usual_task(5, 0.0) == 0


# -- what policies are told


def test_policies_are_told_what_was_seen():
    """Device 2 has reported a loss of 3 in round 1; what a round takes is the estimate with the last messages' sizes."""
    cohorts = cohorts_of(ROSTER, selection=SelectionConfig("oort"), battery_j=100.0, energy=EnergyConfig(drain_idle=False))
    cohorts.history.reported(2, 1, 3.0)
    cohorts.history.transferred([(0, 100), (0, 300)], DOWN)
    cohorts.history.transferred([(0, 40)], UP)
    cohorts.conditions.spend(3, 0.0, 1.0, 25.0)
    rows = np.arange(6)
    told = cohorts._candidates(rows, cohorts.steps(2, 1.0), 1.0)
    assert told.last_round.tolist() == [0, 0, 1, 0, 0, 0] and told.loss[2] == 3.0 and np.isnan(told.loss[[0, 1, 3]]).all()
    assert told.charge.tolist() == [1.0, 1.0, 1.0, 0.75, 1.0, 1.0] and told.samples.tolist() == [5] * 6
    seconds = cohorts.estimates.seconds(rows, told.samples, 200.0, 40.0)
    assert np.array_equal(told.seconds, seconds) and seconds[0] > 1 + 0.24  # two latencies, and 240 bytes at 1 kB/s


def test_feasible_leaves_out_who_cannot_be_done_in_time():
    cohorts = cohorts_of(ROSTER, selection=SelectionConfig("feasible"))
    seconds = float(cohorts._candidates(np.arange(6), cohorts.steps(1, 0.0), 0.0).seconds[0])
    assert numbers(cohorts.choose(1, 0.0, ALL, seconds)) == [0, 1, 2, 3, 4, 5]
    assert numbers(cohorts.choose(1, 0.0, ALL, 0.99 * seconds)) == []


# -- state


def test_what_was_seen_is_restored():
    history, other = History(6, [50]), History(6, [50])
    history.reported(2, 1, 3.0)
    for device in (2, 4):
        history.trained(device)
    history.transferred([(0, 77)], UP)
    assert (history.message_bytes.tolist(), other.message_bytes.tolist()) == ([[50, 77]], [[50, 50]])
    other.restore(history.snapshot())
    for name in ("finished", "last_round", "loss", "message_bytes"):
        assert_same_arrays({name: getattr(other, name)}, {name: getattr(history, name)})
    assert history.snapshot()["known"].tolist() == [2, 4]  # of a large fleet, only those that were reached
