"""The command line: bad input ends with exit code 2 and one message, and leaves nothing behind."""

import os
import re
import shlex
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

from server.errors import Diverged
from simulations.__main__ import app
from simulations.build import choose_kernels
from simulations.config.errors import ConfigError
from simulations.config.loading import available, load
from simulations.data.sources import load_unbound
from simulations.plugins.catalogue import CATALOGUE
from simulations.results.console import View


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
    nope = call("run", "nope", "--engine", "inline", "--out", tmp_path)
    assert_one_message(nope, "experiment 'nope' is not here", "split-digits", "or give a .toml file")
    assert_one_message(call("train-one", tmp_path / "nope.toml", "--out", tmp_path), "there is no file", "nope.toml'")
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
    def boom(*args, **kwargs):
        raise ZeroDivisionError("boom")

    monkeypatch.setattr("simulations.run.run_world", boom)
    assert_one_message(run_tiny(tmp_path / "out"), "ZeroDivisionError: boom", "--debug shows where")
    assert left_behind(tmp_path / "out") == []
    result = run_tiny(tmp_path / "out", options=("--debug",))
    assert isinstance(result.exception, ZeroDivisionError)
    assert left_behind(tmp_path / "out") == []


# -- options of the engine


@pytest.mark.parametrize("command", [("run", TINY, "--engine", "inline"), ("resume", "somewhere")], ids=["run", "resume"])
@pytest.mark.parametrize(
    ("option", "value", "rule"),
    [
        ("--workers", "-1", "x>=0"),
        ("--gpus-per-worker", "-0.5", "x>=0"),
        ("--gpus-per-worker", "all", "not a valid float"),
        ("--cache", "-1", "x>=0"),
        ("--cache", "1.5", "not a valid int"),
        ("--device-timeout", "-1", "x>=0"),
        ("--tries", "0", "x>=1"),
    ],
)
def test_bad_options(tmp_path, monkeypatch, command, option, value, rule):
    monkeypatch.chdir(tmp_path)
    result = call(*command, option, value)
    assert result.exit_code == 2 and "Invalid value" in result.stderr
    for part in (f"'{option}'", value, rule):
        assert part in result.stderr
    assert left_behind(tmp_path) == []


@pytest.mark.parametrize(
    ("address", "parts"),
    [
        ("nohost.invalid:1", ("--ray-address nohost.invalid:1: nothing answers there", "is a Ray head running at that address?")),
        ("localhost:1", ("--ray-address localhost:1: nothing answers there", "is a Ray head running at that address?")),
        ("localhost", ("--ray-address 'localhost' is neither 'auto' nor HOST:PORT",)),
        ("ray://localhost:10001", ("Ray's client protocol is not supported", "run on a node of the cluster")),
    ],
)
def test_a_cluster_that_is_not_there(tmp_path, address, parts):
    result = run_tiny(tmp_path / "out", engine="ray", options=("--ray-address", address))
    assert_one_message(result, *parts)
    assert left_behind(tmp_path / "out") == []


def test_a_cluster_for_the_inline_engine_is_refused(tmp_path):
    result = run_tiny(tmp_path / "out", options=("--ray-address", "localhost:6379"))
    assert_one_message(result, "--ray-address is 'localhost:6379'", "the inline engine is one process", "take --engine ray")
    assert left_behind(tmp_path / "out") == []


def test_a_store_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("kept")
    for store in (f"{tmp_path}/file/states", f"{tmp_path}/file", "nobody://knows/this", f"file://{tmp_path}/*"):
        assert_one_message(run_tiny(tmp_path / "out", options=("--store", store)), "device states cannot be kept in", store, "--store")
        assert left_behind(tmp_path / "out") == []
    assert [path.name for path in tmp_path.iterdir()] == ["file"] and (tmp_path / "file").read_text() == "kept"


def test_device_states_are_kept_where_store_says_and_go_with_the_run(tmp_path, monkeypatch):
    store, seen = tmp_path / "store", []
    monkeypatch.setattr(View, "device_done", lambda view, device: seen.append(len(list(store.glob("*/run/states/*/*")))))
    result = run_tiny(tmp_path / "out", "stream.tasks=1", options=("--store", store))
    assert result.exit_code == 0, result.output
    assert seen == [1, 2, 3, 4, 5, 6] + [7, 8, 9] * 2  # three devices; what a round replaces goes when the next one is over
    assert list(store.iterdir()) == [] and not (tmp_path / "out" / "tiny-tasks1-seed0" / "devices").exists()


# -- interrupted, resumed, given up


def interrupt_after(monkeypatch, round_: int, error: BaseException) -> None:
    """Once, when this round is over and told."""
    true = View.round_done

    def round_done(view, record):
        true(view, record)
        if record.round == round_:
            monkeypatch.setattr(View, "round_done", true)
            raise error

    monkeypatch.setattr(View, "round_done", round_done)


def interrupted(out: Path, monkeypatch, round_: int = 2, options: tuple[str, ...] = ()) -> Path:
    """The folder of a run of four rounds that was interrupted after this one."""
    interrupt_after(monkeypatch, round_, KeyboardInterrupt())
    assert run_tiny(out, "stream.tasks=1", options=options).exit_code == 130
    return out / "tiny-tasks1-seed0"


def test_a_run_interrupted_before_its_first_round_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("simulations.run.run_world", interrupt)
        result = run_tiny(tmp_path / "out")
    assert result.exit_code == 130 and result.stderr == "interrupted; nothing was written\n"
    interrupt_after(monkeypatch, 0, KeyboardInterrupt())
    result = run_tiny(tmp_path / "out")
    assert result.exit_code == 130 and result.stderr == "interrupted; nothing was written\n"
    assert left_behind(tmp_path / "out") == []


def test_a_run_interrupted_later_says_how_to_resume_it(tmp_path, monkeypatch):
    interrupt_after(monkeypatch, 2, KeyboardInterrupt())
    result = run_tiny(tmp_path, "stream.tasks=1")
    folder = tmp_path / "tiny-tasks1-seed0"
    assert result.exit_code == 130 and result.stderr == f"stopped after 2 rounds: `sparcl resume {folder}` goes on from there\n"
    assert (folder / "run.json").exists()

    result = call("resume", folder)
    assert (result.exit_code, result.stderr) == (0, ""), result.output
    lines = result.stdout.splitlines()
    assert lines[0] == f"{folder}: going on, starting PyTorch"
    assert lines[2] == "going on after round 2/4" and lines[3].startswith("round 3/4 ")
    assert "Class-IL accuracy" in result.stdout and lines[-1] == f"run folder: {folder}"
    assert not (folder / "run.json").exists() and (folder / "report.png").exists()
    assert run_tiny(tmp_path / "other", "stream.tasks=1").exit_code == 0
    assert (folder / "ledger.parquet").read_bytes() == (tmp_path / "other" / "tiny-tasks1-seed0" / "ledger.parquet").read_bytes()


def test_a_resumed_run_can_be_interrupted_again_and_keeps_its_twin(tmp_path, monkeypatch):
    folder = interrupted(tmp_path, monkeypatch, 3, ("--baseline",))
    interrupt_after(monkeypatch, 1, KeyboardInterrupt())  # of the twin
    result = call("resume", folder)
    assert result.exit_code == 130 and result.stderr == f"stopped after 5 rounds: `sparcl resume {folder}` goes on from there\n"
    result = call("resume", folder)
    assert result.exit_code == 0 and re.search("going on after round 4/4\ndense twin: .*\ngoing on after round 1/4\n", result.stdout)
    assert "points" in result.stdout


def test_a_run_that_fails_later_gives_the_reason_and_says_how_to_resume_it(tmp_path, monkeypatch):
    interrupt_after(monkeypatch, 2, ConfigError("the sky fell: wear a hat"))
    result = run_tiny(tmp_path, "stream.tasks=1")
    way_on = f"stopped after 2 rounds: `sparcl resume {tmp_path}/tiny-tasks1-seed0` goes on from there"
    assert result.exit_code == 2 and result.stderr == f"error: the sky fell: wear a hat\n{way_on}\n"
    assert call("resume", tmp_path / "tiny-tasks1-seed0").exit_code == 0


def commands_in(text: str) -> list[list[str]]:
    return [shlex.split(one)[1:] for one in re.findall("`(sparcl [^`]*)`", text)]


def test_a_run_whose_data_has_changed_says_what_works(tmp_path, monkeypatch):
    def write(seed: int) -> None:
        rng = np.random.default_rng(seed)
        x, y = rng.integers(0, 256, (40, 8, 8), dtype=np.uint8), np.arange(40) % 4
        np.savez(tmp_path / "data.npz", x_train=x, y_train=y, x_test=x[:8], y_test=y[:8])

    write(0)
    settings = ("data.name=npz", f"data.path={tmp_path / 'data.npz'}", "stream.tasks=1")
    interrupt_after(monkeypatch, 2, KeyboardInterrupt())
    assert run_tiny(tmp_path / "out", *settings).exit_code == 130
    (folder,) = (tmp_path / "out").glob("tiny-*")
    load_unbound.cache_clear()  # another command is another process
    (tmp_path / "data.npz").rename(tmp_path / "away.npz")
    result = call("resume", folder)
    assert result.exit_code == 2 and "goes on when the data is back where it was" in result.stderr, result.stderr
    write(1)
    result = call("resume", folder)
    assert result.exit_code == 2 and "is not the data that the run began with" in result.stderr, result.stderr
    anew, removes = commands_in(result.stderr)
    assert anew == ["run", f"{folder}/config.toml", "--set", "data.sha256="] and removes == ["forget", str(folder)]
    result = call(*anew, "--engine", "inline", "--out", tmp_path / "anew")
    assert result.exit_code == 0, result.output
    assert call(*removes).exit_code == 0 and not folder.exists()


@pytest.mark.parametrize(
    ("server_lr", "changed"), [("server_optimizer.lr=100", "server_optimizer.lr=1"), ("server_optimizer.lr=1", "learner.lr=0.03")]
)
def test_a_run_that_has_diverged_is_not_sent_on(tmp_path, monkeypatch, server_lr, changed):
    """Resumed, it would come to the same end; the command that is told begins anew with smaller steps."""
    if server_lr == "server_optimizer.lr=1":  # such a run diverges seldom
        interrupt_after(monkeypatch, 2, Diverged("all 3 devices of round 3 failed"))
    result = run_tiny(tmp_path, "learner.lr=0.3", "aggregation.clip=0", server_lr)
    assert result.exit_code == 2 and "resumed, the run would diverge again" in result.stderr, result.stderr
    anew, removes = commands_in(result.stderr)
    folder = Path(removes[1])
    assert (folder / "run.json").exists() and (anew, removes) == (
        ["run", f"{folder}/config.toml", "--set", changed],
        ["forget", str(folder)],
    )
    result = call(*anew, "--engine", "inline", "--out", tmp_path / "anew")
    assert result.exit_code == 0, result.output
    assert call(*removes).exit_code == 0 and not folder.exists()


def test_a_run_interrupted_while_its_table_is_shown_is_whole(tmp_path, monkeypatch):
    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("simulations.results.console.final_table", interrupt)
    result = run_tiny(tmp_path, "stream.tasks=1")
    assert result.exit_code == 130 and result.stderr == f"the run is whole: {tmp_path}/tiny-tasks1-seed0\n"
    assert (tmp_path / "tiny-tasks1-seed0" / "summary.json").exists() and not (tmp_path / "tiny-tasks1-seed0" / "run.json").exists()


@pytest.mark.parametrize("command", ["resume", "forget"])
def test_a_folder_that_cannot_be_resumed_or_forgotten(tmp_path, command):
    assert_one_message(call(command, tmp_path / "nowhere"), f"{tmp_path}/nowhere is no run folder", "name the folder")
    assert run_tiny(tmp_path, "stream.tasks=1").exit_code == 0
    folder = tmp_path / "tiny-tasks1-seed0"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert_one_message(call(command, folder), f"{folder} is finished", "nothing to resume")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_cluster_for_a_run_that_began_on_the_inline_engine_is_refused(tmp_path, monkeypatch):
    folder = interrupted(tmp_path, monkeypatch)
    result = call("resume", folder, "--ray-address", "localhost:1")
    assert result.exit_code == 2 and "the inline engine is one process" in result.stderr.splitlines()[0]
    assert call("resume", folder).exit_code == 0


def test_a_forgotten_run_is_gone_with_its_states(tmp_path, monkeypatch):
    folder = interrupted(tmp_path / "out", monkeypatch, options=("--store", str(tmp_path / "store")))
    assert list((tmp_path / "store").glob("*/run/states/*/*"))
    result = call("forget", folder)
    assert (result.exit_code, result.stdout, result.stderr) == (0, f"{folder} is removed\n", "")
    assert list((tmp_path / "out").iterdir()) == [] and list((tmp_path / "store").iterdir()) == []


# -- what else there is


def test_debug_shows_a_traceback_and_no_message_of_ours(tmp_path):
    assert isinstance(run_tiny(tmp_path, "learner.lrr=1", options=("--debug",)).exception, ConfigError)
    command = [sys.executable, "-m", "simulations", "run", str(TINY), "--engine", "inline", "--set", "learner.lrr=1", "--debug"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode != 0 and "Traceback" in done.stderr and "did you mean 'learner.lr'?" in done.stderr
    assert left_behind(tmp_path) == []


def test_the_seed_option_wins_over_the_file(tmp_path):
    result = run_tiny(tmp_path, "stream.tasks=1", options=("--seed", "3"))
    assert result.exit_code == 0, result.output
    assert load(str(tmp_path / "tiny-tasks1-seed3" / "config.toml")) == choose_kernels(tiny("stream.tasks=1", "seed=3"))


def test_a_baseline_is_run_beside(tmp_path):
    result = run_tiny(tmp_path, "stream.tasks=1", options=("--baseline",))
    assert result.exit_code == 0, result.output
    assert "dense twin" in result.stdout and "points" in result.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["tiny-tasks1-seed0"]


def test_one_device_alone_runs_without_a_federation(tmp_path):
    result = call("train-one", TINY, "--out", tmp_path)
    assert result.exit_code == 0 and result.stderr == "", result.output
    assert "Class-IL accuracy" in result.stdout
    (folder,) = tmp_path.iterdir()
    assert {path.name for path in folder.iterdir()} == {
        "config.toml", "environment.json", "summary.json", "accuracy.parquet", "model.safetensors"
    }  # fmt: skip


def test_list_shows_every_experiment_with_its_description_and_all_other_names():
    result = call("list")
    assert result.exit_code == 0 and max(map(len, result.stdout.splitlines())) <= 80
    for name in available():
        assert f"  {name} " in result.stdout and load(name).description in " ".join(result.stdout.split())
    for what, shelf in CATALOGUE.items():
        (line,) = (line for line in result.stdout.splitlines() if line.split(" ")[0].rstrip(":") == what)
        assert next(iter(shelf.kind.offers())) in line or what == "experiments"


@pytest.mark.parametrize("what", list(CATALOGUE))
def test_list_of_a_kind_has_a_line_for_each_that_says_what_it_is(what):
    result = call("list", what)
    assert result.exit_code == 0 and max(map(len, result.stdout.splitlines())) <= 80
    assert result.stdout.startswith(f"{what}: ") and "from sparcl-fleet:" in result.stdout and "cannot be used" not in result.stdout
    shown = {line.split()[0]: line for line in result.stdout.splitlines() if line.startswith("  ") and line[2] != " "}
    assert shown.keys() == CATALOGUE[what].kind.offers().keys()
    for name, line in shown.items():
        assert len(line.split(maxsplit=1)[1]) > 5 and "module's text" not in line, name


def test_list_of_what_is_not_there_says_what_was_meant():
    assert_one_message(call("list", "modles"), "there is no list of 'modles'; did you mean 'models'? there are experiments, methods")


def test_list_takes_no_pytorch():
    code = (
        "import sys; from typer.testing import CliRunner; from simulations.__main__ import app; "
        "from simulations.plugins.catalogue import CATALOGUE; "
        "assert all(CliRunner().invoke(app, ['list', *what]).exit_code == 0 for what in ([], *([one] for one in CATALOGUE)));"
        "assert not {'torch', 'ray', 'flwr'} & set(sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_the_real_command_writes_a_whole_run_folder(tmp_path):
    """In a process of its own, in a folder that is not the project's; the CLI's output is plain without a terminal."""
    command = [sys.executable, "-m", "simulations", "run", str(TINY), "--engine", "inline", "--out", "runs"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"round 8/8 .*task 1 .*Class-IL", done.stdout) and "\x1b" not in done.stdout
    assert done.stdout.startswith("tiny: starting PyTorch\n") and "run folder: runs/tiny-seed0" in done.stdout

    (folder,) = (tmp_path / "runs").iterdir()
    assert load(str(folder / "config.toml")) == choose_kernels(tiny())  # that choice is made when a run starts
    for name in ("ledger", "rounds", "accuracy", "wall"):
        assert pq.read_table(folder / f"{name}.parquet").num_rows > 0
    assert np.isfinite(load_file(folder / "model.safetensors")["conv1.weight"]).all()
    assert (folder / "report.png").read_bytes().startswith(b"\x89PNG")
    assert not [path for path in folder.iterdir() if path.suffix in (".pkl", ".pickle", ".pt", ".npy")]


def test_without_a_compiler_a_run_is_slower_and_says_so(tmp_path):
    command = [sys.executable, "-m", "simulations", "run", str(TINY), "--engine", "inline", "--out", "runs", "--set", "stream.tasks=1"]
    environment = {**os.environ, "CC": "/bin/false", "SPARCL_KERNEL_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment)
    (line,) = done.stderr.strip().splitlines()
    assert done.returncode == 0 and line.startswith("warning: masks act on dense tensors, which saves no time: ")
    stored = load(str(tmp_path / "runs/tiny-tasks1-seed0/config.toml")).kernels
    assert (stored.backend, stored.sparse) == ("dense", ())


def test_a_run_that_chose_other_kernels_is_refused(tmp_path):
    result = run_tiny(tmp_path, "kernels.backend=avx1024", "kernels.sparse=['conv2.weight']")
    assert_one_message(result, "chosen for the avx1024 kernels", "kernels.mode=dense")
    assert left_behind(tmp_path) == []


def test_the_nearest_command_is_suggested_once():
    told = CliRunner().invoke(app, ["rnu"])
    assert told.exit_code == 2 and told.output.count("Did you mean 'run'?") == 1
