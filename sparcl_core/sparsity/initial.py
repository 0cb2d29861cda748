"""The first mask of a run: at random, or where a score is highest, with exact counts.

By one ranking of all layers (`masks.densities = "global"`) a layer keeps its highest weight whatever the others have: without any it would
pass nothing on. The papers that rank globally do not say what becomes of such a layer.
"""

import math

import numpy as np

from sparcl_core.sparsity.densities import Shapes, active_counts, layer_sparsity
from sparcl_core.sparsity.masks import Masks, State, apply_masks_, highest, initial_masks, num_active, rescale_
from sparcl_core.sparsity.settings import MaskConfig


def random_masks(shapes: Shapes, config: MaskConfig, sparsity: float, seed: int) -> Masks:
    """Uniform over all masks of these counts."""
    return initial_masks(shapes, layer_sparsity(config.densities, shapes, sparsity), seed)


def highest_masks(scores: State, config: MaskConfig, sparsity: float) -> Masks:
    """The places of the highest `scores`; of equal ones the earlier layer, and in it the lower flat index.

    Raises:
        ValueError: if a score is NaN or infinite.
    """
    for name, score in scores.items():
        if not np.isfinite(score).all():
            raise ValueError(f"a score of {name} is NaN or infinite: weights cannot be ranked")
    shapes = {name: score.shape for name, score in scores.items()}
    if config.densities == "global":
        return _by_one_ranking(scores, num_active(sum(map(math.prod, shapes.values())), sparsity))
    counts = active_counts(config.densities, shapes, sparsity)
    return {name: highest(score.reshape(-1), counts[name]).reshape(score.shape) for name, score in scores.items()}


def laid_over(weights: State, masks: Masks, rescale: bool) -> State:
    """A copy of `weights` with inactive ones 0, and the others times 1/sqrt(density) if `rescale` says so."""
    state = {name: value.copy() for name, value in weights.items()}
    apply_masks_(state, masks)
    if rescale:
        rescale_(state, masks)
    return state


def _by_one_ranking(scores: State, active: int) -> Masks:
    flat = {name: score.reshape(-1) for name, score in scores.items()}
    masks = {name: highest(score, 1) for name, score in flat.items()}
    rest = np.concatenate([score[~masks[name]] for name, score in flat.items()])
    chosen, begin = highest(rest, max(0, active - len(masks))), 0
    for name, score in scores.items():
        mask, free = masks[name], np.flatnonzero(~masks[name])
        mask[free[chosen[begin : begin + free.size]]] = True
        masks[name], begin = mask.reshape(score.shape), begin + free.size
    return masks
