from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny_learning import INPUTS, SEED, start, tiny_method, tiny_tasks, without

from sparcl_core.costs.flops import dense_forward
from sparcl_core.inputs import normalise
from sparcl_core.networks.models import build_model, initial_weights, load_state_
from sparcl_core.solo import train_stream
from sparcl_core.sparsity.initial import highest_masks
from sparcl_core.sparsity.masks import count_active
from sparcl_core.sparsity.settings import MaskConfig
from sparcl_core.sparsity.snip import chosen_by_votes

CONFIG = MaskConfig(scheme="static", initial="snip", densities="global")


def method_of(dtype="float64", config=CONFIG):
    method = without(tiny_method("cnn", dtype=dtype, single_head=False, batch_size=40), "ddr", "dgm")
    return replace(method, masks=config)


def found_by(method):
    learner, _, _, memory = start(method)
    weights, (task, *_) = initial_weights(learner.model, SEED), tiny_tasks(1)
    return learner, weights, task, *learner.sensitivity(weights, task, memory.in_task(40), device=0)


def test_sensitivity_is_the_derivative_of_the_loss_by_a_connections_indicator():
    """Central differences in c_j around 1, of the loss of c * w on the dense network: the definition (equations 4 and 5)."""
    method = method_of()
    _, weights, task, scores, _ = found_by(method)
    model = build_model(method.model, INPUTS.shape, INPUTS.num_classes)
    x, y = normalise(torch.from_numpy(task.x), INPUTS, torch.float64), torch.from_numpy(task.y)

    def loss(name, place, indicator):
        connected = {key: value.copy() for key, value in weights.items()}
        connected[name].reshape(-1)[place] *= indicator
        load_state_(model, connected)
        with torch.no_grad():
            return float(F.cross_entropy(model(x), y))

    assert scores.keys() == {"conv2.weight", "fc.weight"}
    for name, score in scores.items():
        for place in range(0, score.size, score.size // 10):
            slope = (loss(name, place, 1 + 1e-5) - loss(name, place, 1 - 1e-5)) / 2e-5
            assert score.reshape(-1)[place] == pytest.approx(abs(slope), rel=1e-4, abs=1e-10)


def test_it_costs_a_dense_pass_forward_and_backward():
    learner, _, _, _, flops = found_by(method_of())
    first = next(layer for layer in learner.layers if layer.first)
    assert flops.importance == 40 * (3 * dense_forward(learner.layers) - 2 * first.macs)  # the first layer's input needs no gradient
    assert (flops.samples, flops.masks, flops.train) == (40, 2 * (576 + 384), 0)


@pytest.mark.parametrize("densities", ["global", "uniform", "erk"])
def test_a_device_that_is_alone_begins_with_the_most_sensitive_weights_and_keeps_them(densities):
    method = method_of("float32", replace(CONFIG, densities=densities))
    *_, scores, cost = found_by(method)
    seen = []
    train_stream(method, INPUTS, tiny_tasks(2), task_epochs=4, seed=SEED, observe=seen.append)
    wanted = highest_masks(scores, method.masks, 0.75)
    assert sum(count_active(wanted).values()) == 240
    for progress in seen:
        for name, mask in wanted.items():
            assert np.array_equal(progress.masks[name], mask) and not progress.state[name][~mask].any()
    assert seen[0].flops.importance == cost.importance and not any(progress.flops.importance for progress in seen[1:])
    assert seen[0].dense_flops.importance == 0
    assert seen[-1].flops.masks == 0  # nothing is ranked any more


def test_votes_by_hand():
    """Six places of two layers, half are kept, by one ranking: 5 and 4 votes first, then one of the two places that have 2."""
    votes = {"a": np.array([[5.0, 2.0], [0.0, 1.0]]), "b": np.array([2.0, 4.0])}
    kept = set()
    for seed in range(20):
        masks = chosen_by_votes(votes, CONFIG, sparsity=0.5, seed=seed)
        assert masks["a"][0, 0] and masks["b"][1] and sum(int(mask.sum()) for mask in masks.values()) == 3
        kept.add((bool(masks["a"][0, 1]), bool(masks["b"][0])))
    assert kept == {(True, False), (False, True)}  # chance decides between equals
    uniform = chosen_by_votes(votes, replace(CONFIG, densities="uniform"), sparsity=0.5, seed=0)
    assert uniform["a"].tolist() == [[True, True], [False, False]] and uniform["b"].tolist() == [False, True]
