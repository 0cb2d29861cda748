"""`import sparcl` from a script: light, the same results as the parts, and clear where a script's folder hides our packages."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from worlds import TINY, assert_same_arrays, tiny

import sparcl
from simulations.build import make_world
from simulations.config.experiment import dense_twin
from simulations.run import run_world

ROOT = Path(sparcl.__file__).parent


def python(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    """Python as a user has it, with the project installed: our root comes behind the script's folder."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, *arguments], cwd=folder, capture_output=True, text=True, env=environment)


def test_a_script_gets_what_the_parts_give():
    result, parts = sparcl.run(str(TINY), "stream.tasks=1", engine="inline"), run_world(make_world(tiny("stream.tasks=1")), "inline")
    assert_same_arrays(result.strategy.weights, parts.strategy.weights)
    assert isinstance(result, sparcl.Result) and result.scores(0).average == parts.scores(0).average


def test_one_device_alone():
    result = sparcl.train_one(sparcl.load(str(TINY), "stream.tasks=1"))
    assert isinstance(result, sparcl.SoloResult) and np.isfinite(result.accuracy).all()


def test_an_experiment_is_loaded_with_overrides_or_as_its_dense_twin():
    assert sparcl.load(str(TINY), "seed=3") == tiny("seed=3")
    assert sparcl.load(str(TINY), dense=True) == dense_twin(tiny())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sparcl.load("split-digit"), "did you mean 'split-digits'"),
        (
            lambda: sparcl.run(str(TINY), "profile=toaster", engine="inlin"),
            "engine is 'inlin': there are ray and inline; profile 'toaster'",
        ),
        (lambda: sparcl.run(str(TINY), workers=9999), "workers is 9999"),
        (lambda: sparcl.run(tiny(), "seed=3", engine="inline"), "give them to sparcl.load"),
        (lambda: sparcl.train_one(str(TINY), "profile=toaster"), "profile 'toaster'"),
    ],
)
def test_what_is_wrong_is_said_before_anything_starts(call, message):
    with pytest.raises(sparcl.ConfigError, match=message):
        call()


def test_the_import_is_light_and_says_what_it_offers(tmp_path):
    done = python(tmp_path, "-c", "import sparcl, sys; print(sparcl.load().name, sorted({'torch', 'ray', 'flwr'} & set(sys.modules)))")
    assert done.stdout == "split-digits []\n", done.stderr
    with pytest.raises(AttributeError, match="no attribute 'tain_one'; it offers .*train_one"):
        sparcl.tain_one  # noqa: B018
    assert set(sparcl.__all__) <= set(dir(sparcl)) and all(getattr(sparcl, name) for name in sparcl.__all__)


@pytest.mark.parametrize("name", ["server", "client", "sparcl_core", "simulations"])
@pytest.mark.parametrize("kind", ["file", "package"])
def test_a_file_that_hides_a_package_of_ours_is_named(tmp_path, name, kind):
    hides = tmp_path / (f"{name}.py" if kind == "file" else f"{name}/__init__.py")
    hides.parent.mkdir(exist_ok=True)
    hides.write_text("")
    (tmp_path / "script.py").write_text("import sparcl\nsparcl.load()\n")
    done = python(tmp_path, "script.py")
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 1 and last.startswith(f"ImportError: '{name}' is {hides} here, and SparCL Fleet needs its own package")


def test_the_commands_do_not_depend_on_the_folder(tmp_path):
    """`sparcl` is a script of its own, in whose folder nothing hides anything."""
    for name in ("server", "client", "sparcl_core", "simulations"):
        (tmp_path / f"{name}.py").write_text("raise RuntimeError('not this one')")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "sparcl-command").write_text("from sparcl import main\nmain()\n")
    for command in (["-m", "sparcl", "list"], ["bin/sparcl-command", "list"]):
        done = python(tmp_path, *command)
        assert done.returncode == 0 and "split-digits" in done.stdout, done.stderr
    (tmp_path / "bin" / "server.py").write_text("")
    done = python(tmp_path, "bin/sparcl-command", "list")
    assert done.returncode == 2 and done.stderr.startswith("error: 'server' is ") and len(done.stderr.splitlines()) == 1
