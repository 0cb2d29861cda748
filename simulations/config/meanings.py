"""What each setting means, read from where it is declared: the fields of the sections' dataclasses and the text of their docstrings.

A docstring says of its fields `name: meaning`, or `one, other: meaning` of several, each from the beginning of a line under `Attributes:`,
or one after the other.
"""

import functools
import inspect
import re
import types
import typing
from collections.abc import Iterator
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from typing import Any, Literal

from simulations.config.errors import ConfigError, did_you_mean
from simulations.config.experiment import SECTIONS, Experiment
from simulations.config.unread import conditions, in_words
from sparcl_core.config import LearnerConfig
from sparcl_core.foreign import printable
from sparcl_core.methods.registry import OURS, find_method

_TYPES = {bool: "true or false", int: "whole number", float: "number", str: "text", type(None): "left out", Any: "value"}


@dataclass(frozen=True)
class Setting:
    """A key and what stands for it.

    Attributes:
        key: `learner.lr`.
        kind: what its value is, in words.
        default: as a file would have it; empty: it is left out.
        meaning: of a dataclass's docstring.
        read_with: what must be so that it is read, in words; empty: it always is.
    """

    key: str
    kind: str
    default: str
    meaning: str
    read_with: str = ""


@functools.cache
def settings() -> tuple[Setting, ...]:
    """All settings: those of the experiment, of its sections, and of methods of ours in [learner]."""
    return (*_of("", Experiment), *(one for name, section in SECTIONS.items() for one in _of(name, section)))


def title(section: type) -> str:
    """What a section is about: the first sentence of its docstring."""
    first = re.split(r"[.;](?:\s|$)", " ".join((inspect.getdoc(section) or "").split("\n\n")[0].split()))[0]
    return re.sub(r"^Section \[\w+\]: (\w)", lambda found: found[1].upper(), first)


def matching(text: str) -> list[Setting]:
    """The settings of a section, or those whose keys begin with `text`, or else have it in them.

    Raises:
        ConfigError: if there are none.
    """
    fits = (
        lambda key: key == text or key.startswith(f"{text}."),
        lambda key: key.startswith(text) or key.rpartition(".")[2].startswith(text),
        lambda key: text in key,
    )
    for fit in fits:
        if found := [one for one in settings() if fit(one.key)]:
            return found
    hint = did_you_mean(text, [*(one.key for one in settings()), *SECTIONS])
    known = ", ".join(SECTIONS)
    raise ConfigError(f"there is no setting {printable(repr(text), 120)};{hint} there are those of the experiment itself, and of {known}")


def _of(name: str, section: type) -> Iterator[Setting]:
    for part in fields(section):
        if not is_dataclass(part.type):
            yield _setting(name, section, part)
    if section is LearnerConfig:
        own: dict[str, tuple[Setting, list[str]]] = {}
        for method in OURS:
            config = find_method(method).Config
            for part in fields(config):
                if part.name not in {one.name for one in fields(LearnerConfig)}:
                    own.setdefault(part.name, (_setting(name, config, part), []))[1].append(method)
        for setting, methods in own.values():
            read = in_words(f"learner.method={'|'.join(methods)}")
            yield Setting(setting.key, setting.kind, setting.default, setting.meaning, read)


def _setting(name: str, section: type, part: Field) -> Setting:
    key = f"{name}.{part.name}" if name else part.name
    value = part.default_factory() if part.default is MISSING else part.default
    read = ", and ".join(map(in_words, conditions().get(key, ())))
    return Setting(key, _words(part.type), _toml(value), meanings(section).get(part.name, ""), read)


@functools.cache
def meanings(section: type) -> dict[str, str]:
    """Field -> what the docstring says of it."""
    text = inspect.getdoc(section) or ""
    names = "|".join(part.name for part in fields(section))
    head, has_list, listed = text.partition("Attributes:\n")
    begin = r"(?m)^ {4}" if has_list else r"(?:(?<=^)|(?<=[.;] )|(?<=[.;]\n))"
    marks = [*re.finditer(rf"{begin}((?:{names})(?:, (?:{names}))*): ", listed if has_list else head)]
    found, body = {}, listed if has_list else head
    for mark, following in zip(marks, [*marks[1:], None], strict=True):
        told = " ".join(body[mark.end() : following.start() if following else None].split())
        found |= dict.fromkeys(mark.group(1).split(", "), told)
    return found


def _words(hint: Any) -> str:
    """A type, as somebody who writes TOML sees it."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return ", ".join(map(str, parts[:-1])) + f" or {parts[-1]}"
    if origin in (typing.Union, types.UnionType):
        return " or ".join(map(_words, parts))
    if origin in (tuple, list):
        return f"list of {_words(parts[0])}s"
    return "table" if origin is dict or hint is dict else _TYPES[hint]


def _toml(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_toml, value))}]"
    return "{}" if isinstance(value, dict) else f'"{value}"' if isinstance(value, str) else f"{value}"
