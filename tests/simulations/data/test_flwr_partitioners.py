"""Partitions of flwr-datasets: every sample to one device, the form that the partition promises, the same in every process, no network."""

import hashlib
import importlib.util
import io
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from client.streams.stream import SplitStreams
from simulations.config.errors import ConfigError
from simulations.config.experiment import DataConfig, StreamConfig
from simulations.data import flwr_partitioners
from simulations.data.partition import make_streams
from simulations.data.raw import Dataset, Raw
from simulations.data.sources import load_data
from sparcl_core.inputs import InputSpec
from sparcl_core.seeding import generator


def dataset(per_class: int = 61, classes: int = 6, ids: int = 0) -> Dataset:
    """Labels in random order; `ids`: so many writers, of unequal size."""
    rng = generator(0, "labels")
    y = rng.permutation(np.repeat(np.arange(classes), per_class))
    x = np.zeros((len(y), 1, 1, 1), dtype=np.uint8)
    own = np.minimum(rng.integers(0, ids + 2, len(y)), ids - 1) if ids else None
    return Dataset(Raw(x, y, x[:1], y[:1], own), InputSpec((1, 1, 1), classes, (0.0,), (1.0,)))


def digest(streams) -> str:
    content = hashlib.sha256()
    for stream in streams:
        for own in stream.samples:
            content.update(f"{len(own)} ".encode() + own.tobytes())
    return content.hexdigest()[:16]


CONFIGS = {
    "shards": StreamConfig(2, 7, "shards", shards_per_device=3),
    "pathological": StreamConfig(2, 7, "pathological", classes_per_device=2),
    "linear": StreamConfig(2, 7, "sizes"),
    "square": StreamConfig(2, 7, "sizes", size_law="square"),
    "exponential": StreamConfig(1, 5, "sizes", size_law="exponential"),
    "natural": StreamConfig(2, 7, "natural"),
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_every_sample_goes_to_exactly_one_device(config):
    data = dataset(ids=7)
    streams = make_streams(config, data, seed=1)
    assert isinstance(streams, SplitStreams) and len(streams) == config.devices
    dealt = np.concatenate([own for stream in streams for own in stream.samples])
    assert np.array_equal(np.sort(dealt), np.arange(len(data.raw.train_y)))
    for stream in streams:
        for own, members in zip(stream.samples, stream.classes, strict=True):
            assert np.isin(data.raw.train_y[own], members).all()
    assert digest(streams) == digest(make_streams(config, data, seed=1))
    if config.partition != "natural":
        assert digest(streams) != digest(make_streams(config, data, seed=2))


def test_shards_are_even_and_lie_within_few_classes():
    """183 samples of a task in 21 shards, of 8 or 9. And 366 samples of 6 classes in 29 shards, of 12 or 13: none but the 5 borders
    between classes, after 4.83, 9.67, 14.5, 19.33 and 24.17 shards, lie within a shard."""
    streams = make_streams(CONFIGS["shards"], dataset(), seed=1)
    assert (streams.sizes.sum(axis=0) == 183).all() and streams.sizes.min() >= 24 and streams.sizes.max() <= 27
    one = make_streams(StreamConfig(1, 29, "shards", shards_per_device=1), dataset(), seed=0)
    assert sorted(len(np.unique(stream.task(0).y)) for stream in one) == [1] * 24 + [2] * 5
    assert set(one.sizes.ravel()) == {12, 13}


def test_a_device_has_so_many_classes_if_pathological():
    for classes in (1, 2, 3):
        streams = make_streams(StreamConfig(2, 7, "pathological", classes_per_device=classes), dataset(), seed=1)
        assert {len(np.unique(stream.task(task).y)) for stream in streams for task in range(2)} == {classes}


def test_sizes_follow_their_law_and_stay_with_the_device():
    """183 samples over 7 devices: n / 28 of them, 6.5 n, cut to whole ones, what is left (183 - 180 = 3) to the largest. The same device
    is large in both tasks, and which one depends on the seed."""
    streams = make_streams(CONFIGS["linear"], dataset(), seed=1)
    assert sorted(streams.sizes[:, 0]) == [6, 13, 19, 26, 32, 39, 48]
    assert np.array_equal(streams.sizes[:, 0], streams.sizes[:, 1])
    assert len({int(make_streams(CONFIGS["linear"], dataset(), seed).sizes[:, 0].argmax()) for seed in range(6)}) > 2
    square = np.sort(make_streams(CONFIGS["square"], dataset(), seed=1).sizes[:, 0])
    assert square[:-1].tolist() == [183 * n * n // 140 for n in range(1, 7)]


def test_a_device_is_one_writer():
    """Device d has the samples of the d-th id, in every task."""
    data = dataset(ids=7)
    for device, stream in enumerate(make_streams(CONFIGS["natural"], data, seed=1)):
        assert np.array_equal(np.sort(np.concatenate(stream.samples)), np.flatnonzero(data.raw.train_ids == device))


SPLITS = {
    "shards": "f10d541304876130",
    "pathological": "1b349c313ad71757",
    "linear": "f015e61b632c47b9",
    "square": "99c8b6f4214c3533",
    "exponential": "276c3cd9c46a56c6",
    "natural": "b8f5e87caf426efc",
}


@pytest.mark.parametrize("name", CONFIGS)
def test_splits_are_those_of_the_first_release(name, capfd):
    """Digests, so that a split is the same in every process and with every version of the package; and nothing is printed."""
    assert digest(make_streams(CONFIGS[name], dataset(ids=7), seed=1)) == SPLITS[name]
    assert capfd.readouterr() == ("", "")


def test_the_package_is_imported_for_its_own_partitions_only(monkeypatch):
    """With the import forbidden the module is still read, and our own partitions are made."""
    for name in ("flwr_datasets", "datasets"):
        monkeypatch.setitem(sys.modules, name, None)
    spec = importlib.util.spec_from_file_location("a_copy", flwr_partitioners.__file__)
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
    for config in (StreamConfig(2, 7), StreamConfig(2, 7, "iid"), StreamConfig(2, 7, "drawn", samples=5)):
        make_streams(config, dataset(), seed=1)
    with pytest.raises(ImportError):
        make_streams(CONFIGS["shards"], dataset(), seed=1)


def test_the_package_is_offline():
    make_streams(CONFIGS["linear"], dataset(), seed=1)
    import datasets
    from flwr_datasets.common import telemetry

    assert datasets.config.HF_HUB_OFFLINE and telemetry.FLWR_TELEMETRY_ENABLED == "0"


# -- bad input


@pytest.mark.parametrize(
    ("config", "text"),
    [
        (StreamConfig(2, 100, "shards"), r"partition=shards, task 0: 183 samples cannot be cut into 100 x 2 shards; take fewer devices"),
        (
            StreamConfig(2, 7, "pathological", classes_per_device=4),
            r"partition=pathological, task 0: .* stream\.classes_per_device is at most",
        ),
        (
            StreamConfig(2, 2, "pathological", classes_per_device=1),
            r"task 0: samples of class 2 go to no device; stream\.classes_per_device",
        ),
        (
            StreamConfig(2, 20, "sizes", size_law="exponential"),
            r"partition=sizes, task 0: .*; take fewer devices, or stream\.size_law=linear",
        ),
        (StreamConfig(2, 7, "natural"), r"the data has no ids: take data\.name=parquet and set data\.id_column"),
    ],
)
def test_what_cannot_be_split(config, text):
    with pytest.raises(ConfigError, match=text):
        make_streams(config, dataset(), seed=1)


def test_devices_and_ids_must_be_as_many():
    with pytest.raises(ConfigError, match=r"stream\.devices is 5: the data has 7 ids, one device each; set stream\.devices=7"):
        make_streams(StreamConfig(2, 5, "natural"), dataset(ids=7), seed=1)


# -- ids of a parquet file


def write(folder, ids: pa.Array) -> DataConfig:
    """Ten images of two classes, image i of value i."""
    rows = []
    for value in range(10):
        file = io.BytesIO()
        Image.fromarray(np.full((2, 2), value, dtype=np.uint8)).save(file, "PNG")
        rows.append(file.getvalue())
    table = pa.table({"img": rows, "label": [0, 1] * 5, "writer": ids})
    pq.write_table(table, folder / "train.parquet")
    pq.write_table(table.drop_columns("writer"), folder / "test.parquet")
    return DataConfig("parquet", str(folder), id_column="writer")


def test_ids_are_read_in_ascending_order(tmp_path):
    config = write(tmp_path, pa.array(["zoe", "ann", "bob", "ann", "zoe"] * 2))
    assert load_data(config, 0).raw.train_ids.tolist() == [2, 0, 1, 0, 2] * 2
    streams = make_streams(StreamConfig(1, 3, "natural"), load_data(config, 0), 0)
    assert streams.sizes.tolist() == [[4], [2], [4]]


def test_ids_stay_with_their_samples(tmp_path):
    """Where samples are held out or limited; image i is of writer 9 - i."""
    plain = write(tmp_path, pa.array(range(9, -1, -1)))
    for changed in ({"validation": 0.3}, {"train_limit": 2}):
        raw = load_data(DataConfig("parquet", plain.path, id_column="writer", **changed), 0).raw
        assert len(raw.train_y) < 10 and raw.train_ids.tolist() == (9 - raw.train_x[:, 0, 0, 0].astype(int)).tolist()


def test_bad_id_columns(tmp_path):
    plain = write(tmp_path, pa.array([None, *range(9)]))
    with pytest.raises(ConfigError, match=r"column 'writer': .* must hold an integer or text .* it is int64, 1 of 10 rows are empty"):
        load_data(plain, 0)
    with pytest.raises(ConfigError, match=r"has no column 'author'; it has img, label, writer: set data\.id_column"):
        load_data(DataConfig("parquet", str(tmp_path), id_column="author"), 0)
    with pytest.raises(ValueError, match="id_column is 'writer': the built-in digits do not say who wrote them"):
        DataConfig(id_column="writer")
