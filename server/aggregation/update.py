"""What a device's update is once it was decoded and checked."""

from dataclasses import dataclass

import numpy as np

from sparcl_core.codec import SparseTensor
from sparcl_core.sparsity.masks import Masks


@dataclass(frozen=True)
class Update:
    """One device's decoded update.

    Attributes:
        device: its number.
        samples: n_k, samples of the current task processed this round.
        seen: [C] bool, classes it has had data of.
        tensors: d_k, the change of the model that the device received; tensors and places left out did not change.
        masks: the weight masks that the device ended with (mask mode `local`), bool in the layout's shapes. A tensor without a mask is
            held wholly; None: so are all (shared masks: inactive places are in no update, and stay at 0).
        weight: s_k; less than 1 for an update that is stale.
    """

    device: int
    samples: int
    seen: np.ndarray
    tensors: dict[str, SparseTensor]
    masks: Masks | None = None
    weight: float = 1.0
