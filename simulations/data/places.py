"""Where the files of a data set lie. Nothing is read here but names of files, so that a typo is told before anything slow is imported."""

import os
from pathlib import Path
from typing import Literal

from simulations.config.data import DATA, DataConfig
from simulations.config.errors import ConfigError
from simulations.data import layouts
from simulations.data.content import Files
from simulations.data.published import PUBLISHED
from sparcl_core.foreign import printable

VARIABLE = "SPARCL_DATA"


def downloads() -> Path:
    """Where `--download` puts benchmarks, and where they are looked for if data.path is empty."""
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.path.abspath(os.path.expanduser(os.environ.get(VARIABLE) or f"{home}/sparcl/data")))


def where(config: DataConfig) -> Path:
    """The folder or file of `config.path`, whole."""
    return Path(os.path.abspath(os.path.expanduser(config.path))) if config.path else downloads()


def find(config: DataConfig) -> Files | None:
    """The files of a data set; None if it has none: the digits, and functions of the user's own.

    Raises:
        ConfigError: if they are not there, with how they may lie.
    """
    DATA.offer(config.name)
    if config.name in PUBLISHED:
        return _published(config)
    if config.name not in layouts.FINDERS:
        return None
    path = where(config)
    if not _is(path, "exists") or (config.name != "npz" and not _is(path, "is_dir")):
        whole = "" if str(path) == config.path else f" ({printable(path)})"
        there = "it is no folder, give the one that it lies in" if _is(path, "exists") else f"there is no such folder{whole}"
        raise ConfigError(f"data.path: cannot read {printable(repr(config.path))}: {there}; it is {layouts.KINDS[config.name]}")
    try:
        return layouts.FINDERS[config.name](path)
    except OSError as error:
        raise ConfigError(f"data.path: cannot read {printable(error.filename or path)} ({error.strerror or error})") from error


def _published(config: DataConfig) -> Files:
    """Of a benchmark: in any of its layouts, in the folder itself or in one within that is called as it."""
    known, path = PUBLISHED[config.name], where(config)
    if path.is_file() and path.suffix == ".npz":
        return layouts.npz_file(path)
    try:
        for place in (path, *(path / name for name in known.folders)):
            for finder in known.finders:
                if place.is_dir() and (found := finder(place)):
                    return found
    except OSError as error:
        raise ConfigError(f"data.path: cannot read {printable(error.filename or path)} ({error.strerror or error})") from error
    there = "which is not there" if not _is(path, "exists") else "which is a file" if path.is_file() else "which has none of these"
    way = f"--download fetches it there ({known.size})" if known.is_fetched else known.source
    raise ConfigError(
        f"data.name is {config.name!r}: {known.title} is not in {printable(path)}, {there}: {known.layouts}; {way}; "
        f"data.path names another folder"
    )


def _is(path: Path, what: Literal["exists", "is_dir"]) -> bool:
    try:
        return getattr(path, what)()
    except (OSError, ValueError):  # a name that no file can have
        return False
