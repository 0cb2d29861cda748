from dataclasses import replace

import numpy as np
import oracles
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from tiny_learning import INPUTS, start, tiny_method, tiny_tasks, without

from sparcl_core.inputs import normalise
from sparcl_core.networks.models import build_model, load_state_
from sparcl_core.sparsity.masks import apply_masks_, count_active, initial_masks
from sparcl_core.sparsity.schemes import make_scheme
from sparcl_core.sparsity.settings import MaskConfig
from sparcl_core.sparsity.tdm import TDMConfig

CONFIG = MaskConfig(scheme="rigl", stage_epochs=1)
SHAPES = {"conv": (10, 5, 2, 2), "fc": (20, 10)}


def scheme_of(config=CONFIG, sparsity=0.75, epochs=20, seed=3):
    return make_scheme(config, TDMConfig(), sparsity, task_epochs=epochs, seed=seed)


# -- when, and how much


def test_the_share_falls_on_a_cosine_that_ends_at_three_quarters_of_a_task():
    scheme = scheme_of()
    for epoch in range(16):
        assert scheme.share(epoch) == pytest.approx(oracles.rigl_share(epoch, 20, 0.3, 0.75))
    assert (scheme.share(0), scheme.share(15), scheme.share(19)) == (pytest.approx(0.3), pytest.approx(0), pytest.approx(0))
    assert scheme_of(replace(CONFIG, exchange=0.5, until=1.0)).share(10) == pytest.approx(0.25)


def test_updates_stop_there_and_begin_anew_with_each_task():
    schedule = scheme_of(replace(CONFIG, stage_epochs=4)).schedule(2)
    for task in (0, 2):
        adapts = [session for session in range(11) if schedule.action(task, session) == "adapt"]
        assert adapts == [2, 4, 6]  # epochs 4, 8, 12 of 20; 16 is past 15


# -- one update

LAYER = st.lists(st.tuples(st.booleans(), st.integers(-3, 3), st.integers(-3, 3)), min_size=2, max_size=40).filter(
    lambda layer: any(active for active, _, _ in layer)
)


@given(LAYER, st.integers(0, 19))
def test_an_update_equals_the_slow_reference(layer, epoch):
    active, weights, gradients = [list(column) for column in zip(*layer, strict=True)]
    mask, scheme = np.array(active), scheme_of(replace(CONFIG, exchange=0.9))
    state, scores = {"w": np.array(weights, float) * mask}, {"w": np.abs(np.array(gradients, float))}
    update = scheme.plan("adapt", {"w": mask}, state, scores, number=1, epoch=epoch)
    share = oracles.rigl_share(min(epoch, 15), 20, 0.9, 0.75)
    assert (update.dropped["w"].tolist(), update.grown["w"].tolist()) == oracles.rigl_update(active, weights, gradients, share)


def test_an_update_by_hand():
    """Four of eight are active, half of them go: 1 and 4, the smallest. Of the inactive ones, these included, 6 and 4 have the largest
    gradients: 4 comes back, at 0. The gradient of 0, which stays, does not matter."""
    mask = np.array([True, True, True, False, True, False, False, False])
    state = {"w": np.array([9.0, 0.1, -8.0, 0, -0.2, 0, 0, 0])}
    scores = {"w": np.array([99.0, 0.3, 0.0, 0.1, 0.5, 0.2, 0.7, 0.4])}
    scheme = scheme_of(replace(CONFIG, exchange=0.5), sparsity=0.5)
    update = scheme.plan("adapt", {"w": mask}, state, scores, number=1, epoch=0)
    assert (update.dropped["w"].tolist(), update.grown["w"].tolist()) == ([1, 4], [4, 6])
    residual = {"w": np.ones(8)}
    after = scheme.redo({"w": mask}, [state, residual], update)
    assert np.flatnonzero(after["w"]).tolist() == [0, 2, 4, 6]
    assert state["w"].tolist() == [9.0, 0, -8.0, 0, 0, 0, 0, 0] and residual["w"].tolist() == [1, 0, 1, 0, 0, 0, 0, 0]
    assert mask.sum() == 4  # the old one is left alone


def test_counts_stay_exact_and_inactive_weights_are_zero_through_a_run_of_updates():
    scheme, rng = scheme_of(), np.random.default_rng(0)
    masks = initial_masks(SHAPES, {"conv": 0.9, "fc": 0.2}, 0)  # a dense layer exchanges as many as it has inactive ones
    before, state = count_active(masks), {name: rng.normal(size=shape) for name, shape in SHAPES.items()}
    apply_masks_(state, masks)
    for epoch in range(1, 15):
        scores = {name: rng.random(shape) for name, shape in SHAPES.items()}
        masks = scheme.redo(masks, [state], scheme.plan("adapt", masks, state, scores, number=epoch, epoch=epoch))
        assert count_active(masks) == before
        for name, mask in masks.items():
            assert not state[name][~mask].any()
            state[name] += mask * rng.normal(size=mask.shape)


def test_a_gradient_that_is_not_finite_cannot_be_ranked():
    masks = initial_masks(SHAPES, 0.75, 0)
    scores = {name: np.full(shape, np.inf) for name, shape in SHAPES.items()}
    with pytest.raises(ValueError, match="a gradient of conv is NaN or infinite"):
        scheme_of().plan("adapt", masks, {name: mask * 1.0 for name, mask in masks.items()}, scores, number=1, epoch=1)


# -- by votes


def test_one_voter_decides_as_if_it_were_alone():
    rng, scheme = np.random.default_rng(2), scheme_of()
    masks = initial_masks(SHAPES, 0.75, 0)
    state = {name: mask * rng.normal(size=mask.shape) for name, mask in masks.items()}
    scores = {name: rng.random(shape) for name, shape in SHAPES.items()}
    alone = scheme.plan("adapt", masks, state, scores, number=5, epoch=6)
    votes = {name: np.zeros(shape) for name, shape in SHAPES.items()}
    for name, places in scheme.votes(masks, state, scores, epoch=6).items():
        votes[name].reshape(-1)[places] = 1
    together = scheme.plan_by_votes(masks, state, votes, number=5, epoch=6)
    for name in masks:
        assert np.array_equal(alone.dropped[name], together.dropped[name]) and np.array_equal(alone.grown[name], together.grown[name])


def test_the_most_named_places_are_grown_and_what_stays_active_is_no_candidate():
    mask, weights = np.arange(20) < 10, np.arange(20, 0, -1.0)
    votes = np.zeros(20)
    votes[[0, 9, 12, 15, 17]] = [1, 0.5, 0.75, 0.25, 0.25]  # 0 stays, 9 is dropped
    scheme = scheme_of(replace(CONFIG, exchange=0.3), sparsity=0.5)
    update = scheme.plan_by_votes({"w": mask}, {"w": weights * mask}, {"w": votes}, number=1, epoch=0)
    assert update.dropped["w"].tolist() == [7, 8, 9]
    assert {9, 12} < set(update.grown["w"].tolist()) and set(update.grown["w"].tolist()) & {15, 17}


def test_chance_decides_between_equals_and_falls_on_all_alike():
    """Ten inactive places and nobody's vote, three grow: over 600 updates each is expected 180 times. 9 degrees of freedom and a mean of
    9 x 0.7: 27.9 is the 99.9 % point of chi-square(9)."""
    mask, scheme, hits = np.arange(20) < 10, scheme_of(sparsity=0.5), np.zeros(20)
    weights, votes = {"w": mask * np.arange(20, 0, -1.0)}, {"w": np.zeros(20)}
    votes["w"][7:10] = -1  # the dropped ones come last
    for number in range(600):
        hits[scheme.plan_by_votes({"w": mask}, weights, votes, number=number, epoch=0).grown["w"]] += 1
    assert hits[:10].sum() == 0 and ((hits[10:] - 180) ** 2 / 180).sum() < 27.9


# -- the gradients


def learner_of(dtype="float64", **learner):
    method = without(tiny_method("cnn", dtype=dtype, single_head=False, batch_size=40, **learner), "ddr", "dgm")
    return start(replace(method, masks=CONFIG))


def test_gradients_are_those_of_the_dense_network_with_masked_weights():
    learner, state, masks, memory = learner_of()
    (task, *_) = tiny_tasks(1)
    found, flops = learner.importance(state, masks, task, memory.in_task(40), device=0)
    model = build_model(tiny_method("cnn", dtype="float64").model, INPUTS.shape, INPUTS.num_classes)
    load_state_(model, state)
    logits = model(normalise(torch.from_numpy(task.x), INPUTS, torch.float64))
    F.cross_entropy(logits, torch.from_numpy(task.y)).backward()
    for name, parameter in model.named_parameters():
        if name in masks:
            assert np.allclose(found[name], parameter.grad.abs().numpy(), rtol=1e-10, atol=1e-15)
            assert np.count_nonzero(found[name][~masks[name]]) > 100  # inactive places have gradients, too


def test_a_gradient_at_an_inactive_place_is_what_the_loss_changes_by():
    """Central differences in the weight that is not there: the definition, without autograd."""
    learner, state, masks, memory = learner_of()
    (task, *_) = tiny_tasks(1)
    found, _ = learner.importance(state, masks, task, memory.in_task(40), device=0)
    name, step = "fc.weight", 1e-5
    model = build_model(tiny_method("cnn", dtype="float64").model, INPUTS.shape, INPUTS.num_classes)
    x, y = normalise(torch.from_numpy(task.x), INPUTS, torch.float64), torch.from_numpy(task.y)

    def loss(place, change):
        moved = {key: value.copy() for key, value in state.items()}
        moved[name].reshape(-1)[place] += change
        load_state_(model, moved)
        with torch.no_grad():
            return float(F.cross_entropy(model(x), y))

    for place in np.flatnonzero(~masks[name])[:12]:
        slope = (loss(place, step) - loss(place, -step)) / (2 * step)
        assert found[name].reshape(-1)[place] == pytest.approx(abs(slope), rel=1e-4, abs=1e-9)


def test_replay_is_part_of_the_loss():
    learner, state, masks, memory = learner_of(joint_forward=False)
    first, second = tiny_tasks(2)
    memory = learner.train(state, masks, first, memory.in_task(40), epochs=1, device=0).memory.in_task(40)
    with_replay, flops = learner.importance(state, masks, second, memory, device=0)
    without_replay, less = learner.importance(state, masks, second, replace(memory, buffer=new_buffer(memory)), device=0)
    assert not np.allclose(with_replay["fc.weight"], without_replay["fc.weight"])
    assert (flops.samples, less.samples) == (40 + 2 * 12, 40)


def new_buffer(memory):
    return replace(memory.buffer, offered=0)


def test_what_gradients_of_all_weights_cost():
    """Forward and the gradients of inputs by active weights, the gradients of weights by all of them; one operation per place ranked."""
    learner, state, masks, memory = learner_of()
    (task, *_) = tiny_tasks(1)
    _, flops = learner.importance(state, masks, task, memory.in_task(40), device=0)
    cost = 0
    for layer in learner.layers:
        active = int(masks[layer.name].sum()) if layer.name in masks else layer.weights
        cost += 2 * layer.uses * (active + (0 if layer.first else active) + layer.weights)
    assert (flops.importance, flops.samples, flops.train) == (40 * cost, 40, 0)
    assert flops.masks == (576 + 384) + (144 + 96)
