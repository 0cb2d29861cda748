"""Runs that start from the model of another: alone and as a fleet, repeated, resumed, and by their settings."""

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner
from worlds import TINY, tiny, tiny_world

from simulations import flower_apps
from simulations.__main__ import app
from simulations.build import choose_kernels, make_strategy
from simulations.cli.carrying_out import carry_out
from simulations.config.errors import ConfigError
from simulations.config.experiment import dense_twin
from simulations.config.loading import load
from simulations.results import plot
from simulations.results.console import View
from simulations.results.control_file import How
from simulations.results.resumable import new_run, open_run
from simulations.single_device import train_one
from sparcl_core.sparsity.masks import apply_masks_

ONE_TASK = ("stream.tasks=1", "evaluate_every=0")
INLINE = How("inline", baseline=False)
STILL = ("learner.lr=1e-12", "tdm.enabled=false", "dgm.enabled=false")  # so that what a run began with is what it ends with


@pytest.fixture(autouse=True)
def no_picture(monkeypatch):
    monkeypatch.setattr(plot, "draw_report", lambda folder: None)


def play(out, experiment):
    with new_run(out, choose_kernels(experiment), INLINE) as run:
        carry_out(run, None)
    return run.folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The model of a finished run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plot, "draw_report", lambda folder: None)
        return play(tmp_path_factory.mktemp("finished"), tiny(*ONE_TASK)) / "model.safetensors"


def begun_from(file, *overrides: str):
    return tiny(*ONE_TASK, "seed=5", f"model.weights={file}", *overrides)


def test_a_fleet_starts_from_the_model_of_a_finished_run(finished):
    given, drawn = load_file(finished), make_strategy(tiny_world(*ONE_TASK, "seed=5"))
    strategy = make_strategy(tiny_world(*ONE_TASK, "seed=5", f"model.weights={finished}"))
    apply_masks_(given, drawn.masks)
    for name, value in strategy.weights.items():
        assert np.array_equal(value, given[name]), name
        assert value.ndim < 2 or not np.array_equal(value, drawn.weights[name])


def test_such_a_run_is_repeated_from_what_it_stored(finished, tmp_path):
    folder = play(tmp_path / "first", begun_from(finished))
    stored = load(str(folder / "config.toml"))
    assert len(stored.model.weights_sha256) == 64 and stored.model.weights == str(finished)
    again = play(tmp_path / "again", stored)
    assert (again / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()


def test_a_single_device_and_the_dense_twin_start_from_it_too(finished):
    given = load_file(finished)
    for experiment in (begun_from(finished, *STILL), dense_twin(begun_from(finished, *STILL))):
        progress = train_one(experiment, lambda progress, accuracy: None).progress
        apply_masks_(wanted := {name: value.copy() for name, value in given.items()}, progress.masks)
        for name, value in progress.state.items():
            assert np.allclose(value, wanted[name], rtol=0, atol=1e-6), name


@pytest.mark.parametrize("damage", ["changed", "gone"])
def test_a_run_is_resumed_with_the_weights_that_it_began_with_and_no_others(finished, tmp_path, monkeypatch, damage):
    file = tmp_path / "mine.safetensors"
    file.write_bytes(finished.read_bytes())
    whole = play(tmp_path / "whole", begun_from(file))
    true = View.round_done

    def stop_once(view, record):
        if record.round == 2:
            monkeypatch.setattr(View, "round_done", true)
            raise KeyboardInterrupt
        true(view, record)

    monkeypatch.setattr(View, "round_done", stop_once)
    with pytest.raises(KeyboardInterrupt):
        play(tmp_path / "cut", begun_from(file))
    folder, held = tmp_path / "cut" / whole.name, file.read_bytes()
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    if damage == "gone":
        file.unlink()
    else:
        save_file(load_file(file) | {"conv1.weight": np.zeros((8, 1, 3, 3), np.float32)}, file)
    message = {"gone": "it cannot be read .No such file or directory.", "changed": "put that file back"}[damage]
    with pytest.raises(ConfigError, match=message) as refused, open_run(folder):
        pass
    assert "config.toml" not in str(refused.value)  # that is as it was
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    file.write_bytes(held)
    with open_run(folder) as run:
        carry_out(run, None)
    assert (folder / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "model.weights is .*mine.safetensors: it cannot be read (No such file or directory); give a safetensors file"),
        (b"no weights", "it is no safetensors file"),
        ("another model", "it lacks: conv1.weight"),
    ],
)
def test_the_command_line_refuses_a_file_that_does_not_fit_before_anything_is_written(tmp_path, content, message):
    file = tmp_path / "mine.safetensors"
    if content == "another model":
        save_file({"layer.weight": np.ones((2, 2), np.float32)}, file)
    elif content:
        file.write_bytes(content)
    arguments = ["run", str(TINY), "--engine", "inline", "--out", str(tmp_path / "runs"), "--set", f"model.weights={file}"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 2 and done.stderr.startswith("error: model.weights is ") and done.stderr.count("\n") == 1
    for part in message.split(".*"):
        assert part in done.stderr
    assert not (tmp_path / "runs").exists()


def test_devices_under_flowers_own_commands_need_no_file(tmp_path):
    """They are sent their weights; only the server looks for the file."""
    settings = f"model.weights={tmp_path / 'nowhere.safetensors'}"
    assert flower_apps._world.__wrapped__(str(TINY), settings, finds_weights=False).client_config.method.model.weights
    with pytest.raises(ConfigError, match="nowhere.safetensors: it cannot be read"):
        flower_apps._world.__wrapped__(str(TINY), settings, finds_weights=True)


@pytest.mark.parametrize("setting", ["model.weights_sha256=abc", "model.classifier=drawn"])
def test_settings_about_a_file_need_one(setting):
    with pytest.raises(ConfigError, match="model: weights is empty: classifier and weights_sha256 say how its file is read"):
        tiny(setting)
