"""What the devices hold, and what is sent to bring each of them up to date.

The server keeps its weights w and the broadcast model w^, what devices hold: w^ <- w^ + Q(w - w^), one encoding for all; the
rest w - w^ stays here and goes out with the next version. Every version's payloads are stored: a stale device gets them
in sequence, or w^ whole if that is smaller; a device never seen gets it whole. Payloads that the whole model undercuts are
forgotten.
"""

import numpy as np

from sparcl_core import codec, tdm
from sparcl_core.codec import Layout, SparseTensor, Values
from sparcl_core.masks import Masks, State


class Broadcast:
    """The broadcast side of a run; `version` counts published models, `mask_version` mask updates."""

    def __init__(self, weights: State, masks: Masks, layout: Layout, values: Values):
        self.layout, self.values = layout, values
        self.held = {name: value.copy() for name, value in weights.items()}
        self.masks = masks
        self.version = self.mask_version = 0
        self._steps: dict[int, list[bytes]] = {}
        self._pending_mask: list[bytes] = []
        self._whole: bytes | None = None

    def update_masks(self, weights: State, update: tdm.MaskUpdate, config: tdm.TDMConfig, sparsity: float, seed: int) -> None:
        """Change the masks; dropped places of `weights` and of the held model are set to 0, in place."""
        dropped = {name: SparseTensor(places, np.empty(0)) for name, places in update.dropped.items()}
        self._pending_mask.append(codec.encode(update.what, self.layout, dropped, self.masks, "f32", self.version, update.number))
        self.masks = tdm.update_masks(self.masks, [weights, self.held], update, config, sparsity, seed)
        self.mask_version = update.number

    def publish(self, weights: State) -> None:
        """Make the next version: encode what `weights` differ from the held model, and move the held model by what was encoded."""
        self.version += 1
        tensors = {}
        if self.version > 1:
            for name, value in weights.items():
                delta = (value - self.held[name]).reshape(-1)
                places = np.flatnonzero(delta)
                tensors[name] = SparseTensor(places, delta[places])
                self.held[name].reshape(-1)[places] += codec.quantised(delta[places], self.values).astype(value.dtype)
            delta = codec.encode("delta", self.layout, tensors, self.masks, self.values, self.version, self.mask_version)
            self._steps[self.version] = [*self._pending_mask, delta]
        self._pending_mask = []
        self._whole = None
        self._forget()

    def payloads(self, version: int) -> tuple[bytes, ...]:
        """What a device that holds `version` (0: nothing) needs; one shared object for all devices of the same version."""
        missing = range(version + 1, self.version + 1)
        if version == 0 or any(number not in self._steps for number in missing):
            return (self.whole,)
        steps = tuple(payload for number in missing for payload in self._steps[number])
        return steps if sum(map(len, steps)) <= len(self.whole) else (self.whole,)

    @property
    def whole(self) -> bytes:
        """The held model, lossless, masks included."""
        if self._whole is None:
            tensors = {}
            for name, value in self.held.items():
                flat = value.reshape(-1)
                places = np.flatnonzero(self.masks[name]) if name in self.masks else np.arange(flat.size)
                tensors[name] = SparseTensor(places, flat[places])
            lossless = "f64" if next(iter(self.held.values())).dtype == np.float64 else "f32"
            self._whole = codec.encode("whole", self.layout, tensors, {}, lossless, self.version, self.mask_version)
        return self._whole

    def _forget(self) -> None:
        total = 0
        for number in sorted(self._steps, reverse=True):
            total += sum(map(len, self._steps[number]))
            if total > len(self.whole):
                del self._steps[number]
