"""Raw data to arrays. `digits` is built in, `parquet` reads a local folder.

A further source is one function from (config, seed) to `Raw`, entered in SOURCES and in `DataConfig.name`.
"""

import functools
import importlib.util
import io
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from simulations.errors import ConfigError
from simulations.sections import DataConfig
from sparcl_core.inputs import InputSpec
from sparcl_core.seeding import generator


@dataclass(frozen=True)
class Raw:
    """x: [N, C, H, W] uint8, y: [N] int64 in 0 .. classes - 1, ids: [N] int64, whose sample it is; None if the source does not say."""

    train_x: np.ndarray
    train_y: np.ndarray
    test_x: np.ndarray
    test_y: np.ndarray
    train_ids: np.ndarray | None = None

    def training(self, rows: np.ndarray) -> "Raw":
        """With these training samples only; `rows`: [n] int64."""
        ids = None if self.train_ids is None else self.train_ids[rows]
        return replace(self, train_x=self.train_x[rows], train_y=self.train_y[rows], train_ids=ids)


@dataclass(frozen=True)
class Dataset:
    """Arrays ready for use, and what a model must know of them; normalisation from the training part."""

    raw: Raw
    inputs: InputSpec

    @property
    def num_classes(self) -> int:
        return self.inputs.num_classes


@functools.lru_cache(1)  # the start of a run asks for the shape of its inputs, then for the data
def load_data(config: DataConfig, seed: int) -> Dataset:
    """The data of an experiment: training part, and what it is tested on (the validation part if one is held out).

    Raises:
        ConfigError: if the data is not here or not what the config says.
    """
    raw = SOURCES[config.name](config, seed)
    if config.validation:
        held = _per_class(raw.train_y, lambda count: max(1, round(config.validation * count)), seed, "validation")
        rest = np.setdiff1d(np.arange(len(raw.train_y)), held)
        raw = replace(raw.training(rest), test_x=raw.train_x[held], test_y=raw.train_y[held])
    if config.train_limit:
        kept = _per_class(raw.train_y, lambda count: min(config.train_limit, count), seed, "limit")
        raw = raw.training(kept)
    axes = (0, 2, 3)
    mean, std = raw.train_x.mean(axes), raw.train_x.std(axes)
    shape = tuple(int(size) for size in raw.train_x.shape[1:])
    num_classes = int(max(raw.train_y.max(), raw.test_y.max())) + 1
    spec = InputSpec(shape, num_classes, tuple(float(v) for v in mean), tuple(float(max(v, 1e-6)) for v in std))
    return Dataset(raw, spec)


def _digits(config: DataConfig, seed: int) -> Raw:
    """scikit-learn's `load_digits`: 1,797 real 8x8 digits (a part of UCI's optical recognition set), values 0 to 16."""
    x, y = _read_digits()
    x, y = x.reshape(-1, 1, 8, 8).astype(np.uint8), y.astype(np.int64)
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
    """train.parquet and test.parquet of `config.path`: encoded images of one size, and integer labels."""
    parts = [_read_parquet(Path(config.path) / f"{split}.parquet", config) for split in ("train", "test")]
    (train_x, train_y), (test_x, test_y) = parts
    if train_x.shape[1:] != test_x.shape[1:]:
        raise ConfigError(f"{config.path}: training images are {train_x.shape[1:]}, test images {test_x.shape[1:]}: they must be equal")
    ids = _read_ids(Path(config.path) / "train.parquet", config.id_column) if config.id_column else None
    return Raw(train_x, train_y, test_x, test_y, ids)


SOURCES: dict[str, Callable[[DataConfig, int], Raw]] = {"digits": _digits, "parquet": _parquet}


def _read_parquet(path: Path, config: DataConfig) -> tuple[np.ndarray, np.ndarray]:
    import pyarrow as pa
    import pyarrow.parquet as pq
    from PIL import Image

    try:
        names = pq.read_schema(path).names
    except (OSError, pa.ArrowInvalid) as error:
        raise ConfigError(f"data.path: cannot read {path} ({error}); it must be a folder with train.parquet and test.parquet") from error
    for key in ("image_column", "label_column"):
        if getattr(config, key) not in names:
            raise ConfigError(f"{path} has no column {getattr(config, key)!r}; it has {', '.join(names)}: set data.{key}")
    table = pq.read_table(path, columns=[config.image_column, config.label_column])
    column = table[config.image_column].combine_chunks()
    if pa.types.is_struct(column.type):
        if column.type.get_field_index("bytes") < 0:
            raise ConfigError(f"{path}: column {config.image_column!r} is {column.type}: a struct needs a field 'bytes'")
        column = column.field("bytes")
    labels = table[config.label_column]
    if not pa.types.is_integer(labels.type) or labels.null_count or not len(labels):
        raise ConfigError(
            f"{path}: column {config.label_column!r} must hold an integer in every row; "
            f"it is {labels.type}, {labels.null_count} of {len(labels)} rows are empty"
        )
    images = []
    for row, data in enumerate(column):
        try:
            with Image.open(io.BytesIO(data.as_py())) as image:
                images.append(np.asarray(image.convert("L" if image.mode == "L" else "RGB")))
        except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError and more
            raise ConfigError(f"{path}, row {row}: column {config.image_column!r} holds no readable image ({error})") from error
        if images[-1].shape != images[0].shape:
            raise ConfigError(f"{path}, row {row}: image is {images[-1].shape}, the first {images[0].shape}: all must have one size")
    x = np.stack(images)
    x = x[:, None] if x.ndim == 3 else np.ascontiguousarray(x.transpose(0, 3, 1, 2))
    y = labels.to_numpy().astype(np.int64)
    if y.min() < 0:
        raise ConfigError(f"{path}: label {y.min()} is negative: classes are numbered from 0")
    return x, y


def _read_ids(path: Path, column: str) -> np.ndarray:
    """Whose sample each row is, [N] int64: the place of its id among all ids in ascending order."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if column not in (names := pq.read_schema(path).names):
        raise ConfigError(f"{path} has no column {column!r}; it has {', '.join(names)}: set data.id_column")
    ids = pq.read_table(path, columns=[column])[column]
    if ids.null_count or not (pa.types.is_integer(ids.type) or pa.types.is_string(ids.type) or pa.types.is_large_string(ids.type)):
        raise ConfigError(
            f"{path}: column {column!r} must hold an integer or text in every row; "
            f"it is {ids.type}, {ids.null_count} of {len(ids)} rows are empty"
        )
    values = ids.to_pylist()
    place = {value: number for number, value in enumerate(sorted(set(values)))}
    return np.array([place[value] for value in values], dtype=np.int64)


def _per_class(y: np.ndarray, count: Callable[[int], int], seed: int, purpose: str) -> np.ndarray:
    """Sorted indices of `count(samples of the class)` random samples of every class."""
    chosen = []
    for label in np.unique(y):
        members = np.flatnonzero(y == label)
        chosen.append(generator(seed, purpose, int(label)).permutation(members)[: count(len(members))])
    return np.sort(np.concatenate(chosen))
