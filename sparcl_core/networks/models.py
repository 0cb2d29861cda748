"""Models: built from their settings, their first weights, and their tensors as a state that is loaded and read.

Those of ours are in `.small`, `.resnet`, `.mobile` and `.transformer`; any other `nn.Module` comes by `model.name`, see `.own`. Which of
their weights may be sparse: `.sparse_rule`.
"""

import math

import numpy as np
import torch
from torch import Tensor, nn

from sparcl_core.codec import Layout
from sparcl_core.config import MODELS, MethodConfig, ModelConfig
from sparcl_core.inputs import InputSpec
from sparcl_core.kernels.convert import sparse_layers, trainable
from sparcl_core.networks.own import make_own
from sparcl_core.networks.sparse_rule import sparse_names
from sparcl_core.probe import look_through
from sparcl_core.seeding import generator

DTYPES = {"float32": torch.float32, "float64": torch.float64}
_BATCH_NORM = nn.modules.batchnorm._BatchNorm


def make_layout(model: nn.Module, method: MethodConfig, input_shape: tuple[int, ...]) -> Layout:
    """Every parameter and every running statistic of `model`; masked are those that are sparse."""
    shapes = {name: value.shape for name, value in read_state(model).items()}
    statistics = shapes.keys() - dict(model.named_parameters()).keys()
    masked = sparse_names(model, method.model, input_shape) if method.is_sparse else ()
    return Layout(shapes, frozenset(masked), frozenset(statistics))


def build_model(config: ModelConfig, input_shape: tuple[int, ...], num_classes: int, seed: int = 0) -> nn.Module:
    """The model with the weights that it gives itself, from torch's generator as `seed` sets it; `first_weights` makes those that count.

    Weights lie channels-last in memory: a training step of ResNet-18 width 20 takes 0.4 of the time on a CPU with AVX-512.

    Raises:
        ValueError: if the images are too small for the model, or a model that is not of ours cannot be made.
    """
    make = MODELS.find(config.name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(generator(seed, "model").integers(2**63)))
        model = make(input_shape, num_classes, config) if config.is_ours else make_own(make, config, input_shape, num_classes)
    return model.to(DTYPES[config.dtype], memory_format=torch.channels_last)


def first_weights(config: ModelConfig, model: nn.Module, inputs: InputSpec, seed: int) -> dict[str, np.ndarray]:
    """State for a new run of `model`, which has been built by `config`.

    Convolutional nets and the mlp of ours begin as `initial_weights` draws them; the transformer, and every model that is not of ours, with
    the weights that it gives itself, torch's generator set by `seed`.
    """
    if config.is_ours and config.name != "vit-tiny":
        return initial_weights(model, seed)
    return read_state(build_model(config, inputs.shape, inputs.num_classes, seed))


def initial_weights(model: nn.Module, seed: int) -> dict[str, np.ndarray]:
    """He-normal weights (variance 2 / fan-in, that of a channel's group where there are groups), norms at one, biases at zero.

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
    norms = [m for m in model.modules() if isinstance(m, _BATCH_NORM)]
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
    """Copy `state` into the model's parameters and running statistics, in place; keys and shapes must match exactly.

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
    """A copy of the model's parameters and running statistics as NumPy arrays, in the model's order."""
    fresh = sparse_layers(model)  # their dense weights are made for the state
    return {name: value.detach().numpy() if name in fresh else value.detach().numpy().copy() for name, value in _floating(model).items()}


def _dense_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Tensors of a state, sparse weights apart."""
    held, sparse = trainable(model) | _statistics(model), sparse_layers(model)
    return {name: tensor.detach() for name, tensor in held.items() if name not in sparse}


def _floating(model: nn.Module) -> dict[str, Tensor]:
    own = trainable(model).keys() | _statistics(model).keys()
    return {name: value for name, value in model.state_dict().items() if name in own}


def _statistics(model: nn.Module) -> dict[str, Tensor]:
    """Running statistics of BatchNorm. Other buffers are constants of the model (see `.own`)."""
    norms = {name: module for name, module in model.named_modules() if isinstance(module, _BATCH_NORM)}
    found = ((f"{name}.{key}".lstrip("."), b) for name, norm in norms.items() for key, b in norm.named_buffers(recurse=False))
    return {name: buffer for name, buffer in found if buffer.is_floating_point()}


def has_batch_statistics(model: nn.Module) -> bool:
    """True if a forward pass mixes samples (BatchNorm), so that batches must not be joined."""
    return any(isinstance(m, _BATCH_NORM) for m in model.modules())


def smallest_batch(model: nn.Module, input_shape: tuple[int, ...]) -> int:
    """The fewest samples that `model` can be trained on at once: 2 where a BatchNorm sees one value per channel of a sample, else 1."""
    values: list[int] = []
    look_through(model, input_shape, (_BATCH_NORM,), lambda module, x, output: values.append(x[0, 0].numel()))
    return 2 if values and min(values) == 1 else 1
