"""Free settings of a function that a setting names, as in [data.options]: keyword arguments from TOML, checked before anything starts."""

import difflib
import inspect
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

from sparcl_core.foreign import printable

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_BY_NAME = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", type(None): "nothing"}


def check_options(function: Callable, options: Mapping[str, Any], *, setting: str, given: int = 0, needed: str = "") -> None:
    """That `function` can be called with `given` arguments by position and `options` by name. Does not call it.

    Types are checked where an annotation is bool, int, float, str, Literal, a list or tuple of these, or a union; a whole number is a
    number. Other annotations, and those that cannot be resolved, are left to the function.

    Args:
        function: or a class, whose `__init__` is meant.
        setting: where the options stand, `data.options`.
        needed: what is wanted in the place of a function that takes another number of arguments.

    Raises:
        ValueError: names all options that are unknown (with the nearest), missing or of the wrong type; or says that `function` cannot
            be called, or takes another number of arguments.
    """
    named = getattr(function, "__qualname__", None) or type(function).__name__
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError) as error:
        raise ValueError(f"{setting}: {printable(named)} is no function whose arguments can be told: {printable(error)}") from error
    first = [one for one in parameters if one.kind in _POSITIONAL][:given]
    if len(first) < given and not any(one.kind is one.VAR_POSITIONAL for one in parameters):
        raise ValueError(
            f"{setting}: {printable(named)} takes {len(first)} arguments by position, and is given {given}{f'; {needed}' if needed else ''}"
        )
    rest = [one for one in parameters if one not in first]
    if problems := [*_wrong_names(rest, options, setting, named), *_wrong_values(function, rest, options, setting)]:
        raise ValueError("; ".join(problems))


def _wrong_names(parameters: list[inspect.Parameter], options: Mapping[str, Any], setting: str, named: str) -> Iterator[str]:
    known = [one.name for one in parameters if one.kind in _BY_NAME]
    takes_all = any(one.kind is one.VAR_KEYWORD for one in parameters)
    for name in options if not takes_all else ():
        if name not in known:
            near = difflib.get_close_matches(name[:100], known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}" if known else "it has none"
            yield f"{setting}.{printable(name, 120)} is no option of {printable(named)}; {hint}"
    for one in parameters:
        if one.default is one.empty and one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD) and one.name not in options:
            yield f"{setting}.{one.name} is missing: {printable(named)} has no default for it"


def _wrong_values(function: Callable, parameters: list[inspect.Parameter], options: Mapping[str, Any], setting: str) -> Iterator[str]:
    try:
        hints = typing.get_type_hints(function.__init__ if isinstance(function, type) else function)
    except Exception:  # an annotation of a name that is known to type checkers only
        return
    for one in parameters:
        if one.name in options and one.name in hints and not _fits(options[one.name], hints[one.name]):
            yield f"{setting}.{one.name} is {printable(repr(options[one.name]), 120)}: input should be {_described(hints[one.name])}"


def _fits(value: Any, hint: Any) -> bool:
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if hint in _WORDS:
        return type(value) is hint or (hint is float and type(value) is int)
    if origin is Literal:
        return any(type(value) is type(part) and value == part for part in parts)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, part) for part in parts)
    if hint in (list, tuple) or origin in (list, tuple):
        return isinstance(value, list | tuple) and all(map(_fits, value, _elements(origin, parts, len(value))))
    return True


def _elements(origin: Any, parts: tuple, count: int) -> list:
    """What each of `count` elements is to be; a tuple of another length is left to the function."""
    if not parts or (origin is tuple and parts[-1] is not ... and len(parts) != count):
        return [Any] * count
    return list(parts) if origin is tuple and parts[-1] is not ... else [parts[0]] * count


def _described(hint: Any) -> str:
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if hint in _WORDS:
        return _WORDS[hint]
    if origin is Literal:
        return " or ".join(map(repr, parts))
    if origin in (typing.Union, types.UnionType):
        return " or ".join(map(_described, parts))
    inner = f" of which each is {_described(parts[0])}" if parts and parts[0] in _WORDS else ""
    return f"a list{inner}" if hint in (list, tuple) or origin in (list, tuple) else printable(hint, 60)
