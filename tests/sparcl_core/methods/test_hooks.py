"""What a method can do: gradients apart, second networks, a buffer that it fills itself, and computing where a task begins or ends."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from own_methods import Distilled
from tiny_learning import INPUTS, assert_same, frozen, start, tiny_method, tiny_tasks, without
from torch.utils.flop_counter import FlopCounterMode

from sparcl_core.config import LearnerConfig, MethodConfig
from sparcl_core.costs.flops import Counted, Flops, Passes, dense_forward, per_sample
from sparcl_core.learner import Learner
from sparcl_core.methods import registry
from sparcl_core.methods.base import LearningMethod
from sparcl_core.methods.er import ER
from sparcl_core.networks.models import build_model, load_state_
from sparcl_core.plugins.kinds import Offer
from sparcl_core.replay import buffer as rehearsal
from sparcl_core.seeding import generator
from sparcl_core.sparsity.dgm import DGMConfig
from sparcl_core.sparsity.masks import count_active
from sparcl_core.sparsity.packed import pack, unpack
from sparcl_core.task_data import TaskData


class Projected(ER):
    """A-GEM: the gradient of the batch, without what would raise the loss on the draw (Chaudhry et al. 2019, arXiv:1812.00420)."""

    apart = True

    def gradients(self, running, current, drawn):
        if drawn is None or (along := sum((one * other).sum() for one, other in zip(current, drawn, strict=True))) >= 0:
            return current
        square = sum((one * one).sum() for one in drawn)
        return [one - along / square * other for one, other in zip(current, drawn, strict=True)]


class Anchored(LearningMethod):
    """EWC with the Fisher information of the last task: a pass forward and backward for each of its samples."""

    @dataclass(frozen=True)
    class Config(LearnerConfig):
        e_lambda: float = 10.0

    def end_task(self, border):
        network, data = border.network, border.data
        fisher = dict.fromkeys(network.parameters, 0)
        for row in range(len(data.y)):
            loss = F.cross_entropy(network.model(network.feed(data.x[[row]])), torch.from_numpy(data.y[[row]]))
            for name, gradient in zip(fisher, torch.autograd.grad(loss, list(network.parameters.values())), strict=True):
                fisher[name] += gradient**2 / len(data.y)
        arrays = {f"fisher/{name}": value.numpy() for name, value in fisher.items()}
        return replace(border.memory, arrays=arrays | pack(border.state, border.masks, "then/")), Passes(current=len(data.y))

    def task_passes(self, samples, buffered, weights):
        return Passes(current=samples)


class Herding(ER):
    """Chooses what its buffer holds at the end of a task: the samples that the model is surest of."""

    def offer(self, running, rows, logits, rng):
        """Nothing: see `end_task`."""

    def held_by_twin(self, buffer, offered):
        return len(buffer)

    def end_task(self, border):
        buffer, data = rehearsal.copy(border.memory.buffer), border.data
        with torch.no_grad():
            logits = border.network.model(border.network.feed(data.x))
        surest = np.argsort(-logits.max(1).values.numpy(), kind="stable")[: buffer.capacity]
        buffer.x[:], buffer.y[:], buffer.logits[:] = data.x[surest], data.y[surest], logits[surest].numpy()
        return replace(border.memory, buffer=replace(buffer, offered=buffer.capacity)), Passes(taught=len(data.y))


class Drawing(LearningMethod):
    """Draws a number at each border."""

    seen: list[float] = []

    def begin_task(self, border):
        self.seen.append(border.rng.random())
        return border.memory, Passes()

    end_task = begin_task


@pytest.fixture(autouse=True)
def known(monkeypatch):
    for method in (Projected, Anchored, Herding, Distilled, Drawing):
        name = method.__name__
        monkeypatch.setitem(registry.METHODS.ours, name, Offer(name, "the tests", f"{__name__}:{name}"))


def with_method(method: type[LearningMethod], config: MethodConfig, **own) -> MethodConfig:
    settings = vars(config.learner) | {"method": method.__name__} | own
    return replace(config, learner=method.Config(**settings))


def filled(memory, task: TaskData):
    """`memory` whose buffer was offered all of `task`, with logits that no model wrote."""
    rng, memory = np.random.default_rng(0), frozen(memory)
    rehearsal.offer_(memory.buffer, task.x, task.y, rng.normal(size=(len(task.y), INPUTS.num_classes)), rng=rng)
    return memory


# -- gradients


@pytest.mark.parametrize("joint", [True, False], ids=["joint", "separate"])
@pytest.mark.parametrize("sparsity", [0.0, 0.75])
def test_gradients_apart_reach_the_method_and_what_it_makes_of_them_moves_the_weights(sparsity, joint):
    """Dense and by hand: the draw is the whole buffer, the batch the whole task. Sparse: a gradient mask of all active weights is idle."""
    config = tiny_method("cnn", sparsity, "float64", single_head=False, batch_size=16, joint_forward=joint, lr=0.1)
    config = with_method(Projected, replace(config, dgm=DGMConfig(keep=1.0)))
    learner, state, masks, memory = start(config, capacity=6)
    old, task = tiny_tasks(2, samples=16)
    memory = filled(memory, old).in_task(16)
    done = learner.train(state, masks, task, memory, epochs=1, device=0)
    model = build_model(config.model, INPUTS.shape, INPUTS.num_classes)
    load_state_(model, state)
    parameters = dict(model.named_parameters())

    def gradient_of(x, y):
        loss = F.cross_entropy(model((torch.from_numpy(x).double() - 128) / 64), torch.from_numpy(y))
        found = torch.autograd.grad(loss, list(parameters.values()))
        return {name: g.numpy() * masks.get(name, True) for name, g in zip(parameters, found, strict=True)}

    current, drawn = gradient_of(task.x, task.y), gradient_of(memory.buffer.x, memory.buffer.y)
    along = sum((current[name] * drawn[name]).sum() for name in current)
    assert along < 0  # other classes: what serves the new ones harms the old ones
    square = sum((own**2).sum() for own in drawn.values())
    for name, value in state.items():
        moved = current[name] - along / square * drawn[name]
        assert np.allclose(done.state[name], value - 0.1 * moved, rtol=1e-9, atol=1e-12), name
    assert (done.samples, done.replayed, done.flops.samples) == (16, 6, 22)


# -- a second network


@pytest.mark.parametrize("model", ["mlp", "cnn", "resnet18"])
@pytest.mark.parametrize("joint", [True, False], ids=["joint", "separate"])
def test_a_dense_session_with_a_teacher_costs_what_torch_counts(model, joint):
    samples = 16 if model == "resnet18" else 20  # batches that BatchNorm can be trained on
    config = with_method(Distilled, without(tiny_method(model, 0.0, joint_forward=joint), "ddr"))
    learner, state, masks, memory = start(config, capacity=0)
    first, second = tiny_tasks(2, samples)
    memory, counted = learner.end_task(state, masks, first, memory, device=0)
    assert counted == Counted() and memory.arrays.keys() == state.keys()
    with FlopCounterMode(display=False) as counter:
        done = learner.train(state, masks, second, memory.in_task(samples), epochs=2, device=0)
    assert done.flops.train == counter.get_total_flops()
    assert done.flops == done.dense_flops  # a dense device is its own twin
    without_teacher = learner.train(state, masks, second, replace(memory, arrays={}).in_task(samples), epochs=2, device=0)
    assert done.flops.train - without_teacher.flops.train == 2 * samples * dense_forward(learner.layers)


def test_a_frozen_network_is_the_old_model_in_evaluation_mode():
    """Sparse, with BatchNorm: its running statistics are used, and neither it nor the one that is trained moves the other's."""
    config = with_method(Distilled, tiny_method("resnet18", 0.9, batch_size=16))
    learner, state, masks, memory = start(config)
    state = {name: value + np.float32(0.1) * ("running" in name) for name, value in state.items()}
    task = tiny_tasks(1, 16)[0]
    kept = pack(state, masks)
    running = learner.run(state, masks, task, replace(memory, arrays=kept).in_task(16))
    model = build_model(config.model, INPUTS.shape, INPUTS.num_classes)
    load_state_(model, state)
    x = running.network.feed(task.x)
    wanted = model.eval()(x).detach()
    assert torch.allclose(running.prepared(x), wanted, rtol=1e-4, atol=1e-5)
    running.network.model(x)  # statistics of the one that is trained move
    assert torch.allclose(running.prepared(x), wanted, rtol=1e-4, atol=1e-5)
    assert learner.frozen.samples == 32
    again, found = unpack(kept, learner.layout.shapes)
    assert_same(again, state)
    assert_same(found, masks)


def test_a_teacher_counts_as_sparse_as_it_is():
    """Its own masks and not those of the model that is trained."""
    config = with_method(Distilled, without(tiny_method("cnn", 0.75), "ddr", "dgm"))
    learner, state, masks, memory = start(config)
    task = tiny_tasks(2, 16)[1]
    dense = replace(config, sparsity=0.0)
    thick = {name: np.ones(mask.shape, bool) for name, mask in masks.items()}
    memory = replace(memory, arrays=pack(start(dense)[1], thick)).in_task(16)
    done = learner.train(state, masks, task, memory, epochs=1, device=0)
    cost, old = learner.cost_at(masks), per_sample(learner.layers, count_active(thick), count_active(thick))
    assert done.flops.train_sparse == 16 * (cost.sparse + old.forward_sparse)
    assert done.flops.train_dense == 16 * (cost.dense + old.forward - old.forward_sparse)


def test_sessions_of_several_devices_do_not_see_each_others_teachers():
    config = with_method(Distilled, tiny_method("cnn", 0.75))
    learner, state, masks, memory = start(config)
    other = {name: value * np.float32(0.5) for name, value in state.items()}
    task = tiny_tasks(2, 16)[1]
    kept = [replace(memory, arrays=pack(one, masks)).in_task(16) for one in (state, other)]
    alone = [start(config)[0].train(state, masks, task, own, epochs=1, device=0) for own in kept]
    mixed = [learner.train(state, masks, task, own, epochs=1, device=0) for own in (kept[0], kept[1], kept[0])]
    for one, wanted in zip(mixed, (alone[0], alone[1], alone[0]), strict=True):
        assert_same(one, wanted)
    assert not np.array_equal(alone[0].state["fc.weight"], alone[1].state["fc.weight"])


# -- where a task ends


@pytest.mark.parametrize("sparsity", [0.0, 0.75])
def test_what_is_computed_at_the_end_of_a_task_is_counted_and_kept(sparsity):
    config = with_method(Anchored, without(tiny_method("mlp", sparsity), "ddr"), e_lambda=3.0)
    learner, state, masks, memory = start(config, capacity=0)
    task, given = tiny_tasks(1, 20)[0], frozen((state, masks, memory))
    kept, counted = learner.end_task(state, masks, task, memory, device=0)
    assert_same((state, masks)[0], given[0])
    assert_same(memory, given[2])
    sizes = {name: mask.size for name, mask in masks.items()}
    whole, own = per_sample(learner.layers, sizes, sizes), learner.cost_at(masks)
    assert counted.flops == Flops(importance=20 * (own.sparse + own.dense), samples=20)
    assert counted.dense_flops == Flops(importance=20 * (whole.sparse + whole.dense), samples=20)
    assert counted.flops.importance < counted.dense_flops.importance or not sparsity
    for name, count in count_active(masks).items():
        assert kept.arrays[f"fisher/{name}"].shape == (count,) and (kept.arrays[f"fisher/{name}"] >= 0).all()
    assert_same(unpack(kept.arrays, learner.layout.shapes, "then/")[0], state)


def test_a_buffer_that_is_filled_at_the_end_of_a_task():
    """Nothing is replayed before, by the dense twin neither; its forward pass is booked."""
    config = with_method(Herding, without(tiny_method("cnn", 0.0), "ddr"))
    learner, state, masks, memory = start(config, capacity=6)
    first, second = tiny_tasks(2, 16)
    memory, counted = learner.begin_task(state, masks, first, memory, device=0)
    assert counted == Counted()
    done = learner.train(state, masks, first, memory, epochs=2, device=0)
    assert done.replayed == 0 and len(done.memory.buffer) == 0 and done.flops == done.dense_flops
    memory, counted = learner.end_task(done.state, masks, first, done.memory, device=0)
    assert counted.flops == counted.dense_flops == Flops(statistics=16 * dense_forward(learner.layers))
    assert len(memory.buffer) == 6 and len(done.memory.buffer) == 0
    memory, _ = learner.begin_task(done.state, masks, second, memory, device=0)
    later = learner.train(done.state, masks, second, memory, epochs=2, device=0)
    assert later.replayed == 4 * 6 and later.flops == later.dense_flops
    assert_same(later.memory.buffer, memory.buffer)


def test_a_border_has_an_address_for_what_is_drawn_there():
    """By device, task, and whether it begins or ends; and it hands over what there is."""
    Drawing.seen.clear()
    learner, state, masks, memory = start(with_method(Drawing, tiny_method("mlp")))
    for step in (learner.begin_task, learner.end_task):
        for task in tiny_tasks(2, 8):
            for device in (0, 1):
                step(state, masks, task, memory, device=device)
    wanted = [
        generator(learner.seed, f"{what}-task", device, task).random() for what in ("begin", "end") for task in (0, 1) for device in (0, 1)
    ]
    assert Drawing.seen == wanted and len(set(wanted)) == 8


def test_the_weights_are_loaded_only_for_a_method_that_looks_at_them(monkeypatch):
    learner, state, masks, memory = start(tiny_method("cnn"))
    monkeypatch.setattr(learner.network, "load", lambda *args: pytest.fail("loaded for nothing"))
    learner.end_task(state, masks, tiny_tasks(1)[0], memory, device=0)
    learner.begin_task(state, masks, tiny_tasks(1)[0], memory, device=0)


# -- what is asked of a method that has draws, and of one that has none


def test_a_method_with_draws_must_say_what_they_add():
    class Silent(LearningMethod):
        draws = 1

    with pytest.raises(NotImplementedError, match="Silent has 1 draws: it needs a draw_term"):
        Silent(LearnerConfig()).draw_term(None, 0, None, None)


@pytest.mark.parametrize(("method", "draws"), [("sgd", 0), ("er", 1), ("der", 1), ("derpp", 2)])
def test_the_formulas_of_the_methods_by_hand(method, draws):
    made = registry.make_method(LearnerConfig(method))
    assert made.step_passes(10, 4) == Passes(10, draws * 4, 0)
    assert [made.forward_passes(is_joint) for is_joint in (True, False)] == [1, 1 + draws]
    assert [made.samples_per_forward(10, is_joint) for is_joint in (True, False)] == [10 * (1 + draws), 10]
    assert (made.task_passes(10, 4, 100), made.arrays_bytes(None, {}, buffered=4, classes=2)) == (Passes(), 0)
    samples = np.array([3, 7])
    assert made.step_passes(samples, samples).trained.tolist() == [3 * (1 + draws), 7 * (1 + draws)]


def test_a_teacher_in_formulas():
    made = Distilled(Distilled.Config())
    assert [made.step_passes(10, 4, arrays).taught for arrays in (None, {}, {"w": np.zeros(1)})] == [10, 0, 10]
    assert [made.forward_passes(is_joint) for is_joint in (True, False)] == [2, 2]
    assert made.paper_passes(made.step_passes(10, 4)) == 30  # published counts leave a teacher out: those of LwF are those of SGD


def test_methods_of_ours_are_named_as_they_are_set():
    assert all(registry.find_method(name).name == name for name in registry.OURS)
    assert isinstance(Learner(tiny_method("mlp", method="der"), INPUTS, 5, 0).method, registry.find_method("der"))
