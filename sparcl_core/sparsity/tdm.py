"""TDM, task-aware dynamic masking: the weight mask breathes with the tasks (SparCL, section 3.1).

Within a task of K epochs with stages u = floor(epoch / dk), at the first epoch of a stage:
- u = 0, every task but the first (inter-task): grow p_inter of the layer at random, at value 0 -> sparsity s - p_inter.
- 1 <= u < last (intra-task): shrink to sparsity s + p_intra by lowest importance, grow at random (value 0) back to s.
  At u = 1 this also undoes the inter-task growth.
- u = last: nothing, the mask rests while the weights are fine-tuned.

Importance of an active weight, CWI = |w| + I, where I is computed by `sparcl_core.sparsity.importance`:
- `merged` (released code, default): I = alpha * |dL/dw|, L the whole loss, alpha = 0.5;
- `two-term` (paper): I = alpha * |dL~(D_t)/dw| + beta * |dL(B)/dw|.

Differences from the released code: the first task grows nothing at its start, where the code grows p_inter there, too; the gradient is an
unmasked mean over `batches` batches, computed for the purpose, where the code takes what the last batch of the epoch before has left after
gradient masking (`gradient`).

p_inter and p_intra are shares of the layer, as in the released code (0.01 at s = 0.75). A weight that was dropped in an
update may be grown back in the same update: growth draws from all weights that are inactive after the drop.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from sparcl_core.sparsity.masks import LayerSparsity, Masks, State, grow, highest, num_active, of_layer
from sparcl_core.sparsity.schedule import Sessions
from sparcl_core.sparsity.schedule import stage_length as tenth_or
from sparcl_core.sparsity.update import Action, MaskUpdate, drop_

KEYS = ("p_intra", "p_inter", "stage_epochs", "importance", "alpha", "beta", "batches", "gradient")


@dataclass(frozen=True)
class TDMConfig:
    """Settings of TDM.

    Attributes:
        enabled: off leaves the first random mask as it is; the weights stay sparse.
        p_intra, p_inter: shares of a layer that are exchanged within, and added at the start of, a task. None takes
            0.04 * (1 - s): the paper's 0.01 at s = 0.75 for every sparsity, as a share of the active weights.
        stage_epochs: dk, epochs per stage; 0 takes max(1, round(K / 10)).
        importance: `merged` or `two-term`, see module.
        alpha, beta: weights of the gradient terms; beta is used by `two-term` only.
        batches: batches of current data that the gradients are computed from; 0 takes all of the task's data once.
        gradient: `mean` over these batches, of a pass of its own, unmasked; or `last-step` (released code): that of the last step before,
            after gradient masking, so that I is 0 outside of the gradient mask. It needs no pass.
    """

    read_with: ClassVar[dict[str, tuple[str, ...]]] = {
        "sparsity": ("enabled", *KEYS),
        "masks.scheme=tdm": ("enabled", *KEYS),
        "tdm.importance=two-term": ("beta",),
        "tdm.gradient=mean": ("batches",),
    }
    enabled: bool = True
    p_intra: float | None = None
    p_inter: float | None = None
    stage_epochs: int = 0
    importance: Literal["merged", "two-term"] = "merged"
    alpha: float = 0.5
    beta: float = 0.5
    batches: int = 0
    gradient: Literal["mean", "last-step"] = "mean"

    def __post_init__(self):
        if self.gradient == "last-step" and self.importance != "merged":
            raise ValueError(f"gradient is 'last-step', but importance {self.importance!r}: a step leaves one merged gradient; take merged")
        for name in ("p_intra", "p_inter"):
            if not 0 <= (getattr(self, name) or 0) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: it is a share of a layer, in [0, 1)")
        if self.stage_epochs < 0 or self.batches < 0:
            raise ValueError(f"stage_epochs is {self.stage_epochs}, batches {self.batches}: neither may be negative")
        if not 0 <= self.alpha < math.inf or not 0 <= self.beta < math.inf:
            raise ValueError(f"alpha is {self.alpha}, beta {self.beta}: both must be finite, and neither may be negative")


def exchanged_share(value: float | None, sparsity: float) -> float:
    """p_intra or p_inter as a share of a layer at `sparsity`."""
    return 0.04 * (1 - sparsity) if value is None else value


def check(config: TDMConfig, sparsity: float, epochs: int) -> None:
    """Rules that need the sparsity and the task length too.

    Raises:
        ValueError: where TDM is at work, if p_intra or p_inter is not below the density (it would double the network or
            destroy it), or if a task has fewer than 4 stages.
    """
    if not config.enabled or sparsity == 0:
        return
    density = 1 - sparsity
    for name in ("p_intra", "p_inter"):
        share = exchanged_share(getattr(config, name), sparsity)
        if share >= density:
            raise ValueError(
                f"tdm.{name} is {share:.4g}: it must be below the density 1 - sparsity = {density:.4g}; try {density / 10:.2g}"
            )
    share = exchanged_share(config.p_inter, sparsity)
    if share > sparsity:
        raise ValueError(f"tdm.p_inter is {share:.4g}: it must not exceed the sparsity {sparsity}")
    stages = num_stages(epochs, stage_length(config, epochs))
    if stages < 4:
        raise ValueError(
            f"a task of {epochs} epochs has {stages} stages of {stage_length(config, epochs)} epochs: TDM needs at least 4; "
            f"lower tdm.stage_epochs, train longer or set tdm.enabled=false"
        )


def stage_length(config: TDMConfig, epochs: int) -> int:
    """dk for a task of `epochs` epochs."""
    return tenth_or(config.stage_epochs, epochs)


def num_stages(epochs: int, length: int) -> int:
    return math.ceil(epochs / length)


def action(task: int, stage: int, stages: int) -> Action:
    """What happens at the first epoch of `stage` (from 0) of `task` (from 0): see module."""
    if stage == 0:
        return "grow" if task > 0 else "rest"
    return "adapt" if stage < stages - 1 else "rest"


@dataclass(frozen=True)
class Schedule(Sessions):
    """An update happens before the first session of a stage. A task grows nothing at its start if no later session of it
    adapts: sessions too long for the stages would otherwise add p_inter with every task and never take it back.
    """

    config: TDMConfig
    sparsity: float
    task_epochs: int
    session_epochs: int

    def action(self, task: int, session: int) -> Action:
        """What happens to the masks before `session` of `task`; beyond the last session nothing does."""
        if not self.config.enabled or self.sparsity == 0 or session >= self.sessions:
            return "rest"
        length = stage_length(self.config, self.task_epochs)
        stage = session * self.session_epochs // length
        if session > 0 and stage == (session - 1) * self.session_epochs // length:
            return "rest"
        what = action(task, stage, num_stages(self.task_epochs, length))
        if what == "grow" and not any(self.action(task, later) == "adapt" for later in range(1, self.sessions)):
            return "rest"
        return what


def plan_update(
    what: Action, masks: Masks, state: State, importance: dict[str, np.ndarray], *, config: TDMConfig, sparsity: LayerSparsity, number: int
) -> MaskUpdate:
    """Decide one update.

    Args:
        what: `grow` or `adapt`.
        masks, state: current masks and weights.
        importance: I per tensor (same shapes); not read for `grow`.
        number: running number of the update in this run, the address of its growth.
    """
    if what == "grow":
        return MaskUpdate(number, what, {name: np.empty(0, dtype=np.int64) for name in masks})
    scores = {}
    for name, mask in masks.items():
        places = np.flatnonzero(mask)
        scores[name] = np.abs(state[name].reshape(-1)[places].astype(np.float64)) + importance[name].reshape(-1)[places]
    return MaskUpdate(number, what, _lowest(masks, scores, config, sparsity))


def plan_by_votes(
    masks: Masks, state: State, votes: dict[str, np.ndarray], *, config: TDMConfig, sparsity: LayerSparsity, number: int
) -> MaskUpdate:
    """Decide an `adapt` from votes: the places with the largest share of votes go; of equal shares the smaller |w|, then the higher index.

    Args:
        votes: share of the voters (weighted) that would drop a place, per tensor; each voter names as many places as will go.
    """
    scores = {}
    for name in masks:
        places = np.flatnonzero(masks[name])
        order = np.lexsort((-places, np.abs(state[name].reshape(-1)[places]), -votes[name].reshape(-1)[places]))
        scores[name] = np.empty(places.size)
        scores[name][order] = np.arange(places.size)
    return MaskUpdate(number, "adapt", _lowest(masks, scores, config, sparsity))


def _lowest(masks: Masks, scores: dict[str, np.ndarray], config: TDMConfig, sparsity: LayerSparsity) -> dict[str, np.ndarray]:
    """The places that shrinking to sparsity s + p_intra drops. `scores`: over the active places."""
    dropped = {}
    for name, mask in masks.items():
        places = np.flatnonzero(mask)
        own = of_layer(sparsity, name)
        target = min(num_active(mask.size, own + exchanged_share(config.p_intra, own)), places.size)
        if not np.isfinite(scores[name]).all():
            raise ValueError(f"a score of {name} is NaN or infinite: weights cannot be ranked")
        dropped[name] = places[~highest(scores[name], target)]
    return dropped


def update_masks(masks: Masks, states: list[State], update: MaskUpdate, *, config: TDMConfig, sparsity: LayerSparsity, seed: int) -> Masks:
    """The masks after `update`; dropped places are set to 0 in every one of `states` (weights, residuals), in place."""
    result = {}
    for name, kept in drop_(masks, states, update).items():
        held, own = int(np.count_nonzero(kept)), of_layer(sparsity, name)
        if update.what == "grow":
            target = min(held + math.floor(exchanged_share(config.p_inter, own) * kept.size + 0.5), kept.size)
        else:
            target = num_active(kept.size, own)
        result[name] = grow(kept, target - held, update.growth(seed, name))
    return result
