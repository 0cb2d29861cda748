"""RigL and SET in a fleet: what devices name, what the server makes of it, what is sent, and what it takes; and FedDST."""

import numpy as np
import oracles
import pytest
from worlds import RecordingGrid, assert_same_arrays, kind_of, play, tiny_world

from sparcl_core import codec
from sparcl_core.learner import Learner
from sparcl_core.sparsity.masks import count_active, num_active
from sparcl_core.wire.protocol import Report

SIZES = {"conv2.weight": 576, "fc.weight": 2048}
EXACT = {name: num_active(size, 0.9) for name, size in SIZES.items()}
RIGL = ("stream.tasks=1", "masks.scheme=rigl", "masks.stage_epochs=1", "dgm.enabled=false", "ddr.enabled=false")


def reports(grid: RecordingGrid, server_round: int) -> dict[int, Report]:
    wires = {m.metadata.src_node_id - 1: m.content["report"] for m in grid.received[server_round]}
    return {device: Report.from_wire(wire["control"], wire["delta"], wire["masks"]) for device, wire in sorted(wires.items())}


def payloads(grid: RecordingGrid, server_round: int) -> list[bytes]:
    (first, *others) = [m.content["instruction"]["payloads"] for m in grid.sent[server_round]]
    assert all(other == first for other in others)
    return first


def test_shared_masks_round_by_round():
    """Four rounds of one epoch; T_end is 3 epochs. Off the wire: devices report before the updates of rounds 2 and 3, each naming k places;
    the server drops its k smallest weights, grows the most named places, and sends both."""
    world = tiny_world(*RIGL)
    grid, before, updates = RecordingGrid(world), {}, []

    def observe(record, strategy):
        assert count_active(strategy.masks) == EXACT
        for name, mask in strategy.masks.items():
            assert not strategy.weights[name][~mask].any() and not strategy.model.broadcast.held[name][~mask].any()
        for device in range(3) if record.round else ():
            assert_same_arrays(grid.device(device).masks, strategy.masks)
        if record.round in (2, 3):
            updates.append(record.round)
            drop, add, delta = payloads(grid, record.round)
            assert (kind_of(drop), kind_of(add), kind_of(delta)) == ("drop", "add", "delta")
            dropped = codec.decode(drop, strategy.model.layout, before["masks"]).tensors
            for name, mask in before["masks"].items():
                size = np.abs(before["weights"][name].reshape(-1).astype(float))
                k = int(oracles.rigl_share(record.round - 1, 4, 0.3, 0.75) * EXACT[name] + 0.5)
                order = sorted(np.flatnonzero(mask), key=lambda j, size=size: (size[j], -j))
                assert dropped[name].places.tolist() == sorted(order[:k])
                kept = mask.copy()
                kept.reshape(-1)[order[:k]] = False
                grown = np.flatnonzero(strategy.masks[name] & ~kept)
                votes = before["votes"][name]
                assert grown.size == k and not kept.reshape(-1)[grown].any()
                others = np.setdiff1d(np.flatnonzero(~kept), grown)
                assert votes[grown].min() >= votes[others].max()
                assert all(before["named"][device][name] == k for device in range(3))
        told = reports(grid, record.round) if record.round else {}
        assert [bool(report.masks) for report in told.values()] == [record.round in (1, 2)] * len(told)
        if record.round in (1, 2):
            votes, named = {name: np.zeros(size) for name, size in SIZES.items()}, {}
            for device, report in told.items():
                found = codec.decode(report.masks, strategy.model.layout, strategy.masks)
                assert found.kind == "candidates"
                named[device] = {name: tensor.places.size for name, tensor in found.tensors.items()}
                for name, tensor in found.tensors.items():
                    votes[name][tensor.places] += 1
            weights = {name: strategy.weights[name].copy() for name in SIZES}
            before.update(masks=dict(strategy.masks), weights=weights, votes=votes, named=named)

    play(world, grid, observe)
    assert updates == [2, 3]


def test_what_naming_places_costs():
    """Bytes are those of the report's payload; FLOPs a pass over one batch with the gradients of all weights; memory those of a layer."""
    world = tiny_world(*RIGL)
    grid = RecordingGrid(world)
    ledger = play(world, grid).ledger
    whole = play(tiny_world(*RIGL, "masks.batches=0")).ledger
    learner = Learner(world.experiment.method, world.data.inputs, 4, 0)
    cost = 0
    for layer in learner.layers:
        active = EXACT.get(layer.name, layer.weights)
        cost += 2 * layer.uses * (active + (0 if layer.first else active) + layer.weights)
    for row, other in zip(ledger.rows, whole.rows, strict=True):
        if row.phase == "upload":
            report = reports(grid, row.round)[row.device]
            assert row.masks_bytes == len(report.masks) and (row.masks_bytes > 0) == (row.round in (1, 2))
        if row.phase == "train":
            ranks = row.round in (1, 2)
            assert (row.importance_flops > 0) == ranks and row.importance_flops % cost == 0
            assert row.importance_flops <= cost * 12  # one batch of 4 beside two draws
            assert row.memory_bytes - other.memory_bytes == (4 * (2048 - 2624) if ranks else 0)
    first = next(row for row in ledger.rows if row.phase == "train")
    resting = next(row for row in ledger.rows if row.phase == "train" and row.round == 4 and row.device == first.device)
    assert first.memory_bytes - resting.memory_bytes == 4 * (2048 - 263)  # instead of the gradients of the active weights


def test_with_masks_of_their_own_devices_do_it_by_themselves(monkeypatch):
    """FedDST: the server knows every device's mask from what it flipped; counts stay exact on both sides."""
    world, trained, redrawn = tiny_world(*RIGL, "federation.mask=local"), {}, 0
    train = Learner.train

    def watched(learner, state, masks, data, memory, *, epochs, device):
        trained[device] = {name: mask.copy() for name, mask in masks.items()}
        assert count_active(masks) == EXACT and all(not state[name][~mask].any() for name, mask in masks.items())
        return train(learner, state, masks, data, memory, epochs=epochs, device=device)

    monkeypatch.setattr(Learner, "train", watched)
    grid, before = RecordingGrid(world), {}

    def observe(record, strategy):
        nonlocal redrawn
        assert count_active(strategy.masks) == EXACT
        for device, report in (reports(grid, record.round) if record.round else {}).items():
            assert bool(report.masks) == (record.round in (2, 3))  # by the device's own epochs: 1 and 2 of T_end = 3
            if report.masks:
                found = codec.decode(report.masks, strategy.model.layout, before["masks"])
                assert found.kind == "flip"
                for name, tensor in found.tensors.items():
                    own = before["masks"][name].copy()
                    own.reshape(-1)[tensor.places] ^= True
                    assert np.array_equal(own, trained[device][name])
                    redrawn += tensor.places.size
        before["masks"] = dict(strategy.masks)

    strategy = play(world, grid, observe)
    assert redrawn and {row.outcome for row in strategy.ledger.rows} == {"ok"}


def test_a_flip_that_changes_the_count_is_rejected():
    world, held = tiny_world(*RIGL, "federation.mask=local"), []

    def tamper(server_round, replies):
        for reply in replies:
            if (server_round, reply.metadata.src_node_id) == (2, 2):
                wire, (strategy,) = reply.content["report"], held
                true = codec.decode(wire["masks"], strategy.model.layout, strategy.masks)
                fewer = {name: tensor.places[1:] for name, tensor in true.tensors.items()}
                versions = (true.model_version, true.mask_version)
                wire["masks"] = codec.encode_places("flip", strategy.model.layout, fewer, strategy.masks, versions=versions).data
        return replies

    def observe(record, strategy):
        held[:] = [strategy]
        assert count_active(strategy.masks) == EXACT

    ledger = play(world, RecordingGrid(world, tamper), observe).ledger
    (row,) = [row for row in ledger.rows if row.outcome != "ok"]
    assert (row.round, row.device, row.outcome) == (2, 1, "rejected") and "grows another number of weights of conv2.weight" in row.reason


@pytest.mark.parametrize("mask", ["shared", "local"])
def test_set_asks_devices_nothing(mask):
    """The server drops by its own weights, and the growth is drawn: a mask update down, or up where masks are the devices' own."""
    world = tiny_world("stream.tasks=1", "masks.scheme=set", "masks.stage_epochs=1", f"federation.mask={mask}")
    grid = RecordingGrid(world)
    strategy = play(world, grid, lambda record, strategy: count_active(strategy.masks) == EXACT or pytest.fail("another count"))
    for server_round in range(1, 5):
        told = reports(grid, server_round).values()
        if mask == "shared":
            assert not any(report.masks for report in told)
            assert [kind_of(payload) for payload in payloads(grid, server_round)] == (["adapt", "delta"] if server_round > 1 else ["whole"])
        else:
            assert all(kind_of(report.masks) == "adapt" for report in told if report.masks)
            assert all(report.masks for report in told) == (server_round > 1)
    assert not any(row.importance_flops for row in strategy.ledger.rows)


@pytest.mark.parametrize("initial", ["random", "magnitude"])
def test_static_masks_stay(initial):
    world, seen = tiny_world("masks.scheme=static", f"masks.initial={initial}", "stream.tasks=1"), []
    strategy = play(world, observe=lambda record, strategy: seen.append(strategy.masks))
    assert all(masks is seen[0] for masks in seen) and count_active(seen[0]) == EXACT
    assert not any(row.importance_flops or row.masks_bytes for row in strategy.ledger.rows if row.phase != "download")


def test_a_scheme_of_somebody_elses_is_named_by_its_path():
    """It exchanges the same share each time, where RigL's falls."""
    exchanged = {}
    for scheme in ("rigl", "own_schemes:Steady"):
        world, seen = tiny_world(*RIGL, f"masks.scheme={scheme}"), []
        play(world, observe=lambda record, strategy, seen=seen: seen.append(strategy.masks))
        dropped = [sum(np.count_nonzero(a[name] & ~b[name]) for name in a) for a, b in zip(seen, seen[1:], strict=False)]
        exchanged[scheme] = [count for count in dropped if count]
    assert exchanged["rigl"][0] > 1.5 * exchanged["rigl"][1]
    assert len(exchanged["own_schemes:Steady"]) == 2 and min(exchanged["own_schemes:Steady"]) > 60  # of 78, some of which come back at once
