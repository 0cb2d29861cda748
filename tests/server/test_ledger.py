"""The ledger: every device, round and phase has its row, and every byte in it was really sent."""

import sys
from collections import Counter
from dataclasses import fields, replace
from types import SimpleNamespace

import pytest
from worlds import RecordingGrid, play, tiny_world

from server.fleet.roster import Member
from server.global_model.broadcast import Base
from server.ledger import COLUMNS, DONE, KINDS, Ending, Ledger, Phase, Row, Where
from server.rounds.messages import Request
from server.rounds.phases import PhaseCosts
from simulations.build import make_strategy
from sparcl_core.codec import Sizes
from sparcl_core.costs.device import Cost, DeviceProfile
from sparcl_core.costs.flops import FLOP_COLUMNS, Flops

# round figures, so that costs can be worked out in the head: dense 50 FLOP/s, sparse 10 FLOP/s, 80 bit/s = 10 B/s down, 40 up
PROFILE = DeviceProfile("test", 100.0, 0.5, 0.1, 1e6, 4.0, 2.0, 0.25, 80.0, 40.0, 1.0)


NONE, EMPTY = Flops(), Sizes()


class Books:
    """A ledger, and what is written into it for a fleet: one message of the dense twin weighs 400 bytes."""

    def __init__(self, profile: DeviceProfile | dict[int, DeviceProfile] = PROFILE, is_sparse=True, moved=0, layer_passes=0):
        of = profile.__getitem__ if isinstance(profile, dict) else lambda device: profile
        workload = SimpleNamespace(method=SimpleNamespace(is_sparse=is_sparse), moved=moved, layer_passes=layer_passes)
        self.costs, self.ledger = PhaseCosts(SimpleNamespace(profile=of), workload, 400), Ledger()

    def downloaded(self, where: Where, sizes: Sizes, message_bytes: int, ending=DONE, extra_s=0.0, has_twin=True) -> Row:
        phase = self.costs.download(self.request(where, sizes, (extra_s, 0.0)), has_twin=has_twin)
        return self.written(self.ledger.transferred, where, phase, sizes, message_bytes, ending=ending)

    def uploaded(self, where: Where, sizes: Sizes, message_bytes: int, ending=DONE, extra_s=0.0, has_twin=True) -> Row:
        phase = self.costs.upload(self.request(where, sizes, (0.0, extra_s)), sizes.total, has_twin=has_twin)
        return self.written(self.ledger.transferred, where, phase, sizes, message_bytes, ending=ending)

    def trained(self, where: Where, flops: Flops, dense_flops: Flops = NONE, ending=DONE, **measures) -> Row:
        phase = self.costs.training(self.request(where), flops, dense_flops)
        return self.written(self.ledger.computed, where, phase, ending=ending, **measures)

    def calibrated(self, where: Where, flops: Flops) -> Row:
        return self.written(self.ledger.computed, where, self.costs.errand("calibrate", self.request(where), flops))

    def request(self, where: Where, sizes: Sizes = EMPTY, extra_s=(0.0, 0.0)) -> Request:
        return Request(Member(where.device, where.device + 1, (5,)), where, Base(1, 0, {}), sizes, 0, extra_s)

    def written(self, write, *call, **options) -> Row:
        write(*call, **options)
        return self.ledger.rows[-1]


@pytest.fixture
def books():
    return Books()


def test_transfers_by_hand(books):
    """120 B down: 1 s latency + 120 / 10 = 13 s; 13 * 2 W + 120 * 0.25 J = 56 J. Up, at 5 B/s: 1 + 60 / 5 = 13 s, 26 + 15 = 41 J.
    The twin sends 400 B: 41 s and 182 J down, 81 s and 262 J up."""
    down = books.downloaded(Where(1, 0, 7), Sizes(values=100, header=20), 150)
    up = books.uploaded(Where(1, 0, 7), Sizes(values=40, positions=20), 99)
    assert (down.phase, down.outcome, down.down_bytes, down.up_bytes, down.message_bytes) == ("download", "ok", 120, 0, 150)
    assert (down.seconds, down.joules, down.dense_bytes, down.dense_seconds, down.dense_joules) == (13, 56, 400, 41, 182)
    assert (up.phase, up.outcome, up.down_bytes, up.up_bytes, up.message_bytes) == ("upload", "ok", 0, 60, 99)
    assert (up.seconds, up.joules, up.dense_bytes, up.dense_seconds, up.dense_joules) == (13, 41, 400, 81, 262)


def test_training_by_hand(books):
    """Sparse layers 30 FLOP at 10/s, the rest 50 + 40 + 10 at 50/s: 3 + 2 = 5 s, 20 J at 4 W. The twin: 600 at 50/s = 12 s, 48 J."""
    row = books.trained(Where(2, 1, 3), Flops(30, 50, 40, 10, 99), Flops(500, 100, paper=77), samples=12, loss=0.5)
    assert (row.phase, row.outcome, row.samples, row.loss) == ("train", "ok", 12, 0.5)
    assert (row.train_flops, row.importance_flops, row.mask_flops, row.paper_flops) == (80, 40, 10, 99)
    assert (row.seconds, row.joules) == (5, 20)
    assert (row.dense_flops, row.dense_paper_flops, row.dense_seconds, row.dense_joules) == (600, 77, 12, 48)


def test_a_dense_run_pays_the_dense_rate():
    """130 FLOP at 50/s."""
    assert Books(is_sparse=False).trained(Where(2, 1, 3), Flops(30, 50, 40, 10)).seconds == pytest.approx(2.6)


def test_every_column_of_a_cost_is_one_of_the_ledger():
    """Whatever is counted is written down, whole numbers as such; what adds up to the FLOPs is the list of `Flops`, and no other."""
    flops = Flops(*range(1, 1 + len(fields(Flops))))
    cost = Cost(flops, down_bytes=20, up_bytes=30, seconds=0.5, joules=0.25)
    ledger = Ledger()
    ledger.computed(Where(1, 0, 0), Phase("train", cost))
    (row,) = ledger.rows
    assert {name: getattr(row, name) for name in cost.columns} == cost.columns
    assert {field.type for field in fields(Row) if field.name in cost.columns and field.name.endswith(("bytes", "flops"))} == {int}
    assert ledger.totals()["flops"] == sum(getattr(row, name) for name in FLOP_COLUMNS) == flops.total
    assert len(FLOP_COLUMNS) == 5 and "paper_flops" in cost.columns


def test_totals_by_hand(books):
    for device in (0, 1):
        books.downloaded(Where(1, 0, device), Sizes(values=70, masks=30, header=20), 150)
    books.trained(Where(1, 0, 0), Flops(30, 50, 40, 10, 99), Flops(500, 100), memory_bytes=1000)
    ledger = books.ledger
    ledger.absent(Where(1, 0, 1), "failed", "broke")
    books.uploaded(Where(1, 0, 0), Sizes(unread=60), 99, Ending("rejected", "damaged"))
    ledger.absent(Where(2, 0, 1), "sat-out", "no data")
    totals = ledger.totals()
    assert (totals["down_bytes"], totals["up_bytes"], totals["message_bytes"]) == (240, 60, 399)
    assert (totals["dense_down_bytes"], totals["dense_up_bytes"], totals["dense_bytes"]) == (800, 400, 1200)
    assert (totals["flops"], totals["paper_flops"], totals["dense_flops"]) == (130, 99, 600)
    assert (totals["seconds"], totals["joules"]) == (13 + 13 + 5 + 13, 56 + 56 + 20 + 41)
    assert "memory_bytes" not in totals  # a peak, not a sum
    assert Counter(row.outcome for row in ledger.rows) == {"ok": 3, "failed": 1, "rejected": 1, "sat-out": 1}
    assert [row.reason for row in ledger.rows if row.reason] == ["broke", "damaged", "no data"]


def test_what_bytes_are_for_is_kept_beside_them(books):
    down = books.downloaded(Where(1, 0, 0), Sizes(values=1, positions=2, rest=4, masks=8, header=16, auxiliary=32), 99)
    up = books.uploaded(Where(1, 0, 0), Sizes(values=10, header=5), 99)
    rejected = books.uploaded(Where(1, 0, 1), Sizes(unread=7), 99, Ending("rejected", "damaged"))
    assert [getattr(down, f"{kind}_bytes") for kind in KINDS] == [1, 2, 4, 8, 16, 0, 32] and down.down_bytes == 63
    assert (up.values_bytes, up.header_bytes, up.up_bytes) == (10, 5, 15) and (rejected.unread_bytes, rejected.up_bytes) == (7, 7)
    totals = books.ledger.totals()
    assert [totals[f"down_{kind}_bytes"] for kind in KINDS] == [1, 2, 4, 8, 16, 0, 32]
    assert [totals[f"up_{kind}_bytes"] for kind in KINDS] == [10, 0, 0, 0, 5, 7, 0]


def test_a_phase_that_was_cut_short_has_its_share(books):
    """A quarter of 120 B down: 3.25 of 13 s, 14 of 56 J, 30 B that nobody can read; of the twin's 400 B a quarter too. Half of the training
    of `test_training_by_hand`, whole numbers rounded down; what it would have measured is not known, but for its memory."""
    down = books.downloaded(Where(1, 0, 7, 50.0), Sizes(values=100, header=20), 150, Ending("late", "too late", 0.25))
    broken = Ending("failed", "broke", 0.5)
    run = books.trained(Where(1, 0, 8), Flops(30, 51, 40, 10, 99), Flops(500, 100), broken, memory_bytes=77, loss=3.0)
    assert (down.outcome, down.reason, down.time) == ("late", "too late", 50.0)
    assert (down.seconds, down.joules, down.down_bytes, down.message_bytes) == (3.25, 14, 30, 37)
    assert (down.unread_bytes, down.values_bytes, down.header_bytes) == (30, 0, 0)
    assert (down.dense_bytes, down.dense_seconds, down.dense_joules) == (100, 41 / 4, 182 / 4)
    assert (run.outcome, run.seconds, run.joules) == ("failed", pytest.approx(2.51), pytest.approx(10.04))
    assert (run.train_flops, run.importance_flops, run.mask_flops, run.paper_flops) == (40, 20, 5, 49)
    assert (run.dense_flops, run.dense_seconds, run.memory_bytes, run.loss) == (300, 6, 77, 0)


def test_jitter_takes_time_of_both_runs(books):
    """3 s more for the message and for the twin's, at 2 W; no byte more."""
    down = books.downloaded(Where(1, 0, 7), Sizes(values=100, header=20), 150, extra_s=3.0)
    up = books.uploaded(Where(1, 0, 7), Sizes(values=60), 99, extra_s=1.0)
    assert (down.seconds, down.joules, down.dense_seconds, down.dense_joules) == (16, 62, 44, 188)
    assert (up.seconds, up.joules, up.dense_seconds, up.dense_joules) == (14, 43, 82, 264)


def test_every_device_pays_by_its_own_profile():
    """Device 1's network is half as fast: 1 + 120 / 5 = 25 s."""
    books = Books({0: PROFILE, 1: replace(PROFILE, down_bits_per_s=40.0)})
    assert [books.downloaded(Where(1, 0, device), Sizes(values=120), 150).seconds for device in (0, 1)] == [13, 25]


def test_layers_and_moved_bytes_take_time():
    """Two steps of 3 passes at 0.5 s each and 12 samples of 10 bytes at 40 B/s, on top of nothing: 3 + 3 s."""
    books = Books(replace(PROFILE, layer_s=0.5, moved_bytes_per_s=40.0), moved=10, layer_passes=3)
    assert books.trained(Where(1, 0, 0), Flops(samples=12, steps=2)).seconds == 6


def test_recomputed_statistics_by_hand(books):
    """130 FLOP at the dense rate of 50/s, since no gradient is involved: 2.6 s, 10.4 J. The twin has no such phase and no such message."""
    down = books.downloaded(Where(4, 0, 0), Sizes(rest=120), 150, has_twin=False)
    run = books.calibrated(Where(4, 0, 0), Flops(statistics=130))
    up = books.uploaded(Where(4, 0, 0), Sizes(rest=60), 99, has_twin=False)
    ledger = books.ledger
    assert (run.phase, run.outcome, run.statistics_flops) == ("calibrate", "ok", 130)
    assert (run.seconds, run.joules) == (pytest.approx(2.6), pytest.approx(10.4))
    assert (down.seconds, down.joules, up.seconds, up.joules) == (13, 56, 13, 41)
    assert all(row.dense_bytes == row.dense_flops == row.dense_seconds == row.dense_joules == 0 for row in ledger.rows)
    assert ledger.totals()["flops"] == 130 and ledger.totals()["dense_down_bytes"] == 0
    assert ledger.columns()["phase"] == ["download", "upload", "calibrate"]


# -- of a whole run


@pytest.fixture(scope="module")
def skewed_run():
    """A run so skewed that some devices have nothing for a task, with what went over the grid."""
    world = tiny_world("stream.devices=6", "stream.alpha=0.05")
    grid = RecordingGrid(world)
    return world, grid, play(world, grid).ledger


def test_one_row_per_device_round_and_phase(skewed_run):
    world, _, ledger = skewed_run
    keys = [(row.round, row.device, row.phase) for row in ledger.rows]
    wanted = []
    for r in range(1, 9):
        for device, stream in enumerate(world.streams):
            has_data = stream.sizes[(r - 1) // 4] > 0
            wanted += [(r, device, phase) for phase in (("download", "train", "upload") if has_data else ("train",))]
    assert sorted(keys) == sorted(wanted)
    assert [key[0] for key in keys] == sorted(key[0] for key in keys)  # in the order of rounds


def test_a_device_without_data_sits_the_task_out(skewed_run):
    world, _, ledger = skewed_run
    idle = [(task, device) for device, stream in enumerate(world.streams) for task, size in enumerate(stream.sizes) if size == 0]
    assert idle  # or this test would see nothing
    for task, device in idle:
        rows = [row for row in ledger.rows if (row.task, row.device) == (task, device)]
        assert [(row.round, row.outcome, row.reason) for row in rows] == [
            (4 * task + session, "sat-out", f"no data for task {task}") for session in range(1, 5)
        ]
        assert all(row.down_bytes == row.up_bytes == row.seconds == row.train_flops == row.dense_bytes == 0 for row in rows)


def test_a_drawn_cohort_has_the_only_rows():
    """Who has no data is no candidate: no row says so, or a large fleet would write a row a device and round."""
    world = tiny_world("stream.devices=6", "stream.alpha=0.05", "federation.cohort_size=2")
    assert (world.streams.sizes == 0).any()
    ledger = play(world).ledger
    assert {row.outcome for row in ledger.rows} == {"ok"}
    for server_round in range(1, 9):
        drawn = {row.device for row in ledger.rows if row.round == server_round}
        assert len(drawn) == 2 and all(world.streams[device].sizes[(server_round - 1) // 4] for device in drawn)


def test_a_row_is_small():
    """100 devices write 300 rows a round: with a dict a row is 2 kB, without 0.6. Slots: 8 bytes a column, and 32."""
    ledger = Ledger()
    ledger.absent(Where(1, 0, 1), "failed", "broke")
    (row,) = ledger.rows
    assert not hasattr(row, "__dict__") and sys.getsizeof(row) <= 32 + 8 * len(COLUMNS)


def test_bytes_are_those_that_were_sent(skewed_run):
    """Counted off the messages themselves: every bytes value of the protocol's own records."""
    _, grid, ledger = skewed_run
    for row in ledger.rows:
        if row.phase == "download":
            (message,) = [m for m in grid.sent[row.round] if m.metadata.dst_node_id == row.device + 1]
            wire = message.content["instruction"]
            assert row.down_bytes == len(wire["control"]) + sum(map(len, wire["payloads"]))
            assert row.message_bytes > row.down_bytes
        if row.phase == "upload":
            (reply,) = [m for m in grid.received[row.round] if m.metadata.src_node_id == row.device + 1]
            assert row.up_bytes == sum(map(len, reply.content["report"].values())) > 0
            assert row.message_bytes > row.up_bytes


def test_totals_are_sums_of_rows(skewed_run):
    _, _, ledger = skewed_run
    columns, totals = ledger.columns(), ledger.totals()
    assert tuple(columns) == COLUMNS and {len(column) for column in columns.values()} == {len(ledger.rows)}
    for name in ("down_bytes", "up_bytes", "message_bytes", "train_flops", "importance_flops", "mask_flops", "paper_flops", "seconds",
                 "joules", "dense_bytes", "dense_flops", "dense_paper_flops", "dense_seconds", "dense_joules"):  # fmt: skip
        assert totals[name] == sum(columns[name]) > 0, name
    assert totals["flops"] == sum(columns["train_flops"]) + sum(columns["importance_flops"]) + sum(columns["mask_flops"])
    assert totals["dense_down_bytes"] + totals["dense_up_bytes"] == totals["dense_bytes"]
    messages = sum(phase in ("download", "upload") for phase in columns["phase"])
    assert totals["dense_bytes"] == messages * make_strategy(skewed_run[0]).model.whole.dense_bytes


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("wire.importance=votes", "wire.up_share=0.3", "wire.block=32"),
        ("federation.mask=local",),
        ("stream.devices=5", "federation.cohort_size=2"),
        ("stream.devices=5", "federation.cohort_size=2", "federation.mask=local"),
        ("sparsity=0", "wire.up=f32", "wire.down=f32"),
    ],
    ids=["shared", "votes", "local", "stale", "stale-local", "dense"],
)
def test_every_byte_is_for_something(overrides):
    """Kinds add up on every row and in the totals; what a rejected reply brought (device 1, round 2) is unread."""

    def tamper(server_round, replies):
        if server_round == 2:
            wire = replies[1].content["report"]
            wire["delta"] = wire["delta"][:-5]
        return replies

    world = tiny_world(*overrides)
    ledger = play(world, RecordingGrid(world, tamper)).ledger
    rejected = [row for row in ledger.rows if row.outcome == "rejected"]
    assert [row.round for row in rejected] == [2]
    for row in ledger.rows:
        kinds = {kind: getattr(row, f"{kind}_bytes") for kind in KINDS}
        assert min(kinds.values()) >= 0
        assert sum(kinds.values()) == row.down_bytes + row.up_bytes
        assert (kinds["unread"] > 0) == (row.outcome == "rejected") == (kinds["unread"] == row.up_bytes > 0)
        if row.phase in ("download", "upload") and row.outcome == "ok":
            assert kinds["header"] > 0
    totals = ledger.totals()
    for direction in ("up", "down"):
        assert sum(totals[f"{direction}_{kind}_bytes"] for kind in KINDS) == totals[f"{direction}_bytes"]
        assert (totals[f"{direction}_masks_bytes"] > 0) == ("sparsity=0" not in overrides)
        assert (totals[f"{direction}_values_bytes"] > 0) == ("sparsity=0" not in overrides)
    for kind in KINDS:
        assert totals[f"{kind}_bytes"] == totals[f"up_{kind}_bytes"] + totals[f"down_{kind}_bytes"]


def test_the_same_run_twice_has_the_same_rows(skewed_run):
    world, _, ledger = skewed_run
    assert play(world).ledger.rows == ledger.rows


def test_importance_is_paid_for_in_the_rounds_before_a_mask_update(skewed_run):
    """TDM adapts before rounds 2, 3, 6 and 7 (the last of the four stages of a task rests, the first grows at random)."""
    _, _, ledger = skewed_run
    paid = {row.round for row in ledger.rows if row.importance_flops}
    assert paid == {1, 2, 5, 6}
