"""Which scheme `masks.scheme` names; and SparCL's own as one."""

from sparcl_core.foreign import printable
from sparcl_core.sparsity import tdm
from sparcl_core.sparsity.masks import Masks, State
from sparcl_core.sparsity.scheme import Scheme
from sparcl_core.sparsity.settings import SCHEMES, MaskConfig
from sparcl_core.sparsity.update import Action, MaskUpdate


def make_scheme(config: MaskConfig, tdm: tdm.TDMConfig, sparsity: float, *, task_epochs: int, seed: int) -> Scheme:
    """The scheme of a run; a dense network has no masks that could change.

    Raises:
        ValueError: if there is no such scheme, or what the name stands for is none.
    """
    found = SCHEMES.find(config.scheme) if sparsity else Scheme
    if not (isinstance(found, type) and issubclass(found, Scheme)):
        shown = printable(repr(config.scheme), 120)
        raise ValueError(f"masks.scheme is {shown}, which is no scheme: a class derived from sparcl_core.sparsity.scheme.Scheme")
    return found(config, sparsity, tdm=tdm, task_epochs=task_epochs, seed=seed)


class TDM(Scheme):
    """SparCL's own: drops by weight and gradient, grows at random, and at the start of a task (Wang et al. 2022)."""

    needs = "importance"

    @property
    def stage_epochs(self) -> int:
        return tdm.stage_length(self.tdm, self.task_epochs)

    def check(self) -> None:
        tdm.check(self.tdm, self.sparsity, self.task_epochs)
        if self.tdm.enabled and self.config.densities == "global":
            raise ValueError(
                "masks.densities is 'global', but masks.scheme 'tdm': TDM returns every layer to a density that is known beforehand; "
                "take masks.densities=uniform or erk, or masks.scheme=static, set or rigl"
            )

    def schedule(self, session_epochs: int) -> tdm.Schedule:
        return tdm.Schedule(self.tdm, self.sparsity, self.task_epochs, session_epochs)

    def plan(self, what: Action, masks: Masks, state: State, found: State, *, number: int, epoch: int) -> MaskUpdate:
        return tdm.plan_update(what, masks, state, found, config=self.tdm, sparsity=self.layer_sparsity(masks), number=number)

    def plan_by_votes(self, masks: Masks, state: State, votes: State, *, number: int, epoch: int) -> MaskUpdate:
        return tdm.plan_by_votes(masks, state, votes, config=self.tdm, sparsity=self.layer_sparsity(masks), number=number)

    def redo(self, masks: Masks, states: list[State], update: MaskUpdate) -> Masks:
        return tdm.update_masks(masks, states, update, config=self.tdm, sparsity=self.layer_sparsity(masks), seed=self.seed)
