"""DGM, dynamic gradient masking: only the most important active weights are updated (SparCL, section 3.3).

Gradient importance CGI(w): `merged` (default) |dL/dw| of the whole loss at the step where the mask is drawn; `two-term`
(paper) alpha * |dL~(D_t)/dw| + beta * |dL(B)/dw|. Per layer the share 1 - q of *all* its weights with the highest CGI
among the active ones is kept. q = gradient sparsity >= s; q = s keeps every active weight, so the mechanism is then idle.
The mask is re-drawn every `interval` steps (30 in the released code) and at the start of every training session.

Differences from the released code: counts are exact. The code keeps what lies above a percentile of the importances, so equal ones (all
zeros, say) are kept or left out together, and active weights with a gradient of exactly 0 are never in its mask; it also drops the last,
smaller batch.

Where the mask is reused, weight gradients outside it need not be computed at all: that is the saving.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from sparcl_core.sparsity.masks import num_active

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class DGMConfig:
    """Settings of DGM.

    Attributes:
        enabled: off updates every active weight.
        sparsity: q; None takes q = 1 - keep * (1 - s).
        keep: share of the active weights that is updated, where q is not given; 0.8 is the released code's q = 0.80 at s = 0.75.
        interval: steps between two draws.
        importance, alpha, beta: form of CGI, see module.
    """

    read_with: ClassVar[dict[str, tuple[str, ...]]] = {
        "sparsity": ("enabled", "sparsity", "keep", "interval", "importance", "alpha", "beta"),
        "no dgm.sparsity": ("keep",),
        "dgm.importance=two-term": ("beta",),
    }
    enabled: bool = True
    sparsity: float | None = None
    keep: float = 0.8
    interval: int = 30
    importance: Literal["merged", "two-term"] = "merged"
    alpha: float = 0.5
    beta: float = 0.5

    def __post_init__(self):
        if not 0 < self.keep <= 1:
            raise ValueError(f"keep is {self.keep}: the share of active weights that is updated must be in (0, 1]")
        if self.interval < 1:
            raise ValueError(f"interval is {self.interval}: the gradient mask is drawn every interval >= 1 steps")
        if not 0 <= self.alpha < math.inf or not 0 <= self.beta < math.inf:
            raise ValueError(f"alpha is {self.alpha}, beta {self.beta}: both must be finite, and neither may be negative")


def gradient_sparsity(config: DGMConfig, weight_sparsity: float) -> float:
    """q for weights at `weight_sparsity`.

    Raises:
        ValueError: if the config asks for q < s: a gradient mask holds active weights only, so it cannot be the denser one.
    """
    if config.sparsity is None:
        return 1 - config.keep * (1 - weight_sparsity)
    if not weight_sparsity <= config.sparsity < 1:
        raise ValueError(
            f"dgm.sparsity is {config.sparsity}: gradient sparsity must be in [sparsity, 1) = [{weight_sparsity}, 1); "
            f"try {1 - 0.8 * (1 - weight_sparsity):.4g}"
        )
    return config.sparsity


def draw(score: "Tensor", size: int, q: float) -> "Tensor":
    """Which active weights of one layer are updated: bool, shape of `score`.

    Args:
        score: CGI >= 0 of the active weights, one dimension, in the order of their flat indices.
        size: weights of the layer, active or not.
        q: gradient sparsity; num_active(size, q) weights are kept, or all active ones if they are fewer. Equal scores: lower flat index.
    """
    keep = min(num_active(size, q), score.numel())
    if keep == score.numel():
        return score.new_ones(score.shape, dtype=bool)
    least = score.kthvalue(score.numel() - keep + 1).values  # finds the same set as a stable sort, in linear time
    mask = score > least
    ties = (score == least).nonzero().squeeze(1)
    mask[ties[: keep - int(mask.sum())]] = True
    return mask
