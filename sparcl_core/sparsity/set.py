"""SET, sparse evolutionary training (Mocanu et al., Nature Communications 2018, algorithm 1).

At every update a share zeta of the smallest positive and of the largest negative weights of a layer is removed (those closest to 0 of
either sign), and as many connections are added at random places. It needs no gradients and, in a federation, no reports: the server ranks
its own weights, and everybody draws the same growth.

Differences: from the paper, added weights start at 0, not at random values, and a task's last epoch removes nothing without adding it back;
densities are uniform unless `masks.densities = "erk"` says otherwise; shares are rounded, halves up. As in the released code, active
weights of exactly 0 are removed, too. A place that was removed may be drawn again.
"""

import math

import numpy as np

from sparcl_core.sparsity.masks import Masks, State, grow, highest
from sparcl_core.sparsity.schedule import Intervals
from sparcl_core.sparsity.scheme import Scheme
from sparcl_core.sparsity.update import Action, MaskUpdate, drop_


def removed(values: np.ndarray, share: float) -> np.ndarray:
    """Which of the active weights `values` [n] go: bool [n]. Of equal ones the higher index does."""
    gone = values == 0
    for sign in (values > 0, values < 0):
        places = np.flatnonzero(sign)
        gone[places[~highest(np.abs(values[places]), places.size - math.floor(share * places.size + 0.5))]] = True
    return gone


class SET(Scheme):
    """Drops the smallest weights of either sign, and grows at random (Mocanu et al. 2018)."""

    def schedule(self, session_epochs: int) -> Intervals:
        return Intervals(self.task_epochs, session_epochs, self.stage_epochs, 1.0 if self.config.until is None else self.config.until)

    def plan(self, what: Action, masks: Masks, state: State, found: State, *, number: int, epoch: int) -> MaskUpdate:
        dropped = {}
        for name, mask in masks.items():
            places = np.flatnonzero(mask)
            dropped[name] = places[removed(state[name].reshape(-1)[places], self.config.exchange)]
        return MaskUpdate(number, what, dropped)

    def redo(self, masks: Masks, states: list[State], update: MaskUpdate) -> Masks:
        kept = drop_(masks, states, update)
        return {name: grow(mask, update.dropped[name].size, update.growth(self.seed, name)) for name, mask in kept.items()}
