"""Rounds that devices work across: what is the same as in a synchronous one, what old updates weigh, and what is made of them."""

from collections import Counter

import numpy as np
import pytest
from test_clock import assert_time_is_sound, by_device, end_of
from worlds import RecordingGrid, assert_same_arrays, play, tiny_world, toy_fleet

from server.aggregation.update import Update
from server.errors import FleetError
from server.global_model import model as models
from server.global_model.broadcast import Base
from server.global_model.contribution import Contribution
from server.rounds import buffered
from server.rounds.buffered import aged
from server.rounds.federation import RETRY_S
from sparcl_core.codec import Sizes, SparseTensor
from sparcl_core.learner import Learner

SHORT = "stream.tasks=1"
SPEEDS = {"flops_per_s": [1e6, 3e6, 4e5]}
ASYNC = ("clock.mode=async", "clock.buffer_size=1")


class Watched:
    """A run with the updates that were averaged in each round: device and weight, and the round in which each was asked."""

    def __init__(self, monkeypatch, world):
        self.weights: dict[int, dict[int, float]] = {}
        self.records, now, true = [], [1], models.mean_update

        def watched(updates, *args, **settings):
            self.weights[now[0]] = {update.device: update.weight for update in updates}
            return true(updates, *args, **settings)

        def observe(record, strategy):
            self.records.append(record)
            now[0] = record.round + 1

        monkeypatch.setattr(models, "mean_update", watched)
        self.strategy = play(world, observe=observe)
        self.rows = self.strategy.ledger.rows

    def ages(self) -> dict[int, dict[int, int]]:
        """Round of arrival -> device -> rounds since it was asked, from the ledger: whose upload ended when the round was on."""
        ends, found = [record.time for record in self.records], {}
        for (asked, device), own in by_device(self.rows).items():
            if own[-1].phase == "upload" and own[-1].outcome == "ok":
                arrived = next(r for r, end in enumerate(ends) if end_of(own) <= end + 1e-9)
                found.setdefault(arrived, {})[device] = arrived - asked
        return found


# -- the same as synchronous


@pytest.mark.parametrize("overrides", [(), ("federation.mask=local",), ("wire.importance=f32", "server_optimizer.name=adam")])
def test_a_buffer_for_everybody_is_a_synchronous_run(overrides, tmp_path):
    """Everybody is asked at once and waited for: to the bit, in all rounds, whatever their speeds."""
    settings = (*overrides, *toy_fleet(tmp_path, **SPEEDS))
    sync = play(tiny_world(*settings))
    other = play(tiny_world("clock.mode=async", "clock.buffer_size=3", "federation.cohort_size=3", *settings))
    assert_same_arrays(other.weights, sync.weights)
    assert_same_arrays(other.masks, sync.masks)
    assert other.ledger.columns() == sync.ledger.columns() and other.federation.now == sync.federation.now


def test_a_period_that_all_keep_is_a_synchronous_run(tmp_path):
    settings = (SHORT, *toy_fleet(tmp_path, **SPEEDS))
    sync = play(tiny_world("clock.period_s=500", *settings))
    other = play(tiny_world("clock.mode=semi-sync", "clock.period_s=500", *settings))
    assert_same_arrays(other.weights, sync.weights)
    assert other.ledger.columns() == sync.ledger.columns() and other.federation.now == sync.federation.now == 2000


# -- who works when


def test_a_device_that_is_done_is_replaced_at_once(tmp_path):
    """Two of five at a time. When one reports, another that was not yet in this round is asked at the same instant."""
    world = tiny_world(*ASYNC, "federation.cohort_size=2", *toy_fleet(tmp_path, 5, flops_per_s=[1e6, 3e6, 4e5, 2e6, 1e6]))
    strategy = play(world)
    assert_time_is_sound(strategy.ledger.rows)
    works = by_device(strategy.ledger.rows)
    spans = [(own[0].time, end_of(own)) for own in works.values()]
    for begin, _ in spans:
        assert sum(other <= begin < end - 1e-9 for other, end in spans) <= 2
        assert begin == 0 or any(abs(begin - end) < 1e-9 for _, end in spans)
    asked = Counter((row.round, row.device) for row in strategy.ledger.rows if row.phase == "download")
    assert set(asked.values()) == {1}  # once in a round


def test_every_round_has_as_many_updates_as_its_buffer_holds(monkeypatch, tmp_path):
    world = tiny_world("clock.mode=async", "clock.buffer_size=2", *toy_fleet(tmp_path, **SPEEDS))
    seen = Watched(monkeypatch, world)
    assert [record.num_devices for record in seen.records] == [0] + [2] * 8
    assert all(len(own) == 2 for own in seen.weights.values())


def test_a_semi_synchronous_round_lasts_its_period(monkeypatch, tmp_path):
    """20 s: the fastest device is in every round, and the slowest, which needs about 78, arrives in the fourth."""
    world = tiny_world(SHORT, "clock.mode=semi-sync", "clock.period_s=20", "federation.rounds_per_task=6", *toy_fleet(tmp_path, **SPEEDS))
    seen = Watched(monkeypatch, world)
    assert [record.time for record in seen.records] == [20 * r for r in range(7)]
    assert {r: set(own) for r, own in seen.weights.items()} == {r: set(own) for r, own in seen.ages().items()}
    asked = {row.round for row in seen.rows if row.device == 2}
    assert 1 in asked and 2 not in asked  # it was at work when the second round began


def test_a_buffer_larger_than_the_fleet_is_not_waited_for():
    devices = []
    strategy = play(
        tiny_world(SHORT, "clock.mode=async", "clock.buffer_size=4"), observe=lambda record, strategy: devices.append(record.num_devices)
    )
    assert devices == [0, 3, 3, 3, 3] and np.isfinite(strategy.federation.now)


def test_a_fleet_that_declines_is_asked_again_later(tmp_path):
    """Half full with a reserve of 0.6, and no charger: four rounds without anybody, a quarter of an hour each."""
    fleet = toy_fleet(tmp_path, battery_j=[1000] * 3)
    energy = ("energy.start_level=0.5", "energy.reserve=0.6", "energy.drain_idle=false", "energy.charging=none")
    strategy = play(tiny_world(SHORT, *ASYNC, *fleet, *energy))
    assert strategy.federation.now == 4 * RETRY_S and Counter(row.outcome for row in strategy.ledger.rows) == {"skipped": 12}


def test_what_devices_are_at_when_the_run_is_over_is_paid_for(tmp_path):
    strategy = play(tiny_world(SHORT, *ASYNC, *toy_fleet(tmp_path, **SPEEDS)))
    rest = [row for row in strategy.ledger.rows if row.outcome == "cancelled"]
    assert rest and {row.reason for row in rest} == {"the run was over"} and not strategy.rounds.flights
    assert all(row.time + row.seconds == pytest.approx(strategy.federation.now) for row in rest)


# -- what old updates weigh


@pytest.mark.parametrize("exponent", [0.5, 2.0, 0.0])
def test_an_update_weighs_less_the_older_it_is(monkeypatch, tmp_path, exponent):
    """(1 + rounds since it was asked)^-a: every round publishes one version."""
    world = tiny_world(*ASYNC, f"clock.staleness_exponent={exponent}", *toy_fleet(tmp_path, **SPEEDS))
    seen = Watched(monkeypatch, world)
    ages = seen.ages()
    assert seen.weights.keys() == ages.keys() and max(age for own in ages.values() for age in own.values()) >= 2
    for server_round, own in ages.items():
        assert seen.weights[server_round] == {device: (1 + age) ** -exponent for device, age in own.items()}


def test_an_update_that_is_too_old_is_a_stale_row(monkeypatch, tmp_path):
    world = tiny_world(*ASYNC, "clock.max_staleness=1", *toy_fleet(tmp_path, **SPEEDS))
    seen = Watched(monkeypatch, world)
    stale = [row for row in seen.rows if row.outcome == "stale"]
    assert stale and {row.phase for row in stale} == {"upload"}
    assert all(row.reason.endswith("versions old, at most 1 are used") for row in stale)
    assert all(row.up_bytes > row.unread_bytes == 0 and row.seconds > 0 for row in stale)  # it was read, and is paid for
    assert all(weight >= 2**-0.5 for own in seen.weights.values() for weight in own.values())
    for row in stale:
        assert seen.strategy.federation.history.last_round[row.device] >= row.round  # it has reported, whatever became of it
    assert_time_is_sound(seen.rows)


def contribution(places: list[int], values: list[float], masks=None) -> Contribution:
    tensors = {"w": SparseTensor(np.array(places), np.array(values)), "bias": SparseTensor(np.array([0]), np.array([9.0]))}
    return Contribution(Update(3, 10, np.ones(2, bool), tensors, masks), {"w": "importance"}, 1, Sizes(values=1))


OLD, NEW = {"w": np.array([1, 1, 1, 0, 0], bool)}, {"w": np.array([0, 1, 1, 1, 0], bool)}


def test_an_update_against_the_same_masks_only_weighs_less():
    one = contribution([0, 2], [1.0, 2.0])
    found = aged(one, Base(1, 4, OLD), Base(3, 4, OLD), 0.5)
    assert found.update.weight == 0.5 and found.update.tensors is one.update.tensors
    assert found.update.masks is None and found.importance is one.importance and one.update.weight == 1.0


def test_an_update_against_older_masks_counts_where_both_hold():
    """Place 0 was dropped since, and place 3 grown: the device holds 1 and 2 of today's. What it reported of the old masks is of no use."""
    found = aged(contribution([0, 2], [1.0, 2.0]), Base(1, 4, OLD), Base(3, 5, NEW), 0.5)
    assert found.update.tensors["w"].places.tolist() == [2] and found.update.tensors["w"].values.tolist() == [2.0]
    assert found.update.tensors["bias"].values.tolist() == [9.0]  # dense tensors have no masks
    assert found.update.masks["w"].tolist() == [False, True, True, False, False]
    assert found.importance is None and found.update.weight == 0.5


def test_what_a_device_grew_by_itself_counts_and_what_the_server_dropped_does_not():
    own = {"w": np.array([1, 0, 0, 0, 1], bool)}
    found = aged(contribution([0, 4], [1.0, 2.0], own), Base(1, 4, OLD), Base(3, 5, NEW), 0.5)
    assert found.update.tensors["w"].places.tolist() == [4]
    assert_same_arrays(found.update.masks, {"w": np.array([0, 0, 0, 0, 1], bool)})


@pytest.mark.parametrize("overrides", [(), ("federation.mask=local",)], ids=["shared", "local"])
def test_the_sparsity_holds_though_updates_are_old(tmp_path, overrides):
    """Masks change before rounds while devices are still at work for old ones: what they send must not bring back what was dropped."""
    world, versions = tiny_world(*ASYNC, *overrides, *toy_fleet(tmp_path, **SPEEDS)), set()

    def observe(record, strategy):
        versions.add(strategy.model.broadcast.mask_version)
        for name, mask in strategy.masks.items():
            assert not strategy.weights[name][~mask].any() and not strategy.model.broadcast.held[name][~mask].any()

    strategy = play(world, observe=observe)
    assert len(versions) > 2 and {row.outcome for row in strategy.ledger.rows} == {"ok", "cancelled"}


# -- when the training is done for real does not matter


@pytest.mark.parametrize("mode", [ASYNC, ("clock.mode=semi-sync", "clock.period_s=15")], ids=["async", "semi-sync"])
def test_training_may_wait_and_changes_nothing_by_it(monkeypatch, tmp_path, mode):
    """As soon as a device is asked, or only when the clock needs to know: the same ledger and the same weights, in fewer exchanges."""
    world = tiny_world(*mode, "federation.cohort_size=3", *toy_fleet(tmp_path, 5, flops_per_s=[1e6, 3e6, 4e5, 2e6, 1e6]))
    grids = [RecordingGrid(world), RecordingGrid(world)]
    waiting = play(world, grids[0])
    monkeypatch.setattr(buffered._Round, "_least_end", lambda played, request: -float("inf"))
    at_once = play(world, grids[1])
    assert_same_arrays(at_once.weights, waiting.weights)
    assert_same_arrays(at_once.masks, waiting.masks)
    # a Flower message's own size has the exchange's number in it
    columns = [strategy.ledger.columns() | {"message_bytes": 0} for strategy in (waiting, at_once)]
    assert columns[0] == columns[1] and waiting.federation.now == at_once.federation.now
    counts = [sum(len(own) for own in grid.sent.values()) for grid in grids]
    assert counts[0] == counts[1] and len(grids[0].sent) <= len(grids[1].sent)


def test_nobody_is_left_untrained_between_rounds(tmp_path):
    world = tiny_world(*ASYNC, *toy_fleet(tmp_path, **SPEEDS))

    def observe(record, strategy):
        assert all(flight.reply.report is not None for flight in strategy.rounds.flights.values())
        assert len(strategy.rounds.events) == len(strategy.rounds.flights)
        assert strategy.rounds.events.next_time >= strategy.federation.now

    play(world, observe=observe)


# -- what goes wrong


def test_work_that_was_cut_short_is_undone(tmp_path):
    """Every device fails in every round, most of them in training: none of those has a state, or is thought to have one."""
    world = tiny_world(SHORT, *ASYNC, "availability.failure=1", *toy_fleet(tmp_path))
    grid = RecordingGrid(world)
    strategy = play(world, grid)
    assert {row.outcome for row in strategy.ledger.rows if row.phase == "upload"} <= {"failed"}
    trained = {row.device for row in strategy.ledger.rows if row.phase == "upload"}
    for device in range(3):
        assert (grid.device(device) is not None) == (device in trained) == (strategy.federation.exchange.held.get(device, 0) > 0)
    assert strategy.federation.history.finished.sum() == sum(row.phase == "upload" for row in strategy.ledger.rows)


def test_a_device_that_raises_an_error_is_replaced(monkeypatch, tmp_path):
    true = Learner.train

    def sometimes(learner, state, masks, data, memory, epochs, device):
        if device == 1:
            raise FloatingPointError("not finite")
        return true(learner, state, masks, data, memory, epochs=epochs, device=device)

    monkeypatch.setattr(Learner, "train", sometimes)
    devices = []
    strategy = play(
        tiny_world(SHORT, "clock.mode=async", "clock.buffer_size=2", *toy_fleet(tmp_path)),
        observe=lambda record, strategy: devices.append(record.num_devices),
    )
    assert devices == [0, 2, 2, 2, 2]
    failed = [row for row in strategy.ledger.rows if row.outcome == "failed"]
    assert {row.device for row in failed} == {1} and all("FloatingPointError: not finite" in row.reason for row in failed)
    assert strategy.federation.exchange.held[1] == 0


@pytest.mark.parametrize("mode", [("clock.mode=async", "clock.buffer_size=2"), ("clock.mode=semi-sync", "clock.period_s=99")])
def test_when_all_devices_fail_the_run_ends_with_the_reason(mode):
    with pytest.raises(
        FleetError, match=r"all 3 devices of round 1 failed; the first: device 0, round 1, stage train: .*lower learner\.lr"
    ):
        play(tiny_world("learner.lr=1e30", *mode))


def test_a_report_that_cannot_be_used_is_a_rejected_row(tmp_path):
    """And the device is sent the whole model, since nobody knows what it holds."""

    def tamper(batch, replies):
        for reply in replies:
            if batch == 1 and reply.metadata.src_node_id == 2:
                reply.content["report"]["delta"] = reply.content["report"]["delta"][:-7]
        return replies

    world, held = tiny_world(SHORT, *ASYNC, *toy_fleet(tmp_path)), []
    strategy = play(world, RecordingGrid(world, tamper), lambda record, strategy: held.append(dict(strategy.federation.exchange.held)))
    rejected = [row for row in strategy.ledger.rows if row.outcome == "rejected"]
    assert [(row.device, row.phase) for row in rejected] == [(1, "upload")] and "stage decode" in rejected[0].reason
    assert 0 in [own.get(1) for own in held] and rejected[0].unread_bytes == rejected[0].up_bytes > 0


def test_jitter_decides_who_arrives_first_and_nothing_about_the_work(tmp_path):
    """The same devices do the same work in another order: a device's training is a function of what it was sent."""
    settings = ("clock.mode=async", "clock.buffer_size=3", "federation.cohort_size=3", SHORT)
    calm = play(tiny_world(*settings, *toy_fleet(tmp_path)))
    rough = play(tiny_world(*settings, *toy_fleet(tmp_path, jitter_s=[40.0] * 3)))
    assert_same_arrays(rough.weights, calm.weights)

    def bare(strategy):
        columns = strategy.ledger.columns()
        return {name: column for name, column in columns.items() if not name.endswith(("seconds", "joules")) and name != "time"}

    assert bare(rough) == bare(calm) and rough.federation.now > calm.federation.now
