"""Run folders: their names, the files that are ours in them, and how one comes to be whole or not at all."""

import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from simulations.config.errors import ConfigError
from simulations.disk import Own, delete, flush, make_folder, put

FILES = (  # of a fleet's run
    "config.toml", "environment.json", "rounds.parquet", "accuracy.parquet", "classes.parquet", "devices.parquet", "ledger.parquet",
    "wall.parquet", "model.safetensors", "summary.json", "report.png",
)  # fmt: skip
CLAIM_FILES = ("table.md", "runs.json", "environment.json", "sweep.png")


def claim_folder(parent: Path, name: str) -> Path:
    """Make `parent/NAME[-K]`, the first of these that is not there.

    Raises:
        ConfigError: if it cannot be made.
    """
    while True:
        folder = _free_name(parent, name)
        try:
            make_folder(parent)
            folder.mkdir()
        except FileExistsError:
            if parent.is_dir():
                continue  # somebody else was faster
            raise ConfigError(f"run folder {parent} cannot be written (it is a file); choose another with --out") from None
        except OSError as error:
            raise ConfigError(f"run folder {parent} cannot be written ({error.strerror or error}); choose another with --out") from error
        return folder


@contextmanager
def new_folder(parent: Path, name: str):
    """A staging folder that becomes `parent/NAME[-K]` when the block ends well, and is removed when it does not.

    Yields (staging folder, final path).

    Raises:
        ConfigError: before anything runs, if the folder cannot be written; or at the end, if it cannot be renamed: then it stays.
    """
    final = _free_name(parent, name)
    staging = parent / f".{final.name}.{secrets.token_hex(4)}"
    try:
        make_folder(parent)
        staging.mkdir()
        put(staging / FILES[0], [])
        delete(staging, FILES[:1])
    except OSError as error:
        raise ConfigError(f"run folder {parent} cannot be written ({error.strerror or error}); choose another with --out") from error
    try:
        yield staging, final
    except BaseException as error:
        delete(staging, {*FILES, *CLAIM_FILES})
        try:
            staging.rmdir()
        except OSError:
            error.add_note(f"what is not ours stays in {staging}")
        raise
    try:
        flush([*staging.iterdir(), staging])
        if os.path.lexists(final):
            final = _free_name(parent, name)
        staging.rename(final)
        flush([parent])
    except OSError as error:
        raise ConfigError(f"the results are whole, in {staging}, and cannot be moved to {final} ({error.strerror or error})") from error


@contextmanager
def kept_folder(parent: Path, name: str) -> Iterator[Path]:
    """The folder of what is kept between attempts; it goes when the block ends well, and stays when it does not, with a note.

    Raises:
        ConfigError: if it cannot be written.
    """
    folder = parent / name
    try:
        make_folder(folder)
    except OSError as error:
        raise ConfigError(f"run folder {folder} cannot be written ({error.strerror or error}); choose another with --out") from error
    try:
        yield folder
    except BaseException as error:
        if any(folder.iterdir()):
            error.add_note(f"runs that are over are kept in {folder}: the same command goes on from there")
        else:
            folder.rmdir()
        raise
    _RUNS.remove(folder)
    with suppress(OSError):
        folder.rmdir()


_RUNS = Own(files=re.compile(r"[0-9a-f]{64}\.(json(\.new)?|toml)|[0-9a-f]{64}/point[\w.-]+"), folders=re.compile(r"[0-9a-f]{64}"))


def _free_name(parent: Path, name: str) -> Path:
    candidate, number = parent / name, 2
    while os.path.lexists(candidate):  # a link to nowhere is taken, too
        candidate, number = parent / f"{name}-{number}", number + 1
    return candidate
