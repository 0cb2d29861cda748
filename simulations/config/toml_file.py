"""TOML from people: files and the values of `--set`. Whatever is in them, the error is one message that names the file."""

import tomllib
from pathlib import Path
from typing import Any

from simulations import disk
from simulations.config.errors import ConfigError
from sparcl_core.foreign import printable

DEEPEST = 8  # tables and lists within each other; no file of ours needs more than four


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a file in UTF-8, with a byte order mark or without.

    Raises:
        OSError: if it cannot be read.
        ConfigError: if it is no TOML, or tables lie deeper in each other than any of ours.
    """
    try:
        text = disk.read(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is no TOML: byte {error.start} is not UTF-8; store it as UTF-8") from error
    return parse_toml(text.replace("\r\n", "\n"), str(path))


def parse_toml(text: str, where: str) -> dict[str, Any]:
    """The tables in `text`.

    Raises:
        ConfigError: as `read_toml`; `where` begins the message.
    """
    try:
        tree = tomllib.loads(text)
    except RecursionError as error:
        raise ConfigError(f"{where} is no TOML that we can use: its values lie too deep in each other") from error
    except ValueError as error:  # TOMLDecodeError, and what Python says of integers of thousands of digits
        raise ConfigError(f"{where} is no TOML: {printable(error)}") from error
    check_depth(tree, where)
    return tree


def check_depth(tree: dict[str, Any], where: str) -> None:
    """Raises ConfigError if values lie deeper in each other than `DEEPEST`; does not recur itself."""
    level: list = [tree]
    for _ in range(DEEPEST):
        inner = (item for value in level for item in (value.values() if isinstance(value, dict) else value))
        level = [item for item in inner if isinstance(item, dict | list)]
        if not level:
            return
    raise ConfigError(f"{where}: its values lie more than {DEEPEST} deep in each other; a setting is section.key, or section.table.key")
