from dataclasses import replace

import numpy as np
import oracles
import pytest
import torch
import torch.nn.functional as F
from tiny_learning import (
    EPOCHS,
    INPUTS,
    assert_same,
    frozen,
    global_generators,
    new_memory,
    start,
    tiny_method,
    tiny_tasks,
    train_tasks,
    without,
)
from torch.utils.flop_counter import FlopCounterMode

from sparcl_core.config import LearnerConfig
from sparcl_core.costs.flops import Flops, dense_forward, layer_shapes, per_sample
from sparcl_core.methods.registry import make_method
from sparcl_core.networks.models import build_model, load_state_
from sparcl_core.replay.buffer import offer_
from sparcl_core.sparsity import tdm
from sparcl_core.sparsity.ddr import DDRConfig
from sparcl_core.sparsity.dgm import DGMConfig
from sparcl_core.sparsity.masks import count_active
from sparcl_core.sparsity.tdm import TDMConfig
from sparcl_core.task_data import TaskData

METHODS = ("sgd", "er", "der", "derpp")


def total(sessions, column: str) -> Flops:
    return sum((getattr(session, column) for session in sessions), Flops())


def with_samples(memory, task: TaskData, rng_seed: int = 0):
    """`memory` whose buffer was offered all of `task`, with logits that no model wrote."""
    rng = np.random.default_rng(rng_seed)
    memory = frozen(memory)
    offer_(memory.buffer, task.x, task.y, rng.normal(size=(len(task.y), INPUTS.num_classes)), rng=rng)
    return memory


# --- the sparsities ---


@pytest.mark.parametrize(("model", "method"), [("mlp", "er"), ("mlp", "sgd"), ("cnn", "derpp"), ("cnn", "der")])
def test_counts_are_exact_and_masked_weights_exactly_zero_through_a_long_run(model, method):
    config = replace(tiny_method(model, 0.75, method=method, augment="crop-flip"), tdm=TDMConfig(p_intra=0.05, p_inter=0.05))
    learner, state, masks, memory = start(config)
    rng = np.random.default_rng(0)
    expected = {name: oracles.active_count(mask.size, 0.75) for name, mask in masks.items()}
    grown = {name: count + int(0.05 * masks[name].size + 0.5) for name, count in expected.items()}
    number = 0
    for task in tiny_tasks(2, samples=24):
        memory, counts = memory.in_task(len(task.y)), expected
        for session in range(5):
            what = "grow" if session == 0 and task.task else "adapt" if session == 1 or rng.random() < 0.5 else "rest"
            if what != "rest":
                number += 1
                importance, _ = learner.importance(state, masks, task, memory, device=0)
                update = tdm.plan_update(what, masks, state, importance, config=config.tdm, sparsity=0.75, number=number)
                masks = tdm.update_masks(masks, [state], update, config=config.tdm, sparsity=0.75, seed=0)
                counts = grown if what == "grow" else expected
            done = learner.train(state, masks, task, memory, epochs=int(rng.integers(1, 3)), device=0)
            assert count_active(masks) == counts
            for name, mask in masks.items():
                assert np.count_nonzero(done.state[name][~mask]) == 0
                moved = done.state[name] != state[name]
                assert moved.any() and not (moved & ~done.updated[name]).any()
                assert not (done.updated[name] & ~mask).any()
            state, memory = done.state, done.memory
    assert number >= 4


@pytest.mark.parametrize("sparsity", [0.5, 0.75, 0.9])
def test_a_gradient_mask_that_is_drawn_once_updates_exactly_the_share_1_minus_q(sparsity):
    config = replace(tiny_method("cnn", sparsity), dgm=DGMConfig(interval=1000))
    learner, state, masks, memory = start(config)
    task = tiny_tasks()[0]
    done = learner.train(state, masks, task, memory.in_task(len(task.y)), epochs=3, device=0)
    q = 1 - 0.8 * (1 - sparsity)
    assert count_active(done.updated) == {name: oracles.active_count(mask.size, q) for name, mask in masks.items()}


def test_redrawing_the_gradient_mask_reaches_more_weights():
    counts = []
    for interval in (1, 4, 1000):
        method = replace(tiny_method("cnn"), dgm=DGMConfig(keep=0.3, interval=interval))
        (done,) = train_tasks(method, tiny_tasks(1), epochs=3)
        counts.append(sum(count_active(done.updated).values()))
    assert counts[0] > counts[1] > counts[2]


def test_without_dgm_every_active_weight_is_updated():
    method = without(tiny_method("cnn"), "dgm")
    learner, state, masks, memory = start(method)
    task = tiny_tasks()[0]
    done = learner.train(state, masks, task, memory.in_task(len(task.y)), epochs=1, device=0)
    assert_same(done.updated, masks)


def test_without_ddr_every_epoch_trains_on_all_data():
    (done,) = train_tasks(without(tiny_method("cnn"), "ddr"), tiny_tasks(1), EPOCHS)
    assert done.samples == EPOCHS * 40
    assert done.memory.ddr.kept.all()


def test_without_weight_sparsity_nothing_is_masked():
    learner, state, masks, memory = start(tiny_method("cnn", sparsity=0.0))
    assert masks == {} and not learner.draws_gradient_masks and learner.layout.masked == frozenset()
    task = tiny_tasks()[0]
    done = learner.train(state, masks, task, memory.in_task(len(task.y)), epochs=1, device=0)
    assert all((done.state[name] != state[name]).mean() > 0.9 for name in ("conv2.weight", "fc.weight"))
    assert done.flops.train_sparse == 0 and done.updated == {}


def test_ddr_counts_the_devices_own_epochs_and_removes_in_four_stages():
    # rho = 0.3 of 40 samples are 12, in stages of 3 before epochs 1, 2, 3 and 4, here in sessions of one epoch
    learner, state, masks, memory = start(tiny_method("cnn"))
    task = tiny_tasks()[0]
    memory, samples, kept = memory.in_task(len(task.y)), [], np.ones(40, dtype=bool)
    for epoch in range(EPOCHS):
        done = learner.train(state, masks, task, memory, epochs=1, device=0)
        state, memory = done.state, done.memory
        samples.append(done.samples)
        assert memory.epochs == epoch + 1
        assert not (memory.ddr.kept & ~kept).any()
        kept = memory.ddr.kept
        assert (memory.ddr.passes > 0)[kept].all() and (memory.ddr.passes[~kept] == 0).all()
    assert samples == [40, 37, 34, 31] + [28] * 6
    assert set(task.y[kept]) == {0, 1}


def test_a_new_task_starts_with_all_its_data_and_no_epochs():
    first, second = train_tasks(tiny_method("cnn"), tiny_tasks(2), EPOCHS)
    assert first.samples == second.samples == 40 + 37 + 34 + 31 + 6 * 28
    assert second.memory.epochs == EPOCHS


# --- one step, recomputed ---

ONE_STEP = [
    ("sgd", True, "merged"), ("er", True, "merged"), ("der", False, "merged"),
    ("derpp", True, "merged"), ("derpp", False, "merged"), ("er", True, "two-term"), ("derpp", True, "two-term"),
]  # fmt: skip


@pytest.mark.parametrize(("method", "single_head", "importance"), ONE_STEP)
@pytest.mark.parametrize("joint", [True, False], ids=["joint", "separate"])
def test_one_step_equals_the_slow_reference(method, single_head, importance, joint):
    # The whole task is one batch and the whole buffer one draw, so that no order of samples matters.
    config = tiny_method("cnn", 0.75, "float64", method=method, single_head=single_head, batch_size=16, joint_forward=joint, lr=0.1)
    config = replace(config, dgm=DGMConfig(importance=importance, alpha=0.7, beta=0.3))
    capacity = 0 if method == "sgd" else 6
    learner, state, masks, memory = start(config, capacity)
    old, task = tiny_tasks(2, samples=16)
    memory = with_samples(memory, old).in_task(16)
    buffer = frozen(memory.buffer)
    done = learner.train(state, masks, task, memory, epochs=1, device=0)

    model = build_model(config.model, INPUTS.shape, INPUTS.num_classes)
    load_state_(model, state)
    parameters = dict(model.named_parameters())
    logits = model((torch.from_numpy(task.x).double() - 128) / 64)
    seen = logits.clone()
    if single_head:
        seen[:, [0, 1]] = -torch.inf
    current = F.cross_entropy(seen, torch.from_numpy(task.y))
    replay = 0 * logits.sum()
    if capacity:
        now = model((torch.from_numpy(buffer.x).double() - 128) / 64)
        cross = F.cross_entropy(now, torch.from_numpy(buffer.y))
        distilled = ((now - torch.from_numpy(buffer.logits)) ** 2).mean()
        replay = {"er": cross, "der": 0.1 * distilled, "derpp": 0.1 * distilled + 0.5 * cross}[method]
        classes = [2, 3] if single_head else None
        batch, held = (logits.tolist(), task.y.tolist()), (now.tolist(), buffer.y.tolist())
        if method == "er":
            assert done.loss == pytest.approx(oracles.er_loss(batch, held, 1.0, classes), rel=1e-9)
        if method == "derpp":
            stored = (now.tolist(), buffer.logits.tolist())
            assert done.loss == pytest.approx(oracles.derpp_loss(batch, stored, held, 0.1, 0.5, classes), rel=1e-9)
    of_current = dict(zip(parameters, torch.autograd.grad(current, list(parameters.values()), retain_graph=True), strict=True))
    of_replay = dict(zip(parameters, torch.autograd.grad(replay, list(parameters.values())), strict=True))

    for name in state:
        gradient = of_current[name] + of_replay[name]
        score = 0.7 * of_current[name].abs() + 0.3 * of_replay[name].abs() if importance == "two-term" else gradient.abs()
        moves = np.ones(gradient.shape, dtype=bool)
        if name in masks:
            flat = oracles.dgm_mask(masks[name].flatten().tolist(), score.flatten().tolist(), 0.8)
            moves = np.array(flat).reshape(gradient.shape)
            assert np.array_equal(done.updated[name], moves)
        assert np.allclose(done.state[name], state[name] - 0.1 * gradient.numpy() * moves, rtol=1e-9, atol=1e-12), name
    wrong = (seen.argmax(1).numpy() != task.y).astype(int)
    assert done.memory.ddr.misses.tolist() == wrong.tolist()
    assert (done.steps, done.samples, done.replayed) == (1, 16, {"sgd": 0, "er": 6, "der": 6, "derpp": 12}[method])


def test_an_er_step_at_half_the_rate_is_mammoths():
    # 6 samples and 6 replayed: the mean over the 12 is half of the sum of two means, so its gradient at lr 0.1 is that of the sum at 0.05
    config = tiny_method("cnn", 0.0, "float64", method="er", single_head=False, batch_size=6, lr=0.05)
    learner, state, masks, memory = start(config, 6)
    old, task = tiny_tasks(2, samples=6)
    memory = with_samples(memory, old).in_task(6)
    done = learner.train(state, masks, task, memory, epochs=1, device=0)
    model = build_model(config.model, INPUTS.shape, INPUTS.num_classes)
    load_state_(model, state)
    x, y = (torch.from_numpy(np.concatenate(pair)) for pair in ((task.x, memory.buffer.x), (task.y, memory.buffer.y)))
    F.cross_entropy(model((x.double() - 128) / 64), y).backward()
    for name, parameter in model.named_parameters():
        assert np.allclose(done.state[name], state[name] - 0.1 * parameter.grad.numpy(), rtol=1e-9, atol=1e-12), name


@pytest.mark.parametrize("single_head", [True, False])
def test_what_judges_a_sample_for_data_removal_is_a_setting(single_head):
    # a classifier that says class 0 of any sample, by its bias, is right over all classes only where the task's first class is 0
    wrong = {}
    for judged_by in ("seen-classes", "all-classes"):
        config = replace(tiny_method("mlp", single_head=single_head, batch_size=40, lr=1e-9), ddr=DDRConfig(judged_by=judged_by))
        learner, state, masks, memory = start(config)
        task = tiny_tasks()[1]  # classes 2 and 3, in turn
        state["classifier.weight"][...] = 0
        state["classifier.bias"][...] = [9.0, 0.0, 3.0, 1.0]
        wrong[judged_by] = learner.train(state, masks, task, memory.in_task(40), epochs=1, device=0).memory.ddr.misses.tolist()
    assert wrong["all-classes"] == [1] * 40
    assert wrong["seen-classes"] == ([0, 1] * 20 if single_head else [1] * 40)


def test_the_gradient_that_a_session_leaves_is_that_of_its_last_step_behind_its_gradient_mask():
    config = tiny_method("cnn", 0.75, "float64", batch_size=40)
    config = replace(config, tdm=TDMConfig(gradient="last-step", alpha=0.7), dgm=DGMConfig(keep=0.5, interval=1))
    learner, state, masks, memory = start(config)
    task = tiny_tasks()[1]
    memory = memory.in_task(40)
    first = learner.train(state, masks, task, memory, epochs=2, device=0)
    before = learner.train(state, masks, task, memory, epochs=1, device=0)
    last = learner.train(before.state, masks, task, before.memory, epochs=1, device=0)
    for name, mask in masks.items():
        moved = np.abs(before.state[name] - last.state[name]) / 0.05  # a step is lr times the masked gradient
        assert np.allclose(last.importance[name], 0.7 * moved, rtol=1e-6, atol=1e-12)
        assert np.array_equal(last.importance[name] > 0, last.updated[name]) and not last.importance[name][~mask].any()
        assert np.allclose(first.importance[name], last.importance[name], rtol=1e-9, atol=1e-12)
    importance, cost = learner.importance_after(last, masks, task, device=0)
    assert importance is last.importance and cost.importance == 0
    mean = replace(config, tdm=TDMConfig(alpha=0.7))
    other = start(mean)[0]
    done = other.train(state, masks, task, memory, epochs=2, device=0)
    assert done.importance is None and other.importance_after(done, masks, task, device=0)[1].importance > 0
    assert_same(done.state, first.state)  # what is left behind changes nothing of the training


@pytest.mark.parametrize("method", ["er", "derpp"])
@pytest.mark.parametrize("model", ["mlp", "cnn"])
@pytest.mark.parametrize("sparsity", [0.0, 0.75])
def test_one_joint_forward_pass_is_the_same_mathematics_as_separate_ones(model, method, sparsity):
    runs = [
        train_tasks(tiny_method(model, sparsity, "float64", method=method, joint_forward=joint, augment="crop"), tiny_tasks(2, 20), 4)
        for joint in (True, False)
    ]
    for joint, separate in zip(*runs, strict=True):
        for name, value in joint.state.items():
            assert np.allclose(value, separate.state[name], rtol=1e-9, atol=1e-12), name
        assert_same(joint.updated, separate.updated)
        assert_same(joint.memory.ddr, separate.memory.ddr)
        assert np.array_equal(joint.memory.buffer.y, separate.memory.buffer.y)
        assert joint.flops == separate.flops
        assert joint.loss == pytest.approx(separate.loss, rel=1e-9)


def test_batch_normalisation_forbids_joining_batches():
    assert not start(tiny_method("resnet18"))[0].is_joint
    assert start(tiny_method("cnn"))[0].is_joint and not start(tiny_method("cnn", joint_forward=False))[0].is_joint


def test_the_resnet_trains_with_exact_zeros_and_moving_statistics():
    learner, state, masks, memory = start(tiny_method("resnet18", 0.9, batch_size=16))
    task = tiny_tasks(1, 32)[0]
    done = learner.train(state, masks, task, memory.in_task(32), epochs=1, device=0)
    assert len(masks) == 16
    for name, mask in masks.items():
        assert np.count_nonzero(done.state[name][~mask]) == 0
    assert (done.state["bn1.running_mean"] != state["bn1.running_mean"]).any()


# --- values, not objects with a history ---


@pytest.mark.parametrize("model", ["mlp", "cnn"])
def test_training_is_deterministic_to_the_bit_and_touches_none_of_its_inputs(model):
    learner, state, masks, memory = start(tiny_method(model, augment="crop-flip"))
    old, task = tiny_tasks()
    memory = with_samples(memory, old).in_task(len(task.y))
    given = (state, masks, task, memory)
    before = frozen(given)
    first = frozen(learner.train(*given, epochs=3, device=4))
    for left, right in zip(given, before, strict=True):
        assert_same(left, right)
    learner.train(state, masks, old, with_samples(new_memory(learner), old), epochs=0, device=1)  # someone else in between
    assert_same(first, learner.train(*given, epochs=3, device=4))
    assert_same(first, start(tiny_method(model, augment="crop-flip"))[0].train(*before, epochs=3, device=4))


@pytest.mark.parametrize("change", ["device", "seed", "task", "epoch"])
def test_every_part_of_the_address_changes_the_draws(change):
    method, task = without(tiny_method("mlp"), "ddr"), tiny_tasks(1)[0]
    learner, state, masks, memory = start(method)
    memory = memory.in_task(len(task.y))
    base = learner.train(state, masks, task, memory, epochs=1, device=0)
    other = start(method, seed=8)[0] if change == "seed" else learner
    task = replace(task, task=1) if change == "task" else task
    memory = replace(memory, epochs=1) if change == "epoch" else memory
    changed = other.train(state, masks, task, memory, epochs=1, device=1 if change == "device" else 0)
    assert not np.array_equal(base.memory.buffer.y, changed.memory.buffer.y)
    assert not np.array_equal(base.state["first.weight"], changed.state["first.weight"])


def test_every_epoch_is_a_pass_over_all_data_in_an_order_of_its_own():
    # A buffer with room for all keeps samples in the order in which they were trained on.
    learner, state, masks, memory = start(without(tiny_method("mlp"), "ddr"), capacity=80)
    orders = []
    for device in (0, 1):
        for task in tiny_tasks(2):
            rows = {image.tobytes(): i for i, image in enumerate(task.x)}
            done = learner.train(state, masks, task, memory.in_task(40), epochs=2, device=device)
            order = [rows[image.tobytes()] for image in done.memory.buffer.x]
            orders += [tuple(order[:40]), tuple(order[40:])]
    assert all(sorted(order) == list(range(40)) for order in orders)
    assert len(set(orders)) == 8  # 2 devices x 2 tasks x 2 epochs


def test_sessions_are_only_cuts_where_no_gradient_mask_is_drawn():
    method, task = without(tiny_method("cnn"), "dgm"), tiny_tasks(1)[0]
    learner, state, masks, memory = start(method)
    memory = memory.in_task(len(task.y))
    whole = frozen(learner.train(state, masks, task, frozen(memory), epochs=6, device=0))
    parts = []
    for epochs in (1, 2, 3):
        parts.append(learner.train(state, masks, task, memory, epochs=epochs, device=0))
        state, memory = parts[-1].state, parts[-1].memory
    assert_same(state, whole.state)
    assert_same(memory, whole.memory)
    assert total(parts, "flops") == whole.flops and total(parts, "dense_flops") == whole.dense_flops
    assert sum(part.samples for part in parts) == whole.samples


def test_training_leaves_the_global_generators_alone():
    before = global_generators()
    train_tasks(tiny_method("cnn", augment="crop-flip"), tiny_tasks(1), 1)
    assert global_generators() == before


def test_training_that_diverges_says_so_and_what_to_do():
    """Also where weights stay finite and only a loss is not: a mean of losses would be infinite, and say nothing."""
    for lr, shown in ((1e4, "10000"), (1e30, r"1e\+30")):
        told = rf"diverged in task 0, local epoch 0, step \d of the round: the loss is (inf|nan); lower learner.lr \({shown}\)"
        with pytest.raises(FloatingPointError, match=told):
            train_tasks(tiny_method("mlp", lr=lr), tiny_tasks(1), 1)


# --- replay ---


@pytest.mark.parametrize("augment", ["none", "crop-flip"])
def test_the_buffer_holds_inputs_as_they_are_with_the_logits_of_their_own_training_step(augment):
    method = tiny_method("cnn", dtype="float64", batch_size=40, augment=augment)
    learner, state, masks, memory = start(method, capacity=100)
    task = tiny_tasks(1)[0]
    done = learner.train(state, masks, task, memory.in_task(40), epochs=1, device=0)
    buffer = done.memory.buffer
    rows = {image.tobytes(): i for i, image in enumerate(task.x)}
    order = [rows[image.tobytes()] for image in buffer.x[:40]]  # a KeyError if an augmented input were held
    assert sorted(order) == list(range(40)) and np.array_equal(buffer.y[:40], task.y[order])
    load_state_(learner.model, state)
    wanted = learner.model((torch.from_numpy(task.x[order]).double() - 128) / 64).detach().numpy()
    assert np.allclose(buffer.logits[:40], wanted) == (augment == "none")
    assert np.isfinite(buffer.logits).all()  # all classes, though the loss saw the task's alone


def test_held_logits_are_never_refreshed():
    learner, state, masks, memory = start(tiny_method("cnn"), capacity=200)
    task = tiny_tasks(1)[0]
    first = learner.train(state, masks, task, memory.in_task(40), epochs=1, device=0)
    second = learner.train(first.state, masks, task, first.memory, epochs=1, device=0)
    assert np.array_equal(second.memory.buffer.logits[:40], first.memory.buffer.logits[:40])
    assert second.memory.buffer.offered == first.memory.buffer.offered + second.samples


def test_replay_starts_with_the_first_sample_held():
    # batches of 8 beside draws of min(8, held): nothing at the first step, 8 at each of the other four
    (done,) = train_tasks(tiny_method("mlp", method="er"), tiny_tasks(1), 1)
    assert (done.steps, done.samples, done.replayed) == (5, 40, 4 * 8)


def test_replay_can_wait_for_the_second_task_as_in_the_released_code():
    first, second = train_tasks(tiny_method("mlp", method="derpp", replay_from="second-task"), tiny_tasks(2), 1)
    assert first.replayed == 0 and second.replayed == 2 * 5 * 8
    assert first.memory.buffer.offered == 40


@pytest.mark.parametrize(("single_head", "moves"), [(True, False), (False, True)])
def test_single_head_leaves_the_classifier_rows_of_other_tasks_alone(single_head, moves):
    learner, state, masks, memory = start(tiny_method("cnn", method="sgd", single_head=single_head), capacity=0)
    task = tiny_tasks()[1]
    done = learner.train(state, masks, task, memory.in_task(40), epochs=1, device=0)
    for name in ("classifier.weight", "classifier.bias"):
        moved = done.state[name] != state[name]
        assert moved[2:].any() and moved[:2].any() == moves


def test_sgd_keeps_no_samples():
    (done,) = train_tasks(tiny_method("mlp", method="sgd"), tiny_tasks(1), 1, capacity=0)
    assert done.replayed == 0 and len(done.memory.buffer) == 0


# --- importance for TDM ---


def gradients(config, state, masks, x, y, logits=None, classes=None):
    """Gradients of one term on `x` as one batch: cross-entropy, or the distillation of `logits` and cross-entropy (DER++)."""
    model = build_model(config.model, INPUTS.shape, INPUTS.num_classes)
    load_state_(model, state)
    out = model((torch.from_numpy(x).double() - 128) / 64)
    if logits is not None:
        loss = 0.1 * ((out - torch.from_numpy(logits)) ** 2).mean() + 0.5 * F.cross_entropy(out, torch.from_numpy(y))
    else:
        hidden = torch.full_like(out, -torch.inf)
        hidden[:, list(classes)] = 0
        loss = F.cross_entropy(out + hidden, torch.from_numpy(y))
    parameters = dict(model.named_parameters())
    return {name: g.numpy() for name, g in zip(masks, torch.autograd.grad(loss, [parameters[n] for n in masks]), strict=True)}


@pytest.mark.parametrize("form", ["merged", "two-term"])
@pytest.mark.parametrize("joint", [True, False], ids=["joint", "separate"])
def test_importance_is_the_gradient_over_all_data_that_ddr_keeps_and_over_the_buffer(form, joint):
    # The buffer (6) is smaller than every batch (8, 8, 8), so each replay draw is the whole buffer.
    config = replace(tiny_method("cnn", 0.75, "float64", joint_forward=joint), tdm=TDMConfig(importance=form, alpha=0.7, beta=0.2))
    learner, state, masks, memory = start(config, capacity=6)
    old, task = tiny_tasks(2, samples=30)
    memory = with_samples(memory, old).in_task(30)
    memory.ddr.kept[3:9] = False
    kept = memory.ddr.kept
    scores, _ = learner.importance(state, masks, task, memory, device=0)
    current = gradients(config, state, masks, task.x[kept], task.y[kept], classes=(2, 3))
    replay = gradients(config, state, masks, memory.buffer.x, memory.buffer.y, memory.buffer.logits)
    for name, mask in masks.items():
        together = 0.7 * np.abs(current[name] + replay[name])
        wanted = together if form == "merged" else 0.7 * np.abs(current[name]) + 0.2 * np.abs(replay[name])
        assert np.allclose(scores[name], wanted * mask, rtol=1e-9, atol=1e-14)


def test_importance_weights_samples_alike_in_a_short_last_batch():
    config = tiny_method("cnn", 0.75, "float64", method="sgd")  # 20 samples: batches of 8, 8 and 4
    learner, state, masks, memory = start(config, capacity=0)
    task = tiny_tasks(1, samples=20)[0]
    scores, _ = learner.importance(state, masks, task, memory.in_task(20), device=0)
    whole = gradients(config, state, masks, task.x, task.y, classes=(0, 1))
    for name, mask in masks.items():
        assert np.allclose(scores[name], 0.5 * np.abs(whole[name]) * mask, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("form", ["merged", "two-term"])
def test_importance_is_zero_at_inactive_places_and_leaves_weights_and_memory_alone(form):
    learner, state, masks, memory = start(replace(tiny_method("cnn"), tdm=TDMConfig(importance=form)))
    old, task = tiny_tasks()
    given = (state, masks, task, with_samples(memory, old).in_task(40))
    before = frozen(given)
    scores, _ = learner.importance(*given, device=0)
    for left, right in zip(given, before, strict=True):
        assert_same(left, right)
    assert list(scores) == list(masks)
    for name, mask in masks.items():
        assert scores[name].dtype == np.float64 and scores[name].shape == mask.shape
        assert (scores[name][~mask] == 0).all() and (scores[name] >= 0).all() and (scores[name][mask] > 0).any()
    assert_same(scores, learner.importance(*given, device=0)[0])


def test_training_does_not_notice_that_importance_was_computed():
    learner, state, masks, memory = start(tiny_method("cnn"))
    task = tiny_tasks(1)[0]
    memory = memory.in_task(40)
    plain = frozen(learner.train(state, masks, task, frozen(memory), epochs=2, device=0))
    learner.importance(state, masks, task, memory, device=0)
    assert_same(plain, learner.train(state, masks, task, memory, epochs=2, device=0))


@pytest.mark.parametrize(("batches", "current"), [(0, 20), (1, 8), (2, 16), (9, 20)])
def test_importance_costs_a_full_pass_per_sample_in_a_column_of_its_own(batches, current):
    # derpp, 6 held: every batch (8, 8, 4) takes two draws of min(its size, 6)
    learner, state, masks, memory = start(replace(tiny_method("cnn"), tdm=TDMConfig(batches=batches)), capacity=6)
    old, task = tiny_tasks(2, samples=20)
    _, cost = learner.importance(state, masks, task, with_samples(memory, old).in_task(20), device=0)
    replayed = {8: 12, 16: 24, 20: 32}[current]
    active = count_active(masks)
    step = per_sample(learner.layers, active, active)
    assert cost.importance == (step.sparse + step.dense) * (current + replayed)
    assert cost.masks == 3 * sum(active.values()) and cost.train == 0


# --- counting ---


@pytest.mark.parametrize("joint", [True, False], ids=["joint", "separate"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("model", ["mlp", "cnn"])
def test_a_dense_session_costs_what_torch_counts(model, method, joint):
    config = without(tiny_method(model, 0.0, method=method, joint_forward=joint), "ddr")
    learner, state, masks, memory = start(config, capacity=0 if method == "sgd" else 12)
    task = tiny_tasks(1, samples=20)[0]
    with FlopCounterMode(display=False) as counter:
        done = learner.train(state, masks, task, memory.in_task(20), epochs=2, device=0)
    assert done.flops.train == counter.get_total_flops() > 0
    assert done.flops.importance == done.flops.masks == 0


def test_a_dense_sgd_session_costs_its_steps():
    config = without(tiny_method("cnn", 0.0, method="sgd"), "ddr")
    learner, state, masks, memory = start(config, capacity=0)
    task = tiny_tasks(1, samples=24)[0]
    done = learner.train(state, masks, task, memory.in_task(24), epochs=2, device=0)
    step = per_sample(layer_shapes(learner.model, INPUTS.shape), {}, {})
    assert done.steps == 6
    assert done.flops.train == 6 * step.step(8).train
    assert done.flops.paper == 48 * 3 * dense_forward(learner.layers)


def test_a_sparse_session_is_counted_step_by_step():
    # 20 samples in batches of 8, 8, 4; two epochs; two draws of min(batch, held) with room for 6: nothing at the first step.
    # The gradient mask is drawn at steps 0 and 4, where the weight gradient is computed at all active weights.
    config = replace(without(tiny_method("cnn", 0.75), "ddr"), dgm=DGMConfig(interval=4))
    learner, state, masks, memory = start(config, capacity=6)
    task = tiny_tasks(1, samples=20)[0]
    done = learner.train(state, masks, task, memory.in_task(20), epochs=2, device=0)
    active = count_active(masks)
    updated = {name: oracles.active_count(mask.size, 0.8) for name, mask in masks.items()}
    full, masked = per_sample(learner.layers, active, active), per_sample(learner.layers, active, updated)
    assert masked.sparse < full.sparse
    steps = [(8, 0, full), (8, 12, masked), (4, 8, masked), (8, 12, masked), (8, 12, full), (4, 8, masked)]
    assert done.flops == Flops(
        train_sparse=sum((current + replayed) * cost.sparse for current, replayed, cost in steps),
        train_dense=sum((current + replayed) * full.dense for current, replayed, _ in steps),
        masks=2 * sum(active.values()),
        paper=sum((3 * current + replayed) * full.forward for current, replayed, _ in steps),
        samples=40 + 52,
        steps=6,
    )
    assert (done.steps, done.samples, done.replayed) == (6, 40, 52)


@pytest.mark.parametrize("capacity", [3, 100])
@pytest.mark.parametrize("replay_from", ["first-sample", "second-task"])
@pytest.mark.parametrize("method", ["er", "derpp"])
def test_the_dense_twin_of_a_sparse_run_costs_what_the_dense_run_costs(method, replay_from, capacity):
    settings = {"method": method, "replay_from": replay_from, "batch_size": 7}
    sparse = train_tasks(tiny_method("cnn", 0.75, **settings), tiny_tasks(2), 6, capacity)
    dense = train_tasks(without(tiny_method("cnn", 0.0, **settings), "ddr"), tiny_tasks(2), 6, capacity)
    for thin, whole in zip(sparse, dense, strict=True):
        assert thin.dense_flops.train == whole.flops.train
        assert thin.dense_flops.paper == whole.flops.paper
        assert whole.dense_flops == whole.flops  # a dense device is its own twin
        assert thin.flops.total < thin.dense_flops.total
        assert thin.samples < whole.samples


def test_flops_do_not_depend_on_the_learning_rate_or_the_labels():
    one, two = (train_tasks(tiny_method("cnn", lr=lr), tiny_tasks(1), EPOCHS)[0].flops for lr in (0.05, 1e-6))
    assert one == two


# --- rules ---


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr": 0.0}, "lr is 0.0.*above 0"),
        ({"lr": float("nan")}, "lr is nan.*above 0"),
        ({"batch_size": 0}, "batch_size is 0.*at least 1"),
        ({"buffer_share": 1.5}, "buffer_share is 1.5"),
        ({"buffer_size": -1}, "buffer_size -1"),
        ({"alpha": -0.1}, "alpha is -0.1.*negative"),
        ({"beta": -0.1}, "beta is -0.1.*negative"),
        ({"replay_weight": -1.0}, "replay_weight is -1.0.*negative"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        LearnerConfig(**settings)


@pytest.mark.parametrize("sparsity", [1.0, -0.1])
def test_a_sparsity_outside_of_0_to_1_is_refused(sparsity):
    with pytest.raises(ValueError, match=rf"sparsity is {sparsity}: it must be in \[0, 1\)"):
        tiny_method("cnn", sparsity)


def test_gradients_denser_than_the_weights_are_refused_only_where_gradients_are_masked():
    narrow = DGMConfig(sparsity=0.5)
    with pytest.raises(ValueError, match="dgm.sparsity is 0.5"):
        replace(tiny_method("cnn", 0.75), dgm=narrow)
    assert replace(tiny_method("cnn", 0.75), dgm=replace(narrow, enabled=False)).sparsity == 0.75
    assert replace(tiny_method("cnn", 0.0), dgm=narrow).sparsity == 0.0


@pytest.mark.parametrize(
    ("settings", "stream", "capacity"),
    [
        ({"buffer_share": 0.1}, 100, 10),
        ({"buffer_share": 0.1}, 101, 11),  # rounded up
        ({"buffer_share": 0.07}, 100, 7),  # 0.07 * 100 is 7.000000000000001 in floats
        ({"buffer_share": 0.1, "buffer_size": 200}, 100, 200),
        ({"buffer_share": 0.0}, 100, 0),
        ({"method": "sgd", "buffer_size": 200}, 100, 0),
    ],
)
def test_buffer_capacity(settings, stream, capacity):
    assert make_method(LearnerConfig(**settings)).buffer_capacity(stream) == capacity


def test_the_layout_names_what_is_sparse():
    learner = start(tiny_method("cnn"))[0]
    assert learner.layout.masked == {"conv2.weight", "fc.weight"}
    assert list(learner.layout.shapes) == [name for name, _ in learner.model.named_parameters()]


def test_ddr_can_be_told_how_often_and_how_much():
    # two stages of five epochs each within the whole task: half of the data is gone after the second
    method = replace(tiny_method("mlp"), ddr=DDRConfig(remove=0.5, cut=1.0, stage_epochs=5))
    (done,) = train_tasks(method, tiny_tasks(1), EPOCHS)
    assert done.samples == 5 * 40 + 5 * 30
    assert done.memory.ddr.stages == 1
