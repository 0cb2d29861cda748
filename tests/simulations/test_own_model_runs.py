"""A Module of the user's own, named by `model.name`: it trains a fleet and a single device, and a run with it is stopped and goes on."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import tomli_w
from typer.testing import CliRunner
from worlds import TINY, play, tiny, tiny_world

from simulations.__main__ import app
from simulations.build import choose_kernels, make_world
from simulations.cli.carrying_out import carry_out
from simulations.config.errors import ConfigError
from simulations.config.loading import from_tree, to_tree
from simulations.results import plot
from simulations.results.console import View
from simulations.results.resumable import How, new_run, open_run
from simulations.single_device import train_one

OWN = ("model.name=own_models:make", "model.options.depth=2", "learner.lr=0.01")
ENV = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
COMMAND = [sys.executable, "-m", "simulations", "run", str(TINY)]


@pytest.mark.parametrize("batchnorm", ["global", "local", "recompute"])
@pytest.mark.parametrize("sparsity", [0.0, 0.75])
def test_it_trains_a_fleet(sparsity, batchnorm):
    overrides = (*OWN, f"sparsity={sparsity}", f"federation.batchnorm={batchnorm}", "stream.tasks=1")
    strategy = play(tiny_world(*overrides))
    assert {row.outcome for row in strategy.ledger.rows} <= {"ok", "clipped"}
    masks = strategy.masks
    assert masks.keys() == ({"mix.0.weight", "mix.1.weight", "hidden.weight"} if sparsity else set())
    assert all(not strategy.weights[name][~mask].any() for name, mask in masks.items())
    assert all(row.train_flops < row.dense_flops for row in strategy.ledger.rows if row.phase == "train" and sparsity)


def test_it_trains_one_device_and_chance_repeats_itself():
    weights = []
    for _ in range(2):
        result = train_one(tiny(*OWN, "stream.tasks=1"), lambda progress, accuracy: None)
        weights.append(result.progress.state)
    assert all(value.tobytes() == weights[1][name].tobytes() for name, value in weights[0].items())
    assert np.isfinite(weights[0]["classifier.weight"]).all()


class Stop(BaseException):
    """As a signal: nothing catches it."""


def test_a_run_with_it_goes_on_to_the_bit(tmp_path, monkeypatch):
    monkeypatch.setattr(plot, "draw_report", lambda folder: None)
    experiment, how, true = tiny(*OWN), How("inline", baseline=False), View.round_done

    def round_done(view, record):
        if record.round == 3:
            monkeypatch.setattr(View, "round_done", true)
            raise Stop
        true(view, record)

    with new_run(tmp_path / "whole", experiment, how) as whole:
        carry_out(whole, None)
    monkeypatch.setattr(View, "round_done", round_done)
    with pytest.raises(Stop), new_run(tmp_path / "parts", experiment, how) as parts:
        carry_out(parts, None)
    with open_run(parts.folder) as again:
        carry_out(again, None)
    for name in ("model.safetensors", "ledger.parquet", "rounds.parquet", "accuracy.parquet", "devices.parquet", "summary.json"):
        assert (parts.folder / name).read_bytes() == (whole.folder / name).read_bytes(), name
    config = tomllib.loads((parts.folder / "config.toml").read_text())["model"]
    assert (config["name"], config["options"]) == ("own_models:make", {"depth": 2})


@pytest.mark.ray
def test_workers_train_with_it_too(tmp_path):
    """The command, on Ray: worker processes make the model themselves, and the first lines say which layers are sparse."""
    models = []
    for engine in ("inline", "ray"):
        settings = [word for setting in (*OWN, "stream.tasks=1") for word in ("--set", setting)]
        command = [*COMMAND, "--engine", engine, "--out", str(tmp_path / engine), *settings]
        done = subprocess.run(command, capture_output=True, text=True, env=ENV, cwd=TINY.parents[1])
        assert done.returncode == 0, done.stderr
        assert "own_models:make: 3 of 8 layers are sparse; dense are" in done.stdout
        models.append(next((tmp_path / engine).glob("*/model.safetensors")).read_bytes())
    assert models[0] == models[1]


def test_its_settings_are_stored_as_they_were_given():
    experiment = tiny(*OWN, "model.options.dropout=0.5")
    assert experiment.model.options == {"depth": 2, "dropout": 0.5}
    assert from_tree(tomllib.loads(tomli_w.dumps(to_tree(experiment)))) == experiment


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("model.name=resnet",), "model.name is 'resnet': input should be 'mlp'"),
        (("model.name=own_models:",), "model.name is 'own_models:': a model of your own is written package.module:name"),
        (("model.name=7",), "model.name is 7: input should be a valid string"),
        (("model.options.depth=2",), "model: options has 'depth', but cnn reads width and hidden"),
        (("model.options=2", "model.name=own_models:make"), "model.options is 2: it must be a table, such as --set model."),
        (("model.name=mobilenetv2", "model.width=20"), "model: width is 20: channels of a mobilenetv2 are multiples of 8"),
        (("model.name=vit-tiny", "model.width=100"), "model: width is 100: each head of a vit-tiny has 64 features"),
        (("model.name=vit-tiny", "model.width=64000"), "model.width is 64,000"),
    ],
)
def test_what_can_be_seen_without_pytorch_is_said_at_once(overrides, message):
    with pytest.raises(ConfigError) as caught:
        tiny(*overrides)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("model.name=own_models:of_imagenet",), r"it returns \[3, 1000\], and this data has 10 classes"),
        (("model.name=own_models:make", "model.sparse=['no_such.*']"), "model.sparse has 'no_such.*', which matches no weight"),
        (("model.name=own_models:Net", "model.options.dept=2"), "model.options.dept is no option of Net; did you mean 'depth'"),
        (("model.name=own_models:Flat", "model.options.outs=2"), r"it returns \[3, 2\]"),
        (("model.name=own_models:mkae",), "own_models has no mkae; did you mean make"),
        (("model.sparse=['no_such.*']",), "matches no weight of cnn that can be sparse"),
    ],
)
def test_what_cannot_be_trained_is_said_before_anything_starts(overrides, message):
    with pytest.raises(ValueError, match=message):
        choose_kernels(tiny(*overrides))


def test_a_command_with_such_a_model_ends_with_one_message_and_leaves_nothing(tmp_path):
    command = [*COMMAND, "--engine", "inline", "--out", str(tmp_path / "out"), "--set", "model.name=own_models:of_imagenet"]
    done = subprocess.run(command, capture_output=True, text=True, env=ENV, cwd=TINY.parents[1])
    assert done.returncode == 2 and not (tmp_path / "out").exists()
    assert done.stderr.startswith("error: model.name is 'own_models:of_imagenet': ") and done.stderr.count("\n") == 1


def test_a_model_that_is_too_large_is_refused_when_it_is_made(monkeypatch):
    monkeypatch.setattr("simulations.build.WEIGHTS", 1000)
    with pytest.raises(ConfigError, match=r"model.name is 'own_models:make', which has \d,\d\d\d weights: 1,000 is the most"):
        choose_kernels(tiny("model.name=own_models:make"))


@pytest.mark.parametrize("name", ["mobilenetv2", "mobilenetv3-small", "efficientnet-b0", "vit-tiny"])
@pytest.mark.parametrize("sparsity", [0.0, 0.9])
def test_the_models_for_phones_train_a_fleet(name, sparsity):
    off = ("tdm.enabled=false", "ddr.enabled=false")
    few = ("data.train_limit=4", "stream.devices=2", "stream.tasks=1", "stream.partition=iid", "federation.rounds_per_task=2")
    overrides = (f"model.name={name}", "model.width=8", f"sparsity={sparsity}", "learner.batch_size=10", *off, *few)
    strategy = play(make_world(tiny(*overrides)))
    assert {row.outcome for row in strategy.ledger.rows} <= {"ok", "clipped"}
    assert bool(strategy.masks) == bool(sparsity)


def test_the_layers_of_a_model_are_named():
    done = CliRunner().invoke(app, ["layers", str(TINY)])
    assert done.exit_code == 0, done.output
    rows = [line.split(maxsplit=2) for line in done.stdout.splitlines()]
    assert rows == [
        ["conv1.weight", "8x1x3x3", "dense: the first"], ["conv2.weight", "8x8x3x3", "sparse"], ["fc.weight", "16x128", "sparse"],
        ["classifier.weight", "10x16", "dense: the last"],
    ]  # fmt: skip
    done = CliRunner().invoke(app, ["layers", str(TINY), "--set", "model.sparse=['conv2.weight']"])
    assert "dense: not in model.sparse" in done.stdout
    done = CliRunner().invoke(app, ["layers", str(TINY), "--set", "sparsity=0"])
    assert done.exit_code == 2 and "sparsity is 0: all layers are dense" in done.stderr
