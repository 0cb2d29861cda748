"""Data of the user's own: a function of (config, seed, **options) that gives arrays, by import path or from an installed package.

    def load(config, seed, *, rooms=4):
        return train_x, train_y, test_x, test_y         # or (..., train_ids), or a Raw

Images are uint8, [N, H, W], [N, H, W, C] or [N, C, H, W]; labels [N] whole numbers. `config` is section [data] as it is
(`simulations.config.data.DataConfig`), options are those of its table [data.options].
"""

import inspect
from collections.abc import Iterator
from dataclasses import replace

from simulations.config.data import DATA, DataConfig
from simulations.config.errors import ConfigError, did_you_mean, several
from simulations.data import content
from simulations.data.arrays import as_raw
from simulations.data.raw import Raw
from sparcl_core.foreign import printable
from sparcl_core.plugins import OURS


def expect_options(config: DataConfig) -> None:
    """Raises ConfigError if a function of the user's own cannot be called with `config.options`; it is imported for that."""
    if DATA.offer(config.name).origin == OURS:
        return
    function = DATA.find(config.name)
    shown = f"data.name is {printable(repr(config.name), 120)}"
    if not callable(function):
        raise ConfigError(f"{shown}, which is no function: one of (config, seed, **options) is needed that gives arrays")
    try:
        known = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # written in C
        return
    if sum(one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD) for one in known) < 2 and not _takes(known, "VAR_POSITIONAL"):
        raise ConfigError(f"{shown}, which does not take (config, seed): these are what it is called with")
    several("", _wrong(config, known))


def _wrong(config: DataConfig, known: list[inspect.Parameter]) -> Iterator[str]:
    free = {one.name: one for one in known[2:] if one.kind in (one.KEYWORD_ONLY, one.POSITIONAL_OR_KEYWORD)}
    for option in sorted(set(config.options) - set(free)):
        if not _takes(known, "VAR_KEYWORD"):
            there = did_you_mean(option, free) or (f" it has {', '.join(sorted(free))}" if free else " it has none")
            yield f"data.options.{option} is no option of {printable(config.name)};{there}"
    for option in sorted(name for name, one in free.items() if one.default is one.empty and name not in config.options):
        yield f"data.options.{option} is missing: {printable(config.name)} needs it; --set data.options.{option}=VALUE"


def _takes(known: list[inspect.Parameter], kind: str) -> bool:
    return any(one.kind.name == kind for one in known)


def read_own(config: DataConfig, seed: int) -> Raw:
    """What the function gives, with the digest of its arrays.

    Raises:
        ConfigError: if it fails, or what it gives is no data set.
    """
    expect_options(config)
    try:
        given = DATA.find(config.name)(config, seed, **config.options)
    except ConfigError:
        raise
    except Exception as error:  # whatever somebody else's code does
        told = f"{type(error).__name__}: {printable(error)}"
        raise ConfigError(f"data.name is {printable(repr(config.name), 120)}, and it failed ({told})") from error
    raw = as_raw(given, f"data.name {config.name!r}")
    arrays = (raw.train_x, raw.train_y, raw.test_x, raw.test_y, *(() if raw.train_ids is None else (raw.train_ids,)))
    return replace(raw, sha256=raw.sha256 or content.of_arrays(arrays))
