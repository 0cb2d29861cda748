"""Images and labels in an .npz file: Keras' names, MedMNIST's, and others that people give them."""

import zipfile

import numpy as np

from simulations.config.data import DataConfig
from simulations.config.errors import ConfigError
from simulations.data.arrays import as_raw
from simulations.data.content import Files
from simulations.data.raw import Raw
from sparcl_core.foreign import printable

SPELLINGS = {  # capital letters do not matter
    "train_x": ("x_train", "train_x", "train_images", "images_train", "xtrain", "train_data", "train_imgs"),
    "train_y": ("y_train", "train_y", "train_labels", "labels_train", "ytrain", "train_targets", "train_label"),
    "test_x": ("x_test", "test_x", "test_images", "images_test", "xtest", "test_data", "test_imgs"),
    "test_y": ("y_test", "test_y", "test_labels", "labels_test", "ytest", "test_targets", "test_label"),
    "train_ids": ("train_ids", "ids_train", "id_train", "train_users", "train_writers"),
}
PASSED = ("val_images", "val_labels", "x_val", "y_val", "val_x", "val_y")  # of MedMNIST and others: neither trained on nor tested on


def read(files: Files, config: DataConfig) -> Raw:
    """Raises ConfigError that names the arrays that lack, or are no images or labels."""
    (path,) = files.all
    shown = f"data.path: {printable(path)}"
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            raise ConfigError(f"{shown} is one array: an .npz with x_train, y_train, x_test and y_test is needed")
        with loaded as archive:
            chosen = _names(archive.files, shown)
            arrays = [archive[name] for name in chosen if name]
            passed = [name for name in archive.files if name.lower() in PASSED]
    except ConfigError:
        raise
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, KeyError, NotImplementedError) as error:
        way = "save its arrays as numbers, not as objects" if "pickle" in str(error) else "fetch it again"
        raise ConfigError(f"{shown} is no whole .npz file ({printable(error)}); {way}") from error
    raw = as_raw(tuple(arrays), shown, tuple(name or "train_ids" for name in chosen))
    notes = (f"{', '.join(passed)} are passed over: training and test parts are read",) if passed else ()
    return Raw(raw.train_x, raw.train_y, raw.test_x, raw.test_y, raw.train_ids, notes=notes)


def _names(there: list[str], shown: str) -> list[str]:
    """The name of each array in the order of `SPELLINGS`; empty for ids that are not there."""
    chosen = []
    for part, spellings in SPELLINGS.items():
        found = [name for name in there if name.lower() in spellings]
        if len(found) > 1:
            raise ConfigError(f"{shown} has {' and '.join(map(printable, found))}: one of them is enough, so remove the other")
        if not found and part != "train_ids":
            raise ConfigError(
                f"{shown} has {', '.join(map(printable, there)) or 'nothing'}, and nothing that is called {', '.join(spellings[:3])}: "
                f"x_train, y_train, x_test and y_test are needed"
            )
        chosen += found or [""]
    return chosen
