"""Whole models on the kernels and back: names, values, gradients, running statistics."""

import copy
import math
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import oracles
import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from sparcl_core.kernels import between, modules, native
from sparcl_core.kernels.convert import convert, revert, sparse_layers, trainable
from sparcl_core.networks.models import (
    ModelConfig,
    build_model,
    has_batch_statistics,
    initial_weights,
    load_state_,
    read_state,
    sparse_names,
)

needs_kernels = pytest.mark.skipif(not native.has_kernels(), reason="no C compiler here")
ROOT = Path(__file__).parents[3]
CONFIGS = {
    "mlp": ModelConfig("mlp", width=24),
    "cnn": ModelConfig("cnn", width=16, hidden=20),
    "resnet18": ModelConfig("resnet18", width=8),
    "mobilenetv2": ModelConfig("mobilenetv2", width=8),
    "mobilenetv3-small": ModelConfig("mobilenetv3-small", width=8),
    "efficientnet-b0": ModelConfig("efficientnet-b0", width=8),
    "vit-tiny": ModelConfig("vit-tiny", width=16),
}
SHAPE, CLASSES = (3, 8, 8), 5
WAYS = ["dense", pytest.param("sparse", marks=needs_kernels), pytest.param("mixed", marks=needs_kernels)]
every_model = pytest.mark.parametrize("name", CONFIGS)
every_way = pytest.mark.parametrize("way", WAYS)


def start(name: str, seed: int = 0, density: float = 0.3) -> tuple[nn.Module, dict[str, np.ndarray]]:
    """A dense model with zeros where its masks have none; its statistics and norms are not those of a new one."""
    model = build_model(CONFIGS[name], SHAPE, CLASSES)
    state, drawn = initial_weights(model, seed), np.random.default_rng(seed)
    masks = {weight: drawn.random(state[weight].shape) < density for weight in sparse_names(model, CONFIGS[name], SHAPE)}
    for key, array in state.items():
        array *= masks.get(key, 1)
        if array.ndim == 1:
            array += drawn.uniform(0.1, 0.4, array.shape).astype(array.dtype)
    load_state_(model, state)
    return model, masks


def choose(masks: dict[str, np.ndarray], way: str) -> dict[str, str]:
    ways = {"mixed": ("sparse", "dense", "dense")}.get(way, (way,))
    return {name: ways[i % len(ways)] for i, name in enumerate(masks)}


def converted(model: nn.Module, masks: dict[str, np.ndarray], way: str) -> nn.Module:
    return convert(copy.deepcopy(model), masks, choose(masks, way))


def batch(seed: int = 0, size: int = 19) -> tuple[Tensor, Tensor]:
    drawn = torch.Generator().manual_seed(seed)
    return torch.randn(size, *SHAPE, generator=drawn), torch.randint(CLASSES, (size,), generator=drawn)


def gradients(model: nn.Module, seed: int = 0) -> dict[str, Tensor]:
    """Of a training step's loss, by the names of the dense model; the logits come along."""
    x, y = batch(seed)
    model.zero_grad()
    dtype = next(model.parameters()).dtype
    logits = model.train()(x.to(dtype))
    F.cross_entropy(logits, y).backward()
    return {"logits": logits.detach()} | {name: p.grad.detach().clone() for name, p in trainable(model).items()}


def masked(found: dict[str, Tensor], masks: dict[str, np.ndarray]) -> dict[str, Tensor]:
    return {name: value[torch.from_numpy(masks[name])] if name in masks else value for name, value in found.items()}


def assert_same_state(left: nn.Module, right: nn.Module) -> None:
    left, right = left.state_dict(), right.state_dict()
    assert left.keys() == right.keys()
    for name in left:
        assert left[name].shape == right[name].shape and left[name].dtype == right[name].dtype, name
        assert torch.equal(left[name], right[name]), name


# -- names and values


@every_model
@every_way
def test_a_converted_models_state_is_the_dense_ones(name, way):
    model, masks = start(name)
    made = converted(model, masks, way)
    assert_same_state(made, model)
    assert set(trainable(made)) == {name for name, _ in model.named_parameters()}
    assert sparse_layers(made).keys() == masks.keys()
    for weight, layer in sparse_layers(made).items():
        assert trainable(made)[weight] is layer.values and layer.values.numel() == masks[weight].sum()
    assert has_batch_statistics(made) == has_batch_statistics(model)


@every_model
@every_way
def test_a_state_can_be_loaded_and_goes_back_whole(name, way):
    (model, masks), (other, _) = start(name), start(name, seed=1, density=1.0)
    with torch.no_grad():
        for weight, mask in masks.items():
            dict(other.named_parameters())[weight].mul_(torch.from_numpy(mask))
    made = converted(model, masks, way)
    assert str(made.load_state_dict(other.state_dict(), strict=True)) == "<All keys matched successfully>"
    assert_same_state(made, other)
    back = build_model(CONFIGS[name], SHAPE, CLASSES)
    back.load_state_dict(made.state_dict(), strict=True)
    assert_same_state(back, other)


@every_model
@every_way
def test_our_own_state_goes_in_and_out(name, way):
    (model, masks), (other, _) = start(name), start(name, seed=1, density=1.0)
    made, state = converted(model, masks, way), read_state(other)
    load_state_(made, state)
    held = read_state(made)
    assert held.keys() == state.keys()
    for key, array in held.items():
        assert np.array_equal(array, state[key] * masks.get(key, 1)), key


@every_model
@every_way
def test_what_is_reverted_is_the_model_that_was_converted(name, way):
    model, masks = start(name)
    made = converted(model, masks, way)
    assert revert(made) is made
    assert_same_state(made, model)
    assert [(key, type(m)) for key, m in made.named_modules()] == [(key, type(m)) for key, m in model.named_modules()]
    assert [key for key, _ in made.named_parameters()] == [key for key, _ in model.named_parameters()]
    assert str(made) == str(model)
    assert not any(key in vars(m) for m in made.modules() for key in ("layer", "stem_relu", "is_active", "connections"))
    x, _ = batch()
    assert torch.equal(made(x), model(x))  # training: running statistics change alike
    assert torch.equal(made.eval()(x), model.eval()(x))
    assert_same_state(made, model)


@every_way
def test_what_is_learnt_survives_being_reverted(way):
    model, masks = start("cnn")
    made = converted(model, masks, way)
    before = {key: value.clone() for key, value in made.state_dict().items()}
    with torch.no_grad():
        for _, p in made.named_parameters():
            p.add_(0.5)
    revert(made)
    for key, value in made.state_dict().items():
        assert torch.equal(value, before[key] + 0.5 * torch.from_numpy(masks[key]) if key in masks else before[key] + 0.5), key


# -- what a converted model computes


@every_way
@pytest.mark.parametrize("name", ["mlp", "cnn", "vit-tiny"])
def test_gradients_are_those_of_the_dense_model_in_float64(name, way):
    for seed in range(3):
        model, masks = start(name, seed)
        wanted = masked(gradients(copy.deepcopy(model).double(), seed), masks)
        found = gradients(converted(model, masks, way), seed)
        assert found.keys() == wanted.keys()
        for key in wanted:
            assert oracles.relative_error(found[key], wanted[key]) <= 1e-4, key


@every_way
@pytest.mark.parametrize("name", [name for name in CONFIGS if name not in ("mlp", "cnn", "vit-tiny")])
def test_gradients_behind_batchnorm_are_as_near_to_float64_as_the_dense_models(name, way):
    """A ReLU that goes the other way moves a gradient by more than rounding does, in either of them."""
    ours, theirs = [], []
    for seed in range(4):
        model, masks = start(name, seed)
        wanted = masked(gradients(copy.deepcopy(model).double(), seed), masks)
        for errors, found in ((ours, gradients(converted(model, masks, way), seed)), (theirs, masked(gradients(model, seed), masks))):
            errors += [float((found[key] - wanted[key]).norm() / wanted[key].norm()) for key in wanted]
    assert math.fsum(ours) <= 2 * math.fsum(theirs) and max(ours) <= 2 * max(theirs)


@every_model
@every_way
def test_evaluation_is_the_dense_models(name, way):
    model, masks = start(name)
    made, x = converted(model, masks, way).eval(), batch()[0]
    with torch.no_grad():
        wanted = copy.deepcopy(model).double().eval()(x.double())
        assert oracles.relative_error(made(x), wanted) <= 1e-4
        assert oracles.relative_error(made(x[:1]), wanted[:1]) <= 1e-4
    assert_same_state(made, model)


@every_way
@pytest.mark.parametrize("momentum", [0.1, None])
def test_running_statistics_are_the_dense_models(way, momentum):
    model, masks = start("resnet18")
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.momentum = momentum
    made, exact = converted(model, masks, way), copy.deepcopy(model).double()
    for seed in range(3):
        made(batch(seed)[0])
        exact(batch(seed)[0].double())
    held = dict(made.named_buffers())
    for key, value in exact.named_buffers():
        assert oracles.relative_error(held[key], value) <= 1e-4, key


@needs_kernels
@pytest.mark.parametrize(("name", "last"), [("cnn", "classifier")])
def test_bits_do_not_depend_on_threads(name, last):
    """Up to the classifier, which is PyTorch's: its products do, and so do a ResNet's dense 1x1 convolutions."""
    before, made = torch.get_num_threads(), []
    model, masks = start(name)
    try:
        for threads in (1, 2, 3, 1):
            torch.set_num_threads(threads)
            one, out = converted(model, masks, "sparse"), []
            getattr(one, last).register_forward_pre_hook(lambda m, inputs, out=out: out.append(inputs[0]))
            one(batch()[0])
            out[0].backward(torch.linspace(-1, 1, out[0].numel()).view(out[0].shape))
            made.append([out[0].detach(), *(p.grad for p in one.parameters() if p.grad is not None), *one.buffers()])
    finally:
        torch.set_num_threads(before)
    assert len(made[0]) > 5
    assert all(torch.equal(a, b) for other in made[1:] for a, b in zip(made[0], other, strict=True))


@needs_kernels
def test_tensors_stay_batch_last_through_a_resnet():
    model, masks = start("resnet18")
    made, seen = converted(model, masks, "sparse"), {}
    for key, module in made.named_modules():
        if isinstance(module, nn.Conv2d | nn.BatchNorm2d | modules.SparseConv2d) or type(module).__name__ == "FusedBlock":
            module.register_forward_hook(lambda m, inputs, out, key=key: seen.update({key: out.permute(1, 2, 3, 0).is_contiguous()}))
    made(batch()[0])
    assert seen and all(seen.values()), [key for key, is_kept in seen.items() if not is_kept]


@needs_kernels
def test_which_layers_between_follow():
    model, masks = start("resnet18")
    kinds = {type(m) for m in converted(model, masks, "sparse").modules()}
    assert between.BatchNorm in kinds and between.DenseConv2d in kinds and not kinds & {nn.BatchNorm2d, nn.Conv2d}
    pools = [nn.MaxPool2d(2, stride=1), nn.MaxPool2d((2, 1)), nn.MaxPool2d(3, padding=1), nn.MaxPool2d(12), nn.MaxPool2d(2, ceil_mode=True)]
    norms = [nn.BatchNorm2d(4, affine=False), nn.GroupNorm(2, 4, affine=False), nn.LayerNorm((3, 4)), nn.LayerNorm(4, bias=False)]
    left = nn.Sequential(nn.Conv2d(3, 4, 3), *pools, *norms, nn.Conv2d(4, 4, 1, groups=2))
    before = [type(m) for m in left]
    convert(left, {"0.weight": np.ones((4, 3, 3, 3), bool)}, {"0.weight": "sparse"})
    assert [type(m) for m in left][1:] == before[1:]
    all_dense = converted(model, masks, "dense")
    assert {nn.BatchNorm2d, nn.Conv2d, modules.MaskedConv2d} < {type(m) for m in all_dense.modules()}
    assert not any(isinstance(m, between.BatchNorm | between.DenseConv2d) for m in all_dense.modules())


@needs_kernels
def test_the_product_between_two_convolutions_of_a_block_is_not_stored():
    model, masks = start("resnet18")
    made, called = converted(model, masks, "sparse"), []
    block = made.layer1[0]
    block.bn1.register_forward_hook(lambda *given: called.append("bn1"))
    made(batch()[0])
    assert not called  # `behind` took its place
    made.eval()(batch()[0])
    assert called == ["bn1"]


@every_way
def test_masks_of_a_model_change_between_steps(way):
    """Sparse training: a step, other masks, a step, as the dense model with its weights set to zero does it."""
    model, masks = start("cnn")
    made, exact = converted(model, masks, way), copy.deepcopy(model).double()
    for seed in range(3):
        wanted, found = masked(gradients(exact, seed), masks), gradients(made, seed)
        for key in wanted:
            assert oracles.relative_error(found[key], wanted[key]) <= 1e-4, key
        after = {key: np.random.default_rng(seed).random(mask.shape) < 0.3 for key, mask in masks.items()}
        with torch.no_grad():
            for p in made.parameters():
                p -= 0.1 * p.grad
            for key, p in exact.named_parameters():
                p -= 0.1 * p.grad * torch.from_numpy(masks[key] if key in masks else np.ones(p.shape))
                if key in masks:
                    p *= torch.from_numpy(masks[key] & after[key])
        for key, layer in sparse_layers(made).items():
            layer.set_mask(after[key])
        masks = after


@every_way
@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_converted_model_can_be_copied_and_pickled(way, again):
    """torchvision's own ResNet: ours is made in a function, so that it imports late, and no pickle finds it there."""
    model = torchvision.models.resnet.ResNet(torchvision.models.resnet.BasicBlock, [1, 1, 1, 1], num_classes=CLASSES)
    names = [f"layer{n}.0.conv{m}.weight" for n in (1, 2, 3, 4) for m in (1, 2)]
    masks = {key: np.random.default_rng(1).random(model.get_parameter(key).shape) < 0.1 for key in names}
    made = convert(model, masks, choose(masks, way))
    x = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    made(x)
    other = again(made)
    assert_same_state(other, made)
    for one in (made, other):
        one.train()
    assert torch.equal(other(x), made(x))
    if way != "dense":
        assert type(other.layer1[0]).__name__ == "FusedBlock"
    assert_same_state(revert(other), revert(made) if again is not copy.copy else other)


# -- rare models


@needs_kernels
def test_a_model_can_be_converted_in_two_goes():
    model, masks = start("resnet18")
    made, names = copy.deepcopy(model), list(masks)
    for part in (names[:3], names[3:]):
        convert(made, {key: masks[key] for key in part}, dict.fromkeys(part, "sparse"))
    revert(made)
    assert [type(m) for m in made.modules()] == [type(m) for m in model.modules()]


@needs_kernels
def test_a_stem_whose_norm_learns_nothing_keeps_its_relu():
    model, masks = start("resnet18")
    model.bn1 = nn.BatchNorm2d(8, affine=False)
    assert oracles.relative_error(*(gradients(m)["logits"] for m in (converted(model, masks, "sparse"), copy.deepcopy(model)))) < 1e-3


@every_way
def test_a_model_in_evaluation_is_reverted_to_one(way):
    model, masks = start("resnet18")
    made = revert(converted(model.eval(), masks, way))
    assert not any(m.training for m in made.modules())


@every_way
def test_weights_lie_in_memory_as_they_did(way):
    model, masks = start("resnet18")
    made = revert(converted(model, masks, way))
    assert [p.stride() for p in made.parameters()] == [p.stride() for p in model.parameters()]


# -- bad input


@pytest.mark.parametrize(
    ("masks", "choices", "message"),
    [
        ({"fc.weight": "good", "nowhere.weight": "good"}, {}, "nowhere.weight is no weight of a convolution or linear layer"),
        ({"conv2.weight": "good", "fc.weight": "good"}, {"conv2.weight": "dense"}, "fc.weight has a mask and no choice: choose one"),
        ({"fc.weight": "good"}, {"fc.weight": "sprase"}, "'sprase': take sparse, dense, bf16"),
        ({"conv2.weight": "good", "fc.weight": "numbers"}, {}, "the mask is float32 numbers: take a NumPy array of bool"),
        ({"conv2.weight": "good", "fc.weight": "tensor"}, {}, "the mask is a Tensor: take a NumPy array of bool"),
    ],
)
def test_a_model_that_is_refused_is_as_it_was(masks, choices, message):
    model, good = start("cnn")
    kinds = {"good": lambda mask: mask, "numbers": lambda mask: mask.astype(np.float32), "tensor": torch.from_numpy}
    given = {name: kinds[kind](good.get(name, good["fc.weight"])) for name, kind in masks.items()}
    before, state = repr(model), read_state(model)
    with pytest.raises(ValueError, match=message):
        convert(model, given, choices or dict.fromkeys(given, "dense"))
    assert repr(model) == before and all(np.array_equal(read_state(model)[name], value) for name, value in state.items())


def test_what_is_no_weight_is_refused():
    model, masks = start("cnn")
    for name in ("norm1.weight", "classifier.bias", "conv1"):
        with pytest.raises(ValueError, match=f"^{name} is no weight of a convolution or linear layer: only these can be sparse"):
            convert(copy.deepcopy(model), {name: np.ones(3, bool)}, {name: "dense"})


def test_a_mask_of_another_shape_is_refused():
    model, masks = start("cnn")
    with pytest.raises(ValueError, match=r"the mask has shape \(16, 16\): the weight's is \(16, 16, 3, 3\)"):
        convert(model, {"conv2.weight": np.ones((16, 16), bool)}, {"conv2.weight": "dense"})


@pytest.mark.parametrize(("name", "kind"), [("conv2.weight", "Conv2d"), ("fc.weight", "Linear")])
def test_float64_is_for_dense_products_only(name, kind):
    model, masks = start("cnn")
    with pytest.raises(ValueError, match=f'the weight of {kind}.* is torch.float64: the kernels take float32; choose "dense"'):
        convert(model.double(), {name: masks[name]}, {name: "sparse"})


@needs_kernels
def test_a_convolution_that_the_kernels_cannot_do_is_refused():
    model = nn.Sequential(nn.Conv2d(4, 4, 3, groups=2))
    with pytest.raises(ValueError, match="Conv2d.*groups=2.*: the kernels do convolutions with groups=1"):
        convert(model, {"0.weight": np.ones((4, 2, 3, 3), bool)}, {"0.weight": "sparse"})


# -- without kernels

STEP = """
import numpy as np, torch, torch.nn.functional as F
from sparcl_core.kernels import native
from sparcl_core.kernels.convert import convert, revert, sparse_layers, trainable
from sparcl_core.networks.models import ModelConfig, build_model, sparse_names
config = ModelConfig("cnn", width=16, hidden=20)
def masked():
    model = build_model(config, (3, 8, 8), 5)
    weights = dict(model.named_parameters())
    names = sparse_names(model, config, (3, 8, 8))
    return model, {name: np.random.default_rng(0).random(tuple(weights[name].shape)) < 0.3 for name in names}
assert not native.has_kernels()
model, masks = masked()
try:
    convert(model, masks, dict.fromkeys(masks, "sparse"))
except RuntimeError as error:
    print(error)
model, masks = masked()
convert(model, masks, dict.fromkeys(masks, "dense"))
before = {name: p.detach().clone() for name, p in trainable(model).items()}
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
F.cross_entropy(model(torch.randn(9, 3, 8, 8)), torch.arange(9) % 5).backward()
optimizer.step()
assert all(p.isfinite().all() and not torch.equal(p, before[name]) for name, p in trainable(model).items())
for name, layer in sparse_layers(model).items():
    layer.set_mask(~masks[name])
revert(model)(torch.randn(2, 3, 8, 8)).sum().backward()
"""


def test_without_kernels_dense_products_stand_in():
    environment = {**os.environ, "SPARCL_KERNELS": "dense"}
    done = subprocess.run([sys.executable, "-c", STEP], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "there are no sparse kernels here: SPARCL_KERNELS is 'dense'"
