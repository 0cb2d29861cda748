"""A round's budget of FLOPs: no step goes beyond it but the first, and nothing else changes."""

from dataclasses import replace

import pytest
from tiny_learning import ANYWHERE, assert_same, start, tiny_method, tiny_tasks, with_learner, without

from sparcl_core.config import LearnerConfig
from sparcl_core.costs.flops import per_sample
from sparcl_core.training.session import SessionLoop


def session(config, budget: float, epochs: int = 2, tasks: int = 1):
    config = replace(config, learner=replace(config.learner, flops_budget=budget))
    learner, state, masks, memory = start(config)
    for task in tiny_tasks(tasks, 24):
        memory, _ = learner.begin_task(state, masks, task, memory, device=0)
        done = learner.train(state, masks, task, memory, epochs=epochs, device=0)
        state, memory = done.state, learner.end_task(done.state, masks, task, done.memory, device=0)[0]
    return learner, done


@pytest.mark.parametrize("method", sorted(ANYWHERE))
@pytest.mark.parametrize("sparsity", [0.0, 0.75])
def test_as_many_steps_as_fit(method, sparsity, monkeypatch):
    """With a budget of exactly what the first steps take, these are taken; with one FLOP less, one step fewer (but the first)."""
    config, so_far = with_learner(without(tiny_method("cnn", sparsity), "ddr"), method), []
    step = SessionLoop.step

    def counted(self, *args):
        step(self, *args)
        so_far.append(self.flops.total + self.setup.frozen.flops.total)

    monkeypatch.setattr(SessionLoop, "step", counted)
    session(config, 0.0, tasks=2)
    behind = behind_the_steps(config)
    after = so_far[-6:]  # of the second task, whose sessions have all there is: teachers, old weights, a filled buffer
    for steps in (1, 2, 4):
        _, done = session(config, float(after[steps - 1]), tasks=2)
        assert (done.steps, done.samples, done.memory.epochs) == (steps, 8 * steps, 2)
        assert done.flops.total == after[steps - 1] + behind(done)
    assert session(config, after[3] - 1.0, tasks=2)[1].steps == 3
    assert session(config, 1.0, tasks=2)[1].steps == 1


def behind_the_steps(config):
    """FLOPs of what a method computes behind the steps of a session, which no budget holds back."""
    learner, _, masks, _ = start(config)
    forward = learner.cost_at(masks).forward
    return lambda done: learner.method.session_passes(done.memory.ddr.kept.size).taught * forward


def test_a_budget_that_is_enough_changes_nothing():
    config = tiny_method("cnn")
    (_, free), (_, bound) = session(config, 0.0), session(config, 1e18)
    assert_same({"a": free}, {"a": bound})


def test_the_dense_twin_has_the_same_budget_and_gets_less_far_with_it():
    config = without(with_learner(tiny_method("cnn", 0.75), "sgd"), "ddr", "dgm")
    learner, _ = session(config, 0.0)
    a_step = per_sample(learner.layers, {}, {}).step(8).total
    _, sparse = session(config, 2.5 * a_step)
    _, dense = session(without(with_learner(tiny_method("cnn", 0.0), "sgd"), "ddr"), 2.5 * a_step)
    assert dense.steps == 2 < sparse.steps
    twins = (sparse.dense_flops, dense.flops, dense.dense_flops)
    assert len({(one.train, one.total, one.samples, one.steps, one.paper) for one in twins}) == 1  # columns may be split otherwise


@pytest.mark.parametrize("budget", [-1.0, float("inf"), float("nan")])
def test_a_budget_that_is_none(budget):
    with pytest.raises(ValueError, match="flops_budget is .*: finite and not negative; 0 is no budget"):
        LearnerConfig(flops_budget=budget)
