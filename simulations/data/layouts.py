"""How files of one's own lie in a folder, as people keep them and as hubs lay them out.

parquet   train.parquet, test.parquet                                    in the folder itself
          train-00000-of-00002.parquet, test-00000-of-00001.parquet      in it, or in the one folder within that has both: data/, ...
          train/0000.parquet, test/0000.parquet                          likewise
folder    train/CLASS/*.png, test/CLASS/*.png (or val/, valid/), or CLASS/*.png alone
npz       a file, or a folder with one
"""

import os
import re
from collections.abc import Callable
from pathlib import Path

from simulations.config.errors import ConfigError
from simulations.data.content import Files
from sparcl_core.foreign import printable

TESTS = ("test", "valid", "validation", "val")  # what people call the part that is tested on
SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp")
LAYOUT = (
    "it must hold train.parquet and test.parquet, or shards as hubs lay them out (data/train-00000-of-00001.parquet), with a column of "
    "images and one of integer labels"
)
WHERE = (
    "public data sets come like that, CIFAR-10 for instance from the Hugging Face hub (uoft-cs/cifar10): download the folder with its "
    "parquet files, then --set data.path=PATH/TO/cifar10"
)
KINDS = {
    "parquet": f"a folder with train.parquet and test.parquet; {WHERE}",
    "folder": "a folder with one for each class, or with train/ and test/ that have these",
    "npz": "an .npz file",
}
_SHARD = re.compile(r"(?P<split>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})(-[0-9a-f]+)?\.parquet")


def find_parquet(folder: Path) -> Files:
    """The files of both splits, in order.

    Raises:
        ConfigError: if they are not there, there are several of them, or shards are missing.
    """
    shown = printable(folder)
    found = _splits(folder)
    whole = [place for place, splits in found.items() if "train" in splits and "test" in splits]
    if folder in whole:
        return _files(folder, found[folder], "test")
    if len(whole) > 1:
        raise ConfigError(f"data.path: {shown} has several data sets, {', '.join(place.name for place in whole)}: name the folder of one")
    if not whole:
        there = sorted({split for splits in found.values() for split in splits})
        seen = f"there are parts named {', '.join(there)}" if there else "there is no parquet file"
        raise ConfigError(f"data.path: {shown} has no train and test part, {seen}; {LAYOUT}; {WHERE}")
    return _files(whole[0], found[whole[0]], "test")


def published_parquet(folder: Path) -> Files | None:
    """A benchmark from a hub: its test part may be called otherwise, or lack; None if there is no train part, or several have one."""
    found = {place: splits for place, splits in _splits(folder).items() if "train" in splits}
    places = [folder] if folder in found else [*found]
    if len(places) != 1:
        return None
    splits = found[places[0]]
    return _files(places[0], splits, next((name for name in TESTS if name in splits), ""))


def find_folder(folder: Path) -> Files:
    """Images by class: `train` and `test`, or `whole` where no part is set apart; what else lies there is passed over.

    Raises:
        ConfigError: if there are no classes.
    """
    inner = _folders(folder)
    if train := next((inner[name] for name in ("train", "training") if name in inner), None):
        if not (test := next((inner[name] for name in (*TESTS, "testing") if name in inner), None)):
            raise ConfigError(
                f"data.path: {printable(folder)} has {train.name}/ but no test/ or val/ beside it: add one, or give {printable(train)} "
                f"itself, of which a fold is tested on (data.folds)"
            )
        return Files(folder, "folder", {"train": _images(train), "test": _images(test)})
    return Files(folder, "folder", {"whole": _images(folder)})


def passed_over(files: Files) -> tuple[str, ...]:
    """A note on folders with images beside those of the parts, of which nothing is read."""
    if files.kind != "folder" or "train" not in files.parts:
        return ()
    read = {paths[0].relative_to(files.root).parts[0] for paths in files.parts.values()}
    others = sorted(path for path in _folders(files.root).values() if path.name not in read and images_below(path))
    shown = ", ".join(f"{printable(path.name)}/" for path in others[:5]) + (" ..." if len(others) > 5 else "")
    return (f"passed over beside {'/ and '.join(sorted(read, reverse=True))}/: {shown}",) if others else ()


def published_folder(folder: Path) -> Files | None:
    """A benchmark as images by class: `train` and `test`, or None."""
    inner = _folders(folder)
    return find_folder(folder) if "train" in inner and any(name in inner for name in TESTS) and _folders(inner["train"]) else None


def find_npz(path: Path) -> Files:
    """The file, or the only one in a folder. Raises ConfigError if there is none, or several."""
    if path.is_file():
        return npz_file(path)
    there = sorted(path.glob("*.npz"))
    if len(there) == 1:
        return npz_file(there[0])
    what = f"{', '.join(printable(file.name) for file in there[:5])}: name one of them" if there else "no .npz file"
    raise ConfigError(f"data.path: {printable(path)} has {what}")


def published_npz(folder: Path) -> Files | None:
    """A benchmark in the only .npz file of a folder, or None."""
    there = sorted(folder.glob("*.npz"))
    return npz_file(there[0]) if len(there) == 1 else None


def npz_file(path: Path) -> Files:
    """A single file."""
    return Files(path.parent, "npz", {"npz": (path,)})


FINDERS: dict[str, Callable[[Path], Files]] = {"parquet": find_parquet, "folder": find_folder, "npz": find_npz}


def _files(place: Path, splits: dict[str, list[Path]], test: str) -> Files:
    parts = {"train": tuple(splits["train"])} | ({"test": tuple(splits[test])} if test else {})
    return Files(place, "parquet", parts)


def _splits(folder: Path) -> dict[Path, dict[str, list[Path]]]:
    """The folder, and those within: split -> its files."""
    inner = sorted(child for child in folder.iterdir() if child.is_dir() and not is_leftover(child.name))
    return {place: _splits_in(place) for place in (folder, *inner)}


def _splits_in(place: Path) -> dict[str, list[Path]]:
    """Split -> its files in `place`. A whole file goes before shards, and these before a folder."""
    files = sorted(place.glob("*.parquet"))
    splits = {child.name: own for child in sorted(place.iterdir()) if child.is_dir() and (own := sorted(child.glob("*.parquet")))}
    shards: dict[str, list[re.Match]] = {}
    for path in files:
        if (match := _SHARD.fullmatch(path.name)) and match["split"] in ("train", *TESTS):
            shards.setdefault(match["split"], []).append(match)
    splits |= {split: _all_shards(place, own) for split, own in shards.items()}
    return splits | {path.stem: [path] for path in files if not _SHARD.fullmatch(path.name)}


def _all_shards(place: Path, shards: list[re.Match]) -> list[Path]:
    """Raises ConfigError if one is missing: a part of a data set would pass for all of it."""
    count = int(shards[0]["count"])
    numbers = sorted(int(shard["number"]) for shard in shards)
    if numbers != list(range(count)) or any(int(shard["count"]) != count for shard in shards):
        raise ConfigError(
            f"data.path: {place} has {', '.join(shard.string for shard in shards[:5])}: shards 00000 to {count - 1:05d} are needed, each "
            f"once; download what is missing, or remove what is of another version"
        )
    return [place / shard.string for shard in sorted(shards, key=lambda shard: shard["number"])]


def _folders(place: Path) -> dict[str, Path]:
    """Folders within by their names in lower case; hidden ones are none."""
    with os.scandir(place) as entries:
        return {entry.name.lower(): Path(entry.path) for entry in entries if not is_leftover(entry.name) and entry.is_dir()}


def _images(part: Path) -> tuple[Path, ...]:
    """The images below each class's folder, class by class. Raises ConfigError if there are no classes, or one has no images."""
    found, empty = [], []
    for name in class_names(part):
        own = images_below(part / name)
        found += own
        if not own:
            empty.append(name)
    if found and empty:
        raise ConfigError(
            f"data.path: no image in {', '.join(printable(part / name) for name in empty[:5])}{' ...' if len(empty) > 5 else ''}: each "
            f"folder in {printable(part)} is a class; add its images ({', '.join(SUFFIXES)}), or remove it"
        )
    if not found:
        loose = any(path.suffix.lower() in SUFFIXES for path in part.iterdir())
        seen = "there are images, but in no folder of a class" if loose else "there is no folder with images in it"
        raise ConfigError(f"data.path: {printable(part)} has no classes, {seen}; put the images of each class into a folder of its name")
    return tuple(found)


def is_leftover(name: str) -> bool:
    """Is it a folder that only a system has made: hidden, or what macOS packs into archives and Synology beside pictures?"""
    return name.startswith(".") or name in ("__MACOSX", "@eaDir")


def class_names(part: Path) -> list[str]:
    """Folders of classes in order: as text, or as numbers if all of them are."""
    with os.scandir(part) as entries:
        names = [entry.name for entry in entries if not is_leftover(entry.name) and entry.is_dir()]
    return sorted(names, key=int) if all(name.isdecimal() for name in names) else sorted(names)


def images_below(folder: Path) -> list[Path]:
    """Files that are called like images, however deep, in the order of their paths."""
    found = []
    for place, inner, files in os.walk(folder):
        inner[:] = [name for name in inner if not is_leftover(name)]
        found += [f"{place}{os.sep}{name}" for name in files if name.lower().endswith(SUFFIXES) and not name.startswith(".")]
    return [Path(path) for path in sorted(found, key=lambda path: path.split(os.sep))]
