"""One update of all masks, as a value, and what every scheme does with it: dropped weights become 0, grown ones start at 0."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from sparcl_core.seeding import generator
from sparcl_core.sparsity.masks import Masks, State

Action = Literal["rest", "grow", "adapt"]


@dataclass(frozen=True)
class MaskUpdate:
    """One update of all masks, as a value: its running number, what it does, and what it drops.

    Attributes:
        dropped: sorted flat indices into each tensor.
        device: whose own masks they are; None: those that all share.
        grown: likewise, of places that were inactive after the drop; None where growth is drawn from number and device. Then whoever holds
            the old masks, the settings and the seed can redo the update: growth costs no positions on the wire.
    """

    number: int
    what: Action
    dropped: dict[str, np.ndarray]
    device: int | None = None
    grown: dict[str, np.ndarray] | None = None

    def growth(self, seed: int, name: str) -> np.random.Generator:
        """Where the growth of one tensor is drawn from."""
        if self.device is None:
            return generator(seed, "grow", self.number, name)
        return generator(seed, "grow", "device", self.device, self.number, name)


def surviving(masks: Masks, update: MaskUpdate) -> Masks:
    """The masks after the drop and before the growth.

    Raises:
        ValueError: if a place to be dropped is not active: the update was made for other masks.
    """
    result = {}
    for name, mask in masks.items():
        kept = mask.copy()
        if not kept.reshape(-1)[update.dropped[name]].all():
            raise ValueError(f"update {update.number} drops inactive places of {name}: it was made for other masks")
        kept.reshape(-1)[update.dropped[name]] = False
        result[name] = kept
    return result


def drop_(masks: Masks, states: list[State], update: MaskUpdate) -> Masks:
    """As `surviving`; dropped places are set to 0 in every one of `states` (weights, residuals), in place.

    Dropped means after the drop and before the growth: a place that is dropped and grown back restarts at 0.
    """
    result = surviving(masks, update)
    for name, kept in result.items():
        for state in states:
            state[name][~kept] = 0
    return result
