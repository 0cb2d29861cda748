"""The round: exact sparsity, devices that miss rounds, fail, or answer nonsense. Through the inline engine."""

import logging
from dataclasses import replace

import numpy as np
import pytest
from flwr.app import ConfigRecord
from worlds import RecordingGrid, assert_same_arrays, kind_of, play, tiny_world

from client.app import make_client_app
from client.streams.stream import Stream
from server.config import FederationConfig
from server.errors import FleetError
from server.fleet.roster import Roster
from server.ledger import STRANGER
from server.rounds.registration import enrol, register
from simulations.build import make_roster, make_strategy
from simulations.engine.adapter import WORKER_LOST, error_reply
from sparcl_core.learner import Learner
from sparcl_core.sparsity.masks import num_active
from sparcl_core.sparsity.tdm import TDMConfig, check
from sparcl_core.wire.protocol import Report


@pytest.fixture(scope="module")
def world():
    return tiny_world()


@pytest.fixture(scope="module")
def short_world():
    """One task of four rounds, its masks updated before rounds 2 and 3."""
    return tiny_world("stream.tasks=1")


def failures(ledger) -> list[tuple[int, int, str]]:
    return [(row.round, row.device, row.reason) for row in ledger.rows if row.outcome == "failed"]


def phases(ledger, server_round: int, device: int) -> list[tuple[str, str]]:
    return [(row.phase, row.outcome) for row in ledger.rows if (row.round, row.device) == (server_round, device)]


def is_whole(payloads) -> bool:
    return len(payloads) == 1 and kind_of(payloads[0]) == "whole"


def sent_to(grid: RecordingGrid, server_round: int, device: int) -> list[bytes]:
    (message,) = [m for m in grid.sent[server_round] if m.metadata.dst_node_id == device + 1]
    return message.content["instruction"]["payloads"]


# -- masks


@pytest.mark.parametrize("sparsity", [0.5, 0.9])
def test_the_server_holds_the_sparsity_exactly_after_every_round(sparsity):
    """conv2 has 8 * 8 * 9 = 576 weights and fc 16 * 128 = 2048. At a task's start TDM grows p_inter of a layer for one round."""
    world = tiny_world(f"sparsity={sparsity}", "tdm.p_inter=0.05")
    sizes, counts, changes = {"conv2.weight": 576, "fc.weight": 2048}, [], []
    last = None

    def observe(record, strategy):
        nonlocal last
        if record.round:
            counts.append({name: int(mask.sum()) for name, mask in strategy.masks.items()})
            changes.append(last is not None and any((mask != last[name]).any() for name, mask in strategy.masks.items()))
            last = {name: mask.copy() for name, mask in strategy.masks.items()}
            for state in (strategy.weights, strategy.model.broadcast.held):
                for name, mask in strategy.masks.items():
                    assert not state[name][~mask].any(), f"round {record.round}: {name} has weight where there is none"

    strategy = play(world, observe=observe)
    exact = {name: num_active(size, sparsity) for name, size in sizes.items()}
    grown = {name: exact[name] + round(0.05 * size) for name, size in sizes.items()}
    assert counts == [exact, exact, exact, exact, grown, exact, exact, exact]
    assert changes == [False, True, True, False, True, True, True, False]
    assert strategy.model.broadcast.mask_version == 5


def test_a_dense_run_has_no_masks():
    strategy = play(tiny_world("sparsity=0"))
    assert strategy.masks == {} and strategy.model.broadcast.mask_version == 0
    assert all(row.active == row.updated == 0 for row in strategy.ledger.rows)


def test_masks_rest_when_tdm_is_off():
    world = tiny_world("tdm.enabled=false")
    strategy = play(world)
    assert_same_arrays(strategy.masks, make_strategy(world).masks)
    assert all(row.importance_flops == 0 for row in strategy.ledger.rows)


# -- what devices hold


def assert_devices_hold_what_the_server_thinks(grid: RecordingGrid, strategy, server_round: int) -> None:
    for message in grid.sent[server_round]:
        device = grid.device(message.metadata.dst_node_id - 1)
        assert_same_arrays(device.base, strategy.model.broadcast.held)
        assert_same_arrays(device.masks, strategy.masks)
        assert (device.version, device.mask_version) == (strategy.model.broadcast.version, strategy.model.broadcast.mask_version)


@pytest.mark.parametrize("values", ["f16", "f32"])
def test_a_device_that_missed_rounds_is_brought_up_to_date(values):
    """Two of five take part in a round, so all of them miss rounds and mask updates; both ways back must occur."""
    world = tiny_world("stream.devices=5", "federation.cohort_size=2", "federation.rounds_per_task=8", f"wire.down={values}")
    grid, last_seen, gaps = RecordingGrid(world), {}, {"chain": 0, "whole": 0}

    def observe(record, strategy):
        if not record.round:
            return
        assert_devices_hold_what_the_server_thinks(grid, strategy, record.round)
        assert len(grid.sent[record.round]) == 2
        for message in grid.sent[record.round]:
            node = message.metadata.dst_node_id
            payloads = message.content["instruction"]["payloads"]
            if node in last_seen and record.round - last_seen[node] > 1:
                gaps["whole" if is_whole(payloads) else "chain"] += 1
            last_seen[node] = record.round

    strategy = play(world, grid, observe)
    assert {row.outcome for row in strategy.ledger.rows} <= {"ok", "sat-out"}
    assert gaps["whole"] > 0
    if values == "f16":
        assert gaps["chain"] > 0


def test_the_order_of_replies_does_not_matter(world):
    """Replies come in completion order: the sum must not."""

    def shuffled(server_round, replies):
        return [replies[i] for i in np.random.default_rng(server_round).permutation(len(replies))]

    straight, mixed = play(world), play(world, RecordingGrid(world, shuffled))
    assert_same_arrays(mixed.weights, straight.weights)
    assert mixed.ledger.rows == straight.ledger.rows


# -- registration


def test_without_a_device_nothing_can_be_trained(world):
    grid = RecordingGrid(world)
    grid.get_node_ids = lambda: []
    with pytest.raises(FleetError, match="no device is connected"):
        play(world, grid, registers=True)
    with pytest.raises(FleetError, match="no device is connected"):
        enrol(make_strategy(world).federation, Roster.of([]))


def test_asking_every_device_finds_the_fleet_that_a_simulation_knows(short_world):
    """And the same run follows, but for the rows that the asking costs (and for the length of the runtime's message numbers)."""
    known, asked = play(short_world), play(short_world, registers=True)
    found, wanted = (strategy.federation.cohorts.roster for strategy in (asked, known))
    for name in ("devices", "node_ids", "samples"):
        assert np.array_equal(getattr(found, name), getattr(wanted, name)), name
        assert getattr(found, name).dtype == getattr(wanted, name).dtype
    assert_same_arrays(asked.weights, known.weights)
    others = [row for row in asked.ledger.rows if row.phase != "register"]
    assert [replace(row, message_bytes=0) for row in others] == [replace(row, message_bytes=0) for row in known.ledger.rows]
    registered = [row for row in asked.ledger.rows if row.phase == "register"]
    assert [(row.round, row.device) for row in registered] == [(0, 0), (0, 1), (0, 2)]
    assert all(row.message_bytes > 0 == row.up_bytes for row in registered)


def test_a_device_that_cannot_register_is_named(world):
    def stream_of(device: int) -> Stream:
        if device == 1:
            raise OSError("no such disk")
        return world.streams[device]

    grid = RecordingGrid(world, make_app=lambda *_: make_client_app(world.client_config, stream_of))
    strategy = play(world, grid, registers=True)
    (row,) = [row for row in strategy.ledger.rows if row.outcome == "refused"]
    assert (row.round, row.device, row.phase) == (0, STRANGER, "register")
    assert row.reason == "node 2 could not be registered: no such disk"
    assert strategy.federation.cohorts.roster.devices.tolist() == [0, 2]


ANSWERS = {
    "10^12 samples": ({"device": 1, "samples": [10**12, 5]}, "device 1 says that it has 1000000000000 samples in a step: at most"),
    "samples below nothing": ({"device": 1, "samples": [-1, 5]}, "it has -1 samples"),
    "half a sample": ({"device": 1, "samples": [0.5, 5.0]}, "it has 0.5 samples"),
    "another number of tasks": ({"device": 1, "samples": [5]}, "says that its stream has 1 steps: the experiment's has 2"),
    "samples as text": ({"device": 1, "samples": "many"}, "says that its stream has 4 steps"),
    "no samples": ({"device": 1}, "says that its stream has None"),
    "a negative number": ({"device": -1, "samples": [5, 5]}, "its number is -1: there are devices 0 to 2"),
    "a number too many": ({"device": 3, "samples": [5, 5]}, "its number is 3"),
    "a number as text": ({"device": "1\x1b[31m", "samples": [5, 5]}, "its number is 1: there"),
    "true": ({"device": True, "samples": [5, 5]}, "its number is True"),
    "the number of another": ({"device": 0, "samples": [5, 5]}, "it says that it is device 0, which node 1 is already"),
    "no record": (None, "its answer has no record 'device'"),
}


@pytest.mark.parametrize(("answer", "reason"), ANSWERS.values(), ids=ANSWERS)
def test_a_node_whose_answer_cannot_be_is_left_out_with_a_row(world, answer, reason):
    grid = RecordingGrid(world)

    def send_and_receive(messages):
        replies = list(grid.stream(messages))
        for reply in replies:
            if reply.metadata.src_node_id == 2 and answer is None:
                del reply.content["device"]
            elif reply.metadata.src_node_id == 2:
                reply.content["device"] = ConfigRecord(answer)
        return replies

    grid.send_and_receive = send_and_receive
    strategy = make_strategy(world)
    register(strategy.federation, grid)
    rows = {row.device: row for row in strategy.ledger.rows}
    assert rows.keys() == {0, 2, STRANGER} and strategy.federation.cohorts.roster.devices.tolist() == [0, 2]
    assert rows[STRANGER].outcome == "refused" and rows[STRANGER].reason.startswith("node 2 could not be registered: ")
    assert reason in rows[STRANGER].reason and rows[STRANGER].reason.isprintable()


def test_where_no_node_can_be_registered_the_run_does_not_begin(world):
    grid = RecordingGrid(world)
    grid.send_and_receive = lambda messages: []
    with pytest.raises(FleetError, match="none of 3 nodes could be registered; the first: node 1 .*: it did not answer"):
        play(world, grid, registers=True)


# -- failures


@pytest.mark.parametrize("method", ["train", "importance"])
def test_a_failing_device_is_a_row_and_the_round_goes_on(short_world, monkeypatch, caplog, method):
    """Device 1 fails in round 2, with the state that it had; it takes part again in round 3."""
    now, true = {"round": 0}, getattr(Learner, method)

    def sometimes(learner, *args, **kwargs):
        device = kwargs.get("device", args[-1])
        if (now["round"], device) == (2, 1):
            raise FloatingPointError("a weight is not finite")
        return true(learner, *args, **kwargs)

    monkeypatch.setattr(Learner, method, sometimes)
    grid, devices = RecordingGrid(short_world), {}

    def observe(record, strategy):
        devices[record.round] = record.num_devices
        now["round"] = record.round + 1
        if record.round == 3:
            assert_devices_hold_what_the_server_thinks(grid, strategy, 3)
            assert grid.device(1).memory.epochs == 2  # rounds 1 and 3

    with caplog.at_level(logging.WARNING):
        ledger = play(short_world, grid, observe).ledger
    reason = "device 1, round 2, stage train: FloatingPointError: a weight is not finite"
    assert failures(ledger) == [(2, 1, reason)]
    assert phases(ledger, 2, 1) == [("download", "ok"), ("train", "failed")]
    assert phases(ledger, 3, 1) == [("download", "ok"), ("train", "ok"), ("upload", "ok")]
    assert devices == {0: 0, 1: 3, 2: 2} | dict.fromkeys(range(3, 5), 3)
    assert [record.getMessage() for record in caplog.records] == [f"round 2 goes on without device 1: {reason}"]


def test_when_all_devices_fail_the_run_ends_with_the_reason():
    """A learning rate of 1e30 leaves no weight finite."""
    message = r"all 3 devices of round 1 failed; the first: device 0, round 1, stage train: .*lower learner\.lr"
    with pytest.raises(FleetError, match=message):
        play(tiny_world("learner.lr=1e30"))


def flip(data: bytes, place: int = -9) -> bytes:
    return data[:place] + bytes([data[place] ^ 0x10]) + data[place:][1:]


def truncate(report) -> None:
    report["delta"] = report["delta"][:-7]


def damage_importance(report) -> None:
    report["masks"] = flip(report["masks"])


def damage_control(report) -> None:
    report["control"] = flip(report["control"], 4)  # in the number of samples


def leave_out(report) -> None:
    del report["delta"]


def swap_payloads(report) -> None:
    report["delta"], report["masks"] = report["masks"], report["delta"]


def rewritten(report, **changes) -> None:
    true = Report.from_wire(report["control"], report["delta"], report["masks"])
    report["control"] = Report(**{**vars(true), **changes}).control


def of_an_old_version(report) -> None:
    rewritten(report, base_version=1)


def with_other_classes(report) -> None:
    rewritten(report, classes=np.ones(9, dtype=bool))


def without_samples(report) -> None:
    rewritten(report, samples=0)


@pytest.mark.parametrize(
    "damage",
    [truncate, damage_importance, damage_control, leave_out, swap_payloads, of_an_old_version, with_other_classes, without_samples],
)
def test_a_reply_that_cannot_be_used_is_rejected(short_world, caplog, damage):
    """Round 2, device 1. The device did train, so the server does not know what it holds: it gets the whole model in round 3."""

    def tamper(server_round, replies):
        for reply in replies:
            if (server_round, reply.metadata.src_node_id) == (2, 2):
                damage(reply.content["report"])
        return replies

    grid, devices = RecordingGrid(short_world, tamper), {}

    def observe(record, strategy):
        devices[record.round] = record.num_devices
        if record.round == 3:
            assert_devices_hold_what_the_server_thinks(grid, strategy, 3)

    with caplog.at_level(logging.WARNING):
        ledger = play(short_world, grid, observe).ledger
    (row,) = [row for row in ledger.rows if row.outcome not in ("ok", "sat-out")]
    assert (row.round, row.device, row.phase, row.outcome) == (2, 1, "upload", "rejected")
    assert row.reason.startswith("device 1, round 2, stage decode: ")
    assert f"round 2 goes on without device 1: {row.reason}" in caplog.text
    assert row.up_bytes > 0 and row.seconds > 0  # sent is paid
    assert devices[2] == 2 and devices[3] == 3
    assert is_whole(sent_to(grid, 3, 1)) and not is_whole(sent_to(grid, 3, 0))


def test_rejected_replies_leave_the_model_alone(short_world):
    """What a rejected device had to say plays no part: the same weights as without that device."""

    def damaged(server_round, replies):
        for reply in replies:
            if reply.metadata.src_node_id == 2:
                truncate(reply.content["report"])
        return replies

    def missing(server_round, replies):
        return [reply for reply in replies if reply.metadata.src_node_id != 2]

    runs = [play(short_world, RecordingGrid(short_world, tamper)) for tamper in (damaged, missing)]
    assert_same_arrays(runs[0].weights, runs[1].weights)


def test_a_lost_reply_costs_a_round_and_no_more(short_world):
    """The device trained and moved on, but its reply never came: the server must not think that it still holds what it held."""

    def lose(server_round, replies):
        return [reply for reply in replies if (server_round, reply.metadata.src_node_id) != (2, 2)]

    grid = RecordingGrid(short_world, lose)

    def observe(record, strategy):
        if record.round > 2:
            assert_devices_hold_what_the_server_thinks(grid, strategy, record.round)

    ledger = play(short_world, grid, observe).ledger
    assert failures(ledger) == [(2, 1, "device 1, round 2: no reply")]
    assert all(row.outcome == "ok" for row in ledger.rows if row.round > 2)


def test_an_error_reply_of_the_runtime_is_a_failure(short_world):
    """A SuperNode that is gone, or a worker that crashed: Flower answers for it."""

    def crash(server_round, replies):
        first, *others = replies
        if server_round == 2:
            first = error_reply(grid.sending[0], WORKER_LOST, "node is gone")
        return [first, *others]

    grid = RecordingGrid(short_world, crash)
    ledger = play(short_world, grid).ledger
    assert failures(ledger) == [(2, 0, "node is gone")]
    assert all(row.outcome == "ok" for row in ledger.rows if row.round > 2)


# -- settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rounds_per_task": 0}, "rounds_per_task is 0"),
        ({"local_epochs": 0}, "local_epochs 0"),
        ({"cohort_size": -1}, "cohort_size is -1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        FederationConfig(**settings)


def test_rounds_are_dealt_to_tasks(world):
    strategy = make_strategy(world)
    assert [strategy.model.mask_schedule.position(r) for r in (1, 4, 5, 8)] == [(0, 0), (0, 3), (1, 0), (1, 3)]


def test_a_task_needs_four_stages():
    check(TDMConfig(stage_epochs=1), 0.9, 4)
    with pytest.raises(ValueError, match="3 epochs has 3 stages"):
        check(TDMConfig(stage_epochs=1), 0.9, 3)


# -- Flower's own loop


@pytest.mark.parametrize("mode", [("clock.mode=async", "clock.buffer_size=2"), ("clock.mode=semi-sync", "clock.period_s=9")])
def test_flowers_loop_plays_synchronous_rounds_only(mode):
    """One batch of messages and one of replies a round do not fit the others."""
    strategy = make_strategy(tiny_world(*mode))
    for call in (lambda: strategy.configure_train(1, None, None, None), lambda: strategy.aggregate_train(1, [])):
        with pytest.raises(TypeError, match=r"clock.mode is '(async|semi-sync)': Flower's loop plays synchronous rounds only"):
            call()


def test_flowers_loop_is_the_same_round(short_world):
    """What `run_rounds` plays, in Flower's own calls; a strategy has nobody at work between rounds."""
    played, grid = play(short_world), RecordingGrid(short_world)
    strategy = make_strategy(short_world)
    enrol(strategy.federation, make_roster(short_world.streams))
    for server_round in range(1, 5):
        replies = grid.stream(strategy.configure_train(server_round, None, None, grid))
        arrays, metrics = strategy.aggregate_train(server_round, replies)
        grid.commit()
        assert arrays is None and metrics["num-devices"] == 3
        assert strategy.rounds.asked == [] and strategy.rounds.snapshot() == {}
        assert strategy.configure_evaluate(server_round, None, None, grid) == []
    assert_same_arrays(strategy.weights, played.weights)
    assert strategy.ledger.rows == played.ledger.rows
