"""Tiny-ImageNet as it was published: train/CLASS/images, val/images with val/val_annotations.txt, and wnids.txt (CS231n, Stanford).

Its test images have no labels: the validation part is tested on, as everybody does. A class is a WordNet id, in alphabetical order.
"""

from pathlib import Path

import numpy as np

from simulations import disk
from simulations.config.data import DataConfig
from simulations.config.errors import ConfigError
from simulations.data.content import Files
from simulations.data.folder import of_one_depth, read_images
from simulations.data.layouts import images_below
from simulations.data.pictures import notes
from simulations.data.raw import Raw
from sparcl_core.foreign import printable


def find(folder: Path) -> Files | None:
    """In the folder itself."""
    ids, annotations = folder / "wnids.txt", folder / "val" / "val_annotations.txt"
    if not (ids.is_file() and annotations.is_file() and (folder / "train").is_dir()):
        return None
    words = (folder / "words.txt",) if (folder / "words.txt").is_file() else ()
    train = tuple(path for name in _ids(ids) for path in images_below(folder / "train" / name))
    test = tuple(images_below(folder / "val"))
    return Files(folder, "tiny-imagenet", {"train": train, "test": test, "meta": (ids, annotations, *words)})


def read(files: Files, config: DataConfig) -> Raw:
    """Raises ConfigError that names what cannot be read, or has no label."""
    ids, annotations, *words = files.parts["meta"]
    number = {name: label for label, name in enumerate(_ids(ids))}
    labels_of = _annotations(annotations, number)
    train_y = [number[path.relative_to(files.root / "train").parts[0]] for path in files.parts["train"]]
    try:
        test_y = [labels_of[path.name] for path in files.parts["test"]]
    except KeyError as error:
        raise ConfigError(f"data.path: {printable(annotations)} does not name {printable(error)}: fetch the data set again") from error
    known = set(train_y)
    empty = [f"train/{name}" for name in number if number[name] not in known] + ([] if test_y else ["val"])
    if empty:
        raise ConfigError(f"data.path: no image in {printable(files.root / empty[0])}: fetch the data set again")
    parts = [read_images(files.parts[part], files.root) for part in ("train", "test")]
    train_x, test_x = of_one_depth(parts)
    told, names = tuple(notes(parts)), _names(list(number), words)
    return Raw(train_x, np.array(train_y, np.int64), test_x, np.array(test_y, np.int64), names=names, notes=told)


def _ids(file: Path) -> list[str]:
    return sorted(disk.read(file).decode(errors="replace").split())


def _annotations(file: Path, number: dict[str, int]) -> dict[str, int]:
    """Name of an image -> its label."""
    found = {}
    for row, line in enumerate(disk.read(file).decode(errors="replace").splitlines()):
        name, _, rest = line.partition("\t")
        label = rest.split("\t")[0]
        if label not in number:
            raise ConfigError(f"data.path: {printable(file)}, row {row}: class {printable(repr(label))} is not in wnids.txt")
        found[name] = number[label]
    return found


def _names(ids: list[str], words: list[Path]) -> tuple[str, ...]:
    """The first word of each class; its id where nobody says one."""
    lines = disk.read(words[0]).decode(errors="replace").splitlines() if words else ()
    known = {name: rest.split(",")[0] for name, _, rest in (line.partition("\t") for line in lines)}
    return tuple(known.get(name) or name for name in ids)
