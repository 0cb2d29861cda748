"""A data set in parquet files: encoded images, integer labels, and perhaps whose sample it is.

What is wrong with the files of both parts is told at once, with file and row.
"""

import logging
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from simulations.config.errors import ConfigError
from simulations.config.sections import DataConfig
from simulations.data.layouts import SPLITS, find_splits
from simulations.data.pictures import Pictures, decode, to_8_bits
from sparcl_core.foreign import printable

log = logging.getLogger(__name__)

USUAL = {"image_column": ("img", "image"), "label_column": ("label", "labels", "fine_label"), "id_column": ()}  # the first is the default


@dataclass(frozen=True)
class File:
    """What one file holds. columns: setting -> name; labels: [n] int64; ids: [n] integers or text, None if they were not asked for."""

    path: Path
    columns: dict[str, str]
    pictures: Pictures
    labels: np.ndarray
    ids: list | None


def read_folder(config: DataConfig) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray | None]:
    """Images [N, C, H, W] uint8 and labels [N] int64 to train on, then those to test on, then whose the training samples are, [N] int64.

    Raises:
        ConfigError: if there is no such folder, or with what is wrong with its files.
    """
    found, files, problems = find_splits(Path(os.path.expanduser(config.path))), {split: [] for split in SPLITS}, []
    for split in SPLITS:
        for path in found[split]:
            try:
                files[split].append(_read(path, config, wants_ids=bool(config.id_column) and split == "train"))
            except ConfigError as error:
                problems.append(str(error))
    if problems:
        raise ConfigError("; ".join(problems))
    everything = [file for split in SPLITS for file in files[split]]
    for key, name in sorted({item for file in everything for item in file.columns.items()}):
        if name != (wanted := getattr(config, key)):
            log.warning("%s: there is no column %r, so %r is read; data.%s names another", config.path, wanted, name, key)
    is_colour = _check_alike(everything)
    parts = []
    for own in files.values():
        parts += [np.concatenate([file.pictures.stack(is_colour) for file in own]), np.concatenate([file.labels for file in own])]
    return (*parts, _places([value for file in files["train"] for value in file.ids]) if config.id_column else None)


def _check_alike(files: list[File]) -> bool:
    """Whether the images of all files are in colour. Says what is converted; raises ConfigError if sizes differ."""
    first = files[0]
    for file in files:
        if file.pictures.size != first.pictures.size:
            raise ConfigError(
                f"images of {file.path} are {file.pictures.size}, those of {first.path} {first.pictures.size}: all must have one size"
            )
    kinds = {array.ndim for file in files for array in file.pictures.arrays}
    if len(kinds) > 1:
        log.warning("%s: some images are grey and some in colour; the grey ones become colour", first.path.parent)
    peaks = [file.pictures.brightest for file in files if file.pictures.brightest is not None]
    if peaks:
        told = (first.path.parent, max(peaks), to_8_bits(np.array(max(peaks))))
        log.warning("%s: images with 16 bits a pixel become 8: 65535 is 255, and the brightest pixel, %d, is %d", *told)
    return 3 in kinds


def _read(path: Path, config: DataConfig, wants_ids: bool) -> File:
    keys = ("image_column", "label_column", *(["id_column"] if wants_ids else []))
    try:
        columns = _columns(path, pq.read_schema(path), {key: getattr(config, key) for key in keys})
        table = pq.read_table(path, columns=list(dict.fromkeys(columns.values())), page_checksum_verification=True)
    except ConfigError:
        raise
    except (OSError, pa.ArrowException, ValueError, MemoryError) as error:  # pyarrow's own are of several kinds
        raise ConfigError(f"data.path: cannot read {path}: it is no whole parquet file ({printable(error)}); fetch it again") from error
    if not len(table):
        raise ConfigError(f"{path} has no rows")
    problems, parts = [], []
    for key, read in zip(keys, (_pictures, _labels, _ids), strict=False):
        try:
            parts.append(read(_plain(table[columns[key]])))
        except ValueError as error:
            problems.append(f"{path}, column {columns[key]!r}: {error}")
    if problems:
        raise ConfigError("; ".join(problems))
    return File(path, columns, *parts, *([] if wants_ids else [None]))


def _columns(path: Path, schema: pa.Schema, wanted: dict[str, str]) -> dict[str, str]:
    """The name of each column: what the settings say, or the usual one that is there where they say nothing."""
    chosen, names = {}, schema.names
    for key, name in wanted.items():
        usual = [other for other in USUAL[key] if other in names]
        if name not in names and name in USUAL[key][:1] and len(usual) == 1:
            name = usual[0]
        if (count := names.count(name)) != 1:
            what = f"no column {name!r}" if not count else f"{count} columns {name!r}"
            raise ConfigError(f"{path} has {what}; it has {printable(', '.join(names))}: set data.{key} to the name of one")
        chosen[key] = name
    return chosen


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """`column` without the dictionary that it may be packed in."""
    return column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column


def _pictures(column: pa.ChunkedArray) -> Pictures:
    kind = column.type
    if pa.types.is_struct(kind):
        if kind.get_field_index("bytes") < 0:
            raise ValueError(f"it is {printable(kind)}: a struct needs a field 'bytes' with the encoded image")
        values = (value["bytes"] if value else None for value in (one.as_py() for one in column))
    elif pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        values = (one.as_py() for one in column)
    else:
        raise ValueError(f"it is {printable(kind)}: encoded images (PNG, JPEG) are needed, as bytes or struct(bytes, path)")
    return decode(values)


def _labels(column: pa.ChunkedArray) -> np.ndarray:
    way_out = "write every class as an integer from 0 on, and leave out samples that have none"
    if not pa.types.is_integer(column.type) or column.null_count:
        raise ValueError(f"it must hold an integer in every row; it is {printable(column.type)}, {_nulls(column)}; {way_out}")
    try:
        labels = column.cast(pa.int64()).to_numpy()
    except pa.ArrowInvalid as error:
        raise ValueError(f"a label is beyond 64 bits ({printable(error)}); {way_out}") from error
    if labels.min() < 0:
        row = int(np.argmax(labels < 0))
        raise ValueError(f"row {row}: label {labels[row]} is negative, as {np.count_nonzero(labels < 0)} of {len(labels)} are; {way_out}")
    return labels


def _ids(column: pa.ChunkedArray) -> list[int] | list[str]:
    kind = column.type
    if column.null_count or not (pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise ValueError(f"it must hold an integer or text in every row; it is {printable(kind)}, {_nulls(column)}")
    return column.to_pylist()


def _nulls(column: pa.ChunkedArray) -> str:
    empty = f"{column.null_count} of {len(column)} rows are empty"
    return empty + (f" (the first is row {column.is_null().index(True).as_py()})" if column.null_count else "")


def _places(values: list[int] | list[str]) -> np.ndarray:
    """The place of each id among all ids in ascending order, [N] int64: no id is too large."""
    place = {value: number for number, value in enumerate(sorted(set(values)))}
    return np.array([place[value] for value in values], dtype=np.int64)
