"""The network of a learner: one model that is made once and loaded with the weights and masks of device after device."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from sparcl_core.config import MethodConfig
from sparcl_core.inputs import InputSpec, normalise
from sparcl_core.kernels.choice import able_layers, choices
from sparcl_core.kernels.convert import convert, sparse_layers, trainable
from sparcl_core.kernels.modules import MaskedLinear, Sparse, SparseLinear
from sparcl_core.networks.models import DTYPES, build_model, load_state_, make_layout, read_state
from sparcl_core.seeding import Address, generator
from sparcl_core.sparsity.masks import Masks, State


class Network:
    """A model with names for its tensors.

    Attributes:
        model: dense until masks are loaded first, from then on a sparse one (`kernels.convert`).
        layout: names and shapes of the dense model's tensors.
        parameters: trainable tensors by their names in the dense model; of a sparse one, the vector of its active weights.
        sparse: the sparse layers by the names of their weights; empty while no masks are loaded.
    """

    def __init__(self, method: MethodConfig, inputs: InputSpec):
        self.inputs, self.dtype, self._is_ours = inputs, DTYPES[method.model.dtype], method.model.is_ours
        self.model: nn.Module = build_model(method.model, inputs.shape, inputs.num_classes)
        self.layout = make_layout(self.model, method, inputs.shape)
        masked = tuple(name for name in self.layout.shapes if name in self.layout.masked)
        self._choices = choices(method.kernels, masked, self.dtype, able_layers(self.model, masked)) if masked else {}
        self.sparse: dict[str, Sparse] = {}
        self.parameters: dict[str, nn.Parameter] = trainable(self.model)
        self._classifier: nn.Module | None = None

    def load(self, state: State, masks: Masks) -> None:
        """Let the model be `state` over `masks`, in training mode, every gradient wanted."""
        if not masks:
            self.sparse = {}
        elif not sparse_layers(self.model):
            convert(self.model, masks, {name: self._choices[name] for name in masks})
            self.sparse = sparse_layers(self.model)
        else:
            for name, layer in self.sparse.items():
                layer.set_mask(masks[name])
        self.parameters = trainable(self.model)
        for parameter in self.parameters.values():
            parameter.requires_grad_(True)
        load_state_(self.model, state)
        self.model.train()

    def hold(self, names: set[str]) -> None:
        """Compute no gradients of these tensors until the next `load`; BatchNorm whose statistics are among them normalises by these."""
        for name in names & self.parameters.keys():
            self.parameters[name].requires_grad_(False)
        for name, module in self.model.named_modules():
            if f"{name}.running_mean" in names:
                module.eval()

    def read(self) -> State:
        """A copy of every tensor of the layout, sparse ones whole."""
        state = read_state(self.model)
        return {name: state[name] for name in self.layout.shapes}

    def tensors(self) -> dict[str, Tensor]:
        """Parameters and floating-point buffers; sparse weights as they are."""
        buffers = {name: value for name, value in self.model.named_buffers() if value.is_floating_point()}
        return {name: parameter.detach() for name, parameter in self.parameters.items()} | buffers

    @contextmanager
    def drawing(self, seed: int, *address: Address) -> Iterator[None]:
        """Meanwhile torch's own generator, from which a model draws its dropout, begins at this address; behind it, it is as it was.

        Models of ours draw nothing.
        """
        if self._is_ours:
            yield
            return
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(generator(seed, "model", *address).integers(2**63)))
            yield

    def want_gradients(self, masks: dict[str, Tensor] | None) -> None:
        """Which weight gradients of sparse tensors are computed from now on: those of `masks` (bool [active]), or all."""
        for name, layer in self.sparse.items():
            layer.set_updated(None if masks is None else masks[name].nonzero().squeeze(1).numpy())

    def spread(self, name: str, active: Tensor, dtype: type) -> np.ndarray:
        """A sparse tensor of its shape, from what lies at its active places; 0 elsewhere."""
        whole = np.zeros(self.layout.shapes[name], dtype)
        whole.reshape(-1)[self.sparse[name].places.numpy()] = active.numpy()
        return whole

    def gather(self, name: str, whole: np.ndarray) -> Tensor:
        """An array of a tensor's shape as its parameter lies here: the values at active places of a sparse one. A copy."""
        places = self.sparse[name].places.numpy() if name in self.sparse else slice(None)
        return torch.from_numpy(whole.reshape(-1)[places].copy()).reshape(self.parameters[name].shape)

    def outputs(self, x: np.ndarray) -> np.ndarray:
        """Logits [N, classes] of images [N, C, H, W] uint8, in evaluation mode; the mode of the model is left as it was."""
        return self._through(x, lambda fed: (self.model(fed),))[0]

    def features_of(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Features [N, D], what the last linear layer is given, and logits [N, classes]; otherwise as `outputs`."""
        return self._through(x, self.features)

    def _through(self, x: np.ndarray, run: Callable[[Tensor], tuple[Tensor, ...]], batch: int = 128) -> tuple[np.ndarray, ...]:
        training = self.model.training
        self.model.eval()
        try:
            with torch.inference_mode():
                parts = [run(self.feed(x[at : at + batch])) for at in range(0, len(x), batch)]
        finally:
            self.model.train(training)
        return tuple(torch.cat(part).numpy() for part in zip(*parts, strict=True))

    def feed(self, x: np.ndarray) -> Tensor:
        """Images [B, C, H, W] uint8 as the model is fed them, normalised."""
        return normalise(torch.from_numpy(x), self.inputs, self.dtype)

    def features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What the classifier, the last linear layer that a forward pass runs, is given, [B, D], and the logits, [B, classes].

        One forward pass in the mode that the model is in; gradients flow through both.

        Args:
            x: as `feed` gives it.

        Raises:
            ValueError: if the model has no such layer, or it is given something else than a vector for each sample.
        """
        last: list[Tensor] = []

        def keep(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            last[:], self._classifier = inputs[:1], layer

        linear = [module for module in self.model.modules() if isinstance(module, nn.Linear | MaskedLinear | SparseLinear)]
        handles = [module.register_forward_pre_hook(keep) for module in linear]
        try:
            logits = self.model(x)
        finally:
            for handle in handles:
                handle.remove()
        if not last or last[0].dim() != 2:
            found = f"is given {tuple(last[0].shape)}" if last else "is none"
            raise ValueError(f"the last linear layer of this model {found}: features are what a classifier is given, one vector a sample")
        return last[0], logits

    def classify(self, features: Tensor) -> Tensor:
        """Logits [B, classes] of features [B, D], by the classifier that `features` has found: ask that first.

        Raises:
            ValueError: if it has not been asked.
        """
        if self._classifier is None:
            raise ValueError("the classifier is not known yet: let samples go through `features` before, which finds it")
        return self._classifier(features)
