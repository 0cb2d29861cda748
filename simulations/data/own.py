"""Data of the user's own: a function of (config, seed, **options) that gives arrays, by import path or from an installed package.

    def load(config, seed, *, rooms=4):
        return train_x, train_y, test_x, test_y         # or (..., train_ids), or a Raw

Images are uint8, [N, H, W], [N, H, W, C] or [N, C, H, W]; labels [N] whole numbers. `config` is section [data] as it is
(`simulations.config.data.DataConfig`), options are those of its table [data.options].
"""

from dataclasses import replace

from simulations.config.data import DATA, DataConfig
from simulations.config.errors import ConfigError
from simulations.data import content
from simulations.data.arrays import as_raw
from simulations.data.raw import Raw
from sparcl_core.foreign import printable
from sparcl_core.plugins.kinds import OURS
from sparcl_core.plugins.options import check_options


def expect_options(config: DataConfig) -> None:
    """Raises ConfigError if a function of the user's own cannot be called with `config.options`; it is imported for that."""
    if DATA.offer(config.name).origin == OURS:
        return
    function = DATA.find(config.name)
    shown = f"data.name is {printable(repr(config.name), 120)}"
    if not callable(function):
        raise ConfigError(f"{shown}, which is no function: one of (config, seed, **options) is needed that gives arrays")
    try:
        check_options(function, config.options, setting="data.options", given=2)
    except ValueError as error:
        raise ConfigError(f"{shown}, and {printable(error)}; it is called with (config, seed), and data.options by name") from error


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
