"""RigL, the rigged lottery (Evci et al., ICML 2020, section 3 and algorithm 1).

At every update a layer drops the k active weights of smallest magnitude and grows the k places of largest gradient magnitude among those
that are not active after the drop, at 0; k = f(t) x active weights, f(t) = alpha / 2 (1 + cos(pi t / T_end)), alpha = `masks.exchange`, and
T_end = `masks.until` of the training, 75 %. Gradients are those of the whole loss, replay included, over `masks.batches` batches: they are
dense, at inactive places too, which is what RigL costs.

A stream of tasks: t and T_end are epochs of the task, so that the cosine begins anew with each.

In a federation with one mask the server drops by its own weights. For the growth every device names the k places that it would grow itself,
after its own drop; the most named are grown, whatever a device weighs, and where equally many name a place chance decides, from an address
of the update. With masks of the devices' own (`federation.mask = "local"`) each device does all of it by itself, as in FedDST (Bibikar et
al. 2022).

Differences: densities are uniform unless `masks.densities = "erk"`, the paper's default; counts are rounded, halves up, and a layer
exchanges at most as many weights as it has inactive ones; a weight that is dropped and grown back in one update restarts at 0, where
the released code keeps its value; no momentum is kept, as there is none.
"""

import math

import numpy as np

from sparcl_core.sparsity.masks import Masks, State, highest
from sparcl_core.sparsity.schedule import Intervals
from sparcl_core.sparsity.scheme import Places, Scheme
from sparcl_core.sparsity.update import Action, MaskUpdate, drop_, surviving


class RigL(Scheme):
    """Drops the smallest weights, and grows where gradients are largest (Evci et al. 2020)."""

    needs = "gradients"
    draws_growth = False

    @property
    def until(self) -> float:
        return 0.75 if self.config.until is None else self.config.until

    def schedule(self, session_epochs: int) -> Intervals:
        return Intervals(self.task_epochs, session_epochs, self.stage_epochs, self.until)

    def share(self, epoch: int) -> float:
        """f(t), share of the active weights that an update exchanges behind so many epochs of the task."""
        return self.config.exchange / 2 * (1 + math.cos(math.pi * min(1.0, epoch / (self.until * self.task_epochs))))

    def plan(self, what: Action, masks: Masks, state: State, found: State, *, number: int, epoch: int) -> MaskUpdate:
        """`found`: |dL/dw| everywhere."""
        return self._grown(masks, MaskUpdate(number, what, self._smallest(masks, state, epoch)), found)

    def votes(self, masks: Masks, state: State, found: State, epoch: int) -> Places:
        """The places that the device would grow."""
        return self.plan("adapt", masks, state, found, number=0, epoch=epoch).grown

    def plan_by_votes(self, masks: Masks, state: State, votes: State, *, number: int, epoch: int) -> MaskUpdate:
        update = MaskUpdate(number, "adapt", self._smallest(masks, state, epoch))
        ranks = {}
        for name, mask in masks.items():
            order = np.lexsort((update.growth(self.seed, name).random(mask.size), votes[name].reshape(-1)))
            ranks[name] = np.empty(mask.size)
            ranks[name][order] = np.arange(mask.size)
        return self._grown(masks, update, ranks)

    def redo(self, masks: Masks, states: list[State], update: MaskUpdate) -> Masks:
        result = drop_(masks, states, update)
        for name, mask in result.items():
            mask.reshape(-1)[update.grown[name]] = True
        return result

    def _smallest(self, masks: Masks, state: State, epoch: int) -> Places:
        """The active weights that go."""
        dropped = {}
        for name, mask in masks.items():
            places = np.flatnonzero(mask)
            count = min(math.floor(self.share(epoch) * places.size + 0.5), mask.size - places.size)
            dropped[name] = places[~highest(np.abs(state[name].reshape(-1)[places]), places.size - count)]
        return dropped

    @staticmethod
    def _grown(masks: Masks, update: MaskUpdate, scores: State) -> MaskUpdate:
        """`update` with as many places grown as it drops, those of the highest `scores`; of equal ones the lower flat index."""
        grown = {}
        for name, kept in surviving(masks, update).items():
            free = np.flatnonzero(~kept)
            values = scores[name].reshape(-1)[free]
            if not np.isfinite(values).all():
                raise ValueError(f"a gradient of {name} is NaN or infinite: places cannot be ranked")
            grown[name] = free[highest(values, update.dropped[name].size)]
        return MaskUpdate(update.number, update.what, update.dropped, update.device, grown)
