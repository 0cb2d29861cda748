"""`sparcl data`, `--download`, and a run that is bound to its data."""

import shutil

import numpy as np
import pytest
from click.testing import Result
from data_files import grey_digits, images, write_classes, write_idx, write_parquet
from PIL import Image
from typer.testing import CliRunner
from worlds import TINY

from simulations.__main__ import app
from simulations.build import make_strategy, make_world
from simulations.cli.data import classes_table, split_table
from simulations.config.data import STREAMS
from simulations.config.loading import load
from simulations.data import cache
from simulations.data.overview import Parts, Split, count_parts, count_split
from simulations.data.partition import make_streams
from simulations.data.published import PUBLISHED
from simulations.data.sources import load_data, load_unbound


def call(*args) -> Result:
    load_unbound.cache_clear()  # as a process of its own
    return CliRunner().invoke(app, [str(arg) for arg in args])


def assert_one_message(result: Result, *parts: str) -> None:
    assert result.exit_code == 2, result.output
    line = result.stderr.strip()
    assert line.startswith("error: ") and "\n" not in line and all(part in line for part in parts), line


@pytest.fixture
def photos(tmp_path):
    write_classes(tmp_path / "photos", images(60, (8, 8, 3)), [0, 1, 2] * 20, ["ant", "bee", "a class with a rather long name"])
    return tmp_path / "photos"


def test_what_is_there_and_who_gets_it(photos, tmp_path):
    settings = ("--set", f"data.path={photos}", "--set", "stream.tasks=3", "--set", "stream.devices=4")
    result = call("data", "folder", *settings, "--out", tmp_path / "data.png")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0] == "folder: 3 classes, images 8x8 colour, 48 to train on, 12 to test on, 0.0 MB" and lines[1].startswith("sha256 ")
    assert all(len(line.rstrip()) <= 80 for line in lines[:-1])
    assert any(line.split() == ["2", "bee", "16", "4"] for line in lines) and "training samples of 4 devices x 3 tasks" in result.stdout
    with Image.open(tmp_path / "data.png") as picture:
        assert picture.format == "PNG" and picture.width > 800


@pytest.mark.parametrize("name", ["digits", "smoke", "perm-mnist"])
def test_data_sets_and_experiments_are_shown(tmp_path, name):
    write_idx(tmp_path / "MNIST" / "raw", grey_digits(each=12))
    path = ("--set", f"data.path={tmp_path}") if name == "perm-mnist" else ()
    result = call("data", name, *path, "--out", tmp_path / "data.png")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "data.png").is_file() and ("10 devices x 20 tasks" in result.stdout) == (name == "perm-mnist")


def test_tables_of_large_data_are_cut_in_the_middle():
    parts = Parts(tuple(f"class {number} {'x' * 60}" for number in range(200)), np.arange(200), np.ones(200, np.int64))
    table = classes_table(parts)
    assert table.row_count == 31 and [str(cell) for cell in table.columns[0].cells][22:25] == ["22", "...", "193"]
    split = Split(np.ones((1000, 20), np.int64), np.ones((64, 200), np.int64), tuple((task,) for task in range(20)))
    table = split_table(split)
    headers = [column.header for column in table.columns]
    assert table.row_count == 17 and headers == ["device", "t0", "t1", "t2", "t3", "t4", "...", "t19", "all", "classes"]


def test_counts_are_those_of_the_streams():
    experiment = load(str(TINY), ["stream.cycles=2", "stream.order=shuffled"])
    data = load_data(experiment.data, 0)
    streams = make_streams(experiment.stream, data, 0)
    split, parts = count_split(streams, 10), count_parts(data)
    for device in range(3):
        tasks = [streams[device].task(step) for step in range(4) if streams[device].sizes[step]]
        assert split.by_class[device].tolist() == np.bincount(np.concatenate([task.y for task in tasks]), minlength=10).tolist()
    assert split.by_task.sum() == split.by_class.sum() == 2 * 120 and parts.train.tolist() == [12] * 10


def test_what_is_wrong_is_one_message(photos, tmp_path):
    assert_one_message(call("data", "seq-mnits"), "did you mean 'seq-mnist'?")
    assert_one_message(call("data"), "name a data set")
    assert_one_message(call("data", "seq-mnist"), "MNIST is not in", "--download fetches it there (12 MB)")
    assert_one_message(call("data", "folder"), "set data.path to a folder that has one for each class")
    assert_one_message(call("data", "digits", "--out", tmp_path / "x.jpg"), "it will be a PNG, so take x.jpg.png")
    assert_one_message(call("data", "digits", "--out", tmp_path), "it will be a PNG")
    assert_one_message(call("data", "digits", "--out", photos / "ant" / "0000.png" / "x.png"), "it cannot be written")
    three = call("data", "folder", "--set", f"data.path={photos}")
    assert_one_message(three, "stream.tasks is 5: 3 classes cannot be cut", "take one of 1, 3")
    assert "bee" in three.stdout  # what is there is shown all the same
    assert_one_message(call("data", "own_data:load", "--set", "data.options.clases=3"), "did you mean 'classes'?")
    assert_one_message(call("run", TINY, "--download", "--out", tmp_path / "runs"), "--download: data.name is 'digits'", "it is built in")
    assert not (tmp_path / "runs").exists()


def test_the_cache_is_cleared(photos):
    assert call("data", "folder", "--set", f"data.path={photos}", "--set", "stream.tasks=3").exit_code == 0
    assert any(cache.place().iterdir())
    result = call("data", "--clear-cache")
    assert result.exit_code == 0 and "MB removed" in result.stdout and not any(cache.place().iterdir())


# -- a run


def parquet(folder, seed: int = 0) -> None:
    write_parquet(folder / "train.parquet", images(120, (8, 8), seed), np.arange(120) % 10)
    write_parquet(folder / "test.parquet", images(20, (8, 8), seed + 1), np.arange(20) % 10)


@pytest.fixture
def stopped(tmp_path, monkeypatch):
    """The folder of a run on parquet files that was interrupted after its second round."""
    from simulations.results.console import View

    parquet(tmp_path / "data")
    done = View.round_done

    def interrupt(view, record):
        done(view, record)
        if record.round == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(View, "round_done", interrupt)
    settings = ("data.name=parquet", f"data.path={tmp_path / 'data'}", "data.image_column=image")
    given = [part for setting in settings for part in ("--set", setting)]
    result = call("run", TINY, "--engine", "inline", "--out", tmp_path / "runs", *given)
    assert result.exit_code == 130, result.output
    monkeypatch.setattr(View, "round_done", done)
    (folder,) = (tmp_path / "runs").iterdir()
    return folder


def test_a_run_is_resumed_with_its_data_and_refused_with_another(stopped, tmp_path):
    config = load(str(stopped / "config.toml")).data
    assert len(config.sha256) == 64 and config.path == str(tmp_path / "data")
    shutil.move(tmp_path / "data", tmp_path / "kept")
    assert_refused(
        call("resume", stopped), f"cannot read '{tmp_path}/data': there is no such folder", way="goes on when the data is back where it was"
    )
    parquet(tmp_path / "data", seed=5)
    assert_refused(
        call("resume", stopped),
        "is not the data that the run began with",
        "not " + config.sha256,
        "put these files back",
        way="--set data.sha256=` begins anew",
    )
    assert call("run", stopped / "config.toml", "--engine", "inline", "--out", tmp_path / "again").exit_code == 2
    shutil.rmtree(tmp_path / "data")
    shutil.move(tmp_path / "kept", tmp_path / "data")
    assert call("resume", stopped).exit_code == 0 and (stopped / "summary.json").is_file()


def assert_refused(result: Result, *parts: str, way: str) -> None:
    """One message, and a second line on what can be done."""
    assert result.exit_code == 2, result.output
    told, advice = result.stderr.strip().splitlines()
    assert told.startswith("error: ") and all(part in told for part in parts), told
    assert way in advice


def test_a_single_device_learns_a_function_of_ones_own(tmp_path):
    settings = ("data.name=own_data:load", "data.options.each=12", "data.train_limit=0", "stream.tasks=2", "model.name=mlp")
    result = call("train-one", TINY, "--out", tmp_path, *(part for setting in settings for part in ("--set", setting)))
    assert result.exit_code == 0, result.output
    (folder,) = tmp_path.iterdir()
    stored = load(str(folder / "config.toml")).data
    assert stored.options == {"each": 12} and len(stored.sha256) == 64


# -- names and streams


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["data.name=perm-mnist"], ("domain-il", "permuted", 20)),
        (["data.name=rot-mnist", "stream.tasks=4"], ("domain-il", "rotated", 4)),
        (["data.name=seq-cifar100"], ("class-il", "permuted", 10)),
        (["data.name=seq-mnist", "stream.setting=task-il"], ("task-il", "permuted", 5)),
    ],
)
def test_a_benchmarks_name_brings_its_stream(overrides, expected):
    stream = load("split-digits", overrides).stream
    assert (stream.setting, stream.domain, stream.tasks) == expected


def test_a_file_that_says_its_stream_keeps_it(tmp_path):
    file = tmp_path / "own.toml"
    file.write_text('[data]\nname = "perm-mnist"\n[stream]\ntasks = 3\n')
    assert (load(str(file)).stream.tasks, load(str(file)).stream.setting) == (3, "domain-il")
    assert load(str(file), ["data.name=seq-mnist"]).stream.setting == "class-il"
    file.write_text('[data]\nname = "seq-mnist"\n[stream]\nsetting = "task-il"\n')
    assert load(str(file), ["data.name=seq-cifar10"]).stream.setting == "task-il"


@pytest.mark.parametrize("wrong", ["stream.setting=class-il", "stream.domain=rotated"])
def test_a_name_and_a_stream_that_contradict_each_other(wrong):
    with pytest.raises(ValueError, match="data.name is 'perm-mnist', whose tasks are permuted images, but .*take data.name=seq-mnist"):
        load("split-digits", ["data.name=perm-mnist", wrong])


@pytest.mark.parametrize("name", STREAMS)
def test_every_benchmark_has_an_experiment_that_can_begin(name, tmp_path):
    """With a few images of the right shape. FEMNIST's writers are in tests/simulations/data/test_benchmarks.py."""
    known = PUBLISHED[name]
    y = np.tile(np.arange(known.classes), 3)
    x = images(len(y), known.shape)
    np.savez(tmp_path / "all.npz", x_train=x, y_train=y, x_test=x[: known.classes], y_test=y[: known.classes])
    own = ("stream.partition=iid", "stream.devices=3") if name == "femnist" else ("stream.partition=iid",)
    experiment = load(name, [f"data.path={tmp_path}", "kernels.mode=dense", *own])
    world = make_world(experiment)
    make_strategy(world)
    assert experiment.data.name == name and world.data.num_classes == known.classes
    assert {key: getattr(load(name).stream, key) for key in STREAMS[name]} == STREAMS[name]


def test_a_folder_that_lies_here_is_no_name_but_a_path(photos, monkeypatch):
    monkeypatch.chdir(photos.parent)
    assert_one_message(call("data", "photos"), "'photos' is no data set by name, but lies here: sparcl data folder --set data.path=photos")
    np.savez(photos.parent / "x.npz", x_train=np.zeros((2, 4, 4), np.uint8))
    assert_one_message(call("data", "x.npz"), "sparcl data npz --set data.path=x.npz")


def test_where_a_picture_goes_is_looked_at_first(photos, tmp_path):
    result = call("data", "folder", "--set", f"data.path={photos}", "--set", "stream.tasks=3", "--out", tmp_path / "nope" / "x.png")
    assert_one_message(result, f"there is no folder {tmp_path / 'nope'}")
    assert result.stdout == ""


def test_lines_of_a_long_report_fit_a_terminal(tmp_path):
    write_classes(tmp_path / "photos", images(60, (112, 112, 3)), [0, 1, 2] * 20)
    settings = ("--set", f"data.path={tmp_path}/photos", "--set", "stream.tasks=3", "--set", "data.size=8", "--set", "data.resize=crop")
    result = call("data", "folder", *settings, "--set", "stream.devices=2")
    assert result.exit_code == 0 and max(map(len, map(str.rstrip, result.stdout.splitlines()))) <= 80, result.output
