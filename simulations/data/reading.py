"""Data that lies in files, of one's own or a benchmark's: found, decoded once, and mapped from the cache from then on."""

import importlib
from collections.abc import Callable
from dataclasses import replace

from simulations.config.data import DataConfig
from simulations.config.errors import ConfigError
from simulations.data import cache, content
from simulations.data.content import Files
from simulations.data.folds import split_off
from simulations.data.layouts import passed_over
from simulations.data.moments import moments
from simulations.data.places import find
from simulations.data.published import PUBLISHED, Published
from simulations.data.raw import Raw
from sparcl_core.foreign import printable

READERS = {  # of each kind of files, a function of (Files, DataConfig); imported when it is needed
    "parquet": "simulations.data.parquet:read",
    "folder": "simulations.data.folder:read",
    "npz": "simulations.data.npz:read",
    "idx": "simulations.data.idx:read",
    "cifar": "simulations.data.cifar:read",
    "cifar-binary": "simulations.data.cifar:read_binary",
    "svhn": "simulations.data.svhn:read",
    "tiny-imagenet": "simulations.data.tiny_imagenet:read",
    "leaf": "simulations.data.leaf:read",
}


def read(config: DataConfig, seed: int) -> Raw:
    """What lies in `config.path`: parquet files, images in a folder per class, an .npz file, or a benchmark in any of its layouts.

    Raises:
        ConfigError: if it is not there, or with what is wrong with it.
    """
    if not (files := find(config)):
        raise ConfigError(f"data.name is {config.name!r}, which lies in no files")
    known = PUBLISHED.get(config.name)
    if known and known.id_column and not config.id_column:
        config = replace(config, id_column=known.id_column)
    raw = cache.mapped(_key(files, config, digest := content.digest(files)), lambda: _decode(files, config, digest))
    raw = replace(raw, notes=(*raw.notes, *passed_over(files)))  # what is kept decoded does not know of them
    if known:
        _expect(known, raw, config.name)
        raw = replace(raw, names=raw.names or known.names)
    return raw if len(raw.test_y) else split_off(raw, config, seed, what=config.name)


def _key(files: Files, config: DataConfig, digest: str) -> dict:
    settings = ("image_column", "label_column", "id_column") if files.kind == "parquet" else ()
    told = {setting: getattr(config, setting) for setting in (*settings, "size", "resize")}
    return {"kind": files.kind, "sha256": digest, "parts": {part: len(paths) for part, paths in files.parts.items()}, **told}


def _decode(files: Files, config: DataConfig, digest: str) -> Raw:
    module, _, name = READERS[files.kind].partition(":")
    reader: Callable[[Files, DataConfig], Raw] = getattr(importlib.import_module(module), name)
    raw = reader(files, config)
    return replace(raw, sha256=digest, moments=moments(raw.train_x) if len(raw.test_y) else None)


def _expect(known: Published, raw: Raw, name: str) -> None:
    """Raises ConfigError if this is another data set."""
    found = tuple(map(int, raw.train_x.shape[1:]))
    if found != known.shape:
        there, wanted = ("x".join(map(str, shape)) for shape in (found, known.shape))
        raise ConfigError(f"data.name is {name!r}, but the images are {there}, and those of {printable(known.title)} {wanted}")
    if (most := int(max(raw.train_y.max(), raw.test_y.max(initial=0)))) >= known.classes:
        raise ConfigError(f"data.name is {name!r}, but there is a label {most}: {known.title} has {known.classes} classes, from 0")
