"""Operations with gradients against PyTorch's own in float64, and what they keep for backward."""

import numpy as np
import oracles
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sparcl_core.kernels import native, operations
from sparcl_core.kernels.connections import Connections
from sparcl_core.kernels.operations import (
    Convolve,
    GroupNormalise,
    Layer,
    MaxPool,
    Normalise,
    NormConvolve,
    batch_first,
    batch_last,
    statistics,
)

pytestmark = pytest.mark.skipif(not native.has_kernels(), reason="no C compiler here")

EPSILON = 1e-3


def normal(*sizes: int, seed: int) -> Tensor:
    return torch.randn(sizes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def leaf(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.float().requires_grad_()


def leaf_last(x: Tensor | None) -> Tensor | None:
    return None if x is None else batch_last(x).float().clone().requires_grad_()


def double(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.clone().requires_grad_()


def assert_same_gradients(found: Tensor, mine: list, wanted: Tensor, theirs: list, seed: int, brink: Tensor | None = None) -> None:
    """`found` [.., B] as `wanted` [B, ..], and the gradients of `mine` as those of `theirs`. brink: where a ReLU may go either way."""
    grad = normal(*wanted.shape, seed=seed + 77)  # a gradient that is like x would leave next to nothing of itself
    if brink is not None:
        grad[brink.abs() < 1e-4] = 0
    assert oracles.relative_error(batch_first(found).detach(), wanted.detach()) <= 1e-4
    pairs = [(a, b) for a, b in zip(mine, theirs, strict=True) if a is not None]
    gradients = torch.autograd.grad(batch_first(found), [a for a, _ in pairs], grad.float())
    for one, other in zip(gradients, torch.autograd.grad(wanted, [b for _, b in pairs], grad), strict=True):
        one = batch_first(one) if one.dim() == 4 else one
        assert oracles.relative_error(one, other) <= 1e-4


def a_layer(seed: int, channels: int = 6, outs: int = 5, kernel=(3, 3), stride=(1, 1), pad=(1, 1), density=0.4):
    """A layer, its weights as a leaf, and the same as a dense leaf in float64, cut out of its mask."""
    shape = (outs, channels, *kernel)
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < density
    dense = double(normal(*shape, seed=seed) * mask)
    weights = leaf(dense.detach()[mask])
    return Layer(Connections(shape, np.flatnonzero(mask), native.vector_floats()), stride, pad), weights, dense, mask


def norm(x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    return F.batch_norm(x, None, None, gamma, beta, training=True, eps=EPSILON)


sizes = st.tuples(st.integers(2, 70), st.integers(2, 9), st.integers(2, 9))


@given(sizes, st.integers(1, 3), st.integers(0, 3), st.booleans(), st.integers(0, 2**20))
def test_convolve(size, stride, pad, has_bias, seed):
    layer, weights, dense, mask = a_layer(seed, kernel=(2, 2), stride=(stride, 1), pad=(pad, 1))
    x, bias = normal(size[0], 6, *size[1:], seed=seed + 1), normal(5, seed=seed) if has_bias else None
    mine, theirs = [leaf_last(x), leaf(bias)], [double(x), double(bias)]
    found = Convolve.apply(mine[0], weights, mine[1], layer)
    wanted = F.conv2d(theirs[0], dense, theirs[1], (stride, 1), (pad, 1))
    assert_same_gradients(found, mine, wanted, theirs, seed)
    grad = normal(*wanted.shape, seed=seed)
    to_dense = torch.autograd.grad(F.conv2d(x, dense, None, (stride, 1), (pad, 1)), dense, grad)[0]
    to_mine = torch.autograd.grad(batch_first(Convolve.apply(mine[0], weights, None, layer)), weights, grad.float())[0]
    assert oracles.relative_error(to_mine, to_dense[mask]) <= 1e-4


@given(sizes, st.booleans(), st.booleans(), st.integers(0, 2**20))
def test_normalise(size, has_other, is_active, seed):
    x, other = normal(size[0], 4, *size[1:], seed=seed), normal(size[0], 4, *size[1:], seed=seed + 1) if has_other else None
    numbers = normal(4, seed=seed + 2), normal(4, seed=seed + 3)
    mine = [leaf_last(x), leaf_last(other), *map(leaf, numbers)]
    theirs = [double(x), double(other), *map(double, numbers)]
    found = Normalise.apply(mine[0], mine[2], mine[3], mine[1], statistics(mine[0], mine[2], mine[3], EPSILON), is_active)
    before = norm(theirs[0], theirs[2], theirs[3]) + (0 if other is None else theirs[1])
    assert_same_gradients(found, mine, torch.relu(before) if is_active else before, theirs, seed, before if is_active else None)


@given(sizes, st.booleans(), st.integers(0, 2**20))
def test_norm_convolve(size, has_bias, seed):
    layer, weights, dense, mask = a_layer(seed)
    x, bias, numbers = normal(size[0], 6, *size[1:], seed=seed), normal(5, seed=seed), (normal(6, seed=seed), normal(6, seed=seed + 1))
    before = norm(x, *numbers)
    x[before.abs() < 1e-3] += 0.01  # moves everything a little, but these away from the ReLU's edge
    brink = norm(x, *numbers).abs().min() < 1e-5
    bias = bias if has_bias else None
    mine, theirs = [leaf_last(x), *map(leaf, numbers), leaf(bias)], [double(x), *map(double, numbers), double(bias)]
    found = NormConvolve.apply(*mine[:3], weights, mine[3], statistics(*mine[:3], EPSILON), layer)
    wanted = F.conv2d(torch.relu(norm(*theirs[:3])), dense, theirs[3], padding=1)
    if brink:
        assert oracles.relative_error(batch_first(found).detach(), wanted.detach()) <= 1e-4
    else:
        assert_same_gradients(found, mine, wanted, theirs, seed)
    grad = normal(*wanted.shape, seed=seed)
    found = NormConvolve.apply(*mine[:3], weights, mine[3], statistics(*mine[:3], EPSILON), layer)
    to_dense = torch.autograd.grad(F.conv2d(torch.relu(norm(*theirs[:3])), dense, padding=1), dense, grad)[0]
    assert oracles.relative_error(torch.autograd.grad(batch_first(found), weights, grad.float())[0], to_dense[mask]) <= 1e-4


@given(sizes, st.sampled_from([1, 2, 3, 6]), st.booleans(), st.integers(0, 2**20))
def test_group_normalise(size, groups, is_active, seed):
    x, numbers = normal(size[0], 6, *size[1:], seed=seed), (normal(6, seed=seed + 1), normal(6, seed=seed + 2))
    mine, theirs = [leaf_last(x), *map(leaf, numbers)], [double(x), *map(double, numbers)]
    before = F.group_norm(theirs[0], groups, *theirs[1:], EPSILON)
    found = GroupNormalise.apply(*mine, groups, EPSILON, is_active)
    assert_same_gradients(found, mine, torch.relu(before) if is_active else before, theirs, seed, before if is_active else None)


@given(sizes, st.integers(1, 4), st.integers(0, 2**20))
def test_max_pool(size, window, seed):
    window, x = min(window, *size[1:]), normal(size[0], 3, *size[1:], seed=seed).float().double()
    mine, theirs = [leaf_last(x)], [double(x)]
    assert_same_gradients(MaxPool.apply(mine[0], window), mine, F.max_pool2d(theirs[0], window), theirs, seed)


def test_bits_do_not_depend_on_threads():
    layer, weights, _, _ = a_layer(0)
    x, gamma, beta = leaf_last(normal(70, 6, 9, 9, seed=1)), leaf(normal(6, seed=2)), leaf(normal(6, seed=3))
    before, made = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 1):
            torch.set_num_threads(threads)
            y = NormConvolve.apply(x, gamma, beta, weights, None, statistics(x, gamma, beta, EPSILON), layer)
            made.append([y.detach(), *torch.autograd.grad(y, (x, gamma, beta, weights), y.detach())])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in made[1:] for a, b in zip(made[0], other, strict=True))


# -- what autograd asks for


def test_a_gradient_that_is_not_contiguous_is_taken():
    """sum() hands back one number, expanded."""
    layer, weights, dense, mask = a_layer(0)
    x, numbers = normal(9, 6, 7, 7, seed=1), (torch.ones(6), torch.zeros(6))
    inner = leaf_last(x)
    found = statistics(inner, *numbers, EPSILON)
    makers = {
        "convolve": lambda: Convolve.apply(inner, weights, None, layer),
        "normalise": lambda: Normalise.apply(inner, *numbers, None, found, False),
        "norm convolve": lambda: NormConvolve.apply(inner, *numbers, weights, None, found, layer),
        "group normalise": lambda: GroupNormalise.apply(inner, *numbers, 2, EPSILON, True),
        "max pool": lambda: MaxPool.apply(inner, 2),
    }
    for name, make in makers.items():
        flat = torch.autograd.grad(make().sum(), inner)[0]
        out = make()
        assert torch.equal(flat, torch.autograd.grad(out, inner, torch.ones_like(out))[0]), name


def test_gradients_that_nobody_wants_are_not_computed(monkeypatch):
    layer, weights, _, _ = a_layer(0)
    x, called = batch_last(normal(9, 6, 7, 7, seed=1)).float(), []
    for name in ("input_gradient", "weight_gradient"):
        true = getattr(native, name)
        monkeypatch.setattr(operations.native, name, lambda *given, name=name, true=true: called.append(name) or true(*given))
    Convolve.apply(x, weights, None, layer).sum().backward()
    assert called == ["weight_gradient"] and weights.grad is not None
    called.clear()
    Convolve.apply(x.clone().requires_grad_(), weights.detach(), None, layer).sum().backward()
    assert called == ["input_gradient"]


def test_an_update_leaves_the_other_gradients_zero():
    layer, weights, _, _ = a_layer(0)
    x = batch_last(normal(9, 6, 7, 7, seed=1)).float()
    whole = torch.autograd.grad(Convolve.apply(x, weights, None, layer).sum(), weights)[0]
    for positions in (np.array([0, 5, 7]), np.zeros(0, np.int64)):
        layer.connections.update(positions)
        part = torch.autograd.grad(Convolve.apply(x, weights, None, layer).sum(), weights)[0]
        wanted = torch.zeros_like(whole)
        wanted[torch.from_numpy(positions)] = whole[torch.from_numpy(positions)]
        assert torch.equal(part, wanted)


def test_a_normalisation_with_relu_keeps_its_input_only():
    kept = []
    x, numbers = leaf_last(normal(9, 6, 7, 7, seed=1)), (leaf(torch.ones(6)), leaf(torch.zeros(6)))
    layer, weights, _, _ = a_layer(0)
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        found = statistics(x, *numbers, EPSILON)
        Normalise.apply(x, *numbers, None, found, True)
        NormConvolve.apply(x, *numbers, weights, None, found, layer)
    assert {tensor.data_ptr() for tensor in kept if tensor.dim() == 4} == {x.data_ptr()}


def test_statistics():
    x, gamma, beta = normal(9, 4, 5, 5, seed=0), normal(4, seed=1), normal(4, seed=2)
    found = statistics(batch_last(x).float(), gamma.float(), beta.float(), EPSILON)
    mean, variance = x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)
    scale = gamma / (variance + EPSILON).sqrt()
    pairs = zip((found.mean, found.variance, found.scale, found.shift), (mean, variance, scale, beta - mean * scale), strict=True)
    for one, other in pairs:
        assert oracles.relative_error(one, other) <= 1e-5


def test_layouts():
    x = torch.randn(5, 3, 4, 6)
    inner = batch_last(x)
    assert inner.shape == (3, 4, 6, 5) and inner.is_contiguous() and torch.equal(batch_first(inner), x)
    assert batch_last(batch_first(inner)).data_ptr() == inner.data_ptr() == batch_first(inner).data_ptr()
    assert torch.equal(batch_last(x[:, :, 0, 0]), x[:, :, 0, 0].t()[:, None, None]) and batch_last(x[:, :, 0, 0]).is_contiguous()
    flat = batch_first(inner).flatten(1)  # [B, F]: still a view, channel by channel
    assert flat.shape == (5, 72) and torch.equal(batch_last(flat)[:, 0, 0].t(), x.flatten(1))
