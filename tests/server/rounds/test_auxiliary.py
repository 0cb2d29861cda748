"""What devices and server send beside the model: what it costs, whose is not used, and that the round goes on."""

import numpy as np
import pytest
from worlds import BATCHNORM, LOSSLESS, RecordingGrid, assert_same_arrays, play, tiny, tiny_world

from simulations.build import make_evaluator
from sparcl_core.codec import Layout
from sparcl_core.sparsity.packed import unpack
from sparcl_core.wire.auxiliary import Channel

DENSE = ("sparsity=0", "tdm.enabled=false", "ddr.enabled=false", "dgm.enabled=false")
SCAFFOLD = ("federation.correction=scaffold", "dgm.enabled=false", "stream.tasks=1")


def by_direction(strategy) -> tuple[int, int]:
    totals = strategy.ledger.totals()
    return totals["up_bytes"], totals["down_bytes"]


def test_fedavg_sends_nothing_beside_the_model_and_fedprox_without_mu_is_fedavg():
    world = tiny_world("stream.tasks=1")
    grid = RecordingGrid(world)
    strategy = play(world, grid)
    assert strategy.ledger.totals()["auxiliary_bytes"] == 0
    assert set(grid.sent[1][0].content["instruction"]) == {"control", "payloads"}
    assert set(grid.received[1][0].content["report"]) == {"control", "delta", "masks"}
    assert_same_arrays(play(tiny_world("stream.tasks=1", "federation.correction=fedprox")).weights, strategy.weights)


def test_scaffold_sends_about_twice_of_what_fedavg_sends():
    """Dense and in float32. Up: an update and as many control variates. Down: c of every round, zeros before the first."""
    plain, corrected = (play(tiny_world(*DENSE, *LOSSLESS, "stream.tasks=1", *more)) for more in ((), SCAFFOLD[:1]))
    (up, down), (more_up, more_down) = by_direction(plain), by_direction(corrected)
    assert 1.9 < more_up / up < 2.1
    rounds = 4
    assert 1 + 0.9 * (rounds - 1) / rounds < more_down / down < 2
    totals = corrected.ledger.totals()
    dense = 3 * rounds * corrected.model.layout.dense_bytes
    assert 0.8 * dense < totals["up_auxiliary_bytes"] < 1.02 * dense  # weights whose gradient is 0 are not sent
    assert totals["up_bytes"] == sum(value for key, value in totals.items() if key.startswith("up_") and key != "up_bytes")


def test_the_servers_control_variate_is_the_mean_of_the_devices():
    """All three take part in every round; also where masks change."""
    world = tiny_world("federation.correction=scaffold", "dgm.enabled=false", *LOSSLESS)
    grid, last = RecordingGrid(world), {}

    def observe(record, strategy):
        if not record.round:
            return
        own, last[record.round] = [], strategy
        for number in range(3):
            state = grid.device(number)
            shapes = {name: value.shape for name, value in state.base.items()}
            own.append(unpack(state.memory.corrected, shapes, "own/")[0])
        for name in own[0]:
            kept = strategy.model.beside.kept[f"correction/{name}"]
            mask = state.masks.get(name, np.array(True))
            np.testing.assert_allclose(kept * mask, sum(one[name] * mask for one in own) / 3, atol=1e-5)

    play(world, grid, observe)
    assert len(last) == 8


def test_a_cohort_moves_it_by_its_share_of_the_fleet():
    """One of three devices in a round: c moves by a third of what it sent."""
    world = tiny_world(*DENSE, *LOSSLESS, *SCAFFOLD[:1], "federation.cohort_size=1", "federation.rounds=1")
    grid = RecordingGrid(world)
    strategy = play(world, grid)
    channel = strategy.model.beside.channel_up
    sent, _ = channel.decode(grid.received[1][0].content["report"]["auxiliary"], {}, 1)
    for name, value in sent.items():
        np.testing.assert_allclose(strategy.model.beside.kept[name], value / 3, rtol=1e-6)


def forged(damage, *overrides: str, server_round: int = 2):
    """A run in which the arrays of device 1 in one round are what `damage` makes of them (and of the channel)."""
    world, strategies = tiny_world(*overrides), []

    def tamper(number, replies):
        for reply in replies:
            if (number, reply.metadata.src_node_id) == (server_round, 2):
                model = strategies[-1].model
                damage(reply.content["report"], model.beside.channel_up, model.broadcast.base)
        return replies

    def observe(record, strategy):
        strategies.append(strategy)
        assert all(np.isfinite(value).all() for value in strategy.model.beside.kept.values())

    return play(world, RecordingGrid(world, tamper), observe)


def with_arrays(change):
    def damage(report, channel, base):
        arrays, _ = channel.decode(report["auxiliary"], base.masks, base.version)
        report["auxiliary"] = channel.encode(change(arrays), base.masks, base.version).data

    return damage


def of_another_shape(report, channel, base):
    other = Channel(Layout({"correction/own": (3,)}, frozenset()), "float32")
    report["auxiliary"] = other.encode({"correction/own": np.ones(3, np.float32)}, {}, base.version).data


def without(report, channel, base):
    del report["auxiliary"]


def of_another_version(report, channel, base):
    arrays, _ = channel.decode(report["auxiliary"], base.masks, base.version)
    report["auxiliary"] = channel.encode(arrays, base.masks, base.version + 1).data


def cut_off(report, channel, base):
    report["auxiliary"] = report["auxiliary"][:-3]


def no_bytes(report, channel, base):
    report["auxiliary"] = "words"


def of_another_kind(report, channel, base):
    report["auxiliary"] = report["delta"]


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (of_another_shape, "another model"),
        (without, "no auxiliary arrays"),
        (of_another_version, "auxiliary arrays of version 2"),
        (cut_off, "checksum"),
        (no_bytes, "not made of bytes"),
        (of_another_kind, "another model"),
    ],
)
def test_arrays_that_cannot_be_used_are_a_row_and_the_update_with_them_is_not_used(damage, reason):
    strategy = forged(damage, *SCAFFOLD)
    (row,) = [row for row in strategy.ledger.rows if row.outcome != "ok"]
    assert (row.round, row.device, row.outcome, row.phase) == (2, 1, "rejected", "upload") and reason in row.reason
    assert "rejected" not in {row.outcome for row in strategy.ledger.rows if row.round > 2}


def test_counts_that_cannot_be_are_a_row():
    damage = with_arrays(lambda arrays: arrays | {"method/counts": np.full_like(arrays["method/counts"], 1e6)})
    (row,) = [row for row in forged(damage, "stream.tasks=1", "learner.method=fedspace").ledger.rows if row.outcome != "ok"]
    assert row.outcome == "rejected" and "method/counts is no count of samples" in row.reason


def test_arrays_that_are_far_larger_than_those_of_others_are_scaled_down_to_them():
    """A device that sends its control variate a million times as large moves c hardly more than one that sends what it has."""

    def norm(strategy):
        return sum(float((value.astype(float) ** 2).sum()) for value in strategy.model.beside.kept.values()) ** 0.5

    huge = with_arrays(lambda arrays: {name: 1e6 * value for name, value in arrays.items()})
    honest, bent = forged(with_arrays(lambda arrays: arrays), *SCAFFOLD), forged(huge, *SCAFFOLD)
    (row,) = [row for row in bent.ledger.rows if row.outcome != "ok"]
    assert (row.round, row.device, row.outcome) == (2, 1, "clipped") and "scaled down" in row.reason
    assert norm(bent) < 2 * norm(honest)


def test_where_nobody_can_be_compared_an_infinite_sum_is_not_taken():
    huge = with_arrays(lambda arrays: {name: np.full_like(value, 3e38) for name, value in arrays.items()})
    twice = lambda report, channel, base: huge(report, channel, base)  # noqa: E731
    strategy = forged(twice, *SCAFFOLD, "aggregation.clip=0", "federation.rounds=2")
    assert all(np.isfinite(value).all() for value in strategy.model.beside.kept.values())


def test_taking_an_update_back_takes_what_is_beside_the_model_back():
    world, kept = tiny_world(*SCAFFOLD), {}

    def observe(record, strategy):
        kept[record.round] = strategy.model.beside.kept
        if record.round == 3:
            strategy.model.take_back("a test")
            channel = strategy.model.beside.channel_up
            assert_same_arrays(strategy.model.beside.kept, channel.within(kept[2], strategy.masks))

    play(world, observe=observe)
    assert any((kept[3][name] != kept[2][name]).any() for name in kept[2])


def test_prototypes_are_combined_in_buffered_rounds_too():
    strategy = play(tiny_world("learner.method=fedspace", "clock.mode=async", "clock.buffer_size=2"))
    assert strategy.model.beside.kept["method/known"].all() and strategy.ledger.totals()["up_auxiliary_bytes"] > 0


FEDWEIT = (*DENSE, "learner.method=fedweit", "stream.setting=task-il", "evaluate_on=devices")


def test_fedweits_arrays_come_down_once_a_task():
    """What others have added in one task comes with the first round of the next one, and to a device that was lost, again."""
    grid = RecordingGrid(tiny_world(*FEDWEIT))
    strategy = play(tiny_world(*FEDWEIT), grid)
    came = [["auxiliary" in message.content["instruction"] for message in grid.sent[number]] for number in range(1, 9)]
    assert came == [[True] * 3, *[[False] * 3] * 3, [True] * 3, *[[False] * 3] * 3]
    channel, sent = strategy.model.beside._auxiliary.down, grid.sent[5][0].content["instruction"]["auxiliary"]
    found, _ = channel.decode(sent, {}, 5)
    own = strategy.model.beside.channel_up.decode(grid.received[4][2].content["report"]["auxiliary"], {}, 4)[0]
    name = next(iter(own)).removeprefix("method/adaptive/")
    assert np.array_equal(found[f"method/others/{name}"][2], own[f"method/adaptive/{name}"])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ((*FEDWEIT, "stream.setting=class-il"), "take task-il"),
        ((*FEDWEIT, "evaluate_on=server"), "set evaluate_on=devices"),
        ((*FEDWEIT, "sparsity=0.5"), "set sparsity=0"),
        ((*FEDWEIT, "federation.correction=fedprox"), "nothing corrects"),
        (("federation.correction=scafold",), "did you mean 'scaffold'"),
        (("federation.correction=scaffold",), "set dgm.enabled=false"),
        (("federation.correction=scaffold", "clock.mode=async", "clock.buffer_size=2"), "take clock.mode=sync"),
        (("federation.correction=scaffold", "federation.mask=local"), "take mask=shared"),
        (("federation.mu=0.1",), "set correction=fedprox"),
        (("federation.correction=fedprox", "federation.mu=-1"), "may not be negative"),
        (("federation.batchnorm=fedbn",), "set evaluate_on=devices"),
        (("evaluate_devices=2",), "set evaluate_on=devices"),
        (("learner.method=flwf2t", "learner.client_weight=0.6", "learner.server_weight=0.5"), "below 1 together"),
    ],
)
def test_what_does_not_go_together_is_said_before_anything_starts(overrides, message):
    with pytest.raises(Exception, match=message):
        tiny(*overrides)


def test_batchnorm_that_stays_on_devices():
    """FedBN: its weights, biases and statistics are in no payload, differ between devices, and each evaluates with its own."""
    world = tiny_world(*BATCHNORM, "federation.batchnorm=fedbn", "evaluate_on=devices")
    grid = RecordingGrid(world)
    strategy = play(world, grid)
    stay = strategy.model.whole.shapes.keys() - strategy.model.layout.shapes.keys()
    assert stay == {name for name in strategy.model.whole.shapes if "bn" in name or "downsample.1" in name}
    one, other = (grid.device(number) for number in (0, 1))
    assert one.statistics.keys() == stay == other.statistics.keys()
    assert all((one.statistics[name] != other.statistics[name]).any() for name in stay if "num_batches" not in name)
    assert all(np.array_equal(one.model.base[name], other.model.base[name]) for name in strategy.model.layout.shapes)
    fresh = {"weight": 1.0, "bias": 0.0, "running_mean": 0.0, "running_var": 1.0}
    assert all((strategy.weights[name] == fresh[name.rpartition(".")[2]]).all() for name in stay)
    assert "observed" not in grid.received[1][0].content


def test_icarl_knows_classes_by_the_means_that_devices_send_at_the_server_and_on_devices():
    """Nothing of a device is its own here, so that devices answer as the server does; by its outputs the model answers otherwise."""
    found = {}
    for where in ("server", "devices"):
        world, seen = tiny_world("learner.method=icarl", "learner.buffer_size=20", f"evaluate_on={where}"), []
        strategy = play(world, observe=lambda record, _, seen=seen: seen.append(record), evaluates=True)
        found[where] = [record.accuracy for record in seen if record.round and record.accuracy is not None]
    means, by_outputs = strategy.model.beside.of_method["means"], make_evaluator(world)(strategy.weights).accuracy
    assert means.any(1).all() and len(found["server"]) > 1
    assert all(map(np.array_equal, found["server"], found["devices"]))
    assert (found["server"][-1] != by_outputs).any()
