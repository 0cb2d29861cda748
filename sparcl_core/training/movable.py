"""Which weights a session may move: all but those that its method has frozen (`LearningMethod.frozen`)."""

from dataclasses import replace

import torch
from torch import Tensor

from sparcl_core.costs.flops import LayerShape, SampleFlops, per_sample
from sparcl_core.methods.given import Running
from sparcl_core.sparsity.masks import count_active
from sparcl_core.training.setup import Setup


class Movable:
    """Of the network as it is loaded for the session.

    Attributes:
        frozen: as the method gives it.
        free: the weights that may move, bool over the active places, of sparse tensors of which some are frozen.
        wanted: these, and those whose gradients are computed all the same (`LearningMethod.watched`).
    """

    def __init__(self, setup: Setup, running: Running):
        network, masks = setup.network, running.masks
        self.network, self.layers, self.active, classifier = network, setup.layers, count_active(masks), setup.classifier
        self.frozen = setup.method.frozen(running, classifier)
        self.free = {name: ~network.gather(name, self.frozen[name]) for name in masks if name in self.frozen}
        watched = setup.method.watched(running)
        self.wanted = {name: free | network.gather(name, watched[name]) if name in watched else free for name, free in self.free.items()}
        held = [name for name, kept in self.frozen.items() if name not in masks and kept.all()]
        network.hold(set(held))
        self._no_gradient = dict.fromkeys(held, 0)
        counted = {layer.name for layer in setup.layers if isinstance(layer, LayerShape)}
        rest = set(network.parameters) - counted - set(classifier)  # biases, normalisation
        self._is_quiet = rest <= set(held) and len(counted) == len(setup.layers)
        dense = [name for name in network.parameters if name in self.frozen and name not in masks]
        self._moving = {name: ~network.gather(name, self.frozen[name]) for name in dense}
        self._parameters = list(network.parameters.values())
        self._wanted = [parameter for parameter in self._parameters if parameter.requires_grad]
        self.want_all()

    @property
    def every(self) -> dict[str, Tensor]:
        """The weights of sparse tensors whose gradients are computed, bool over their active places."""
        return {name: torch.ones(count, dtype=torch.bool) for name, count in self.active.items()} | self.wanted

    def want_all(self) -> None:
        """From now on compute the gradients of all weights that are wanted."""
        self.network.want_gradients(self.wanted or None)

    def cost(self, updated: dict[str, Tensor]) -> SampleFlops:
        """Of a sample, with the gradients of these weights of sparse tensors, and of those of dense ones that may move."""
        counts, is_first, layers = {name: int(mask.sum()) for name, mask in updated.items()} | self._no_gradient, self._is_quiet, []
        for layer in self.layers:  # where nothing has moved so far, nobody asks for the gradient of a layer's input
            layers.append(replace(layer, first=True) if is_first else layer)
            is_first = is_first and counts.get(layer.name, 1) == 0
        return per_sample(tuple(layers), self.active, counts)

    def gradients(self, loss: Tensor, retain_graph: bool) -> list[Tensor]:
        """Of all parameters, in their order; 0 where none is computed."""
        found = iter(torch.autograd.grad(loss, self._wanted, retain_graph=retain_graph))
        return [next(found) if parameter.requires_grad else torch.zeros_like(parameter) for parameter in self._parameters]

    def hold_(self, name: str, gradient: Tensor) -> None:
        """Set the gradient of a dense tensor to 0 where it is frozen, in place."""
        if name in self._moving:
            gradient.mul_(self._moving[name])
