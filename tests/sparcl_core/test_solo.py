from dataclasses import replace

import numpy as np
import oracles
import pytest
import torch
from tiny_learning import INPUTS, SEED, assert_same, frozen, start, tiny_method, tiny_tasks, without

from sparcl_core.costs.flops import Flops
from sparcl_core.learner import Learner
from sparcl_core.metrics.continual import correct_by_task
from sparcl_core.networks.models import load_state_
from sparcl_core.solo import start_model, train_stream
from sparcl_core.sparsity import tdm
from sparcl_core.sparsity.ddr import DDRConfig
from sparcl_core.sparsity.masks import count_active
from sparcl_core.sparsity.tdm import TDMConfig

TASKS = tiny_tasks(2, samples=24)
EPOCHS = 5


def sparcl(model: str = "cnn", sparsity: float = 0.75, **learner):
    """Shares that are more than one weight of the tiny layers: conv2 has 576, fc 384."""
    return replace(tiny_method(model, sparsity, **learner), tdm=TDMConfig(p_intra=0.125, p_inter=0.0625))


def run(method, tasks=TASKS, epochs=EPOCHS, seed=SEED, session_epochs=0):
    """What was observed after every session."""
    seen = []
    last = train_stream(
        method, INPUTS, tasks, task_epochs=epochs, seed=seed, observe=lambda progress: seen.append(frozen(progress)),
        session_epochs=session_epochs,
    )  # fmt: skip
    assert_same(last, seen[-1])
    return seen


def summed(seen, column):
    return sum((getattr(progress, column) for progress in seen), Flops())


@pytest.mark.parametrize(("rescale", "factor"), [(True, 2.0), (False, 1.0)])  # 1 / sqrt(0.25)
def test_start_is_masked_exact_and_rescaled_if_asked_for(rescale, factor):
    method = sparcl()
    method = replace(method, model=replace(method.model, rescale=rescale))
    learner = Learner(method, INPUTS, EPOCHS, SEED)
    (state, masks), (dense, full) = start_model(learner, method, SEED), start_model(learner, replace(method, sparsity=0.0), SEED)
    assert count_active(masks) == {"conv2.weight": 144, "fc.weight": 96}
    assert count_active(full) == {"conv2.weight": 576, "fc.weight": 384}
    for name, value in state.items():
        assert np.array_equal(value, dense[name] * masks[name] * np.float32(factor) if name in masks else dense[name])
        assert name not in masks or np.count_nonzero(value) == masks[name].sum()


def test_masks_follow_the_schedule_of_the_method():
    # conv2: 576 weights, 144 at s = 0.75 and 36 more after an inter-task growth; fc: 384, 96 and 24
    seen = run(sparcl())
    before = start(sparcl(), epochs=EPOCHS)[2]
    for task in range(2):
        for progress, epoch in zip(seen[task * EPOCHS :], range(EPOCHS), strict=False):
            what = oracles.tdm_action_at(task, epoch, EPOCHS, 1)
            assert (progress.task, progress.epoch) == (task, epoch + 1)
            extra = (36, 24) if what == "grow" else (0, 0)
            assert list(count_active(progress.masks).values()) == [144 + extra[0], 96 + extra[1]]
            changed = any(not np.array_equal(progress.masks[name], before[name]) for name in before)
            assert changed == (what != "rest")
            before = progress.masks
            for name, mask in progress.masks.items():
                assert np.count_nonzero(progress.state[name][~mask]) == 0
    assert len(seen) == 2 * EPOCHS


@pytest.mark.parametrize("importance", ["merged", "two-term"])
def test_every_adaptation_keeps_what_the_slow_reference_ranks_highest(importance):
    method = sparcl("mlp")
    method = replace(method, tdm=replace(method.tdm, importance=importance))
    learner, seen = Learner(method, INPUTS, EPOCHS, SEED), run(method)
    checked = 0
    for before, after in zip(seen, seen[1:], strict=False):
        if oracles.tdm_action_at(after.task, after.epoch - 1, EPOCHS, 1) == "adapt":
            scores, _ = learner.importance(before.state, before.masks, TASKS[before.task], before.memory, device=0)
            for name, mask in before.masks.items():
                weights = before.state[name].astype(float).flatten().tolist()
                kept = oracles.tdm_survivors(mask.flatten().tolist(), weights, scores[name].flatten().tolist(), 0.75, 0.125)
                assert after.masks[name].flatten()[kept].all()
                assert sum(kept) == oracles.active_count(mask.size, 0.875)
                checked += 1
    assert checked == 2 * 3


def test_updates_are_numbered_through_the_whole_run_so_that_they_can_be_redone():
    method, seen, number = sparcl("mlp"), run(sparcl("mlp")), 0
    learner = Learner(method, INPUTS, EPOCHS, SEED)
    for before, after in zip(seen, seen[1:], strict=False):
        what = oracles.tdm_action_at(after.task, after.epoch - 1, EPOCHS, 1)
        if what != "rest":
            number += 1
            importance, _ = learner.importance(before.state, before.masks, TASKS[before.task], before.memory, device=0)
            update = tdm.plan_update(what, before.masks, before.state, importance, config=method.tdm, sparsity=0.75, number=number)
            assert_same(after.masks, tdm.update_masks(before.masks, [], update, config=method.tdm, sparsity=0.75, seed=SEED))
    assert number == 3 + 1 + 3


def test_the_same_seed_gives_the_same_bits_and_another_one_does_not():
    one, two, other = run(sparcl()), run(sparcl()), run(sparcl(), seed=SEED + 1)
    assert_same(one[-1], two[-1])
    assert any(not np.array_equal(one[-1].masks[name], other[-1].masks[name]) for name in one[-1].masks)
    assert not np.array_equal(one[-1].memory.buffer.y, other[-1].memory.buffer.y)


@pytest.mark.parametrize("off", ["tdm", "ddr", "dgm"])
def test_each_mechanism_can_be_switched_off_alone(off):
    full, part = run(sparcl()), run(without(sparcl(), off))
    first = start(sparcl(), epochs=EPOCHS)[2]
    assert all(np.isfinite(value).all() for value in part[-1].state.values())
    moved = any(not np.array_equal(part[-1].masks[name], first[name]) for name in first)
    assert moved == (off != "tdm")
    assert part[-1].memory.ddr.kept.all() == (off == "ddr")
    draws = summed(full, "flops").masks - summed(part, "flops").masks
    assert summed(part, "flops").importance == 0 if off == "tdm" else summed(part, "flops").importance > 0
    assert draws > 0 if off in ("tdm", "dgm") else draws == 0  # rankings of weights, and of gradients
    if off == "ddr":
        assert summed(part, "flops").train > summed(full, "flops").train


def test_all_switched_off_leaves_a_fixed_random_mask_and_dense_passes_over_the_data():
    seen = run(without(sparcl(), "tdm", "ddr", "dgm"))
    first = start(sparcl(), epochs=EPOCHS)[2]
    for progress in seen:
        assert_same(progress.masks, first)
        assert progress.flops.importance == progress.flops.masks == 0
        assert progress.memory.ddr.kept.all()


def test_without_mask_updates_and_gradient_masks_sessions_are_only_cuts():
    method = without(sparcl(), "tdm", "dgm")
    fine, coarse, odd = run(method, session_epochs=1), run(method, session_epochs=5), run(method, session_epochs=3)
    assert [len(seen) for seen in (fine, coarse, odd)] == [10, 2, 4]
    for other in (coarse, odd):
        assert_same(fine[-1].state, other[-1].state)
        assert_same(fine[-1].memory, other[-1].memory)
        assert summed(fine, "flops") == summed(other, "flops")


@pytest.mark.parametrize("method", ["er", "derpp"])
def test_the_dense_twin_of_the_whole_run_is_the_dense_run(method):
    thin = run(sparcl(method=method))
    whole = run(without(sparcl(sparsity=0.0, method=method), "ddr"))
    assert summed(thin, "dense_flops").train == summed(whole, "flops").train
    assert summed(thin, "dense_flops").paper == summed(whole, "flops").paper
    assert summed(thin, "flops").total < summed(whole, "flops").total


def test_importance_is_paid_for_once_before_every_adaptation():
    paid = [progress.flops.importance > 0 for progress in run(sparcl())]
    follows = [oracles.tdm_action_at(0, epoch + 1, EPOCHS, 1) == "adapt" for epoch in range(EPOCHS - 1)] + [False]
    assert paid == follows * 2


def test_the_buffer_is_sized_by_the_whole_stream():
    assert run(sparcl(buffer_size=0, buffer_share=0.25))[-1].memory.buffer.capacity == 12  # of 2 x 24 samples
    assert run(sparcl(method="sgd"))[-1].memory.buffer.capacity == 0


def test_ddr_starts_afresh_with_every_task():
    method = replace(sparcl(), ddr=DDRConfig(remove=0.5, cut=0.4))  # K = 5: removal before epochs 1 and 2
    kept = [int(progress.memory.ddr.kept.sum()) for progress in run(method)]
    assert kept == [24, 18, 12, 12, 12] * 2


@pytest.mark.parametrize("sparsity", [0.0, 0.75, 0.9])
def test_it_learns_what_can_be_learned(sparsity):
    method = replace(tiny_method("cnn", sparsity, lr=0.1), tdm=TDMConfig())
    tasks = tiny_tasks(2, samples=40)
    last = run(method, tasks, epochs=10)[-1]
    learner = Learner(method, INPUTS, 10, SEED)
    load_state_(learner.model, last.state)
    x = np.concatenate([task.x for task in tasks])
    y = np.concatenate([task.y for task in tasks])
    logits = learner.model((torch.from_numpy(x).float() - 128) / 64).detach().numpy()
    class_il, task_il = correct_by_task(logits, y, [task.classes for task in tasks])
    assert task_il.min() > 0.9  # chance: 0.5
    assert class_il.mean() > 0.6  # chance: 0.25


def test_a_stream_too_short_for_the_schedule_is_refused_before_training():
    with pytest.raises(ValueError, match="3 epochs has 3 stages .*TDM needs at least 4"):
        run(sparcl(), epochs=3)
