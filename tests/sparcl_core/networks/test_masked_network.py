"""One model for device after device: whatever weights and masks are loaded come back, and nothing of those before them."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny_learning import INPUTS, MODELS, SEED, assert_same, tiny_method

from sparcl_core.networks.masked import Network
from sparcl_core.networks.models import initial_weights
from sparcl_core.sparsity.masks import Masks, State, apply_masks_, initial_masks


def device(network: Network, seed: int) -> tuple[State, Masks]:
    """Weights and masks of one; the network has not been loaded yet."""
    state = initial_weights(network.model, seed)
    masks = initial_masks({name: state[name].shape for name in network.layout.masked}, 0.75, seed)
    apply_masks_(state, masks)
    return {name: state[name] for name in network.layout.shapes}, masks


@pytest.fixture(params=MODELS)
def network(request) -> Network:
    return Network(tiny_method(request.param), INPUTS)


def test_what_is_loaded_is_read(network):
    for state, masks in [device(network, seed) for seed in (SEED, SEED + 1)]:
        network.load(state, masks)
        assert network.sparse.keys() == masks.keys() and network.model.training
        assert_same(network.read(), state)


def test_without_masks_it_is_the_dense_model(network):
    state, _ = device(network, SEED)
    network.load(state, {})
    assert network.sparse == {}
    assert {name: tuple(parameter.shape) for name, parameter in network.parameters.items()}.items() <= network.layout.shapes.items()
    assert_same(network.read(), state)


def test_gather_and_spread_are_each_others_inverse_at_active_places(network):
    state, masks = device(network, SEED)
    network.load(state, masks)
    for name, mask in masks.items():
        whole = np.arange(1, mask.size + 1, dtype=np.float32).reshape(mask.shape)
        active = network.gather(name, whole)
        assert active.shape == network.parameters[name].shape == (mask.sum(),)
        assert np.array_equal(network.spread(name, active, np.float32), np.where(mask, whole, 0))
        active.zero_()
        assert whole.all()  # it was a copy


def test_only_wanted_gradients_are_computed(network):
    network.load(*device(network, SEED))
    wanted = {name: torch.arange(layer.places.numel()) % 3 == 0 for name, layer in network.sparse.items()}
    network.want_gradients(wanted)
    x = np.random.default_rng(0).integers(0, 256, (6, *INPUTS.shape), dtype=np.uint8)
    network.model(network.feed(x)).square().sum().backward()
    for name, mask in wanted.items():
        gradient = network.parameters[name].grad
        assert not gradient[~mask].any() and gradient[mask].any(), name


def images(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, *INPUTS.shape), dtype=np.uint8)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("is_sparse", [True, False])
def test_features_are_what_the_last_layer_makes_logits_of(network, is_sparse, training):
    state, masks = device(network, SEED)
    network.load(state, masks if is_sparse else {})
    network.model.train(training)
    x = network.feed(images(6))
    features, logits = network.features(x)
    *_, weight, bias = network.parameters.values()  # of the last layer
    assert features.shape == (6, weight.shape[1]) and logits.shape == (6, INPUTS.num_classes)
    torch.testing.assert_close(F.linear(features, weight, bias), logits, rtol=1e-5, atol=1e-5)
    assert features.requires_grad and not any(module._forward_pre_hooks for module in network.model.modules())
    if not training:
        with torch.no_grad():
            assert torch.equal(network.model(x), logits)


def test_features_before_a_sparse_classifier():
    method = tiny_method("cnn")
    network = Network(replace(method, model=replace(method.model, sparse=(r"classifier\.weight",))), INPUTS)
    network.load(*device(network, SEED))
    features, logits = network.features(network.feed(images(6)))
    layer = network.sparse["classifier.weight"]
    torch.testing.assert_close(F.linear(features, layer.dense(), layer.bias), logits)


def test_a_model_whose_logits_are_of_no_linear_layer_has_no_features():
    network = Network(tiny_method("cnn"), INPUTS)
    network.model = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 4), torch.nn.Flatten())
    with pytest.raises(ValueError, match="the last linear layer of this model is none"):
        network.features(torch.zeros(2, 1, 4, 4))
    network.model = torch.nn.Sequential(torch.nn.Flatten(2), torch.nn.Linear(16, 4), torch.nn.Flatten(), torch.nn.Softmax(1))
    with pytest.raises(ValueError, match=r"is given \(2, 1, 16\): features are what a classifier is given, one vector a sample"):
        network.features(torch.zeros(2, 1, 4, 4))
