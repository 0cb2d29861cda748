"""Decoded data sets on disk: arrays that are mapped into memory by whoever needs them, so that a second start decodes nothing.

    $SPARCL_DATA_CACHE, else $XDG_CACHE_HOME/sparcl/images, else ~/.cache/sparcl/images; `off` keeps nothing
        KEY/              of a data set: manifest.json and its arrays as .npy files
        digests/          SHA-256 of files, under their sizes, times and inodes (`simulations.data.content`)

KEY is the content of the files, the settings that decide what becomes of them, and the version of what decodes them. An entry is written
beside its place and renamed: there is a whole one or none, whoever else writes it. Its arrays are compared with the checksums of its
manifest whenever they are mapped, and a damaged entry is made again. `sparcl data --clear-cache` removes all; until then all stays.
"""

import hashlib
import json
import logging
import mmap
import os
import re
import secrets
import shutil
import time
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import fields, replace
from importlib import metadata
from pathlib import Path

import numpy as np

from simulations.data.raw import Raw

log = logging.getLogger(__name__)
VARIABLE = "SPARCL_DATA_CACHE"
FORMAT = 1
ABANDONED_S = 86_400.0  # what a killed process has left of an entry
WORTH_MAPPING = 2**16  # bytes
ARRAYS = ("train_x", "train_y", "test_x", "test_y", "train_ids")
_ENTRY, _DIGEST = re.compile(r"\.?[0-9a-f]{32}(\.[0-9a-f]{8})?"), re.compile(r"[0-9a-f]{64}(\.[0-9a-f]{8})?")


def place() -> Path | None:
    """The folder; None if nothing is to be kept. It need not be there."""
    if (given := os.environ.get(VARIABLE, "")) == "off":
        return None
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.path.expanduser(given or f"{home}/sparcl/images"))


def folder(name: str = "") -> Path | None:
    """The folder, or one in it, made if need be; None if nothing is to be or can be kept."""
    if not (found := place()):
        return None
    try:
        (found / name).mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError):
        return None
    return found / name


def put_file(path: Path, content: bytes) -> None:
    """Write a small file whole or not at all; what cannot be written is left out."""
    beside = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    try:
        beside.write_bytes(content)
        beside.replace(path)
    except OSError:
        with suppress(OSError):
            beside.unlink()


def mapped(key: dict, make: Callable[[], Raw]) -> Raw:
    """The data set of this key, mapped from the cache; made, and kept, if it is not there.

    Args:
        key: JSON values that decide what `make` makes.
    """
    told = json.dumps([FORMAT, metadata.version("pillow"), key], sort_keys=True)
    name = hashlib.sha256(told.encode()).hexdigest()[:32]
    if not (root := folder()):
        return make()
    if (found := _load(root / name)) is not None:
        return found
    made = make()
    try:
        _store(root, name, made)
    except OSError as error:
        log.warning("decoded images are not kept: %s cannot be written (%s); %s names another folder", root, error.strerror, VARIABLE)
        return made
    kept = _load(root / name)
    return made if kept is None else kept


def clear() -> int:
    """Remove all that the cache holds, and nothing that has another name. Returns its bytes."""
    root = place()
    if not root or not root.is_dir():
        return 0
    entries = [entry for entry in root.iterdir() if _ENTRY.fullmatch(entry.name) and entry.is_dir() and not entry.is_symlink()]
    digests = [file for file in (root / "digests").glob("*") if _DIGEST.fullmatch(file.name)]
    size = sum(file.lstat().st_size for file in (*digests, *(file for entry in entries for file in entry.iterdir())))
    for entry in entries:
        shutil.rmtree(entry, ignore_errors=True)
    for file in digests:
        file.unlink(missing_ok=True)
    with suppress(OSError):
        (root / "digests").rmdir()
    return size


def _store(root: Path, name: str, raw: Raw) -> None:
    """Raises OSError if it cannot be written; nothing is left then."""
    beside, aside = (root / f".{name}.{secrets.token_hex(4)}" for _ in range(2))
    try:
        _write(beside, raw)
        try:
            beside.rename(root / name)
        except OSError:  # somebody else was faster, or what is there is damaged; whoever has that mapped keeps it
            if _load(root / name, tells=False) is None:
                (root / name).rename(aside)
                beside.rename(root / name)
    finally:
        for old in root.glob(f".{name}.*"):
            with suppress(FileNotFoundError):  # another process's, which has just been moved to its place
                if old in (beside, aside) or old.stat().st_mtime < time.time() - ABANDONED_S:
                    shutil.rmtree(old, ignore_errors=True)


def _write(entry: Path, raw: Raw) -> None:
    entry.mkdir()
    sums = {}
    for array in ARRAYS:
        if (values := getattr(raw, array)) is not None:
            np.save(entry / f"{array}.npy", np.ascontiguousarray(values), allow_pickle=False)
            sums[array] = _checksum(entry / f"{array}.npy")
    told = {field.name: getattr(raw, field.name) for field in fields(raw) if field.name not in ARRAYS}
    body = json.dumps({"arrays": sums, "told": told}, sort_keys=True)
    (entry / "manifest.json").write_text(f"{zlib.crc32(body.encode()):08x} {body}")


def _load(entry: Path, tells: bool = True) -> Raw | None:
    """A whole entry, its arrays mapped copy-on-write: pages are shared until somebody writes to them. None if it is not whole."""
    try:
        check, _, body = (entry / "manifest.json").read_text().partition(" ")
        if int(check, 16) != zlib.crc32(body.encode()):
            raise ValueError("its manifest")
        manifest = json.loads(body)
        arrays = dict.fromkeys(ARRAYS)
        for array, wanted in manifest["arrays"].items():
            if _checksum(entry / f"{array}.npy") != wanted:
                raise ValueError(f"{array}.npy")
            mode = "c" if wanted[0] >= WORTH_MAPPING else None
            # a plain view: an np.memmap would be pickled through a copy, and not lie in Ray's store by itself
            arrays[array] = np.load(entry / f"{array}.npy", mmap_mode=mode, allow_pickle=False).view(np.ndarray)
        told = manifest["told"]
        lists = {key: tuple(told[key]) for key in ("names", "notes")}
        found = told["moments"] and tuple(map(tuple, told["moments"]))
        return replace(Raw(**arrays), **lists, sha256=told["sha256"], moments=found)
    except FileNotFoundError:
        if not entry.is_dir():
            return None
        why = "it is not whole"
    except (OSError, ValueError, KeyError, TypeError) as error:
        why = str(error)
    if tells:
        log.warning("%s is damaged (%s): its data is decoded again", entry, why)
    return None


def _checksum(file: Path) -> list[int]:
    """Bytes and CRC-32 of a file that is not empty: against damage, not against people."""
    with open(file, "rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return [len(content), zlib.crc32(content)]
