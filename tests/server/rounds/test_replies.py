"""Replies that no device of ours would send: each ends as one row of the ledger, and the round goes on without it."""

import logging
import re
import struct
import zlib
from dataclasses import fields

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from worlds import RecordingGrid, assert_same_arrays, kind_of, play, tiny_world

from sparcl_core import codec
from sparcl_core.codec import SparseTensor
from sparcl_core.costs.memory import Footprint
from sparcl_core.wire.protocol import Report


class Forger:
    """Alters the reply of device 1 in round 2. `strategy`: the server's state, to be in tune with it."""

    def __init__(self, world, damage):
        self.damage, self.strategy, self.devices = damage, None, {}
        self.grid = RecordingGrid(world, self._tamper)
        self.ledger = play(world, self.grid, self._observe).ledger

    def _tamper(self, server_round: int, replies: list[Message]) -> list[Message]:
        for reply in replies:
            if (server_round, reply.metadata.src_node_id) == (2, 2):
                self.damage(self, reply.content)
        return replies

    def _observe(self, record, strategy) -> None:
        self.strategy = strategy
        self.devices[record.round] = record.num_devices
        assert all(np.isfinite(value).all() for value in strategy.weights.values())

    def encode(self, kind="delta", values=(), form="f32", ahead=0, layout=None, masks_ahead=0) -> bytes:
        """A payload that brings `values` as the first of the classifier's bias."""
        layout, broadcast = layout or self.strategy.model.layout, self.strategy.model.broadcast
        own = SparseTensor(np.arange(len(values)), np.array(values))
        over = codec.reference(kind, layout, "classifier.bias", broadcast.masks)
        coded = {"classifier.bias": codec.quantise(own, over, form, "classifier.bias")}
        return codec.encode(
            kind, layout, coded, model_version=broadcast.version + ahead, mask_version=broadcast.mask_version + masks_ahead
        ).data


def with_delta(**settings):
    def damage(forger, content):
        content["report"]["delta"] = forger.encode(**settings)

    return damage


def not_finite(value: float):
    """What the encoder refuses to write, written over what it wrote, checksum and all."""

    def damage(forger, content):
        marker = np.float32(1.2345678)
        body = forger.encode(values=[marker])[:-4]
        found = body.index(np.array(marker, ">f4").tobytes())  # a single value is not entropy-coded
        body = body[:found] + np.array(value, ">f4").tobytes() + body[found + 4 :]
        content["report"]["delta"] = body + struct.pack("<I", zlib.crc32(body))

    return damage


def of_another_layout(forger, content) -> None:
    layout = forger.strategy.model.layout
    shapes = dict(layout.shapes) | {"classifier.bias": (11,)}
    content["report"]["delta"] = forger.encode(values=[1.0], layout=codec.Layout(shapes, layout.masked))


def flipped(place: int):
    def damage(forger, content):
        data = bytearray(content["report"]["delta"])
        data[place] ^= 0x20
        content["report"]["delta"] = bytes(data)

    return damage


def longer(forger, content) -> None:
    content["report"]["delta"] += bytes(100_000)


def empty(forger, content) -> None:
    content["report"]["delta"] = b""


def of_numbers(forger, content) -> None:
    content["report"] = ConfigRecord({"control": 3, "delta": 1.5, "masks": "x"})


def of_lists(forger, content) -> None:
    content["report"] = ConfigRecord({"control": [b"x"], "delta": [b"y"], "masks": [b"z"]})


def without_parts(forger, content) -> None:
    content["report"] = ConfigRecord({})


def of_metrics(forger, content) -> None:
    content["report"] = MetricRecord({"control": 1, "delta": 2, "masks": 3})


def of_arrays(forger, content) -> None:
    content["report"] = ArrayRecord([np.zeros(3)])


def with_more_samples_than_there_are(forger, content) -> None:
    wire = content["report"]
    true = Report.from_wire(wire["control"], wire["delta"], wire["masks"])
    wire["control"] = Report(true.base_version, 2**32 - 1, true.classes, true.delta, true.masks).control


def with_old_importance(forger, content) -> None:
    """Well-formed, and of last round's masks."""
    wire, old = content["report"], forger.grid.received[1][1].content["report"]["masks"]
    wire["masks"] = old


def measured(**changes):
    """Measures that are wrong: None takes one away."""

    def damage(forger, content):
        for key, value in changes.items():
            key = key.replace("__", ".").replace("_seconds", "-seconds")
            if value is None:
                del content["measures"][key]
            else:
                content["measures"][key.replace("dense_", "dense-")] = value

    return damage


def as_text(forger, content) -> None:
    content["measures"] = ConfigRecord({"samples": "many"})


def too_large(forger, content) -> None:
    content["report"]["masks"] = bytes(3_000_000)


MEMORY = [f"memory__{part.name}" for part in fields(Footprint)]
DAMAGES = {
    "NaN": (not_finite(np.nan), "NaN or infinite"),
    "infinite": (not_finite(-np.inf), "NaN or infinite"),
    "too large for the model": (with_delta(values=[1e300], form="f64"), "moves by more than float32 can hold"),
    "an older version": (with_delta(values=[1.0], ahead=-1), "an update against version 1"),
    "a later version": (with_delta(values=[1.0], ahead=1), "an update against version 3"),
    "other masks": (with_delta(values=[1.0], masks_ahead=1), "masks 2"),
    "another kind": (with_delta(kind="statistics", values=[1.0]), "of kind 'statistics'"),
    "another layout": (of_another_layout, "made for another model"),
    "flipped early": (flipped(1), "not a SparCL payload"),
    "flipped late": (flipped(-20), "checksum"),
    "too long": (longer, "checksum"),
    "nothing": (empty, "truncated"),
    "numbers": (of_numbers, "not made of bytes"),
    "lists": (of_lists, "not made of bytes"),
    "no parts": (without_parts, "the report has no part 'control'"),
    "metrics": (of_metrics, "not made of bytes"),
    "arrays": (of_arrays, "the report has no part"),
    "too many samples": (with_more_samples_than_there_are, "rests on 4294967295 samples"),
    "old importance": (with_old_importance, "against version 1, masks 0"),
    "too large": (too_large, r"the reply has \d{7} bytes: for this model at most \d{6} can be needed"),
    "no samples measured": (measured(samples=None), "samples is None"),
    "samples below nothing": (measured(samples=-1), "samples is -1"),
    "absurd samples": (measured(samples=2**62), "samples is 4611686018427387904: the round can have had at most"),
    "absurd memory": (
        measured(**dict.fromkeys(MEMORY, 2**60 - 1)),
        "memory.weights is 1152921504606846975: the round can have had at most",
    ),
    "much memory of every kind": (measured(**dict.fromkeys(MEMORY, 100_000)), "training needs 700000 bytes: at most"),
    "absurd FLOPs": (measured(flops__train_sparse=2**60), "flops.train_sparse is 1152921504606846976: the round can have had at most"),
    "absurd FLOPs of the twin": (measured(**{"dense_flops__train_dense": 2**60}), "dense-flops.train_dense is"),
    "more than there is": (measured(kept=10_000), "kept is 10000"),
    "seconds before it began": (measured(wall_seconds=-1.0), "wall-seconds is -1.0"),
    "years of computing": (measured(compute_seconds=1e300), "compute-seconds is 1e"),
    "a loss beyond float32": (measured(loss=1e300), "loss is 1e"),
    "half a sample": (measured(samples=0.5), "samples is 0.5"),
    "a list of samples": (measured(samples=[1, 2]), r"samples is \[1, 2\]"),
    "no loss": (measured(loss=None), "loss is None"),
    "a loss that is no number": (measured(loss=float("nan")), "loss is nan"),
    "no FLOPs": (measured(flops__masks=None), "flops.masks is None"),
    "endless seconds": (measured(wall_seconds=float("inf")), "wall-seconds is inf"),
    "text": (as_text, "a count was expected"),
}


@pytest.fixture(scope="module")
def world():
    return tiny_world("stream.tasks=1", "wire.importance=f32")


@pytest.mark.parametrize(("damage", "message"), DAMAGES.values(), ids=DAMAGES)
def test_a_forged_reply_is_one_rejected_row(world, caplog, damage, message):
    """Its bytes are counted as unread, the others go on, and the device gets the whole model in the next round."""
    with caplog.at_level(logging.WARNING):
        run = Forger(world, damage)
    (row,) = [row for row in run.ledger.rows if row.outcome != "ok"]
    assert (row.round, row.device, row.phase, row.outcome) == (2, 1, "upload", "rejected")
    assert row.reason.startswith("device 1, round 2, stage decode: ")
    assert re.search(message, row.reason), row.reason
    assert row.unread_bytes == row.up_bytes and row.message_bytes > 0
    assert run.devices[2] == 2 and run.devices[3] == run.devices[4] == 3
    (after,) = [m for m in run.grid.sent[3] if m.metadata.dst_node_id == 2]
    assert kind_of(after.content["instruction"]["payloads"][0]) == "whole"
    assert [record.name for record in caplog.records if record.name != "flwr"] == ["server.rounds.synchronous"]


@pytest.mark.parametrize("record", ["report", "measures"])
def test_a_reply_without_a_record_is_a_failed_row(world, record):
    run = Forger(world, lambda forger, content: content.__delitem__(record))
    (row,) = [row for row in run.ledger.rows if row.outcome != "ok"]
    assert (row.round, row.device, row.outcome) == (2, 1, "failed") and f"has no record {record!r}" in row.reason


def test_statistics_that_nobody_asked_for_are_not_read(world):
    """Only where they stay on the devices does the server look at what a reply shows of them."""

    def damage(forger, content):
        content["observed"] = ConfigRecord({"statistics": b"anything"})

    run = Forger(world, damage)
    assert {row.outcome for row in run.ledger.rows} == {"ok"}


def test_what_else_is_in_a_report_is_paid_for_and_unread(world):
    """The clock and the ledger go by the same bytes, and every byte is for something."""

    def damage(forger, content):
        content["report"]["more"] = bytes(70)

    run, honest = Forger(world, damage), play(world)
    own, other = (
        next(row for row in ledger.rows if (row.round, row.device, row.phase) == (2, 1, "upload")) for ledger in (run.ledger, honest.ledger)
    )
    assert (own.outcome, own.unread_bytes, other.unread_bytes) == ("ok", 70, 0) and own.up_bytes == other.up_bytes + 70
    assert own.seconds > other.seconds and own.values_bytes == other.values_bytes
    ended = run.strategy.federation.conditions.batteries.time[1]
    assert ended == pytest.approx(max(row.time + row.seconds for row in run.ledger.rows if row.device == 1))


def test_a_reply_of_a_device_that_was_not_asked_is_no_reply_of_the_round(world):
    """One that comes late, of a device that is not in the cohort this time."""
    small = tiny_world("stream.tasks=1", "federation.cohort_size=2", "wire.importance=f32")
    old = {}

    def tamper(server_round, replies):
        absent = {1, 2, 3} - {reply.metadata.src_node_id for reply in replies}
        late = [old[node] for node in absent if node in old]
        old.update({reply.metadata.src_node_id: reply for reply in replies})
        counted.append(len(late))
        return [*replies, *late]

    counted = []
    disturbed, calm = play(small, RecordingGrid(small, tamper)), play(small)
    assert sum(counted) > 0
    assert_same_arrays(disturbed.weights, calm.weights)
    assert disturbed.ledger.rows == calm.ledger.rows
