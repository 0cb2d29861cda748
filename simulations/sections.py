"""Sections of an experiment that say where samples come from and how they become streams."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class DataConfig:
    """Where samples come from.

    Attributes:
        name: `digits` (scikit-learn's 8x8 digits, built in) or `parquet` (a folder with train.parquet and test.parquet).
        path: folder of `parquet`.
        image_column, label_column: columns of `parquet`; images as struct(bytes, path) or bytes, labels as integers.
        folds: digits have no test split of their own: this many stratified folds, one of which is the test set.
        fold: which; None takes seed mod folds, so that seeds 0 to folds - 1 cover all samples.
        validation: share of the training samples that is held out and tested on *instead* of the test set; for tuning.
        train_limit: keep at most this many training samples per class; 0 keeps all.
    """

    name: Literal["digits", "parquet"] = "digits"
    path: str = ""
    image_column: str = "img"
    label_column: str = "label"
    folds: int = 5
    fold: int | None = None
    validation: float = 0.0
    train_limit: int = 0

    def __post_init__(self):
        if self.name == "parquet" and not self.path:
            raise ValueError("name is 'parquet', but path is empty: set data.path to a folder with train.parquet and test.parquet")
        if self.folds < 2:
            raise ValueError(f"folds is {self.folds}: at least 2 are needed to train on one part and test on another")
        if self.fold is not None and not 0 <= self.fold < self.folds:
            raise ValueError(f"fold is {self.fold}: folds are numbered 0 to {self.folds - 1}")
        if not 0 <= self.validation < 1:
            raise ValueError(f"validation is {self.validation}: a share in [0, 1); 0 uses the test set")
        if self.train_limit < 0:
            raise ValueError(f"train_limit is {self.train_limit}: samples per class, or 0 for all")


@dataclass(frozen=True)
class StreamConfig:
    """How the data becomes the devices' streams.

    Attributes:
        tasks: the classes are cut into this many tasks of equal size, in class order.
        devices: number of devices.
        partition: `dirichlet` (every sample to one device, label skew per task), `iid` (every sample to one device, evenly), or `drawn`
            (every device draws its own samples, label skew per task, and devices share samples: for fleets larger than the data).
        alpha: concentration of the Dirichlet distribution of `dirichlet` and `drawn`; small is skewed.
        samples: of each task that a device draws; for `drawn` only, else 0.
    """

    tasks: int = 5
    devices: int = 10
    partition: Literal["dirichlet", "iid", "drawn"] = "dirichlet"
    alpha: float = 1.0
    samples: int = 0

    def __post_init__(self):
        if self.tasks < 1 or self.devices < 1:
            raise ValueError(f"tasks is {self.tasks}, devices {self.devices}: at least 1 of each")
        if not self.alpha > 0:
            raise ValueError(f"alpha is {self.alpha}: the concentration of a Dirichlet distribution must be above 0")
        if self.partition == "drawn" and self.samples < 1:
            raise ValueError(f"samples is {self.samples}: with partition 'drawn' every device draws so many of each task, at least 1")
        if self.partition != "drawn" and self.samples:
            raise ValueError(
                f"samples is {self.samples}: partition {self.partition!r} cuts up all data, only 'drawn' draws a number of samples; "
                f"leave samples at 0, or set stream.partition=drawn"
            )
