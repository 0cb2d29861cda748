"""What is wrong with the tables of an experiment, in words: which key, what stands there, the rule, and what was probably meant."""

import dataclasses
import difflib
import inspect
import json
import re
import shlex
from collections.abc import Iterable
from typing import Any

from pydantic import ValidationError

from server.aggregation.config import RULES
from server.fleet.availability import KINDS
from server.selection.policies import POLICIES
from simulations.config.data import DATA
from simulations.config.errors import did_you_mean
from sparcl_core.config import MODELS, LearnerConfig
from sparcl_core.foreign import printable
from sparcl_core.methods.registry import OURS, find_method
from sparcl_core.plugins.kinds import Kind

SHOWN = 120  # characters of a wrong value
NAMED = {"model": MODELS, "data": DATA, "selection": POLICIES, "availability": KINDS, "aggregation": RULES}  # sections with options


def explain(error: ValidationError, experiment: type, tree: dict[str, Any]) -> list[str]:
    """One message per mistake. `experiment`: the dataclass whose fields are sections and settings; `tree`: what was read as one."""
    return [_explain(item, experiment, tree) for item in error.errors()]


def keys_of(section: type) -> list[str]:
    """All settings of a dataclass of dataclasses, as `section.key`."""
    keys = []
    for part in dataclasses.fields(section):
        is_section = dataclasses.is_dataclass(part.type)
        keys += [f"{part.name}.{key}" for key in keys_of(part.type)] if is_section else [part.name]
    return keys


def _explain(item: dict[str, Any], experiment: type, tree: dict[str, Any]) -> str:
    where = ".".join(str(part) for part in item["loc"])
    if item["type"] == "unexpected_keyword_argument":
        shown = printable(repr(where), SHOWN)
        meant = _elsewhere(item["loc"], experiment, tree) or _meant(item["loc"], item["input"], experiment)
        return f"unknown config key {shown};{meant}"
    if item["type"] == "value_error":
        told = str(item["ctx"]["error"])
        return told if not where or told.startswith(f"{where}.") else f"{where}: {told}"  # what is said of a name has its whole key
    message = item["msg"].lower() if where else item["msg"]
    hint = ""
    if item["type"] in ("tuple_type", "list_type"):
        told = json.dumps(item["input"])
        message = f"it must be a list, such as --set {shlex.quote(f'{where}=[{told}]')}" if len(told) <= SHOWN else "it must be a list"
    elif item["type"] == "dict_type":
        message = f"it must be a table, such as --set {where}.NAME=VALUE"
    if item["type"] == "literal_error":
        hint = did_you_mean(item["input"], re.findall(r"'([^']+)'", item["ctx"]["expected"]))
    return f"{where or 'the experiment'} is {printable(repr(item['input']), SHOWN)}: {message}{';' if hint else ''}{hint}"


def _elsewhere(loc: tuple, experiment: type, tree: dict[str, Any]) -> str:
    """Where a key belongs that is none here: among the options of a function that a setting names, or to another method; else empty."""
    section, key = str(loc[0]), str(loc[-1])
    if len(loc) == 2 and section in NAMED and (known := _options(NAMED[section], tree[section])) is not None:
        here = difflib.get_close_matches(key[:100], _fields_at(loc[:-1], experiment), n=1, cutoff=0.75)
        own = difflib.get_close_matches(key[:100], known, n=1) or ([] if here or NAMED[section] is RULES else [key])
        return _or([f"{section}.options.{name}" for name in own])
    if section not in ("learner", key) or any(name.rpartition(".")[2] == key for name in keys_of(experiment)):
        return ""
    methods = [name for name in OURS if key in {part.name for part in dataclasses.fields(find_method(name).Config)}]
    learner = tree.get("learner", {})
    method = learner.get("method", LearnerConfig.method) if isinstance(learner, dict) else LearnerConfig.method
    return f" it is a setting of method {' and '.join(methods)}, and this is {printable(method, SHOWN)}; leave it out" if methods else ""


def _options(kind: Kind, section: Any) -> list[str] | None:
    """The options of what a section names, as far as they can be told; None if it is something of ours that takes none."""
    name = section.get(kind.setting.rpartition(".")[2]) if isinstance(section, dict) else None
    if not isinstance(name, str) or (name in kind.ours and kind is not RULES):
        return None
    try:
        return [one.name for one in inspect.signature(kind.find(name)).parameters.values() if one.kind is not one.VAR_KEYWORD]
    except (ValueError, TypeError):  # which is told beside this
        return []


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
