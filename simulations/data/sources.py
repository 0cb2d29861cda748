"""Raw data to arrays. `digits` is built in, `parquet` reads a local folder.

A further source is one function from (config, seed) to `Raw`, entered in SOURCES and in `DataConfig.name`; see docs/extending.md.
"""

import functools
import importlib.util
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from simulations.config.errors import ConfigError
from simulations.config.sections import DataConfig
from simulations.data.classes import number_classes, tell_missing
from simulations.data.raw import Dataset, Raw
from sparcl_core.inputs import InputSpec
from sparcl_core.seeding import generator


@functools.lru_cache(1)  # the start of a run asks for the shape of its inputs, then for the data
def load_data(config: DataConfig, seed: int) -> Dataset:
    """The data of an experiment: training part, and what it is tested on (the validation part if one is held out).

    Raises:
        ConfigError: if the data is not here or not what the config says.
    """
    raw = SOURCES[config.name](config, seed)
    labels, train_y, test_y = number_classes(raw.train_y, raw.test_y)
    raw = replace(raw, train_y=train_y, test_y=test_y)
    if config.validation:
        held = _hold_out(raw.train_y, config.validation, seed)
        rest = np.setdiff1d(np.arange(len(raw.train_y)), held)
        raw = replace(raw.training(rest), test_x=raw.train_x[held], test_y=raw.train_y[held])
    if config.train_limit:
        kept = _per_class(raw.train_y, lambda count: min(config.train_limit, count), seed, "limit")
        raw = raw.training(kept)
    axes = (0, 2, 3)
    mean, std = raw.train_x.mean(axes), raw.train_x.std(axes)
    shape = tuple(int(size) for size in raw.train_x.shape[1:])
    tell_missing(labels, raw.train_y, raw.test_y)
    spec = InputSpec(shape, len(labels), tuple(float(v) for v in mean), tuple(float(max(v, 1e-6)) for v in std))
    return Dataset(raw, spec, labels)


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


def _digits(config: DataConfig, seed: int) -> Raw:
    """scikit-learn's `load_digits`: 1,797 real 8x8 digits (a part of UCI's optical recognition set), values 0 to 16."""
    x, y = _read_digits()
    x, y = x.reshape(-1, 1, 8, 8).astype(np.uint8), y.astype(np.int64)
    if config.folds > (fewest := int(np.bincount(y).min())):
        raise ConfigError(f"data.folds is {config.folds}: a class of the digits has {fewest} samples, and a fold needs one of each")
    fold = seed % config.folds if config.fold is None else config.fold
    is_test = np.zeros(len(y), dtype=bool)
    for label in np.unique(y):
        # the folds are part of the data set, not of a run: seed 0 always
        order = generator(0, "digits-folds", int(label)).permutation(np.flatnonzero(y == label))
        is_test[np.array_split(order, config.folds)[fold]] = True
    return Raw(x[~is_test], y[~is_test], x[is_test], y[is_test])


def _read_digits() -> tuple[np.ndarray, np.ndarray]:
    """The file itself where it is found: importing scikit-learn takes longer than anything else that a start does."""
    found = importlib.util.find_spec("sklearn")
    path = Path(found.submodule_search_locations[0]) / "datasets" / "data" / "digits.csv.gz" if found else None
    if path and path.is_file():
        table = np.loadtxt(path, delimiter=",", dtype=np.float64)
        return table[:, :-1], table[:, -1]
    from sklearn.datasets import load_digits

    return load_digits(return_X_y=True)


def _parquet(config: DataConfig, seed: int) -> Raw:
    """The files of `config.path`, see `simulations.data.layouts` for where and `simulations.data.parquet` for what they are."""
    from simulations.data.parquet import read_folder  # imported late: pyarrow and Pillow are not needed for what is built in

    return Raw(*read_folder(config))


SOURCES: dict[str, Callable[[DataConfig, int], Raw]] = {"digits": _digits, "parquet": _parquet}


def _per_class(y: np.ndarray, count: Callable[[int], int], seed: int, purpose: str) -> np.ndarray:
    """Sorted indices of `count(samples of the class)` random samples of every class."""
    chosen = []
    for label in np.unique(y):
        members = np.flatnonzero(y == label)
        chosen.append(generator(seed, purpose, int(label)).permutation(members)[: count(len(members))])
    return np.sort(np.concatenate(chosen))
