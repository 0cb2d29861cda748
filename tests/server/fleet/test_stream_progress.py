"""Pace: when a device moves on, by rounds, by time, by its own rounds; speeds and late starts."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.fleet.stream_progress import ADVANCES, Pace

NOBODY = np.zeros(0, dtype=np.int64)


def steps(pace: Pace, server_round: int = 1, time: float = 0.0, finished: int = 0) -> list[int]:
    devices = np.arange(len(pace.speed))
    return pace.step(devices, server_round, time, np.full(len(devices), finished)).tolist()


@given(st.integers(1, 40), st.integers(1, 20), st.integers(1, 900))
def test_by_rounds_all_move_together(rounds_per_task, count, server_round):
    """Today's schedule to the round, whatever the numbers; the last step goes on."""
    pace = Pace.of(0, 2, count, rounds_per_task)
    assert steps(pace, server_round) == [min((server_round - 1) // rounds_per_task, count - 1)] * 2


def test_by_time():
    """Steps of an hour: half past two is step 2; the third step is the last."""
    pace = Pace.of(0, 1, 3, 4, advance="time", task_s=3600.0)
    for time, step in {0.0: 0, 3599.0: 0, 3600.0: 1, 9000.0: 2, 10_799.0: 2, 1e9: 2}.items():
        assert steps(pace, 1, time) == steps(pace, 77, time) == [step]


def test_by_participation_a_device_moves_on_by_its_own_rounds():
    """Ten rounds of the server change nothing for a device that was in two of them."""
    pace = Pace.of(0, 4, 3, 2, advance="participation")
    finished = np.array([0, 1, 2, 9])
    assert pace.step(np.arange(4), 10, 0.0, finished).tolist() == [0, 0, 1, 2]


def test_speeds_by_hand():
    """Speeds 2 and 1/2, steps of 4 rounds: they last 2 and 8. After 7 rounds: step 3 (from 6 to 8), step 0."""
    pace = Pace(9, 4, "rounds", 0.0, np.array([2.0, 0.5]), np.zeros(2))
    assert steps(pace, 8) == [3, 0]
    assert steps(pace, 9) == [4, 1]
    own = Pace(9, 4, "participation", 0.0, np.array([2.0, 0.5]), np.zeros(2))
    assert steps(own, 99, finished=7) == [3, 0]


@pytest.mark.parametrize("advance", ADVANCES)
def test_late_starts_by_hand(advance):
    """Delays of 0, 1/2 and 1 1/2 steps of 4 rounds or 4 seconds: the second begins after 2, the third after 6."""
    pace = Pace(3, 4, advance, 4.0, np.ones(3), np.array([0.0, 0.5, 1.5]))

    def begun(done: int) -> list[int]:
        return steps(pace, done + 1, float(done))

    assert [sum(step >= 0 for step in begun(done)) for done in range(8)] == [1, 1, 2, 2, 2, 2, 3, 3]
    if advance == "participation":  # then a device's own rounds count: it has all its steps
        assert steps(pace, 100, 0.0, finished=4) == [1, 1, 1]
    else:
        assert begun(6) == [1, 1, 0] and begun(100) == [2, 2, 2]


@given(st.integers(0, 50), st.sampled_from([0.0, 0.3, 1.5]), st.sampled_from([0.0, 0.7, 3.0]), st.floats(0.1, 1e6))
def test_a_step_begins_at_its_change_time(seed, pace_spread, start_spread, task_s):
    """To the bit: at the time itself the step is the new one, just before the old one."""
    pace = Pace.of(seed, 3, 4, 5, advance="time", task_s=task_s, pace_spread=pace_spread, start_spread=start_spread)
    for device in range(3):
        for step, time in enumerate(((pace.delay[device] + np.arange(4) / pace.speed[device]) * task_s).tolist()):
            assert pace.step(np.array([device]), 1, time, NOBODY)[0] == step
            assert pace.step(np.array([device]), 1, np.nextafter(time, -1), NOBODY)[0] == step - 1


@given(st.sampled_from(ADVANCES), st.integers(0, 20), st.integers(1, 9))
def test_steps_only_go_forward(advance, seed, rounds_per_task):
    pace = Pace.of(seed, 6, 5, rounds_per_task, advance=advance, task_s=10.0, pace_spread=0.8, start_spread=1.0)
    devices, last = np.arange(6), np.full(6, -1)
    for done in range(60):
        clock = (done + 1, 3.0 * done, np.full(6, done))
        step = pace.step(devices, *clock)
        assert step.dtype == np.int64 and step.max() <= 4
        assert (step >= last).all()
        last = step


def test_pace_is_a_function_of_seed_and_device():
    """Not of how many devices there are, nor of which are asked."""
    spreads = {"pace_spread": 0.5, "start_spread": 2.0}
    few, many, other = (Pace.of(seed, count, 9, 3, **spreads) for seed, count in ((1, 4), (1, 1000), (2, 4)))
    assert np.array_equal(few.speed, many.speed[:4]) and np.array_equal(few.delay, many.delay[:4])
    assert not np.array_equal(few.speed, other.speed) and not np.array_equal(few.delay, other.delay)
    some = np.array([700, 3, 20])
    assert many.step(some, 11, 0.0, NOBODY).tolist() == many.step(np.arange(1000), 11, 0.0, NOBODY)[some].tolist()


def test_spreads_are_those_of_the_distributions():
    """log v is normal with deviation 0.5: over 20,000 devices its mean errs by 0.0035, its deviation by 0.0025; D is uniform in [0, 2):
    mean 1, error 0.0041. Allowed: 5 of them."""
    pace = Pace.of(3, 20_000, 5, 5, pace_spread=0.5, start_spread=2.0)
    assert abs(np.log(pace.speed).mean()) < 0.018 and abs(np.log(pace.speed).std() - 0.5) < 0.013
    assert abs(pace.delay.mean() - 1) < 0.021 and pace.delay.min() >= 0 and pace.delay.max() < 2
    assert abs(np.corrcoef(pace.speed, pace.delay)[0, 1]) < 0.036


def test_a_fleet_in_step_costs_no_memory():
    pace = Pace.of(0, 10**9, 5, 10)
    assert pace.speed.base.nbytes == pace.delay.base.nbytes == 8
    assert pace.step(np.array([10**9 - 1]), 11, 0.0, NOBODY).tolist() == [1]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"devices": 0}, "devices is 0"),
        ({"steps": 0}, "steps 0"),
        ({"rounds_per_task": 0}, "rounds_per_task 0"),
        ({"advance": "wishes"}, "advance is 'wishes': choose one of rounds, time, participation"),
        ({"advance": "time"}, r"task_s is 0\.0"),
        ({"pace_spread": -1.0}, "pace_spread is -1.0"),
        ({"start_spread": float("nan")}, "start_spread is nan"),
    ],
)
def test_bad_input(arguments, text):
    with pytest.raises(ValueError, match=text):
        Pace.of(**({"seed": 0, "devices": 1, "steps": 1, "rounds_per_task": 1} | arguments))


def test_rounds_are_numbered_from_1():
    with pytest.raises(ValueError, match="server_round is 0"):
        steps(Pace.of(0, 1, 1, 1), 0)
