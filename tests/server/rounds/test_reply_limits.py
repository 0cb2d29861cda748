"""What a round can have been at most: no honest device is beyond it, whatever its settings, and nothing is booked of one that is."""

import tracemalloc
from dataclasses import fields

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_learning import ANYWHERE, NEEDS
from worlds import BATCHNORM, RecordingGrid, play, tiny_world

from server.rounds.registration import enrol
from server.rounds.replies import payload_bytes
from server.rounds.reply_limits import most_reply_bytes
from simulations.build import make_roster, make_strategy
from simulations.engine.adapter import identify_process
from sparcl_core import codec
from sparcl_core.codec import Layout, SparseTensor
from sparcl_core.costs.flops import Flops
from sparcl_core.wire.auxiliary import Channel
from sparcl_core.wire.protocol import Report

SHORT = "stream.tasks=1"
SETTINGS = st.fixed_dictionaries(
    {
        "learner.method": st.sampled_from(sorted(ANYWHERE)),
        "learner.batch_size": st.sampled_from([1, 3, 64]),
        "learner.joint_forward": st.sampled_from(["true", "false"]),
        "learner.buffer_share": st.sampled_from([0.01, 0.5, 1.0]),
        "tdm.enabled": st.sampled_from(["true", "false"]),
        "ddr.enabled": st.sampled_from(["true", "false"]),
        "dgm.enabled": st.sampled_from(["true", "false"]),
        "dgm.interval": st.sampled_from([1, 5]),
        "masks.scheme": st.sampled_from(["tdm", "rigl", "set"]),
        "masks.initial": st.sampled_from(["random", "snip"]),
        "masks.batches": st.sampled_from([0, 1]),
        "federation.mask": st.sampled_from(["shared", "local"]),
        "federation.local_epochs": st.sampled_from([1, 3]),
        "sparsity": st.sampled_from([0, 0.3, 0.9]),
        "stream.boundaries": st.sampled_from(["known", "detected"]),
        "model.dtype": st.sampled_from(["float32", "float64"]),
    }
)


def outcomes(strategy) -> set[str]:
    return {row.outcome for row in strategy.ledger.rows}


@given(SETTINGS)
@settings(max_examples=6, deadline=None, derandomize=True)
def test_no_honest_device_is_beyond_the_bounds(chosen):
    if own := NEEDS.get(chosen["learner.method"]):
        chosen = chosen | own | {"masks.initial": "random", "federation.mask": "shared", "stream.boundaries": "known"}
    if chosen["sparsity"] == 0:
        chosen = chosen | {"federation.mask": "shared"}
    world = tiny_world(SHORT, "stream.devices=2", *(f"{key}={value}" for key, value in chosen.items()))
    assert outcomes(play(world)) <= {"ok", "clipped"}


@pytest.mark.parametrize("batchnorm", ["global", "local", "recompute"])
def test_nor_with_batch_statistics(batchnorm):
    world = tiny_world(*BATCHNORM, "tdm.enabled=false", "federation.rounds_per_task=1", f"federation.batchnorm={batchnorm}")
    assert outcomes(play(world)) == {"ok"}


def test_impossible_measures_do_not_move_the_clock_and_the_transfers_are_paid():
    """Of what a device says that it computed nothing is booked; what was sent both ways is."""

    def tamper(server_round, replies):
        for reply in replies:
            if reply.metadata.src_node_id == 2:
                reply.content["measures"]["flops.train_dense"] = 2**59
        return replies

    def missing(server_round, replies):
        return [reply for reply in replies if reply.metadata.src_node_id != 2]

    world = tiny_world(SHORT)
    forged, without = (play(world, RecordingGrid(world, alter)) for alter in (tamper, missing))
    assert forged.federation.now == pytest.approx(without.federation.now, rel=0.2)
    own = [(row.phase, row.outcome) for row in forged.ledger.rows if (row.round, row.device) == (2, 1)]
    assert own == [("download", "ok"), ("upload", "rejected")]
    assert all(row.seconds > 0 and row.joules > 0 for row in forged.ledger.rows if row.device == 1)


def test_a_reply_that_is_too_large_is_not_copied_and_not_kept():
    """Eight of 20 MB each: what is read of them is their length."""
    world = tiny_world(SHORT)
    identify_process()
    strategy = make_strategy(world)
    enrol(strategy.federation, make_roster(world.streams))
    (message, *_) = strategy.configure_train(1, None, None, None)
    (request, *_) = strategy.rounds.asked
    payload = bytes(20_000_000)
    tracemalloc.start()
    replies = []
    for _ in range(8):
        content = RecordDict({"report": ConfigRecord({"control": b"", "delta": payload, "masks": b""}), "measures": ConfigRecord({})})
        replies.append(strategy.federation.exchange.read(request, Message(content, reply_to=message)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2_000_000
    for reply in replies:
        assert "at most" in reply.problem and reply.report is None
        assert reply.report_bytes == reply.message_bytes == strategy.federation.exchange.most_bytes < 5_000_000


def test_the_weight_of_a_reply_is_that_of_all_it_carries():
    identify_process()
    content = RecordDict({"a": ConfigRecord({"k": b"123", "long": "12345", "list": [b"1", b"22"], "number": 7, "real": [1.0, 2.0]})})
    assert payload_bytes(Message(content, 1, "train")) == (1 + 3) + (4 + 5) + (4 + 3) + (6 + 8) + (4 + 16)


@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from(["f64", "f32", "bf16", "int8", "int6"]), st.integers(0, 3), st.data())
@settings(max_examples=30, deadline=None)
def test_nothing_that_the_codec_writes_is_beyond_the_limit(rows, width, form, block, data):
    """Values at random, at places at random, in every form: update, importance and statistics together."""
    layout = Layout({"w": (rows, width), "b": (rows,), "running_mean": (rows,)}, frozenset({"w"}), frozenset({"running_mean"}))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    masks = {"w": rng.random((rows, width)) < 0.9}

    def payload(kind: str, names: tuple[str, ...], form: str) -> bytes:
        coded = {}
        for name in names:
            over = codec.reference(kind, layout, name, masks)
            ranks = np.flatnonzero(rng.random(over.total) < 0.7)
            values = np.abs(rng.normal(size=ranks.size) * 10.0 ** rng.integers(-20, 20, ranks.size))
            coded[name] = codec.quantise(SparseTensor(over.at(ranks), values, ranks), over, form, name, rng=None, block=block)
        return codec.encode(kind, layout, coded, model_version=2**32 - 1, mask_version=2**32 - 1).data

    def beside() -> tuple[Layout, bytes]:
        channel = Channel.of({"correction/w": (rows, width), "method/sums": (7, width)}, layout, "float64")
        arrays = {name: rng.normal(size=shape) for name, shape in channel.layout.shapes.items()}
        return channel.layout, channel.encode(arrays, masks, 2**32 - 1).data

    update, importance = payload("delta", ("w", "b", "running_mean"), form), payload("importance", ("w",), "f64")
    beside_layout, auxiliary = beside()
    report = Report(2**32 - 1, 2**32 - 1, np.ones(2**15 - 1, bool), update, importance, auxiliary=auxiliary)
    assert report.num_bytes + len(payload("statistics", ("running_mean",), "f64")) <= most_reply_bytes(layout, beside_layout)


def test_every_column_of_flops_has_a_bound():
    strategy = make_strategy(tiny_world())
    bounds = strategy.federation.exchange.workbook.bounds(0, (10, 10))
    assert list(bounds.flops) == [part.name for part in fields(Flops)]
