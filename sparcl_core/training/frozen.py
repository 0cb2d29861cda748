"""Networks beside the one that is trained: loaded once a session, gone through without gradients, and counted."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from sparcl_core.costs.flops import Flops, Layers, per_sample
from sparcl_core.networks.masked import Network
from sparcl_core.sparsity.masks import Masks, State, count_active


class Frozen:
    """One such network, in evaluation mode: [B, C, H, W] -> logits [B, classes].

    Attributes:
        samples: that went through it since it was loaded.
    """

    def __init__(self, network: Network, layers: Layers):
        self.network, self.layers = network, layers
        self.samples, self._active = 0, {}

    def load(self, state: State, masks: Masks) -> None:
        self.network.load(state, masks)
        self.network.model.eval()
        self.samples, self._active = 0, count_active(masks)

    def __call__(self, x: Tensor) -> Tensor:
        self.samples += len(x)
        with torch.no_grad():
            return self.network.model(x)

    def features_of(self, x: np.ndarray) -> np.ndarray:
        """What its classifier is given, [N, D], of images [N, C, H, W] uint8."""
        self.samples += len(x)
        return self.network.features_of(x)[0]

    @property
    def flops(self) -> Flops:
        """Of all that went through it since it was loaded."""
        return per_sample(self.layers, self._active, self._active).teach(self.samples)


class FrozenNetworks:
    """As many as a session asks for; the models are made once and used again by the next."""

    def __init__(self, make: Callable[[], Network], layers: Layers):
        self._make, self._layers = make, layers
        self._made: list[Frozen] = []
        self._used = 0

    def begin(self) -> None:
        """A session begins: those of the one before are free."""
        self._used = 0

    def freeze(self, state: State, masks: Masks) -> Frozen:
        """A network of these weights, until the next session begins."""
        if self._used == len(self._made):
            self._made.append(Frozen(self._make(), self._layers))
        frozen = self._made[self._used]
        self._used += 1
        frozen.load(state, masks)
        return frozen

    @property
    def samples(self) -> int:
        """That went through the networks of this session."""
        return sum(frozen.samples for frozen in self._made[: self._used])

    @property
    def flops(self) -> Flops:
        """Of those samples."""
        return sum((frozen.flops for frozen in self._made[: self._used]), Flops())
