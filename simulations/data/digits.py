"""scikit-learn's digits: what every installation has."""

import importlib.util
from pathlib import Path

import numpy as np

from simulations.config.data import DataConfig
from simulations.data.folds import split_off
from simulations.data.raw import Raw


def read(config: DataConfig, seed: int) -> Raw:
    """`load_digits` of scikit-learn: 1,797 real 8x8 digits (a part of UCI's optical recognition set), values 0 to 16."""
    x, y = _read_table()
    x, y = x.reshape(-1, 1, 8, 8).astype(np.uint8), y.astype(np.int64)
    return split_off(Raw(x, y, x[:0], y[:0], names=tuple(map(str, range(10)))), config, seed, what="digits")


def _read_table() -> tuple[np.ndarray, np.ndarray]:
    """The file itself where it is found: importing scikit-learn takes longer than anything else that a start does."""
    found = importlib.util.find_spec("sklearn")
    path = Path(found.submodule_search_locations[0]) / "datasets" / "data" / "digits.csv.gz" if found else None
    if path and path.is_file():
        table = np.loadtxt(path, delimiter=",", dtype=np.float64)
        return table[:, :-1], table[:, -1]
    from sklearn.datasets import load_digits

    return load_digits(return_X_y=True)
