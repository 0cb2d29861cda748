"""SNIP, single-shot network pruning by connection sensitivity (Lee, Ajanthan, Torr, ICLR 2019).

Before training, weights w are multiplied by indicators c = 1, and the sensitivity of a connection is how much the loss changes with its
indicator (equations 4 to 6): g_j = dL(c w)/dc_j at c = 1, which is w_j dL/dw_j, on one batch of the first task. The connections with the
largest |g_j| are kept, out of all layers by one ranking (`masks.densities = "global"`), and trained from the same initial weights. Dividing
by the sum of all |g_j|, as the paper does, changes no rank.

In a federation devices name the places that each would keep, on data of its own, and those that most of them name are kept; where equally
many do, chance decides, from an address of the seed: by index, ties would fill the first rows of a layer.

Differences from the paper: `masks.densities = "uniform"` and `"erk"` rank every layer by itself; initial weights are He-normal.
"""

import numpy as np

from sparcl_core.seeding import generator
from sparcl_core.sparsity.initial import highest_masks
from sparcl_core.sparsity.masks import Masks, State
from sparcl_core.sparsity.settings import MaskConfig


def sensitivity(weights: State, gradients: State) -> State:
    """|w dL/dw| of every tensor of `gradients`, float64."""
    return {name: np.abs(weights[name].astype(np.float64) * gradient) for name, gradient in gradients.items()}


def chosen_by_votes(votes: State, config: MaskConfig, *, sparsity: float, seed: int) -> Masks:
    """The masks that most devices want. `votes`: how many name each place, per tensor."""
    counts = np.concatenate([own.reshape(-1) for own in votes.values()])
    chance = np.concatenate([generator(seed, "snip", name).random(own.size) for name, own in votes.items()])
    rank = np.empty(counts.size)
    rank[np.lexsort((chance, counts))] = np.arange(counts.size)
    parts = np.split(rank, np.cumsum([own.size for own in votes.values()])[:-1])
    return highest_masks({name: part.reshape(votes[name].shape) for name, part in zip(votes, parts, strict=True)}, config, sparsity)
