"""Messages out and replies in, one at a time: what is remembered of a device, what an update may say, and the rows of a round by hand."""

from dataclasses import replace

import numpy as np
import pytest
from flwr.common.serde import message_to_proto
from test_sparsity_tiers import FIT, MEMORY
from worlds import RecordingGrid, assert_same_arrays, kind_of, play, tiny_world, toy_fleet

from server.aggregation.update import Update
from server.fleet.conditions import Fate
from server.global_model.contribution import Contribution
from server.ledger import WallTime
from server.rounds.exchange import Exchange
from server.rounds.in_flight import Flight
from server.rounds.messages import Measures, Reply, Verdict
from server.rounds.registration import enrol
from server.selection.cohort import Chosen
from simulations.build import make_roster, make_strategy
from simulations.engine.adapter import identify_process
from sparcl_core.codec import Sizes
from sparcl_core.costs.flops import Flops
from sparcl_core.wire.protocol import Instruction

MEASURES = Measures(Flops(train_sparse=200_000, train_dense=1_000_000), Flops(5_000_000), 999, {"samples": 12, "steps": 3}, 1.5, 0.1, 0.1)
READ = Verdict(Contribution(Update(1, 12, np.ones(10, bool), {}), None, 1, Sizes(values=400, header=100)))


class Desk:
    """A federation of a toy fleet in its first round, and one request on its way to device 1."""

    def __init__(self, folder, *overrides: str, **figures):
        identify_process()
        self.world = tiny_world(*overrides, *toy_fleet(folder, **figures))
        self.federation = make_strategy(self.world).federation
        enrol(self.federation, make_roster(self.world.streams))
        self.federation.begin_round(1)
        self.exchange, self.ledger = self.federation.exchange, self.federation.ledger
        self.request = self.ask()
        self.answer(Reply(measures=MEASURES, message_bytes=600, report_bytes=500))

    def ask(self, device: int = 1, time: float = 70.0):
        (member,) = self.federation.cohorts.roster.members(np.array([device]))
        return self.exchange.instruct(Chosen(member, 0), action="train", server_round=1, time=time, wants_report=True)

    def answer(self, reply: Reply) -> None:
        self.phases = self.federation.costs.of_round(self.request, reply)
        seconds, joules = (sum(getattr(phase.cost, name) for phase in self.phases) for name in ("seconds", "joules"))
        self.whole = Flight(self.request, reply, self.phases, Fate(1, 70.0, 70.0 + seconds, (1.0,) * 3, joules=joules))

    def settle(self, flight: Flight, verdict: Verdict = READ, stale: str = ""):
        before = len(self.ledger.rows)
        self.federation.settle(flight, verdict, stale)
        return self.ledger.rows[before:]

    def cut(self, end: float) -> Flight:
        return self.whole.cut(end, outcome="late", reason="too late")


@pytest.fixture
def desk(tmp_path):
    return Desk(tmp_path)


# -- out


def test_a_message_and_what_is_remembered_of_it(desk):
    """Of the size that was sent, to the instant and the version that it speaks of."""
    request, wire = desk.request, desk.request.message.content["instruction"]
    instruction = Instruction.from_wire(wire["control"], wire["payloads"])
    assert (instruction.round, instruction.task, instruction.epochs, instruction.report_importance) == (1, 0, 1, True)
    assert request.message.metadata.dst_node_id == request.member.node_id == 2
    assert request.sizes.total == len(wire["control"]) + sum(map(len, wire["payloads"])) < request.message_bytes
    assert (request.where.time, request.device, request.base.version) == (70.0, 1, 1)
    assert request.extra_s == (0.0, 0.0) and not desk.exchange.held  # it holds nothing until it has worked


@pytest.mark.parametrize("mode", [(), ("clock.mode=async", "clock.buffer_size=2")])
def test_a_download_is_booked_as_large_as_the_message_that_was_serialised(mode):
    """The engine numbers a message when it is pushed, and the number is part of it."""
    world = tiny_world("stream.tasks=1", "tdm.enabled=false", *mode)
    grid = RecordingGrid(world)
    rows = play(world, grid).ledger.rows
    pushed = [message for sent in (grid.sent, grid.calibrating) for messages in sent.values() for message in messages]
    assert all(message.metadata.message_id for message in pushed)
    sizes = sorted(message_to_proto(message).ByteSize() for message in pushed)
    assert sorted(row.message_bytes for row in rows if row.phase == "download") == sizes


def test_a_device_is_sent_what_it_misses(desk):
    desk.exchange.holds(1, 1)
    desk.federation.begin_round(2)
    request = desk.ask()
    assert [kind_of(payload) for payload in request.message.content["instruction"]["payloads"]] == ["delta"]
    assert request.base.version == desk.exchange.newest(1).version == 2
    desk.exchange.forget(1)
    assert [kind_of(payload) for payload in desk.ask().message.content["instruction"]["payloads"]] == ["whole"]


def test_a_sparser_tier_is_sent_its_own_model_and_not_asked_for_importance(tmp_path):
    desk = Desk(tmp_path, *FIT, **MEMORY)
    sizes = []
    for device in range(3):
        request = desk.ask(device)
        wire = request.message.content["instruction"]
        assert Instruction.from_wire(wire["control"], wire["payloads"]).report_importance == (device == 0)
        assert request.base.masks is desk.federation.model.broadcasts[device].masks
        sizes.append(request.sizes.total)
    assert sizes == sorted(sizes, reverse=True) and len(set(sizes)) == 3


def test_jitter_is_of_the_message_and_the_round(tmp_path):
    desk = Desk(tmp_path, jitter_s=[2.0] * 3)
    down, up = desk.request.extra_s
    assert down > 0 < up and down != up
    assert desk.ask().extra_s == (down, up) != desk.ask(2).extra_s
    calm, costs = replace(desk.request, extra_s=(0.0, 0.0)), desk.federation.costs
    assert costs.download(desk.request).cost.seconds == pytest.approx(costs.download(calm).cost.seconds + down)
    assert costs.upload(desk.request, 9).cost.seconds == pytest.approx(costs.upload(calm, 9).cost.seconds + up)


# -- what a round costs, by hand


def test_costs_of_the_phases_by_hand(desk):
    """Down n bytes at 1 kB/s and half a second; 200 kFLOP at 100 kFLOP/s and 1 MFLOP at 1 MFLOP/s; up 500 bytes. The toy draws 4 W at work,
    2 W on the radio and 1 mJ a byte."""
    down, train, up = desk.whole.costs
    n = desk.request.sizes.total
    assert down.seconds == pytest.approx(0.5 + n / 1000) and down.joules == pytest.approx(2 * down.seconds + 0.001 * n)
    assert (train.seconds, train.joules) == (pytest.approx(3), pytest.approx(12))
    assert (up.seconds, up.joules) == (pytest.approx(1), pytest.approx(2.5))


def test_a_round_that_was_done_has_three_rows_one_after_the_other(desk):
    down, train, up = desk.settle(desk.whole)
    assert [row.outcome for row in (down, train, up)] == ["ok"] * 3
    assert [row.time for row in (down, train, up)] == [70.0, pytest.approx(70 + down.seconds), pytest.approx(73 + down.seconds)]
    assert (train.samples, train.steps, train.loss, train.memory_bytes) == (12, 3, 1.5, 999)
    assert (up.values_bytes, up.header_bytes, up.up_bytes, up.message_bytes) == (400, 100, 500, 600)
    assert [(row.seconds, row.joules) for row in (down, train, up)] == [
        (cost.seconds, cost.joules) for cost in desk.whole.costs
    ]  # to the bit
    assert sum(row.seconds for row in (down, train, up)) == pytest.approx(desk.whole.fate.end - 70.0)
    assert sum(row.joules for row in (down, train, up)) == pytest.approx(desk.whole.fate.joules)
    assert desk.exchange.held == {1: 1} and desk.ledger.wall_times == [WallTime(1, 1, 0.1, 0.1)]


def test_rows_end_where_the_work_was_cut(desk):
    """In the download, after a third of the training, and half-way up."""
    lasts = desk.whole.costs[0].seconds
    (row,) = desk.settle(desk.cut(70 + lasts / 4))
    assert (row.phase, row.outcome, row.seconds) == ("download", "late", pytest.approx(lasts / 4)) and row.unread_bytes == row.down_bytes
    assert desk.exchange.held == {}  # what it held before, which was nothing
    down, train = desk.settle(desk.cut(71 + lasts))
    assert (down.outcome, train.outcome, train.reason) == ("ok", "late", "too late")
    assert (train.seconds, train.joules, train.train_flops) == (pytest.approx(1), pytest.approx(4), 400_000) and desk.exchange.held == {}
    *_, up = desk.settle(desk.cut(73.5 + lasts))
    assert (up.phase, up.outcome, up.up_bytes, up.unread_bytes, up.seconds) == ("upload", "late", 250, 250, pytest.approx(0.5))
    assert desk.exchange.held == {1: 1}  # it has trained, so it has moved on


@pytest.mark.parametrize(("outcome", "held"), [("stale", 1), ("rejected", 0)])
def test_a_report_that_came_in_and_is_not_used(desk, outcome, held):
    """All of it is paid for; of a device whose report cannot be read nobody knows what it holds."""
    *others, up = desk.settle(desk.whole, stale="why") if outcome == "stale" else desk.settle(desk.whole, Verdict(problem="why"))
    assert [row.outcome for row in others] == ["ok", "ok"] and (up.outcome, up.reason, up.up_bytes) == (outcome, "why", 500)
    assert up.unread_bytes == (500 if outcome == "rejected" else 0) and desk.exchange.held == {1: held}


def test_a_refused_report_that_did_not_arrive_is_late_and_not_refused(desk):
    *_, up = desk.settle(desk.cut(desk.whole.fate.end - 0.1), Verdict(problem="why"))
    assert (up.outcome, up.reason) == ("late", "too late")


def test_measures_that_cannot_be_read_leave_no_row_of_training(desk):
    desk.answer(replace(desk.whole.reply, measures=None))
    assert desk.whole.costs[1].seconds == 0
    down, up = desk.settle(desk.whole, Verdict(problem="measures are missing"))
    assert (down.phase, up.phase, up.outcome) == ("download", "upload", "rejected") and up.time == pytest.approx(down.time + down.seconds)


def test_a_device_of_which_nothing_came_back(desk):
    desk.exchange.holds(1, 1)
    desk.federation.failed(desk.request, "no reply")
    down, train = desk.ledger.rows
    assert (down.phase, down.outcome, down.down_bytes) == ("download", "ok", desk.request.sizes.total)
    assert (train.phase, train.outcome, train.reason, train.time) == ("train", "failed", "no reply", 70.0)
    assert desk.exchange.held == {1: 0}


def test_a_battery_is_drained_when_a_round_is_settled(tmp_path):
    desk = Desk(tmp_path, "energy.charging=none", "energy.drain_idle=false", battery_j=[1000.0] * 3)
    flight, useless, history = desk.cut(72.0), Verdict(problem="of no use"), desk.federation.history
    verdict = desk.federation.settle(flight, useless)
    assert (verdict.contribution, verdict.problem) == (None, "")  # it was cut short: what its report would have said does not matter
    batteries = desk.federation.conditions.batteries
    assert batteries.level_j[1] == pytest.approx(1000 - flight.fate.joules) and batteries.time[1] == 72.0
    assert history.finished[1] == 0 and history.last_round[1] == 0
    later = replace(desk.whole, request=desk.ask(time=80.0), fate=replace(desk.whole.fate, start=80.0, end=desk.whole.fate.end + 10))
    verdict = desk.federation.settle(later, useless)
    assert (verdict.contribution, verdict.problem) == (None, "of no use")
    assert history.finished[1] == 1 and history.last_round[1] == 1


# -- in


def test_an_update_of_a_sparser_tier_says_which_weights_it_holds(tmp_path):
    """A coordinate is averaged over the devices that hold it; those of the shared masks need not say so."""
    world = tiny_world(*FIT, "stream.tasks=1", *toy_fleet(tmp_path, **MEMORY))
    grid, found = RecordingGrid(world), {}
    true = Exchange.accept

    def watched(exchange, request, reply):
        verdict = true(exchange, request, reply)
        found.setdefault(request.device, []).append((verdict.contribution.update.masks, request.base.masks))
        return verdict

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Exchange, "accept", watched)
        play(world, grid)
    assert all(own is None for own, _ in found[0])
    for device in (1, 2):
        assert all(own is base for own, base in found[device]) and len(found[device]) == 4


def test_what_is_held_and_nested_is_restored(tmp_path):
    desk = Desk(tmp_path, *FIT, **MEMORY)
    desk.exchange.holds(2, 1)
    desk.exchange.holds(0, 1)
    other = make_strategy(desk.world).federation
    other.restore(desk.federation.snapshot())
    assert list(other.exchange.held.items()) == [(2, 1), (0, 1)]
    for one, restored in zip(desk.federation.model.broadcasts.by_tier, other.model.broadcasts.by_tier, strict=True):
        assert_same_arrays(restored.held, one.held)
        assert_same_arrays(restored.masks, one.masks)
        assert restored.version == one.version == 1
