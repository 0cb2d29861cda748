"""MNIST's own files, IDX: a header of big-endian integers, then the values (LeCun et al. 1998, http://yann.lecun.com/exdb/mnist)."""

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np

from simulations import disk
from simulations.config.data import DataConfig
from simulations.config.errors import ConfigError
from simulations.data.content import Files
from simulations.data.raw import Raw
from sparcl_core.foreign import printable

UNSIGNED_BYTES = 8  # the type's code in a header
PREFIXES = {"train": "train", "test": "t10k"}


def find(folder: Path) -> Files | None:
    """The four files in `folder/raw` or the folder itself, as they are or as .gz, with a dash or a dot before `idx`; None if one lacks."""
    for place in (folder / "raw", folder):
        parts = {part: [_file(place, f"{prefix}-{what}") for what in ("images-idx3", "labels-idx1")] for part, prefix in PREFIXES.items()}
        if all(all(paths) for paths in parts.values()):
            return Files(place, "idx", {part: tuple(paths) for part, paths in parts.items()})
    return None


def read(files: Files, config: DataConfig) -> Raw:
    """Raises ConfigError with what is wrong with a file."""
    arrays = []
    for images, labels in (files.parts[part] for part in PREFIXES):
        x, y = _values(images, 3), _values(labels, 1)
        if len(x) != len(y):
            raise ConfigError(f"{printable(images)} has {len(x)} images and {printable(labels)} {len(y)} labels: fetch both again")
        arrays += [x[:, None], y.astype(np.int64)]
    return Raw(*arrays)


def _file(place: Path, stem: str) -> Path | None:
    name, _, kind = stem.rpartition("-")
    candidates = (f"{name}{sign}{kind}-ubyte{suffix}" for sign in "-." for suffix in ("", ".gz"))
    return next((place / candidate for candidate in candidates if (place / candidate).is_file()), None)


def _values(path: Path, axes: int) -> np.ndarray:
    try:
        data = disk.read(path)
        data = gzip.decompress(data) if path.suffix == ".gz" else data
        zeros, kind, dimensions = struct.unpack_from(">HBB", data)
        shape = struct.unpack_from(f">{axes}I", data, 4)
        if (zeros, kind, dimensions) != (0, UNSIGNED_BYTES, axes):
            raise ValueError("its header is none of unsigned bytes")
        if len(data) - 4 - 4 * axes != math.prod(shape):
            raise ValueError(f"its header says {math.prod(shape)} bytes, and there are {len(data) - 4 - 4 * axes}")
    except (OSError, EOFError, ValueError, struct.error, zlib.error) as error:
        raise ConfigError(f"data.path: {printable(path)} is no whole IDX file ({printable(error)}); fetch it again") from error
    return np.frombuffer(data, np.uint8, offset=4 + 4 * axes).reshape(shape)
