"""Layers between sparse ones, batch-last in memory: dense convolutions, normalisation, pooling. See `modules` for what that means."""

import torch
from torch import Tensor, nn

from sparcl_core.kernels import native, native_norms
from sparcl_core.kernels.connections import Connections
from sparcl_core.kernels.operations import (
    Convolve,
    GroupNormalise,
    Layer,
    MaxPool,
    Normalise,
    Pointwise,
    Statistics,
    batch_first,
    batch_last,
    statistics,
    supported,
)


class DenseConv2d(nn.Conv2d):
    """A convolution whose weights are all active, on the kernels: between sparse layers it saves two changes of layout."""

    def __getstate__(self) -> dict:
        return {name: value for name, value in self.__dict__.items() if name != "layer"}  # made again for the machine where a copy arrives

    def forward(self, x: Tensor) -> Tensor:
        if self.kernel_size == (1, 1) and self.padding == (0, 0):
            return batch_first(Pointwise.apply(batch_last(x), self.weight.flatten(1), self.bias, self.stride))
        if not hasattr(self, "layer"):
            self.layer = Layer(Connections(tuple(self.weight.shape), None, native.vector_floats()), *supported(self))
        return batch_first(Convolve.apply(batch_last(x), self.weight.contiguous().view(-1), self.bias, self.layer))


class BatchNorm(nn.BatchNorm2d):
    """Batch normalisation of batch-last tensors. `is_active`: a ReLU follows, so apply it here."""

    is_active = False

    def observe(self, x: Tensor) -> Statistics:
        """Statistics of x [C, H, W, B] that the running ones have learnt of (training only)."""
        count = x[0].numel()
        if count < 2:
            raise ValueError(f"batch normalisation needs more than one value per channel in training, got {tuple(x.shape)}")
        found = statistics(x, self.weight, self.bias, self.eps)
        if self.track_running_stats:
            self.num_batches_tracked += 1
            share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
            self.running_mean.lerp_(found.mean, share)
            self.running_var.lerp_(found.variance * (count / (count - 1)), share)
        return found

    def activate(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        """relu(norm(x) (+ other))."""
        return self._apply_to(x, other, True)

    def forward(self, x: Tensor) -> Tensor:
        return self._apply_to(x, None, self.is_active)

    def _apply_to(self, x: Tensor, other: Tensor | None, is_active: bool) -> Tensor:
        if not self.training and not torch.is_grad_enabled() and self.track_running_stats:
            scale = self.weight * torch.rsqrt(self.running_var + self.eps)
            added = None if other is None else batch_last(other)
            return batch_first(native_norms.affine(batch_last(x), scale, self.bias - self.running_mean * scale, added, is_active))
        if not self.training:
            out = super().forward(x)
            out = out if other is None else out + other
            return torch.relu(out) if is_active else out
        inner = batch_last(x)
        added = None if other is None else batch_last(other)
        return batch_first(Normalise.apply(inner, self.weight, self.bias, added, self.observe(inner), is_active))


class GroupNorm(nn.GroupNorm):
    """Group normalisation of batch-last tensors."""

    def activate(self, x: Tensor) -> Tensor:
        """relu(norm(x))."""
        if x.dim() != 4:
            return torch.relu(super().forward(x))
        return batch_first(GroupNormalise.apply(batch_last(x), self.weight, self.bias, self.num_groups, self.eps, True))

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() != 4:
            return super().forward(x)
        return batch_first(GroupNormalise.apply(batch_last(x), self.weight, self.bias, self.num_groups, self.eps, False))


class LayerNorm(nn.LayerNorm):
    """Layer normalisation of [B, F], batch-last in memory: a group normalisation with one group."""

    def activate(self, x: Tensor) -> Tensor:
        """relu(norm(x))."""
        if x.dim() != 2:
            return torch.relu(super().forward(x))
        return GroupNormalise.apply(batch_last(x), self.weight, self.bias, 1, self.eps, True).flatten(1).t()

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() != 2:
            return super().forward(x)
        return GroupNormalise.apply(batch_last(x), self.weight, self.bias, 1, self.eps, False).flatten(1).t()


class GlobalAvgPool2d(nn.AdaptiveAvgPool2d):
    """The mean of each channel and sample, [B, C, 1, 1], contiguous: what comes behind is no longer batch-last."""

    def forward(self, x: Tensor) -> Tensor:
        return batch_last(x).mean((1, 2)).t().contiguous()[:, :, None, None]


class MaxPool2d(nn.MaxPool2d):
    """Maximum of square windows that do not overlap, of batch-last tensors."""

    def forward(self, x: Tensor) -> Tensor:
        return batch_first(MaxPool.apply(batch_last(x), self.kernel_size))
