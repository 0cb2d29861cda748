"""A data set as arrays: as its source gives it (`Raw`), and ready for use (`Dataset`)."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from sparcl_core.inputs import InputSpec  # which imports PyTorch

Moments = tuple[tuple[float, ...], tuple[float, ...]]


@dataclass(frozen=True)
class Raw:
    """What a source gives.

    Attributes:
        train_x, test_x: [N, C, H, W] uint8; perhaps maps of a file, which are not to be written to.
        train_y, test_y: [N] int64.
        train_ids: [N] int64, whose sample it is; None if the source does not say.
        names: of the labels 0, 1, ... in words; empty if the source has none.
        notes: what was converted, passed over or guessed, a line each.
        sha256: of the files, see `simulations.data.content`; empty if there are none.
        moments: mean and standard deviation of each channel of `train_x`; None: not computed yet.
    """

    train_x: np.ndarray
    train_y: np.ndarray
    test_x: np.ndarray
    test_y: np.ndarray
    train_ids: np.ndarray | None = None
    names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    sha256: str = ""
    moments: Moments | None = None

    def training(self, rows: np.ndarray) -> "Raw":
        """With these training samples only; `rows`: [n] int64, or [N] bool."""
        ids = None if self.train_ids is None else self.train_ids[rows]
        return replace(self, train_x=self.train_x[rows], train_y=self.train_y[rows], train_ids=ids, moments=None)


@dataclass(frozen=True)
class Dataset:
    """Arrays ready for use, and what a model must know of them.

    Attributes:
        raw: y in 0 .. classes - 1.
        inputs: normalisation from the training part.
        labels: of each class, as the source has it; empty: the same numbers.
    """

    raw: Raw
    inputs: "InputSpec"
    labels: tuple[int, ...] = ()

    @property
    def num_classes(self) -> int:
        return self.inputs.num_classes

    @property
    def names(self) -> tuple[str, ...]:
        """Of each class in words; empty if the source has none."""
        labels, names = self.labels or tuple(range(self.num_classes)), self.raw.names
        return tuple(names[label] for label in labels) if names and labels[-1] < len(names) else ()
