"""What a round would take, by formula: beside the ledger of real ones."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_cohort import METHOD
from worlds import TOY, play, tiny_world, toy_fleet

from server.fleet.hardware import Hardware
from server.selection.estimate import Estimates, Workload
from sparcl_core.batches import batch_sizes
from sparcl_core.costs.device import DeviceProfile
from sparcl_core.costs.flops import LayerShape, per_sample
from sparcl_core.costs.memory import Held
from sparcl_core.sparsity.dgm import DGMConfig
from sparcl_core.sparsity.masks import num_active

WORK = Workload(METHOD, 2, (LayerShape("w", 1000, 1, False), LayerShape("out", 100, 1, False)), Held({"w": 1000, "out": 100}, 4, 0),
                {"w": (1000,)}, 50, 16, 10, True)  # fmt: skip


def estimates_of(work: Workload = WORK, **figures) -> Estimates:
    return Estimates(Hardware.alike(DeviceProfile("toy", **(TOY | figures)), 1), work, (work.level(0.5),), np.zeros(1, np.int64))


def only(values) -> float:
    (value,) = values
    return float(value)


# -- by hand


@given(count=st.integers(2, 60), size=st.integers(2, 20), least=st.integers(1, 2), last=st.sampled_from(["keep", "join", "drop"]))
def test_the_least_work_stays_below_what_is_done_whatever_becomes_of_a_rest(count, size, least, last):
    learner = replace(METHOD.learner, batch_size=size, last_batch=last)
    work = replace(WORK, method=replace(METHOD, learner=learner, ddr=replace(METHOD.ddr, enabled=False)), least=least, epochs=1)
    batches = batch_sizes(count, size, least, last)
    passes, steps = work.passes(np.array([count]), least=True)
    assert only(passes.trained) <= sum(batches) and 1 <= only(steps) <= len(batches)
    needed = work.memory(0.5, np.array([0]), np.array([count])) - work.memory(0.5, np.array([0]), np.array([0]))
    assert only(needed) >= max(batches) * 3 * work.moved  # derpp draws two batches beside one


def test_the_work_of_a_sparsity_by_hand():
    """Gradient masks of sparsity 0.75 beside weights of 0.5 touch half of what there is, and so do those of sparser tiers."""
    work = replace(WORK, method=replace(METHOD, dgm=DGMConfig(sparsity=0.75)))
    for sparsity, active in ((0.5, 500), (0.9, 100)):
        level = work.level(sparsity)
        cost = per_sample(work.layers, {"w": active}, {"w": active // 2})
        assert (level.sparse_flops, level.dense_flops, level.held, level.bytes) == (
            cost.sparse,
            cost.dense,
            active + 100,
            4 * (active + 100),
        )
    whole = replace(WORK, method=replace(METHOD, dgm=DGMConfig(enabled=False))).level(0.5)
    assert whole.sparse_flops == per_sample(WORK.layers, {"w": 500}, {"w": 500}).sparse > WORK.level(0.5).sparse_flops


def test_a_round_by_hand():
    """Two epochs over 10 samples with derpp's two draws beside each: 60 passes in 2 * 3 steps of 4."""
    passes, steps = WORK.passes(np.array([10]))
    assert (passes.trained.tolist(), steps.tolist()) == ([60], [6])
    level, estimates, one = WORK.level(0.5), estimates_of(moved_bytes_per_s=100.0, step_s=0.25, layer_s=0.5), np.array([0])
    assert WORK.layer_passes == 2  # one joint pass through both layers
    train = 60 * (level.sparse_flops / 1e5 + level.dense_flops / 1e6) + 60 * 50 / 100 + 6 * (0.25 + 2 * 0.5)
    assert only(estimates.train_s(one, np.array([10]))) == pytest.approx(train)
    transfer = 2 * 0.5 + 300 / 1000 + 200 / 1000
    assert only(estimates.seconds(one, np.array([10]), 300, 200)) == pytest.approx(train + transfer)
    assert only(estimates.joules(one, np.array([10]), 300, 200)) == pytest.approx(4 * train + 2 * transfer + 0.001 * 500)


def test_a_budget_of_flops_ends_a_round_early():
    """The round by hand takes 60 passes in 6 steps; with a third of its FLOPs, 20 in 2. A step is taken whatever it costs."""
    level = WORK.level(0.5)
    whole = 60 * (level.sparse_flops + level.dense_flops)
    for budget, share in ((whole, 1.0), (2 * whole, 1.0), (whole / 3, 1 / 3), (1.0, 1 / 6)):
        bound = replace(WORK, method=replace(METHOD, learner=replace(METHOD.learner, flops_budget=float(budget))))
        found = only(estimates_of(bound).train_s(np.array([0]), np.array([10])))
        assert found == pytest.approx(share * only(estimates_of().train_s(np.array([0]), np.array([10]))))
        least = only(estimates_of(bound).least_s(np.array([0]), np.array([10]), 0))
        assert 0 < least <= only(estimates_of().least_s(np.array([0]), np.array([10]), 0))


def test_energy_may_be_stated_by_the_flop():
    level, estimates = WORK.level(0.5), estimates_of(active_w=0.0, j_per_flop=0.01, radio_j_per_byte=0.0, idle_w=0.0)
    assert only(estimates.joules(np.array([0]), np.array([10]), 0, 0)) == pytest.approx(
        60 * (level.sparse_flops + level.dense_flops) * 0.01
    )


def test_parts_of_the_loss_that_run_one_by_one_pass_the_layers_again():
    """Current data and two draws: three passes through two layers; one if they share it, and for plain SGD."""
    assert [replace(WORK, is_joint=is_joint).layer_passes for is_joint in (True, False)] == [2, 6]
    plain = replace(METHOD, learner=replace(METHOD.learner, method="sgd"))
    assert replace(WORK, method=plain, is_joint=False).layer_passes == 2


def test_a_dense_run_has_the_dense_rate_for_all():
    dense = replace(WORK, method=replace(METHOD, sparsity=0.0), shapes={})
    level = dense.level(0.0)
    assert level.sparse_flops == 0 and level.held == 1100
    estimates = Estimates(Hardware.alike(DeviceProfile("toy", **TOY), 1), dense, (level,), np.zeros(1, np.int64))
    assert only(estimates.train_s(np.array([0]), np.array([10]))) == pytest.approx(60 * level.dense_flops / 1e6)


# -- beside a run


@pytest.mark.parametrize(
    "overrides",
    [
        (), ("ddr.enabled=false",), ("sparsity=0",), ("learner.joint_forward=false",), ("learner.method=sgd",), ("dgm.enabled=false",),
        ("federation.local_epochs=2", "federation.rounds_per_task=6"),
        ("stream.online=true", "ddr.enabled=false", "stream.partition=iid"), ("learner.flops_budget=3e5", "ddr.enabled=false"),
    ],
    ids=["default", "all-data", "dense", "apart", "sgd", "no-dgm", "epochs", "online", "budget"],
)  # fmt: skip
def test_the_estimate_is_close_to_the_ledger_and_the_bound_below_it(overrides, tmp_path):
    """Of what the ledger has, only the importance reports, the look for a change and the rankings are not estimated; replay is estimated
    at its fullest, data as if none were removed."""
    fleet = toy_fleet(tmp_path, flops_per_s=[1e6, 3e6, 4e5], step_s=[0.1, 0.2, 0.0], layer_s=[0.01, 0.0, 0.02])
    strategy = play(tiny_world(*overrides, *fleet))
    cohorts, works = strategy.federation.cohorts, {}
    for row in strategy.ledger.rows:
        works.setdefault((row.round, row.device, row.task), {})[row.phase] = row
    ratios = []
    for (_, device, step), rows in works.items():
        samples, one = int(cohorts.roster.samples[device, step]), np.array([device])
        down, train, up = rows["download"], rows["train"], rows["upload"]
        least = cohorts.least_s(device, samples, down.down_bytes)
        assert least <= down.seconds + train.seconds
        seconds = only(cohorts.estimates.seconds(one, np.array([samples]), down.down_bytes, up.up_bytes))
        joules = only(cohorts.estimates.joules(one, np.array([samples]), down.down_bytes, up.up_bytes))
        assert least < seconds
        took, used = (sum(getattr(row, name) for row in rows.values()) for name in ("seconds", "joules"))
        ratios.append((seconds / took, joules / used))
        assert cohorts.least_seconds() <= least
    assert np.min(ratios) > 0.7 and np.max(ratios) < 1.8
    assert 0.85 < np.median(ratios) < 1.35


@pytest.mark.parametrize("overrides", [(), ("sparsity=0",), ("model.dtype=float64", "wire.up=f64", "wire.down=f64"), ("model.name=mlp",)],
                         ids=["sparse", "dense", "float64", "mlp"])  # fmt: skip
def test_memory_is_that_of_the_ledger_but_for_what_nobody_knows_before(overrides):
    """The bound counts gradients of all active weights, of which a gradient mask wants a part, and the experiment's own density, which the
    first round of a task exceeds by p_inter."""
    world = tiny_world("stream.partition=iid", *overrides)
    strategy = play(world)
    work, e = strategy.federation.cohorts.workload, world.experiment
    buffered = np.array([work.learning.buffer_capacity(total) for total in world.streams.sizes.sum(axis=1).tolist()])
    needs = work.memory(e.sparsity, buffered, world.streams.sizes.max(axis=1))
    itemsize = work.model.itemsize
    for row in strategy.ledger.rows:
        if row.phase == "train":
            grown = row.active - sum(num_active(size, e.sparsity) for size in work.masked.values())
            # each grown weight: itself, its base and residual, symbol and output of the codec, and perhaps its gradient; and a bit
            assert row.memory_bytes <= needs[row.device] + grown * (5 * itemsize + 2) + grown / 8 + 1
            if grown == 0:
                assert needs[row.device] == row.memory_bytes + (row.active - row.updated) * itemsize
