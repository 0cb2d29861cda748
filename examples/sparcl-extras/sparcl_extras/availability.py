"""An availability model: a function that makes an object with `until` and `next_on`."""

import numpy as np


class Shifts:
    """Each device is on in every other shift, half of them in the even ones."""

    def __init__(self, hours: float):
        self.length_s = hours * 3600

    def until(self, devices: np.ndarray, time: np.ndarray) -> np.ndarray:
        """When the on-period that holds `time` ends; `time` where the device is off."""
        shift = time // self.length_s
        return np.where((shift + devices) % 2 == 0, (shift + 1) * self.length_s, time)

    def next_on(self, devices: np.ndarray, time: np.ndarray) -> np.ndarray:
        """The first instant from `time` on at which the device is there."""
        shift = time // self.length_s
        return np.where((shift + devices) % 2 == 0, time, (shift + 1) * self.length_s)


def shifts(config, devices: int, seed: int, *, hours: float = 8.0) -> Shifts:
    """Boards that work in two shifts."""
    return Shifts(hours)
