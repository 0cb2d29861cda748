"""FEMNIST as LEAF writes it: JSON by writer (Caldas et al. 2018, arXiv:1812.01097, https://leaf.cmu.edu).

A file has `users`, and in `user_data` of each `x`, images as 784 numbers from 0 (ink) to 1 (paper), and `y`, 0 to 61. Here a pixel is
round(255 x): the images look as LEAF's, dark on white, where those of MNIST are light on black.
"""

import json
from pathlib import Path

import numpy as np

from simulations import disk
from simulations.config.data import DataConfig
from simulations.config.errors import ConfigError
from simulations.data.content import Files
from simulations.data.raw import Raw
from sparcl_core.foreign import printable

SIDE = 28


def find(folder: Path) -> Files | None:
    """train/*.json and test/*.json, in the folder or in `data` within; or all_data/*.json, which is not divided yet."""
    for place in (folder, folder / "data"):
        parts = {part: tuple(sorted((place / part).glob("*.json"))) for part in ("train", "test")}
        if all(parts.values()):
            return Files(place, "leaf", parts)
    for place in (folder, folder / "data"):
        if whole := tuple(sorted((place / "all_data").glob("*.json"))):
            return Files(place, "leaf", {"whole": whole})
    return None


def read(files: Files, config: DataConfig) -> Raw:
    """Raises ConfigError that names the file, the writer and the sample that cannot be read."""
    train_x, train_y, writers = _part(files.parts.get("train") or files.parts["whole"])
    test_x, test_y, _ = _part(files.parts["test"]) if "test" in files.parts else (train_x[:0], train_y[:0], [])
    place = {writer: number for number, writer in enumerate(sorted(set(writers)))}
    return Raw(train_x, train_y, test_x, test_y, np.array([place[writer] for writer in writers], dtype=np.int64))


def _part(paths: tuple[Path, ...]) -> tuple[np.ndarray, np.ndarray, list[str]]:
    images, labels, writers = [], [], []
    for path in paths:
        try:
            found = json.loads(disk.read(path))
            by_writer = [(str(writer), found["user_data"][writer]) for writer in found["users"]]
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            told = f"{type(error).__name__}: {printable(error)}"
            raise ConfigError(
                f"data.path: {printable(path)} is no JSON of LEAF with users and user_data ({told}); make it again"
            ) from error
        for writer, data in by_writer:
            x, y = _of_writer(path, writer, data)
            images.append(x)
            labels.append(y)
            writers += [writer] * len(y)
    if not writers:
        raise ConfigError(f"data.path: no sample in {printable(paths[0].parent)}: make LEAF's files again")
    return np.concatenate(images), np.concatenate(labels), writers


def _of_writer(path: Path, writer: str, data: dict) -> tuple[np.ndarray, np.ndarray]:
    where = f"data.path: {printable(path)}, user {printable(repr(writer))}"
    try:
        rows, labels = data["x"], data["y"]
        if (wrong := next((place for place, row in enumerate(rows) if len(row) != SIDE**2), None)) is not None:
            raise ValueError(f"sample {wrong} has {len(rows[wrong])} values, not {SIDE**2}")
        x, y = np.array(rows, dtype=np.float64).reshape(-1, SIDE**2), np.array(labels)
        if x.size and not (x.min() >= 0 and x.max() <= 1):
            raise ValueError(f"values from {x.min():g} to {x.max():g}, not from 0 to 1")
        if len(x) != len(y) or (y.size and (y.dtype.kind not in "iu" or y.min() < 0)):
            raise ValueError(f"{len(x)} images and {len(y)} labels, which must be whole numbers from 0 on")
    except (KeyError, TypeError, ValueError) as error:
        told = f"no {error}" if isinstance(error, KeyError) else printable(error)
        raise ConfigError(f"{where}: {told}; make LEAF's files again") from error
    return np.rint(255 * x).astype(np.uint8).reshape(-1, 1, SIDE, SIDE), y.reshape(-1).astype(np.int64)
