"""Who decides which weights exist: what devices report, what the server makes of it, and that both sides end with the same masks."""

from itertools import combinations

import numpy as np
import pytest
from worlds import LOSSLESS, RecordingGrid, assert_same_arrays, play, tiny_world

from server.global_model.broadcast import Broadcast
from server.global_model.masks import LocalMasks, diversity
from sparcl_core import codec
from sparcl_core.learner import Learner
from sparcl_core.sparsity import tdm
from sparcl_core.sparsity.masks import count_active, initial_masks, num_active
from sparcl_core.sparsity.tdm import TDMConfig
from sparcl_core.wire.protocol import Report

SIZES = {"conv2.weight": 576, "fc.weight": 2048}
EXACT = {name: num_active(size, 0.9) for name, size in SIZES.items()}


def reports(grid: RecordingGrid, server_round: int) -> dict[int, Report]:
    wires = {m.metadata.src_node_id - 1: m.content["report"] for m in grid.received[server_round]}
    return {device: Report.from_wire(wire["control"], wire["delta"], wire["masks"]) for device, wire in sorted(wires.items())}


def copied(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: value.copy() for name, value in arrays.items()}


# -- diversity


def test_diversity_by_hand():
    """Four places. A holds 0 and 1, B 1 and 2, C 0 and 1: the union has 3 of 4; A-B and B-C differ in 2 places, A-C in none: 4 / 3 of 4."""
    masks = [{"w": np.array(own, dtype=bool)} for own in ([1, 1, 0, 0], [0, 1, 1, 0], [1, 1, 0, 0])]
    assert diversity(masks).union_density == 3 / 4
    assert diversity(masks).distance == pytest.approx(4 / 3 / 4)
    assert (diversity(masks[:1]).union_density, diversity(masks[:1]).distance) == (1 / 2, 0)


@pytest.mark.parametrize("count", [1, 2, 5, 8])
def test_diversity_against_all_pairs(count):
    rng = np.random.default_rng(count)
    masks = [{"a": rng.random((5, 7)) < 0.3, "b": rng.random(11) < 0.6} for _ in range(count)]
    flat = [np.concatenate([own["a"].ravel(), own["b"]]) for own in masks]
    pairs = [np.mean(one != other) for one, other in combinations(flat, 2)]
    found = diversity(masks)
    assert found.union_density == pytest.approx(np.any(flat, axis=0).mean(), rel=1e-12)
    assert found.distance == pytest.approx(np.mean(pairs) if pairs else 0, rel=1e-12)


def test_masks_drawn_apart_cover_almost_everything():
    """Eight masks of density 0.1: 1 - 0.9^8 = 0.570 of 40,000 places are held by some, two masks differ in 2 * 0.1 * 0.9 = 0.18 of them.
    Four standard deviations of the first are 0.0099; the second varies less."""
    found = diversity([initial_masks({"w": (200, 200)}, 0.9, seed) for seed in range(8)])
    assert abs(found.union_density - (1 - 0.9**8)) < 0.01 and abs(found.distance - 0.18) < 0.005


def test_without_masks_there_is_no_diversity():
    for masks in ([], [{}]):
        with pytest.raises(ValueError, match="no masks to compare"):
            diversity(masks)


# -- shared: by importance or by votes


def test_votes_by_hand():
    """Ten active of 20, s = 0.5, p_intra = 0.2: four go. Place 3 has all votes, 8 and 1 half; then 5, of the five with a quarter, has the
    smallest |w|. Weights without a vote stay, however small."""
    mask = np.arange(20) < 10
    votes, weights = np.zeros(20), np.full(20, 1.0)
    votes[[3, 8, 1, 0, 2, 4, 5, 6]] = [1, 0.5, 0.5, 0.25, 0.25, 0.25, 0.25, 0.25]
    weights[[0, 2, 4, 5, 6]] = [0.5, -0.4, 0.3, -0.2, 0.9]
    weights[[7, 9]] = 0.001
    weights[[1, 8]] = 50
    config = TDMConfig(p_intra=0.2)
    update = tdm.plan_by_votes({"w": mask}, {"w": weights}, {"w": votes}, config=config, sparsity=0.5, number=4)
    assert update.dropped["w"].tolist() == [1, 3, 5, 8]
    assert (update.number, update.what, update.device) == (4, "adapt", None)


def test_votes_that_tie_in_everything_drop_the_higher_index():
    """As everywhere: of equals the lower flat index stays. Nobody voted and all weights are equal: of six the last two go."""
    update = tdm.plan_by_votes(
        {"w": np.ones(6, bool)}, {"w": np.ones(6)}, {"w": np.zeros(6)}, config=TDMConfig(p_intra=0.33), sparsity=0.0, number=1
    )
    assert update.dropped["w"].tolist() == [4, 5]


@pytest.mark.parametrize("form", ["f64", "f32", "u8", "u4", "votes"])
def test_what_is_dropped_follows_from_what_devices_sent(form):
    """Off the wire, by hand: the mean of the reports weighted by n_k, and then the lowest |w| + importance, or the most votes, go."""
    world = tiny_world("stream.tasks=1", f"wire.importance={form}", "tdm.p_intra=0.05")
    grid, expected, updates = RecordingGrid(world), {}, 0

    def observe(record, strategy):
        nonlocal expected, updates
        server_round, masks = record.round, strategy.masks
        if expected:
            payloads = [m.content["instruction"]["payloads"] for m in grid.sent[server_round]][0]
            (step, _) = payloads
            arrived = codec.decode(step, strategy.model.layout, expected["masks"])
            assert arrived.kind == "adapt"
            for name, places in expected["dropped"].items():
                assert np.array_equal(arrived.tensors[name].places, places), (server_round, name)
            updates += 1
        expected = {}
        if server_round in (1, 2):
            told = reports(grid, server_round)
            total = sum(report.samples for report in told.values())
            payloads = {device: codec.decode(report.masks, strategy.model.layout, masks) for device, report in told.items()}
            assert {payload.kind for payload in payloads.values()} == {"votes" if form == "votes" else "importance"}
            dropped = {}
            for name, mask in masks.items():
                mean = np.zeros(mask.size)
                for device, payload in payloads.items():
                    own = payload.tensors[name]
                    values = np.ones(own.places.size) if form == "votes" else own.values.astype(np.float64)
                    mean[own.places] += told[device].samples / total * values
                sizes = np.abs(strategy.weights[name]).reshape(-1).astype(np.float64)
                gone = int(mask.sum()) - num_active(mask.size, 0.95)
                # of equals the lower index stays
                keys = {j: (-mean[j], sizes[j], -j) if form == "votes" else (mean[j] + sizes[j], -j) for j in np.flatnonzero(mask)}
                dropped[name] = np.array(sorted(sorted(keys, key=keys.__getitem__)[:gone]))
            expected = {"masks": copied(masks), "dropped": dropped}

    strategy = play(world, grid, observe)
    assert updates == 2 and count_active(strategy.masks) == EXACT


# -- local: every device adapts its own


class Watched:
    """A run with masks of devices' own, and what happened to them: by round and device what each trained with, what the server
    redrew, the union, and weights and masks before and after it was thinned."""

    def __init__(self, monkeypatch, world, **grid):
        self.trained, self.redrawn, self.unions, self.before, self.after, self.held = {}, {}, {}, {}, {}, {}
        now, train, read, thin = [1], Learner.train, LocalMasks.read, LocalMasks.after_round

        def watched_train(learner, state, masks, data, memory, epochs, device):
            self.trained[now[0], device] = copied(masks)
            return train(learner, state, masks, data, memory, epochs=epochs, device=device)

        def watched_read(masking, payload, device, server_round, base):
            found = read(masking, payload, device, server_round, base)
            if payload is not None:
                self.redrawn[server_round, device] = found.masks
            return found

        def watched_thin(masking, updates, told, weights, broadcast):
            own = [broadcast.masks, *(update.masks for update in updates)]
            self.unions[now[0]] = {name: np.any([masks[name] for masks in own], axis=0) for name in broadcast.masks}
            self.before[now[0]] = copied(weights)
            thin(masking, updates, told, weights, broadcast)
            self.after[now[0]] = copied(weights)

        monkeypatch.setattr(Learner, "train", watched_train)
        monkeypatch.setattr(LocalMasks, "read", watched_read)
        monkeypatch.setattr(LocalMasks, "after_round", watched_thin)
        self.grid, self.masks = RecordingGrid(world, **grid), {}

        def observe(record, strategy):
            self.masks[record.round] = copied(strategy.masks)
            if record.round:
                for message in self.grid.sent[record.round]:
                    number = message.metadata.dst_node_id - 1
                    device = self.grid.device(number)
                    assert_same_arrays(device.masks, self.masks[record.round - 1])  # the server's, of the beginning of the round
                    for name, mask in device.masks.items():
                        assert not device.base[name][~mask].any()
                for state in (strategy.weights, strategy.model.broadcast.held):
                    for name, mask in strategy.masks.items():
                        assert not state[name][~mask].any(), f"round {record.round}: {name} has weight where there is none"
                assert record.diversity == strategy.model.diversity
            now[0] = record.round + 1

        self.strategy = play(world, self.grid, observe)


@pytest.mark.parametrize(
    "overrides",
    [(), ("stream.devices=5", "federation.cohort_size=2"), LOSSLESS, ("wire.up_share=0.2", "aggregation.unheld=zero")],
    ids=["all", "cohort", "lossless", "top-k"],
)
def test_local_masks_round_by_round(monkeypatch, overrides):
    """Exactly as sparse after every round, growth at a task's start included; the server redraws what each device trained with."""
    seen = Watched(monkeypatch, tiny_world("federation.mask=local", "tdm.p_inter=0.05", *overrides))
    assert {row.outcome for row in seen.strategy.ledger.rows} <= {"ok", "sat-out"}
    assert all(count_active(seen.masks[server_round]) == EXACT for server_round in range(9))
    for key, masks in seen.redrawn.items():
        assert_same_arrays(masks, seen.trained[key])
    silent = [key for key in seen.trained if key not in seen.redrawn]
    assert seen.redrawn and silent  # both occur: a mask rests in a device's first and last session
    for server_round, device in silent:
        assert_same_arrays(seen.trained[server_round, device], seen.masks[server_round - 1])
    grown = [masks for masks in seen.redrawn.values() if count_active(masks) != EXACT]
    assert grown and all(count_active(masks) == {"conv2.weight": 58 + 29, "fc.weight": 205 + 102} for masks in grown)

    for server_round, union in seen.unions.items():
        own = {device: masks for (number, device), masks in seen.trained.items() if number == server_round}
        flat = [np.concatenate([own[device][name].ravel() for name in SIZES]) for device in sorted(own)]
        for name, size in SIZES.items():
            everybody = np.any([seen.masks[server_round - 1][name], *(masks[name] for masks in own.values())], axis=0)
            assert np.array_equal(union[name], everybody)
            sizes = np.abs(seen.before[server_round][name]).ravel()
            kept = sorted(np.flatnonzero(everybody), key=lambda j, s=sizes: (-s[j], j))[: num_active(size, 0.9)]
            assert np.array_equal(np.flatnonzero(seen.masks[server_round][name]), np.sort(kept))
            where = seen.masks[server_round][name]
            assert np.array_equal(seen.after[server_round][name], np.where(where, seen.before[server_round][name], 0))
        assert len(flat) == len(seen.grid.sent[server_round])
    pairs = [np.mean(one != other) for one, other in combinations(flat, 2)]  # of the last round
    assert seen.strategy.model.diversity.union_density == pytest.approx(np.any(flat, axis=0).mean())
    assert seen.strategy.model.diversity.distance == pytest.approx(np.mean(pairs))


def test_shared_masks_do_not_differ():
    found = []
    play(tiny_world("stream.tasks=1"), observe=lambda record, strategy: found.append(record.diversity))
    assert found[0] is None
    assert all((own.union_density, own.distance) == (pytest.approx(263 / 2624), 0) for own in found[1:])


FORGED = {
    "of another kind": ("votes", lambda places: places, 0, "a mask update must cover the masked tensors; this is 'votes'"),
    "as from a server": ("drop", lambda places: places, 0, "this is 'drop'"),
    "with a tensor left out": ("adapt", lambda places: {"fc.weight": places["fc.weight"]}, 0, "must cover the masked tensors"),
    "against other masks": ("adapt", lambda places: places, 1, "against version 2, masks 1"),
}


@pytest.mark.parametrize("forged", FORGED.values(), ids=FORGED)
def test_a_forged_mask_update_is_rejected(forged):
    """Round 2, device 1; the next round brings the whole model, and the run goes on."""
    kind, change, ahead, message = forged
    world, held = tiny_world("stream.tasks=1", "federation.mask=local"), []

    def tamper(server_round, replies):
        for reply in replies:
            if (server_round, reply.metadata.src_node_id) == (2, 2):
                wire, (strategy,) = reply.content["report"], held
                broadcast = strategy.model.broadcast
                true = codec.decode(wire["masks"], strategy.model.layout, strategy.masks)
                places = change({name: tensor.places for name, tensor in true.tensors.items()})
                versions = (broadcast.version, broadcast.mask_version + ahead)
                wire["masks"] = codec.encode_places(kind, strategy.model.layout, places, strategy.masks, versions=versions).data
        return replies

    def observe(record, strategy):
        held[:] = [strategy]
        assert count_active(strategy.masks) == EXACT

    ledger = play(world, RecordingGrid(world, tamper), observe).ledger
    (row,) = [row for row in ledger.rows if row.outcome != "ok"]
    assert (row.round, row.device, row.phase, row.outcome) == (2, 1, "upload", "rejected") and message in row.reason
    assert row.unread_bytes == row.up_bytes > 0


def test_a_mask_update_that_cannot_be_redone_is_rejected():
    """Everything dropped under the name of a growth: what is left could not hold a single value of the update."""
    world, seen = tiny_world("federation.mask=local"), {}

    def tamper(server_round, replies):
        for reply in replies:
            if (server_round, reply.metadata.src_node_id) == (2, 2):
                wire, strategy = reply.content["report"], seen["strategy"]
                true = codec.decode(wire["masks"], strategy.model.layout, strategy.masks)
                everything = {name: np.flatnonzero(strategy.masks[name]) for name in true.tensors}
                versions = (strategy.model.broadcast.version, strategy.model.broadcast.mask_version)
                wire["masks"] = codec.encode_places("grow", strategy.model.layout, everything, strategy.masks, versions=versions).data
        return replies

    ledger = play(world, RecordingGrid(world, tamper), lambda record, strategy: seen.update(strategy=strategy)).ledger
    (row,) = [row for row in ledger.rows if row.outcome == "rejected"]
    assert (row.round, row.device) == (2, 1)


# -- the optimiser's state


@pytest.mark.parametrize(
    "overrides",
    [(), ("federation.mask=local",), ("server_optimizer.name=adam", "server_optimizer.lr=0.05")],
    ids=["shared", "local", "adam"],
)
def test_what_the_server_remembers_of_a_dropped_weight_is_forgotten(monkeypatch, overrides):
    """Also of one that the same update grows back, which the masks alone do not show: looked at when the next version goes out."""
    world = tiny_world("server_optimizer.name=momentum", "server_optimizer.lr=0.5", "tdm.p_intra=0.05", *overrides)
    update_masks, publish, running, dropped, regrown = Broadcast.update_masks, Broadcast.publish, [], {}, []

    def watched_update(broadcast, weights, update, *settings):
        dropped.update(update.dropped)
        update_masks(broadcast, weights, update, *settings)

    def watched_publish(broadcast, weights):
        for name, places in dropped.items():
            (strategy,) = running
            assert not strategy.model.optimizer.first[name].reshape(-1)[places].any()
            regrown.append(np.count_nonzero(broadcast.masks[name].reshape(-1)[places]))
        dropped.clear()
        publish(broadcast, weights)

    def observe(record, strategy):
        running[:], optimizer = [strategy], strategy.model.optimizer
        for name, mask in strategy.masks.items():
            if record.round:
                assert optimizer.first[name][mask].any() and not optimizer.first[name][~mask].any()
                if optimizer.second:
                    assert (optimizer.second[name][~mask] == optimizer.config.tau**2).all()
                    assert (optimizer.second[name][mask] != optimizer.config.tau**2).any()

    monkeypatch.setattr(Broadcast, "update_masks", watched_update)
    monkeypatch.setattr(Broadcast, "publish", watched_publish)
    play(world, observe=observe)
    assert sum(regrown) > 0 or "federation.mask=local" in overrides
