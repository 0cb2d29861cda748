"""What a scheme is: how masks change between the sessions of a task. As it is here: not at all, `masks.scheme = "static"`.

`schedule` says before which sessions masks change, and `needs` what a device computes for that; `plan` makes the update of it. Where a
fleet shares one mask, devices send `votes`, the server makes the update of those (`plan_by_votes`), and whoever holds the old masks does
the same (`redo`).
"""

from collections.abc import Iterable
from typing import ClassVar, Literal

import numpy as np

from sparcl_core.sparsity.densities import layer_sparsity
from sparcl_core.sparsity.masks import LayerSparsity, Masks, State
from sparcl_core.sparsity.schedule import Resting, Sessions, stage_length
from sparcl_core.sparsity.settings import MaskConfig
from sparcl_core.sparsity.tdm import TDMConfig
from sparcl_core.sparsity.update import Action, MaskUpdate

Places = dict[str, np.ndarray]  # sorted flat indices by tensor
Needs = Literal["nothing", "importance", "gradients", "owners"]


class Scheme:
    """Masks that stay as they began.

    What all schemes share.

    Attributes:
        needs: what an update is decided by besides the weights: `nothing`; `importance` of active weights (SparCL's I); `gradients`, the
            absolute ones of every weight, inactive ones included; or `owners`, whose each place is (`packnet`).
        begins_dense: all weights are active when the run begins, whatever its sparsity.
        draws_growth: what an update grows is drawn from its number (`MaskUpdate.growth`); else it says so itself (`MaskUpdate.grown`).
        config, tdm: sections [masks] and [tdm].
        sparsity: s of the network.
        task_epochs: K.
    """

    needs: ClassVar[Needs] = "nothing"
    draws_growth: ClassVar[bool] = True
    begins_dense: ClassVar[bool] = False

    def __init__(self, config: MaskConfig, sparsity: float, *, tdm: TDMConfig, task_epochs: int, seed: int):
        self.config, self.tdm, self.sparsity, self.task_epochs, self.seed = config, tdm, sparsity, task_epochs, seed

    @property
    def stage_epochs(self) -> int:
        """Epochs between updates, which a device that is alone trains in one session."""
        return stage_length(self.config.stage_epochs, self.task_epochs)

    @property
    def asks(self) -> bool:
        """Do devices compute what an update is decided by?"""
        return self.needs in ("importance", "gradients")

    def check(self) -> None:
        """Rules that need the sparsity and the length of a task too. Raises ValueError."""

    def schedule(self, session_epochs: int) -> Sessions:
        return Resting(self.task_epochs, session_epochs)

    def plan(self, what: Action, masks: Masks, state: State, found: State, *, number: int, epoch: int) -> MaskUpdate:
        """Decide one update.

        Args:
            what: `adapt`, or what else its schedule has.
            masks, state: current masks and weights.
            found: what the scheme `needs`, float64 in the tensors' shapes, 0 where it is not known; not read where it needs nothing.
            number: running number of the update in this run, the address of its draws.
            epoch: epochs of the task that are done.
        """
        raise NotImplementedError(f"{type(self).__name__} never changes masks")

    def votes(self, masks: Masks, state: State, found: State, epoch: int) -> Places:
        """What a device would do, as far as the server cannot know it by itself: the places that it would drop."""
        return self.plan("adapt", masks, state, found, number=0, epoch=epoch).dropped

    def plan_by_votes(self, masks: Masks, state: State, votes: State, *, number: int, epoch: int) -> MaskUpdate:
        """As `plan`, an `adapt`. `votes`: share of the voters that have named a place, in the tensors' shapes."""
        raise NotImplementedError(f"{type(self).__name__} asks nobody")

    def redo(self, masks: Masks, states: list[State], update: MaskUpdate) -> Masks:
        """The masks after `update`; dropped places are set to 0 in every one of `states` (weights, residuals), in place.

        Raises:
            ValueError: if the update was made for other masks.
        """
        raise NotImplementedError(f"{type(self).__name__} never changes masks")

    def gradients_held(self, sizes: Iterable[int]) -> int:
        """Weights of sparse tensors, of these `sizes`, whose gradients an update holds at once besides what a step does.

        Where all weights are looked at: over one batch a layer is ranked and forgotten before the next, as RigL's paper proposes; over
        several the gradients of all layers add up.
        """
        if self.needs != "gradients":
            return 0
        return max(sizes, default=0) if self.config.batches == 1 else sum(sizes)

    def layer_sparsity(self, masks: Masks) -> LayerSparsity:
        """Of every layer, as the run began."""
        return layer_sparsity(self.config.densities, {name: mask.shape for name, mask in masks.items()}, self.sparsity)
