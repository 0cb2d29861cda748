"""Memory that a device needs to train, in bytes, by formula from shapes and exact mask counts.

What a device that stores only what it must holds, counted by formula whatever the machine that simulates it holds:
- weights: active weights and everything dense, 4 bytes each (8 in float64);
- masks: one bit per maskable weight, and one bit per active weight for the gradient mask;
- gradients: those of the gradient mask (all active weights in a step that draws it) and of everything dense; in a round in which RigL
  ranks inactive weights, those of the largest sparse layer, or of all of them, if these are more (`Scheme.gradients_held`);
- activations: what autograd keeps for backward, measured on the dense model per sample, times the samples of a forward pass (the parts
  of a loss that do not share one run backward one after the other);
- method: what the learning method keeps: its buffer, raw inputs, labels (8 bytes) and logits, and its arrays;
- federation: the base that the update is taken against and the residual of lossy encoding, both over the active set;
- codec: what coding an update takes, 2 bytes of symbol for each of its values and at most the value itself in the output.
"""

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from sparcl_core.replay.memory import Memory

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """Bytes by kind."""

    weights: int
    masks: int
    gradients: int
    activations: int
    method: int
    federation: int
    codec: int

    @property
    def total(self) -> int:
        return sum(asdict(self).values())


def activation_bytes(model: "nn.Module", input_shape: tuple[int, ...]) -> int:
    """Bytes that autograd keeps for the backward pass of one sample, parameters and buffers not counted.

    Storages are counted once however many operations keep them. Measured as the difference between a pass with three
    samples and one with two, so that what does not grow with the batch drops out.
    """
    import torch  # late, as in `probe.look_through`

    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}

    def kept(batch: int) -> int:
        storages: dict[int, tuple[int, object]] = {}

        def pack(tensor):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                storages[storage.data_ptr()] = (storage.nbytes(), storage)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            model(torch.zeros(batch, *input_shape, dtype=next(model.parameters()).dtype))
        return sum(nbytes for nbytes, _ in storages.values())

    statistics = {name: value.clone() for name, value in model.named_buffers()}
    training = model.training
    try:
        model.train()
        return kept(3) - kept(2)
    finally:
        model.train(training)
        for name, value in model.named_buffers():
            value.copy_(statistics[name])


@dataclass(frozen=True)
class Held:
    """What a dense model holds: elements per parameter, bytes of an element and of all buffers."""

    parameters: dict[str, int]
    itemsize: int
    buffer_bytes: int

    @classmethod
    def of(cls, model: "nn.Module") -> "Held":
        parameters = {name: p.numel() for name, p in model.named_parameters()}
        buffers = sum(b.numel() * b.element_size() for b in model.buffers())
        return cls(parameters, next(model.parameters()).element_size(), buffers)

    def active_weights(self, active: dict[str, int]) -> int:
        """Weights that a device holds with `active` of them in each sparse tensor: those, and all of the dense tensors."""
        return sum(size for name, size in self.parameters.items() if name not in active) + sum(active.values())

    def packed_bytes(self, active: dict[str, int]) -> int:
        """What one such network takes at most beside the one that is trained, as `sparsity.packed` packs it."""
        bits = sum(math.ceil(self.parameters[name] / 8) for name in active)
        return self.active_weights(active) * self.itemsize + self.buffer_bytes + bits


def footprint(
    model: Held,
    *,
    active: dict[str, int],
    updated: dict[str, int],
    activations: int,
    method_bytes: int,
    federated: bool,
    ranked: int = 0,
) -> Footprint:
    """Memory of one device.

    Args:
        active, updated: exact counts of the weight and gradient masks per sparse tensor (none: a dense device).
        activations: bytes that are alive at once, `activation_bytes` for each sample of a forward pass.
        method_bytes: what the learning method keeps, `kept_bytes` of a device's memory.
        ranked: weights of sparse tensors whose gradients a ranking holds at once, in a round that has one.
    """
    itemsize, held = model.itemsize, model.active_weights(active)
    maskable = sum(model.parameters[name] for name in active)
    return Footprint(
        weights=held * itemsize + model.buffer_bytes,
        masks=math.ceil(maskable / 8) + math.ceil(sum(active.values()) / 8) if active else 0,
        gradients=(held - sum(active.values()) + max(sum(updated.values()), ranked)) * itemsize,
        activations=activations,
        method=method_bytes,
        federation=2 * held * itemsize if federated else 0,
        codec=held * (2 + itemsize) if federated else 0,
    )


def kept_bytes(memory: Memory) -> int:
    """What the learning method and its correction keep on a device: buffer, arrays. Data removal's few bytes a sample are not counted."""
    buffer, arrays = memory.buffer, (*memory.arrays.values(), *memory.corrected.values())
    return buffer.x.nbytes + buffer.y.nbytes + buffer.logits.nbytes + sum(array.nbytes for array in arrays)
