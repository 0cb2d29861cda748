"""SNIP in a fleet: what devices of the first cohort are asked, what they answer, what it costs, and what the model begins with."""

from dataclasses import replace

import numpy as np
import pytest
from worlds import RecordingGrid, play, tiny_world, toy_fleet

from client.streams.stream import Streams
from server.errors import FleetError
from simulations.build import make_strategy
from sparcl_core import codec
from sparcl_core.learner import Learner
from sparcl_core.networks.models import initial_weights
from sparcl_core.sparsity.initial import highest_masks
from sparcl_core.sparsity.masks import count_active, num_active
from sparcl_core.sparsity.snip import chosen_by_votes
from sparcl_core.wire.protocol import Report

SNIP = ("stream.tasks=1", "masks.initial=snip", "masks.scheme=static")
SIZES = {"conv2.weight": 576, "fc.weight": 2048}


class Asking(RecordingGrid):
    """Keeps what was asked before the first round and what came back; `tamper_answers`: replies -> replies."""

    def __init__(self, world, tamper_answers=lambda replies: replies):
        super().__init__(world)
        self.asked, self.answers, self.tamper_answers = [], [], tamper_answers

    def stream(self, messages, timeout=None):
        messages = list(messages)
        replies = list(super().stream(messages, timeout))
        if messages and messages[0].metadata.message_type == "query.sensitivity":
            assert not self.asked, "devices are asked once"
            self.asked, self.answers = messages, self.tamper_answers(replies)
            return self.answers
        return replies


def reports(grid: Asking) -> dict[int, Report]:
    wires = {m.metadata.src_node_id - 1: m.content["report"] for m in grid.answers if m.has_content()}
    return {device: Report.from_wire(wire["control"], wire["delta"], wire["masks"]) for device, wire in sorted(wires.items())}


@pytest.mark.parametrize("densities", ["uniform", "erk", "global"])
def test_the_model_begins_with_what_most_devices_are_sensitive_to(densities):
    """What each names follows from its own data on the dense network; of those the most named are kept, at their initial weights."""
    world = tiny_world(*SNIP, f"masks.densities={densities}")
    grid, held = Asking(world), []
    play(world, grid, lambda record, strategy: held.append((strategy, strategy.masks)))
    e = world.experiment
    learner = Learner(e.method, world.data.inputs, e.federation.task_epochs, e.seed)
    weights, votes = initial_weights(learner.model, e.seed), {}
    assert isinstance(world.streams, Streams) and len(grid.asked) == 3
    for device, report in reports(grid).items():
        stream = world.streams[device]
        data = replace(stream.task(0), task=0)
        memory = learner.new_memory(sum(stream.sizes)).in_task(len(data.y))
        scores, _ = learner.sensitivity(weights, data, memory, device=device)
        wanted = highest_masks(scores, e.masks, e.sparsity)
        named = codec.decode(report.masks, learner.layout, wanted)
        assert named.kind == "keep" and not report.delta
        for name, mask in wanted.items():
            assert np.array_equal(named.tensors[name].places, np.flatnonzero(mask))
            votes[name] = votes.get(name, 0) + mask.astype(float)
    (strategy, first), (_, last) = held[1], held[-1]
    expected = chosen_by_votes(votes, e.masks, sparsity=e.sparsity, seed=e.seed)
    for name, mask in expected.items():
        assert np.array_equal(first[name], mask) and np.array_equal(last[name], mask)
        assert not strategy.weights[name][~mask].any()
    if densities == "uniform":
        assert count_active(first) == {name: num_active(size, 0.9) for name, size in SIZES.items()}
    assert sum(count_active(first).values()) == 263 - (densities != "uniform")  # 57.6 and 204.8, or 262.4
    assert {row.outcome for row in strategy.ledger.rows} == {"ok"}


def test_what_the_question_costs():
    """Down the control alone (13 bytes: the dense network is drawn from the seed); up the places, coded over all weights. Each device
    computes a dense pass over one batch, and needs the dense network and its gradients for it."""
    world = tiny_world(*SNIP)
    grid = Asking(world)
    ledger = play(world, grid).ledger
    learner = Learner(world.experiment.method, world.data.inputs, 4, 0)
    first = next(layer for layer in learner.layers if layer.first)
    dense = sum(6 * layer.macs for layer in learner.layers) - 2 * first.macs
    told = reports(grid)
    for device, report in told.items():
        rows = [row for row in ledger.rows if row.device == device and row.round == 1]
        asked = rows[:3]
        assert [row.phase for row in asked] == ["download", "sensitivity", "upload"]
        assert (asked[0].down_bytes, asked[0].header_bytes) == (13, 13)
        assert asked[2].up_bytes == len(report.control) + len(report.masks) and asked[2].masks_bytes == len(report.masks)
        assert len(report.masks) < 0.5 * (SIZES["conv2.weight"] + SIZES["fc.weight"]) / 8 + 80  # a tenth of them, and heads
        batch = min(4, world.streams[device].sizes[0])
        assert asked[1].importance_flops == batch * dense and asked[1].dense_flops == 0
        weights = sum(learner.held.parameters.values())
        assert asked[1].memory_bytes == 2 * 4 * weights + learner.held.buffer_bytes + 4 * activations(world)
        assert [row.time for row in asked] == sorted(row.time for row in asked)
    trained = [row for row in ledger.rows if row.phase == "train" and row.round == 1]
    slowest = max(sum(row.seconds for row in [r for r in ledger.rows if r.device == d and r.round == 1][:3]) for d in told)
    assert min(row.time for row in trained) > slowest  # the clock has waited for all of them


def activations(world) -> int:
    return make_strategy(world).federation.cohorts.workload.moved


def test_a_device_that_cannot_hold_the_dense_network_is_not_asked(tmp_path):
    fleet = toy_fleet(tmp_path, memory_bytes=[1e6, 100_000, 1e6])
    world = tiny_world(*SNIP, "sparsity=0.95", "learner.method=sgd", *fleet)
    needed = make_strategy(world).federation.cohorts.workload.dense_memory
    fleet = toy_fleet(tmp_path, memory_bytes=[1e6, needed - 1, needed])
    world = tiny_world(*SNIP, "sparsity=0.95", "learner.method=sgd", "budget.memory=ignore", *fleet)
    play(world, grid := Asking(world))
    assert len(grid.asked) == 3  # who ignores memory asks all
    world = tiny_world(*SNIP, "sparsity=0.95", "learner.method=sgd", "budget.memory=fit", *fleet)
    play(world, grid := Asking(world))
    assert [m.metadata.dst_node_id - 1 for m in grid.asked] == [0, 2]


def forged(change):
    def tamper(replies):
        for reply in replies:
            if reply.metadata.src_node_id == 2:
                change(reply)
        return replies

    return tamper


def cut(reply):
    reply.content["report"]["masks"] = reply.content["report"]["masks"][:-3]


def test_an_answer_that_cannot_be_used_is_rejected_and_the_others_decide():
    world = tiny_world(*SNIP)
    strategy = play(world, Asking(world, forged(cut)))
    (row,) = [row for row in strategy.ledger.rows if row.outcome != "ok"]
    assert (row.device, row.phase, row.outcome) == (1, "upload", "rejected") and "checksum" in row.reason
    assert count_active(strategy.masks) == {"conv2.weight": 58, "fc.weight": 205}


def test_who_names_more_places_than_there_are_to_keep_is_rejected():
    world = tiny_world(*SNIP)
    learner = Learner(world.experiment.method, world.data.inputs, 4, 0)

    def greedy(reply):
        everything = {name: np.arange(size) for name, size in SIZES.items()}
        masks = {name: np.zeros(learner.layout.shapes[name], bool) for name in SIZES}
        named = codec.encode_places("keep", learner.layout, everything, masks, versions=(0, 0))
        reply.content["report"]["masks"] = named.data

    strategy = play(world, Asking(world, forged(greedy)))
    (row,) = [row for row in strategy.ledger.rows if row.outcome != "ok"]
    assert row.device == 1 and "would keep {'conv2.weight': 576, 'fc.weight': 2048} weights" in row.reason


def test_without_any_answer_the_run_ends_with_the_reason():
    world = tiny_world(*SNIP)

    def nothing(replies):
        for reply in replies:
            cut(reply)
        return replies

    with pytest.raises(FleetError, match="no device could say which weights to keep: device 0, round 1.*checksum"):
        play(world, Asking(world, nothing))


def test_flowers_own_loop_asks_nobody_and_says_so():
    strategy = make_strategy(tiny_world(*SNIP))
    with pytest.raises(TypeError, match="masks.initial is 'snip': Flower's loop asks nobody before its first round"):
        strategy.configure_train(1, None, None, None)
