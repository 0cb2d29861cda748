"""Models of a user's own, as the tests take them: `model.name = "own_models:make"`."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Net(nn.Module):
    """[B, C, H, W] -> [B, classes]: a convolution in groups, a shortcut, BatchNorm, dropout, a constant buffer, torch's attention."""

    def __init__(self, input_shape: tuple[int, ...], num_classes: int, depth: int = 1, dropout: float = 0.25, width: int = 8):
        super().__init__()
        self.stem = nn.Conv2d(input_shape[0], width, 3, padding=1)
        self.grouped = nn.Conv2d(width, width, 3, padding=1, groups=width // 2)
        self.mix = nn.ModuleList(nn.Conv2d(width, width, 1) for _ in range(depth))
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for _ in range(depth))
        self.down = nn.Conv2d(width, 2 * width, 1, stride=2)
        self.attention = nn.MultiheadAttention(2 * width, 2, batch_first=True)
        self.hidden = nn.Linear(2 * width, 16)
        self.drop = nn.Dropout(dropout)
        self.classifier = nn.Linear(16, num_classes)
        places = torch.arange(math.ceil(input_shape[1] / 2) * math.ceil(input_shape[2] / 2))
        self.register_buffer("wave", torch.sin(places / 3.0)[:, None])

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.grouped(self.stem(x)))
        for mix, norm in zip(self.mix, self.norms, strict=True):
            x = F.relu(norm(mix(x)) + x)
        tokens = self.down(x).flatten(2).transpose(1, 2) + self.wave
        tokens = tokens + self.attention(tokens, tokens, tokens, need_weights=False)[0]
        return self.classifier(self.drop(F.relu(self.hidden(tokens))).mean(1))


def make(input_shape: tuple[int, ...], num_classes: int, **options) -> nn.Module:
    return Net(input_shape, num_classes, **options)


class Twice(nn.Module):
    """A layer that runs twice."""

    def __init__(self, input_shape: tuple[int, ...], num_classes: int):
        super().__init__()
        self.first, self.again = nn.Linear(math.prod(input_shape), 12), nn.Linear(12, 12)
        self.classifier = nn.Linear(12, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x.flatten(1)).relu()
        return self.classifier(self.again(self.again(x).relu()).relu())


def transformer(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """torch's own transformer layers, which read the weights of their linear layers themselves where no gradients are wanted."""

    class Layers(nn.Module):
        def __init__(self):
            super().__init__()
            layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True)
            self.patches, self.layers = nn.Conv2d(input_shape[0], 8, 2, stride=2), nn.TransformerEncoder(layer, 2)
            self.classifier = nn.Linear(8, num_classes)

        def forward(self, x):
            return self.classifier(self.layers(self.patches(x).flatten(2).transpose(1, 2)).mean(1))

    return Layers()


# -- what is refused


class Flat(nn.Module):
    """One linear layer, with what a test gives it."""

    def __init__(self, input_shape: tuple[int, ...], num_classes: int, outs: int = 0):
        super().__init__()
        self.linear = nn.Linear(math.prod(input_shape), outs or num_classes)

    def forward(self, x):
        return self.linear(x.flatten(1))


def of_imagenet(input_shape, num_classes):
    return Flat(input_shape, 1000)


def not_a_module(input_shape, num_classes):
    return lambda x: x


def fails(input_shape, num_classes):
    raise RuntimeError("no such variant")


def frozen(input_shape, num_classes):
    return Flat(input_shape, num_classes).requires_grad_(False)


def lazy(input_shape, num_classes):
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(num_classes))


def without_parameters(input_shape, num_classes):
    return nn.Flatten()


def tied(input_shape, num_classes):
    model = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(input_shape), 6), nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, num_classes))
    model[3].weight = model[2].weight
    return model


def idle(input_shape, num_classes):
    model = Flat(input_shape, num_classes)
    model.spare = nn.Linear(3, 3)
    return model


class Counting(Flat):
    """Keeps a count of its calls in an attribute, and computes with it."""

    calls = 0

    def forward(self, x):
        self.calls += self.training
        return super().forward(x) * (1 + self.calls)


class Drifting(Flat):
    """A buffer that training changes."""

    def __init__(self, input_shape, num_classes):
        super().__init__(input_shape, num_classes)
        self.register_buffer("mean", torch.zeros(1))

    def forward(self, x):
        if self.training:
            self.mean.mul_(0.9).add_(0.1 + x.mean().detach())
        return super().forward(x)


class Cumulative(Flat):
    """BatchNorm whose statistics depend on how many batches it has seen."""

    def __init__(self, input_shape, num_classes):
        super().__init__(input_shape, num_classes)
        self.norm = nn.BatchNorm1d(num_classes, momentum=None)

    def forward(self, x):
        return self.norm(super().forward(x))


class Random(Flat):
    """Drops in evaluation, too."""

    def forward(self, x):
        return F.dropout(super().forward(x), 0.5, training=True)


class Mixing(Flat):
    """The mean over a batch, in evaluation too."""

    def forward(self, x):
        return super().forward(x - x.mean(0, keepdim=True))


class Pair(Flat):
    """Two heads."""

    def forward(self, x):
        logits = super().forward(x)
        return logits, logits


class Training(Flat):
    """Fails in training."""

    def forward(self, x):
        return super().forward(x) if not self.training else super().forward(x[:, :, :-1])


class Infinite(Flat):
    def forward(self, x):
        return super().forward(x) / 0


def unseeded(input_shape, num_classes):
    """Weights from a generator that nobody sets."""
    model = Flat(input_shape, num_classes)
    with torch.no_grad():
        model.linear.weight.copy_(torch.from_numpy(np.random.default_rng().standard_normal(tuple(model.linear.weight.shape))))
    return model


class Reads(Flat):
    """Asks its linear layer what a sparse one cannot tell."""

    def __init__(self, input_shape, num_classes):
        super().__init__(input_shape, 8)
        self.middle, self.last = nn.Linear(8, 8), nn.Linear(8, num_classes)

    def forward(self, x):
        return self.last(self.middle(super().forward(x))[:, : self.middle.out_features])


class Scaled(nn.Linear):
    """A linear layer that does something else."""

    def forward(self, x):
        return 2 * super().forward(x)


def of_a_class_of_its_own(input_shape, num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(input_shape), 6), Scaled(6, 6), nn.Linear(6, 6), nn.Linear(6, num_classes))


NOT_CALLABLE = 3
