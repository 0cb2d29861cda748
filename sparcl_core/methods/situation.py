"""Where a learning method is to run, as plain facts of the settings, for it to say whether it can."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Situation:
    """As the settings of these names say.

    Attributes:
        is_in_step: all devices meet each task once, in the same order and at the same time, and know where it ends.
        optimizer: the server's.
        fits_memory: sparser masks for smaller devices.
        latest_start: of the epochs of a task that are over when its masks are pruned, the share that is over when the last round before
            that begins; 1 where nothing is pruned.
    """

    tasks: int
    blur: float
    is_in_step: bool
    sparsity: float
    scheme: str
    batchnorm: str
    evaluate_on: str
    optimizer: str
    fits_memory: bool
    latest_start: float = 1.0
