"""What bad input raises, and the hint that belongs to a misspelt word."""

import difflib
import shlex
from collections.abc import Iterable
from pathlib import Path


class ConfigError(ValueError):
    """Bad input from the user: the value, the rule and the way out, in one message."""


class WeightsError(ConfigError):
    """The file of pretrained weights is not there, or not the one that the run began with."""


def did_you_mean(word: object, known: Iterable[str]) -> str:
    """` did you mean 'X'?` with what is spelt most like `word`, led by a blank; empty if nothing is."""
    near = difflib.get_close_matches(str(word)[:100], list(known), n=1)
    return f" did you mean {near[0]!r}?" if near else ""


def command(name: str, path: Path | str, *options: str) -> str:
    """As it is typed into a shell."""
    return f"`sparcl {name} {shlex.join([str(path), *options])}`"


def several(where: str, problems: Iterable[str]) -> None:
    """Raise ConfigError with all `problems` in one message that `where` begins, if there are any."""
    if found := list(dict.fromkeys(problems)):
        raise ConfigError((f"{where}: " if where else "") + "; ".join(found))


class Lost:
    """Mixed into an error of which resuming the run is no way out: what it names has to come back first."""
