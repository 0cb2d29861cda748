"""Worlds with little data: nothing is lost to a batch of one, and nothing is timed or counted that no device can have."""

import logging

import numpy as np
import pytest
from worlds import BATCHNORM, play, tiny, tiny_world

from simulations import build
from simulations.config.errors import ConfigError
from simulations.single_device import train_one

ONE_ROUND = ("federation.rounds_per_task=1", "federation.local_epochs=2", "tdm.enabled=false")
SINGLE = (*BATCHNORM, *ONE_ROUND, "stream.partition=dirichlet", "stream.devices=16", "data.train_limit=2")  # 20 samples over 16 devices


def test_no_device_of_a_fleet_with_batchnorm_loses_a_task_to_its_last_batch():
    """Two devices of 20 images of 8x8: batches of 19 leave one sample over."""
    world = tiny_world(*BATCHNORM, *ONE_ROUND, "learner.batch_size=19", "federation.batchnorm=recompute")
    rows = play(world).ledger.rows
    assert {row.outcome for row in rows} == {"ok"} and {row.phase for row in rows} >= {"train", "calibrate"}
    assert {(row.samples, row.steps, row.dropped) for row in rows if row.phase == "train"} == {(40, 2, 0)}


def test_what_is_dropped_is_in_the_ledger():
    world = tiny_world("learner.batch_size=7", "learner.last_batch=drop", "ddr.enabled=false", "stream.partition=iid")
    rows = [row for row in play(world).ledger.rows if row.phase == "train"]
    assert all(row.samples + row.dropped == row.kept and row.dropped == row.kept % 7 for row in rows) and any(row.dropped for row in rows)


def test_a_device_with_a_single_sample_sits_out_where_batchnorm_needs_two(caplog):
    with caplog.at_level(logging.WARNING):
        world = tiny_world(*SINGLE)
    sizes = world.streams.sizes[:, 0]
    assert (line := caplog.messages) and line[0].startswith(f"{np.count_nonzero(sizes == 1)} of 16 devices sit out steps")
    rows = play(world).ledger.rows
    assert {row.device for row in rows if row.phase == "train" and row.outcome == "ok"} == set(np.flatnonzero(sizes > 1).tolist())
    out = {row.device: row.reason for row in rows if row.outcome == "sat-out"}
    assert set(out) == set(np.flatnonzero(sizes < 2).tolist())
    assert set(out.values()) == {"fewer than 2 samples, the least that the model can be trained on, for task 0"}
    others = play(tiny_world(*SINGLE, "model.name=mlp")).ledger.rows  # no BatchNorm: a single sample will do
    assert {row.device for row in others if row.outcome == "ok"} == set(np.flatnonzero(sizes).tolist())


def test_a_task_that_no_device_can_be_trained_on_is_refused_before_anything_is_trained():
    with pytest.raises(ConfigError, match=r"task 0 .* has at most 1 sample on every device, and BatchNorm .* needs 2 .*model\.name=cnn"):
        tiny_world(*BATCHNORM, "stream.partition=drawn", "stream.samples=1")


def test_a_learning_rate_that_is_too_large_is_blamed_by_device_task_and_epoch():
    """One device in a fleet of three is a row, and the run goes on; alone it is one message."""
    where = "training diverged in task 0, local epoch 0, step 4 of the round: the loss is nan; lower learner.lr (10)"
    rows = [row for row in play(tiny_world("learner.lr=10.0")).ledger.rows if row.outcome == "failed"]
    assert [(row.outcome, row.reason) for row in rows] == [
        ("failed", f"device {rows[0].device}, round 1, stage train: FloatingPointError: {where}")
    ]
    with pytest.raises(ConfigError, match=r"^training diverged in task 0, local epoch 0, step 1 .* lower learner.lr \(1e\+30\)$"):
        train_one(tiny("learner.lr=1e30"), lambda *told: None)


@pytest.mark.parametrize(
    ("batch_size", "draws", "overrides"),
    [
        (4, 2, ()),
        (1_000_000, 2, ()),
        (1_000_000, 0, ("learner.method=sgd",)),
        (1_000_000, 2, ("stream.online=true", "ddr.enabled=false")),
        (1_000_000, 2, ("stream.setting=domain-il",)),
        (1_000_000, 2, ("stream.partition=drawn", "stream.samples=9")),
        (8, 2, ("stream.partition=drawn", "stream.samples=9")),
    ],
)
def test_kernels_are_timed_at_a_batch_that_a_device_can_have(monkeypatch, batch_size, draws, overrides):
    """At a million samples the timing itself would need more memory than any machine here has."""
    seen = []
    monkeypatch.setattr(build, "resolve", lambda config, model, names, shape, batch, density: seen.append(batch) or config)
    experiment = tiny(f"learner.batch_size={batch_size}", *overrides)
    build.choose_kernels(experiment)
    assert seen == [min(batch_size, build.make_world(experiment).streams.sizes.max()) * (1 + draws)]


def test_memory_is_that_of_the_samples_a_device_has():
    """Activations of a batch above the data are those of the data, in the estimate and in the ledger."""
    few, many = (tiny_world(*ONE_ROUND, "stream.partition=iid", f"learner.batch_size={size}") for size in (40, 1000))
    assert few.streams.sizes.max() <= 40
    rows = [[row.memory_bytes for row in play(world).ledger.rows if row.phase == "train"] for world in (few, many)]
    assert rows[0] == rows[1]
    workloads = [build.make_strategy(world).federation.cohorts.workload for world in (few, many)]
    needs = [workload.memory(0.9, np.array([9]), np.array([20])) for workload in workloads]
    assert needs[0] == needs[1]
