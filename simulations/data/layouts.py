"""Where the parts of a data set lie in a folder, as people keep them and as hubs lay them out.

train.parquet, test.parquet                                    in the folder itself
train-00000-of-00002.parquet, test-00000-of-00001.parquet      in it, or in the one folder within that has both: data/, plain_text/
train/0000.parquet, test/0000.parquet                          likewise
"""

import os
import re
from pathlib import Path

from simulations.config.errors import ConfigError

SPLITS = ("train", "test")
LAYOUT = (
    "it must hold train.parquet and test.parquet, or shards as hubs lay them out (data/train-00000-of-00001.parquet), with a column of "
    "images and one of integer labels"
)
WHERE = (
    "public data sets come like that, CIFAR-10 for instance from the Hugging Face hub (uoft-cs/cifar10): download the folder with its "
    "parquet files, then --set data.path=PATH/TO/cifar10"
)
_SHARD = re.compile(r"(?P<split>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})(-[0-9a-f]+)?\.parquet")


def find_splits(folder: Path) -> dict[str, list[Path]]:
    """The files of both splits, in order.

    Raises:
        ConfigError: if they are not there, there are several of them, or shards are missing.
    """
    shown = f"{folder}" if folder.is_absolute() else f"{folder} (that is {os.path.abspath(folder)})"
    if not folder.is_dir():
        what = "is a file: give the folder that it lies in" if folder.is_file() else "is not there"
        raise ConfigError(f"data.path: cannot read {shown}: it {what}; {LAYOUT}; {WHERE}")
    try:
        inner = sorted(child for child in folder.iterdir() if child.is_dir() and not child.name.startswith("."))
        found = {place: _splits_in(place) for place in (folder, *inner)}
    except OSError as error:
        raise ConfigError(f"data.path: cannot read {shown} ({error.strerror or error}); {LAYOUT}") from error
    whole = [place for place, splits in found.items() if all(split in splits for split in SPLITS)]
    if folder in whole:
        return found[folder]
    if len(whole) > 1:
        raise ConfigError(f"data.path: {shown} has several data sets, {', '.join(place.name for place in whole)}: name the folder of one")
    if not whole:
        there = sorted({split for splits in found.values() for split in splits})
        seen = f"there are parts named {', '.join(there)}" if there else "there is no parquet file"
        raise ConfigError(f"data.path: {shown} has no train and test part, {seen}; {LAYOUT}; {WHERE}")
    return found[whole[0]]


def _splits_in(place: Path) -> dict[str, list[Path]]:
    """Split -> its files in `place`. A whole file goes before shards, and these before a folder."""
    files = sorted(place.glob("*.parquet"))
    splits = {child.name: own for child in sorted(place.iterdir()) if child.is_dir() and (own := sorted(child.glob("*.parquet")))}
    shards: dict[str, list[re.Match]] = {}
    for path in files:
        if (match := _SHARD.fullmatch(path.name)) and match["split"] in SPLITS:
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
