"""The data of a task on one device."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class TaskData:
    """One task on one device: x [N, C, H, W] uint8, y [N] int64, the classes of the task, its number from 0.

    Raises:
        ValueError: if the arrays are of other kinds or lengths, or there is no sample.
    """

    x: np.ndarray
    y: np.ndarray
    classes: tuple[int, ...]
    task: int

    def __post_init__(self):
        where = f"task {self.task} of this device"
        if self.x.dtype != np.uint8 or self.x.ndim != 4:
            raise ValueError(
                f"{where} has images of {self.x.dtype} {list(self.x.shape)}: [samples, channels, height, width] of uint8 are needed; "
                f"scale other pixels to 0 to 255, and none may be missing or infinite"
            )
        if not np.issubdtype(self.y.dtype, np.integer) or self.y.shape != self.x.shape[:1] or not len(self.y):
            raise ValueError(
                f"{where} has {len(self.x)} images and labels of {self.y.dtype} {list(self.y.shape)}: one integer for each, and one sample"
            )
