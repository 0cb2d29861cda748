"""Stratified folds: data that has no test part of its own is cut into some, and one of them is the test set."""

from dataclasses import replace

import numpy as np

from simulations.config.data import DataConfig
from simulations.config.errors import ConfigError
from simulations.data.raw import Raw
from sparcl_core.foreign import printable
from sparcl_core.seeding import generator


def split_off(raw: Raw, config: DataConfig, seed: int, *, what: str) -> Raw:
    """`raw`, all of it in its training part, with one fold as the test part.

    The folds are part of the data set, not of a run: they do not depend on `seed`, which only says which one it is where
    `config.fold` does not.

    Args:
        what: the data set in words, which is also an address of its draws.

    Raises:
        ConfigError: if a class has fewer samples than there are folds.
    """
    y = raw.train_y
    labels, counts = np.unique(y, return_counts=True)
    if config.folds > (fewest := int(counts.min())):
        label = labels[counts.argmin()]
        named = printable(raw.names[label]) if label < len(raw.names) else label
        has = f"class {named} of the {what} has {fewest} sample{'' if fewest == 1 else 's'}, and a fold needs one of each"
        raise ConfigError(
            f"data.folds is {config.folds}: {has}; add some, {'' if fewest == 1 else 'lower data.folds, '}or remove the class"
        )
    fold = seed % config.folds if config.fold is None else config.fold
    is_test = np.zeros(len(y), dtype=bool)
    for label in labels:
        order = generator(0, f"{what}-folds", int(label)).permutation(np.flatnonzero(y == label))
        is_test[np.array_split(order, config.folds)[fold]] = True
    return replace(raw.training(~is_test), test_x=raw.train_x[is_test], test_y=y[is_test])
