"""What is in the files of a data set, as one digest: the key of what is made of them, and what binds a run to its data.

The digest is the SHA-256 of a list of the files, each line the SHA-256 of a file and its path within the data set; so it is the same
wherever the folder lies. Reading all bytes of a folder of 100,000 images takes longer than a start may: a digest is remembered under
the files' sizes, times and inodes. Files that were written a moment ago are always read: a clock is too coarse to tell two writes apart.
"""

import hashlib
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from simulations.config.errors import ConfigError, Lost
from simulations.data import cache

JUST_NOW_S = 3.0  # file systems tell times apart by up to two seconds


class DataChanged(Lost, ConfigError):
    """The data is not what the run began with."""


class DataGone(DataChanged):
    """The data cannot be found or read any more."""


@dataclass(frozen=True)
class Files:
    """Files of a data set that were found.

    Attributes:
        root: the folder that their names are relative to.
        kind: what reads them, see `simulations.data.reading`.
        parts: `train`, `test`, ... -> files in order. What needs no part of its own is in one that is called otherwise.
    """

    root: Path
    kind: str
    parts: dict[str, tuple[Path, ...]]

    @property
    def all(self) -> tuple[Path, ...]:
        return tuple(path for part in self.parts.values() for path in part)


def digest(files: Files) -> str:
    """SHA-256, hexadecimal.

    Raises:
        ConfigError: if a file cannot be read.
    """
    try:
        found, newest = _signature(files.all)
        memo = cache.folder("digests")
        if memo and (known := _remembered(memo / found)):
            return known
        value = _read_all(files.root, files.all)
        if memo and newest < time.time() - JUST_NOW_S and _signature(files.all)[0] == found:
            cache.put_file(memo / found, value.encode())
    except OSError as error:
        raise ConfigError(f"data.path: cannot read {error.filename or files.root} ({error.strerror or error})") from error
    return value


def expect_same(shown: str, wanted: str, found: str) -> None:
    """Raises DataChanged if a run was begun with data of another digest; `wanted`: empty if it is not bound to any."""
    if wanted and wanted != found:
        raise DataChanged(
            f"{shown} is not the data that the run began with: its SHA-256 is {found}, not {wanted} (data.sha256); put these files back, "
            f"or begin another run with --set data.sha256="
        )


def of_arrays(arrays: Sequence) -> str:
    """SHA-256 of arrays that came from no files, their types and shapes included."""
    total = hashlib.sha256()
    for array in arrays:
        total.update(f"{array.dtype.str} {array.shape}\n".encode())
        total.update(memoryview(array.reshape(-1)).cast("B") if array.flags.c_contiguous else array.tobytes())
    return total.hexdigest()


def _read_all(root: Path, paths: Sequence[Path]) -> str:
    total = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            own = hashlib.file_digest(file, "sha256").hexdigest()
        total.update(f"{own}  {path.relative_to(root).as_posix()}\n".encode(errors="surrogateescape"))
    return total.hexdigest()


def _signature(paths: Sequence[Path]) -> tuple[str, float]:
    """What tells whether files were touched, as a file name; and when the last of them was."""
    total, newest = hashlib.sha256(), 0.0
    for path in paths:
        found = os.stat(path)
        newest = max(newest, found.st_mtime, found.st_ctime)
        told = (found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_dev)
        total.update(f"{told} {path}\n".encode(errors="surrogateescape"))
    return total.hexdigest(), newest


def _remembered(file: Path) -> str:
    try:
        text = file.read_text()
    except (OSError, ValueError):
        return ""
    return text if len(text) == 64 and not set(text) - set("0123456789abcdef") else ""
