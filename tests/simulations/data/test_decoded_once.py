"""Decoded data on disk: decoded once, mapped from then on, made again when it is damaged; and the digest of the files."""

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from data_files import images, write_classes, write_parquet

from simulations.config.data import DataConfig
from simulations.config.errors import ConfigError
from simulations.data import cache, content, pictures, reading
from simulations.data.moments import ONE_GO, moments
from simulations.data.places import find
from simulations.data.raw import Raw
from simulations.data.sources import bound, expect_same, load_data, load_unbound


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty cache."""
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path / "cache"))
    load_unbound.cache_clear()
    return tmp_path / "cache"


@pytest.fixture
def config(tmp_path) -> DataConfig:
    x = images(1200, (16, 16, 3))  # large enough to be mapped
    write_parquet(tmp_path / "data" / "train.parquet", x, np.arange(1200) % 4, ["ant", "bee", "cow", "doe"], fine_label=np.arange(1200))
    write_parquet(tmp_path / "data" / "test.parquet", x[:8], np.arange(8) % 4, ["ant", "bee", "cow", "doe"])
    return DataConfig(name="parquet", path=str(tmp_path / "data"))


def fresh(config: DataConfig) -> Raw:
    load_unbound.cache_clear()
    return load_data(config, 0).raw


def entries(place) -> list:
    return sorted(path for path in place.iterdir() if path.name != "digests")


def test_a_second_start_decodes_nothing_and_gives_the_same(place, config, monkeypatch, caplog):
    first, told = fresh(config), list(caplog.messages)
    caplog.clear()
    monkeypatch.setattr(reading, "READERS", {})
    second = fresh(config)
    for part in cache.ARRAYS[:4]:
        assert np.array_equal(getattr(first, part), getattr(second, part)) and getattr(first, part).dtype == getattr(second, part).dtype
    assert (first.names, first.moments, first.sha256, first.notes) == (second.names, second.moments, second.sha256, second.notes)
    assert caplog.messages == told and "'fine_label' could be the label as well as 'label', which is read" in "\n".join(told)
    assert second.names == ("ant", "bee", "cow", "doe")


def test_what_is_read_back_is_a_map_of_the_file_and_writing_to_it_changes_nothing(place, config):
    fresh(config)
    raw = fresh(config)
    assert isinstance(raw.train_x.base, np.memmap) and type(raw.train_x) is np.ndarray
    before = raw.train_x[0, 0, 0, 0]
    raw.train_x[0, 0, 0, 0] = before + 1
    assert fresh(config).train_x[0, 0, 0, 0] == before


def test_the_key_is_the_content_not_the_place(place, config, tmp_path):
    fresh(config)
    os.rename(tmp_path / "data", tmp_path / "elsewhere")
    moved = replace(config, path=str(tmp_path / "elsewhere"))
    assert fresh(moved).sha256 and len(entries(place)) == 1
    fresh(replace(moved, size=8, resize="stretch"))
    assert len(entries(place)) == 2
    write_parquet(tmp_path / "elsewhere" / "test.parquet", images(8, (16, 16, 3), seed=7), np.arange(8) % 4)
    assert np.array_equal(fresh(moved).test_x, images(8, (16, 16, 3), seed=7).transpose(0, 3, 1, 2)) and len(entries(place)) == 3


def flip(file) -> None:
    data = bytearray(file.read_bytes())
    data[-9] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize("part", ["train_x.npy", "test_y.npy", "manifest.json"])
@pytest.mark.parametrize("damage", [flip, lambda file: file.write_bytes(file.read_bytes()[:-100]), lambda file: file.unlink()])
def test_a_damaged_entry_is_noticed_and_made_again(place, config, caplog, part, damage):
    whole = fresh(config)
    whole = replace(whole, train_x=whole.train_x.copy())  # which was a map of the file that is damaged now
    damage(entries(place)[0] / part)
    caplog.clear()
    again = fresh(config)
    assert np.array_equal(again.train_x, whole.train_x) and np.array_equal(again.test_y, whole.test_y)
    assert sum("is damaged" in line and "decoded again" in line for line in caplog.messages) == 1
    caplog.clear()
    fresh(config)
    assert len(entries(place)) == 1 and not any("is damaged" in line for line in caplog.messages)


def test_several_that_write_at_once_leave_one_whole_entry(place, config, monkeypatch):
    """All of them have decoded before the first one stores; two come to an entry that is there by then."""
    meet, store = threading.Barrier(3), cache._store
    monkeypatch.setattr(cache, "_store", lambda *args: (meet.wait(), store(*args)))
    with ThreadPoolExecutor(3) as pool:
        sums = list(pool.map(lambda _: int(reading.read(config, 0).train_x.sum()), range(3)))
    assert sums == [int(fresh(config).train_x.sum())] * 3 and len(entries(place)) == 1


def test_what_a_killed_process_has_left_goes_after_a_day(place, config):
    fresh(config)
    name = entries(place)[0].name
    old, young = (place / f".{name}.{token}" for token in ("00000000", "11111111"))
    for left in (old, young):
        left.mkdir()
    os.utime(old, (time.time() - 2 * cache.ABANDONED_S,) * 2)
    cache._store(place, name, fresh(config))
    assert not old.exists() and young.exists()


@pytest.mark.parametrize("where", ["off", "file/below"])
def test_without_a_cache_data_is_decoded_each_time(tmp_path, config, monkeypatch, where):
    (tmp_path / "file").touch()
    monkeypatch.setenv(cache.VARIABLE, where if where == "off" else str(tmp_path / where))
    raw = fresh(config)
    assert raw.train_x.base is None or not isinstance(raw.train_x.base, np.memmap)
    assert len(raw.sha256) == 64


def test_a_full_disk_is_said_and_leaves_nothing(place, config, monkeypatch, caplog):
    def full(*args, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache.np, "save", full)
    assert len(fresh(config).train_y) == 1200
    assert any("decoded images are not kept" in line and "No space left" in line for line in caplog.messages)
    assert not entries(place)


def test_the_cache_lies_where_xdg_says(monkeypatch, tmp_path):
    monkeypatch.delenv(cache.VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache.place() == tmp_path / "sparcl" / "images"


def test_clearing_removes_what_is_ours_and_nothing_else(place, config):
    fresh(config)
    (place / "mine.txt").write_text("stays")
    (place / "digests" / "mine.txt").write_text("stays")
    size = sum(file.stat().st_size for entry in entries(place) if entry.is_dir() for file in entry.iterdir())
    assert cache.clear() >= size > 0
    assert sorted(str(path.relative_to(place)) for path in place.rglob("*")) == ["digests", "digests/mine.txt", "mine.txt"]


# -- the digest


def test_the_digest_is_remembered_for_files_that_nobody_has_touched(place, config, monkeypatch):
    files = find(config)
    first = content.digest(files)
    assert not list((place / "digests").iterdir())  # written a moment ago: a clock could not tell another write apart
    monkeypatch.setattr(content, "JUST_NOW_S", -10.0)
    content.digest(files)
    read = []
    monkeypatch.setattr(content, "_read_all", lambda *args: read.append(args) or "0" * 64)
    assert content.digest(files) == first and not read
    os.utime(files.all[0])
    assert content.digest(files) == "0" * 64 and read


def test_a_file_exchanged_for_one_of_its_size_and_time_has_another_digest(place, config, monkeypatch):
    monkeypatch.setattr(content, "JUST_NOW_S", -10.0)
    files = find(config)
    first, path = content.digest(files), files.all[0]
    told = path.stat()
    data = bytearray(path.read_bytes())
    data[200] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(told.st_atime_ns, told.st_mtime_ns))
    assert content.digest(files) != first


def test_the_digest_knows_names_and_order(tmp_path):
    write_classes(tmp_path / "a", images(4, (4, 4)), [0, 1, 0, 1], ["cat", "dog"])
    write_classes(tmp_path / "b", images(4, (4, 4)), [1, 0, 1, 0], ["cat", "dog"])
    digests = [content.digest(find(DataConfig(name="folder", path=str(tmp_path / part)))) for part in "ab"]
    assert digests[0] != digests[1]


def test_a_run_is_bound_to_its_data(place, config, tmp_path):
    found = bound(config, 0)
    assert found.sha256 == load_data(config, 0).raw.sha256 and bound(found, 0) == found
    load_data(found, 0), expect_same(found)
    write_parquet(tmp_path / "data" / "test.parquet", images(8, (16, 16, 3), seed=7), np.arange(8) % 4)
    load_unbound.cache_clear()
    for look in (lambda: load_data(found, 0), lambda: bound(found, 0), lambda: expect_same(found)):
        with pytest.raises(content.DataChanged, match=rf"is not the data that the run began with: its SHA-256 is .*, not {found.sha256}"):
            look()
    os.rename(tmp_path / "data", tmp_path / "gone")
    with pytest.raises(content.DataChanged, match="there is no such folder"):
        expect_same(found)


def test_digits_are_bound_to_nothing_and_functions_to_their_arrays(place):
    assert bound(DataConfig(), 3) == DataConfig()
    own = bound(DataConfig(name="own_data:load"), 3)
    assert len(own.sha256) == 64 and load_data(own, 3).raw.sha256 == own.sha256
    with pytest.raises(ConfigError, match="own_data:load is not the data that the run began with"):
        load_data(own, 4)
    expect_same(own)


@pytest.mark.parametrize("sha256", ["abc", "G" * 64])
def test_a_digest_that_is_none(sha256):
    with pytest.raises(ValueError, match="64 hexadecimal digits"):
        DataConfig(sha256=sha256)


# -- pixels in pieces


def test_moments_in_pieces_are_those_in_one_go(monkeypatch):
    x = images(200, (3, 9, 7))
    x[:, 1] = 40
    whole = moments(x)
    monkeypatch.setattr("simulations.data.moments.ONE_GO", 0)
    monkeypatch.setattr("simulations.data.moments.CHUNK", 1000)
    pieces = moments(x)
    assert np.allclose(whole, pieces, rtol=1e-12, atol=1e-12) and pieces[1][1] == 1e-6 and ONE_GO == 2**28
    assert pieces[0] == tuple(x.astype(np.float64).mean((0, 2, 3)))


def test_images_are_held_once_while_they_are_decoded():
    """Grey images before the first in colour are the only ones that are copied."""
    stack = pictures.Pictures(5)
    for image in (*images(2, (4, 4)), images(1, (4, 4, 3))[0]):
        stack.add(image)
    assert stack.x.shape == (3, 3, 4, 4) and stack.x.base is not None
    parts = [stack, pictures.Pictures(1)]
    parts[1].add(images(1, (4, 4))[0])
    joined = pictures.join(parts)
    assert joined.shape == (4, 3, 4, 4) and not parts and np.array_equal(joined[3, 0], joined[3, 2])
