"""Layers one by one: sparse ones and their dense twins under the same tests, and the layers between them."""

import copy
import pickle

import numpy as np
import oracles
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparcl_core.kernels import between, native
from sparcl_core.kernels.between import DenseConv2d
from sparcl_core.kernels.modules import MaskedConv2d, MaskedLinear, SparseConv2d, SparseLinear

needs_kernels = pytest.mark.skipif(not native.has_kernels(), reason="no C compiler here")
KINDS = [
    pytest.param((MaskedConv2d, MaskedLinear), id="twin"),
    pytest.param((SparseConv2d, SparseLinear), id="sparse", marks=needs_kernels),
]
both_kinds = pytest.mark.parametrize("kinds", KINDS)


def normal(*sizes: int, seed: int = 0) -> Tensor:
    return torch.randn(sizes, generator=torch.Generator().manual_seed(seed))


def mask_of(weight: Tensor, density: float, seed: int = 0) -> np.ndarray:
    size = weight.numel()
    mask = np.zeros(size, bool)
    mask[np.random.default_rng(seed).choice(size, round(density * size), replace=False)] = True
    return mask.reshape(weight.shape)


def dense_conv(channels: int = 6, outs: int = 5, kernel: int = 3, seed: int = 0, **options) -> nn.Conv2d:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Conv2d(channels, outs, kernel, **options)


def dense_linear(features: int = 40, outs: int = 7, seed: int = 0, bias: bool = True) -> nn.Linear:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Linear(features, outs, bias)


def masked_double(dense: nn.Module, mask: np.ndarray) -> nn.Module:
    """The dense layer in float64 with zeros at inactive places."""
    twin = copy.deepcopy(dense).double()
    with torch.no_grad():
        twin.weight.mul_(torch.from_numpy(mask))
    return twin


def is_batch_last(x: Tensor) -> bool:
    return x.permute(1, 2, 3, 0).is_contiguous() if x.dim() == 4 else x.t().is_contiguous()


def as_batch_last(x: Tensor) -> Tensor:
    return x.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2) if x.dim() == 4 else x.t().contiguous().t()


def close(found: Tensor, wanted: Tensor) -> bool:
    return oracles.relative_error(found.detach(), wanted.detach()) <= 1e-4


def assert_as(layer: nn.Module, dense: nn.Module, mask: np.ndarray, x: Tensor) -> None:
    """Output and all gradients of a sparse layer are those of the dense one in float64."""
    x = x + 0.5  # so that no sum comes to nothing
    twin, mine, theirs = masked_double(dense, mask), x.clone().requires_grad_(), x.double().requires_grad_()
    layer.zero_grad()
    found, wanted = layer(mine), twin(theirs)
    grad = normal(*wanted.shape, seed=9) + 0.5
    found.backward(grad)
    wanted.backward(grad.double())
    assert found.shape == wanted.shape and close(found, wanted) and close(mine.grad, theirs.grad)
    assert close(layer.values.grad, twin.weight.grad[torch.from_numpy(mask)])
    assert layer.bias is None or close(layer.bias.grad, twin.bias.grad)


# -- sparse layers and their twins


@both_kinds
@pytest.mark.parametrize("density", [0.0, 1 / 270, 0.1, 1.0])
@pytest.mark.parametrize(
    "options", [{}, {"padding": 1, "bias": False}, {"stride": 2, "padding": 1}, {"stride": (3, 1), "padding": (0, 4)}], ids=str
)
@pytest.mark.parametrize("batch", [1, 19, 70])
def test_a_convolution(kinds, density, options, batch):
    dense = dense_conv(**options)
    mask = mask_of(dense.weight, density)
    assert_as(kinds[0](dense, mask), dense, mask, normal(batch, 6, 9, 10))


@both_kinds
@pytest.mark.parametrize("density", [0.0, 1 / 280, 0.1, 1.0])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("batch", [1, 19, 70])
def test_a_linear_layer(kinds, density, bias, batch):
    dense = dense_linear(bias=bias)
    mask = mask_of(dense.weight, density)
    assert_as(kinds[1](dense, mask), dense, mask, normal(batch, 40))


@both_kinds
def test_an_input_in_any_layout_gives_the_same(kinds):
    dense, x = dense_conv(), normal(5, 6, 8, 8)
    layer = kinds[0](dense, mask_of(dense.weight, 0.3))
    for other in (as_batch_last(x), x.contiguous(memory_format=torch.channels_last), x[:, :, :, :7]):
        assert close(layer(other), layer(other.contiguous()))


@both_kinds
def test_parameters_are_the_active_values_and_the_bias_itself(kinds):
    for dense, kind in ((dense_conv(), kinds[0]), (dense_linear(), kinds[1])):
        mask = mask_of(dense.weight, 0.3)
        layer = kind(dense, mask)
        assert dict(layer.named_parameters()).keys() == {"values", "bias"} and layer.bias is dense.bias
        assert torch.equal(layer.values.detach(), dense.weight.detach()[torch.from_numpy(mask)])
        assert torch.equal(layer.dense().detach(), dense.weight.detach() * torch.from_numpy(mask))
        assert f"{mask.sum()} active" in repr(layer) and str(tuple(mask.shape)) in repr(layer)


@both_kinds
def test_gradients_flow_through_the_dense_weight(kinds):
    dense = dense_linear()
    layer = kinds[1](dense, mask_of(dense.weight, 0.3))
    (layer.dense() ** 2).sum().backward()
    assert torch.allclose(layer.values.grad, 2 * layer.values.detach())


@both_kinds
@pytest.mark.parametrize("density", [0.0, 0.1, 0.5, 1.0])
def test_another_mask_keeps_what_stays_and_begins_with_zeros(kinds, density):
    for dense, kind in ((dense_conv(), kinds[0]), (dense_linear(), kinds[1])):
        before, after = mask_of(dense.weight, 0.3), mask_of(dense.weight, density, seed=1)
        layer = kind(dense, before)
        x = normal(3, 6, 8, 8) if kind is kinds[0] else normal(3, 40)
        layer(x).sum().backward()
        layer.set_mask(after)
        wanted = dense.weight.detach() * torch.from_numpy(before & after)
        assert torch.equal(layer.dense().detach(), wanted) and layer.values.numel() == after.sum() and layer.values.grad is None
        assert np.array_equal(layer.places.numpy(), np.flatnonzero(after))
        twin = copy.deepcopy(dense)
        twin.weight.data = wanted
        assert_as(layer, twin, after, x)


@both_kinds
def test_the_same_mask_leaves_the_layer_as_it_is(kinds):
    dense = dense_conv()
    mask = mask_of(dense.weight, 0.3)
    layer = kinds[0](dense, mask)
    layer(normal(2, 6, 8, 8)).sum().backward()
    values, grad = layer.values.data_ptr(), layer.values.grad
    layer.set_mask(mask.copy())
    assert layer.values.data_ptr() == values and layer.values.grad is grad


@needs_kernels
def test_gradients_of_some_weights_only():
    dense = dense_conv()
    mask = mask_of(dense.weight, 0.3)
    layer, x = SparseConv2d(dense, mask), normal(4, 6, 8, 8)
    layer(x).sum().backward()
    whole, positions = layer.values.grad.clone(), np.array([0, 4, 33])
    layer.set_updated(positions)
    layer.values.grad = None
    layer(x).sum().backward()
    assert layer.values.grad.nonzero().flatten().tolist() == positions.tolist()
    assert torch.equal(layer.values.grad[positions], whole[positions])
    for reset in (lambda: layer.set_updated(None), lambda: layer.set_mask(mask)):
        layer.set_updated(positions)
        reset()
        layer.values.grad = None
        layer(x).sum().backward()
        assert torch.equal(layer.values.grad, whole)


def test_the_twin_takes_a_wish_for_some_gradients():
    dense = dense_linear()
    MaskedLinear(dense, mask_of(dense.weight, 0.3)).set_updated(np.array([0]))


@both_kinds
def test_a_state_is_the_dense_layers(kinds):
    for dense, kind in ((dense_conv(), kinds[0]), (dense_conv(bias=False), kinds[0]), (dense_linear(), kinds[1])):
        mask = torch.from_numpy(mask_of(dense.weight, 0.3))
        layer = kind(dense, mask.numpy())
        state = layer.state_dict()
        assert state.keys() == dense.state_dict().keys()
        assert torch.equal(state["weight"], dense.weight.detach() * mask)
        other = {name: torch.randn_like(value) for name, value in state.items()}
        assert str(layer.load_state_dict(other)) == "<All keys matched successfully>"
        assert torch.equal(layer.dense().detach(), other["weight"] * mask)
        assert layer.state_dict(keep_vars=True)["weight"].requires_grad


@both_kinds
@pytest.mark.parametrize("sizes", [{"bias": (7,)}, {"weight": (7, 41), "bias": (7,)}, {"weight": (7, 40)}], ids=str)
def test_a_state_of_another_layer_is_refused(kinds, sizes):
    dense, state = dense_linear(), {name: torch.zeros(size) for name, size in sizes.items()}
    with pytest.raises(RuntimeError, match="Missing key.*weight" if "weight" not in sizes else "weight.*41|Missing key.*bias"):
        kinds[1](dense, mask_of(dense.weight, 0.3)).load_state_dict(state)


@both_kinds
def test_a_mask_of_another_shape_is_refused(kinds):
    for dense, kind in ((dense_conv(), kinds[0]), (dense_linear(), kinds[1])):
        with pytest.raises(ValueError, match=r"the mask has shape \(2, 3\): the weight's is \(\d"):
            kind(dense, np.ones((2, 3), bool))
        layer = kind(dense, mask_of(dense.weight, 0.3))
        with pytest.raises(ValueError, match=r"the mask has shape \(2, 3\)"):
            layer.set_mask(np.ones((2, 3), bool))


@needs_kernels
@pytest.mark.parametrize(
    ("options", "shown"),
    [
        ({"groups": 3, "outs": 6}, "groups=3"),
        ({"dilation": 2}, r"dilation=\(2, 2\)"),
        ({"padding": "same"}, "padding=same"),
        ({"padding": 1, "padding_mode": "circular"}, "padding_mode=circular"),
    ],
)
def test_a_convolution_that_the_kernels_cannot_do_is_refused(options, shown):
    dense = dense_conv(**options)
    with pytest.raises(ValueError, match=f"Conv2d.*{shown}.*the kernels do convolutions with groups=1, dilation=1"):
        SparseConv2d(dense, np.ones(dense.weight.shape, bool))


@pytest.mark.parametrize(
    "options",
    [
        {"groups": 3, "outs": 6},
        {"dilation": 2},
        {"padding": "same"},
    ],
    ids=str,
)
def test_the_twin_does_every_convolution(options):
    dense = dense_conv(**options)
    mask = mask_of(dense.weight, 0.3)
    assert_as(MaskedConv2d(dense, mask), dense, mask, normal(3, 6, 8, 8))


def test_the_twin_refuses_a_padding_that_is_not_of_zeros():
    dense = dense_conv(padding=1, padding_mode="circular")
    with pytest.raises(ValueError, match="circular.*padded with zeros"):
        MaskedConv2d(dense, mask_of(dense.weight, 0.3))


WAYS_TO_COPY = {"copy": copy.copy, "deepcopy": copy.deepcopy, "pickle": lambda layer: pickle.loads(pickle.dumps(layer))}


@both_kinds
@pytest.mark.parametrize("again", WAYS_TO_COPY.values(), ids=WAYS_TO_COPY)
def test_a_copy_is_a_layer_of_its_own(kinds, again):
    for kind, dense, x in ((kinds[0], dense_conv(), normal(3, 6, 8, 8)), (kinds[1], dense_linear(), normal(3, 40))):
        layer = kind(dense, mask_of(dense.weight, 0.3))
        layer.set_updated(np.array([0, 1, 2], np.int32))
        other = again(layer)
        assert torch.equal(other(x), layer(x))
        for made in (layer, other):
            made(x).sum().backward()
        assert torch.equal(other.values.grad, layer.values.grad)  # also where gradients are wanted
        before = layer.state_dict()["weight"].clone()
        other.set_mask(mask_of(dense.weight, 0.1))
        other.set_updated(np.array([1]))
        with torch.no_grad():
            other.values += 1
        other(x).sum().backward()
        assert torch.equal(layer.state_dict()["weight"], before) and torch.equal(layer(x), kind(dense, mask_of(dense.weight, 0.3))(x))
        other.load_state_dict(layer.state_dict())
        assert not other.state_dict()["weight"][~torch.from_numpy(mask_of(dense.weight, 0.1))].any()


@needs_kernels
@pytest.mark.parametrize("shape", [(6, 8, 8), (6,), (1, 2, 6, 8, 8)])
def test_an_input_of_other_dimensions_is_refused(shape):
    dense = dense_conv()
    with pytest.raises(ValueError, match=r"an input of shape .*: the kernels take \[batch, channels, rows, columns\] or"):
        SparseConv2d(dense, mask_of(dense.weight, 0.3))(normal(*shape))


@needs_kernels
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_meets_inactive_weights_only_is_never_multiplied(value):
    """The one difference from a masked dense layer, where 0 x NaN is NaN: kernels skip inactive weights, whatever they would meet."""
    dense, x = dense_conv(), normal(3, 6, 8, 8)
    mask = mask_of(dense.weight, 0.3)
    mask[:, 2] = False
    x[:, 2, 4, 4] = value
    clean = x.clone()
    clean[:, 2, 4, 4] = 0
    layer, twin = SparseConv2d(dense, mask), MaskedConv2d(dense, mask)
    assert torch.equal(layer(x), layer(clean)) and twin(x).isnan().any()


@pytest.mark.parametrize("kind", [MaskedConv2d, MaskedLinear])
def test_the_twin_takes_float64(kind):
    dense = (dense_conv() if kind is MaskedConv2d else dense_linear()).double()
    mask = mask_of(dense.weight, 0.3)
    x = (normal(3, 6, 8, 8) if kind is MaskedConv2d else normal(3, 40)).double()
    wanted = masked_double(dense, mask)(x)
    assert torch.allclose(kind(dense, mask)(x), wanted, rtol=1e-12)


@needs_kernels
def test_a_sparse_layer_refuses_another_type_or_shape_of_input():
    dense = dense_conv()
    layer = SparseConv2d(dense, mask_of(dense.weight, 0.3))
    with pytest.raises(TypeError, match="x is torch.float64"):
        layer(normal(3, 6, 8, 8).double())
    with pytest.raises(ValueError, match=r"weights of shape \(5, 6, 3, 3\) cannot serve a layer of \(5, 4, 3, 3\)"):
        layer(normal(3, 4, 8, 8))
    with pytest.raises(ValueError, match=r"a kernel of \(3, 3\) does not fit into an input of \(2, 8\) with padding \(0, 0\)"):
        layer(normal(3, 6, 2, 8))


# -- layout


@needs_kernels
def test_what_lies_between_sparse_layers_is_batch_last():
    dense, linear = dense_conv(padding=1), dense_linear(5 * 16, 7)
    layer, x = SparseConv2d(dense, mask_of(dense.weight, 0.3)), normal(9, 6, 8, 8)
    y = layer(x)
    assert is_batch_last(y) and is_batch_last(torch.relu(y)) and is_batch_last(y + y) and is_batch_last(F.relu(y) + torch.relu(y))
    norm, group, pool = retyped(nn.BatchNorm2d(5)), retyped(nn.GroupNorm(5, 5)), retyped(nn.MaxPool2d(2))
    for one in (norm(y), norm.activate(y, y), group(y), group.activate(y), pool(y), DenseConv2d(6, 5, 3)(x)):
        assert is_batch_last(one)
    flat = pool(pool(norm(y))).flatten(1)[:, : 5 * 4]
    assert is_batch_last(flat)
    out = SparseLinear(linear, mask_of(linear.weight, 0.3))(pool(y).flatten(1))
    assert is_batch_last(out) and is_batch_last(retyped(nn.LayerNorm(7)).activate(out))


# -- layers between


def retyped(layer: nn.Module) -> nn.Module:
    """The same layer as `kernels.modules` has it."""
    kinds = {
        nn.BatchNorm2d: between.BatchNorm,
        nn.GroupNorm: between.GroupNorm,
        nn.LayerNorm: between.LayerNorm,
        nn.MaxPool2d: between.MaxPool2d,
        nn.Conv2d: DenseConv2d,
    }
    layer = copy.deepcopy(layer)
    layer.__class__ = kinds[type(layer)]
    return layer


def stir(layer: nn.Module) -> nn.Module:
    """With other numbers than those it begins with."""
    with torch.no_grad():
        for i, parameter in enumerate(layer.parameters()):
            parameter.copy_(normal(*parameter.shape, seed=i) + 0.5)
    return layer


def assert_same_step(mine: nn.Module, theirs: nn.Module, x: Tensor, mine_of=None, theirs_of=None) -> None:
    """Output, gradients and buffers of `mine` are those of `theirs` in float64."""
    theirs = copy.deepcopy(theirs).double()
    here, there = x.clone().requires_grad_(), x.double().requires_grad_()
    found, wanted = (mine_of or mine)(here), theirs_of(theirs, there) if theirs_of else theirs(there)
    grad = normal(*wanted.shape, seed=3)
    grad[(wanted.detach().abs() < 1e-5) & (wanted.detach() != 0)] = 0
    found.backward(grad)
    wanted.backward(grad.double())
    assert found.shape == wanted.shape and close(found, wanted) and close(here.grad, there.grad)
    for (name, one), (_, other) in zip(mine.named_parameters(), theirs.named_parameters(), strict=True):
        assert close(one.grad, other.grad), name
    for (name, one), (_, other) in zip(mine.named_buffers(), theirs.named_buffers(), strict=True):
        assert close(one, other) and one.shape == other.shape, name


@needs_kernels
@pytest.mark.parametrize("batch", [2, 9, 70])
@pytest.mark.parametrize("is_batch_last", [False, True])
def test_layers_between_do_what_pytorchs_do(batch, is_batch_last):
    image, vector = normal(batch, 6, 8, 9), normal(batch, 12)
    if is_batch_last:
        image, vector = as_batch_last(image), as_batch_last(vector)
    relu = lambda layer, x: torch.relu(layer(x))  # noqa: E731
    for layer, x in (
        (nn.BatchNorm2d(6), image),
        (nn.GroupNorm(3, 6, eps=1e-3), image),
        (nn.LayerNorm(12), vector),
        (nn.MaxPool2d(2), image),
        (nn.MaxPool2d(3), image),
        (dense_conv(padding=1, stride=2), image),
        (dense_conv(bias=False), image),
    ):
        made = retyped(stir(layer))
        assert_same_step(made, layer, x)
        if hasattr(made, "activate"):
            made = retyped(layer)
            assert_same_step(made, layer, x, made.activate, relu)


@needs_kernels
def test_a_normalisation_adds_and_activates():
    layer, x, other = stir(nn.BatchNorm2d(6)), normal(9, 6, 8, 8), normal(9, 6, 8, 8, seed=1)
    made = retyped(layer)
    assert_same_step(made, layer, x, lambda x: made.activate(x, other), lambda norm, x: torch.relu(norm(x) + other.double()))
    made, twin = retyped(layer), copy.deepcopy(layer).double()
    mine, theirs = other.clone().requires_grad_(), other.double().requires_grad_()
    made.activate(x, mine).sum().backward()
    torch.relu(twin(x.double()) + theirs).sum().backward()
    assert close(mine.grad, theirs.grad)


@needs_kernels
def test_a_convolution_behind_a_normalisation():
    norm, dense, x = stir(nn.BatchNorm2d(6)), dense_conv(padding=1), normal(9, 6, 8, 8)
    mask = mask_of(dense.weight, 0.3)
    layer, made, twin, behind = SparseConv2d(dense, mask), retyped(norm), copy.deepcopy(norm).double(), masked_double(dense, mask)
    mine, theirs = x.clone().requires_grad_(), x.double().requires_grad_()
    found, wanted = layer.behind(made, mine), behind(torch.relu(twin(theirs)))
    grad = normal(*wanted.shape, seed=3)
    found.backward(grad)
    wanted.backward(grad.double())
    assert close(found, wanted) and close(mine.grad, theirs.grad) and is_batch_last(found)
    assert close(made.weight.grad, twin.weight.grad) and close(made.bias.grad, twin.bias.grad)
    assert close(layer.values.grad, behind.weight.grad[torch.from_numpy(mask)]) and close(layer.bias.grad, behind.bias.grad)
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        assert close(getattr(made, name), getattr(twin, name))


@needs_kernels
@pytest.mark.parametrize("momentum", [0.1, 0.5, 1.0, None])
def test_running_statistics_are_pytorchs(momentum):
    norm = nn.BatchNorm2d(6, momentum=momentum)
    made = retyped(norm)
    for step in range(3):
        x = normal(4 + step, 6, 5, 5, seed=step) * (step + 1) + step
        (made if step else made.activate)(x)
        norm(x)
        assert made.num_batches_tracked == norm.num_batches_tracked == step + 1
        assert torch.allclose(made.running_mean, norm.running_mean, rtol=1e-5, atol=1e-6)
        assert torch.allclose(made.running_var, norm.running_var, rtol=1e-5)
    x = normal(4, 6, 5, 5, seed=9)
    assert torch.allclose(made.eval()(x), norm.eval()(x), rtol=1e-4, atol=1e-5)
    assert torch.allclose(made.activate(x, x), torch.relu(norm(x) + x), rtol=1e-4, atol=1e-5)
    assert made.num_batches_tracked == 3
    made.is_active = True
    assert torch.allclose(made(x), torch.relu(norm(x)), rtol=1e-4, atol=1e-5)


@needs_kernels
def test_a_normalisation_without_running_statistics():
    norm, x = nn.BatchNorm2d(6, track_running_stats=False), normal(4, 6, 5, 5)
    made = retyped(norm)
    assert_same_step(made, norm, x)
    assert torch.allclose(made.eval()(x), norm.eval()(x), rtol=1e-4, atol=1e-5)


@needs_kernels
def test_one_value_per_channel_cannot_be_normalised():
    norm = retyped(nn.BatchNorm2d(6))
    with pytest.raises(ValueError, match=r"needs more than one value per channel in training, got \(6, 1, 1, 1\)"):
        norm(normal(1, 6, 1, 1))
    assert not norm.running_mean.any() and (norm.running_var == 1).all()
    assert norm.eval()(normal(1, 6, 1, 1)).shape == (1, 6, 1, 1)


@needs_kernels
def test_group_normalisation_in_evaluation_is_the_same():
    group, layer, x = retyped(nn.GroupNorm(3, 6)), retyped(nn.LayerNorm(12)), normal(4, 6, 5, 5)
    assert torch.equal(group(x), group.eval()(x))
    assert torch.equal(layer(x[:, :, 0, :2].flatten(1)), layer.eval()(x[:, :, 0, :2].flatten(1)))


@needs_kernels
def test_a_nan_reaches_the_output():
    """As with PyTorch's layers: what is broken is seen."""
    x = normal(9, 6, 8, 8)
    x[4, 2, 0, 0] = float("nan")
    for layer in (nn.BatchNorm2d(6), nn.GroupNorm(3, 6)):
        for train in (True, False):
            made, layer = retyped(layer).train(train), layer.train(train)
            assert torch.equal(made(x).isnan(), layer(x).isnan())
            assert torch.equal(made.activate(x).isnan(), torch.relu(layer(x)).isnan())
    dense = dense_conv(padding=1)
    mask = np.ones(dense.weight.shape, bool)
    layer, twin = SparseConv2d(dense, mask), MaskedConv2d(dense, mask)
    assert torch.equal(layer(x).isnan(), twin(x).isnan()) and layer(x).isnan().any()


@needs_kernels
def test_a_nan_passes_a_pool():
    x = normal(9, 6, 8, 8)
    x[4, 2, 0, 0] = x[8, 5, 7, 7] = float("nan")
    assert torch.equal(retyped(nn.MaxPool2d(2))(x).isnan(), nn.MaxPool2d(2)(x).isnan())
