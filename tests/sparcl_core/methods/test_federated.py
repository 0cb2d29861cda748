"""Methods of federated continual learning and corrections of steps: each beside a slow reference that is written from its paper."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_learning import INPUTS, MODELS, start, tiny_method, tiny_tasks, with_learner, without

from sparcl_core.codec import CodecError
from sparcl_core.config import CorrectionConfig
from sparcl_core.inputs import normalise
from sparcl_core.methods.auxiliary import within
from sparcl_core.methods.decomposed import Decomposed
from sparcl_core.methods.fedspace import FedSpace, variance_about
from sparcl_core.methods.flwf2t import LAST
from sparcl_core.methods.lwf import TEACHER
from sparcl_core.methods.prototypes import class_means
from sparcl_core.methods.refed import PIM
from sparcl_core.methods.registry import find_method, make_method
from sparcl_core.methods.scaffold import OWN
from sparcl_core.methods.seen import SEEN
from sparcl_core.methods.sends_arrays import Upload
from sparcl_core.networks.models import build_model, load_state_
from sparcl_core.sparsity.packed import pack, unpack

LR, SAMPLES = 0.05, 24


def corrected(name: str, *, sparsity: float = 0.0, mu: float = 0.0):
    """Plain SGD in float64, a step an epoch over all data, all classes, corrected by `name`."""
    method = without(tiny_method("mlp", sparsity, "float64", method="sgd", batch_size=SAMPLES, single_head=False, lr=LR), "ddr", "dgm")
    return replace(method, correction=CorrectionConfig(name, mu))


def plain(state) -> torch.nn.Module:
    """The network as PyTorch has it."""
    model = build_model(replace(MODELS["mlp"], dtype="float64"), INPUTS.shape, INPUTS.num_classes)
    load_state_(model, state)
    return model


def gradients(model, task) -> list[torch.Tensor]:
    x = normalise(torch.from_numpy(task.x), INPUTS, torch.float64)
    return list(torch.autograd.grad(F.cross_entropy(model(x), torch.from_numpy(task.y)), list(model.parameters())))


def assert_near(found, model, tolerance=1e-12):
    for name, parameter in model.named_parameters():
        np.testing.assert_allclose(found[name], parameter.detach().numpy(), atol=tolerance, rtol=0, err_msg=name)


# -- FedProx


@pytest.mark.parametrize("mu", [0.3, 5.0])
def test_fedprox_takes_the_papers_steps(mu):
    """Three steps by hand: w <- w - eta (grad F(w) + mu (w - w_0)); the first is SGD's."""
    (task,) = tiny_tasks(1, SAMPLES)
    learner, state, masks, memory = start(corrected("fedprox", mu=mu))
    done = learner.train(state, masks, task, memory.in_task(SAMPLES), epochs=3, device=0)
    model, first = plain(state), [torch.from_numpy(state[name]) for name, _ in plain(state).named_parameters()]
    for _ in range(3):
        steps = gradients(model, task)
        with torch.no_grad():
            for parameter, gradient, origin in zip(model.parameters(), steps, first, strict=True):
                parameter -= LR * (gradient + mu * (parameter - origin))
    assert_near(done.state, model)
    weights = sum(parameter.numel() for parameter in model.parameters())
    assert done.flops.method == 3 * 3 * weights == done.dense_flops.method


def test_fedprox_without_mu_is_plain_and_costs_nothing():
    (task,) = tiny_tasks(1, SAMPLES)
    runs = []
    for name in ("none", "fedprox"):
        learner, state, masks, memory = start(corrected(name, sparsity=0.5))
        runs.append(learner.train(state, masks, task, memory.in_task(SAMPLES), epochs=2, device=0))
    assert all(runs[0].state[name].tobytes() == runs[1].state[name].tobytes() for name in runs[0].state)
    assert runs[0].flops == runs[1].flops and runs[1].flops.method == 0


def test_with_a_large_mu_a_device_stays_near_what_it_was_sent():
    (task,) = tiny_tasks(1, SAMPLES)
    moved = []
    for mu in (0.0, 1.0, 10.0):
        learner, state, masks, memory = start(corrected("fedprox", sparsity=0.5, mu=mu))
        done = learner.train(state, masks, task, memory.in_task(SAMPLES), epochs=8, device=0)
        moved.append(sum(float(((done.state[name] - value) ** 2).sum()) for name, value in state.items()))
        assert all(not done.state[name][~mask].any() for name, mask in masks.items())
    assert moved[0] > moved[1] > moved[2] > 0


# -- SCAFFOLD


class Scaffold:
    """Algorithm 1 of the paper with option II, plainly: all devices in every round, server step size 1, each of equal weight."""

    def __init__(self, state, tasks):
        self.x, self.tasks = plain(state), tasks
        self.c = [torch.zeros_like(one) for one in self.x.parameters()]
        self.own = [[torch.zeros_like(one) for one in self.x.parameters()] for _ in tasks]

    def round(self, steps: int) -> None:
        x, changes, controls = [one.detach().clone() for one in self.x.parameters()], [], []
        for number, task in enumerate(self.tasks):
            y = plain({name: value.detach().numpy() for name, value in self.x.state_dict().items()})
            for _ in range(steps):
                found = gradients(y, task)
                with torch.no_grad():
                    for parameter, g, own, c in zip(y.parameters(), found, self.own[number], self.c, strict=True):
                        parameter -= LR * (g - own + c)
            after = [
                own - c + (one - two.detach()) / (steps * LR)
                for own, c, one, two in zip(self.own[number], self.c, x, y.parameters(), strict=True)
            ]
            controls.append([new - old for new, old in zip(after, self.own[number], strict=True)])
            changes.append([two.detach() - one for one, two in zip(x, y.parameters(), strict=True)])
            self.own[number] = after
        with torch.no_grad():
            for place, parameter in enumerate(self.x.parameters()):
                parameter += sum(change[place] for change in changes) / len(changes)
                self.c[place] = self.c[place] + sum(control[place] for control in controls) / len(self.tasks)


def test_scaffold_is_the_papers_algorithm_over_rounds():
    """Two devices, three rounds of four steps; control variates of devices and server, and the mean of the models."""
    tasks = tiny_tasks(2, SAMPLES)
    learner, state, masks, memory = start(corrected("scaffold"))
    slow, memories, kept = Scaffold(state, tasks), [memory.in_task(SAMPLES)] * 2, learner.auxiliary.start()
    for _ in range(3):
        sessions = [
            learner.train(state, masks, task, replace(own, received=kept), epochs=4, device=device)
            for device, (task, own) in enumerate(zip(tasks, memories, strict=True))
        ]
        memories = [session.memory for session in sessions]
        state = {name: sum(session.state[name] for session in sessions) / 2 for name in state}
        kept = learner.auxiliary.combine(kept, [Upload(device, SAMPLES, one.upload) for device, one in enumerate(sessions)], 2)
        slow.round(4)
    assert_near(state, slow.x, 1e-10)
    names, shapes = [name for name, _ in slow.x.named_parameters()], learner.layout.shapes
    for name, wanted in zip(names, slow.c, strict=True):
        np.testing.assert_allclose(kept[f"correction/{name}"], wanted.numpy(), atol=1e-10)
    for device in (0, 1):
        own, _ = unpack(memories[device].corrected, {name: shapes[name] for name in names}, OWN)
        for name, wanted in zip(names, slow.own[device], strict=True):
            np.testing.assert_allclose(own[name], wanted.numpy(), atol=1e-10)


def test_scaffold_of_one_device_has_its_mean_gradient_and_changes_no_step():
    """c = c_1: the steps are SGD's, and c_1 is the mean of the gradients, which is (x - y) / (K eta)."""
    (task,) = tiny_tasks(1, SAMPLES)
    learner, state, masks, memory = start(corrected("scaffold", sparsity=0.5))
    other, *_ = start(corrected("none", sparsity=0.5))
    kept, plain_memory, now = learner.auxiliary.start(), memory.in_task(SAMPLES), state
    own = replace(memory.in_task(SAMPLES), received=kept)
    for _ in range(2):
        done, alone = (one.train(now, masks, task, held, epochs=3, device=0) for one, held in ((learner, own), (other, plain_memory)))
        for name, value in done.state.items():
            np.testing.assert_allclose(value, alone.state[name], atol=1e-12)
        kept = learner.auxiliary.combine(kept, [Upload(0, SAMPLES, done.upload)], 1)
        for name in learner.network.parameters:
            np.testing.assert_allclose(kept[f"correction/{name}"], (now[name] - done.state[name]) / (3 * LR), atol=1e-12)
        own, plain_memory, now = replace(done.memory, received=kept), alone.memory, done.state


def test_scaffold_over_masks():
    """Nothing of it lies outside of them; a device keeps its active weights and a bit a place; what a mask drops is forgotten."""
    (task,) = tiny_tasks(1, SAMPLES)
    learner, state, masks, memory = start(corrected("scaffold", sparsity=0.5))
    done = learner.train(state, masks, task, replace(memory.in_task(SAMPLES), received=learner.auxiliary.start()), epochs=2, device=0)
    for name, mask in masks.items():
        assert not done.upload[f"correction/{name}"][~mask].any() and done.upload[f"correction/{name}"].any()
    active = {name: int(mask.sum()) for name, mask in masks.items()}
    assert sum(value.nbytes for value in done.memory.corrected.values()) <= learner.held.packed_bytes(active)
    (name, mask), *_ = masks.items()
    other = {**masks, name: ~mask}
    again = learner.train(
        {**done.state, name: np.zeros_like(done.state[name])}, other, task, replace(done.memory, received=learner.auxiliary.start()),
        epochs=1, device=0,
    )  # fmt: skip
    own, own_masks = unpack(again.memory.corrected, {name: mask.shape}, OWN)
    assert np.array_equal(own_masks[name], ~mask) and not own[name][mask].any()
    weights = sum(active.values()) + sum(size for key, size in learner.held.parameters.items() if key not in masks)
    assert done.flops.method == 2 * weights + 5 * weights


def test_on_the_wire_a_sparse_tensors_array_costs_its_active_places_and_comes_back_to_the_bit():
    learner, state, masks, _ = start(corrected("scaffold", sparsity=0.5))
    rng, channel = np.random.default_rng(0), learner.auxiliary.up
    arrays = {name: rng.normal(size=shape) for name, shape in channel.layout.shapes.items()}
    sent = channel.encode(arrays, masks, 7)
    found, sizes = channel.decode(sent.data, masks, 7)
    for name, value in channel.within(arrays, masks).items():
        assert found[name].tobytes() == value.tobytes()
    places = sum(mask.sum() for mask in masks.values()) + sum(value.size for key, value in state.items() if key not in masks)
    assert 7.8 * places < len(sent) == sizes.auxiliary == sizes.total < 8 * places + 300
    assert channel.held_bytes({name: int(mask.sum()) for name, mask in masks.items()}) == 8 * places
    with pytest.raises(CodecError, match="version 7: auxiliary arrays of version 8 were expected"):
        channel.decode(sent.data, masks, 8)
    with pytest.raises(CodecError, match="checksum"):
        channel.decode(sent.data[:-1] + b"?", masks, 7)
    with pytest.raises(ValueError, match="are wanted"):
        channel.encode({"correction/other": np.zeros(3)}, masks, 7)


# -- FLwF-2T


def test_flwf2t_by_hand():
    """alpha CE + beta D_device + gamma D_server over the old classes 0 and 1, T = 2, against plain NumPy."""
    config = find_method("flwf2t").Config(method="flwf2t", client_weight=0.2, server_weight=0.3, softmax_temp=2.0)
    rng = np.random.default_rng(3)
    logits, device, server = (torch.from_numpy(rng.normal(size=(5, 4))) for _ in range(3))
    labels, old = torch.tensor([2, 3, 2, 2, 3]), torch.tensor([True, True, False, False])

    class Now:
        prepared = (lambda x: device, lambda x: server, old)

    class Batch:
        x, y = None, labels

    def softmax(z):
        e = np.exp(z - z.max(1, keepdims=True))
        return e / e.sum(1, keepdims=True)

    own = -np.log(softmax(logits.numpy()))[np.arange(5), labels.numpy()].mean()
    said = [-(softmax(one.numpy()[:, :2] / 2) * np.log(softmax(logits.numpy()[:, :2] / 2))).sum(1).mean() for one in (device, server)]
    found = make_method(config).current_term(Now, Batch, logits, logits)
    assert float(found) == pytest.approx(0.5 * own + 0.2 * said[0] + 0.3 * said[1], rel=1e-12)
    Now.prepared = None
    assert float(make_method(config).current_term(Now, Batch, logits, logits)) == pytest.approx(own, rel=1e-12)


def test_flwf2ts_teacher_is_the_devices_own_model_and_both_are_counted():
    """In the second task each sample of a batch goes through two teachers; the device's is what it left, whatever the server sends."""
    tasks = tiny_tasks(2, SAMPLES)
    learner, state, masks, memory = start(with_learner(without(tiny_method("mlp", 0.5), "ddr", "dgm"), "flwf2t", single_head=False))
    memory, _ = learner.begin_task(state, masks, tasks[0], memory, device=0)
    first = learner.train(state, masks, tasks[0], memory, epochs=1, device=0)
    assert first.flops.total == 3 * SAMPLES * learner.cost_at(masks).forward - 2 * SAMPLES * learner.layers[0].macs
    averaged = {name: 0.5 * (value + state[name]) for name, value in first.state.items()}
    memory, _ = learner.end_task(averaged, masks, tasks[0], first.memory, device=0)
    memory, _ = learner.begin_task(averaged, masks, tasks[1], memory, device=0)
    teacher, _ = unpack(memory.arrays, learner.layout.shapes, TEACHER)
    assert all(np.array_equal(teacher[name], first.state[name]) for name in teacher)
    assert memory.arrays[SEEN].tolist() == [True, True, False, False]
    second = learner.train(averaged, masks, tasks[1], memory, epochs=1, device=0)
    assert second.flops.total - first.flops.total == 2 * SAMPLES * learner.cost_at(masks).forward
    assert {name.partition("/")[0] for name in second.memory.arrays} == {"teacher", "last", SEEN}
    last, _ = unpack(second.memory.arrays, learner.layout.shapes, LAST)
    assert all(np.array_equal(last[name], second.state[name]) for name in last)


# -- Re-Fed


def test_refeds_importance_and_choice_are_the_papers():
    """Against plain PyTorch: s passes of v, gradient norms of single samples by 1/p; the largest are cached, v goes on in the next task."""
    tasks, capacity, s, lam = tiny_tasks(2, 16), 6, 3, 0.4
    method = without(tiny_method("mlp", 0.0, "float64", lr=LR, batch_size=5), "ddr")
    method = with_learner(method, "refed", pim_lambda=lam, pim_iterations=s)
    learner, state, masks, memory = start(method, capacity)
    x, y, v = np.zeros((0, 1, 4, 4), np.uint8), np.zeros(0, np.int64), plain(state)
    for number, task in enumerate(tasks):
        memory, _ = learner.begin_task(state, masks, task, memory, device=0)
        done = learner.train(state, masks, task, memory, epochs=2, device=0)
        w = {name: value.copy() for name, value in done.state.items()}
        memory, cost = learner.end_task(w, masks, task, done.memory, device=0)
        if number == 0:
            load_state_(v, w)
        x, y = np.concatenate([x, task.x]), np.concatenate([y, task.y])
        scores = _importance(v, w, x, y, learner=learner, task=number, s=s, q=(1 - lam) / (2 * lam))
        chosen = np.sort(np.argsort(-scores, kind="stable")[:capacity])
        assert cost.flops.samples == s * len(y)
        x, y = x[chosen], y[chosen]
        assert np.array_equal(memory.buffer.x, x) and np.array_equal(memory.buffer.y, y) and len(memory.buffer) == capacity
        own, _ = unpack(memory.arrays, {name: w[name].shape for name, _ in v.named_parameters()}, PIM)
        assert_near(own, v, 1e-10)
        state = w
    assert done.replayed == 2 * 16  # 5 of 6 cached beside batches of 5, 5, 5 and 1


def _importance(v, w, x, y, *, learner, task, s, q):
    from sparcl_core.seeding import generator

    order = generator(learner.seed, "end-task", 0, task).permutation(len(y))
    served = [torch.from_numpy(w[name]) for name, _ in v.named_parameters()]
    scores = np.zeros(len(y))
    for p in range(1, s + 1):
        for at in range(0, len(y), 5):
            rows, total = order[at : at + 5], [torch.zeros_like(one) for one in v.parameters()]
            for row in rows:
                image = normalise(torch.from_numpy(x[row : row + 1]), INPUTS, torch.float64)
                found = torch.autograd.grad(F.cross_entropy(v(image), torch.from_numpy(y[row : row + 1])), list(v.parameters()))
                scores[row] += sum(float((one**2).sum()) for one in found) / p
                total = [one + g / len(rows) for one, g in zip(total, found, strict=True)]
            with torch.no_grad():
                for parameter, g, origin in zip(v.parameters(), total, served, strict=True):
                    parameter -= LR * (g + q * (parameter - origin))
    return scores


def test_refed_keeps_v_where_masks_go_and_takes_the_servers_weights_where_one_is_grown():
    (task,) = tiny_tasks(1, 16)
    learner, state, masks, memory = start(with_learner(without(tiny_method("mlp", 0.5), "ddr"), "refed", pim_iterations=1))
    memory = memory.in_task(16)
    own = {name: np.full_like(value, 7) * masks.get(name, True) for name, value in state.items()}
    memory = replace(memory, arrays=pack({name: own[name] for name in learner.network.parameters}, masks, PIM))
    (name, mask), *_ = masks.items()
    turned = {**masks, name: np.roll(mask, 1, axis=0)}
    now = {key: np.where(turned[key], 0.5, 0).astype(value.dtype) if key in turned else value for key, value in state.items()}
    from sparcl_core.methods.refed import _started

    border = learner._border(now, turned, task, memory, rng=np.random.default_rng(0))
    found = _started(border)[name]
    assert (found[mask & turned[name]] == 7).all() and (found[turned[name] & ~mask] == 0.5).all() and not found[~turned[name]].any()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"pim_lambda": 0.0}, "a share in"),
        ({"pim_lambda": 0.001}, "take more than 0.0244"),
        ({"pim_iterations": 0}, "at least 1"),
    ],
)
def test_refeds_settings(setting, message):
    with pytest.raises(ValueError, match=message):
        find_method("refed").Config(method="refed", lr=LR, **setting)


# -- prototypes


def test_class_means_by_hand():
    features = np.array([[1.0, 0], [3, 0], [0, 5]], np.float32)
    labels = np.array([1, 1, 3])
    means = class_means(features, labels, 4)
    assert means.tolist() == [[0, 0], [2, 0], [0, 0], [0, 5]]
    assert variance_about(means, features, labels)[0] == pytest.approx(2 / 6)  # two squares of 1, four of 0


@given(st.lists(st.lists(st.integers(0, 9), min_size=3, max_size=3), min_size=1, max_size=4), st.integers(0, 999))
@settings(max_examples=50)
def test_prototypes_are_means_over_samples_of_all_devices(counts, seed):
    """A class that no device of the round has keeps what it had; r is set once."""
    rng = np.random.default_rng(seed)
    kept = {"prototypes": rng.normal(size=(3, 2)), "known": np.array([1.0, 0, 0]), "radius": np.zeros(1)}
    uploads, samples, spread = [], {0: [], 1: [], 2: []}, 0.0
    for device, own in enumerate(counts):
        labels = np.repeat(np.arange(3), own)
        features = rng.normal(size=(len(labels), 2))
        means, number = class_means(features, labels, 3), np.array(own, float)
        variance = variance_about(means, features, labels)
        uploads.append(Upload(device, len(labels), {"means": means, "counts": number, "variance": variance}))
        for label in range(3):
            samples[label] += features[labels == label].tolist()
        spread += len(labels) * variance[0]
    found = FedSpace(None).combine(kept, uploads, 9)
    for label, own in samples.items():
        np.testing.assert_allclose(found["prototypes"][label], np.mean(own, axis=0) if own else kept["prototypes"][label], atol=1e-12)
    total = sum(map(sum, counts))
    assert found["known"].tolist() == [1.0] + [float(bool(samples[label])) for label in (1, 2)]
    assert found["radius"][0] == pytest.approx((spread / total) ** 0.5 if total else 0.0)
    assert FedSpace(None).combine(found | {"radius": np.array([3.0])}, uploads, 9)["radius"].tolist() == [3.0]


def test_fedspaces_terms_by_hand():
    """A task of classes 2 and 3; the server knows 0, 1 and 2: noisy prototypes of 0 and 1 go through the classifier, features of class 2
    are drawn to its prototype, and class 3 has none yet."""
    config = find_method("fedspace").Config(method="fedspace", prototype_weight=0.5, representation_weight=0.25, prototype_temp=0.2)
    rng = np.random.default_rng(1)
    prototypes, features, logits = rng.normal(size=(4, 3)), rng.normal(size=(5, 3)), rng.normal(size=(5, 4))
    matrix, labels = rng.normal(size=(4, 3)), np.array([2, 3, 2, 3, 2])

    class Net:
        def classify(self, rows):
            return rows @ torch.from_numpy(matrix).T

    class Now:
        prepared = (
            torch.from_numpy(prototypes), torch.tensor([True, True, True, False]), torch.tensor([True, True, False, False]), 0.7,
        )  # fmt: skip
        network, rng = Net(), np.random.default_rng(9)

    class Batch:
        y = torch.from_numpy(labels)

    Batch.features = torch.from_numpy(features)

    def cross_entropy(z, label):
        return np.log(np.exp(z).sum()) - z[label]

    noise = np.random.default_rng(9).standard_normal((4, 3))
    own = np.mean([cross_entropy(logits[row], labels[row]) for row in range(5)])
    old = np.mean([cross_entropy(matrix @ (prototypes[c] + 0.7 * noise[c]), c) for c in (0, 1)])
    unit = lambda one: one / np.linalg.norm(one)  # noqa: E731
    drawn = np.mean([cross_entropy(np.array([unit(features[row]) @ unit(prototypes[c]) / 0.2 for c in (0, 1, 2)]), 2) for row in (0, 2, 4)])
    found = make_method(config).current_term(Now, Batch, *[torch.from_numpy(logits)] * 2)
    assert float(found) == pytest.approx(own + 0.5 * old + 0.25 * drawn, rel=1e-12)


def test_what_a_fedspace_device_sends_are_means_under_the_model_that_it_trained_and_that_pass_is_counted():
    (task,) = tiny_tasks(1, SAMPLES)
    learner, state, masks, memory = start(with_learner(without(tiny_method("mlp", 0.5), "ddr", "dgm"), "fedspace"))
    other, *_ = start(with_learner(without(tiny_method("mlp", 0.5), "ddr", "dgm"), "sgd"))
    memory = replace(memory.in_task(SAMPLES), received=learner.auxiliary.start())
    done, plainly = (one.train(state, masks, task, memory, epochs=1, device=0) for one in (learner, other))
    assert all(np.array_equal(done.state[name], plainly.state[name]) for name in state)  # nothing is known yet, so the loss is SGD's
    learner.network.load(done.state, masks)
    features, _ = learner.network.features_of(task.x)
    means, counts = class_means(features, task.y, 4), np.bincount(task.y, minlength=4)
    variance = variance_about(means, features, task.y)
    sent = within("method", done.upload)
    assert np.array_equal(sent["means"], means) and np.array_equal(sent["counts"], counts) and sent["variance"] == variance
    assert done.flops.total - plainly.flops.total == SAMPLES * learner.cost_at(masks).forward
    assert done.dense_flops.total - plainly.dense_flops.total == SAMPLES * learner.cost_at({}).forward


def test_counts_that_cannot_be_are_refused():
    learner, *_ = start(with_learner(tiny_method("mlp", 0.0), "fedspace"))
    arrays = {name: np.zeros(shape, np.float32) for name, shape in learner.auxiliary.up.layout.shapes.items()}
    learner.auxiliary.check(arrays, 5)
    for value in (-1.0, 5.5, 6.0):
        with pytest.raises(CodecError, match="method/counts is no count of samples: whole numbers from 0 to 5"):
            learner.auxiliary.check(arrays | {"method/counts": np.array([value, 0, 0, 0], np.float32)}, 5)


# -- FedWeIT


@given(st.integers(0, 10**6), st.integers(0, 2), st.integers(0, 2))
@settings(max_examples=40, deadline=None)
def test_fedweits_step_is_a_proximal_step_on_the_papers_objective(seed, before, knowledge):
    """Against autograd on equation by equation: a gradient step of all parts on loss and l2 term, then soft thresholds of m and all A."""
    rng, lr, l1, l2 = np.random.default_rng(seed), 0.05, 0.3, 0.7
    tensor = lambda *shape: torch.from_numpy(rng.normal(size=shape))  # noqa: E731
    target, earlier = tensor(3, 2, 2), [(tensor(3), tensor(3, 2, 2)) for _ in range(before)]
    part = Decomposed(
        tensor(3, 2, 2), tensor(3), tensor(3, 2, 2), others=tensor(knowledge, 3, 2, 2), alpha=tensor(knowledge),
        before=[(m, a.clone()) for m, a in earlier],
    )  # fmt: skip
    part.base += tensor(3, 2, 2)  # it has moved before
    for place, (m, a, first) in enumerate(part.before):
        a += tensor(3, 2, 2)
        assert torch.equal(first, earlier[place][1]) and torch.equal(m, earlier[place][0])
    leaves = [one.clone().requires_grad_() for one in (part.base, part.mask, part.own, part.alpha, *(a for _, a, _ in part.before))]
    base, mask, own, alpha, *olds = leaves
    theta = base * mask[:, None, None] + own + sum((alpha[j] * part.others[j] for j in range(knowledge)), torch.zeros(3, 2, 2))
    loss = ((theta - target) ** 3).sum()
    kept = sum(
        (((base - part.start) * m[:, None, None] + (old - first)) ** 2).sum() for old, (m, _, first) in zip(olds, part.before, strict=True)
    )
    slopes = torch.autograd.grad(loss + l2 * kept, leaves, allow_unused=True)
    np.testing.assert_allclose(part.theta, theta.detach(), atol=1e-12)
    wanted = [leaf.detach() - lr * (0 if slope is None else slope) for leaf, slope in zip(leaves, slopes, strict=True)]
    soft = lambda one: torch.sign(one) * (one.abs() - lr * l1).clamp(min=0)  # noqa: E731
    part.step(3 * (theta.detach() - target) ** 2, lr=lr, l1=l1, l2=l2)
    found = [part.base, part.mask, part.own, part.alpha, *(a for _, a, _ in part.before)]
    for number, (one, other) in enumerate(zip(found, wanted, strict=True)):
        np.testing.assert_allclose(one, soft(other) if number in (1, 2) or number > 3 else other, atol=1e-10)


def weit(dtype: str = "float64", **own):
    method = without(tiny_method("mlp", 0.0, dtype, batch_size=8, lr=LR), "ddr", "dgm", "tdm")
    return with_learner(method, "fedweit", **own)


def test_fedweit_over_two_tasks():
    """What is sent is B * m; a task's network stays what it was though the base moves on; arrays fit what was promised."""
    tasks = tiny_tasks(2, SAMPLES)
    learner, state, masks, memory = start(weit(l1=0.01, l2=4.0, knowledge=2))
    received = {name: np.zeros(shape) for name, shape in learner.auxiliary.down.layout.shapes.items()}
    rng, names = np.random.default_rng(0), [name for name, value in state.items() if value.ndim >= 2]
    answers = []
    for number, task in enumerate(tasks):
        memory, cost = learner.begin_task(state, masks, task, memory, device=0)
        assert cost.flops.total == 0
        memory = replace(memory, received={name: 0.1 * rng.normal(size=value.shape) for name, value in received.items()})
        done = learner.train(state, masks, task, memory, epochs=6, device=0)
        arrays, state = done.memory.arrays, {name: value.copy() for name, value in done.state.items()}
        for name in names:
            sent = within("method", done.upload)[f"adaptive/{name}"]
            own, _ = unpack(arrays, {name: sent.shape}, f"own/{number}/")
            assert np.array_equal(own[name], sent) and (sent == 0).any() and (sent != 0).any()
        promised = learner.method.arrays_bytes(learner.held, {}, buffered=0, classes=INPUTS.num_classes)
        assert sum(value.nbytes for value in arrays.values()) <= promised
        answers.append(scores(learner, state, done.memory, tasks[0]))
        memory, _ = learner.end_task(state, masks, task, done.memory, device=0)
        again = scores(learner, state, memory, tasks[0])
        np.testing.assert_allclose(again, answers[-1], atol=1e-12)  # what was folded is what it was
    assert (answers[0][:, :2].argmax(1) == tasks[0].y).mean() > 0.9  # it learns
    first, second = answers
    assert (second[:, :2].argmax(1) == tasks[0].y).mean() > 0.9  # and does not forget
    assert memory.arrays["tasks"].tolist() == [[True, True, False, False], [False, False, True, True]]


def scores(learner, state, memory, task):
    learner.network.load(state, {})
    learner.network.model.eval()
    with torch.inference_mode():
        return learner.method.scorer(learner.network, memory, {})(learner.network.feed(task.x)).numpy()


def test_the_same_bits_of_fedweit_come_out_again_and_without_news_it_attends_to_what_it_has():
    (task,) = tiny_tasks(1, SAMPLES)
    runs = []
    for _ in range(2):
        learner, state, masks, memory = start(weit(knowledge=1))
        memory, _ = learner.begin_task(state, masks, task, memory, device=0)
        news = {name: np.full(shape, 0.05) for name, shape in learner.auxiliary.down.layout.shapes.items()}
        one = learner.train(state, masks, task, replace(memory, received=news), epochs=1, device=0)
        two = learner.train(one.state, masks, task, replace(one.memory, received={}), epochs=1, device=0)
        runs.append(two)
        assert one.memory.arrays["alpha"].any() and (two.memory.arrays["alpha"] != one.memory.arrays["alpha"]).any()
        assert all(np.array_equal(two.memory.arrays[name], one.memory.arrays[name]) for name in two.memory.arrays if "others/" in name)
    assert all(runs[0].memory.arrays[name].tobytes() == value.tobytes() for name, value in runs[1].memory.arrays.items())


def test_the_server_keeps_the_arrays_of_devices_that_are_evenly_spread():
    method = make_method(find_method("fedweit").Config(method="fedweit", knowledge=3))
    kept = {"others/w": np.full((3, 2, 1), 9.0)}
    uploads = [Upload(device, 1, {"adaptive/w": np.full((2, 1), float(device))}) for device in range(5)]
    assert method.combine(kept, uploads, 5)["others/w"][:, 0, 0].tolist() == [0, 2, 4]
    assert method.combine(kept, uploads[1:3], 5)["others/w"][:, 0, 0].tolist() == [1, 2, 9]


def test_an_l2_with_which_steps_diverge_is_refused():
    with pytest.raises(ValueError, match="take at most 2.5"):
        find_method("fedweit").Config(method="fedweit", lr=0.1, l2=3.0)
