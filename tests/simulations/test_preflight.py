"""What a command was given is checked before PyTorch, Flower or Ray are imported, and nothing is left of a command that was refused."""

import json
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner
from worlds import TINY, tiny

from simulations import preflight
from simulations.__main__ import app
from simulations.config.experiment import dense_twin
from simulations.config.run_name import LONGEST, run_name
from simulations.engine.address import cluster_address

HEAVY = ("torch", "ray", "flwr", "scipy", "pyarrow", "sklearn", "matplotlib")
# in a process of its own that never imports what takes seconds; every command ends with exit code and stderr on a line
COMMANDS = """
import json, sys
from typer.testing import CliRunner
from simulations.__main__ import app
for command in json.load(sys.stdin):
    result = CliRunner().invoke(app, command)
    found = sorted(set(sys.modules) & set(%r))
    print(json.dumps([result.exit_code, result.stdout, result.stderr, found]))
"""


def in_a_fresh_process(folder: Path, commands: list[list[str]]) -> list[tuple[int, str, str, list[str]]]:
    """Of each command: exit code, stdout, stderr, and which of `HEAVY` the process has imported by then."""
    done = subprocess.run(
        [sys.executable, "-c", COMMANDS % (HEAVY,)], input=json.dumps(commands), capture_output=True, text=True, cwd=folder,
        env={**os.environ, "COLUMNS": "200"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [tuple(json.loads(line)) for line in done.stdout.splitlines()]


def test_a_mistake_is_told_before_anything_that_takes_long_is_imported(tmp_path):
    """On the default engine too, so that Ray is not started for it."""
    (tmp_path / "file").write_text("kept")
    (tmp_path / "link").symlink_to("nothing")
    (tmp_path / "fleet.csv").write_text("profile\nphone\n")
    (tmp_path / "trace.csv").write_text("device,on\n0,1\n")
    for name in ("summary.json", "model.safetensors", "config.toml"):
        (tmp_path / "whole" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "whole" / name).touch()
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "run.json").write_text(100_000 * "[")
    (tmp_path / "broken.toml").write_text("seed = = 1")
    (tmp_path / "mine.toml").write_text('name = "mine"\n[flops_per_s]\nvalue = -1\nsource = "assumption"\n')
    odd = tmp_path.as_posix() + "/\udcff"
    wrong = {
        ("run", "typo"): "experiment 'typo' is not here; there are",
        ("run", "split-digit"): "did you mean 'split-digits'?",
        ("run", "broken.toml"): "broken.toml is no TOML",
        ("run", "--set", "learner.lrr=1"): "did you mean 'learner.lr'?",
        ("run", "--set", "learnr.lr=1"): "did you mean 'learner'?",
        ("run", "--set", "learner.lr=fast", "--set", "seed=x"): "seed is 'x'",
        ("run", "--set", "federation.local_epochs=70000"): "at most 65,535",
        ("run", "--set", "profile=rasberry-pi-4"): "did you mean 'raspberry-pi-4'?",
        ("run", "--set", "profile=mine.toml"): "flops_per_s is -1",
        ("run", "--set", "fleet.mix.phon=1"): "did you mean 'phone'?",
        ("run", "--set", "fleet.file=fleet.csv"): "fleet.csv has 1 rows",
        ("run", "--set", "fleet.file=nowhere.csv"): "fleet.file nowhere.csv cannot be read",
        ("run", "--set", "availability.kind=trace", "--set", "availability.trace=trace.csv"): "availability: trace.csv, line 1: no column",
        ("run", "--set", "availability.kind=trace", "--set", "availability.trace=no.csv"): "trace no.csv cannot be read",
        ("run", "--set", "data.name=parquet", "--set", "data.path=nowhere"): "data.path: cannot read 'nowhere': there is no such folder",
        ("run", "--set", "data.name=parquet", "--set", "data.path=file"): "it is no folder",
        ("run", "--out", "file"): "cannot be written (it is a file); choose another with --out",
        ("run", "--out", "file/runs"): "cannot be written",
        ("run", "--out", "link/runs"): "is a link to nothing",
        ("run", "--out", odd): "a byte that is not UTF-8",
        ("run", "--out", 300 * "n"): "File name too long",
        ("run", "--store", "file"): "device states cannot be kept in file: it is a file; name with --store a folder",
        ("run", "--store", odd): "a byte that is not UTF-8",
        ("run", "--store", "nobody://knows/this"): "fsspec knows no nobody://",
        ("run", "--store", "s4://key:hush@bucket/x"): "device states cannot be kept in s4://key:***@bucket/x: fsspec knows no s4://",
        ("run", "--store", "adl://key:hush@bucket/x"): "pip install",
        ("run", "--ray-address", "localhost"): "--ray-address 'localhost' is neither 'auto' nor HOST:PORT",
        ("run", "--ray-address", "localhost:seven"): "is neither 'auto' nor HOST:PORT",
        ("run", "--ray-address", "localhost:1"): "nothing answers there",
        ("run", "--ray-address", "localhost:1", "--engine", "inline"): "the inline engine is one process",
        ("run", "--ray-address", "ray://localhost:10001"): "Ray's client protocol is not supported",
        ("run", "--workers", "9999"): "workers is 9999, but this machine has",
        ("run", "--device-timeout", "nan"): "device_timeout_s is nan",
        ("run", "--dense", "--baseline"): "leave one out",
        ("train-one", "typo"): "experiment 'typo' is not here",
        ("train-one", "--set", "lr=1"): "did you mean 'learner.lr' or 'server_optimizer.lr'?",
        ("train-one", "--out", "file"): "it is a file",
        ("resume", "nowhere"): "nowhere is no run folder",
        ("forget", "file"): "file is no run folder",
        ("resume", "whole"): "whole is finished: there is nothing to resume; `sparcl run whole/config.toml` repeats it",
        ("forget", "whole"): "whole is finished: there is nothing to resume",
        ("forget", "deep"): "deep is no run folder",
        ("run", "nowhere.toml"): "there is no file 'nowhere.toml'",
        ("reproduce", "typo"): "claim 'typo' is not here; there are",
        ("reproduce", "--out", "file"): "it is a file",
        ("calibrate", "--out", "nowhere/x.toml"): "cannot write nowhere/x.toml",
        ("calibrate", "--out", "x.txt"): "take x.toml",
        ("calibrate", "--idle-w", "-1"): "idle_w is -1",
    }  # fmt: skip
    before = {path: path.lstat().st_mtime_ns for path in tmp_path.rglob("*")}
    told = in_a_fresh_process(tmp_path, [list(command) for command in wrong])
    for (command, message), (code, stdout, stderr, imported) in zip(wrong.items(), told, strict=True):
        assert (code, stdout, imported) == (2, "", []), (command, stderr)
        (line,) = stderr.splitlines()
        assert line.startswith("error: ") and message in line and "hush" not in line, command
    assert {path: path.lstat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_what_only_shows_needs_nothing_that_takes_long(tmp_path):
    told = in_a_fresh_process(tmp_path, [["list"], ["--help"], ["run", "--help"], ["resume", "--help"], ["run", "--wrong"]])
    assert [(code, imported) for code, _, _, imported in told] == [(0, [])] * 4 + [(2, [])]
    assert "split-digits" in told[0][1] and "Usage" in told[1][1] and "--dense" in told[2][1]


def test_all_that_is_wrong_is_told_at_once(tmp_path):
    (tmp_path / "file").write_text("kept")
    command = ["run", str(TINY), "--set", "profile=toaster", "--set", "data.name=parquet", "--set", f"data.path={tmp_path}/no"]
    result = CliRunner().invoke(app, [*command, "--out", str(tmp_path / "file"), "--store", "s4://x", "--workers", "9999"])
    assert result.exit_code == 2 and len(result.stderr.splitlines()) == 1
    for part in ("profile 'toaster'", "data.path", "run folder", "s4://x", "workers is 9999"):
        assert part in result.stderr


def test_a_folder_that_cannot_be_written_is_found_by_trying(tmp_path):
    assert preflight.unwritable(tmp_path / "a" / "b") == "" and not list(tmp_path.iterdir())
    assert preflight.unwritable(Path("/proc/sparcl")) != ""  # root may do all, but not there


def test_a_cluster_that_answers_is_not_complained_of():
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert list(cluster_address(f"127.0.0.1:{server.getsockname()[1]}")) == []
    assert list(cluster_address("auto")) == list(cluster_address("")) == []


# -- the first line


@pytest.mark.parametrize("command", [("run", "--engine", "inline"), ("train-one",)], ids=["run", "train-one"])
def test_the_first_line_comes_before_what_takes_long(tmp_path, command):
    """And says what sparsity 0 leaves on. The process is asked when the line is there."""
    watched = f"""
import sys
from simulations import __main__ as command
from simulations.cli import carrying_out
def say(line, *args):
    told.append((line, sorted(set(sys.modules) & {{"torch", "flwr", "ray"}})))
    if len(told) == 2: raise KeyboardInterrupt
told = []
carrying_out.say = say
try: command.app({[*command, str(TINY), "--set", "sparsity=0", "--out", str(tmp_path)]!r})
except SystemExit as end: print(end.code)
for line in told: print(*line)
"""
    done = subprocess.run([sys.executable, "-c", watched], capture_output=True, text=True)
    name = "tiny" if command[0] == "run" else "tiny-alone"
    assert done.stdout.splitlines() == [
        "130",
        f"{name}: starting PyTorch []",
        "sparsity is 0, but data removal (ddr) and int6 updates up and int8 down (wire) stay on; --dense runs the dense twin []",
    ], done.stderr


# -- names of folders


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        ([], "tiny-seed0"),
        (["seed=3"], "tiny-seed3"),
        (["learner.lr=0.05", "sparsity=0.95"], "tiny-lr0.05-sparsity0.95-seed0"),
        (["learner.lr=1", "learner.lr = 5e-2"], "tiny-lr0.05-seed0"),
        (["server_optimizer.lr=0.5", "stream.alpha=2"], "tiny-server_optimizer.lr0.5-stream.alpha2-seed0"),
        (["tdm.enabled=false", "learner.method=er"], "tiny-tdm.enabled-false-method-er-seed0"),
        (["budget.levels=[0.95, 0.98]", "description=a b/c"], "tiny-levels-0.95+0.98-seed0"),
        (["data.path=/some where/else", "name=mine"], "mine-path-some_where_else-seed0"),
        (["data.label_column=\u00fc"], "tiny-label_column-_-seed0"),
    ],
)
def test_a_run_folder_is_named_after_what_was_changed(overrides, name):
    assert run_name(tiny(*overrides), overrides) == name


def test_a_long_name_is_cut_and_still_differs():
    names = {run_name(tiny(), [f"data.path={100 * 'x'}{end}"]) for end in range(3)}
    assert len(names) == 3 and all(len(name) <= len("tiny--seed0") + LONGEST for name in names)


# -- the dense twin as the run


@pytest.mark.parametrize(("command", "name"), [("run", "tiny-dense"), ("train-one", "tiny-dense-alone")])
def test_dense_runs_the_dense_twin_itself(tmp_path, monkeypatch, command, name):
    seen = []

    def stop(what, *_, **__):
        seen.append(getattr(what, "experiment", what))
        raise KeyboardInterrupt

    monkeypatch.setattr("simulations.run.run_world", stop)
    monkeypatch.setattr("simulations.single_device.train_one", stop)
    options = ["--engine", "inline"] if command == "run" else []
    result = CliRunner().invoke(app, [command, str(TINY), *options, "--dense", "--out", str(tmp_path), "--seed", "2"])
    assert result.exit_code == 130 and result.stdout.startswith(f"{name}: starting PyTorch\n") and "stay on" not in result.stdout
    assert seen == [replace(dense_twin(tiny("seed=2")), name=name)]


# -- the smoke test


def test_the_smoke_test_goes_through_every_mechanism(tmp_path):
    """In seconds: masks grow with the second task and shrink back, data is removed, gradients are masked, and all is in integers."""
    result = CliRunner().invoke(app, ["run", "smoke", "--engine", "inline", "--out", str(tmp_path), "--set", "learner.batch_size=16"])
    assert result.exit_code == 0, result.output
    rows = pq.read_table(tmp_path / "smoke-batch_size16-seed0" / "ledger.parquet").to_pylist()
    assert {row["outcome"] for row in rows} == {"ok"}
    trained = [row for row in rows if row["phase"] == "train"]
    active, kept = ({row["round"]: row[key] for row in trained if row["device"] == 1} for key in ("active", "kept"))
    assert active[5] > active[4] == active[6] and kept[2] < kept[1] and kept[6] < kept[5]
    assert all(0 < row["updated"] < row["active"] for row in trained) and any(row["masks_bytes"] for row in rows)
    summary = json.loads((tmp_path / "smoke-batch_size16-seed0" / "summary.json").read_text())
    assert summary["accuracy"]["class-il"]["average"] > 0.6 and summary["savings"]["up_bytes"] > 20


@pytest.mark.parametrize(
    ("override", "message"),
    [("learner.method=flwf2t", "needs the server of a federation"), ("federation.correction=fedprox", "there is no federation")],
)
def test_what_needs_a_server_is_not_for_a_single_device(override, message):
    (problem,) = preflight.alone(tiny(override))
    assert message in problem
    assert not list(preflight.alone(tiny()))
