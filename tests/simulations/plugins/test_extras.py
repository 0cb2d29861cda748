"""The template package in examples/, installed for real: listed, named on the command line, run inline and on workers, kept with a run."""

import importlib
import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from installed import ROOT, sparcl
from worlds import tiny

from simulations.config.errors import ConfigError
from simulations.config.loading import load
from simulations.fleet.mix import make_hardware
from simulations.fleet.profiles import load_profile
from simulations.plugins.catalogue import packages
from simulations.plugins.packages import used_by
from sparcl_core.plugins import kinds

ADDED = {
    "methods": "er-smooth", "data": "bars", "models": "pools", "rules": "middle", "policies": "longest-ago", "availability": "shifts",
    "profiles": "extra-board", "experiments": "extras-tour",
}  # fmt: skip


@pytest.fixture(scope="module")
def extras(tmp_path_factory) -> Path:
    """Where the package was installed to, without a network."""
    if not (importlib.util.find_spec("pip") and importlib.util.find_spec("setuptools")):
        pytest.skip("needs pip and setuptools in this environment")
    folder = tmp_path_factory.mktemp("installed")
    shutil.copytree(ROOT / "examples" / "sparcl-extras", folder / "source")
    offline = ["--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "install", "-q", *offline, "--target", str(folder / "site"), str(folder / "source")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder / "site"


@pytest.fixture
def here(extras, monkeypatch):
    """The package can be found in this process, too."""
    monkeypatch.syspath_prepend(str(extras))
    importlib.invalidate_caches()
    kinds.entry_points.cache_clear()
    yield extras
    kinds.entry_points.cache_clear()
    for name in [name for name in sys.modules if name.partition(".")[0] == "sparcl_extras"]:
        del sys.modules[name]


@pytest.mark.parametrize("what", ADDED)
def test_what_it_adds_is_listed_with_a_line_and_where_it_comes_from(extras, tmp_path, what):
    told = sparcl("list", what, path=extras, cwd=tmp_path)
    assert (told.returncode, told.stderr) == (0, "")
    ours, theirs = told.stdout.split("from sparcl-extras 0.1:\n")
    assert f"  {ADDED[what]} " in theirs and f"  {ADDED[what]} " not in ours and len(theirs.split()) > 3


def test_its_names_stand_among_all_others(extras, tmp_path):
    told = sparcl("list", path=extras, cwd=tmp_path)
    assert told.returncode == 0 and all(name in told.stdout.split() for name in ADDED.values())


def test_an_experiment_of_it_runs_with_all_that_it_adds(extras, tmp_path):
    done = sparcl("run", "extras-tour", "--engine", "inline", "--out", tmp_path, path=extras, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (folder,) = tmp_path.iterdir()
    assert folder.name == "extras-tour-seed0"
    assert json.loads((folder / "environment.json").read_text())["packages"] == {"sparcl-extras": "0.1"}
    assert json.loads((folder / "summary.json").read_text())["accuracy"]["class-il"]["average"] > 0


@pytest.mark.ray
def test_workers_find_it_too(extras, tmp_path):
    models = []
    for engine in ("inline", "ray"):
        settings = ["--set", "stream.tasks=1", "--set", "federation.rounds_per_task=2", "--set", "tdm.enabled=false"]
        out = tmp_path / engine
        done = sparcl("run", "extras-tour", "--engine", engine, "--out", out, *settings, path=extras, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        models.append(next(out.iterdir()).joinpath("model.safetensors").read_bytes())
    assert models[0] == models[1]


def test_a_profile_of_it_is_one_of_a_mix(here):
    assert load_profile("extra-board")[0].name == "Board of the extras"
    experiment = tiny("fleet.mix={extra-board = 1, phone = 2}", "stream.devices=3")
    fleet = make_hardware(experiment.fleet, experiment.profile, 3, 0)
    assert sorted(np.bincount(fleet.hardware.kind).tolist()) == [1, 2]
    assert used_by(experiment) == {"sparcl-extras": "0.1"}


def test_a_run_is_kept_with_the_packages_that_it_uses(here):
    assert used_by(load("extras-tour")) == {"sparcl-extras": "0.1"}
    assert used_by(tiny()) == used_by(load("split-digits")) == {}
    assert used_by(tiny("aggregation.rule=middle")) == {"sparcl-extras": "0.1"}
    assert used_by(tiny("aggregation.rule=sparcl_extras.rules:middle")) == {"sparcl-extras": "0.1"}  # by its path it is the same package


def test_what_belongs_to_no_package_is_kept_by_its_source(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    file = tmp_path / "loose_rules.py"
    file.write_text("def none(changes):\n    return 0.0\n")
    (found,) = used_by(experiment := tiny("aggregation.rule=loose_rules:none")).items()
    assert found[0] == "loose_rules's source" and len(found[1]) == 12
    file.write_text("def none(changes):\n    return 1.0\n")
    assert used_by(experiment) != dict([found])
    sys.modules.pop("loose_rules")


def test_doctor_tells_what_packages_offer(here):
    offered, wrong = packages()
    assert offered == {"sparcl-extras 0.1": [f"{what} {ADDED[what]}" for what in ("experiments", *list(ADDED)[:7])]} and wrong == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("aggregation.rule=midle",), "aggregation.rule is 'midle': input should be 'masked-mean'"),
        (("aggregation.rule=midle",), "did you mean 'middle'?"),
        (("aggregation.rule=middle", "aggregation.options.shares=1"), "shares is no option of middle; did you mean 'share'?"),
        (("learner.method=er-smoth",), "did you mean 'er-smooth'?"),
        (("learner.method=er-smooth", "learner.label_smoothing=1"), "label_smoothing is 1.0: a share in"),
        (("selection.policy=longest-agoo",), "did you mean 'longest-ago'?"),
        (("availability.kind=shift",), "did you mean 'shifts'?"),
        (("availability.kind=shifts", "availability.options.hours=two"), "availability.options.hours is 'two': input should be a number"),
    ],
)
def test_names_and_options_that_are_misspelt(here, settings, message):
    with pytest.raises(ConfigError) as error:
        tiny(*settings)
    assert message in str(error.value)


def test_a_misspelt_experiment_or_profile_of_it_ends_with_one_message(extras, tmp_path):
    for arguments, meant in ((("run", "extras-tuor"), "extras-tour"), (("run", "smoke", "--set", "profile=extra-bord"), "extra-board")):
        done = sparcl(*arguments, "--out", tmp_path / "runs", path=extras, cwd=tmp_path)
        assert done.returncode == 2 and f"did you mean '{meant}'?" in done.stderr and len(done.stderr.strip().splitlines()) == 1
        assert not (tmp_path / "runs").exists()


def test_the_data_set_and_the_model_of_the_template_are_what_they_say(here):
    from sparcl_extras.data import bars
    from sparcl_extras.models import pools

    train_x, train_y, test_x, test_y = bars(None, 3, samples=8)
    assert train_x.dtype == np.uint8 and train_x.shape == (36, 1, 8, 8) and test_x.shape == (12, 1, 8, 8)
    assert np.bincount(train_y).tolist() == [6] * 6 and np.bincount(test_y).tolist() == [2] * 6
    import torch

    assert pools((1, 8, 8), 6)(torch.zeros(2, 1, 8, 8)).shape == (2, 6)
