"""Virtual time: the settings, the order of events, and how seconds add up to rounds."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from worlds import RecordingGrid, assert_same_arrays, play, tiny_world, toy_fleet

from server.fleet.local_time import HOUR
from server.ledger import Row
from server.rounds.clock import ClockConfig, EventHeap

SHORT = "stream.tasks=1"


# -- settings and events


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mode": "sometimes"}, "mode is 'sometimes': choose one of sync, semi-sync, async"),
        ({"start_hour": -1.0}, "start_hour is -1.0: finite and not negative"),
        ({"deadline_s": float("inf")}, "deadline_s is inf"),
        ({"horizon_hours": float("nan")}, "horizon_hours is nan"),
        ({"min_devices": 0}, "min_devices is 0: a round needs at least 1"),
        ({"buffer_size": -1}, "buffer_size is -1"),
        ({"max_staleness": -1}, "max_staleness -1"),
        ({"mode": "async"}, "buffer_size is 0: an asynchronous round ends when so many updates are in"),
        ({"mode": "semi-sync"}, "period_s is 0: a semi-synchronous round lasts so long"),
        ({"mode": "async", "buffer_size": 1, "deadline_s": 3.0}, "deadline_s is 3.0: only synchronous rounds have it"),
        ({"mode": "semi-sync", "period_s": 1.0, "over_selection": 0.3}, "over_selection is 0.3: only synchronous rounds have it"),
        ({"buffer_size": 2}, "buffer_size is 2: only asynchronous rounds end by it"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        ClockConfig(**settings)


def test_settings_as_instants():
    clock = ClockConfig(start_hour=3, deadline_s=20, horizon_hours=2)
    assert (clock.deadline, clock.horizon_s, clock.is_buffered) == (20, 5 * HOUR, False)
    assert (ClockConfig().deadline, ClockConfig().horizon_s) == (float("inf"), float("inf"))
    assert ClockConfig("async", buffer_size=1).is_buffered and ClockConfig("semi-sync", period_s=1).is_buffered


@given(st.lists(st.tuples(st.sampled_from([0.0, 0.5, 1.0, 7.25]), st.integers(0, 9)), max_size=20), st.randoms(use_true_random=False))
def test_events_come_by_instant_and_then_by_device(events, random):
    """Whatever the order in which they were put in."""
    heap = EventHeap()
    random.shuffle(events)
    for time, device in events:
        heap.push(time, device)
    found = []
    while len(heap):
        next_time = heap.next_time
        found.append(heap.pop())
        assert found[-1][0] == next_time
    assert found == sorted(events) and heap.next_time == float("inf")
    with pytest.raises(IndexError):
        heap.pop()


# -- a run on the clock


def by_device(rows: list[Row]) -> dict[tuple[int, int], list[Row]]:
    """The rows of each device's round, in the order of its phases; of devices that did nothing there is none."""
    found = {}
    for row in rows:
        if row.phase in ("download", "train", "upload") and row.outcome not in ("sat-out", "skipped", "refused"):
            found.setdefault((row.round, row.device), []).append(row)
    return found


def end_of(rows: list[Row]) -> float:
    return rows[-1].time + rows[-1].seconds


def assert_time_is_sound(rows: list[Row]) -> None:
    """Phases follow each other without a gap, what was cut short is the last, and a device does one thing at a time."""
    busy_until = {}
    works = by_device(rows)
    for (_, device), own in sorted(works.items(), key=lambda work: work[1][0].time):
        assert [row.phase for row in own] == ["download", "train", "upload"][: len(own)]
        for row, after in zip(own, own[1:], strict=False):
            assert row.outcome == "ok" and after.time == pytest.approx(row.time + row.seconds, abs=1e-9)
        assert len(own) == 3 or own[-1].outcome not in ("ok", "stale", "rejected")
        assert own[0].time >= busy_until.get(device, 0.0) - 1e-9
        busy_until[device] = end_of(own)


MODES = {
    "sync": (),
    "jitter": (),
    "deadline": ("clock.deadline_s=25",),
    "over-selection": ("federation.cohort_size=2", "clock.over_selection=0.5"),
    "period": ("clock.period_s=50",),
    "semi-sync": ("clock.mode=semi-sync", "clock.period_s=20"),
    "async": ("clock.mode=async", "clock.buffer_size=1"),
    "failures": ("availability.failure=0.5",),
    "slots": ("availability.kind=bernoulli", "availability.probability=0.5", "availability.slot_minutes=1", "clock.min_devices=2"),
}


@pytest.mark.parametrize("mode", MODES)
def test_time_never_goes_back_and_seconds_add_up(mode, tmp_path):
    figures = {"flops_per_s": [1e6, 5e5, 1.5e6]} | ({"jitter_s": [0.5, 2.0, 1.0]} if mode == "jitter" else {})
    world, times = tiny_world(SHORT, *MODES[mode], *toy_fleet(tmp_path, **figures)), []
    strategy = play(world, observe=lambda record, strategy: times.append((record.time, strategy.federation.now)))
    assert all(told == now for told, now in times)
    assert times == sorted(times) and times[-1][1] > 0
    assert_time_is_sound(strategy.ledger.rows)
    for (server_round, _), own in by_device(strategy.ledger.rows).items():
        assert own[0].time >= times[server_round - 1][1]  # it began when, or after, the round before was over
        assert end_of(own) <= times[-1][1] + 1e-9


def test_a_round_lasts_as_long_as_its_slowest_device(tmp_path):
    """By hand from the ledger; every device begins with the round."""
    world, times = tiny_world(SHORT, *toy_fleet(tmp_path, jitter_s=[0.0, 3.0, 1.0])), []
    strategy = play(world, observe=lambda record, strategy: times.append(record.time))
    works = by_device(strategy.ledger.rows)
    for server_round in range(1, 5):
        own = [works[server_round, device] for device in range(3)]
        assert [rows[0].time for rows in own] == [times[server_round - 1]] * 3
        longest = max(sum(row.seconds for row in rows) for rows in own)
        assert times[server_round] == pytest.approx(times[server_round - 1] + longest, rel=1e-12)
    assert {row.outcome for row in strategy.ledger.rows} == {"ok"}


def test_jitter_is_added_to_every_message(tmp_path):
    """The same run otherwise: a transfer takes longer by a draw of its own, and the radio is on for as long."""
    calm = play(tiny_world(SHORT, *toy_fleet(tmp_path))).ledger.rows
    rough = play(tiny_world(SHORT, *toy_fleet(tmp_path, jitter_s=[2.0] * 3))).ledger.rows
    extra = []
    for one, other in zip(calm, rough, strict=True):
        assert replace(one, seconds=0, joules=0, dense_seconds=0, dense_joules=0, time=0) == replace(
            other, seconds=0, joules=0, dense_seconds=0, dense_joules=0, time=0
        )
        added = other.seconds - one.seconds
        assert other.joules - one.joules == pytest.approx(2 * added)  # idle_w of the toy
        if one.phase != "train":
            assert other.dense_seconds - one.dense_seconds == pytest.approx(added)
            extra.append(added)
    assert len(set(extra)) == len(extra) == 24 and min(extra) > 0
    assert 1 < np.mean(extra) < 3.5  # the mean of 24 draws with mean and deviation 2: within 0.4


def test_hardware_changes_seconds_and_joules_and_nothing_else(tmp_path):
    """An always-on fleet: what is computed and sent, and the model, are the same on any devices."""
    fleets = [("profile=phone",), toy_fleet(tmp_path, flops_per_s=[1e6, 3e5, 1e8], up_bits_per_s=[1e3, 1e4, 1e6])]
    fleets += [("fleet.compute_spread=0.7", "fleet.network_spread=0.5")]
    runs = [play(tiny_world(*fleet)) for fleet in fleets]

    def bare(strategy):
        return [replace(row, seconds=0, joules=0, dense_seconds=0, dense_joules=0, time=0) for row in strategy.ledger.rows]

    for other in runs[1:]:
        assert bare(other) == bare(runs[0])
        assert_same_arrays(other.weights, runs[0].weights)
        assert_same_arrays(other.masks, runs[0].masks)
    assert len({strategy.federation.now for strategy in runs}) == 3


def test_the_run_begins_at_its_start_hour():
    times = []
    play(tiny_world(SHORT, "clock.start_hour=30"), observe=lambda record, strategy: times.append(record.time))
    assert times[0] == 30 * HOUR and times == sorted(times)


def test_synchronous_rounds_begin_at_least_a_period_apart(tmp_path):
    """The slowest device needs about 34 s: rounds of 20 s last longer, those of 50 s begin on the minute."""
    for period_s in (20, 50):
        world, times = tiny_world(SHORT, f"clock.period_s={period_s}", *toy_fleet(tmp_path)), []
        works = by_device(play(world, observe=lambda record, strategy, times=times: times.append(record.time)).ledger.rows)
        for server_round in range(1, 5):
            begin, done = times[server_round - 1], max(end_of(works[server_round, device]) for device in range(3))
            assert times[server_round] == pytest.approx(max(done, begin + period_s), rel=1e-12)
            assert (times[server_round] == begin + period_s) == (period_s == 50)


# -- waiting, and the end


def on(tmp_path, *windows: tuple[int, float, float]) -> tuple[str, ...]:
    """A trace of devices that are there from begin to end."""
    lines = ["device,on,off", *(f"{device},{begin},{end}" for device, begin, end in windows)]
    (tmp_path / "trace.csv").write_text("\n".join(lines) + "\n")
    return ("availability.kind=trace", f"availability.trace={tmp_path / 'trace.csv'}")


def rounds_of(world, grid=None) -> tuple[list, list[Row], bool]:
    records = []
    strategy = play(world, grid, observe=lambda record, strategy: records.append(record))
    return records, strategy.ledger.rows, strategy.federation.is_over


def test_the_clock_jumps_to_when_enough_devices_are_there(tmp_path):
    """Device 0 comes at 100, device 1 at 200; with two at least the first round begins at 200, and device 2 joins from 255 on."""
    windows = on(tmp_path, (0, 100, 9e5), (1, 200, 9e5), (2, 255, 9e5))
    world = tiny_world(SHORT, "clock.min_devices=2", *windows, *toy_fleet(tmp_path))
    records, rows, is_over = rounds_of(world)
    began = {r: min(row.time for row in rows if row.round == r) for r in range(1, 5)}
    assert began[1] == 200 and not is_over
    assert [record.num_devices for record in records[1:]] == [2 + (time >= 255) for time in began.values()] and records[4].num_devices == 3
    assert all(began[r + 1] == records[r].time for r in range(1, 4))
    assert {row.device for row in rows if row.round == 1} == {0, 1}


def test_when_nobody_will_ever_come_the_run_ends_with_what_it_has(tmp_path):
    """All leave at 70 s, in the third round; what they were at is lost, and the fourth finds nobody."""
    windows = on(tmp_path, *[(device, 0, 70) for device in range(3)])
    records, rows, is_over = rounds_of(tiny_world(SHORT, "federation.rounds_per_task=9", *windows, *toy_fleet(tmp_path)))
    assert is_over and [record.num_devices for record in records] == [0, 3, 3, 0, 0]
    assert records[-1].num_devices == 0 and records[-1].ends_task and records[-1].accuracy is not None
    assert {row.reason for row in rows if row.outcome == "failed"} == {"it went offline"}
    assert max(row.time + row.seconds for row in rows) == pytest.approx(70)


@pytest.mark.parametrize("mode", [(), ("clock.mode=async", "clock.buffer_size=2"), ("clock.mode=semi-sync", "clock.period_s=9")])
def test_a_fleet_that_comes_too_late_is_not_waited_for(tmp_path, mode):
    """In the year 2001 of a clock of seconds: the rounds are over without anybody, see tests/simulations/test_nobody.py."""
    windows = on(tmp_path, *[(device, 1e9, 2e9) for device in range(3)])
    world = tiny_world(SHORT, "clock.start_hour=1", *mode, *windows, *toy_fleet(tmp_path))
    records, rows, is_over = rounds_of(world)
    assert rows == [] and sum(record.num_devices for record in records) == 0
    assert is_over or "clock.period_s=9" in mode  # rounds by the clock go on without anybody
    assert records[-1].ends_task


@pytest.mark.parametrize("mode", ["sync", "semi-sync", "async"])
def test_the_horizon_ends_the_run_with_a_whole_round(tmp_path, mode):
    """57.6 s: the round during which they are over is the last."""
    world = tiny_world(SHORT, "clock.horizon_hours=0.016", "federation.rounds_per_task=40", *MODES[mode], *toy_fleet(tmp_path))
    records, rows, is_over = rounds_of(world)
    assert is_over and records[-2].time < 57.6 <= records[-1].time and records[-1].ends_task
    assert max(row.round for row in rows) <= records[-1].round == len(records) - 1


def test_nobody_is_waited_for_beyond_the_horizon(tmp_path):
    windows = on(tmp_path, *[(device, 7200, 9000) for device in range(3)])
    records, rows, is_over = rounds_of(tiny_world(SHORT, "clock.horizon_hours=1", *windows, *toy_fleet(tmp_path)))
    assert (rows, is_over, len(records)) == ([], True, 2)


def test_who_never_meets_ends_the_run(tmp_path):
    """Two are asked for, and the second comes when the first has left: rounds without anybody would be of no use."""
    windows = on(tmp_path, (0, 0, 100), (1, 200, 300), (2, 400, 500))
    records, rows, is_over = rounds_of(tiny_world(SHORT, "clock.min_devices=2", *windows, *toy_fleet(tmp_path)))
    assert (rows, is_over, len(records)) == ([], True, 2)


def test_a_round_without_data_is_no_end(tmp_path):
    """In `rounds`, a task for which nobody has data passes by."""
    world = tiny_world(*toy_fleet(tmp_path))
    empty = replace(world.streams, offsets=np.minimum(world.streams.offsets, world.streams.offsets[:, 1:2]))  # nothing behind task 0
    grid = RecordingGrid(replace(world, streams=empty))
    records, rows, is_over = rounds_of(replace(world, streams=empty), grid)
    assert [record.num_devices for record in records] == [0, 3, 3, 3, 3, 0, 0, 0, 0] and not is_over
    assert {row.outcome for row in rows if row.round > 4} == {"sat-out"}
