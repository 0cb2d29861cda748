"""An update that would ruin the model by itself, where nobody compares it with others (`server.defence.clipping`): it is not used.

A weight beyond the square root of the largest number of its type has no finite square, and nobody can train with it. Where the other
updates of the round would not take the model there, it is known who is to blame; where all would, the model is (`server.defence.rollback`).
"""

import numpy as np

from server.aggregation.update import Update
from server.defence.clipping import LEAST, Unusual
from sparcl_core.foreign import printable
from sparcl_core.sparsity.masks import State


def ruinous(updates: list[Update], weights: State, clips: bool) -> list[Unusual]:
    """Those of `updates` that are refused, in the order given.

    `weights`: of the model that they would change; `clips`: updates are compared where they are enough.
    """
    moving = sum(any(tensor.values.any() for tensor in update.tensors.values()) for update in updates)
    if clips and moving >= LEAST:
        return []
    found = [Unusual(update.device, True, reason) for update in updates if (reason := _reason(update, weights))]
    return found if len(found) < len(updates) else []


def _reason(update: Update, weights: State) -> str:
    for name, tensor in update.tensors.items():
        own = weights[name]
        after = own.reshape(-1)[tensor.places].astype(np.float64)
        with np.errstate(over="ignore"):  # infinite is beyond it
            most = float(np.abs(after + tensor.values).max(initial=0.0))
        if most > float(np.finfo(own.dtype).max) ** 0.5:
            return f"the update by itself takes {printable(name)} to {most:.3g}, with which nobody can train: it was refused"
    return ""
