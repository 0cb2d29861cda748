"""A device that is not told where a task ends, and data that comes in pieces."""

from dataclasses import replace

import numpy as np
import pytest
from lab import Lab
from worlds import RecordingGrid, play, tiny_world

from sparcl_core.sparsity.ddr import start
from sparcl_core.task_change import ChangeConfig
from sparcl_core.wire.protocol import Report

DETECTED = ("stream.boundaries=detected", "stream.partition=iid", "data.train_limit=40", "federation.rounds_per_task=6")


class Followed:
    """A run of three devices, and after every round what each has noticed, and where the masks' schedule is."""

    def __init__(self, *overrides: str):
        world = tiny_world(*overrides)
        self.grid, self.tasks, self.positions, self.told = RecordingGrid(world), {}, {}, {}
        self.strategy = play(world, self.grid, self._observe)

    def _observe(self, record, strategy) -> None:
        if record.round:
            self.tasks[record.round] = [self.grid.device(number).task for number in range(3)]
            self.positions[record.round] = strategy.model.mask_schedule.position(record.round + 1)
            reports = [m.content["report"] for m in sorted(self.grid.received[record.round], key=lambda m: m.metadata.src_node_id)]
            self.told[record.round] = [Report.from_wire(r["control"], r["delta"], r["masks"]).has_changed for r in reports]


@pytest.fixture(scope="module")
def noticed():
    return Followed(*DETECTED)


def test_new_classes_are_noticed_and_nothing_else_is(noticed):
    """Twelve rounds, the second task from the seventh on: all three notice it in that round, and never before or after."""
    assert noticed.tasks == {r: [int(r > 6)] * 3 for r in range(1, 13)}
    assert noticed.told == {r: [r == 7] * 3 for r in range(1, 13)}


def test_what_devices_noticed_moves_the_masks_schedule(noticed):
    """One round later than it would be told: the masks grow in round 8, when the reports of round 7 are in."""
    assert noticed.positions == {r: divmod(r, 6) if r < 6 else (0, 6) if r == 6 else (1, r - 7) for r in range(1, 13)}
    assert [m.metadata.message_type for m in noticed.grid.sent[8]] == ["train"] * 3
    assert noticed.strategy.model.broadcast.mask_version == 4 + 5  # adapted before rounds 2 to 5; grown before 8, adapted before 9 to 12


def test_looking_at_the_loss_is_paid_for(noticed):
    """Two batches of 4 forward, in every round and on every device."""
    rows = [row for row in noticed.strategy.ledger.rows if row.phase == "train"]
    assert len({row.statistics_flops for row in rows}) <= 2 and min(row.statistics_flops for row in rows) > 0
    told = play(tiny_world("stream.tasks=1")).ledger.rows
    assert {row.statistics_flops for row in told} == {0}


def test_small_and_skewed_data_is_noticed_by_most():
    """Devices of five to 40 samples, four rounds a task, with a setting to match; nobody is wrong in a task."""
    followed = Followed("stream.boundaries=detected", "change.window=2", "change.rise=0.2")
    assert followed.tasks[4] == [0, 0, 0]
    assert sum(task == 1 for task in followed.tasks[8]) >= 2 and max(followed.tasks[8]) == 1


# -- a device by itself


def detecting_lab(**change) -> Lab:
    lab = Lab()
    lab.config = replace(lab.config, change=ChangeConfig(**change))
    return lab


def test_a_device_counts_what_it_has_noticed():
    """With a hair's breadth for a threshold: the loss of a model that was not trained is the same as before, and then another data's."""
    lab = detecting_lab(threshold=1e-9, rise=1e-9)
    device, tasks, losses = lab.receive(lab.new_device()), [], []
    for step in (0, 0, 1):
        device, done = lab.train(device, step)
        tasks.append((device.task, device.step, done.has_changed))
        losses.append(device.losses[-1])
    assert losses[0] == losses[1] and tasks[:2] == [(0, 0, False), (0, 0, False)]
    is_worse = losses[2] > losses[0]
    assert tasks[2] == (int(is_worse), 1, is_worse)
    assert device.losses.tolist() == losses[2:] if is_worse else losses
    _, report = lab.report(device, done)
    assert report.has_changed == is_worse


def test_a_change_restarts_epochs_and_memory_of_losses():
    lab = detecting_lab(threshold=1e-9, rise=1e-9)
    device, _ = lab.train(lab.receive(lab.new_device()))
    device, _ = lab.train(device)
    assert device.memory.epochs == 2
    device = replace(device, losses=np.array([0.01, 0.01, 0.01]))  # as if the model had known its data by heart
    device, done = lab.train(device)
    assert done.has_changed and (device.task, device.memory.epochs, len(device.losses)) == (1, 1, 1)
    assert device.memory.ddr.passes.tolist() == [1] * 12


def test_the_first_round_is_no_change():
    lab = detecting_lab()
    device = replace(lab.receive(lab.new_device()), losses=np.array([0.01, 0.01]))
    device, done = lab.train(device)
    assert not done.has_changed and device.task == 0 and device.memory.epochs == 1


def test_a_device_that_is_told_does_not_look():
    lab = Lab()
    device, done = lab.train(lab.receive(lab.new_device()))
    assert device.losses.size == 0 and not done.has_changed and done.flops.statistics == 0
    device, done = lab.train(device, 1)
    assert device.task == 1 and not done.has_changed


def test_who_is_not_told_does_not_know_the_classes_of_the_task(monkeypatch):
    """The single head is over the classes that the data has."""
    lab, seen = detecting_lab(), []
    true = lab.learner.train
    monkeypatch.setattr(
        lab.learner, "train", lambda start, masks, data, *args, **how: seen.append(data.classes) or true(start, masks, data, *args, **how)
    )
    lab.stream = replace(lab.stream, samples=(np.arange(6), np.arange(12, 24)))  # of the first task's two classes only one
    device, _ = lab.train(lab.receive(lab.new_device()))
    assert seen == [(0,)]


# -- data in pieces


def test_a_piece_of_a_task_is_no_task_of_its_own():
    """Two chunks a task: epochs and the task go on from one to the next, what is known of single samples does not."""
    lab = Lab()
    lab.config = replace(lab.config, chunks=2)
    lab.stream = replace(
        lab.stream, samples=(np.arange(7), np.arange(7, 12), np.arange(12, 18), np.arange(18, 24)), classes=((0, 1),) * 2 + ((2, 3),) * 2
    )
    device, found = lab.receive(lab.new_device()), []
    for step in range(4):
        device, _ = lab.train(device, step)
        found.append((device.task, device.step, device.memory.epochs, device.memory.ddr.kept.size, device.memory.ddr.passes.max()))
    assert found == [(0, 0, 1, 7, 1), (0, 1, 2, 5, 1), (1, 2, 1, 6, 1), (1, 3, 2, 6, 1)]
    assert device.memory.buffer.offered == 24


def test_an_online_stream_shows_every_piece_once():
    world = tiny_world("stream.online=true", "ddr.enabled=false", "stream.partition=iid")
    grid, epochs, steps = RecordingGrid(world), [], []

    def observe(record, strategy):
        if record.round:
            device = grid.device(0)
            epochs.append(device.memory.epochs)
            steps.append((device.task, device.step))
            assert device.memory.ddr.passes.max() == 1  # a single pass over each

    strategy = play(world, grid, observe)
    assert epochs == [1, 2, 3, 4] * 2 and steps == [(r // 4, r) for r in range(8)]
    trained = [row for row in strategy.ledger.rows if row.phase == "train" and row.device == 0]
    assert [row.task for row in trained] == list(range(8)) and sum(row.samples for row in trained) == world.streams.sizes[0].sum()
    assert strategy.model.broadcast.mask_version == 5  # the schedule is that of the tasks


def test_what_data_removal_starts_with_fits_its_samples():
    """`start` of another number of samples is another state: what a device keeps must be of the data that it has now."""
    lab = Lab()
    device, _ = lab.train(lab.receive(lab.new_device()))
    lab.config = replace(lab.config, chunks=2)
    lab.stream = replace(lab.stream, samples=(np.arange(12), np.arange(12, 17)))
    device, _ = lab.train(device, 1)
    assert device.memory.ddr.kept.size == start(5).kept.size and device.task == 0 and device.memory.epochs == 2
