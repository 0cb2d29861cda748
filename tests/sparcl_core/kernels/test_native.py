"""The C kernels against slow references, PyTorch in float64 and numbers computed by hand; with other vector widths, too."""

import os
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import oracles
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sparcl_core.kernels import build, native, native_norms
from sparcl_core.kernels.connections import Connections
from sparcl_core.kernels.geometry import Shape

pytestmark = pytest.mark.skipif(not native.has_kernels(), reason="no C compiler here")

ROOT = Path(__file__).parents[3]
PROMISE = 1e-4  # of the largest value
DENSITIES = (0.0, "one", 0.07, 0.4, 1.0)


@pytest.fixture
def threads():
    """Gives torch.set_num_threads; the number is as before when the test ends."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def last(x: Tensor) -> Tensor:
    """[B, C, H, W] in float64 as [C, H, W, B] in float32."""
    return x.permute(1, 2, 3, 0).float().contiguous()


def first(x: Tensor) -> Tensor:
    return x.permute(3, 0, 1, 2)


def assert_close(found, wanted, promise: float = PROMISE) -> None:
    assert oracles.relative_error(found, wanted) <= promise


@dataclass
class Case:
    """A layer, its input and the gradient of its output, in float64 and in the usual order. Values are those of float32."""

    shape: Shape
    places: np.ndarray
    x: Tensor
    grad: Tensor
    values: Tensor
    bias: Tensor | None
    pre: tuple[Tensor, Tensor] | None

    @property
    def connections(self) -> Connections:
        return Connections(self.shape.weight_shape, self.places, native.vector_floats())

    @property
    def weight(self) -> Tensor:
        return torch.zeros(int(np.prod(self.shape.weight_shape)), dtype=torch.float64).index_copy(
            0, torch.from_numpy(self.places), self.values
        ).view(self.shape.weight_shape)  # fmt: skip

    @property
    def fused(self) -> tuple[Tensor, Tensor] | None:
        return None if self.pre is None else (self.pre[0].float(), self.pre[1].float())

    @property
    def seen(self) -> Tensor:
        """What the layer multiplies."""
        if self.pre is None:
            return self.x
        return torch.relu(self.x * self.pre[0][:, None, None] + self.pre[1][:, None, None])

    def forward(self) -> Tensor:
        bias = None if self.bias is None else self.bias.float()
        return native.forward(self.connections, self.shape, last(self.x), self.values.float(), bias, self.fused)

    def input_gradient(self, onto: Tensor | None = None) -> Tensor:
        onto = None if onto is None else last(onto)
        return native.input_gradient(self.connections, self.shape, last(self.grad), self.values.float(), onto)

    def weight_gradient(self, updated: np.ndarray | None = None) -> Tensor:
        connections = self.connections
        connections.update(updated)
        return native.weight_gradient(connections, self.shape, last(self.x), last(self.grad), self.fused)


def make_case(shape: Shape, density, has_bias: bool = False, has_pre: bool = False, seed: int = 0) -> Case:
    drawn, size = torch.Generator().manual_seed(seed), int(np.prod(shape.weight_shape))

    def normal(*sizes: int) -> Tensor:
        return torch.randn(sizes, generator=drawn).double()

    count = 1 if density == "one" else round(density * size)
    places = torch.randperm(size, generator=drawn)[:count].sort().values.numpy()
    x, grad = normal(shape.batch, shape.channels, *shape.size), normal(shape.batch, shape.outs, *shape.out_size)
    bias, pre = normal(shape.outs) if has_bias else None, (normal(shape.channels), normal(shape.channels)) if has_pre else None
    return Case(shape, places, x, grad, normal(count), bias, pre)


def pairs(low: int, high: int):
    return st.tuples(st.integers(low, high), st.integers(low, high))


@st.composite
def cases(draw, plane: int = 14, batches: int = 70) -> Case:
    size, pad = draw(pairs(1, plane)), draw(pairs(0, 4))
    kernel = tuple(draw(st.integers(1, min(5, n + 2 * p))) for n, p in zip(size, pad, strict=True))
    channels, outs = draw(st.integers(1, 24)), draw(st.integers(1, 12))
    shape = Shape(draw(st.integers(1, batches)), channels, outs, size, kernel, draw(pairs(1, 3)), pad)
    return make_case(shape, draw(st.sampled_from(DENSITIES)), draw(st.booleans()), draw(st.booleans()), draw(st.integers(0, 2**20)))


# -- by hand


def hand(values: list[float], places: list[int], **options) -> tuple[Connections, Shape, Tensor]:
    shape = Shape(1, 1, 1, (3, 3), (3, 3), pad=(1, 1))
    return Connections(shape.weight_shape, np.array(places), native.vector_floats()), shape, torch.tensor(values)


def test_a_convolution_by_hand():
    """out(p, q) = 1 + 2 x(p - 1, q - 1) - x(p, q) + 3 x(p, q + 1) for x = 1 .. 9 in rows of three."""
    connections, shape, weights = hand([2.0, -1.0, 3.0], [0, 4, 5])
    x = torch.arange(1.0, 10.0).view(1, 3, 3, 1)
    out = native.forward(connections, shape, x, weights, torch.ones(1))
    assert out.flatten().tolist() == [6, 8, -2, 12, 16, -1, 18, 28, 2]
    ones = torch.ones(1, 3, 3, 1)
    assert native.input_gradient(connections, shape, ones, weights).flatten().tolist() == [1, 4, 2, 1, 4, 2, -1, 2, 2]
    onto = torch.full((1, 3, 3, 1), 10.0)
    assert native.input_gradient(connections, shape, ones, weights, onto) is onto
    assert onto.flatten().tolist() == [11, 14, 12, 11, 14, 12, 9, 12, 12]
    assert native.weight_gradient(connections, shape, x, ones).tolist() == [1 + 2 + 4 + 5, 45, 2 + 3 + 5 + 6 + 8 + 9]
    connections.update(np.array([2]))
    assert native.weight_gradient(connections, shape, x, ones).tolist() == [0, 0, 33]


def test_a_fused_normalisation_by_hand():
    """The layer sees max(0, 2 x - 10), with zeros around it that are no max(0, -10 + ...) of anything."""
    connections, shape, weights = hand([1.0, 1.0], [4, 5])
    x = torch.arange(1.0, 10.0).view(1, 3, 3, 1)
    out = native.forward(connections, shape, x, weights, None, (torch.tensor([2.0]), torch.tensor([-10.0])))
    assert out.flatten().tolist() == [0, 0, 0, 0, 2, 2, 4 + 6, 6 + 8, 8]
    out = native.forward(connections, shape, x, weights, None, (torch.tensor([0.0]), torch.tensor([5.0])))
    assert out.flatten().tolist() == [10, 10, 5] * 3


def test_max_pooling_by_hand():
    x = torch.tensor([[1, 5, 2], [5, 0, 9], [7, 7, 7]], dtype=torch.float32).view(1, 3, 3, 1)
    out, which = native_norms.max_pool(x, 2)
    assert (out.flatten().tolist(), which.flatten().tolist()) == ([5], [1])  # the first of equals
    back = native_norms.max_pool_backward(torch.full((1, 1, 1, 1), 3.0), which, (1, 3, 3, 1), 2)
    assert back.flatten().tolist() == [0, 3, 0, 0, 0, 0, 0, 0, 0]


# -- by definition


@settings(max_examples=40)
@given(cases(plane=7, batches=40), st.integers(0, 9))
def test_a_convolution_by_definition(case, seed):
    shape, x, grad, weight = case.shape, case.seen.numpy(), case.grad.numpy(), case.weight.numpy()
    bias = None if case.bias is None else case.bias.numpy()
    assert_close(first(case.forward()), oracles.convolution(x, weight, bias, shape.stride, shape.pad))
    to_x = oracles.convolution_input_gradient(shape.size, weight, grad, shape.stride, shape.pad)
    assert_close(first(case.input_gradient()), to_x)
    assert_close(first(case.input_gradient(case.x)), case.x.numpy() + to_x)
    updated = np.flatnonzero(np.random.default_rng(seed).random(case.places.size) < 0.5)
    for positions in (np.arange(case.places.size), updated):
        wanted = np.zeros(case.places.size)
        wanted[positions] = oracles.convolution_weight_gradient(x, grad, shape.kernel, shape.stride, shape.pad, case.places[positions])
        assert_close(case.weight_gradient(positions), wanted)


@settings(max_examples=60)
@given(st.integers(1, 40), st.integers(1, 5), pairs(1, 5), st.booleans(), st.booleans(), st.integers(0, 2**20))
def test_batch_normalisation_by_definition(batch, channels, size, has_other, is_active, seed):
    drawn = torch.Generator().manual_seed(seed)
    x, other, grad = (torch.randn(batch, channels, *size, generator=drawn).double() for _ in range(3))
    x[-1] += 1  # a plane of one place and one sample has no variance: keep away from none
    gamma, beta = (torch.randn(channels, generator=drawn).double() for _ in range(2))
    addend = other.numpy() if has_other else None
    epsilon = 0.1
    before = oracles.batch_norm(x.numpy(), gamma.numpy(), beta.numpy(), epsilon, addend, False)
    grad[torch.from_numpy(np.abs(before) < 1e-4)] = 0  # where a ReLU is on the brink, both sides are right
    mean, variance = native_norms.moments(last(x))
    # a sum may cancel to nearly nothing: its error is a share of what was summed, not of what is left
    assert ((mean - x.mean((0, 2, 3))).abs() <= 1e-5 * x.abs().mean((0, 2, 3))).all()
    assert_close(variance, x.var((0, 2, 3), unbiased=False), 1e-5)
    inverse = torch.rsqrt(variance + epsilon)
    scale = gamma.float() * inverse
    shift = beta.float() - mean * scale
    out = native_norms.affine(last(x), scale, shift, last(other) if has_other else None, is_active)
    assert_close(first(out), oracles.batch_norm(x.numpy(), gamma.numpy(), beta.numpy(), epsilon, addend, is_active))
    wanted = oracles.batch_norm_backward(x.numpy(), gamma.numpy(), beta.numpy(), epsilon, addend, is_active, grad.numpy())
    into, to_other = torch.empty_like(out), torch.empty_like(out)
    given_out = out if has_other and is_active else None
    found = native_norms.norm_backward(last(grad), last(x), given_out, (scale, shift, mean, inverse), is_active, into, to_other)
    near = np.abs(wanted[0]).max() > 1e-3  # one value per channel: its gradient is zero but for rounding
    if near:
        assert_close(first(into), wanted[0])
    assert_close(found[1], wanted[2])
    assert_close(first(to_other), wanted[3])
    if near:
        assert_close(found[0], wanted[1])
    grad_itself = last(grad)
    native_norms.norm_backward(grad_itself, last(x), given_out, (scale, shift, mean, inverse), is_active, grad_itself, None)
    assert torch.equal(grad_itself, into)


@settings(max_examples=60)
@given(st.integers(1, 40), st.integers(1, 3), st.integers(1, 3), pairs(1, 4), st.booleans(), st.integers(0, 2**20))
def test_group_normalisation_by_definition(batch, groups, per, size, is_active, seed):
    drawn = torch.Generator().manual_seed(seed)
    channels, epsilon = groups * per, 0.1
    x, grad = (torch.randn(batch, channels, *size, generator=drawn).double() for _ in range(2))
    gamma, beta = (torch.randn(channels, generator=drawn).double() for _ in range(2))
    before = oracles.group_norm(x.numpy(), groups, gamma.numpy(), beta.numpy(), epsilon, False)
    grad[torch.from_numpy(np.abs(before) < 1e-4)] = 0
    out, mean, inverse = native_norms.group_norm(last(x), groups, gamma.float(), beta.float(), epsilon, is_active)
    assert_close(first(out), oracles.group_norm(x.numpy(), groups, gamma.numpy(), beta.numpy(), epsilon, is_active))
    wanted = oracles.group_norm_backward(x.numpy(), groups, gamma.numpy(), beta.numpy(), epsilon, is_active, grad.numpy())
    found = native_norms.group_norm_backward(last(grad), last(x), gamma.float(), beta.float(), is_active, mean, inverse)
    assert_close(found[2], wanted[2])
    if per * size[0] * size[1] > 1:
        assert_close(first(found[0]), wanted[0])
        assert_close(found[1], wanted[1])
    else:
        assert found[0].abs().max() < 1e-5 and found[1].abs().max() < 1e-5


@settings(max_examples=30)
@given(st.integers(1, 40), st.integers(1, 3), pairs(1, 9), st.integers(1, 11), st.integers(0, 2**20), st.booleans())
def test_max_pooling_by_definition(batch, channels, size, window, seed, has_ties):
    window = min(window, *size)
    drawn = torch.Generator().manual_seed(seed)
    x, grad = (torch.randn(batch, channels, *size, generator=drawn).double() for _ in range(2))
    x = x.round() if has_ties else x
    grad = grad[:, :, : size[0] // window, : size[1] // window]
    out, which = native_norms.max_pool(last(x), window)
    wanted = oracles.max_pool(x.numpy(), window, grad.numpy())
    assert np.array_equal(first(out).numpy(), wanted[0])
    back = native_norms.max_pool_backward(last(grad), which, last(x).shape, window)
    assert np.array_equal(first(back).numpy(), wanted[1].astype(np.float32))


# -- as PyTorch in float64


def autograd(case: Case) -> tuple[Tensor, Tensor, Tensor]:
    """Output, gradient of what the layer sees, gradient of the active weights."""
    x, weight = case.seen.clone().requires_grad_(), case.weight.requires_grad_()
    out = F.conv2d(x, weight, case.bias, case.shape.stride, case.shape.pad)
    to_x, to_weight = torch.autograd.grad(out, (x, weight), case.grad)
    return out.detach(), to_x, to_weight.flatten()[torch.from_numpy(case.places)]


def assert_as_autograd(case: Case) -> None:
    out, to_x, to_weight = autograd(case)
    assert_close(first(case.forward()), out)
    assert_close(first(case.input_gradient()), to_x)
    assert_close(first(case.input_gradient(case.x)), case.x + to_x)
    assert_close(case.weight_gradient(), to_weight)
    for share in (0.0, 0.3):
        updated = np.flatnonzero(np.random.default_rng(0).random(case.places.size) < share)
        wanted = torch.zeros_like(to_weight)
        wanted[torch.from_numpy(updated)] = to_weight[torch.from_numpy(updated)]
        assert_close(case.weight_gradient(updated), wanted)


@settings(max_examples=250)
@given(cases())
def test_any_convolution_is_as_autograd_has_it(case):
    assert_as_autograd(case)


FIXED = {
    "a short last slice": Shape(70, 8, 6, (14, 14), (3, 3), pad=(1, 1)),
    "slices and strides": Shape(67, 5, 7, (9, 11), (3, 3), (2, 2), (1, 1)),
    "blocks": Shape(32, 60, 20, (8, 8), (3, 3), pad=(1, 1)),
    "blocks of slices": Shape(70, 40, 9, (7, 7), (5, 5), pad=(2, 2)),
    "one by one": Shape(33, 16, 12, (8, 8), (1, 1), (2, 2)),
    "a linear layer": Shape(70, 300, 40, (1, 1)),
    "a linear layer of one sample": Shape(1, 64, 64, (1, 1)),
    "more padding than kernel": Shape(3, 4, 5, (6, 5), (2, 1), (1, 1), (4, 3)),
    "more padding and strides": Shape(49, 4, 5, (3, 14), (2, 3), (3, 2), (4, 4)),
    "a stride that jumps over inputs": Shape(5, 3, 4, (9, 9), (1, 2), (3, 3)),
    "one place": Shape(1, 1, 1, (1, 1), (1, 1)),
    "only padding": Shape(2, 2, 3, (1, 1), (1, 1), (3, 3), (4, 4)),
    "a kernel larger than the input": Shape(9, 3, 4, (2, 2), (5, 5), pad=(2, 2)),
}


@pytest.mark.parametrize("density", DENSITIES)
@pytest.mark.parametrize("shape", FIXED.values(), ids=FIXED)
def test_a_convolution_is_as_autograd_has_it(shape, density):
    assert_as_autograd(make_case(shape, density, has_bias=True, has_pre=density == 0.4))


def test_dense_lists_and_no_lists_are_the_same():
    shape = FIXED["slices and strides"]
    case = make_case(shape, 1.0)
    whole = native.forward(Connections(shape.weight_shape, None, native.vector_floats()), shape, last(case.x), case.values.float(), None)
    assert torch.equal(whole, case.forward())


# -- bits


def everything(case: Case) -> list[Tensor]:
    """What every kernel makes of a case."""
    x, grad = last(case.x), last(case.x.flip(0))
    mean, variance = native_norms.moments(x)
    inverse = torch.rsqrt(variance + 1e-5)
    scale, shift = inverse * 2, 1 - mean * inverse
    out = native_norms.affine(x, scale, shift, grad, True)
    into, other = torch.empty_like(x), torch.empty_like(x)
    gamma_beta = native_norms.norm_backward(grad, x, out, (scale, shift, mean, inverse), True, into, other)
    groups = 2 if len(x) % 2 == 0 else 1
    normed, *held = native_norms.group_norm(x, groups, scale, shift, 1e-5, True)
    back = native_norms.group_norm_backward(grad, x, scale, shift, True, *held)
    window = min(2, *case.shape.size)
    pooled, which = native_norms.max_pool(x, window)
    unpooled = native_norms.max_pool_backward(pooled, which, tuple(x.shape), window)
    made = [case.forward(), case.input_gradient(), case.input_gradient(case.x), case.weight_gradient(), mean, variance, out, into, other]
    return [*made, *gamma_beta, normed, *held, *back, pooled, which, unpooled]


@pytest.mark.parametrize("has_pre", [False, True])
@pytest.mark.parametrize("shape", FIXED.values(), ids=FIXED)
def test_bits_depend_neither_on_threads_nor_on_what_was_computed_before(shape, has_pre, threads):
    case = make_case(shape, 0.4, has_bias=True, has_pre=has_pre)
    found = []
    for number in (1, 2, 3, 1):
        threads(number)
        found.append(everything(case))
        make_case(FIXED["blocks of slices"], 0.4, seed=number).forward()  # leaves other numbers in the scratch memory
    for again in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], again, strict=True))


@pytest.mark.parametrize("size", [(8, 8), (3, 5), (1, 1)])
def test_a_sample_does_not_depend_on_those_beside_it(size):
    shape = Shape(70, 20, 12, size, (3, 3), pad=(1, 1))
    case = make_case(shape, 0.4, has_bias=True)
    whole, whole_back = first(case.forward()), first(case.input_gradient())
    for samples in (1, 2, 7, 8, 31, 48, 49):
        few = replace(case, shape=replace(shape, batch=samples), x=case.x[:samples], grad=case.grad[:samples])
        assert_close(first(few.forward()), whole[:samples], 1e-6)
        assert_close(first(few.input_gradient()), whole_back[:samples], 1e-6)


def test_a_nan_stays_in_its_sample():
    case = make_case(FIXED["a short last slice"], 0.4, has_pre=True)
    clean = case.forward()
    case.x[69, 3, 5, 5] = float("nan")
    out = case.forward()
    assert torch.equal(out[..., :69], clean[..., :69]) and out[..., 69].isnan().any() and not out[:, 9:, :, 69].isnan().any()


# -- NaN as in PyTorch


@pytest.mark.parametrize("batch", [1, 3, 8, 16, 19, 35])
def test_a_nan_passes_a_relu(batch):
    x = torch.randn(2, 3, 3, batch, generator=torch.Generator().manual_seed(0))
    x[1, 2, 1, batch // 2] = x[0, 0, 0, -1] = float("nan")
    out = native_norms.affine(x, torch.ones(2), torch.zeros(2), None, True)
    assert torch.equal(out.isnan(), x.isnan()) and torch.equal(out.nan_to_num(7), torch.relu(x).nan_to_num(7))
    normed, *_ = native_norms.group_norm(x, 1, torch.ones(2), torch.zeros(2), 1e-5, True)
    assert torch.equal(normed.isnan().all(0).all(0).all(0), x.isnan().any(0).any(0).any(0))


@pytest.mark.parametrize("batch", [1, 8, 19, 35])
def test_a_nan_is_the_maximum(batch):
    x = torch.randn(2, 4, 4, batch, generator=torch.Generator().manual_seed(0))
    for sample in range(batch):  # at each place of a window, and at none
        if (place := sample % 5) < 4:
            x[0, place // 2, place % 2, sample] = float("nan")
    out, which = native_norms.max_pool(x, 2)
    wanted, places = F.max_pool2d(first(x), 2, return_indices=True)
    assert torch.equal(out.isnan(), last(wanted).isnan()) and torch.equal(out.nan_to_num(7), last(wanted).nan_to_num(7))
    row, column = torch.arange(2)[:, None] * 2, torch.arange(2) * 2
    assert torch.equal((row + first(which) // 2) * 4 + column + first(which) % 2, places)


# -- bad input


LAYER = Shape(3, 2, 4, (5, 6), (3, 3), pad=(1, 1))
GOOD = {
    "x": torch.ones(2, 5, 6, 3),
    "grad": torch.ones(4, 5, 6, 3),
    "weights": torch.ones(72),
    "bias": torch.ones(4),
    "scale": torch.ones(2),
    "shift": torch.ones(2),
    "onto": torch.ones(2, 5, 6, 3),
}


def call(kind: str, **given: Tensor):
    g, connections = GOOD | given, Connections(LAYER.weight_shape, None, native.vector_floats())
    if kind == "forward":
        return native.forward(connections, LAYER, g["x"], g["weights"], g["bias"], (g["scale"], g["shift"]))
    if kind == "input_gradient":
        return native.input_gradient(connections, LAYER, g["grad"], g["weights"], g["onto"])
    return native.weight_gradient(connections, LAYER, g["x"], g["grad"], (g["scale"], g["shift"]))


TAKES = [(kind, name) for kind, names in {
    "forward": ("x", "weights", "bias", "scale", "shift"),
    "input_gradient": ("grad", "weights", "onto"),
    "weight_gradient": ("x", "grad", "scale", "shift"),
}.items() for name in names]  # fmt: skip


@pytest.mark.parametrize(("kind", "name"), TAKES)
def test_a_tensor_that_is_not_what_a_layer_needs_is_refused(kind, name):
    good = GOOD[name]
    with pytest.raises(TypeError, match=f"{name} is torch.float64 on cpu: the kernels take torch.float32 on the CPU"):
        call(kind, **{name: good.double()})
    with pytest.raises(TypeError, match=f"{name} is torch.float32 on meta"):
        call(kind, **{name: good.to("meta")})
    longer = torch.ones(good.shape[0] + 1, *good.shape[1:])
    with pytest.raises(ValueError, match=rf"{name} has shape \({len(longer)},.*: the layer needs \({len(good)},"):
        call(kind, **{name: longer})
    strided = torch.ones(*good.shape, 2)[..., 0]
    with pytest.raises(ValueError, match=rf"{name} of shape .* is not contiguous \(strides \(.*2,?\)\): call .contiguous\(\) first"):
        call(kind, **{name: strided})


def test_other_kernels_check_their_tensors():
    x, two, three = torch.ones(2, 4, 4, 3), torch.ones(2), torch.ones(3)
    with pytest.raises(TypeError, match="x is torch.float64"):
        native_norms.moments(x.double())
    with pytest.raises(ValueError, match=r"x of shape \(4, 2, 4, 3\) is not contiguous"):
        native_norms.moments(x.transpose(0, 1))
    for name, given_numbers in (("scale", (three, two, None)), ("shift", (two, three, None)), ("other", (two, two, x[1:]))):
        with pytest.raises(ValueError, match=rf"{name} has shape \([13],"):
            native_norms.affine(x, *given_numbers, False)
    numbers = (two, two, two, two)
    with pytest.raises(ValueError, match=r"grad has shape \(1, 4, 4, 3\): the layer needs \(2, 4, 4, 3\)"):
        native_norms.norm_backward(x[1:], x, None, numbers, True, x, None)
    with pytest.raises(ValueError, match=r"mean has shape \(3,\)"):
        native_norms.norm_backward(x, x, None, (two, two, three, two), True, x, None)
    for name, tensors in (("out", (x[1:], x, None)), ("into", (None, x[1:], None)), ("other", (None, x, x[1:]))):
        with pytest.raises(ValueError, match=rf"{name} has shape \(1,"):
            native_norms.norm_backward(x, x, tensors[0], numbers, True, *tensors[1:])
    for name, given_numbers in (("gamma", (three, two)), ("beta", (two, three))):
        with pytest.raises(ValueError, match=rf"{name} has shape \(3,\)"):
            native_norms.group_norm(x, 1, *given_numbers, 1e-5, True)
    held = torch.ones(1, 3)
    with pytest.raises(ValueError, match=r"inverse has shape \(1, 4\): the layer needs \(1, 3\)"):
        native_norms.group_norm_backward(x, x, two, two, True, held, torch.ones(1, 4))
    with pytest.raises(TypeError, match="which is torch.int16 on cpu: the kernels take torch.int8"):
        native_norms.max_pool_backward(torch.ones(2, 2, 2, 3), torch.zeros(2, 2, 2, 3, dtype=torch.int16), (2, 4, 4, 3), 2)


@pytest.mark.parametrize(("size", "plane"), [(0, 4), (5, 4), (12, 20)])
def test_a_window_that_does_not_fit_is_refused(size, plane):
    with pytest.raises(ValueError, match=rf"a window of {size} does not fit into {plane}x24 \(and 11 is the largest\)"):
        native_norms.max_pool(torch.ones(1, plane, 24, 2), size)


@pytest.mark.parametrize("groups", [0, -1, 3, 5, 2.0, True + 0.5])
def test_groups_that_do_not_share_out_the_channels_are_refused(groups):
    x, four = torch.ones(4, 3, 3, 2), torch.ones(4)
    with pytest.raises(ValueError, match=f"groups is {groups}: a whole number of at least 1 that divides the 4 channels"):
        native_norms.group_norm(x, groups, four, four, 1e-5, True)


@pytest.mark.parametrize("held", [torch.ones(0, 2), torch.ones(3, 2), torch.tensor(1.0)])
def test_statistics_of_wrong_groups_are_refused(held):
    x, four = torch.ones(4, 3, 3, 2), torch.ones(4)
    with pytest.raises(ValueError, match="groups is [03]: a whole number"):
        native_norms.group_norm_backward(x, x, four, four, True, held, held)


@pytest.mark.parametrize("epsilon", [-1e-5, float("nan"), float("inf")])
def test_an_epsilon_that_is_no_small_number_is_refused(epsilon):
    two = torch.ones(2)
    with pytest.raises(ValueError, match="epsilon is .*: what is added to a variance is finite and not negative"):
        native_norms.group_norm(torch.ones(2, 3, 3, 2), 1, two, two, epsilon, True)


@pytest.mark.parametrize(("size", "plane"), [(0, 4), (5, 4), (12, 20)])
def test_the_gradient_of_a_window_that_does_not_fit_is_refused(size, plane):
    with pytest.raises(ValueError, match=rf"a window of {size} does not fit into {plane}x24"):
        native_norms.max_pool_backward(torch.ones(1, 1, 1, 2), torch.zeros(1, 1, 1, 2, dtype=torch.int8), (1, plane, 24, 2), size)


def test_connections_for_vectors_of_another_length_are_refused():
    """Their lists would have C read behind its buffers."""
    connections, weights = Connections(LAYER.weight_shape, None, 2 * native.vector_floats()), GOOD["weights"]
    message = f"made for vectors of {connections.vector} floats: the kernels here have {native.vector_floats()}"
    for compute in (
        lambda: native.forward(connections, LAYER, GOOD["x"], weights, None),
        lambda: native.input_gradient(connections, LAYER, GOOD["grad"], weights),
        lambda: native.weight_gradient(connections, LAYER, GOOD["x"], GOOD["grad"]),
    ):
        with pytest.raises(ValueError, match=message):
            compute()


@pytest.mark.parametrize("stray", [None, np.ones((2, 4, 4, 3), np.float32), torch.ones(2, 4, 4, 3).to_sparse(), [1.0]])
def test_what_is_no_dense_tensor_is_refused(stray):
    with pytest.raises(TypeError, match="x is (a NoneType|a ndarray|torch.sparse_coo|a list): the kernels take dense tensors"):
        native_norms.moments(stray)


def test_a_plane_that_c_cannot_count_is_refused():
    wide = torch.zeros(1).expand(1, 1, 2**16, 2**15)
    with pytest.raises(ValueError, match="not contiguous|count with 32 bits"):
        native_norms.max_pool(wide, 1)
    with pytest.raises(ValueError, match="up to 2147483647"):
        Shape(1, 1, 1, (1, 1), (1, 1), (2**31, 1), (2**31, 0))


sizes = st.integers(0, 5)


@given(st.lists(sizes, min_size=0, max_size=5), st.integers(-3, 13), sizes, st.floats(), st.booleans(), st.integers(0, 3))
def test_whatever_a_kernel_is_given_it_computes_or_refuses(shape, number, count, epsilon, is_active, kind):
    """Never a signal, never a value from beyond: what is computed has the input's shape and is finite where the arithmetic is."""
    x, numbers = torch.ones(shape), torch.ones(count)
    calls = (
        lambda: native_norms.moments(x),
        lambda: (native_norms.affine(x, numbers, numbers, x if is_active else None, is_active),),
        lambda: native_norms.group_norm(x, number, numbers, numbers, epsilon, is_active),
        lambda: native_norms.max_pool(x, number),
    )
    try:
        found = calls[kind]()
    except (ValueError, TypeError) as error:
        assert str(error).count("\n") == 0 and len(str(error)) > 20
        return
    assert x.dim() == 4 and x.numel() and found[0].numel()
    if kind != 2 or epsilon > 1e-30:  # all values are equal: their variance is 0
        assert all(tensor.isfinite().all() for tensor in found)
    if kind == 2:
        back = native_norms.group_norm_backward(x, x, numbers, numbers, is_active, *found[1:])
        assert back[0].shape == x.shape
    if kind == 3:
        assert native_norms.max_pool_backward(*found, tuple(x.shape), number).sum() == found[0].numel()


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "pad"),
    [
        ((8, 8), (3, 3), (10**6, 10**6), (1, 1)),
        ((5, 7), (1, 1), (10**9, 2), (0, 3)),
        ((1, 1), (2, 1), (10**6, 10**6), (10**6, 10**6)),
        ((40, 3), (2, 2), (17, 5), (6, 2)),
    ],
)
def test_a_long_stride_is_computed_at_once(size, kernel, stride, pad):
    """Most input places then meet no kernel place, and nothing may be done for each of them or for each place that is skipped."""
    case = make_case(Shape(9, 2, 3, size, kernel, stride, pad), 1.0, has_bias=True)
    assert_as_autograd(case)
    assert_close(first(case.forward()), F.conv2d(case.x, case.weight, case.bias, stride, pad))  # the shape's own stride may be shorter


def test_without_kernels_a_call_says_why(monkeypatch):
    monkeypatch.setattr(native, "backend", lambda: build.Backend(None, "dense", "no C compiler found", "", "", 0.0))
    assert not native.has_kernels()
    with pytest.raises(RuntimeError, match="there are no sparse kernels here: no C compiler found"):
        native.vector_floats()
    with pytest.raises(RuntimeError, match="no C compiler found"):
        native_norms.moments(torch.ones(1, 2, 2, 2))


def test_an_error_in_a_thread_reaches_the_caller(threads):
    def work(begin: int, end: int) -> None:
        raise KeyError(begin)

    threads(2)
    with pytest.raises(KeyError):
        native.deal(4, work)


@pytest.mark.parametrize("number", [1, 2, 3, 7])
def test_work_is_dealt_out_whole(threads, number):
    threads(number)
    for count in (0, 1, 2, 5, 64):
        done = []
        native.deal(count, lambda begin, end: done.append((begin, end)))  # noqa: B023
        assert [i for begin, end in sorted(done) for i in range(begin, end)] == list(range(count)) and len(done) <= max(1, number)


# -- vectors of other machines


@pytest.mark.parametrize("floats", [4, 8, 16])
def test_vectors_of_another_width(floats, tmp_path):
    """The code paths of NEON, AVX and AVX-512: compilers lower vectors that a machine has not."""
    if floats == native.vector_floats():
        pytest.skip("all tests ran with it")
    flags = f"{os.environ.get('SPARCL_KERNEL_FLAGS', '')} -DVL={floats}"
    chosen = "by_hand or by_definition or passes_a_relu or (a_convolution_is and 0.4) or beside_it"
    code = f"""import sys, pytest, torch
from hypothesis import settings
from sparcl_core.kernels import native
assert native.vector_floats() == {floats}
sys.exit(pytest.main(["-q", "-x", "-p", "no:cacheprovider", "-k", {chosen!r}, {str(Path(__file__))!r}]))"""
    environment = {**os.environ, "SPARCL_KERNELS": "sparse", "SPARCL_KERNEL_FLAGS": flags, "SPARCL_KERNEL_CACHE": str(tmp_path / "cache")}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
