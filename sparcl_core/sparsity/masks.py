"""Weight masks: which coordinates exist. Exact counts, ties to the lower flat index.

A mask is a boolean NumPy array of its tensor's shape; `Masks` maps parameter names to masks, in the model's order. "Masked"
and "zero" are different facts: an active weight may be 0 (a newly grown one is), an inactive weight always is.
"""

import math
from collections.abc import Mapping

import numpy as np

from sparcl_core.seeding import generator

Masks = dict[str, np.ndarray]
State = dict[str, np.ndarray]
LayerSparsity = float | Mapping[str, float]  # of all tensors, or by name


def num_active(size: int, sparsity: float) -> int:
    """Active weights of a layer of `size` weights at `sparsity`: (1 - s) * size, halves up, at least 1."""
    return max(1, math.floor((1.0 - sparsity) * size + 0.5 + 1e-6))  # in floats 1 - 0.9 is below a tenth: 1.5 of 15 must go up


def of_layer(sparsity: LayerSparsity, name: str) -> float:
    return sparsity[name] if isinstance(sparsity, Mapping) else sparsity


def random_mask(shape: tuple[int, ...], active: int, rng: np.random.Generator) -> np.ndarray:
    """A mask with exactly `active` places, uniform over all such masks."""
    return grow(np.zeros(shape, dtype=bool), active, rng)


def initial_masks(shapes: Mapping[str, tuple[int, ...]], sparsity: LayerSparsity, seed: int) -> Masks:
    """One random mask per tensor, each drawn from its own address."""
    return {
        name: random_mask(shape, num_active(math.prod(shape), of_layer(sparsity, name)), generator(seed, "mask", name))
        for name, shape in shapes.items()
    }


def grow(mask: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """`mask` with `count` more places, uniform over its inactive ones.

    Raises:
        ValueError: if fewer than `count` places are inactive.
    """
    inactive = np.flatnonzero(~mask)
    if not 0 <= count <= inactive.size:
        raise ValueError(f"cannot grow {count} weights: {inactive.size} of {mask.size} are inactive")
    grown = mask.copy()
    if count:
        # the places with the `count` smallest of distinct random keys; nearly always they are among those below a bound that is a little
        # above their share, and a partition of these few finds the same set as a full sort of all
        keys = rng.random(inactive.size)
        few = np.flatnonzero(keys < 1.1 * (count + 100) / inactive.size)
        if few.size < count:
            few = np.arange(inactive.size)
        grown.reshape(-1)[inactive[few[np.argpartition(keys[few], count - 1)[:count]]]] = True
    return grown


def shrink(mask: np.ndarray, score: np.ndarray, active: int) -> np.ndarray:
    """The `active` places of `mask` with the highest `score`; of equal scores the lower flat index stays.

    Args:
        mask: bool, any shape.
        score: same shape; read at active places only, and must be finite there.
        active: how many places to keep.

    Raises:
        ValueError: if the mask has fewer than `active` places or a score is not finite.
    """
    places = np.flatnonzero(mask)
    if not 0 <= active <= places.size:
        raise ValueError(f"cannot shrink to {active} weights: only {places.size} are active")
    values = score.reshape(-1)[places]
    if not np.isfinite(values).all():
        raise ValueError("a score is NaN or infinite: weights cannot be ranked")
    kept = np.zeros(mask.shape, dtype=bool)
    kept.reshape(-1)[places[highest(values, active)]] = True
    return kept


def highest(values: np.ndarray, count: int) -> np.ndarray:
    """Where the `count` highest of `values` [n] are: bool [n]; of equal ones those with the lower index. In linear time."""
    if count in (0, values.size):
        return np.full(values.size, count > 0)
    least = np.partition(values, values.size - count)[values.size - count]
    kept = values > least
    ties = np.flatnonzero(values == least)
    kept[ties[: count - np.count_nonzero(kept)]] = True
    return kept


def apply_masks_(state: State, masks: Masks) -> None:
    """Set every inactive weight of `state` to exactly 0, in place."""
    for name, mask in masks.items():
        state[name][~mask] = 0


def rescale_(state: State, masks: Masks) -> None:
    """Multiply the kept weights by 1/sqrt(density), in place, so that activations keep their scale at initialisation."""
    for name, mask in masks.items():
        state[name] *= state[name].dtype.type(1.0 / math.sqrt(mask.mean()))


def count_active(masks: Masks) -> dict[str, int]:
    """Number of active weights per tensor."""
    return {name: int(np.count_nonzero(mask)) for name, mask in masks.items()}
