"""Images in a folder per class: what people have. See `simulations.data.layouts` for how they lie."""

from pathlib import Path

import numpy as np

from simulations import disk
from simulations.config.data import DataConfig
from simulations.config.errors import ConfigError
from simulations.data.content import Files
from simulations.data.layouts import class_names
from simulations.data.pictures import AS_IT_IS, Form, Pictures, decode, notes
from simulations.data.raw import Raw
from sparcl_core.foreign import printable


def read(files: Files, config: DataConfig) -> Raw:
    """A class is a folder, whose name it has; in alphabetical order, or by number if all names are numbers. Without a test part, all is in
    the training part.

    Raises:
        ConfigError: that names the images that cannot be read, or the classes that one part lacks.
    """
    parts = {part: (_top(files.root, part, paths), paths) for part, paths in files.parts.items()}
    names = class_names(next(iter(parts.values()))[0])
    if "test" in parts:
        _expect_alike(names, class_names(parts["test"][0]), files)
    number = {name: label for label, name in enumerate(names)}
    pictures = [read_images(paths, files.root, Form(config.size, config.resize)) for _, paths in parts.values()]
    if len({part.size for part in pictures}) > 1:
        sizes = " and ".join(f"{top.name}/ are {part.size}" for (top, _), part in zip(parts.values(), pictures, strict=True))
        way = "all must have one size; data.size=32 data.resize=crop brings all to one"
        raise ConfigError(f"data.path: images of {printable(files.root)}: {sizes}: {way}")
    x = of_one_depth(pictures)
    y = [np.array([number[path.relative_to(top).parts[0]] for path in paths], dtype=np.int64) for top, paths in parts.values()]
    x, y = (*x, x[0][:0]), (*y, y[0][:0])
    return Raw(x[0], y[0], x[1], y[1], names=tuple(names), notes=tuple(notes(pictures)))


def _top(root: Path, part: str, paths: tuple[Path, ...]) -> Path:
    """The folder of a part, which has one for each class."""
    return root if part == "whole" else root / paths[0].relative_to(root).parts[0]


def _expect_alike(train: list[str], test: list[str], files: Files) -> None:
    """Raises ConfigError if a class has no images to train on, or none to test on."""
    for there, other, part, way in (
        (test, train, "test", "add some, remove the class, or give the training folder itself, of which a fold is tested on (data.folds)"),
        (train, test, "training", "add some, or remove the class"),
    ):
        if missing := [name for name in other if name not in there]:
            shown = ", ".join(map(printable, missing[:5])) + (" ..." if len(missing) > 5 else "")
            raise ConfigError(f"data.path: {printable(files.root)} has no {part} images of class {shown}: {way}")


def read_images(paths: tuple[Path, ...], root: Path, form: Form = AS_IT_IS) -> Pictures:
    """Decoded in their order. Raises ConfigError that names those that cannot be read."""

    def content():
        for path in paths:
            try:
                yield disk.read(path)
            except OSError as error:
                raise ConfigError(f"data.path: {printable(path)} cannot be read ({error.strerror or error})") from error

    try:
        return decode(content(), len(paths), form, named=lambda place: printable(paths[place].relative_to(root)), noun="images")
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"data.path: in {printable(root)}: {error}") from error


def of_one_depth(parts: list[Pictures]) -> list[np.ndarray]:
    """The images of each, [N, C, H, W] uint8, all in colour if one is."""
    is_colour = any(part.has_colour for part in parts)
    return [np.repeat(part.x, 3, axis=1) if is_colour and not part.has_colour else part.x for part in parts]
