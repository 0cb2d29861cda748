"""PackNet as a whole: what a task owns never moves, so its accuracy never changes, on one device and in a fleet."""

import json
from dataclasses import replace

import numpy as np
import pytest
from tiny_learning import INPUTS, SEED, assert_same, frozen, start, tiny_method, tiny_tasks, with_learner, without
from worlds import LOSSLESS_64, TINY, RecordingGrid, assert_same_arrays, play, tiny, tiny_world

from simulations.build import make_evaluator
from simulations.cli.carrying_out import load_experiment
from simulations.config.errors import ConfigError
from simulations.evaluate import Evaluator
from simulations.results.console import final_table
from simulations.results.plot import draw_report
from simulations.results.write import write_run
from simulations.run import run_world
from simulations.single_device import train_one
from sparcl_core.costs.flops import LayerShape
from sparcl_core.evaluation import TestData
from sparcl_core.learner import Learner
from sparcl_core.methods.packnet import OF_TASK
from sparcl_core.solo import train_stream
from sparcl_core.sparsity.masks import num_active
from sparcl_core.sparsity.settings import MaskConfig

EPOCHS = 4
MODELS = ("mlp", "cnn", "resnet18", "vit-tiny")
PACKNET = ("learner.method=packnet", "masks.scheme=packnet", "stream.setting=task-il", "sparsity=0.5", "stream.tasks=5", "masks.until=0.6")
ALONE = ("stream.devices=1", "stream.partition=iid", "wire.rounding=nearest")


def packnet(model: str, sparsity: float = 0.5, *off: str, **learner):
    method = with_learner(tiny_method(model, sparsity, **learner), "packnet")
    return replace(without(method, *off), masks=MaskConfig(scheme="packnet"))


def run(method, tasks, seen=None):
    seen = [] if seen is None else seen
    train_stream(method, INPUTS, tasks, task_epochs=EPOCHS, seed=SEED, observe=lambda progress: seen.append(frozen(progress)))
    return seen


# -- on one device


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("off", [(), ("dgm", "ddr")], ids=["all mechanisms", "plain"])
def test_what_a_task_has_left_never_moves_again(model, off):
    """Owned weights, and from the second task on everything dense but the rows of the task's classes, BatchNorm's statistics too."""
    tasks, method = tiny_tasks(2, 16), packnet(model, 0.5, *off)
    seen = run(method, tasks)
    learner = Learner(method, INPUTS, EPOCHS, SEED)
    ends = [one for one in seen if one.epoch == EPOCHS]
    owners = ends[0].memory.arrays
    for name, own in owners.items():
        assert int((own == 1).sum()) == num_active(own.size, 0.5) and ((own == 1) == ends[0].masks[name]).all()
    later = [one for one in seen if one.task == 1]
    for one in later:
        for name, before in ends[0].state.items():
            after = one.state[name]
            if name in learner.classifier:
                assert np.array_equal(after[:2], before[:2])
            elif name in owners:
                assert np.array_equal(after[owners[name] > 0], before[owners[name] > 0])
            else:
                assert np.array_equal(after, before), name
    moved = [name for name in owners if not np.array_equal(ends[0].state[name], ends[1].state[name])]
    assert moved == list(owners) and not np.array_equal(*(end.state[learner.classifier[0]][2:] for end in ends))
    left = {name: int((own == 0).sum()) for name, own in owners.items()}
    for name, own in ends[1].memory.arrays.items():  # disjoint by what they are: one number a place
        assert int((own == 2).sum()) == num_active(left[name], 0.5)
        assert np.array_equal(own == 1, owners[name] == 1)


@pytest.mark.parametrize("model", MODELS)
def test_the_accuracy_of_a_task_that_is_over_never_changes(model):
    tasks, method = tiny_tasks(2, 16), packnet(model)
    learner = Learner(method, INPUTS, EPOCHS, SEED)
    x, y = (np.concatenate([getattr(task, part) for task in tasks]) for part in "xy")
    evaluator = Evaluator(learner, TestData(x, y, tuple(task.classes for task in tasks)))
    rows, outputs = [], []

    def observe(progress):
        if progress.task == 1 or progress.epoch == EPOCHS:
            owners = learner.method.owners(progress.memory)
            found = evaluator(progress.state, owners)
            rows.append(found.accuracy)
            assert np.isnan(found.accuracy[0]).all() and np.isnan(found.by_class[0]).all()
            state = {name: np.where(owners[name] == 1, value, 0) if name in owners else value for name, value in progress.state.items()}
            learner.network.load(state, {})
            outputs.append(learner.network.outputs(tasks[0].x)[:, :2])

    train_stream(method, INPUTS, tasks, task_epochs=EPOCHS, seed=SEED, observe=observe)
    assert len({row[1, 0] for row in rows}) == 1 and len(rows) == EPOCHS + 1
    assert len({one.tobytes() for one in outputs}) == 1  # not only the accuracy: the outputs, to the bit


def test_a_step_of_the_second_task_by_hand():
    """cnn of width 8 on 4x4 images, s = 0.5, no DGM: FLOPs of one sample from the shapes of its layers."""
    method = packnet("cnn", 0.5, "dgm", "ddr", batch_size=8)
    tasks = tiny_tasks(2, 16)
    seen = run(method, tasks)
    learner = Learner(method, INPUTS, EPOCHS, SEED)
    conv1, conv2, fc, head = learner.layers
    assert isinstance(conv1, LayerShape) and [layer.name for layer in (conv2, fc)] == list(seen[0].masks)
    first, second = ([one for one in seen if one.task == task] for task in (0, 1))
    dense = 2 * conv1.macs * 2 + sum(2 * layer.macs * 3 for layer in (conv2, fc, head))
    assert first[0].flops.train == 16 * dense
    half = {layer.name: num_active(layer.weights, 0.5) for layer in (conv2, fc)}
    free = {layer.name: layer.weights - half[layer.name] for layer in (conv2, fc)}
    # conv1 does not move, so that nobody asks for the gradient of conv2's input; of conv2 and fc the free weights move
    step = 2 * conv1.macs + 2 * conv2.uses * (conv2.weights + free[conv2.name])
    step += 2 * fc.uses * (2 * fc.weights + free[fc.name]) + 2 * head.macs * 3
    assert second[0].flops.train == 16 * step
    pruned = {name: num_active(count, 0.5) for name, count in free.items()}
    active = {name: half[name] + pruned[name] for name in half}
    step = 2 * conv1.macs + 2 * conv2.uses * (active[conv2.name] + pruned[conv2.name])
    step += 2 * fc.uses * (2 * active[fc.name] + pruned[fc.name]) + 2 * head.macs * 3
    assert second[-1].flops.train == 16 * step


def test_a_device_alone_is_gone_on_with_to_the_bit():
    tasks, method = tiny_tasks(2, 16), packnet("cnn")
    seen = run(method, tasks)
    for place in (1, 3, 4, 6):
        later = []
        train_stream(
            method,
            INPUTS,
            tasks,
            task_epochs=EPOCHS,
            seed=SEED,
            observe=lambda one, later=later: later.append(frozen(one)),
            done=seen[place],
        )
        assert_same(dict(enumerate(later)), dict(enumerate(seen[place + 1 :])))


# -- in a fleet


def test_a_fleet_of_one_device_is_that_device():
    """Masks and owners to the bit, weights up to rounding."""
    overrides = (*PACKNET, *ALONE, *LOSSLESS_64, "masks.stage_epochs=1")
    alone = train_one(tiny(*overrides), lambda *told: None)
    grid_world = tiny_world(*overrides)
    result = run_world(grid_world, "inline")
    model = result.strategy.federation.model
    assert_same_arrays(model.masks, alone.progress.masks)
    for name, own in model.masking.owners.items():  # the last task has not ended there
        wanted = alone.progress.memory.arrays[name]
        assert np.array_equal(own, np.where(wanted == 5, 0, wanted)) and np.array_equal(wanted == 5, model.masks[name] & (own == 0))
    for name, value in model.weights.items():
        np.testing.assert_allclose(value, alone.progress.state[name], atol=1e-9)
    np.testing.assert_array_equal(result.accuracy, alone.accuracy)


@pytest.mark.parametrize(
    "overrides",
    [
        ("wire.up=int6", "wire.down=int8", "wire.rounding=stochastic", "federation.cohort_size=2"),
        ("federation.correction=scaffold", "dgm.enabled=false"),
        ("aggregation.rule=zero-filled", "wire.up_share=0.2"),
    ],
    ids=["coarse integers", "scaffold", "top-k, zero-filled"],
)
def test_nothing_of_a_task_that_is_over_moves_at_the_server(overrides):
    """Whatever the devices still owe of it: what a lossy code has left is dropped with the task."""
    world, before = tiny_world(*PACKNET, *overrides), {}
    head = make_evaluator(world)

    def observe(record, strategy):
        model = strategy.federation.model
        owners, rows = model.masking.owners, [list(classes) for classes in world.streams.classes[: max(record.task, 0)]]
        done = sorted(sum(rows, []))
        for name, (value, own, old_rows) in before.items():
            if name in model.classifier:
                assert np.array_equal(model.weights[name][old_rows], value[old_rows])
            elif name in owners:
                assert np.array_equal(model.weights[name][own > 0], value[own > 0]), (record.round, name)
            else:
                assert np.array_equal(model.weights[name], value), (record.round, name)
        if record.task > 0 or record.ends_task:
            ended = record.task + 1 if record.ends_task else record.task
            done = sorted(sum((list(classes) for classes in world.streams.classes[:ended]), []))
            for name, value in model.weights.items():
                own = owners.get(name)
                if own is not None and record.ends_task:
                    own = np.where(model.masks[name] & (own == 0), record.task + 1, own)
                before[name] = (value.copy(), own, done)

    strategy = play(world, observe=observe)
    assert {row.outcome for row in strategy.ledger.rows} <= {"ok", "skipped"} and before
    assert head(strategy.weights, strategy.federation.model.masking.owners).accuracy.shape == (2, 5)


def test_owners_go_down_once_a_task_at_about_two_bits_a_weight_and_stay_on_the_device():
    world = tiny_world(*PACKNET, "federation.cohort_size=2")
    grid = RecordingGrid(world)
    strategy = play(world, grid)
    sent: dict[tuple[int, int], int] = {}
    for server_round, messages in grid.sent.items():
        for message in messages:
            record = message.content["instruction"]
            if "auxiliary" in record:
                key = message.metadata.dst_node_id, (server_round - 1) // world.experiment.federation.rounds_per_task
                assert key not in sent
                sent[key] = len(record["auxiliary"])
    assert {task for _, task in sent} == {0, 1, 2, 3, 4}
    weights = sum(mask.size for mask in strategy.masks.values())
    headers = 40 + 16 * len(strategy.masks)
    assert all(size <= headers for (_, task), size in sent.items() if task == 0)  # nobody owns anything
    for (_, task), size in sent.items():
        shares = [*(0.5 ** (1 + earlier) for earlier in range(task)), 0.5**task]
        entropy = -sum(share * np.log2(share) for share in shares) / 8 * weights
        assert size <= 1.2 * entropy + headers + 64, (task, size, entropy)
    booked = sum(row.auxiliary_bytes for row in strategy.ledger.rows)
    assert booked == sum(sent.values())
    owners = strategy.federation.model.masking.owners
    for device in range(3):
        arrays = grid.device(device).memory.arrays
        if arrays.get(OF_TASK) == 4:
            assert_same_arrays({name: arrays[name] for name in owners}, owners)
            assert sum(value.nbytes for value in arrays.values()) == weights + 8


def test_a_device_that_was_not_told_does_not_train():
    learner, state, masks, memory = start(packnet("mlp"))
    task = tiny_tasks(2, 16)[1]
    arrays = {name: np.ones(mask.shape, np.uint8) for name, mask in masks.items()} | {OF_TASK: np.array(0)}
    memory, _ = learner.begin_task(state, masks, task, replace(memory, arrays=arrays), device=0)
    assert memory.arrays is arrays
    with pytest.raises(ValueError, match="task 1 has begun, and it was not said whose each weight is"):
        learner.train(state, masks, task, memory, epochs=1, device=0)


def test_the_results_of_a_run_have_no_class_il(tmp_path):
    world = tiny_world(*PACKNET)
    result = run_world(world, "inline")
    matrix = result.accuracy[1]
    for task in range(4):
        assert len(set(matrix[task:, task])) == 1
    summary = write_run(tmp_path, result, None)
    json.dumps(summary, allow_nan=False)
    assert draw_report(tmp_path).exists()
    assert summary["accuracy"]["class-il"]["average"] is None and summary["accuracy"]["task-il"]["forgetting_first_last"] == 0
    assert 0 < summary["fleet"]["fairness"]["mean"] <= 1
    cells = {row: [str(cell) for cell in column.cells] for row, column in enumerate(final_table(summary).columns)}
    assert cells[1][cells[0].index("Class-IL accuracy")] == "-" and "nan" not in str(cells)


# -- what cannot be


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("stream.setting=class-il", "stream.setting is 'class-il', take task-il"),
        ("sparsity=0", "sparsity is 0: it is the share of a task's weights that is pruned"),
        ("masks.scheme=static", "masks.scheme 'static': its masks are of another kind; set masks.scheme=packnet"),
        ("learner.method=er", "masks.scheme is 'packnet', but learner.method 'er': these masks are for methods whose tasks own weights"),
        ("learner.single_head=false", "learner.single_head is false: a task would move the classifier of others"),
        ("federation.mask=local", "federation.mask is 'local': its arrays are over masks that all devices share"),
        ("clock.mode=semi-sync clock.period_s=20", "clock.mode is 'semi-sync'"),
        ("budget.memory=fit", "budget.memory is 'fit': sparser masks would cut into the networks of tasks"),
        ("stream.boundaries=detected", "devices would be in different tasks at a time"),
        ("stream.advance=participation", "devices would be in different tasks at a time"),
        ("stream.order=shuffled", "devices would be in different tasks at a time"),
        ("stream.cycles=2", "meet a task again"),
        ("stream.blur=0.2", "stream.blur is 0.2"),
        ("federation.batchnorm=recompute", "federation.batchnorm is 'recompute': statistics must stay as they are"),
        ("server_optimizer.name=momentum", "server_optimizer.name is 'momentum': momentum would move weights that stay"),
        ("evaluate_on=devices", "evaluate_on is 'devices': all devices have the same networks"),
        ("masks.until=1", "masks.until is 1: scheme packnet prunes there"),
        ("masks.until=0.9", "masks would never adapt in a task of 4 epochs; take shorter rounds, or set a smaller masks.until"),
        ("masks.initial=snip", "scheme packnet begins with all weights"),
    ],
)
def test_what_cannot_be_says_so_before_anything_starts(override, says):
    with pytest.raises(ConfigError) as caught:
        tiny(*PACKNET, *override.split())
    assert says in str(caught.value)


@pytest.mark.parametrize("option", ["dense", "baseline"])
def test_it_has_no_dense_twin_to_run(option):
    with pytest.raises(ConfigError, match=f"--{option}: learner.method is 'packnet', but sparsity is 0"):
        load_experiment(str(TINY), list(PACKNET), seed=None, **({"dense": False, "baseline": False} | {option: True}))


# -- iCaRL, which says so in the same way


def test_icarl_without_a_place_for_each_class():
    with pytest.raises(ConfigError, match="learner.buffer_size and buffer_share are 0: an image is of the class whose exemplars"):
        tiny("learner.method=icarl", "learner.buffer_share=0")
    with pytest.raises(ConfigError, match="buffer has 9 places, and learner.method 'icarl' needs 10 for its 10 classes"):
        train_one(tiny("learner.method=icarl", "learner.buffer_size=9"), lambda *told: None)
