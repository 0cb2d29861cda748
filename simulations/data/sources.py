"""From the name of a data set to arrays that are ready for use.

What a name stands for is a function of (config, seed) that gives a `Raw`; functions of the user's own: `simulations.data.own`.
"""

import functools
import logging
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from simulations.config.data import DATA, DataConfig
from simulations.config.errors import ConfigError
from simulations.data import content
from simulations.data.classes import number_classes, tell_missing
from simulations.data.moments import moments
from simulations.data.own import read_own
from simulations.data.places import find, where
from simulations.data.raw import Dataset
from sparcl_core.plugins.kinds import OURS
from sparcl_core.seeding import generator

log = logging.getLogger(__name__)


def load_data(config: DataConfig, seed: int) -> Dataset:
    """The data of an experiment: training part, and what it is tested on (the validation part if one is held out).

    Raises:
        ConfigError: if the data is not here, not what the config says, or not what the run began with.
    """
    data = load_unbound(replace(config, sha256=""), seed)
    content.expect_same(_shown(config), config.sha256, data.raw.sha256)
    return data


@functools.lru_cache(1)  # the start of a run asks for the shape of its inputs, then for the data
def load_unbound(config: DataConfig, seed: int) -> Dataset:
    """As `load_data`, whatever digest the data has."""
    own = DATA.offer(config.name).origin != OURS
    raw = read_own(config, seed) if own else DATA.find(config.name)(config, seed)
    for note in raw.notes:
        log.warning("%s: %s", _shown(config), note)
    labels, train_y, test_y = number_classes(raw.train_y, raw.test_y)
    raw = replace(raw, train_y=train_y, test_y=test_y)
    if config.validation:
        held = _hold_out(raw.train_y, config.validation, seed)
        rest = np.setdiff1d(np.arange(len(raw.train_y)), held)
        raw = replace(raw.training(rest), test_x=raw.train_x[held], test_y=raw.train_y[held])
    if config.train_limit:
        kept = _per_class(raw.train_y, lambda count: min(config.train_limit, count), seed, "limit")
        raw = raw.training(kept)
    tell_missing(labels, raw.train_y, raw.test_y)
    from sparcl_core.inputs import InputSpec  # imported late: it brings PyTorch, and files are looked at before

    raw = replace(raw, moments=raw.moments or moments(raw.train_x))
    return Dataset(raw, InputSpec(tuple(map(int, raw.train_x.shape[1:])), len(labels), *raw.moments), labels)


def bound(config: DataConfig, seed: int) -> DataConfig:
    """`config` with the digest of the content that is there now, and its path whole: a run's settings, which it is resumed with.

    Raises:
        ConfigError: as `load_data`.
    """
    found = find(config)
    if not found and DATA.offer(config.name).origin == OURS:
        return config  # built in
    digest = content.digest(found) if found else load_unbound(replace(config, sha256=""), seed).raw.sha256
    content.expect_same(_shown(config), config.sha256, digest)
    return replace(config, sha256=digest, path=str(where(config))) if found else replace(config, sha256=digest)


def expect_same(config: DataConfig) -> None:
    """Raises DataChanged if the files are not those that a run began with, DataGone if there are none.

    What a function gives is looked at by `load_data`.
    """
    if not config.sha256:
        return
    try:
        found = find(config)
    except ConfigError as error:
        raise content.DataGone(str(error)) from error
    if found:
        content.expect_same(_shown(config), config.sha256, content.digest(found))


def _shown(config: DataConfig) -> str:
    return config.path or config.name


def _hold_out(y: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Indices of `share` of every class's samples, at least one; of a class with a single sample none.

    Raises:
        ConfigError: if no sample of a class would be left to train on.
    """
    counts = np.bincount(y)
    fewest = int(counts[counts > 1].min(initial=len(y)))
    if round(share * fewest) >= fewest:
        raise ConfigError(
            f"data.validation is {share}: of a class with {fewest} samples that leaves none to train on; take at most {1 - 1 / fewest:.3g}"
        )
    return _per_class(y, lambda count: max(1, round(share * count)) if count > 1 else 0, seed, "validation")


def _per_class(y: np.ndarray, count: Callable[[int], int], seed: int, purpose: str) -> np.ndarray:
    """Sorted indices of `count(samples of the class)` random samples of every class."""
    chosen = []
    for label in np.unique(y):
        members = np.flatnonzero(y == label)
        chosen.append(generator(seed, purpose, int(label)).permutation(members)[: count(len(members))])
    return np.sort(np.concatenate(chosen))
