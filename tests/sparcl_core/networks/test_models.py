import math

import numpy as np
import pytest
import torch
from tiny_learning import MODELS, SEED, global_generators

from sparcl_core.networks.models import (
    ModelConfig,
    build_model,
    has_batch_statistics,
    initial_weights,
    load_state_,
    read_state,
    sparse_names,
)

SHAPE, CLASSES = (3, 8, 8), 5


def build(name: str) -> torch.nn.Module:
    return build_model(MODELS[name], SHAPE, CLASSES)


def trained(model: torch.nn.Module) -> torch.nn.Module:
    """`model` after something moved every float in it, running statistics too."""
    with torch.no_grad():
        for value in model.state_dict().values():
            if value.is_floating_point():
                value.add_(0.25)
    return model


@pytest.mark.parametrize("name", MODELS)
def test_a_model_maps_images_to_one_logit_per_class(name):
    assert build(name)(torch.zeros(2, *SHAPE)).shape == (2, CLASSES)


def test_resnet18_of_width_64_is_the_papers_network():
    model = build_model(ModelConfig("resnet18", width=64), (3, 32, 32), 10)
    assert sum(p.numel() for p in model.parameters()) == 11_173_962  # "11.17 M"
    # The stem is 3x3 with stride 1 and nothing is pooled before the stages: 32x32 goes in, 4x4 comes out of the last one.
    shapes = []
    model.layer1.register_forward_pre_hook(lambda module, inputs: shapes.append(tuple(inputs[0].shape)))
    model.layer4.register_forward_hook(lambda module, inputs, output: shapes.append(tuple(output.shape)))
    model.eval()(torch.zeros(1, 3, 32, 32))
    assert shapes == [(1, 64, 32, 32), (1, 512, 4, 4)]


def test_the_sparse_tensors_of_resnet18_are_the_16_convolutions_of_the_stages():
    model = build("resnet18")
    names = sparse_names(model, MODELS["resnet18"], SHAPE)
    parameters = dict(model.named_parameters())
    assert len(names) == 16
    assert all(name.startswith("layer") and parameters[name].shape[2:] == (3, 3) for name in names)


@pytest.mark.parametrize(("name", "expected"), [("mlp", ("hidden.0.weight",)), ("cnn", ("conv2.weight", "fc.weight"))])
def test_the_small_nets_keep_their_first_and_last_layer_dense(name, expected):
    assert sparse_names(build(name), MODELS[name], SHAPE) == expected


def test_patterns_of_the_config_replace_the_models_own_rule_and_stay_in_the_models_order():
    config = ModelConfig("cnn", width=8, hidden=12, sparse=(r"classifier\.weight", r"conv1\.weight"))
    assert sparse_names(build_model(config, SHAPE, CLASSES), config, SHAPE) == ("conv1.weight", "classifier.weight")


@pytest.mark.parametrize("pattern", [r"conv9\.weight", "norm1.weight", "classifier.bias"])
def test_a_pattern_without_a_weight_is_refused(pattern):
    config = ModelConfig("cnn", width=8, sparse=(pattern,))
    with pytest.raises(ValueError, match="model.sparse has .*matches no weight of cnn.*conv2.weight"):
        sparse_names(build_model(config, SHAPE, CLASSES), config, SHAPE)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"width": 0}, "width is 0"),
        ({"hidden": 0}, "hidden 0"),
        ({"name": "cnn", "width": 12}, "width is 12.*8 groups.*multiple of 8"),
        ({"name": "resnet18", "width": 7}, "width is 7.*take 8 or more"),
    ],
)
def test_sizes_that_make_no_network_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        ModelConfig(**settings)


@pytest.mark.parametrize("name", MODELS)
def test_initial_weights_are_he_normal_with_norms_at_one_and_biases_at_zero(name):
    config = ModelConfig(name, width=64, hidden=200) if name != "resnet18" else ModelConfig(name, width=16)
    state = initial_weights(build_model(config, SHAPE, CLASSES), SEED)
    for key, value in state.items():
        if value.ndim >= 2:
            wanted = math.sqrt(2 / math.prod(value.shape[1:]))
            error = 5 * wanted / math.sqrt(2 * value.size)  # five standard errors of a standard deviation
            assert abs(value.std() - wanted) < error, key
            assert abs(value.mean()) < 5 * wanted / math.sqrt(value.size), key
        else:
            assert (value == (0 if key.endswith(("bias", "running_mean")) else 1)).all(), key


@pytest.mark.parametrize("name", MODELS)
def test_initial_weights_depend_on_the_seed_and_on_nothing_that_the_model_holds(name):
    fresh, used = initial_weights(build(name), SEED), initial_weights(trained(build(name)), SEED)
    other = initial_weights(build(name), SEED + 1)
    for key in fresh:
        assert np.array_equal(fresh[key], used[key]), key
        assert fresh[key].ndim < 2 or not np.array_equal(fresh[key], other[key]), key


def test_adding_a_layer_does_not_move_the_others_initial_weights():
    small = initial_weights(build_model(ModelConfig("cnn", width=8, hidden=12), SHAPE, CLASSES), SEED)
    larger = initial_weights(build_model(ModelConfig("cnn", width=8, hidden=24), SHAPE, CLASSES), SEED)
    assert np.array_equal(small["conv2.weight"], larger["conv2.weight"])


@pytest.mark.parametrize("name", MODELS)
def test_a_state_loads_and_reads_back_bit_for_bit_as_a_copy(name):
    model, state = build(name), initial_weights(build(name), SEED)
    load_state_(model, state)
    read = read_state(model)
    assert list(read) == list(state)
    assert all(np.array_equal(read[key], state[key]) and read[key].dtype == np.float32 for key in state)
    for value in read.values():
        value += 1  # what was read is no view into the model
    assert all(np.array_equal(value, state[key]) for key, value in read_state(model).items())


def test_tensors_of_one_shape_start_with_different_weights():
    state = initial_weights(build("resnet18"), SEED)
    assert not np.array_equal(state["layer1.0.conv1.weight"], state["layer1.0.conv2.weight"])


def test_a_state_holds_running_statistics_but_no_integer_counter():
    keys = read_state(build("resnet18"))
    assert "bn1.running_mean" in keys and "bn1.running_var" in keys
    assert not any("num_batches_tracked" in key for key in keys)


def test_a_state_with_other_names_is_refused():
    state = read_state(build("mlp"))
    state["surplus"] = state.pop("classifier.bias")
    with pytest.raises(ValueError, match=r"other tensors than the model.*classifier.bias.*surplus"):
        load_state_(build("mlp"), state)


def test_a_state_with_another_shape_is_refused():
    state = read_state(build("mlp")) | {"classifier.bias": np.zeros(CLASSES + 1, dtype=np.float32)}
    with pytest.raises(ValueError, match=r"classifier.bias has shape \(6,\): the model's is \(5,\)"):
        load_state_(build("mlp"), state)


@pytest.mark.parametrize("name", MODELS)
def test_float64_models_compute_in_float64(name):
    model = build_model(ModelConfig(name, width=16, dtype="float64"), SHAPE, CLASSES)
    assert model(torch.zeros(2, *SHAPE, dtype=torch.float64)).dtype == torch.float64
    assert all(value.dtype == np.float64 for value in initial_weights(model, SEED).values())


def test_only_nets_with_batchnorm_mix_samples_in_a_forward_pass():
    assert {name for name in MODELS if not has_batch_statistics(build(name))} == {"mlp", "cnn", "vit-tiny"}


@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_the_small_nets_treat_every_sample_alone(name):
    model, x = build(name), torch.rand(6, *SHAPE, generator=torch.Generator().manual_seed(0))
    alone = torch.cat([model(x[i : i + 1]) for i in range(6)])
    assert torch.allclose(model(x), alone, atol=1e-5)


def test_building_a_model_leaves_the_global_generators_alone():
    before = global_generators()
    initial_weights(build("cnn"), SEED)
    assert global_generators() == before
