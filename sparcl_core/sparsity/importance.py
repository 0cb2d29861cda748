"""How the gradients of the two parts of the loss become an importance score, for TDM (CWI) and DGM (CGI) alike.

- `merged` (released code): alpha * |d(L~ + L(B))/dw|
- `two-term` (paper):       alpha * |dL~(D_t)/dw| + beta * |dL(B)/dw|
with L~ the single-head cross-entropy on current data and L(B) the weighted replay terms.
"""

from torch import Tensor

from sparcl_core.sparsity.dgm import DGMConfig
from sparcl_core.sparsity.tdm import TDMConfig


def combine(config: TDMConfig | DGMConfig, current: Tensor, replay: Tensor | None) -> Tensor:
    """The score of one tensor, >= 0, from the gradients of the two parts (same shapes); `replay` is None without replay."""
    if config.importance == "merged":
        return config.alpha * (current if replay is None else current + replay).abs()
    score = config.alpha * current.abs()
    return score if replay is None else score + config.beta * replay.abs()
