"""Where a learning method is to run, as plain facts of the settings, for it to say whether it can."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Situation:
    """As the settings of these names say.

    Attributes:
        is_in_step: all devices meet each task once, in the same order and at the same time, and know where it ends.
        optimizer: the server's.
        fits_memory: sparser masks for smaller devices.
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
