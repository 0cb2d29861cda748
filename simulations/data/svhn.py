"""SVHN's cropped digits as their authors publish them, .mat files (Netzer et al. 2011, http://ufldl.stanford.edu/housenumbers)."""

from pathlib import Path

import numpy as np

from simulations.config.data import DataConfig
from simulations.config.errors import ConfigError
from simulations.data.content import Files
from simulations.data.raw import Raw
from sparcl_core.foreign import printable


def find(folder: Path) -> Files | None:
    """train_32x32.mat and test_32x32.mat; extra_32x32.mat is not read."""
    parts = {part: (folder / f"{part}_32x32.mat",) for part in ("train", "test")}
    return Files(folder, "svhn", parts) if all(path.is_file() for (path,) in parts.values()) else None


def read(files: Files, config: DataConfig) -> Raw:
    """Through torchvision, which looks at their MD5 and makes label 10 the digit 0. Raises ConfigError if they are other files."""
    from torchvision.datasets import SVHN

    try:
        parts = [SVHN(files.root, split=part) for part in ("train", "test")]
    except (RuntimeError, OSError, ValueError) as error:
        raise ConfigError(
            f"data.path: train_32x32.mat and test_32x32.mat in {printable(files.root)} are not those that were published (their MD5 is "
            f"another): fetch them again"
        ) from error
    arrays = []
    for part in parts:
        arrays += [np.ascontiguousarray(part.data), part.labels.astype(np.int64)]
    return Raw(*arrays)
