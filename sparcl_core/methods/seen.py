"""Which classes a device has had tasks of, for methods whose terms speak of old and new classes."""

import numpy as np

from sparcl_core.methods.given import Border

SEEN = "seen"  # among the arrays of a device: [classes] bool


def seen_after(border: Border) -> np.ndarray:
    """[classes] bool, where the task ends: those of this task, and those before."""
    seen = np.zeros(border.network.inputs.num_classes, bool)
    if SEEN in border.memory.arrays:
        seen |= border.memory.arrays[SEEN]
    seen[list(border.data.classes)] = True
    return seen
