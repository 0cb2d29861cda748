"""Backbones, and which of their parameters may be sparse.

- `mlp`: two hidden layers.
- `cnn`: conv-conv-pool-fc with GroupNorm, for small images. GroupNorm has no running statistics, so nothing is lost when
  devices average, and an un-normalised net this small does not start to learn at 95 % sparsity.
- `resnet18`: torchvision's ResNet-18 with the CIFAR stem (3x3, stride 1, no max-pool) and a width setting; width 64 is the
  paper's network (11.17 M parameters), width 20 the reduced one of the DER family's code.

The paper makes the 3x3 convolutions of the residual stages sparse and keeps stem, shortcuts, normalisation, biases and the
classifier dense. The small nets follow the same rule: hidden weights only, never the first and last layer.
"""

import math
import re

import numpy as np
import torch
from torch import Tensor, nn

from sparcl_core.codec import Layout
from sparcl_core.config import MethodConfig, ModelConfig
from sparcl_core.costs.probe import look_through
from sparcl_core.kernels.convert import sparse_layers
from sparcl_core.seeding import generator

DTYPES = {"float32": torch.float32, "float64": torch.float64}
SPARSE_BY_DEFAULT = {
    "mlp": (r"hidden\.\d+\.weight",),
    "cnn": (r"conv[2-9]\.weight", r"fc\.weight"),
    "resnet18": (r"layer\d\.\d\.conv[12]\.weight",),
}


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


def _resnet18(input_shape: tuple[int, ...], num_classes: int, width: int) -> nn.Module:
    from torchvision.models.resnet import BasicBlock, ResNet  # imported late: it takes seconds, and only this model needs it

    class CifarResNet(ResNet):
        def _make_layer(self, block, planes, blocks, stride=1, dilate=False):
            if planes == 64:
                self.inplanes = width
            return super()._make_layer(block, planes * width // 64, blocks, stride, dilate)

    model = CifarResNet(BasicBlock, [2, 2, 2, 2])
    model.conv1 = nn.Conv2d(input_shape[0], width, 3, padding=1, bias=False)
    model.bn1 = nn.BatchNorm2d(width)
    model.maxpool = nn.Identity()
    model.fc = nn.Linear(512 * width // 64, num_classes)
    return model


def make_layout(model: nn.Module, method: MethodConfig) -> Layout:
    """Every floating-point parameter and buffer of `model`; masked are those that are sparse, statistics the buffers."""
    shapes = {name: value.shape for name, value in read_state(model).items()}
    statistics = shapes.keys() - dict(model.named_parameters()).keys()
    return Layout(shapes, frozenset(sparse_names(model, method.model) if method.is_sparse else ()), frozenset(statistics))


def build_model(config: ModelConfig, input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """The backbone with whatever weights torch gave it; `initial_weights` makes the ones that count.

    Weights lie channels-last in memory: a training step of ResNet-18 width 20 takes 0.4 of the time on a CPU with AVX-512.

    Raises:
        ValueError: if the images are too small for the backbone.
    """
    if config.name == "cnn" and min(input_shape[1:]) < 2:
        raise ValueError(
            f"images are {input_shape[1]}x{input_shape[2]}: the cnn halves them, so they need 2x2 pixels at least; take model.name=mlp"
        )
    with torch.random.fork_rng(devices=[]):
        if config.name == "mlp":
            model = MLP(input_shape, num_classes, config.width)
        elif config.name == "cnn":
            model = CNN(input_shape, num_classes, config.width, config.hidden)
        elif config.name == "resnet18":
            model = _resnet18(input_shape, num_classes, config.width)
        else:
            raise NotImplementedError(f"model.name {config.name!r} is a name without a network: build_model needs a branch for it")
    return model.to(DTYPES[config.dtype], memory_format=torch.channels_last)


def sparse_names(model: nn.Module, config: ModelConfig) -> tuple[str, ...]:
    """Names of the parameters that may be sparse, in the model's order.

    Raises:
        ValueError: if a pattern of the config matches no weight of a convolution or linear layer.
    """
    patterns = config.sparse or SPARSE_BY_DEFAULT[config.name]
    weights = [name for name, p in model.named_parameters() if p.dim() >= 2]
    for pattern in patterns:
        if not any(re.fullmatch(pattern, name) for name in weights):
            raise ValueError(f"model.sparse has {pattern!r}, which matches no weight of {config.name}: it has {', '.join(weights)}")
    return tuple(name for name in weights if any(re.fullmatch(pattern, name) for pattern in patterns))


def initial_weights(model: nn.Module, seed: int) -> dict[str, np.ndarray]:
    """State for a new run: He-normal weights (variance 2 / fan-in), norms at one, biases at zero.

    Each tensor is drawn from its own address, so adding a layer does not move the others.
    """
    parameters = dict(model.named_parameters())
    state = {}
    for name, array in read_state(model).items():
        if name in parameters and array.ndim >= 2:
            fan_in = math.prod(array.shape[1:])
            draw = generator(seed, "init", name).standard_normal(array.shape)
            array = (draw * math.sqrt(2.0 / fan_in)).astype(array.dtype)
        else:  # whatever the model holds: it may have been trained
            array[...] = 1 if name.endswith(("weight", "running_var")) else 0
        state[name] = array
    return state


def fresh_statistics(shapes: dict[str, tuple[int, ...]], dtype: np.dtype) -> dict[str, np.ndarray]:
    """BatchNorm's tensors of an untrained model: means and biases 0, variances and weights 1."""
    return {name: np.full(shape, float(name.endswith(("running_var", "weight"))), dtype) for name, shape in shapes.items()}


def collect_statistics(model: nn.Module, batches: list[Tensor]) -> None:
    """Set the running statistics of `model` to their plain average over `batches`, in place; nothing else of it changes."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    training = model.training
    try:
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # a cumulative average
        model.train()
        with torch.no_grad():
            for batch in batches:
                model(batch)
    finally:
        model.train(training)
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


def load_state_(model: nn.Module, state: dict[str, np.ndarray]) -> None:
    """Copy `state` into the model's floating-point parameters and buffers, in place; keys and shapes must match exactly.

    Of a sparse layer's weight, what lies at active places is copied.

    Integer buffers (BatchNorm's step counter) are no part of a state: nothing is computed from them here.
    """
    sparse = sparse_layers(model)
    own = _dense_tensors(model) | dict.fromkeys(sparse)
    if own.keys() != state.keys():
        raise ValueError(f"state has other tensors than the model: {sorted(own.keys() ^ state.keys())[:5]}")
    with torch.no_grad():
        for name, target in own.items():
            shape = sparse[name].weight_shape if target is None else tuple(target.shape)
            if shape != state[name].shape:
                raise ValueError(f"{name} has shape {state[name].shape}: the model's is {shape}")
            if target is None:
                sparse[name].values.copy_(torch.from_numpy(state[name].reshape(-1)[sparse[name].places.numpy()]))
            else:
                target.numpy()[...] = state[name]


def read_state(model: nn.Module) -> dict[str, np.ndarray]:
    """A copy of the model's floating-point parameters and buffers as NumPy arrays, in the model's order."""
    fresh = sparse_layers(model)  # their dense weights are made for the state
    return {name: value.detach().numpy() if name in fresh else value.detach().numpy().copy() for name, value in _floating(model).items()}


def _dense_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Floating-point parameters and buffers, sparse weights apart."""
    held = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {name: t.detach() for name, t in held.items() if t.is_floating_point() and not name.endswith(".values")}


def _floating(model: nn.Module) -> dict[str, Tensor]:
    return {name: value for name, value in model.state_dict().items() if value.is_floating_point()}


def has_batch_statistics(model: nn.Module) -> bool:
    """True if a forward pass mixes samples (BatchNorm), so that batches must not be joined."""
    return any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())


def smallest_batch(model: nn.Module, input_shape: tuple[int, ...]) -> int:
    """The fewest samples that `model` can be trained on at once: 2 where a BatchNorm sees one value per channel of a sample, else 1."""
    norms, values = nn.modules.batchnorm._BatchNorm, []
    look_through(model, input_shape, (norms,), lambda module, x, output: values.append(x[0, 0].numel()))
    return 2 if values and min(values) == 1 else 1
