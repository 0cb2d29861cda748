"""A data set in parquet files: encoded images, integer labels, and perhaps whose sample it is.

What is wrong with the files of both parts is told at once, with file and row.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from simulations.config.data import DataConfig
from simulations.config.errors import ConfigError
from simulations.data.content import Files
from simulations.data.pictures import Form, Pictures, decode, join, notes
from simulations.data.raw import Raw
from sparcl_core.foreign import printable

USUAL = {  # the first is the default
    "image_column": ("img", "image"),
    "label_column": ("label", "labels", "fine_label", "character"),
    "id_column": (),
}


@dataclass(frozen=True)
class File:
    """What one file holds.

    Attributes:
        columns: setting -> name.
        others: columns that could be the label, too.
        names: of the labels, as hubs write them beside the data; empty if nobody did.
        labels: [n] int64.
        ids: [n] integers or text; None if they were not asked for.
    """

    path: Path
    columns: dict[str, str]
    others: tuple[str, ...]
    names: tuple[str, ...]
    pictures: Pictures
    labels: np.ndarray
    ids: list | None


def read(files: Files, config: DataConfig) -> Raw:
    """The images, labels and ids of both parts; of the training part alone if there is no other.

    Raises:
        ConfigError: with what is wrong with the files.
    """
    parts, problems = {part: [] for part in files.parts}, []
    for part, paths in files.parts.items():
        for path in paths:
            try:
                parts[part].append(_read(path, config, wants_ids=bool(config.id_column) and part == "train"))
            except ConfigError as error:
                problems.append(str(error))
    if problems:
        raise ConfigError("; ".join(problems))
    everything = [file for own in parts.values() for file in own]
    _expect_one_size(everything)
    told = [*_about_columns(everything, config), *notes([file.pictures for file in everything])]
    names, is_colour = everything[0].names, any(file.pictures.has_colour for file in everything)
    arrays, ids = [], [value for file in parts["train"] for value in file.ids or ()]
    for own in parts.values():
        labels = np.concatenate([file.labels for file in own])
        images = join([file.pictures for file in own])
        arrays += [np.repeat(images, 3, axis=1) if is_colour and images.shape[1] == 1 else images, labels]
    if len(arrays) == 2:
        arrays += [arrays[0][:0], arrays[1][:0]]
    return Raw(*arrays, _places(ids) if config.id_column else None, names=names, notes=tuple(told))


def _about_columns(files: list[File], config: DataConfig) -> list[str]:
    """Columns that were guessed, and those that could have been meant, a line each."""
    told = []
    for key, name in sorted({item for file in files for item in file.columns.items()}):
        if name != (wanted := getattr(config, key)):
            told.append(f"there is no column {wanted!r}, so {name!r} is read; data.{key} names another")
    if others := sorted({name for file in files for name in file.others}):
        name = files[0].columns["label_column"]
        told.append(f"{', '.join(map(repr, others))} could be the label as well as {name!r}, which is read; data.label_column says which")
    return told


def _expect_one_size(files: list[File]) -> None:
    first = files[0]
    for file in files:
        if file.pictures.size != first.pictures.size:
            raise ConfigError(
                f"images of {file.path} are {file.pictures.size}, those of {first.path} {first.pictures.size}: all must have one size; "
                f"data.size=32 data.resize=crop would bring all to one"
            )


def _read(path: Path, config: DataConfig, wants_ids: bool) -> File:
    keys = ("image_column", "label_column", *(["id_column"] if wants_ids else []))
    try:
        schema = pq.read_schema(path)
        columns = _columns(path, schema, {key: getattr(config, key) for key in keys})
        table = pq.read_table(path, columns=list(dict.fromkeys(columns.values())), page_checksum_verification=True)
    except ConfigError:
        raise
    except (OSError, pa.ArrowException, ValueError, MemoryError) as error:  # pyarrow's own are of several kinds
        raise ConfigError(f"data.path: cannot read {path}: it is no whole parquet file ({printable(error)}); fetch it again") from error
    if not len(table):
        raise ConfigError(f"{path} has no rows")
    problems, parts = [], []
    form = Form(config.size, config.resize)
    for key, read in zip(keys, (lambda column: _pictures(column, form), _labels, _ids), strict=False):
        try:
            parts.append(read(_plain(table[columns[key]])))
        except ValueError as error:
            problems.append(f"{path}, column {columns[key]!r}: {error}")
    if problems:
        raise ConfigError("; ".join(problems))
    label = columns["label_column"]
    others = tuple(name for name in (*USUAL["label_column"], "coarse_label") if name in schema.names and name != label)
    # with `fine_label` the coarse one is no rival: who asks for CIFAR-100 means its hundred classes
    others = () if config.label_column != USUAL["label_column"][0] or label == "fine_label" else others
    return File(path, columns, others, _names(schema, label), *parts, *([] if wants_ids else [None]))


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


def _names(schema: pa.Schema, label: str) -> tuple[str, ...]:
    """The names of the classes, where the file says them as those of the `datasets` library do."""
    try:
        told = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"][label]["names"]
        return tuple(map(str, told)) if isinstance(told, list) else ()
    except (KeyError, TypeError, ValueError, RecursionError):
        return ()


def _pictures(column: pa.ChunkedArray, form: Form) -> Pictures:
    kind = column.type
    if pa.types.is_struct(kind):
        if kind.get_field_index("bytes") < 0:
            raise ValueError(f"it is {printable(kind)}: a struct needs a field 'bytes' with the encoded image")
        values = (value["bytes"] if value else None for value in (one.as_py() for one in column))
    elif pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        values = (one.as_py() for one in column)
    else:
        raise ValueError(f"it is {printable(kind)}: encoded images (PNG, JPEG) are needed, as bytes or struct(bytes, path)")
    return decode(values, len(column), form)


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
