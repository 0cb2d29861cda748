"""Two small networks for small images.

- `mlp`: two hidden layers of `width` units.
- `cnn`: conv-conv-pool-fc with GroupNorm, of `width` channels and `hidden` units. GroupNorm has no running statistics, so nothing is lost
  when devices average, and an un-normalised net this small does not start to learn at 95 % sparsity.
"""

import math

import torch
from torch import Tensor, nn

from sparcl_core.config import ModelConfig


def mlp(input_shape: tuple[int, ...], num_classes: int, config: ModelConfig) -> nn.Module:
    """Two hidden layers with LayerNorm."""
    return MLP(input_shape, num_classes, config.width)


def cnn(input_shape: tuple[int, ...], num_classes: int, config: ModelConfig) -> nn.Module:
    """Two convolutions, pooling and a linear layer, with GroupNorm; for images of 2x2 and up."""
    if min(input_shape[1:]) < 2:
        raise ValueError(
            f"images are {input_shape[1]}x{input_shape[2]}: the cnn halves them, so they need 2x2 pixels at least; take model.name=mlp"
        )
    return CNN(input_shape, num_classes, config.width, config.hidden)


def activate(norm: nn.Module, x: Tensor) -> Tensor:
    """relu(norm(x)), in one go where the norm knows how (those of `kernels.between` do)."""
    return norm.activate(x) if hasattr(norm, "activate") else torch.relu(norm(x))


class MLP(nn.Module):
    """[B, C, H, W] -> [B, classes]: `first` and `classifier` stay dense, `hidden` may be sparse."""

    def __init__(self, input_shape: tuple[int, ...], num_classes: int, width: int):
        super().__init__()
        self.first = nn.Linear(math.prod(input_shape), width)
        self.hidden = nn.ModuleList([nn.Linear(width, width)])
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.classifier = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = activate(self.norms[0], self.first(x.flatten(1)))
        for layer, norm in zip(self.hidden, self.norms[1:], strict=True):
            x = activate(norm, layer(x))
        return self.classifier(x)


class CNN(nn.Module):
    """[B, C, H, W] -> [B, classes]: conv-conv-pool-fc, a GroupNorm of 8 groups behind each convolution."""

    def __init__(self, input_shape: tuple[int, ...], num_classes: int, width: int, hidden: int):
        super().__init__()
        channels, height, breadth = input_shape
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.norm1 = nn.GroupNorm(8, width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.GroupNorm(8, width)
        self.pool = nn.MaxPool2d(2)
        self.fc = nn.Linear(width * (height // 2) * (breadth // 2), hidden, bias=False)
        self.norm3 = nn.LayerNorm(hidden)
        self.classifier = nn.Linear(hidden, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = activate(self.norm1, self.conv1(x))
        x = activate(self.norm2, self.conv2(x))
        x = self.pool(x).flatten(1)
        return self.classifier(activate(self.norm3, self.fc(x)))
