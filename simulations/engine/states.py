"""What changed in the devices' states, as a value: what an engine tells a checkpoint, and is told again when a run is resumed."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class StateChanges:
    """Devices whose state was replaced, and by which.

    Attributes:
        devices: [n] int64, their numbers.
        exchanges: [n] int64, the exchange in which each device's new state was made.
        blobs: n tuples of digests of the shared blobs that each new state refers to.

    Raises:
        ValueError: if the three are not of one length.
    """

    devices: np.ndarray
    exchanges: np.ndarray
    blobs: list[tuple[str, ...]]

    def __post_init__(self):
        count = len(self.blobs)
        if self.devices.shape != (count,) or self.exchanges.shape != (count,):
            shapes = f"devices {self.devices.shape}, exchanges {self.exchanges.shape}, {count} tuples of blobs"
            raise ValueError(f"state changes have {shapes}: they must be [n], [n] and n")

    @classmethod
    def none(cls) -> "StateChanges":
        """No device changed."""
        return cls(np.empty(0, np.int64), np.empty(0, np.int64), [])
