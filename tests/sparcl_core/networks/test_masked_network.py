"""One model for device after device: whatever weights and masks are loaded come back, and nothing of those before them."""

import numpy as np
import pytest
import torch
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
