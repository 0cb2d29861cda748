"""What is wrong with the tables of an experiment, in words: which key, what stands there, the rule, and what was probably meant."""

import dataclasses
import difflib
import re
from collections.abc import Iterable
from typing import Any

from pydantic import ValidationError

from simulations.config.errors import did_you_mean
from sparcl_core.foreign import printable

SHOWN = 120  # characters of a wrong value


def explain(error: ValidationError, experiment: type) -> list[str]:
    """One message per mistake. `experiment`: the dataclass whose fields are sections and settings."""
    return [_explain(item, experiment) for item in error.errors()]


def keys_of(section: type) -> list[str]:
    """All settings of a dataclass of dataclasses, as `section.key`."""
    keys = []
    for part in dataclasses.fields(section):
        is_section = dataclasses.is_dataclass(part.type)
        keys += [f"{part.name}.{key}" for key in keys_of(part.type)] if is_section else [part.name]
    return keys


def _explain(item: dict[str, Any], experiment: type) -> str:
    where = ".".join(str(part) for part in item["loc"])
    if item["type"] == "unexpected_keyword_argument":
        shown = printable(repr(where), SHOWN)
        return f"unknown config key {shown};{_meant(item['loc'], item['input'], experiment)}"
    if item["type"] == "value_error":
        told = str(item["ctx"]["error"])
        return told if not where or told.startswith(f"{where}.") else f"{where}: {told}"  # what is said of a name has its whole key
    message = item["msg"].lower() if where else item["msg"]
    hint = ""
    if item["type"] == "literal_error":
        hint = did_you_mean(item["input"], re.findall(r"'([^']+)'", item["ctx"]["expected"]))
    return f"{where or 'the experiment'} is {printable(repr(item['input']), SHOWN)}: {message}{';' if hint else ''}{hint}"


def _meant(loc: tuple, value: Any, experiment: type) -> str:
    """The key or section that was probably meant, or what there is."""
    keys, last = keys_of(experiment), str(loc[-1])
    here = _fields_at(loc[:-1], experiment)
    if isinstance(value, dict) and len(loc) == 1:  # a table, so a section was meant
        sections = [part.name for part in dataclasses.fields(experiment) if dataclasses.is_dataclass(part.type)]
        if not (near := difflib.get_close_matches(last[:100], sections, n=1)):
            near = [section for section in sections if value and all(f"{section}.{key}" in keys for key in value)]
        return _or(near[:3]) or f" known sections: {', '.join(sections)}"
    same = [key for key in keys if key.rpartition(".")[2] == last]
    prefix = "".join(f"{part}." for part in loc[:-1])
    if same or (same := [prefix + near for near in difflib.get_close_matches(last[:100], here, n=1)]):
        return _or(same[:3])
    return did_you_mean(".".join(map(str, loc)), keys) or f" known keys here: {', '.join(here)}"


def _fields_at(loc: Iterable, section: type) -> list[str]:
    for part in loc:
        section = next(f.type for f in dataclasses.fields(section) if f.name == part)
    return [f.name for f in dataclasses.fields(section)]


def _or(words: list[str]) -> str:
    *most, last = (repr(word) for word in words) if words else ("",)
    return (f" did you mean {', '.join(most)} or {last}?" if most else f" did you mean {last}?") if last else ""
