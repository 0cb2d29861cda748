"""Messages out and replies in, one at a time: what is remembered of a device, what an update may say, and the rows of a round by hand."""

from dataclasses import replace

import numpy as np
import pytest
from flwr.common.serde import message_to_proto
from test_sparsity_tiers import FIT, MEMORY
from worlds import RecordingGrid, assert_same_arrays, kind_of, play, tiny_world, toy_fleet

from server.fleet.conditions import Fate, cut
from server.ledger import DONE, Done
from server.rounds.exchange import Reply
from server.rounds.replies import Measures
from server.selection.cohort import Chosen
from simulations.build import make_roster, make_strategy
from simulations.engine.adapter import identify_process
from sparcl_core.codec import Sizes
from sparcl_core.costs.flops import Flops
from sparcl_core.wire.protocol import Instruction

MEASURES = Measures(Flops(train_sparse=200_000, train_dense=1_000_000), Flops(5_000_000), 999, {"samples": 12, "steps": 3}, 1.5, 0.1, 0.1)
SIZES = Sizes(values=400, header=100)


class Desk:
    """A strategy of a toy fleet in its first round, and one message on its way to device 1."""

    def __init__(self, folder, *overrides: str, **figures):
        identify_process()
        self.world = tiny_world(*overrides, *toy_fleet(folder, **figures))
        self.strategy = make_strategy(self.world)
        self.strategy.enrol(make_roster(self.world.streams))
        self.strategy.begin_round(1)
        self.exchange, self.ledger = self.strategy.exchange, self.strategy.ledger
        self.message, self.sent = self.ask()
        self.reply = Reply(measures=MEASURES, message_bytes=600, report_bytes=500)
        self.costs = self.exchange.costs(self.sent, self.reply)
        seconds, joules = sum(cost.seconds for cost in self.costs), sum(cost.joules for cost in self.costs)
        self.whole = Fate(1, 70.0, 70.0 + seconds, (1.0,) * 3, joules=joules)

    def ask(self, device: int = 1, time: float = 70.0, wants_report: bool = True):
        (member,) = self.strategy.roster.members(np.array([device]))
        return self.exchange.instruct("train", 1, Chosen(member, 0), time, wants_report)

    def book(self, fate: Fate, refusal: Done = DONE, sizes: Sizes | None = SIZES):
        before = len(self.ledger.rows)
        self.exchange.book(self.sent, self.reply, fate, self.costs, sizes, refusal)
        return self.ledger.rows[before:]

    def cut(self, end: float) -> Fate:
        return cut(self.whole, self.costs, end, "late", "too late")


@pytest.fixture
def desk(tmp_path):
    return Desk(tmp_path)


# -- out


def test_a_message_and_what_is_remembered_of_it(desk):
    """Of the size that was sent, to the instant and the version that it speaks of."""
    wire = desk.message.content["instruction"]
    instruction = Instruction.from_wire(wire["control"], wire["payloads"])
    assert (instruction.round, instruction.task, instruction.epochs, instruction.report_importance) == (1, 0, 1, True)
    assert desk.message.metadata.dst_node_id == desk.sent.member.node_id == 2
    assert desk.sent.sizes.total == len(wire["control"]) + sum(map(len, wire["payloads"])) < desk.sent.message_bytes
    assert (desk.sent.where.time, desk.sent.where.device, desk.sent.base.version) == (70.0, 1, 1)
    assert desk.sent.extra_s == (0.0, 0.0) and not desk.exchange.held  # it holds nothing until it has worked


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
    desk.exchange.held[1] = 1
    desk.strategy.begin_round(2)
    message, sent = desk.ask()
    assert [kind_of(payload) for payload in message.content["instruction"]["payloads"]] == ["delta"] and sent.base.version == 2
    desk.exchange.held[1] = 0
    message, _ = desk.ask()
    assert [kind_of(payload) for payload in message.content["instruction"]["payloads"]] == ["whole"]


def test_a_sparser_tier_is_sent_its_own_model_and_not_asked_for_importance(tmp_path):
    desk = Desk(tmp_path, *FIT, **MEMORY)
    sizes = []
    for device in range(3):
        message, sent = desk.ask(device)
        wire = message.content["instruction"]
        assert Instruction.from_wire(wire["control"], wire["payloads"]).report_importance == (device == 0)
        assert sent.base.masks is desk.exchange.broadcasts[device].masks
        sizes.append(sent.sizes.total)
    assert sizes == sorted(sizes, reverse=True) and len(set(sizes)) == 3


def test_jitter_is_of_the_message_and_the_round(tmp_path):
    desk = Desk(tmp_path, jitter_s=[2.0] * 3)
    down, up = desk.sent.extra_s
    assert down > 0 < up and down != up
    assert desk.ask()[1].extra_s == (down, up) != desk.ask(2)[1].extra_s
    calm = replace(desk.sent, extra_s=(0.0, 0.0))
    assert desk.exchange.costs(desk.sent, desk.reply)[0].seconds == pytest.approx(desk.exchange.costs(calm, desk.reply)[0].seconds + down)


# -- what a round costs, by hand


def test_costs_of_the_phases_by_hand(desk):
    """Down n bytes at 1 kB/s and half a second; 200 kFLOP at 100 kFLOP/s and 1 MFLOP at 1 MFLOP/s; up 500 bytes. The toy draws 4 W at work,
    2 W on the radio and 1 mJ a byte."""
    down, train, up = desk.costs
    n = desk.sent.sizes.total
    assert down.seconds == pytest.approx(0.5 + n / 1000) and down.joules == pytest.approx(2 * down.seconds + 0.001 * n)
    assert (train.seconds, train.joules) == (pytest.approx(3), pytest.approx(12))
    assert (up.seconds, up.joules) == (pytest.approx(1), pytest.approx(2.5))


def test_a_round_that_was_done_has_three_rows_one_after_the_other(desk):
    down, train, up = desk.book(desk.whole)
    assert [row.outcome for row in (down, train, up)] == ["ok"] * 3
    assert [row.time for row in (down, train, up)] == [70.0, pytest.approx(70 + down.seconds), pytest.approx(73 + down.seconds)]
    assert (train.samples, train.steps, train.loss, train.memory_bytes) == (12, 3, 1.5, 999)
    assert (up.values_bytes, up.header_bytes, up.up_bytes, up.message_bytes) == (400, 100, 500, 600)
    assert sum(row.seconds for row in (down, train, up)) == pytest.approx(desk.whole.end - desk.whole.start)
    assert sum(row.joules for row in (down, train, up)) == pytest.approx(desk.whole.joules)
    assert desk.exchange.held == {1: 1} and desk.ledger.wall_s == [(1, 1, 0.1, 0.1)]


def test_rows_end_where_the_work_was_cut(desk):
    """In the download, after a third of the training, and half-way up."""
    lasts = desk.costs[0].seconds
    (row,) = desk.book(desk.cut(70 + lasts / 4))
    assert (row.phase, row.outcome, row.seconds) == ("download", "late", pytest.approx(lasts / 4)) and row.unread_bytes == row.down_bytes
    assert desk.exchange.held == {}  # what it held before, which was nothing
    down, train = desk.book(desk.cut(71 + lasts))
    assert (down.outcome, train.outcome, train.reason) == ("ok", "late", "too late")
    assert (train.seconds, train.joules, train.train_flops) == (pytest.approx(1), pytest.approx(4), 400_000) and desk.exchange.held == {}
    *_, up = desk.book(desk.cut(73.5 + lasts))
    assert (up.phase, up.outcome, up.up_bytes, up.unread_bytes, up.seconds) == ("upload", "late", 250, 250, pytest.approx(0.5))
    assert desk.exchange.held == {1: 1}  # it has trained, so it has moved on


@pytest.mark.parametrize(("outcome", "held"), [("stale", 1), ("rejected", 0)])
def test_a_report_that_came_in_and_is_not_used(desk, outcome, held):
    """All of it is paid for; of a device whose report cannot be read nobody knows what it holds."""
    *others, up = desk.book(desk.whole, Done(outcome, "why"), SIZES if outcome == "stale" else None)
    assert [row.outcome for row in others] == ["ok", "ok"] and (up.outcome, up.reason, up.up_bytes) == (outcome, "why", 500)
    assert up.unread_bytes == (500 if outcome == "rejected" else 0) and desk.exchange.held == {1: held}


def test_a_refused_report_that_did_not_arrive_is_late_and_not_refused(desk):
    *_, up = desk.book(desk.cut(desk.whole.end - 0.1), Done("rejected", "why"), None)
    assert (up.outcome, up.reason) == ("late", "too late")


def test_measures_that_cannot_be_read_leave_no_row_of_training(desk):
    desk.reply = replace(desk.reply, measures=None)
    desk.costs = desk.exchange.costs(desk.sent, desk.reply)
    assert desk.costs[1].seconds == 0
    down, up = desk.book(desk.whole, Done("rejected", "measures are missing"), None)
    assert (down.phase, up.phase, up.outcome) == ("download", "upload", "rejected") and up.time == pytest.approx(down.time + down.seconds)


def test_a_device_of_which_nothing_came_back(desk):
    desk.exchange.held[1] = 1
    desk.exchange.failed(desk.sent, "no reply")
    down, train = desk.ledger.rows
    assert (down.phase, down.outcome, down.down_bytes) == ("download", "ok", desk.sent.sizes.total)
    assert (train.phase, train.outcome, train.reason, train.time) == ("train", "failed", "no reply", 70.0)
    assert desk.exchange.held == {1: 0}


def test_a_battery_is_drained_when_a_round_is_settled(tmp_path):
    desk = Desk(tmp_path, "energy.charging=none", "energy.drain_idle=false", battery_j=[1000.0] * 3)
    fate = desk.cut(72.0)
    update, problem = desk.strategy.settle(desk.sent, (desk.reply, None, "of no use"), fate, desk.costs)
    assert (update, problem) == (None, "")  # it was cut short: what its report would have said does not matter
    batteries = desk.strategy.attendance.conditions.batteries
    assert batteries.level_j[1] == pytest.approx(1000 - fate.joules) and batteries.time[1] == 72.0
    assert desk.strategy.attendance.finished[1] == 0 and desk.strategy.attendance.last_round[1] == 0
    desk.sent = replace(desk.sent, where=replace(desk.sent.where, time=80.0))
    later = replace(desk.whole, start=80.0, end=desk.whole.end + 10)
    update, problem = desk.strategy.settle(desk.sent, (desk.reply, None, "of no use"), later, desk.costs)
    assert (update, problem) == (None, "of no use")
    assert desk.strategy.attendance.finished[1] == 1 and desk.strategy.attendance.last_round[1] == 1


# -- in


def test_an_update_of_a_sparser_tier_says_which_weights_it_holds(tmp_path):
    """A coordinate is averaged over the devices that hold it; those of the shared masks need not say so."""
    world = tiny_world(*FIT, "stream.tasks=1", *toy_fleet(tmp_path, **MEMORY))
    grid, found = RecordingGrid(world), {}
    true = make_strategy(world).exchange.__class__.accept

    def watched(exchange, sent, reply, masking):
        accepted, problem = true(exchange, sent, reply, masking)
        found.setdefault(sent.where.device, []).append((accepted.update.masks, sent.base.masks))
        return accepted, problem

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("server.rounds.exchange.Exchange.accept", watched)
        play(world, grid)
    assert all(own is None for own, _ in found[0])
    for device in (1, 2):
        assert all(own is base for own, base in found[device]) and len(found[device]) == 4


def test_what_is_held_and_nested_is_restored(tmp_path):
    desk = Desk(tmp_path, *FIT, **MEMORY)
    desk.exchange.held = {2: 1, 0: 1}
    other = make_strategy(desk.world)
    other.exchange.restore(desk.exchange.snapshot())
    assert list(other.exchange.held.items()) == [(2, 1), (0, 1)]
    for one, restored in zip(desk.exchange.broadcasts, other.exchange.broadcasts, strict=True):
        assert_same_arrays(restored.held, one.held)
        assert_same_arrays(restored.masks, one.masks)
        assert restored.version == one.version == 1
