"""LPS beside a reference that is written from its formulas, step by step on dense arrays."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny_learning import INPUTS, SEED, assert_same, frozen, tiny_method, tiny_tasks, with_learner, without

from sparcl_core.learner import Learner
from sparcl_core.methods.choosing import Choosing
from sparcl_core.methods.lps import LPS, LPSConfig
from sparcl_core.methods.sends_arrays import Upload
from sparcl_core.networks.models import build_model
from sparcl_core.solo import start_model, train_stream
from sparcl_core.sparsity.masks import num_active
from sparcl_core.sparsity.packnet import network_of, nobody, selected
from sparcl_core.sparsity.settings import MaskConfig

EPOCHS = 4  # masks.until 0.7: pruned before the last; admm_from 0.3: ADMM in the second and third


def lps(model: str = "mlp", *off: str, dtype: str = "float64", batch_size: int = 16, **own):
    method = with_learner(tiny_method(model, 0.5, dtype=dtype, batch_size=batch_size), "lps", **own)
    return replace(without(method, *off), masks=MaskConfig(scheme="packnet"))


def run(method, tasks, done=None):
    seen = []
    train_stream(method, INPUTS, tasks, task_epochs=EPOCHS, seed=SEED, observe=lambda progress: seen.append(frozen(progress)), done=done)
    return seen


# -- a step


def test_a_step_by_hand():
    """Three weights: one owned and used, one owned and just above the threshold, one free.

    d CE / d theta = (0.5, 1, 1), times F (2, 1). Scores, 64 bytes a unit: 192 - 0.25 * 64 * 2 / 2 = 176; 129 - 0.25 * 64 * 1 / 2 = 121, so
    that it is no longer used. Of the free one 1 + 0.1 * (3 - 2.5) = 1.05.
    """
    part = Choosing(
        torch.tensor([False, False, True]), torch.tensor([True, True, False]), torch.tensor([4.0, 1.0, 0.0]),
        scores=torch.tensor([192.0, 129.0, 0.0]), learns=True, target=torch.tensor([0.0, 0.0, 2.5]),
    )  # fmt: skip
    weight, gradient = torch.tensor([4.0, 1.0, 3.0]), torch.tensor([0.5, 1.0, 1.0])
    part.share_(weight)
    assert weight.tolist() == [4, 1, 3]
    part.step_(weight, gradient, rho=0.1, share_lr=0.25)
    assert part.scores[:2].tolist() == [176, 121] and weight.tolist() == [4, 0, 3]
    assert gradient[2].item() == pytest.approx(1.05)


def test_scores_stay_within_a_byte():
    part = Choosing(
        torch.tensor([False, False]), torch.tensor([True, True]), torch.tensor([1.0, 1.0]),
        scores=torch.tensor([192.0, 192.0]), learns=True, target=None,
    )  # fmt: skip
    part.step_(torch.tensor([1.0, 1.0]), torch.tensor([100.0, -100.0]), rho=0.0, share_lr=10.0)
    assert part.scores.tolist() == [1, 255]


# -- a run, beside the reference


def projection(weights: np.ndarray, count: int) -> np.ndarray:
    order = sorted(range(weights.size), key=lambda place: (-abs(weights[place]), place))
    z = np.zeros_like(weights)
    z[order[:count]] = weights[order[:count]]
    return z


def reference(method, tasks):
    """States behind every epoch, one step each, and what each task has chosen; everything dense, in float64."""
    learner, config = Learner(method, INPUTS, EPOCHS, SEED), method.learner
    state, masks = start_model(learner, method, SEED)
    state = {name: value.copy() for name, value in state.items()}
    model, names = build_model(method.model, INPUTS.shape, INPUTS.num_classes).double(), list(masks)
    owner = {name: np.zeros(masks[name].shape, int) for name in names}
    states, choices = [], []
    for task in tasks:
        active = {name: np.ones(masks[name].shape, bool) for name in names}
        score = {name: np.ones(masks[name].shape) for name in names}
        z, u = {}, {name: np.zeros(masks[name].shape) for name in names}
        x, y = (torch.from_numpy(task.x).double() - 128) / 64, torch.from_numpy(task.y - task.classes[0])
        for epoch in range(EPOCHS):
            theta = {name: torch.tensor(value, requires_grad=True) for name, value in state.items()}
            for name in names:
                free = owner[name] == 0
                if epoch in (1, 2):
                    count = num_active(int(free.sum()), 0.5)
                    z[name] = np.zeros(free.shape)
                    z[name][free] = projection((state[name] + u[name])[free], count)
                    u[name] = np.where(free, u[name] + state[name] - z[name], 0) if epoch == 2 else u[name]
                if epoch == 3:
                    count = num_active(int(free.sum()), 0.5)
                    kept = np.zeros(free.shape, bool)
                    kept[free] = projection(state[name][free], count) != 0
                    active[name] = kept | ~free
                    state[name] = state[name] * active[name]
                used = np.where(owner[name] > 0, state[name] * (score[name] >= 0), state[name])
                theta[name] = torch.tensor(used, requires_grad=True)
            logits = torch.func.functional_call(model, theta, (x,))[:, list(task.classes)]
            found = torch.autograd.grad(F.cross_entropy(logits, y), list(theta.values()))
            for (name, value), gradient in zip(state.items(), found, strict=True):
                step = gradient.numpy().copy()
                if name in names:
                    free = owner[name] == 0
                    if epoch < 3 and task.task:
                        by_score = step * np.where(free, 0, value)
                        score[name] = score[name] - config.share_lr * by_score / np.abs(by_score).max()
                        score[name] = (np.clip(np.rint(128 + 64 * score[name]), 1, 255) - 128) / 64
                    if epoch in (1, 2):
                        step += config.rho * (value - z[name] + u[name])
                    step *= free & active[name]
                elif name in learner.classifier:
                    step[[row for row in range(INPUTS.num_classes) if row not in task.classes]] = 0
                elif task.task:
                    step *= 0
                state[name] = value - config.lr * step
            states.append({name: value.copy() for name, value in state.items()})
        choices.append({name: (owner[name] > 0) & (score[name] >= 0) for name in names})
        owner = {name: np.where((owner[name] == 0) & active[name], task.task + 1, owner[name]) for name in names}
    return states, owner, choices


@pytest.mark.parametrize("rho", [0.0, 4.0])
@pytest.mark.parametrize("share_lr", [0.0, 0.7])
def test_a_run_equals_the_slow_reference(rho, share_lr):
    tasks, method = tiny_tasks(2, 16), lps("mlp", "dgm", "ddr", rho=rho, share_lr=share_lr, lr=0.2)
    seen, (states, owner, choices) = run(method, tasks), reference(method, tasks)
    assert len(seen) == len(states) == 2 * EPOCHS
    for one, wanted in zip(seen, states, strict=True):
        for name, value in wanted.items():
            np.testing.assert_allclose(one.state[name], value, rtol=1e-9, atol=1e-12, err_msg=f"{name}, {one.task}, {one.epoch}")
    arrays, left_out = seen[-1].memory.arrays, 0
    for name, own in owner.items():
        assert np.array_equal(arrays[name], own)
        if share_lr:
            bits = np.unpackbits(arrays[selected(1, name)], count=own.size).view(bool).reshape(own.shape)
            assert np.array_equal(bits & (own == 1), choices[1][name])
            left_out += int(((own == 1) & ~bits).sum())
    assert bool(left_out) == bool(share_lr)  # else nothing was tried here


def test_rho_draws_what_is_pruned_to_nothing():
    """What pruning takes away is smaller than without ADMM; how much is kept is the same."""
    lost = {}
    for rho in (0.0, 4.0):
        seen = run(lps("mlp", "dgm", "ddr", rho=rho, lr=0.2), tiny_tasks(1, 16))
        before, after = seen[2].state, seen[3].masks
        lost[rho] = sum(float(np.square(before[name][~mask]).sum()) for name, mask in after.items())
        assert all(int(mask.sum()) == num_active(mask.size, 0.5) for mask in after.values())
    assert lost[4.0] < 0.5 * lost[0.0]


# -- what stays


@pytest.mark.parametrize("model", ["mlp", "cnn", "resnet18"])
@pytest.mark.parametrize("off", [(), ("dgm", "ddr")], ids=["all mechanisms", "plain"])
def test_the_networks_of_tasks_answer_the_same_for_ever(model, off):
    """Of the first and of the second task, which has chosen, to the bit."""
    tasks = [replace(task, classes=(2 * number % 4, 2 * number % 4 + 1)) for number, task in enumerate(tiny_tasks(2, 16))]
    tasks.append(replace(tasks[0], task=2, classes=(0, 1)))  # the rows of its classes move, so features are looked at
    method = lps(model, *off, dtype="float32", batch_size=8, share_lr=0.7, lr=0.1)
    learner, answers, fixed = Learner(method, INPUTS, EPOCHS, SEED), {0: set(), 1: set()}, {}
    for progress in run(method, tasks):
        owners = learner.method.owners(progress.memory)
        for task in answers:
            if progress.task > task or progress.task == task and progress.epoch == EPOCHS:
                network = network_of(owners, task)
                learner.network.load({name: value * network.get(name, 1) for name, value in progress.state.items()}, {})
                answers[task].add(learner.network.features_of(tasks[task].x)[0].tobytes())
                fixed.setdefault(task, network)
                assert all(np.array_equal(network[name], mask) for name, mask in fixed[task].items())
        assert not any(value[~progress.masks[name]].any() for name, value in progress.state.items() if name in progress.masks)
    assert {task: len(found) for task, found in answers.items()} == {0: 1, 1: 1}
    own = {name: value for name, value in owners.items() if "/" not in name}
    assert any(((own[name] == 1) & ~fixed[1][name]).any() for name in own)  # the second task leaves some of the first's out


def test_a_run_is_gone_on_with_to_the_bit():
    tasks, method = tiny_tasks(2, 16), lps("cnn", dtype="float32", batch_size=8, share_lr=0.7)
    seen = run(method, tasks)
    for place in (1, 2, 3, 4, 5, 6):
        assert_same(dict(enumerate(run(method, tasks, seen[place]))), dict(enumerate(seen[place + 1 :])))


def test_what_is_kept_beside_the_model():
    """Scores while a task chooses, Z and U from 0.3 of the time before the pruning, and behind it a bit a place for each task."""
    seen = run(lps("mlp", dtype="float32", batch_size=8), tiny_tasks(2, 16))
    name = next(iter(seen[0].masks))
    size = seen[0].masks[name].size
    kinds = [{key.split("/")[0] for key in one.memory.arrays if key.endswith((name, "/mask"))} for one in seen[:-1]]
    pruning, choosing = {"z", "u", name}, {"score", name}
    assert kinds == [{name}, pruning, pruning, {name}, choosing, choosing | pruning, choosing | pruning]
    last = seen[-1].memory.arrays
    assert sorted(key for key in last if key.endswith(name)) == sorted([name, selected(1, name)])
    assert last[selected(1, name)].nbytes == -(-size // 8) and last[name].nbytes == size
    kept = seen[1].memory.arrays
    assert kept[f"z/{name}"].size == num_active(size, 0.5) and kept[f"u/{name}"].size == size


# -- what it costs


def test_a_step_of_the_second_task_by_hand():
    """cnn on 4x4 images, s = 0.5, no DGM: gradients of all of conv2 and fc while it chooses, and what LPS adds."""
    method = lps("cnn", "dgm", "ddr", dtype="float32", batch_size=8)
    seen = run(method, tiny_tasks(2, 16))
    learner = Learner(method, INPUTS, EPOCHS, SEED)
    conv1, conv2, fc, head = learner.layers
    # conv1 does not move: its input has no gradient, nor has conv2's
    choosing = 2 * conv1.macs + 2 * conv2.macs * 2 + 2 * (fc.macs + head.macs) * 3
    assert seen[4].flops.train == 16 * choosing
    weights = sum(learner.held.parameters.values())
    assert [one.flops.method for one in seen[:4]] == [0, 9 * weights, 9 * weights, 0]  # two steps, and a session
    assert [one.flops.method for one in seen[4:]] == [10 * weights, 19 * weights, 19 * weights, 0]


def test_without_scores_and_rho_it_is_packnet_to_the_bit():
    tasks, method = tiny_tasks(2, 16), lps("cnn", "dgm", "ddr", dtype="float32", share_lr=0.0, rho=0.0)
    packnet = with_learner(tiny_method("cnn", 0.5, batch_size=16), "packnet")
    packnet = replace(without(packnet, "dgm", "ddr"), masks=method.masks)
    for one, other in zip(run(method, tasks), run(packnet, tasks), strict=True):
        assert_same(one.flops, other.flops)
        assert_same(one.dense_flops, other.dense_flops)
        assert_same(one.state, other.state)
        assert_same(one.memory, other.memory)


# -- at the server


def test_scores_are_averaged_and_begin_anew_with_a_task():
    method = LPS(LPSConfig(method="lps"))
    owners = {"w": np.array([1, 1, 0], np.uint8)}
    kept = method.told(owners, {"w": np.zeros(3)}, True)
    assert kept["w"].tolist() == [192, 192, 0]
    uploads = [Upload(0, 10, {"w": np.array([200.0, 100.0, 0.0])}), Upload(1, 30, {"w": np.array([100.0, 130.0, 7.0])})]
    kept = method.combine(kept, uploads, 2)
    assert kept["w"].tolist() == [125, 122, 0]  # 0.25 * 200 + 0.75 * 100; 122.5, to even; free places have none
    assert method.told(owners, kept, False)["w"].tolist() == [125, 122, 0]
    assert method.told({"w": np.array([1, 1, 2], np.uint8)}, kept, True)["w"].tolist() == [192, 192, 192]


def test_what_is_chosen_is_a_bit_a_place():
    method, score = LPS(LPSConfig(method="lps")), {"w": np.array([128.0, 127.0, 0.0])}
    found = method.chosen(score, 1)
    assert found[selected(1, "w")].tolist() == [0b10000000]
    assert method.chosen({"w": np.zeros(3)}, 0) == {}
    owners = {"w": np.array([1, 1, 2], np.uint8)} | found
    assert network_of(owners, 0)["w"].tolist() == [True, True, False]
    assert network_of(owners, 1)["w"].tolist() == [True, False, True]
    running = {"w": np.array([1, 1, 0], np.uint8)} | found
    assert network_of(running, 1)["w"].tolist() == [True, False, True]
    assert network_of(nobody({"w": np.ones(2, bool)}), 0)["w"].all()


@pytest.mark.parametrize(
    ("own", "says"),
    [
        ({"rho": -1.0}, "rho is -1.0: a loss weight must be finite"),
        ({"rho": 100.0, "lr": 0.1}, "rho is 100: with lr 0.1 steps would swing"),
        ({"admm_from": 1.0}, "admm_from is 1.0: a share of the epochs before masks are pruned"),
        ({"share_lr": float("inf")}, "share_lr is inf: a learning rate, finite"),
    ],
)
def test_settings_that_cannot_be(own, says):
    with pytest.raises(ValueError, match=says):
        LPSConfig(method="lps", **own)
