"""The command line: bad input ends with exit code 2 and one message, and leaves nothing behind."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import Result
from safetensors.numpy import load_file
from typer.testing import CliRunner
from worlds import TINY, tiny

from simulations.__main__ import app
from simulations.config import ConfigError, available, load


def call(*args) -> Result:
    return CliRunner().invoke(app, [str(arg) for arg in args])


def run_tiny(out: Path, *overrides: str, engine: str = "inline", options: tuple[str, ...] = ()):
    settings = [part for override in overrides for part in ("--set", override)]
    return call("run", TINY, "--engine", engine, "--out", out, *settings, *options)


def assert_one_message(result, *parts: str) -> None:
    """Exit code 2, one line on stderr with all of `parts`, no traceback."""
    assert result.exit_code == 2, result.output
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("error: ")
    for part in parts:
        assert part in line
    assert "Traceback" not in result.output


def left_behind(out: Path) -> list[Path]:
    return list(out.rglob("*")) if out.exists() else []


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("learner.lrr=0.1", ("'learner.lrr'", "did you mean 'learner.lr'?")),
        ("learnr.lr=0.1", ("'learnr'", "did you mean 'learner")),
        ("learner.lr=fast", ("learner.lr is 'fast'", "valid number")),
        ("sparsity=1.0", ("sparsity is 1.0", "[0, 1)", "0 trains the dense network")),
        ("sparsity=-0.1", ("sparsity is -0.1", "[0, 1)")),
        ("dgm.sparsity=0.5", ("dgm.sparsity is 0.5", "[0.9, 1)", "try 0.92")),
        ("tdm.p_intra=0.1", ("tdm.p_intra is 0.1", "below the density 1 - sparsity = 0.1", "try 0.01")),
        ("tdm.p_inter=0.3", ("tdm.p_inter is 0.3", "below the density 1 - sparsity = 0.1", "try 0.01")),
        ("federation.rounds_per_task=3", ("3 stages", "at least 4", "lower tdm.stage_epochs")),
        ("stream.devices=121", ("stream.devices is 121", "only 120 training samples")),
        ("stream.tasks=3", ("stream.tasks is 3", "10 classes cannot be cut")),
        ("learner.lr", ("--set 'learner.lr'", "write key=value")),
        ("data.name=parquet", ("path is empty", "set data.path")),
        ("model.sparse=['conv7.weight']", ("'conv7.weight'", "matches no weight of cnn", "conv2.weight")),
        ("wire.up=u8", ("wire.up is 'u8'", "'f64'", "'int4'")),
        ("wire.up_share=0", ("up_share is 0.0", "(0, 1]", "1 sends whatever changed")),
        ("aggregation.min_votes=0", ("aggregation: min_votes is 0", "at least 1")),
        ("server_optimizer.lr=0", ("lr is 0.0", "above 0", "the default is 1.0")),
        ("federation.mask=own", ("federation.mask is 'own'", "'shared' or 'local'")),
        ("profile=toaster", ("profile 'toaster' is not here", "raspberry-pi-4")),
        ("name=../escape", ("name is '../escape'", "letters, digits")),
        ("learner.lr=1e30", ("all 3 devices of round 1 failed", "device 0, round 1, stage train", "lower learner.lr")),
    ],
)
def test_bad_settings(tmp_path, override, parts):
    assert_one_message(run_tiny(tmp_path / "out", override), *parts)
    assert left_behind(tmp_path / "out") == [] and not (tmp_path / "escape-seed0").exists()


def test_an_experiment_that_is_not_there(tmp_path):
    assert_one_message(call("run", "nope", "--out", tmp_path), "experiment 'nope' is not here", "split-digits", "or give a .toml file")
    assert_one_message(call("train-one", tmp_path / "nope.toml", "--out", tmp_path), "nope.toml' is not here")
    assert left_behind(tmp_path) == []


def test_data_that_is_not_there_or_not_right(tmp_path):
    data, out = tmp_path / "data", tmp_path / "out"
    settings = ("data.name=parquet", f"data.path={data}")
    assert_one_message(run_tiny(out, *settings), "data.path: cannot read", "train.parquet and test.parquet")
    data.mkdir()
    for split in ("train", "test"):
        pq.write_table(pa.table({"pixels": [b"x"], "label": [0]}), data / f"{split}.parquet")
    assert_one_message(run_tiny(out, *settings), "no column 'img'", "it has pixels, label", "set data.image_column")
    assert_one_message(run_tiny(out, *settings, "data.image_column=pixels"), "row 0", "no readable image")
    assert left_behind(out) == []


def test_a_run_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("kept")
    assert_one_message(run_tiny(tmp_path / "file" / "runs"), "cannot be written", "choose another with --out")
    assert (tmp_path / "file").read_text() == "kept"


def test_ray_that_cannot_start(tmp_path, monkeypatch):
    import ray

    def fail(**kwargs):
        raise ConnectionError("no port is free")

    monkeypatch.setattr(ray, "init", fail)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    result = run_tiny(tmp_path / "out", engine="ray")
    assert_one_message(result, "Ray cannot start: no port is free", "'--engine inline' runs without it")
    assert left_behind(tmp_path / "out") == []


def test_a_bug_of_ours_points_to_debug(tmp_path, monkeypatch):
    def boom(*args):
        raise ZeroDivisionError("boom")

    monkeypatch.setattr("simulations.run.run_world", boom)
    assert_one_message(run_tiny(tmp_path / "out"), "ZeroDivisionError: boom", "--debug shows where")
    assert left_behind(tmp_path / "out") == []
    result = run_tiny(tmp_path / "out", options=("--debug",))
    assert isinstance(result.exception, ZeroDivisionError)
    assert left_behind(tmp_path / "out") == []


def test_an_interrupted_run_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("simulations.run.run_world", interrupt)
    result = run_tiny(tmp_path / "out")
    assert result.exit_code == 130 and result.stderr == "interrupted; nothing was written\n"
    assert left_behind(tmp_path / "out") == []


def test_debug_shows_a_traceback_and_no_message_of_ours(tmp_path):
    assert isinstance(run_tiny(tmp_path, "learner.lrr=1", options=("--debug",)).exception, ConfigError)
    command = [sys.executable, "-m", "simulations", "run", str(TINY), "--set", "learner.lrr=1", "--debug"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode != 0 and "Traceback" in done.stderr and "did you mean 'learner.lr'?" in done.stderr
    assert left_behind(tmp_path) == []


def test_the_seed_option_wins_over_the_file(tmp_path):
    result = run_tiny(tmp_path, "stream.tasks=1", options=("--seed", "3"))
    assert result.exit_code == 0, result.output
    assert load(str(tmp_path / "tiny-seed3" / "config.toml")) == tiny("stream.tasks=1", "seed=3")


def test_a_baseline_is_run_beside(tmp_path):
    result = run_tiny(tmp_path, "stream.tasks=1", options=("--baseline",))
    assert result.exit_code == 0, result.output
    assert "dense twin" in result.stdout and "points" in result.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["tiny-seed0"]


def test_one_device_alone_runs_without_a_federation(tmp_path):
    result = call("train-one", TINY, "--out", tmp_path)
    assert result.exit_code == 0 and result.stderr == "", result.output
    assert "Class-IL accuracy" in result.stdout
    (folder,) = tmp_path.iterdir()
    assert {path.name for path in folder.iterdir()} == {
        "config.toml", "environment.json", "summary.json", "accuracy.parquet", "model.safetensors"
    }  # fmt: skip


def test_list_shows_every_experiment_with_its_description():
    result = call("list")
    assert result.exit_code == 0
    lines = {line.split(" ", 1)[0]: line for line in result.stdout.splitlines()}
    assert lines.keys() == set(available())
    for name, line in lines.items():
        assert line.endswith(load(name).description)


def test_the_real_command_writes_a_whole_run_folder(tmp_path):
    """In a process of its own, in a folder that is not the project's; the CLI's output is plain without a terminal."""
    command = [sys.executable, "-m", "simulations", "run", str(TINY), "--engine", "inline", "--out", "runs"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "round 8/8  task 1  3 devices  Class-IL" in done.stdout and "\x1b" not in done.stdout
    assert "run folder: runs/tiny-seed0" in done.stdout

    (folder,) = (tmp_path / "runs").iterdir()
    assert load(str(folder / "config.toml")) == tiny()
    for name in ("ledger", "rounds", "accuracy", "wall"):
        assert pq.read_table(folder / f"{name}.parquet").num_rows > 0
    assert np.isfinite(load_file(folder / "model.safetensors")["conv1.weight"]).all()
    assert (folder / "report.png").read_bytes().startswith(b"\x89PNG")
    assert not [path for path in folder.iterdir() if path.suffix in (".pkl", ".pickle", ".pt", ".npy")]
