"""A model of a user's own: what it must be, which of its weights are sparse, and that training with it can be repeated."""

import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_learning import INPUTS, SEED, assert_same, global_generators, start, tiny_method, tiny_tasks
from torch import nn

from sparcl_core.config import MethodConfig, ModelConfig
from sparcl_core.costs.flops import LayerShape, Products, layer_shapes
from sparcl_core.kernels import native
from sparcl_core.networks.check import check_model
from sparcl_core.networks.masked import Network
from sparcl_core.networks.models import build_model, first_weights, read_state
from sparcl_core.networks.sparse_rule import dense_by_rule, layers_told, sparse_names

SHAPE, CLASSES = INPUTS.shape, INPUTS.num_classes
MODES = ["dense", pytest.param("sparse", marks=pytest.mark.skipif(not native.has_kernels(), reason="no C compiler here"))]


def own(name: str, **settings) -> ModelConfig:
    return ModelConfig(f"own_models:{name}", **settings)


def method_of(model: ModelConfig, sparsity: float = 0.75, **learner) -> MethodConfig:
    return replace(tiny_method("cnn", sparsity, **learner), model=model)


# -- what is taken


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", ["make", "Net", "Twice", "transformer"])
def test_functions_and_classes_are_taken_and_nothing_is_left_changed(name, dtype, mode):
    method = method_of(own(name, dtype=dtype))
    before = global_generators()
    check_model(replace(method, kernels=replace(method.kernels, mode=mode)), INPUTS)
    check_model(replace(method, sparsity=0.0), INPUTS)
    assert global_generators() == before


def test_options_are_passed_by_name():
    model = build_model(own("make", options={"depth": 3, "dropout": 0.0}), SHAPE, CLASSES)
    assert len(model.mix) == 3 and model.drop.p == 0.0


def test_it_begins_with_its_own_weights_which_the_seed_determines():
    config = own("make")
    model = build_model(config, SHAPE, CLASSES)
    one, same, other = (first_weights(config, model, INPUTS, seed) for seed in (SEED, SEED, SEED + 1))
    assert_same(one, same)
    assert not np.array_equal(one["stem.weight"], other["stem.weight"])
    bound = (1 * 3 * 3) ** -0.5  # torch's own draw: uniform within 1/sqrt(fan-in)
    assert 0.8 * bound < np.abs(one["stem.weight"]).max() <= bound
    assert not one["attention.in_proj_bias"].any()


def test_a_constant_is_no_part_of_its_state_and_there_in_every_process():
    config = own("make")
    model = build_model(config, SHAPE, CLASSES)
    state = read_state(model)
    assert "wave" not in state and state.keys() == {name for name in model.state_dict() if "wave" not in name and "num_" not in name}
    assert torch.equal(build_model(config, SHAPE, CLASSES, seed=9).wave, model.wave) and model.wave.any()


def test_parameters_may_have_any_name():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.values = nn.Parameter(torch.ones(2))

    assert read_state(nn.Sequential(Odd())).keys() == {"0.values"}


# -- which of its weights are sparse


def test_hidden_layers_are_sparse_and_the_others_say_why_not():
    model = build_model(own("make"), (1, 8, 8), 10)
    assert dense_by_rule(model, (1, 8, 8)) == {
        "stem.weight": "the first",
        "grouped.weight": "in groups",
        "down.weight": "a shortcut",
        "attention.out_proj.weight": "not called",
        "classifier.weight": "the last",
    }
    assert sparse_names(model, own("make"), (1, 8, 8)) == ("mix.0.weight", "hidden.weight")
    line = layers_told(own("make"), model, (1, 8, 8))
    assert line == ("own_models:make: 2 of 7 layers are sparse; dense are 1 a shortcut, 1 in groups, 1 not called, 1 the first, 1 the last")


def test_a_pattern_may_take_what_the_rule_leaves_out():
    config = own("make", sparse=("grouped.weight", r"mix\..*"))
    model = build_model(config, (1, 8, 8), 10)
    assert sparse_names(model, config, (1, 8, 8)) == ("grouped.weight", "mix.0.weight")
    assert "1 of the sparse ones are masked, since the kernels cannot do them" in layers_told(config, model, (1, 8, 8))
    method = method_of(config)
    check_model(method, INPUTS)
    network = Network(method, INPUTS)
    state = first_weights(config, network.model, INPUTS, SEED)
    masks = {name: np.arange(state[name].size).reshape(state[name].shape) % 3 == 0 for name in network.layout.masked}
    network.load(state, masks)
    assert type(network.sparse["grouped.weight"]).__name__ == "MaskedConv2d"


@pytest.mark.parametrize("pattern", [r"wave", r"attention\.in_proj_weight", r"norms\..*", "mix"])
def test_a_pattern_that_matches_no_layer_is_refused(pattern):
    with pytest.raises(ValueError, match=r"model.sparse has .*matches no weight of own_models:make that can be sparse: it has stem"):
        check_model(method_of(own("make", sparse=(pattern,))), INPUTS)


def test_a_layer_that_does_something_else_stays_as_it_is():
    config = own("of_a_class_of_its_own")
    model = build_model(config, SHAPE, CLASSES)
    assert sparse_names(model, config, SHAPE) == ("3.weight",)
    assert dense_by_rule(model, SHAPE)["2.weight"] == "of another class"
    with pytest.raises(ValueError, match="that can be sparse: it has 1.weight, 3.weight, 4.weight"):
        check_model(method_of(replace(config, sparse=("2.weight",))), INPUTS)


# -- what it costs


def test_a_layer_that_runs_twice_counts_twice():
    layers = layer_shapes(build_model(own("Twice"), SHAPE, CLASSES), SHAPE)
    assert [layer.name for layer in layers] == ["first.weight", "again.weight", "again.weight", "classifier.weight"]


def test_attention_and_its_weights_are_products_of_no_layer():
    """Of 4 tokens of 16 features in 2 heads: projections in 3 x 256 and out 256 uses per token; scores and their sums 2 x 16 x 16."""
    products, *layers = layer_shapes(build_model(own("make", options={"width": 8}), SHAPE, CLASSES), SHAPE)
    assert all(isinstance(layer, LayerShape) for layer in layers)
    forward = 2 * (4 * 4 * 256 + 2 * 4 * 4 * 16)
    assert isinstance(products, Products) and products.forward == forward
    recomputed = 2 * 4 * 4 * 16  # torch's fused attention computes its scores again on the way back, and torch's counter has them
    assert products.backward == 2 * forward + recomputed


# -- training


@pytest.mark.parametrize("sparsity", [0.0, 0.75])
def test_training_with_dropout_can_be_repeated_and_leaves_torchs_generator_alone(sparsity):
    method, task = method_of(own("make"), sparsity, lr=0.02), tiny_tasks(1)[0]
    sessions = []
    for disturbance in (1, 2):
        torch.manual_seed(disturbance)
        learner, state, masks, memory = start(method)
        before = global_generators()
        memory = memory.in_task(len(task.y))
        done = learner.train(state, masks, task, memory, epochs=2, device=3)
        found = learner.importance(done.state, masks, task, done.memory, device=3)[0] if masks else {}
        loss, _ = learner.loss(done.state, masks, task, batches=2)
        statistics, *_ = learner.statistics(done.state, masks, task, done.memory)
        assert global_generators() == before
        sessions.append((done, found, loss, statistics))
    for one, other in zip(*sessions, strict=True):
        assert_same(one, other)
    other = learner.train(state, masks, task, memory, epochs=2, device=4)
    assert not np.array_equal(other.state["classifier.weight"], sessions[0][0].state["classifier.weight"])


def test_dropout_falls_differently_in_every_session():
    """The same weights, data and batches; what differs is the address of the session."""
    network = Network(method_of(own("make")), INPUTS)
    network.model.train()
    x, seen = torch.ones(4, *SHAPE), []
    for address in ((0, 0), (0, 1), (0, 0)):
        with network.drawing(SEED, "train", *address):
            seen.append(network.model(x).detach())
    assert torch.equal(seen[0], seen[2]) and not torch.equal(seen[0], seen[1])


# -- what is refused


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("of_imagenet", r"returns \[3, 1000\], and this data has 4 classes: it must return \[3, 4\]; make its last layer of num_classes"),
        ("not_a_module", "returns a function: it must return an nn.Module"),
        ("NOT_CALLABLE", "is a int: give a function or class that makes an nn.Module"),
        ("fails", "fails: RuntimeError: no such variant"),
        ("frozen", "parameter linear.weight is frozen"),
        ("lazy", "parameter 1.weight has no shape before a forward pass; call the model once"),
        ("without_parameters", "it has no parameters"),
        ("tied", "parameters 2.weight and 3.weight are one"),
        ("idle", "parameter spare.weight takes no part in its logits: leave it out"),
        ("Counting", "loaded with the same weights it trains otherwise"),
        ("Drifting", "buffer mean changes in training"),
        ("Cumulative", "momentum=None"),
        ("Random", "in evaluation mode it draws random numbers"),
        ("Mixing", "in evaluation mode its logits of a sample depend on the others"),
        ("Pair", "in evaluation mode it returns a tuple: it must return logits"),
        ("Training", "its forward pass fails in training mode on 3 images of 1x4x4: RuntimeError"),
        ("Infinite", "its logits are not finite"),
        ("unseeded", "linear.weight is another one whenever the model is made"),
    ],
)
def test_what_cannot_be_trained_is_refused_at_once(name, said):
    with pytest.raises(ValueError, match=rf"^model.name is 'own_models:{name}'.*{said}"):
        check_model(method_of(own(name), sparsity=0.0), INPUTS)


def test_a_model_without_hidden_layers_is_only_trained_dense():
    check_model(method_of(own("Flat"), sparsity=0.0), INPUTS)
    with pytest.raises(ValueError, match="sparsity is 0.75, but own_models:Flat has no hidden convolution or linear layer"):
        check_model(method_of(own("Flat")), INPUTS)
    check_model(method_of(own("Flat", sparse=("linear.weight",))), INPUTS)


def test_a_model_that_cannot_do_with_sparse_layers_says_so_when_it_is_to_be_sparse():
    check_model(method_of(own("Reads"), sparsity=0.0), INPUTS)
    with pytest.raises(ValueError, match=r"AttributeError.*out_features.*; before, it did without sparse layers.*: middle.weight"):
        check_model(method_of(own("Reads")), INPUTS)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"dept": 3}, r"model.name is 'own_models:Net', and model.options.dept is no option of Net; did you mean 'depth'\?; it is called"),
        ({"colour": 3}, r"model.options.colour is no option of Net; there are depth, dropout, width"),
        ({"num_classes": 3}, r"model.options.num_classes is no option of Net"),
        ({"depth": "deep"}, r"model.options.depth is 'deep': input should be a whole number|fails: TypeError"),
    ],
)
def test_options_that_it_does_not_take_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        build_model(own("Net", options=options), SHAPE, CLASSES)


def test_a_function_that_takes_something_else_is_told_what_it_is_called_with():
    with pytest.raises(ValueError, match="it is called with input_shape, num_classes and model.options by name"):
        build_model(ModelConfig("math:sqrt"), SHAPE, CLASSES)


def test_names_are_looked_up_before_anything_is_imported():
    begun = time.process_time()
    for name, said in {
        "resnet": r"model.name is 'resnet': input should be 'mlp', .* or 'vit-tiny'.*; did you mean 'resnet18'\?",
        "own_models:": "a model of your own is written package.module:name",
    }.items():
        with pytest.raises(ValueError, match=said):
            ModelConfig(name)
    with pytest.raises(ValueError, match="options has 'depth', but mlp reads width and hidden"):
        ModelConfig("mlp", options={"depth": 2})
    assert time.process_time() - begun < 1
    with pytest.raises(ValueError, match="own_models has no mkae; did you mean make"):
        build_model(own("mkae"), SHAPE, CLASSES)
