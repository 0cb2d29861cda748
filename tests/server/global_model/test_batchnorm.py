"""BatchNorm's running statistics: pooled as if all samples had been seen together, and the three policies on a small ResNet."""

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, Message, RecordDict
from worlds import BATCHNORM, LOSSLESS, RecordingGrid, assert_same_arrays, kind_of, play, tiny_world, toy_fleet

from client.app import _Trainer
from server.aggregation.config import AggregationConfig
from server.aggregation.update import Update
from server.defence.clipping import Seen
from server.fleet.conditions import cut
from server.global_model.batchnorm import Observed, bounded_statistics, pooled_statistics
from server.ledger import Phase, Where
from server.rounds import replies, synchronous
from simulations.build import make_strategy
from simulations.engine.adapter import identify_process
from sparcl_core import codec
from sparcl_core.codec import CodecError, Layout, Sizes, SparseTensor
from sparcl_core.costs.flops import per_sample
from sparcl_core.inputs import normalise
from sparcl_core.learner import Learner
from sparcl_core.networks.models import load_state_
from sparcl_core.sparsity.masks import count_active
from sparcl_core.wire.protocol import Report


def of(samples: np.ndarray) -> dict[str, np.ndarray]:
    return {"bn.running_mean": samples.mean(0), "bn.running_var": samples.var(0)}


LAYOUT = Layout({"bn.running_mean": (4,), "bn.running_var": (4,)}, frozenset(), frozenset({"bn.running_mean", "bn.running_var"}))


# -- pooled


def test_pooled_statistics_are_those_of_all_samples_together():
    rng = np.random.default_rng(0)
    parts = [rng.normal(mean, scale, size=(count, 5)) for mean, scale, count in ((0, 1, 10), (3, 0.1, 40), (-1, 2, 7))]
    pooled, whole = pooled_statistics([(len(part), of(part)) for part in parts]), of(np.concatenate(parts))
    assert pooled.keys() == whole.keys()
    for name in whole:
        assert pooled[name].dtype == np.float64 and np.allclose(pooled[name], whole[name], rtol=1e-12)


def test_one_device_moves_the_pooled_statistics_no_further_than_the_others():
    """Four move the mean by 0.1 and one by 1e6: it is scaled to 0.1, and the others are the very arrays that they were."""
    before = {"bn.running_mean": np.zeros(4, np.float32), "bn.running_var": np.ones(4, np.float32)}
    found = [Observed(device, 10, before | {"bn.running_mean": np.full(4, 1e6 if device == 3 else 0.1)}) for device in range(5)]
    used, unusual, seen = bounded_statistics(found, before, Seen(), layout=LAYOUT, config=AggregationConfig())
    assert [(one.device, one.is_refused) for one in unusual] == [(3, False)] and "change of the running statistics" in unusual[0].reason
    assert used[3].statistics["bn.running_mean"] == pytest.approx(0.1) and used[3].statistics["bn.running_var"] == pytest.approx(1.0)
    assert all(used[device].statistics is found[device].statistics for device in (0, 1, 2, 4))
    again, unusual, _ = bounded_statistics(found, before, seen, layout=LAYOUT, config=AggregationConfig())
    assert len(again) == 5 and len(unusual) == 1 and not unusual[0].is_refused  # its update is judged apart
    assert bounded_statistics(found, before, Seen(), layout=LAYOUT, config=AggregationConfig(clip=0))[1] == []


def sent_statistics(mean: float, variance: float) -> bytes:
    values = {"bn.running_mean": mean, "bn.running_var": variance}
    coded = {}
    for name, value in values.items():
        over = codec.reference("statistics", LAYOUT, name, {})
        coded[name] = codec.quantise(SparseTensor(np.arange(4), np.full(4, value)), over, "f64", name)
    return codec.encode("statistics", LAYOUT, coded, model_version=1, mask_version=0).data


def test_statistics_that_no_batch_has_are_refused():
    identify_process()

    def read(mean, variance):
        shown = ConfigRecord({"statistics": sent_statistics(mean, variance)})
        return replies.observed(Message(RecordDict({"observed": shown}), 1, "train"), LAYOUT)

    assert (read(-3.0, 0.0)["bn.running_mean"] == -3).all()
    for wrong in ((0.0, -1e-9), (1e30, 1.0), (-1e30, 1.0), (0.0, 1e300)):
        with pytest.raises(CodecError, match=r"bn.running_(mean|var) is not within"):
            read(*wrong)


def test_what_was_done_to_statistics_is_in_the_ledger_and_in_the_snapshot():
    world = tiny_world(*BATCHNORM, "stream.devices=4", "federation.batchnorm=local")
    strategy = make_strategy(world)
    before = {name: strategy.weights[name].copy() for name in strategy.model.whole.statistics}
    for device in range(4):
        strategy.ledger.transferred(Where(1, 0, device), Phase("upload"), Sizes(), 0)
    found = [{n: v + (1e6 if device == 2 else 0.01) for n, v in before.items()} for device in range(4)]
    strategy.federation.set_statistics([Observed(device, 5, own) for device, own in enumerate(found)])
    assert [row.outcome for row in strategy.ledger.rows] == ["ok", "ok", "clipped", "ok"]
    assert all(strategy.weights[name] == pytest.approx(before[name] + 0.01, abs=1e-3) for name in before)
    other = make_strategy(world)
    other.restore(strategy.snapshot())
    largest = strategy.model.seen_statistics.largest
    assert np.array_equal(other.model.seen_statistics.largest, largest) and largest[2] > 0


def test_pooled_statistics_by_hand():
    """Means 0 and 4, variances 1 and 1, one sample against three: mean 3; 1 + (1 * 9 + 3 * 1) / 4 = 4. The plain mean would say 1."""
    one, two = ({"a.running_mean": np.array([m]), "a.running_var": np.array([1.0])} for m in (0.0, 4.0))
    pooled = pooled_statistics([(1, one), (3, two)])
    assert (pooled["a.running_mean"].tolist(), pooled["a.running_var"].tolist()) == ([3], [4])


def test_a_variance_never_falls_below_zero():
    """1e8^2 takes all the bits: what is left of a variance of 0 is rounding, and half of such rests are negative."""
    rng = np.random.default_rng(1)
    own = {"a.running_mean": 1e8 * (1 + rng.random(200)), "a.running_var": np.zeros(200)}
    assert (pooled_statistics([(3, own), (4, own)])["a.running_var"] >= 0).all()


def test_statistics_of_nobody_cannot_be_pooled():
    for found in ([], [(0, of(np.ones((2, 3))))]):
        with pytest.raises(ValueError, match="no statistics rest on a sample"):
            pooled_statistics(found)


# -- the policies


def payload_of(grid: RecordingGrid, server_round: int, device: int) -> bytes:
    (reply,) = [m for m in grid.received[server_round] if m.metadata.src_node_id == device + 1]
    return reply.content["report"]["delta"]


def states(grid: RecordingGrid, count: int = 2) -> list[dict[str, np.ndarray]]:
    return [grid.device(number).base for number in range(count)]


def test_global_statistics_cross_the_wire_like_weights():
    """Exactly averaged where the wire loses nothing; at 4 bits they still have the 8 bits of bf16."""
    world = tiny_world(*BATCHNORM)
    grid = RecordingGrid(world)
    strategy = play(world, grid)
    assert strategy.model.layout is strategy.model.whole and len(strategy.model.layout.statistics) == 40
    coded = codec.decode(payload_of(grid, 4, 0), strategy.model.layout, strategy.masks).tensors
    assert strategy.model.layout.statistics <= coded.keys()
    for name in strategy.model.layout.statistics:
        bits = coded[name].values.view(np.uint32)
        assert not (bits & 0xFFFF).any() and np.unique(coded[name].values).size > 3  # upper halves, and no handful of steps
    for name in strategy.model.layout.statistics:
        if name.endswith("running_var"):
            assert (strategy.weights[name] >= 0).all()
    held = states(grid)
    assert all(np.array_equal(held[0][name], held[1][name]) for name in strategy.model.layout.statistics)


def test_global_statistics_are_averaged_by_samples():
    """Lossless, by hand: w + sum n_k d_k / n of what the devices sent in the only round of interest, the first."""
    world, after = tiny_world(*BATCHNORM, *LOSSLESS), {}
    grid = RecordingGrid(world)
    start = make_strategy(world).weights
    play(world, grid, lambda record, strategy: after.setdefault(record.round, {n: v.copy() for n, v in strategy.weights.items()}))
    strategy = make_strategy(world)
    wires = [m.content["report"] for m in grid.received[1]]
    told = [Report.from_wire(wire["control"], wire["delta"], wire["masks"]) for wire in wires]
    total = sum(report.samples for report in told)
    for name in strategy.model.layout.statistics:
        mean = start[name].astype(np.float64)
        for report in told:
            tensor = codec.decode(report.delta, strategy.model.layout, strategy.masks).tensors[name]
            mean[tensor.places] += report.samples / total * tensor.values
        assert np.allclose(after[1][name], mean, rtol=1e-6)
        assert np.abs(after[1][name] - start[name]).max() > 1e-3


def test_a_variance_that_almost_vanishes_does_not_become_negative():
    """1.0059 to 0.0005 is a change of -1.0054, which bf16 rounds to -1.0078: -0.0019 would be left, and its root is no number."""
    world = tiny_world(*BATCHNORM)
    strategy = make_strategy(world)
    name = next(name for name in strategy.model.layout.statistics if name.endswith("running_var"))
    strategy.weights[name][:] = 1.0059

    class Fixed:
        def step(self, mean, votes):
            return {name: np.full(strategy.weights[name].shape, -1.0078125)}

        is_plain = True
        drop = staticmethod(lambda masks: None)

    strategy.model.optimizer = Fixed()
    strategy.model._move(1, [Update(0, 1, np.ones(10, bool), {})])
    assert (strategy.weights[name] == 0).all()


def test_local_statistics_stay_on_the_device():
    """They differ between devices, are in no payload, and the server evaluates with what the devices have, pooled."""
    world = tiny_world(*BATCHNORM, "federation.batchnorm=local")
    grid, checked = RecordingGrid(world), 0

    def observe(record, strategy):
        nonlocal checked
        if not record.round:
            return
        own = [{name: grid.device(number).base[name] for name in strategy.model.whole.statistics} for number in (0, 1)]
        wires = [m.content["report"] for m in grid.received[record.round]]
        samples = [Report.from_wire(wire["control"], wire["delta"], wire["masks"]).samples for wire in wires]
        for name, value in pooled_statistics(list(zip(samples, own, strict=True))).items():
            assert np.allclose(strategy.weights[name], value, rtol=1e-6, atol=1e-7)
            assert not np.array_equal(own[0][name], own[1][name])
        checked += 1

    strategy = play(world, grid, observe)
    assert checked == 4
    assert not strategy.model.layout.statistics and len(strategy.model.whole.statistics) == 40
    assert strategy.model.layout.shapes.keys() == strategy.model.whole.shapes.keys() - strategy.model.whole.statistics
    assert strategy.model.broadcast.held.keys() == strategy.model.layout.shapes.keys()
    for server_round in range(1, 5):
        for number in (0, 1):
            sent = codec.decode(payload_of(grid, server_round, number), strategy.model.layout, strategy.masks)  # as many places as then
            assert sent.tensors.keys() <= strategy.model.layout.shapes.keys()
    for message in grid.sent[1]:
        whole = codec.decode(message.content["instruction"]["payloads"][0], strategy.model.layout, {})
        assert whole.kind == "whole" and whole.tensors.keys() == strategy.model.layout.shapes.keys()
    for row in strategy.ledger.rows:
        if row.phase == "upload":  # what is shown to the simulator is no part of the protocol
            (reply,) = [m for m in grid.received[row.round] if m.metadata.src_node_id == row.device + 1]
            assert row.up_bytes == sum(map(len, reply.content["report"].values()))
    residuals = grid.device(0).residual
    assert residuals.keys() == strategy.model.layout.shapes.keys()


def test_a_whole_model_leaves_a_devices_own_statistics_alone():
    """Round 3 brings device 1 the whole model, since its report was lost; its statistics are its own still."""
    world, before = tiny_world(*BATCHNORM, "federation.batchnorm=local"), {}

    def tamper(server_round, replies):
        if server_round == 2:
            before.update(grid.device(1).base)
        return [reply for reply in replies if (server_round, reply.metadata.src_node_id) != (2, 2)]

    received = {}
    true = _Trainer._receive

    def watched(trainer, content, context):
        instruction, device, stream, where = true(trainer, content, context)
        if (instruction.round, context.node_config["partition-id"]) == (3, 1):
            received.update(device.base)
        return instruction, device, stream, where

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_Trainer, "_receive", watched)
        grid = RecordingGrid(world, tamper)
        strategy = play(world, grid)
    (message,) = [m for m in grid.sent[3] if m.metadata.dst_node_id == 2]
    assert kind_of(message.content["instruction"]["payloads"][0]) == "whole"
    names = strategy.model.whole.statistics
    assert_same_arrays({name: received[name] for name in names}, {name: before[name] for name in names})


# -- recomputed


def recomputing(*overrides: str):
    return tiny_world(*BATCHNORM, "federation.batchnorm=recompute", *overrides)


def test_recomputed_statistics_are_those_of_a_forward_pass():
    """One device, wire lossless: its model run by hand over its data and its buffer, in batches, the plain average of their statistics.
    The ledger has one forward pass per sample: 2 FLOPs a multiply-accumulate, masked layers by their density."""
    world = recomputing("stream.devices=1", *LOSSLESS)
    grid = RecordingGrid(world)
    strategy = play(world, grid)
    e, device, stream = world.experiment, grid.device(0), world.streams[0]
    learner = Learner(e.method, world.data.inputs, 8, e.seed)
    x = np.concatenate([stream.task(0).x, device.memory.buffer.x[: len(device.memory.buffer)]])
    assert len(device.memory.buffer) == 4 and len(x) == 44  # a tenth of 40
    assert_same_arrays(device.base, device.base | strategy.model.broadcast.held)

    found = {name: [] for name in strategy.model.whole.statistics}
    load_state_(learner.model, device.base)
    hooks, names = [], {module: name for name, module in learner.model.named_modules()}

    def note(module, inputs):
        values = inputs[0].double()
        found[f"{names[module]}.running_mean"].append(values.mean((0, 2, 3)).numpy())
        found[f"{names[module]}.running_var"].append(values.var((0, 2, 3), unbiased=True).numpy())

    for module in learner.model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            hooks.append(module.register_forward_pre_hook(note))
    learner.model.train()
    with torch.no_grad():
        for batch in np.array_split(x, 4):
            learner.model(normalise(torch.from_numpy(batch), world.data.inputs, torch.float32))
    for name, values in found.items():
        assert np.allclose(strategy.weights[name], np.mean(values, axis=0), rtol=1e-4, atol=1e-6), name

    active = count_active(strategy.masks)
    forward = per_sample(learner.layers, active, active).forward
    macs = sum(layer.uses * active.get(layer.name, layer.weights) for layer in learner.layers)
    rows = [row for row in strategy.ledger.rows if row.phase == "calibrate"]
    assert [(row.round, row.outcome, row.statistics_flops) for row in rows] == [(4, "ok", 44 * 2 * macs)]
    assert forward == 2 * macs
    assert strategy.ledger.totals()["statistics_flops"] == 44 * 2 * macs and rows[0].seconds > 0


def test_recomputing_is_paid_for_and_the_dense_twin_is_not_charged():
    """Two devices: each gets the model as it is now, and answers; the twin, which averages, sends nothing at that point."""
    world = recomputing()
    grid = RecordingGrid(world)
    strategy = play(world, grid)
    ledger, dense_message_bytes = strategy.ledger, strategy.model.whole.dense_bytes
    assert list(grid.calibrated) == [4]
    for number in (0, 1):
        rows = [row for row in ledger.rows if (row.round, row.device) == (4, number)]
        assert [row.phase for row in rows] == ["download", "train", "upload", "download", "calibrate", "upload"]
        (asked,) = [m for m in grid.calibrating[4] if m.metadata.dst_node_id == number + 1]
        (told,) = [m for m in grid.calibrated[4] if m.metadata.src_node_id == number + 1]
        assert rows[3].down_bytes == len(asked.content["instruction"]["control"]) + sum(map(len, asked.content["instruction"]["payloads"]))
        assert rows[5].up_bytes == sum(map(len, told.content["report"].values())) and rows[5].values_bytes == 0 < rows[5].rest_bytes
        assert all(row.dense_bytes == row.dense_seconds == row.dense_joules == 0 for row in rows[3:])
        assert rows[0].dense_bytes == rows[2].dense_bytes == dense_message_bytes


def test_a_device_that_fails_to_recompute_is_a_row_and_the_run_goes_on(monkeypatch):
    true = Learner.statistics

    def sometimes(learner, state, masks, data, memory):
        if len(memory.buffer) and np.array_equal(data.y, world.streams[1].task(0).y):
            raise MemoryError("no room")
        return true(learner, state, masks, data, memory)

    monkeypatch.setattr(Learner, "statistics", sometimes)
    world = recomputing()
    grid = RecordingGrid(world)
    strategy = play(world, grid)
    failed = [(row.round, row.device, row.phase, row.reason) for row in strategy.ledger.rows if row.outcome != "ok"]
    assert failed == [(4, 1, "calibrate", "device 1, round 4, stage calibrate: MemoryError: no room")]
    (told,) = [m for m in grid.calibrated[4] if not m.has_error()]
    own = codec.decode(told.content["report"]["delta"], strategy.model.whole, {}).tensors
    for name in strategy.model.whole.statistics:
        assert np.array_equal(strategy.weights[name].ravel(), own[name].values)


def damaged(reply) -> None:
    reply.content["report"]["delta"] = reply.content["report"]["delta"][:-3]


def without_samples(reply) -> None:
    rewritten(reply, samples=0)


def of_the_future(reply) -> None:
    rewritten(reply, base_version=99)


def rewritten(reply, **changes) -> None:
    wire = reply.content["report"]
    true = Report.from_wire(wire["control"], wire["delta"], wire["masks"])
    wire["control"] = Report(**{**vars(true), **changes}).control


def without_measures(reply) -> None:
    reply.content["measures"].clear()


DAMAGES = {(4, 1): damaged, (4, 2): without_samples, (8, 1): of_the_future, (8, 2): without_measures}


def test_statistics_that_cannot_be_used_are_rejected():
    """Each in another way. The old statistics stay, and the next message to the device is the whole model."""
    world = recomputing("stream.tasks=2", "data.train_limit=8")

    def tamper(server_round, replies):
        for reply in replies:
            DAMAGES[server_round, reply.metadata.src_node_id](reply)
        return replies

    grid, seen = RecordingGrid(world, tamper_calibrate=tamper), {}
    strategy = play(world, grid, lambda record, strategy: seen.setdefault(record.round, {n: v.copy() for n, v in strategy.weights.items()}))
    bad = [(row.round, row.device, row.phase) for row in strategy.ledger.rows if row.outcome == "rejected"]
    assert bad == [(r, device, "upload") for r in (4, 8) for device in (0, 1)]
    assert all(np.array_equal(seen[8][name], seen[0][name]) for name in strategy.model.whole.statistics)
    assert {kind_of(message.content["instruction"]["payloads"][0]) for message in grid.sent[5]} == {"whole"}


def test_a_device_that_did_not_train_on_the_task_can_still_recompute(monkeypatch):
    """What data removal keeps is of the task that it trained on last: another number of samples. Here device 1 is stopped in the middle of
    every training of the second task."""
    world = recomputing("stream.tasks=2", "data.train_limit=8", "ddr.enabled=true")
    true, now = synchronous.end_of_round, {"round": 1}

    def stopped(clock, fates, costs, *, start, wanted):
        fates, end = true(clock, fates, costs, start=start, wanted=wanted)
        if now["round"] > 4:
            down, train, _ = costs[1]
            fates[1] = cut(fates[1], costs[1], start + down.seconds + train.seconds / 2, outcome="late", reason="it was stopped")
        return fates, end

    monkeypatch.setattr(synchronous, "end_of_round", stopped)
    strategy = play(world, observe=lambda record, strategy: now.update(round=record.round + 1))
    rows = [(row.round, row.device, row.outcome) for row in strategy.ledger.rows if row.phase == "calibrate"]
    assert rows == [(4, 0, "ok"), (4, 1, "ok"), (8, 0, "ok"), (8, 1, "ok")]
    assert {row.outcome for row in strategy.ledger.rows if row.round > 4 and row.device == 1 and row.phase == "train"} == {"late"}


def test_what_cannot_be_used_took_as_long_to_send(tmp_path):
    """A reply that is damaged, and as long as it was, has the jitter of its message like one that can be read."""

    def tamper(server_round, replies):
        for reply in replies:
            data = reply.content["report"]["delta"]
            reply.content["report"]["delta"] = data[:-1] + bytes([data[-1] ^ 1])
        return replies

    world = recomputing(*toy_fleet(tmp_path, 2, jitter_s=[5.0] * 2, memory_bytes=[1e9] * 2))
    runs = [play(world, RecordingGrid(world, tamper_calibrate=alter)).ledger.rows for alter in (None, tamper)]
    honest, damaged_ones = ([row for row in rows if row.round == 4 and row.phase == "upload"][2:] for rows in runs)
    assert [row.outcome for row in (*honest, *damaged_ones)] == ["ok"] * 2 + ["rejected"] * 2
    assert [(row.time, row.seconds, row.joules) for row in damaged_ones] == [(row.time, row.seconds, row.joules) for row in honest]


def test_a_device_that_failed_in_the_round_is_not_asked_to_recompute(monkeypatch):
    world = recomputing()
    true, now = Learner.train, {"round": 1}

    def sometimes(learner, state, masks, data, memory, epochs, device):
        if now["round"] == 4 and device == 1:
            raise FloatingPointError("not finite")
        return true(learner, state, masks, data, memory, epochs=epochs, device=device)

    monkeypatch.setattr(Learner, "train", sometimes)
    grid = RecordingGrid(world)
    strategy = play(world, grid, lambda record, strategy: now.update(round=record.round + 1))
    rows = [(row.phase, row.outcome) for row in strategy.ledger.rows if (row.round, row.device) == (4, 1)]
    assert rows == [("download", "ok"), ("train", "failed")]
    assert [message.metadata.dst_node_id for message in grid.calibrating[4]] == [1]
