"""How dense each layer of a sparse network is.

Erdos-Renyi-Kernel (Evci et al. 2020, section 3, after the Erdos-Renyi rule of Mocanu et al. 2018): the density of a layer is in proportion
to (n_in + n_out + k_h + k_w) / (n_in n_out k_h k_w); one whose density would be above 1 is dense, and the others share what is left.

Difference from the paper: counts are exact. Shares of a weight go to the layers with the largest rest, so that the network has as many
active weights as with uniform densities, up to the rounding of these; a layer never loses its last weight.
"""

import math
from collections.abc import Mapping

from sparcl_core.sparsity.masks import LayerSparsity, num_active, of_layer

Shapes = Mapping[str, tuple[int, ...]]


def layer_sparsity(densities: str, shapes: Shapes, sparsity: float) -> LayerSparsity:
    """Sparsity of each layer: the network's where all are alike; else by name, so that `num_active` gives the exact counts."""
    if densities != "erk":
        return sparsity
    return {name: 1 - count / math.prod(shapes[name]) for name, count in _erk_counts(shapes, sparsity).items()}


def active_counts(densities: str, shapes: Shapes, sparsity: float) -> dict[str, int]:
    """Active weights of each tensor. With `global` nobody knows before the ranking: these are as with `uniform`, about as many in total."""
    of = layer_sparsity(densities, shapes, sparsity)
    return {name: num_active(math.prod(shape), of_layer(of, name)) for name, shape in shapes.items()}


def erk_densities(shapes: Shapes, sparsity: float) -> dict[str, float]:
    """Density of each layer before its count is rounded; shapes as PyTorch has them, [out, in] or [out, in, height, width]."""
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    shares = {name: sum(shape) / sizes[name] for name, shape in shapes.items()}
    dense: set[str] = set()
    while True:
        left = (1 - sparsity) * sum(sizes.values()) - sum(sizes[name] for name in dense)
        scale = left / max(sum(shares[name] * sizes[name] for name in shapes if name not in dense), 1e-300)
        full = {name for name in shapes if name not in dense and scale * shares[name] > 1}
        if not full:
            return {name: 1.0 if name in dense else scale * shares[name] for name in shapes}
        dense |= full


def _erk_counts(shapes: Shapes, sparsity: float) -> dict[str, int]:
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    wanted = {name: density * sizes[name] for name, density in erk_densities(shapes, sparsity).items()}
    counts = {name: min(max(1, math.floor(count + 1e-6)), sizes[name]) for name, count in wanted.items()}
    missing = num_active(sum(sizes.values()), sparsity) - sum(counts.values())
    for name in sorted(wanted, key=lambda name: counts[name] - wanted[name]):  # stable: of equal rests the earlier layer
        if missing > 0 and counts[name] < sizes[name]:
            counts[name], missing = counts[name] + 1, missing - 1
    return counts
