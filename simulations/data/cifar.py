"""CIFAR-10 and CIFAR-100 as their authors publish them (Krizhevsky 2009): batches for Python, or binary ones.

Those for Python are pickles: torchvision reads them, after it has seen by their MD5 that they are the authors' own.
"""

from pathlib import Path

import numpy as np

from simulations import disk
from simulations.config.data import DataConfig
from simulations.config.errors import ConfigError
from simulations.data.content import Files
from simulations.data.raw import Raw
from sparcl_core.foreign import printable

PIXELS = 3 * 32 * 32
BATCHES_10 = {"train": tuple(f"data_batch_{number}" for number in range(1, 6)), "test": ("test_batch",), "meta": ("batches.meta",)}
BATCHES_100 = {"train": ("train",), "test": ("test",), "meta": ("meta",)}
NAMES = {"batches.meta": "batches.meta.txt", "meta": "fine_label_names.txt"}  # in a folder of binary batches


def find_10(folder: Path) -> Files | None:
    """`cifar-10-batches-py` or `cifar-10-batches-bin`, within the folder or the folder itself."""
    return _find(folder, "cifar-10-batches-py", "cifar-10-batches-bin", BATCHES_10)


def find_100(folder: Path) -> Files | None:
    """`cifar-100-python` or `cifar-100-binary`, likewise."""
    return _find(folder, "cifar-100-python", "cifar-100-binary", BATCHES_100)


def _find(folder: Path, python: str, binary: str, batches: dict[str, tuple[str, ...]]) -> Files | None:
    for place in (folder / python, folder):
        parts = {part: tuple(place / name for name in names) for part, names in batches.items()}
        if all(path.is_file() for paths in parts.values() for path in paths):
            return Files(place, "cifar", parts)
    for place in (folder / binary, folder):
        parts = {part: tuple(place / f"{name}.bin" for name in names) for part, names in batches.items() if part != "meta"}
        if all(path.is_file() for paths in parts.values() for path in paths):
            names = tuple(path for name in batches["meta"] if (path := place / NAMES[name]).is_file())
            return Files(place, "cifar-binary", parts | ({"meta": names} if names else {}))
    return None


def read(files: Files, config: DataConfig) -> Raw:
    """Batches for Python. Raises ConfigError if they are not the authors' own."""
    from torchvision.datasets import CIFAR10, CIFAR100

    kind = CIFAR10 if len(files.parts["train"]) > 1 else CIFAR100
    here = type(kind.__name__, (kind,), {"base_folder": files.root.name})
    try:
        parts = [here(files.root.parent, train=part == "train") for part in ("train", "test")]
    except (RuntimeError, OSError) as error:
        raise ConfigError(
            f"data.path: {printable(files.root)} does not hold the files of {kind.__name__} as they were published (their MD5 is another), "
            f"and what is in them is not read; fetch them again, or take parquet files"
        ) from error
    arrays = []
    for part in parts:
        arrays += [np.ascontiguousarray(part.data.transpose(0, 3, 1, 2)), np.array(part.targets, dtype=np.int64)]
    return Raw(*arrays, names=tuple(parts[0].classes))


def read_binary(files: Files, config: DataConfig) -> Raw:
    """Rows of one label (CIFAR-10), or a coarse and a fine one of which the fine one is read, and the pixels, channel by channel."""
    labels, arrays = (1 if len(files.parts["train"]) > 1 else 2), []
    for part in ("train", "test"):
        rows = np.concatenate([_rows(path, labels + PIXELS) for path in files.parts[part]])
        arrays += [rows[:, labels:].reshape(-1, 3, 32, 32), rows[:, labels - 1].astype(np.int64)]
    names = [name for path in files.parts.get("meta", ()) for name in disk.read(path).decode(errors="replace").split()]
    return Raw(*arrays, names=tuple(names))


def _rows(path: Path, size: int) -> np.ndarray:
    data = np.frombuffer(disk.read(path), np.uint8)
    if not len(data) or len(data) % size:
        raise ConfigError(f"data.path: {printable(path)} has {len(data)} bytes, no whole rows of {size}; fetch it again")
    return data.reshape(-1, size)
