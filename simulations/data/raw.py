"""A data set as arrays: as its source gives it (`Raw`), and ready for use (`Dataset`)."""

from dataclasses import dataclass, replace

import numpy as np

from sparcl_core.inputs import InputSpec


@dataclass(frozen=True)
class Raw:
    """x: [N, C, H, W] uint8, y: [N] int64, ids: [N] int64, whose sample it is; None if the source does not say."""

    train_x: np.ndarray
    train_y: np.ndarray
    test_x: np.ndarray
    test_y: np.ndarray
    train_ids: np.ndarray | None = None

    def training(self, rows: np.ndarray) -> "Raw":
        """With these training samples only; `rows`: [n] int64."""
        ids = None if self.train_ids is None else self.train_ids[rows]
        return replace(self, train_x=self.train_x[rows], train_y=self.train_y[rows], train_ids=ids)


@dataclass(frozen=True)
class Dataset:
    """Arrays ready for use, and what a model must know of them.

    Attributes:
        raw: y in 0 .. classes - 1.
        inputs: normalisation from the training part.
        labels: of each class, as the source has it; empty: the same numbers.
    """

    raw: Raw
    inputs: InputSpec
    labels: tuple[int, ...] = ()

    @property
    def num_classes(self) -> int:
        return self.inputs.num_classes
