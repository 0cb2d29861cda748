"""LPS as a whole, in a fleet and in the settings of an experiment."""

from dataclasses import replace

import numpy as np
import pytest
from worlds import LOSSLESS_64, RecordingGrid, assert_same_arrays, play, tiny, tiny_world

from simulations.build import make_evaluator
from simulations.config.errors import ConfigError
from simulations.run import run_world
from simulations.single_device import train_one
from sparcl_core.sparsity.packnet import SELECTED, network_of

SETTINGS = ("learner.method=lps", "masks.scheme=packnet", "stream.setting=task-il", "sparsity=0.5", "stream.tasks=5", "masks.until=0.6")
LPS = (*SETTINGS, "learner.share_lr=0.7")
ALONE = ("stream.devices=1", "stream.partition=iid", "wire.rounding=nearest")


def test_a_fleet_of_one_device_is_that_device():
    """Masks, owners and choices to the bit, as scores are bytes between sessions on both; weights up to rounding."""
    overrides = (*LPS, *ALONE, *LOSSLESS_64, "masks.stage_epochs=1")
    alone = train_one(tiny(*overrides), lambda *told: None)
    result = run_world(tiny_world(*overrides), "inline")
    model, arrays = result.strategy.federation.model, alone.progress.memory.arrays
    assert_same_arrays(model.masks, alone.progress.masks)
    for name, value in model.owners.items():  # the last task has not ended there
        own = arrays[name.rpartition("/")[2]] > 0
        if name.startswith(SELECTED):
            earlier = (arrays[name.rpartition("/")[2]] <= int(name.split("/")[1])) & own
            found, wanted = (np.unpackbits(bits, count=own.size).view(bool).reshape(own.shape) for bits in (value, arrays[name]))
            assert np.array_equal(found & earlier, wanted & earlier) and not (found & earlier).all()
        else:
            assert np.array_equal(value, np.where(arrays[name] == 5, 0, arrays[name]))
    assert sum(name.startswith(SELECTED) for name in model.owners) == 4 * len(model.masks)
    for name, value in model.weights.items():
        np.testing.assert_allclose(value, alone.progress.state[name], atol=1e-9)
    np.testing.assert_array_equal(result.accuracy, alone.accuracy)


@pytest.mark.parametrize(
    "overrides",
    [
        ("wire.up=int6", "wire.down=int8", "wire.rounding=stochastic", "federation.cohort_size=2"),
        ("federation.correction=scaffold", "dgm.enabled=false"),
    ],
    ids=["coarse integers", "scaffold"],
)
def test_the_networks_of_tasks_that_are_over_never_change_at_the_server(overrides):
    """Weights, and what of them each task uses, to the bit; so accuracies stay."""
    world, fixed = tiny_world(*LPS, *overrides), {}
    evaluate, rows, left_out = make_evaluator(world), [], 0

    def observe(record, strategy):
        nonlocal left_out
        model, task = strategy.federation.model, max(record.task, 0)
        owners = model.owners
        for over in range(task + record.ends_task):
            network = network_of(owners, over)
            weights = {name: np.where(places & model.masks[name], model.weights[name], 0) for name, places in network.items()}
            fixed.setdefault(over, weights)
            assert_same_arrays(weights, fixed[over])
            left_out += sum(int(((owners[name] > 0) & (owners[name] <= over) & ~places).sum()) for name, places in network.items())
        if record.ends_task:
            rows.append(evaluate(model.weights, owners).accuracy[1])

    strategy = play(world, observe=observe)
    assert {row.outcome for row in strategy.ledger.rows} <= {"ok", "skipped"} and len(fixed) == 5 and left_out
    for task in range(5):
        assert len({row[task] for row in rows[task:]}) == 1


def test_a_device_keeps_its_own_z_and_u_and_nothing_of_a_task_that_is_over():
    """Scores come with every round, as bytes of which there are few where nothing is owned."""
    world = tiny_world(*LPS)
    grid, kinds = RecordingGrid(world), []

    def observe(record, strategy):
        if record.round:
            kinds.append({name.split("/")[0] for name in grid.device(0).memory.arrays})

    strategy = play(world, grid, observe=observe)
    per_task = world.experiment.federation.rounds_per_task
    assert kinds == [set(), {"z", "u"}, {"z", "u"}, set()][:per_task] * 5
    sent = [row for row in strategy.ledger.rows if row.phase in ("download", "upload")]
    assert sent and all(row.auxiliary_bytes for row in sent)
    weights = sum(mask.size for mask in strategy.masks.values())
    headers = 40 + 16 * len(strategy.masks)
    assert max(row.auxiliary_bytes for row in sent) <= weights + headers  # a byte a place at most, and that of the first task is free


def test_scores_that_are_none_are_held_within_a_byte():
    """A device cannot free what is owned, nor own what is free."""
    world = tiny_world(*LPS, "stream.tasks=2", "aggregation.clip=0")
    model = play(world).federation.model
    before = {name: value.copy() for name, value in model.beside.kept.items()}
    wild = {name: np.full(value.shape, 1e9) for name, value in before.items()}
    model.beside.combine([_contribution(beside=wild)], 3, world.experiment.aggregation)
    for name, value in model.beside.kept.items():
        assert np.array_equal(value > 0, before[name] > 0) and set(np.unique(value)) <= {0, 255}


def _contribution(beside):
    from types import SimpleNamespace

    return SimpleNamespace(device=0, update=SimpleNamespace(samples=3), beside=beside)


# -- what cannot be


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("stream.setting=class-il", "learner.method is 'lps', which must be told at a test which task an image is of"),
        ("sparsity=0", "learner.method is 'lps', but sparsity is 0: it is the share of a task's weights that is pruned"),
        ("masks.scheme=static", "masks.scheme 'static': its masks are of another kind; set masks.scheme=packnet"),
        ("learner.single_head=false", "learner.single_head is false: a task would move the classifier of others"),
        ("federation.mask=local", "federation.mask is 'local': its arrays are over masks that all devices share"),
        ("clock.mode=semi-sync clock.period_s=20", "clock.mode is 'semi-sync'"),
        ("stream.boundaries=detected", "devices would be in different tasks at a time"),
        ("learner.rho=-1", "rho is -1.0: a loss weight must be finite"),
        ("learner.admm_from=0.9", "learner.admm_from is 0.9, but no round begins between that and the pruning, the last one at 0.83"),
        ("learner.admm_from=1", "admm_from is 1.0: a share of the epochs before masks are pruned"),
        ("learner.rhoo=1", "did you mean 'learner.rho'?"),
    ],
)
def test_what_cannot_be_says_so_before_anything_starts(override, says):
    with pytest.raises(ConfigError) as caught:
        tiny(*SETTINGS, *override.split())
    assert says in str(caught.value)


def test_its_settings_stand_in_the_experiment():
    learner = tiny(*SETTINGS, "learner.rho=0.5", "learner.admm_from=0.25", "learner.share_lr=2").learner
    assert (learner.rho, learner.admm_from, learner.share_lr) == (0.5, 0.25, 2.0)
    assert replace(learner, rho=0.0).rho == 0.0
