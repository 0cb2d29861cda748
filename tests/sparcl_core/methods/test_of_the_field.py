"""The methods of the field: each beside a slow reference that is written from its paper, on tensors small enough to follow."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_learning import ANYWHERE, INPUTS, assert_same, frozen, start, tiny_method, tiny_tasks, with_learner, without

from sparcl_core.costs.flops import Flops, dense_forward, per_sample, sizes
from sparcl_core.methods.agem import AGEM
from sparcl_core.methods.at_the_end import OF_TASK
from sparcl_core.methods.auxiliary import within
from sparcl_core.methods.ewc_on import FISHER, THEN
from sparcl_core.methods.icarl import ICaRL, binary_terms, herding, of_length_one
from sparcl_core.methods.lwf import TEACHER, distillation
from sparcl_core.methods.prototypes import class_means
from sparcl_core.methods.registry import find_method, make_method
from sparcl_core.methods.seen import SEEN
from sparcl_core.methods.sends_arrays import Upload
from sparcl_core.networks.models import build_model, load_state_
from sparcl_core.replay.shares import first_of_each
from sparcl_core.sparsity.masks import count_active
from sparcl_core.sparsity.packed import unpack


def dense(name: str, model: str = "mlp", **own):
    """The method on a tiny dense network, data removal off."""
    return with_learner(without(tiny_method(model, 0.0), "ddr"), name, **own)


def plain_model(config, state):
    """The network as PyTorch has it, with these weights, in evaluation mode."""
    model = build_model(config.model, INPUTS.shape, INPUTS.num_classes)
    load_state_(model, state)
    return model.eval()


def fed(x: np.ndarray) -> torch.Tensor:
    return (torch.from_numpy(x).float() - 128.0) / 64.0


# -- what holds for all of them


@pytest.mark.parametrize("name", ANYWHERE)
@pytest.mark.parametrize("sparsity", [0.0, 0.75])
def test_two_tasks_are_learned_whatever_the_method(name, sparsity):
    """Nothing that is given is changed, inactive weights stay 0, FLOPs are at most the twin's, arrays fit what was promised."""
    learner, state, masks, memory = start(with_learner(tiny_method("cnn", sparsity), name))
    kept_masks = frozen(masks)
    active = count_active(masks)
    for task in tiny_tasks(2, 24):
        memory, begun = learner.begin_task(state, masks, task, memory, device=0)
        done = learner.train(state, masks, task, memory, epochs=2, device=0)
        assert 0 < done.flops.total <= done.dense_flops.total
        held = frozen(done.memory)
        memory, ended = learner.end_task(done.state, masks, task, done.memory, device=0)
        assert_same(held, done.memory)
        assert begun.flops.total <= begun.dense_flops.total and ended.flops.total <= ended.dense_flops.total
        state = done.state
        for key, mask in masks.items():
            assert not state[key][~mask].any()
        promised = learner.method.arrays_bytes(learner.held, active, buffered=memory.buffer.capacity, classes=INPUTS.num_classes)
        assert sum(array.nbytes for array in memory.arrays.values()) <= promised
    assert_same(kept_masks, masks)
    score = learner.method.scorer(learner.network, memory, {})
    learner.network.load(state, masks)
    learner.network.model.eval()
    with torch.no_grad():
        assert score(learner.network.feed(task.x)).shape == (24, INPUTS.num_classes)


@pytest.mark.parametrize("name", ANYWHERE)
def test_the_same_bits_come_out_again(name):
    def run():
        learner, state, masks, memory = start(with_learner(tiny_method("mlp"), name))
        for task in tiny_tasks(2, 16):
            memory, _ = learner.begin_task(state, masks, task, memory, device=3)
            done = learner.train(state, masks, task, memory, epochs=2, device=3)
            state = done.state
            memory, _ = learner.end_task(state, masks, task, done.memory, device=3)
        return state, memory

    assert_same(dict(enumerate(run())), dict(enumerate(run())))


@pytest.mark.parametrize("name", ANYWHERE)
def test_what_a_task_costs_between_is_within_what_was_said(name):
    learner, state, masks, memory = start(dense(name))
    weights = sum(learner.held.parameters.values())
    for task in tiny_tasks(2, 16):
        memory, begun = learner.begin_task(state, masks, task, memory, device=0)
        memory = learner.train(state, masks, task, memory, epochs=1, device=0).memory
        memory, ended = learner.end_task(state, masks, task, memory, device=0)
        most = learner.method.task_passes(len(task.y), memory.buffer.capacity, weights)
        whole = per_sample(learner.layers, sizes(masks), sizes(masks)).between_tasks(most)
        for key, value in vars(begun.flops + ended.flops).items():
            assert value <= getattr(whole, key), key


# -- A-GEM


@given(st.integers(0, 10**6), st.integers(1, 3))
def test_agem_turns_a_gradient_that_would_harm_the_draw_and_no_other(seed, tensors):
    """Equation 11 on whole vectors, in float64; the turned one is orthogonal to the draw's."""
    rng = np.random.default_rng(seed)
    shapes = [(2, 3), (4,), (1,)][:tensors]
    one, two = ([rng.normal(size=shape) for shape in shapes] for _ in range(2))
    g, ref = (np.concatenate([part.reshape(-1) for part in parts]) for parts in (one, two))
    wanted = g if g @ ref >= 0 else g - (g @ ref) / (ref @ ref) * ref
    found = AGEM(None).gradients(None, [torch.from_numpy(part) for part in one], [torch.from_numpy(part) for part in two])
    found = np.concatenate([part.numpy().reshape(-1) for part in found])
    np.testing.assert_allclose(found, wanted, atol=1e-12)
    assert found @ ref >= -1e-9


def test_agem_has_no_memory_before_a_task_has_ended_and_equal_shares_behind():
    learner, state, masks, memory = start(dense("agem"), capacity=12)
    held = []
    for task in tiny_tasks(2, 24):
        memory, _ = learner.begin_task(state, masks, task, memory, device=0)
        done = learner.train(state, masks, task, memory, epochs=1, device=0)
        held.append((done.replayed, done.flops.method))
        memory, cost = learner.end_task(state, masks, task, done.memory, device=0)
        assert cost.flops == Flops()
    weights = sum(learner.held.parameters.values())
    assert held == [(0, 0), (24, 3 * 6 * weights)]
    assert memory.arrays[OF_TASK].tolist() == [0] * 6 + [1] * 6
    assert set(memory.buffer.y[:6]) <= {0, 1} and set(memory.buffer.y[6:]) <= {2, 3}


@given(st.lists(st.integers(0, 4), max_size=30), st.integers(0, 5))
def test_first_of_each_is_what_counting_gives(groups, most):
    seen, wanted = {}, []
    for row, group in enumerate(groups):
        seen[group] = seen.get(group, 0) + 1
        if seen[group] <= most:
            wanted.append(row)
    assert first_of_each(np.array(groups, np.int64), most).tolist() == wanted


# -- FDR


def test_fdr_is_the_distance_of_probabilities():
    # softmax (1/2, 1/2) against (3/4, 1/4): sqrt(2) / 4; a second sample that has not moved adds 0; mean of both, times 2
    made = make_method(dense("fdr", distance_weight=2.0).learner)
    stored = torch.tensor([[np.log(3.0), 0.0], [1.0, 1.0]])
    drawn = type("Drawn", (), {"logits": stored})
    assert made.draw_term(None, 0, drawn, torch.tensor([[0.0, 0.0], [5.0, 5.0]])).item() == pytest.approx(2 * np.sqrt(2) / 4 / 2)


def test_fdr_stores_what_the_model_answers_where_the_task_ends():
    learner, state, masks, memory = start(dense("fdr"), capacity=6)
    task = tiny_tasks(1, 20)[0]
    memory, cost = learner.end_task(state, masks, task, memory.in_task(20), device=0)
    model = plain_model(dense("fdr"), state)
    with torch.no_grad():
        wanted = model(fed(memory.buffer.x)).numpy()
    np.testing.assert_allclose(memory.buffer.logits, wanted, rtol=1e-5, atol=1e-6)
    assert cost.flops == Flops(statistics=6 * dense_forward(learner.layers))


# -- online EWC


@pytest.mark.parametrize("single_head", [False, True])
def test_the_fisher_information_is_the_mean_square_of_each_samples_gradient(single_head):
    """Of log p of its label, one sample after the other, by autograd on the plain model."""
    config = dense("ewc_on", single_head=single_head)
    learner, state, masks, memory = start(config)
    task = tiny_tasks(2, 10)[1]
    kept, cost = learner.end_task(state, masks, task, memory.in_task(10), device=0)
    model = plain_model(config, state)
    squares = {name: np.zeros(parameter.shape) for name, parameter in model.named_parameters()}
    for x, y in zip(task.x, task.y, strict=True):
        logits = model(fed(x[None]))[0]
        if single_head:
            logits, y = logits[list(task.classes)], list(task.classes).index(y)
        model.zero_grad()
        (-torch.log_softmax(logits, 0)[y]).backward()
        for name, parameter in model.named_parameters():
            squares[name] += parameter.grad.numpy().astype(np.float64) ** 2 / 10
    for name, wanted in squares.items():
        np.testing.assert_allclose(kept.arrays[FISHER + name], wanted, rtol=2e-4, atol=1e-9)
        assert kept.arrays[THEN + name].tobytes() == state[name].tobytes()
    weights = sum(learner.held.parameters.values())
    whole = per_sample(learner.layers, {}, {}).whole
    assert cost.flops == cost.dense_flops == Flops(importance=10 * whole, samples=10, method=3 * 10 * weights)


def test_fisher_information_of_tasks_adds_up_and_fades():
    learner, state, masks, memory = start(dense("ewc_on", gamma=0.25))
    first, second = tiny_tasks(2, 8)
    one, _ = learner.end_task(state, masks, first, memory.in_task(8), device=0)
    alone, _ = learner.end_task(state, masks, second, memory.in_task(8), device=0)
    both, _ = learner.end_task(state, masks, second, one.in_task(8), device=0)
    for name in learner.network.parameters:
        wanted = 0.25 * one.arrays[FISHER + name] + alone.arrays[FISHER + name]
        np.testing.assert_allclose(both.arrays[FISHER + name], wanted, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("sparsity", [0.0, 0.75])
def test_the_penalty_of_ewc_is_the_derivative_of_its_formula(sparsity):
    """One step of one batch: weights move by lr times the gradient of CE + e_lambda / 2 sum F (theta - theta*)^2, by autograd."""
    config = with_learner(without(tiny_method("mlp", sparsity, "float64"), "ddr", "dgm", "tdm"), "ewc_on", batch_size=8, e_lambda=7.0)
    learner, state, masks, memory = start(config)
    first, second = tiny_tasks(2, 8)
    memory, _ = learner.end_task(state, masks, first, memory.in_task(8), device=0)
    rng = np.random.default_rng(0)
    moved = {key: value + rng.normal(0, 0.1, value.shape) * masks.get(key, 1) for key, value in state.items()}
    done = learner.train(moved, masks, second, memory.in_task(8), epochs=1, device=0)
    shapes = {name: value.shape for name, value in state.items()}
    (fisher, _), (then, _) = (unpack(memory.arrays, shapes, prefix) for prefix in (FISHER, THEN))
    model = plain_model(config, moved)
    logits = model(fed(second.x).double())
    classes = list(second.classes)
    loss = F.cross_entropy(logits[:, classes], torch.from_numpy(second.y - classes[0]))
    for name, parameter in model.named_parameters():
        loss = loss + 3.5 * (torch.from_numpy(fisher[name].copy()) * (parameter - torch.from_numpy(then[name].copy())) ** 2).sum()
    loss.backward()
    for name, parameter in model.named_parameters():
        wanted = (parameter.detach() - config.learner.lr * parameter.grad).numpy() * masks.get(name, 1)
        np.testing.assert_allclose(done.state[name], wanted, rtol=1e-9, atol=1e-11)


def test_a_weight_that_was_dropped_and_grown_again_has_no_past():
    config = with_learner(tiny_method("mlp", 0.5), "ewc_on")
    learner, state, masks, memory = start(config)
    first, second = tiny_tasks(2, 8)
    memory, _ = learner.end_task(state, masks, first, memory.in_task(8), device=0)
    others = {name: ~mask for name, mask in masks.items()}
    state = {name: value * others.get(name, 1) for name, value in state.items()}
    running = learner.run(state, others, second, memory.in_task(8))
    for name, (fisher, _) in zip(learner.network.parameters, running.prepared, strict=True):
        assert (name not in masks) or not fisher.any()
    kept, _ = learner.end_task(state, others, second, memory.in_task(8), device=0)
    for name, mask in others.items():
        assert kept.arrays[FISHER + name].shape == (int(mask.sum()),)


# -- LwF


def test_lwf_compares_old_classes_at_its_temperature():
    # logits (2 ln 3, 0) at T = 2: (3/4, 1/4) against (1/2, 1/2) of the model: -(3/4 + 1/4) ln 1/2 = ln 2
    assert distillation(torch.zeros(1, 2), torch.tensor([[2 * np.log(3.0), 0.0]]), 2.0).item() == pytest.approx(np.log(2))
    # and of (1/2, 1/2) against (3/4, 1/4): -(ln 3/4 + ln 1/4) / 2
    found = distillation(torch.tensor([[2 * np.log(3.0), 0.0]]), torch.zeros(1, 2), 2.0).item()
    assert found == pytest.approx(-(np.log(3 / 4) + np.log(1 / 4)) / 2)


def test_lwf_keeps_the_model_of_the_last_task_and_asks_it_of_the_old_classes_only():
    config = dense("lwf", lambda_o=0.5, softmax_temp=2.0, batch_size=16)
    learner, state, masks, memory = start(config)
    first, second = tiny_tasks(2, 16)
    done = learner.train(state, masks, first, memory.in_task(16), epochs=1, device=0)
    assert done.flops.statistics == 0 and done.memory.arrays == {}
    memory, _ = learner.end_task(done.state, masks, first, done.memory, device=0)
    assert memory.arrays[SEEN].tolist() == [True, True, False, False]
    assert_same(unpack(memory.arrays, learner.layout.shapes, TEACHER)[0], done.state)
    rng = np.random.default_rng(0)
    moved = {name: value + rng.normal(0, 0.2, value.shape).astype(value.dtype) for name, value in done.state.items()}
    later = learner.train(moved, masks, second, memory.in_task(16), epochs=1, device=0)
    teacher, model = plain_model(config, done.state), plain_model(config, moved)
    with torch.no_grad():
        answers, logits = teacher(fed(second.x))[:, :2], model(fed(second.x))
        target = torch.softmax(answers / 2, 1)
        loss = (
            F.cross_entropy(logits[:, 2:], torch.from_numpy(second.y - 2))
            - 0.5 * (target * torch.log_softmax(logits[:, :2] / 2, 1)).sum(1).mean()
        )
    assert later.loss == pytest.approx(loss.item(), rel=1e-5)
    forward = dense_forward(learner.layers)
    assert later.flops.train == done.flops.train + 16 * forward


# -- iCaRL


@given(st.integers(0, 10**6), st.integers(1, 9), st.integers(1, 4), st.integers(0, 10))
@settings(max_examples=50)
def test_herding_is_algorithm_4(seed, samples, width, count):
    """In every place stands a sample that brings the mean of the chosen ones as near to the class's mean as any other could."""
    features = of_length_one(np.random.default_rng(seed).normal(size=(samples, width)))
    chosen = herding(features, count).tolist()
    assert len(set(chosen)) == len(chosen) == min(count, samples)
    for k, row in enumerate(chosen, 1):
        before = sum((features[other] for other in chosen[: k - 1]), np.zeros(width))
        away = {other: np.linalg.norm(features.mean(0) - (before + features[other]) / k) for other in range(samples)}
        assert away[row] <= min(away[other] for other in away if other not in chosen[: k - 1]) + 1e-9


def test_herding_by_hand():
    # mean 5/3: nearest is row 2, 2/3 off; then the mean with row 1 is 5/2, 5/6 off, and with row 0 1/2, 7/6 off
    assert herding(np.array([[0.0, 0.0], [4.0, 0.0], [1.0, 0.0]]), 3).tolist() == [2, 1, 0]
    assert herding(np.array([[1.0], [0.0], [1.0], [0.0]]), 2).tolist() == [0, 1]  # of equal ones the lower row


def test_the_terms_of_icarl_one_by_one():
    """New classes are taught by the label, old ones by the teacher, and unknown ones not at all."""
    logits, answers = torch.tensor([[0.3, -1.0, 2.0, 9.0]]), torch.tensor([[1.5, -0.5, 7.0, -9.0]])
    old, known = torch.tensor([True, True, False, False]), torch.tensor([True, True, True, False])

    def entropy(logit, target):
        p = 1 / (1 + np.exp(-logit))
        return -(target * np.log(p) + (1 - target) * np.log(1 - p))

    sigmoid = 1 / (1 + np.exp(-np.array([1.5, -0.5])))
    for label, new in ((2, 1.0), (0, 0.0)):
        wanted = (entropy(0.3, sigmoid[0]) + entropy(-1.0, sigmoid[1]) + entropy(2.0, new)) / 3
        assert binary_terms(logits, torch.tensor([label]), answers, old=old, known=known).item() == pytest.approx(wanted, rel=1e-6)


def test_icarl_keeps_the_first_exemplars_of_old_classes_and_classifies_by_the_nearest_mean():
    config = dense("icarl")
    learner, state, masks, memory = start(config, capacity=8)
    first, second = tiny_tasks(2, 20)
    one, cost = learner.end_task(state, masks, first, memory.in_task(20), device=0)
    assert cost.flops.statistics == 20 * dense_forward(learner.layers) and cost.flops.method == 2 * 5 * 10 * 4 * 16
    assert np.bincount(one.buffer.y, minlength=4).tolist() == [4, 4, 0, 0]
    two, cost = learner.end_task(state, masks, second, one.in_task(20), device=0)
    assert np.bincount(two.buffer.y).tolist() == [2, 2, 2, 2] and len(two.buffer) == 8
    assert cost.flops.statistics == (20 + 4) * dense_forward(learner.layers)
    model = plain_model(config, state)
    grabbed = []
    model.classifier.register_forward_pre_hook(lambda layer, inputs: grabbed.append(inputs[0].detach().numpy()))

    def features(x):
        model(fed(x))
        return of_length_one(grabbed.pop())

    for label in (0, 1):  # the first two of the four that herding chose by themselves
        members = first.x[first.y == label]
        order = members[herding(features(members), 4)]
        assert_same({"x": one.buffer.x[one.buffer.y == label]}, {"x": order})
        assert_same({"x": two.buffer.x[two.buffer.y == label]}, {"x": order[:2]})
    means = np.stack([of_length_one(features(two.buffer.x[two.buffer.y == label]).mean(0)) for label in range(4)])
    learner.network.load(state, masks)
    learner.network.model.eval()
    with torch.no_grad():
        scores = learner.method.scorer(learner.network, two, {})(learner.network.feed(second.x)).numpy()
        partly = learner.method.scorer(learner.network, one, {})(learner.network.feed(second.x)).numpy()
    distances = np.linalg.norm(features(second.x)[:, None] - means[None], axis=2)
    np.testing.assert_allclose(scores, -distances, atol=1e-5)
    assert np.isneginf(partly[:, 2:]).all() and np.isfinite(partly[:, :2]).all()


def test_a_class_without_exemplars_has_no_mean():
    means = class_means(np.array([[3.0, 0.0], [0.0, 4.0], [0.0, 0.0]]), np.array([2, 2, 0]), 4)
    assert not means[[0, 1, 3]].any()
    np.testing.assert_allclose(means[2], [1.5, 2.0])


def test_without_a_memory_icarl_answers_by_its_logits():
    learner, state, masks, memory = start(dense("icarl"))
    learner.network.load(state, masks)
    assert ICaRL.scorer(learner.method, learner.network, None, {}) is learner.network.model
    assert learner.method.scorer(learner.network, memory, {}) is learner.network.model  # nothing has ended yet


@given(st.lists(st.lists(st.integers(0, 9), min_size=3, max_size=3), min_size=1, max_size=4), st.integers(0, 999))
@settings(max_examples=50)
def test_the_server_has_the_mean_of_each_class_over_the_devices_of_a_round(counts, seed):
    """By samples; a class that no device has keeps what it had."""
    rng = np.random.default_rng(seed)
    kept, means = {"means": rng.normal(size=(3, 2))}, rng.normal(size=(len(counts), 3, 2))
    uploads = [Upload(device, 9, {"means": means[device], "counts": np.array(own, float)}) for device, own in enumerate(counts)]
    found = ICaRL(None).combine(kept, uploads, 9)["means"]
    for label in range(3):
        weights = [own[label] for own in counts]
        expected = np.average(means[:, label], axis=0, weights=weights) if any(weights) else kept["means"][label]
        np.testing.assert_allclose(found[label], expected, atol=1e-12)


def test_what_an_icarl_device_sends_in_a_federation():
    """Means of its exemplars and of its data under the model that it trained, and the pass that gives them is counted; alone, nothing."""
    learner, state, masks, memory = start(dense("icarl"), capacity=8)
    first, second = tiny_tasks(2, 6)
    memory = learner.end_task(state, masks, first, memory.in_task(6), device=0)[0].in_task(6)
    told = replace(memory, received={"method/means": np.zeros((4, 16), np.float32)})
    done, alone = (learner.train(state, masks, second, one, epochs=1, device=0) for one in (told, memory))
    assert not alone.upload and all(np.array_equal(done.state[name], alone.state[name]) for name in state)
    sent, buffer = within("method", done.upload), memory.buffer
    assert np.bincount(first.y, minlength=4).tolist() == [3, 3, 0, 0] and len(buffer) == 6
    learner.network.load(done.state, masks)
    for label in range(4):
        own = second.x[second.y == label] if label > 1 else buffer.x[: len(buffer)][buffer.y[: len(buffer)] == label]
        features = of_length_one(learner.network.features_of(own)[0])
        np.testing.assert_allclose(sent["means"][label], of_length_one(features.mean(0)), atol=1e-6)
    assert sent["counts"].tolist() == [3, 3, 3, 3]
    for own, without_upload in ((done.flops, alone.flops), (done.dense_flops, alone.dense_flops)):
        assert own.total - without_upload.total == (6 + 6) * dense_forward(learner.layers)


def test_a_class_is_where_the_server_says_and_where_it_does_not_know_by_own_exemplars():
    learner, state, masks, memory = start(dense("icarl"), capacity=8)
    first, second = tiny_tasks(2, 6)
    memory, _ = learner.end_task(state, masks, first, memory.in_task(6), device=0)
    learner.network.load(state, masks)
    learner.network.model.eval()
    received = np.zeros((4, 16), np.float32)
    received[[1, 2]] = np.random.default_rng(0).random((2, 16))
    x, features = learner.network.feed(second.x), of_length_one(learner.network.features_of(second.x)[0])
    by_own = learner.method.scorer(learner.network, memory, {})(x)
    by_both = learner.method.scorer(learner.network, memory, {"means": received})(x)
    by_server = learner.method.scorer(learner.network, None, {"means": received})(x)
    expected = -np.linalg.norm(features[:, None] - of_length_one(received[[1, 2]])[None], axis=2)
    for found in (by_both, by_server):
        np.testing.assert_allclose(found[:, [1, 2]].detach(), expected, atol=1e-5)
        assert torch.isneginf(found[:, 3]).all()
    assert torch.equal(by_both[:, 0], by_own[:, 0]) and torch.isneginf(by_server[:, 0]).all() and torch.isneginf(by_own[:, 2]).all()
    assert learner.method.scorer(learner.network, None, {"means": np.zeros((4, 16))}) is learner.network.model


# -- settings


@pytest.mark.parametrize(
    ("name", "own", "message"),
    [
        ("lwf", {"lambda_o": -1.0}, "lambda_o is -1.0: a loss weight must be finite and may not be negative"),
        ("lwf", {"softmax_temp": 0.0}, "softmax_temp is 0.0: a temperature is above 0 and finite"),
        ("ewc_on", {"gamma": 1.5}, r"gamma is 1.5: the share of the Fisher information that outlives a task, in \[0, 1\]"),
        ("ewc_on", {"e_lambda": float("inf")}, "e_lambda is inf: a loss weight must be finite"),
        ("fdr", {"distance_weight": float("nan")}, "distance_weight is nan: a loss weight must be finite"),
    ],
)
def test_settings_that_cannot_be(name, own, message):
    with pytest.raises(ValueError, match=message):
        find_method(name).Config(method=name, **own)
