"""What cuts a device's work short, and what it has paid by then: by hand, and in runs on a toy fleet."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_cohort import Windows, cohorts_of
from worlds import RecordingGrid, assert_same_arrays, kind_of, play, tiny_world, toy_fleet

from server.fleet.availability import failure_point
from server.fleet.charging import EnergyConfig
from server.fleet.conditions import Conditions, Fate, cut
from server.fleet.roster import Member, Roster
from server.ledger import Row
from server.rounds import synchronous
from server.rounds.clock import ClockConfig
from server.rounds.synchronous import end_of_round
from sparcl_core.costs.device import Cost

SHORT = "stream.tasks=1"
COSTS = (Cost(seconds=10, joules=20), Cost(seconds=5, joules=50), Cost(seconds=5, joules=10))
WHOLE = Fate(3, 100.0, 120.0, (1.0, 1.0, 1.0), joules=80.0)


def conditions_of(count: int = 2, failure: float = 0.0, **options) -> Conditions:
    roster = Roster.of([Member(device, device + 1, (5,)) for device in range(count)])
    conditions = cohorts_of(roster, **options).conditions
    return replace(conditions, failure=failure)


# -- cut


@pytest.mark.parametrize(
    ("end", "shares", "joules"),
    [
        (112.0, (1, 0.4, 0), 20 + 20),  # 2 of the 5 seconds of training
        (105.0, (0.5, 0, 0), 10),
        (100.0, (0, 0, 0), 0),
        (99.0, (0, 0, 0), 0),  # before it began
        (110.0, (1, 0, 0), 20),
        (115.0, (1, 1, 0), 70),
        (119.0, (1, 1, 0.8), 78),
    ],
)
def test_a_cut_by_hand(end, shares, joules):
    fate = cut(WHOLE, COSTS, end, outcome="late", reason="too late")
    assert fate == Fate(3, 100.0, end, shares, "late", "too late", joules)
    assert fate.has_trained == (shares[1] == 1) and not fate.is_done


def test_what_is_cut_at_its_very_end_is_not_done():
    """Two report at the same instant and one is enough: the other has paid for everything, and does not count."""
    fate = cut(WHOLE, COSTS, 120.0, outcome="cancelled", reason="1 devices had reported")
    assert fate.shares[:2] == (1, 1) and 0.999999 < fate.shares[2] < 1
    assert fate.has_trained and not fate.is_done and fate.joules == pytest.approx(80)


def test_a_phase_that_takes_no_time_is_done_when_it_is_reached():
    costs = (Cost(seconds=10, joules=20), Cost(joules=3), Cost(seconds=10))
    assert cut(WHOLE, costs, 110.0, outcome="late", reason="").shares == (1, 1, 0)
    assert cut(WHOLE, costs, 109.0, outcome="late", reason="").shares == (0.9, 0, 0)


seconds = st.sampled_from([0.0, 0.25, 1.0, 8.0])


@given(st.tuples(seconds, seconds, seconds), st.tuples(seconds, seconds, seconds), st.floats(0, 1), st.floats(0, 1))
def test_seconds_of_the_shares_are_those_from_start_to_end(lasting, joules, first, second):
    """Also of one that is cut twice, as a device that failed, and then was stopped before."""
    costs = tuple(Cost(seconds=s, joules=j) for s, j in zip(lasting, joules, strict=True))
    whole = Fate(0, 50.0, 50.0 + sum(lasting), (1.0,) * 3, joules=sum(joules))
    fate = whole
    for share in (first, second):
        end = fate.start + share * (fate.end - fate.start)
        fate = cut(fate, costs, end, outcome="late", reason="")
        assert fate.end == end and len(fate.shares) == 3
        assert sum(own * s for own, s in zip(fate.shares, lasting, strict=True)) == pytest.approx(end - fate.start, abs=1e-9)
        assert fate.joules == pytest.approx(sum(own * j for own, j in zip(fate.shares, joules, strict=True)), abs=1e-9)
        assert list(fate.shares) == sorted(fate.shares, reverse=True) and fate.shares[2] < 1
        assert sum(0 < own < 1 for own in fate.shares) <= 1  # at most one phase is under way


# -- fate


def test_undisturbed_work_is_done():
    fate = conditions_of().fate(1, 1, 100.0, COSTS)
    assert fate == Fate(1, 100.0, 120.0, (1.0, 1.0, 1.0), "ok", "", 80.0) and fate.is_done and fate.has_trained


def test_a_device_that_goes_offline_has_worked_up_to_then():
    conditions = conditions_of(availability=Windows((0, 112), (0, 120)))
    assert conditions.fate(0, 1, 100.0, COSTS) == Fate(0, 100.0, 112.0, (1, 0.4, 0), "failed", "it went offline", 40)
    assert conditions.fate(1, 1, 100.0, COSTS).is_done  # it leaves when it is done


def test_a_battery_that_runs_empty_ends_the_work():
    """40 J and no charger; 80 J in 20 s are 4 W: empty after 10 s, with the download done."""
    energy = EnergyConfig(charging="none", drain_idle=False)
    conditions = conditions_of(battery_j=40.0, energy=energy)
    fate = conditions.fate(0, 1, 100.0, COSTS)
    assert fate == Fate(0, 100.0, 110.0, (1, 0, 0), "failed", "its battery was empty", 20)
    assert conditions_of(battery_j=80.0, energy=energy).fate(0, 1, 100.0, COSTS).is_done


def test_a_device_that_fails_does_so_at_its_point():
    conditions = conditions_of(failure=1.0)
    for server_round in range(1, 5):
        share = failure_point(0, 0, server_round, 1.0)
        fate = conditions.fate(0, server_round, 100.0, COSTS)
        assert fate == cut(
            replace(WHOLE, device=0), COSTS, 100 + share * 20, outcome="failed", reason="it failed in the middle of its work"
        )


@pytest.mark.parametrize(
    ("leaves", "reason"), [(104, "it went offline"), (111, "its battery was empty"), (None, "it failed in the middle")]
)
def test_of_several_reasons_the_first_one_counts(leaves, reason):
    """Empty after 10 s; the failure comes at another share in every round: one before half of the work, so before the battery."""
    energy = EnergyConfig(charging="none", drain_idle=False)
    window = Windows((0, leaves or 1e9), (0, 1))
    conditions = conditions_of(battery_j=40.0, energy=energy, availability=window, failure=1.0)
    points = {server_round: failure_point(0, 0, server_round, 1.0) for server_round in range(1, 30)}
    server_round = next(r for r, point in points.items() if (point < 0.2) == (leaves is None) and (point > 0.6) == (leaves is not None))
    fate = conditions.fate(0, server_round, 100.0, COSTS)
    assert fate.reason.startswith(reason) and fate.outcome == "failed"


def test_looking_at_a_fate_changes_nothing():
    conditions = conditions_of(battery_j=40.0, failure=0.5)
    before = {name: array.copy() for name, array in conditions.batteries.snapshot().items()}
    fates = [conditions.fate(0, server_round, 10.0, COSTS) for server_round in (1, 2, 3)]
    assert_same_arrays(conditions.batteries.snapshot(), before)
    assert [conditions.fate(0, server_round, 10.0, COSTS) for server_round in (3, 2, 1)] == fates[::-1]


def test_jitter_is_a_function_of_round_device_and_message():
    """2000 draws with mean and deviation 3: the mean is within 5 * 3 / sqrt(2000) = 0.34."""
    conditions = conditions_of(jitter_s=3.0)
    drawn = [conditions.jitter(1, server_round, "train-down") for server_round in range(2000)]
    assert len(set(drawn)) == 2000 and min(drawn) > 0 and abs(np.mean(drawn) - 3) < 0.34
    assert conditions.jitter(1, 7, "train-down") == drawn[7]
    assert len({conditions.jitter(device, 7, way) for device in (0, 1) for way in ("train-down", "train-up")}) == 4
    assert conditions_of().jitter(1, 7, "train-down") == 0.0


# -- the end of a round


def fates_of(*ends: float, failed: tuple[int, ...] = ()) -> tuple[dict[int, Fate], dict[int, tuple[Cost, ...]]]:
    """Devices that would be done so many seconds after the start, at 100; a third of it for each phase."""
    costs = {device: (Cost(seconds=end / 3, joules=end),) * 3 for device, end in enumerate(ends)}
    fates = {device: Fate(device, 100.0, 100.0 + end, (1.0,) * 3, joules=3 * end) for device, end in enumerate(ends)}
    for device in failed:
        fates[device] = cut(fates[device], costs[device], fates[device].end, outcome="failed", reason="broke")
    return fates, costs


def outcomes(found: dict[int, Fate]) -> list[str]:
    return [fate.outcome for fate in found.values()]


def test_a_round_ends_with_its_slowest_device():
    fates, costs = fates_of(30, 60, 45)
    found, end = end_of_round(ClockConfig(), fates, costs, start=100.0, wanted=0)
    assert (found, end) == (fates, 160.0)
    assert end_of_round(ClockConfig(period_s=90), fates, costs, start=100.0, wanted=0) == (fates, 190.0)
    assert end_of_round(ClockConfig(period_s=50), fates, costs, start=100.0, wanted=0) == (fates, 160.0)


def test_a_round_without_anybody_takes_its_period():
    assert end_of_round(ClockConfig(period_s=50, deadline_s=9), {}, {}, start=100.0, wanted=0) == ({}, 150.0)
    assert end_of_round(ClockConfig(), {}, {}, start=100.0, wanted=3) == ({}, 100.0)


def test_who_is_not_done_at_the_deadline_is_late():
    """45 s: one is done before, one in the nick of time, one has done 45 of 60 s: a quarter of its upload."""
    fates, costs = fates_of(30, 60, 45)
    found, end = end_of_round(ClockConfig(deadline_s=45), fates, costs, start=100.0, wanted=0)
    assert end == 145.0 and outcomes(found) == ["ok", "late", "ok"] and found[0] is fates[0] and found[2] is fates[2]
    assert found[1] == Fate(1, 100.0, 145.0, (1.0, 1.0, pytest.approx(0.25)), "late", "the deadline of 45 s was over", pytest.approx(135))
    found, end = end_of_round(ClockConfig(deadline_s=61), fates, costs, start=100.0, wanted=0)
    assert (found, end) == (fates, 160.0)  # nobody waits for a deadline


def test_over_selection_counts_the_first_who_arrive():
    """Two of four are wanted: 30 and 45. The round is over at 45, and the others have worked up to then."""
    clock = ClockConfig(over_selection=1.0)
    fates, costs = fates_of(60, 45, 30, 90)
    found, end = end_of_round(clock, fates, costs, start=100.0, wanted=2)
    assert end == 145.0 and outcomes(found) == ["cancelled", "ok", "ok", "cancelled"]
    assert found[0].shares == (1.0, 1.0, pytest.approx(0.25)) and found[3].shares == (1.0, pytest.approx(0.5), 0.0)
    assert found[0].reason == found[3].reason == "2 devices had reported"


def test_of_those_who_report_at_once_the_lower_number_counts():
    clock = ClockConfig(over_selection=1.0)
    fates, costs = fates_of(30, 30, 30, 30)
    found, end = end_of_round(clock, dict(reversed(fates.items())), costs, start=100.0, wanted=2)
    assert end == 130.0 and {device: fate.outcome for device, fate in found.items()} == {0: "ok", 1: "ok", 2: "cancelled", 3: "cancelled"}
    assert found[3].has_trained and found[3].joules == pytest.approx(90)


def test_those_who_fail_are_not_among_the_first():
    """Device 1 fails at 45, so the second who reports is the one at 60; one that would fail after the end was stopped before."""
    clock = ClockConfig(over_selection=1.0)
    fates, costs = fates_of(60, 45, 30, 90, failed=(1, 3))
    found, end = end_of_round(clock, fates, costs, start=100.0, wanted=2)
    assert end == 160.0 and outcomes(found) == ["ok", "failed", "ok", "cancelled"]
    fates, costs = fates_of(60, 45, 30, 90, failed=(0, 1, 3))
    found, end = end_of_round(clock, fates, costs, start=100.0, wanted=2)  # too few: it lasts until the last has failed
    assert end == 190.0 and outcomes(found) == ["failed", "failed", "ok", "failed"] and found == fates


def test_the_deadline_comes_before_those_who_are_wanted():
    clock = ClockConfig(over_selection=1.0, deadline_s=40)
    fates, costs = fates_of(60, 45, 30, 90)
    found, end = end_of_round(clock, fates, costs, start=100.0, wanted=2)
    assert end == 140.0 and outcomes(found) == ["late", "late", "ok", "late"]


@given(
    st.lists(st.sampled_from([15.0, 30.0, 45.0, 60.0]), min_size=1, max_size=8), st.integers(0, 5), st.sampled_from([0.0, 0.5]),
    st.sampled_from([0.0, 20.0, 45.0]),
)  # fmt: skip
def test_nobody_works_beyond_the_end_of_a_round(ends, wanted, over_selection, deadline_s):
    clock = ClockConfig(over_selection=over_selection, deadline_s=deadline_s)
    fates, costs = fates_of(*ends)
    found, end = end_of_round(clock, fates, costs, start=100.0, wanted=wanted)
    assert found.keys() == fates.keys() and all(fate.end <= end for fate in found.values())
    assert end == max(fate.end for fate in found.values()) <= 100 + clock.deadline
    done = [device for device, fate in found.items() if fate.is_done]
    assert done == [device for device in done if found[device] is fates[device]]
    first = [device for _, device in sorted((fate.end, device) for device, fate in fates.items() if fate.end <= end)]
    assert sorted(done) == sorted(first[: wanted if wanted and over_selection else None])


# -- in a run: deadlines


def rows_of(strategy, device: int) -> list[Row]:
    return [row for row in strategy.ledger.rows if row.device == device and row.phase in ("download", "train", "upload")]


def test_a_device_that_is_always_late_is_paid_for_and_plays_no_part(tmp_path):
    """The model's bits are those of a run that refuses the device. It is cut in its training every time, so it is as if it had never
    begun: it keeps no state, and is sent the whole model again."""
    slow = toy_fleet(tmp_path, flops_per_s=[1e6, 1e6, 1e5])
    grid = RecordingGrid(tiny_world(SHORT, "clock.deadline_s=40", *slow))
    late = play(tiny_world(SHORT, "clock.deadline_s=40", *slow), grid)
    rows = rows_of(late, 2)
    assert [(row.phase, row.outcome) for row in rows] == [("download", "ok"), ("train", "late")] * 4
    assert all(row.time + row.seconds == pytest.approx(row.time // 40 * 40 + 40, abs=1) for row in rows if row.outcome == "late")
    assert {row.down_bytes > 2000 for row in rows if row.phase == "download"} == {True} and grid.device(2) is None
    for r in range(1, 5):
        (message,) = [m for m in grid.sent[r] if m.metadata.dst_node_id == 3]
        assert kind_of(message.content["instruction"]["payloads"][0]) == "whole"

    refused = play(tiny_world(SHORT, *toy_fleet(tmp_path, memory_bytes=[1e6, 1e6, 1e4])))
    assert [row.outcome for row in rows_of(refused, 2)] == ["refused"]
    assert_same_arrays(late.weights, refused.weights)
    assert_same_arrays(late.masks, refused.masks)

    def work(strategy):
        return [replace(row, time=0) for row in strategy.ledger.rows if row.device != 2]

    assert work(late) == work(refused)


def test_a_row_of_work_that_was_cut_has_its_share_of_everything(tmp_path):
    """The deadline comes in the middle of device 2's training: what it has done by then is as much of seconds, joules and FLOPs."""
    slow = toy_fleet(tmp_path, flops_per_s=[1e6, 1e6, 1e5])
    whole, late = play(tiny_world(SHORT, *slow)), play(tiny_world(SHORT, "clock.deadline_s=40", *slow))
    (_, done, _), (_, cut_row) = rows_of(whole, 2)[:3], rows_of(late, 2)[:2]
    share = cut_row.seconds / done.seconds
    assert 0.05 < share < 0.5 and cut_row.reason == "the deadline of 40 s was over"
    for name in ("joules", "dense_seconds", "dense_joules"):
        assert getattr(cut_row, name) == pytest.approx(share * getattr(done, name))
    for name in ("train_flops", "importance_flops", "mask_flops", "paper_flops", "dense_flops", "dense_paper_flops"):
        assert getattr(cut_row, name) == int(share * getattr(done, name)) > 0 or name == "paper_flops"
    assert (cut_row.samples, cut_row.steps, cut_row.loss, cut_row.kept) == (0, 0, 0, 0)
    assert cut_row.memory_bytes == done.memory_bytes
    totals = late.ledger.totals()
    assert totals["seconds"] == pytest.approx(sum(row.seconds for row in late.ledger.rows))


def stopped(monkeypatch, server_round: int, device: int, phase: int) -> None:
    """Stop a device in the middle of one phase of one round."""
    true, played = synchronous.end_of_round, []

    def patched(clock, fates, costs, *, start, wanted):
        fates, end = true(clock, fates, costs, start=start, wanted=wanted)
        played.append(end)
        if len(played) == server_round:
            own = costs[device]
            instant = start + sum(cost.seconds for cost in own[:phase]) + own[phase].seconds / 2
            fates[device] = cut(fates[device], own, instant, outcome="late", reason="it was stopped")
        return fates, end

    monkeypatch.setattr(synchronous, "end_of_round", patched)


class Forgetful(RecordingGrid):
    """A runtime that cannot give a device its old state back, as Flower's own cannot."""

    @property
    def undo(self):
        raise AttributeError("undo")


@pytest.mark.parametrize("phase", [0, 1])
def test_training_that_was_cut_short_is_undone(monkeypatch, phase):
    """Device 1 in round 2: afterwards it is the device of round 1, and is sent two versions in round 3."""
    stopped(monkeypatch, 2, 1, phase)
    world = tiny_world(SHORT)
    grid, epochs, versions, held = RecordingGrid(world), [], [], []

    def observe(record, strategy):
        if record.round:
            device = grid.device(1)
            epochs.append(device.memory.epochs)
            versions.append(device.version)
            held.append(strategy.federation.exchange.held[1])

    strategy = play(world, grid, observe)
    assert epochs == [1, 1, 2, 3] and versions == [1, 1, 3, 4] == held
    assert [row.outcome for row in strategy.ledger.rows if row.round == 2 and row.device == 1] == ["ok"] * phase + ["late"]
    assert all(row.outcome == "ok" for row in strategy.ledger.rows if row.round > 2)
    (message,) = [m for m in grid.sent[3] if m.metadata.dst_node_id == 2]
    kinds = [kind_of(payload) for payload in message.content["instruction"]["payloads"]]
    assert kinds == ["whole"] or kinds.count("delta") == 2
    assert strategy.federation.history.finished.tolist() == [4, 3, 4]


def test_a_runtime_without_undo_sends_the_whole_model_again(monkeypatch):
    stopped(monkeypatch, 2, 1, 1)
    world = tiny_world(SHORT)
    grid, epochs = Forgetful(world), []
    assert not hasattr(grid, "undo")
    strategy = play(world, grid, lambda record, strategy: record.round and epochs.append(grid.device(1).memory.epochs))
    assert epochs == [1, 2, 3, 4]  # it did train, and nobody can take that back
    (message,) = [m for m in grid.sent[3] if m.metadata.dst_node_id == 2]
    (payload,) = message.content["instruction"]["payloads"]
    assert kind_of(payload) == "whole"
    assert all(row.outcome == "ok" for row in strategy.ledger.rows if row.round > 2)


def test_training_that_was_done_stays_done_though_its_report_was_lost(monkeypatch):
    """Cut in its upload: the device has moved on, and the server knows what it holds; its update is lost."""
    stopped(monkeypatch, 2, 1, 2)
    world = tiny_world(SHORT)
    grid, epochs, devices = RecordingGrid(world), [], []

    def observe(record, strategy):
        devices.append(record.num_devices)
        if record.round:
            epochs.append(grid.device(1).memory.epochs)
            assert strategy.federation.exchange.held[1] == grid.device(1).version == record.round

    strategy = play(world, grid, observe)
    assert epochs == [1, 2, 3, 4] and devices == [0, 3, 2, 3, 3]
    cut_rows = [row for row in strategy.ledger.rows if (row.round, row.device) == (2, 1)]
    assert [(row.phase, row.outcome) for row in cut_rows] == [("download", "ok"), ("train", "ok"), ("upload", "late")]
    upload = cut_rows[2]
    assert upload.unread_bytes == upload.up_bytes > 0 and upload.values_bytes == upload.header_bytes == 0
    assert strategy.federation.history.finished.tolist() == [4, 4, 4] and strategy.federation.history.last_round.tolist() == [4, 4, 4]


def test_over_selection_in_a_run(tmp_path):
    """Three are asked and two are wanted: every round ends with the second report, and the third device is told to stop."""
    settings = ("federation.cohort_size=2", "clock.over_selection=0.5")
    times, devices = [], []

    def observe(record, strategy):
        times.append(record.time)
        devices.append(record.num_devices)

    strategy = play(tiny_world(SHORT, *settings, *toy_fleet(tmp_path, flops_per_s=[1e6, 1e6, 1e5])), observe=observe)
    assert devices == [0, 2, 2, 2, 2]
    for server_round in range(1, 5):
        rows = [row for row in strategy.ledger.rows if row.round == server_round]
        assert {row.device for row in rows} == {0, 1, 2}
        done = [row.time + row.seconds for row in rows if row.phase == "upload" and row.outcome == "ok"]
        assert len(done) == 2 and max(done) == pytest.approx(times[server_round])
        (stop,) = [row for row in rows if row.outcome == "cancelled"]
        assert stop.device == 2 and stop.time + stop.seconds == pytest.approx(times[server_round])
        assert stop.reason == "2 devices had reported"


# -- in a run: failures, presence and batteries


def spent(strategy, device: int) -> float:
    return sum(row.joules for row in strategy.ledger.rows if row.device == device)


def test_a_fleet_that_always_fails_has_paid_up_to_where_it_failed(tmp_path):
    """By hand: of each round, seconds and joules of the phases that were reached. The model stays as it was, and the run goes on."""
    fleet = toy_fleet(tmp_path, battery_j=[1e5] * 3)
    energy = ("energy.charging=none", "energy.drain_idle=false")
    settings = (SHORT, "tdm.enabled=false", *fleet, *energy)
    calm = play(tiny_world(*settings))
    world, start = tiny_world(*settings, "availability.failure=1"), None
    records = []

    def observe(record, strategy):
        nonlocal start
        start = start or {name: value.copy() for name, value in strategy.weights.items()}
        records.append(record)

    strategy = play(world, observe=observe)
    assert_same_arrays(strategy.weights, start)
    assert [record.num_devices for record in records] == [0] * 5
    for device in range(3):
        down, train, up = [row for row in calm.ledger.rows if (row.round, row.device) == (1, device)]
        share = failure_point(world.experiment.seed, device, 1, 1.0)
        left, joules, seconds_by_phase = share * (down.seconds + train.seconds + up.seconds), 0.0, []
        for row in (down, train, up):
            done = min(1.0, left / row.seconds)
            seconds_by_phase.append(done * row.seconds)
            joules += done * row.joules
            left -= done * row.seconds
            if done < 1:
                break
        rows = [row for row in strategy.ledger.rows if (row.round, row.device) == (1, device)]
        assert [row.seconds for row in rows] == pytest.approx(seconds_by_phase)
        assert sum(row.joules for row in rows) == pytest.approx(joules)
        assert rows[-1].outcome == "failed" and rows[-1].reason == "it failed in the middle of its work"
        assert strategy.federation.conditions.batteries.level_j[device] == pytest.approx(1e5 - spent(strategy, device))


@pytest.mark.parametrize(
    "mode",
    [
        (),
        ("clock.deadline_s=25",),
        ("availability.failure=0.5",),
        ("clock.mode=async", "clock.buffer_size=1"),
        ("clock.mode=semi-sync", "clock.period_s=20"),
    ],
    ids=["sync", "deadline", "failures", "async", "semi-sync"],
)
def test_batteries_are_drained_by_what_the_ledger_says(mode, tmp_path):
    fleet = toy_fleet(tmp_path, battery_j=[1e4] * 3, flops_per_s=[1e6, 1e6, 5e5])
    strategy = play(tiny_world(SHORT, *mode, *fleet, "energy.charging=none", "energy.drain_idle=false"))
    batteries = strategy.federation.conditions.batteries
    for device in range(3):
        assert batteries.level_j[device] == pytest.approx(1e4 - spent(strategy, device))
        assert batteries.spent_j[device] == pytest.approx(spent(strategy, device)) and spent(strategy, device) > 0


def test_a_device_with_an_empty_battery_stops_and_declines(tmp_path):
    """Device 1 has 230 J, and its first round takes about 132: the second empties it, and then it does not want to be asked again."""
    fleet = toy_fleet(tmp_path, battery_j=[1e5, 230, 1e5])
    strategy = play(tiny_world(SHORT, *fleet, "energy.charging=none", "energy.drain_idle=false", "energy.reserve=0.1"))
    found = [(row.round, row.phase, row.outcome, row.reason) for row in strategy.ledger.rows if row.device == 1]
    assert found[:3] == [(1, phase, "ok", "") for phase in ("download", "train", "upload")]
    assert found[3:5] == [(2, "download", "ok", ""), (2, "train", "failed", "its battery was empty")]
    assert [row[:3] for row in found[5:]] == [(3, "train", "skipped"), (4, "train", "skipped")]
    # it was stopped where its mean power would have emptied it: what its phases took by then differs a little
    assert spent(strategy, 1) == pytest.approx(230, rel=0.05)
    assert strategy.federation.conditions.batteries.level_j[1] == pytest.approx(max(0, 230 - spent(strategy, 1)))
    skipped = [row for row in strategy.ledger.rows if row.outcome == "skipped"]
    assert all(row.seconds == row.joules == row.down_bytes == row.train_flops == 0 for row in skipped)


def test_a_device_that_leaves_in_the_middle(tmp_path):
    """Device 2 is there for 20 s of a round that takes it about 34, and comes back at 1000, when the others are long done."""
    lines = ["device,on,off", "0,0,90000", "1,0,90000", "2,0,20", "2,1000,90000"]
    (tmp_path / "trace.csv").write_text("\n".join(lines) + "\n")
    presence = ("availability.kind=trace", f"availability.trace={tmp_path / 'trace.csv'}")
    strategy = play(tiny_world(SHORT, *presence, *toy_fleet(tmp_path)))
    rows = rows_of(strategy, 2)
    assert [(row.round, row.phase, row.outcome) for row in rows] == [(1, "download", "ok"), (1, "train", "failed")]
    assert rows[-1].reason == "it went offline" and rows[-1].time + rows[-1].seconds == pytest.approx(20)
    assert {row.device for row in strategy.ledger.rows if row.round > 1} == {0, 1}


def test_when_all_decline_the_round_comes_again_later(tmp_path):
    """Half full with a reserve of 0.6, and a charger of 10 W: the missing 100 of 1000 J take 10 s, and after 900 all are asked again."""
    fleet = toy_fleet(tmp_path, battery_j=[1000] * 3, charge_w=[10.0] * 3)
    energy = ("energy.start_level=0.5", "energy.reserve=0.6", "energy.drain_idle=false")
    devices = []
    strategy = play(tiny_world(SHORT, *fleet, *energy), observe=lambda record, strategy: devices.append((record.num_devices, record.time)))
    assert devices[:2] == [(0, 0.0), (0, 900.0)] and [count for count, _ in devices[2:]] == [3, 3, 3]
    declined = [row for row in strategy.ledger.rows if row.outcome == "skipped"]
    assert [(row.round, row.device, row.reason) for row in declined] == [
        (1, device, "battery at 50 %, reserve is 60 %") for device in range(3)
    ]
    assert min(row.time for row in strategy.ledger.rows if row.round == 2) == 900.0


def test_a_round_whose_reports_are_all_lost_owes_the_masks_their_update(monkeypatch):
    """The masks adapt before rounds 2 and 3. Everybody is cut in round 1, so the update is made up for before round 3 with round 2's."""
    true, played = synchronous.end_of_round, []

    def patched(clock, fates, costs, *, start, wanted):
        fates, end = true(clock, fates, costs, start=start, wanted=wanted)
        played.append(end)
        if len(played) in (1, 3):
            instant = {device: start + costs[device][0].seconds for device in fates}
            fates = {device: cut(fate, costs[device], instant[device], outcome="late", reason="stopped") for device, fate in fates.items()}
        return fates, end

    monkeypatch.setattr(synchronous, "end_of_round", patched)
    world, versions, owed, asked = tiny_world("federation.rounds_per_task=5"), [], [], []
    grid = RecordingGrid(world)

    def observe(record, strategy):
        versions.append(strategy.model.broadcast.mask_version)
        owed.append(strategy.model.masking._is_owed)
        asked.append(record.num_devices)

    strategy = play(world, grid, observe)
    # of 5 rounds a task: adapt before 2, 3 and 4; the one before 4 is owed in round 4, when the last stage rests, and made up for before 5
    assert asked == [0, 0, 3, 0, 3, 3, 3, 3, 3, 3, 3]
    assert owed[:6] == [False, False, True, False, True, False]
    assert versions[:6] == [0, 0, 0, 1, 1, 2]
    reports = {r: any(m.content["report"]["masks"] for m in grid.received[r]) for r in range(1, 6)}
    assert reports == {1: True, 2: True, 3: True, 4: True, 5: False}
    assert strategy.model.broadcast.mask_version == 2 + 4  # the next task grows once and adapts three times
