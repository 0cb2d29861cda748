from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_learning import assert_same
from torch import nn

from sparcl_core.costs.memory import Footprint, Held, activation_bytes, footprint, kept_bytes
from sparcl_core.networks.models import ModelConfig, build_model, initial_weights, sparse_names
from sparcl_core.replay.memory import Memory, empty
from sparcl_core.sparsity.masks import apply_masks_, count_active
from sparcl_core.sparsity.packed import pack, unpack

SHAPE, CLASSES = (3, 8, 8), 5
CNN = ModelConfig("cnn", width=8, hidden=12)
# parameters of the cnn: conv1 8*3*9 = 216, conv2 8*8*9 = 576, fc 12 * 8*4*4 = 1536, classifier 12*5 + 5 = 65, norms 2 * (8 + 8 + 12) = 56
SPARSE, DENSE = {"conv2.weight": 576, "fc.weight": 1536}, 216 + 65 + 56


def of(model, active, updated, federated=False, memory: Memory | None = None) -> Footprint:
    """Activations of 3 samples of 100 bytes."""
    kept = kept_bytes(memory) if memory else 0
    return footprint(Held.of(model), active=active, updated=updated, activations=300, method_bytes=kept, federated=federated)


@pytest.fixture(scope="module")
def cnn():
    return build_model(CNN, SHAPE, CLASSES)


def test_a_dense_device_by_hand(cnn):
    total = 4 * (DENSE + 576 + 1536)
    assert of(cnn, {}, {}) == Footprint(weights=total, masks=0, gradients=total, activations=300, method=0, federation=0, codec=0)


def test_a_sparse_device_by_hand(cnn):
    # 144 and 385 active: 529 weights; masks 2112 / 8 = 264 bytes and 529 / 8 = 66.1 -> 67 bytes; 100 + 300 gradients
    result = of(cnn, {"conv2.weight": 144, "fc.weight": 385}, {"conv2.weight": 100, "fc.weight": 300}, federated=True)
    assert result.weights == 4 * (DENSE + 529)
    assert result.masks == 264 + 67
    assert result.gradients == 4 * (DENSE + 400)
    assert result.federation == 2 * 4 * (DENSE + 529)  # base and residual
    assert result.codec == (2 + 4) * (DENSE + 529)  # a symbol for each value, and at most the value itself in the output
    assert result.total == result.weights + 331 + result.gradients + 300 + result.federation + result.codec


def test_float64_takes_twice_the_bytes_for_weights_and_the_same_for_masks(cnn):
    active = {"conv2.weight": 144, "fc.weight": 385}
    single, double = of(cnn, active, active), of(build_model(replace(CNN, dtype="float64"), SHAPE, CLASSES), active, active)
    assert (double.weights, double.gradients, double.masks) == (2 * single.weights, 2 * single.gradients, single.masks)


def test_the_buffer_is_counted_with_inputs_labels_and_logits(cnn):
    # 7 x (3*8*8 uint8 + 8 bytes of label + 5 float32)
    assert of(cnn, {}, {}, memory=empty(7, SHAPE, CLASSES)).method == 7 * (192 + 8 + 20)


def test_the_arrays_of_a_method_are_counted_as_they_are(cnn):
    arrays = {"teacher/w": np.zeros((3, 5), np.float32), "teacher/w/mask": np.zeros(2, np.uint8)}
    assert of(cnn, {}, {}, memory=replace(empty(7, SHAPE, CLASSES), arrays=arrays)).method == 7 * 220 + 60 + 2


@pytest.mark.parametrize(("name", "density"), [("cnn", 0.25), ("cnn", 1.0), ("resnet18", 0.1)])
def test_a_packed_network_takes_at_most_what_the_formula_says(name, density):
    """It packs the active values and a bit per place; the formula adds the integer counters of BatchNorm, which no state has."""
    config = ModelConfig(name, width=8, hidden=12)
    model = build_model(config, SHAPE, CLASSES)
    state, held = initial_weights(model, 0), Held.of(model)
    masks = {key: np.random.default_rng(0).random(state[key].shape) < density for key in sparse_names(model, config, SHAPE)}
    apply_masks_(state, masks)
    arrays = pack(state, masks, "old/")
    counters = sum(value.nbytes for value in (b.numpy() for b in model.buffers()) if value.dtype == np.int64)
    assert sum(array.nbytes for array in arrays.values()) == held.packed_bytes(count_active(masks)) - counters
    shapes = {key: value.shape for key, value in state.items()}
    again, found = unpack(arrays, shapes, "old/")
    assert_same(again, state)
    assert_same(found, masks)


def test_running_statistics_are_part_of_the_weights():
    model = build_model(ModelConfig("resnet18", width=8), SHAPE, CLASSES)
    parameters = sum(p.numel() for p in model.parameters())
    channels = sum(m.num_features for m in model.modules() if isinstance(m, nn.BatchNorm2d))
    assert of(model, {}, {}).weights == 4 * parameters + channels * 8 + 20 * 8  # mean and variance; 20 integer counters


def test_sparser_never_takes_more(cnn):
    totals = [
        of(cnn, active, active, federated=True).total
        for active in ({name: round(size * density) for name, size in SPARSE.items()} for density in (0.5, 0.25, 0.1, 0.05))
    ]
    assert totals == sorted(totals, reverse=True) and totals[0] < of(cnn, {}, {}, federated=True).total


# --- activations ---


def test_activations_of_two_linear_layers_by_hand():
    # kept for backward: the input of the first (4) and the output of the ReLU (3), which is also the second one's input
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    assert activation_bytes(model, (4,)) == 4 * (4 + 3)


def test_activations_of_the_mlp_by_hand():
    # input 192; twice: linear output kept by LayerNorm (16), its mean and deviation (2), ReLU output (16)
    model = build_model(ModelConfig("mlp", width=16), SHAPE, CLASSES)
    assert activation_bytes(model, SHAPE) == 4 * (192 + 2 * (16 + 2 + 16))


def test_activations_of_the_cnn_by_hand(cnn):
    # input 192; twice: convolution output kept by GroupNorm (8*64), 8 means and 8 deviations, ReLU output (8*64);
    # pooling: its output 8*16, kept as the input of fc, and int64 indices; fc output (12), mean and deviation, ReLU output (12)
    assert activation_bytes(cnn, SHAPE) == 4 * (192 + 2 * (512 + 16 + 512) + 128 + 12 + 2 + 12) + 8 * 128


def test_float64_activations_take_twice_the_bytes_but_for_the_indices(cnn):
    double = build_model(replace(CNN, dtype="float64"), SHAPE, CLASSES)
    assert activation_bytes(double, SHAPE) - 8 * 128 == 2 * (activation_bytes(cnn, SHAPE) - 8 * 128)


@pytest.mark.parametrize("training", [True, False])
def test_measuring_activations_leaves_the_model_as_it_was(training):
    model = build_model(ModelConfig("resnet18", width=8), SHAPE, CLASSES).train(training)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert activation_bytes(model, SHAPE) > 0
    assert model.training == training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
