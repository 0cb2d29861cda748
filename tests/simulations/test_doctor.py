"""`sparcl doctor`: what is here, in 80 columns; without a compiler it is still a working state."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from simulations import bytecode
from simulations.__main__ import app
from simulations.doctor import table
from sparcl_core.kernels import build, compiler, library

LABELS = ["python", "torch", "flwr", "ray", "cpu", "threads", "bytecode", "kernels", "reason", "compiler", "cache", "library"]


@pytest.fixture(autouse=True)
def fresh(tmp_path, monkeypatch):
    """A cache of its own; gives its folder."""
    for name in ("SPARCL_KERNELS", "SPARCL_KERNEL_FLAGS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SPARCL_KERNEL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(build, "_warned", False)
    return tmp_path / "cache"


@pytest.fixture
def small(monkeypatch):
    """A source that compiles at once."""
    source = b"int sparcl_abi(void) { return %d; } int sparcl_vector_floats(void) { return 8; }" % library.ABI
    true = build.make_recipe
    monkeypatch.setattr(build, "make_recipe", lambda _, deadline: true(source, deadline))
    try:
        compiler.find_compiler()
    except build.KernelError as error:
        pytest.skip(str(error))


def doctor(*options: str, code: int = 0) -> dict[str, str]:
    """What is printed, by label."""
    result = CliRunner().invoke(app, ["doctor", *options])
    assert (result.exit_code, result.stderr) == (code, ""), result.output
    told = {}
    for line in result.stdout.splitlines():
        label, text = line[:12].strip(), line[12:]
        if label:
            told[label] = text
        else:
            told[list(told)[-1]] += f" {text}"
    assert list(told) == LABELS
    return told


def test_it_says_what_is_here_and_whether_the_library_was_built_or_found(fresh, small):
    told = doctor()
    assert told["python"] == ".".join(map(str, sys.version_info[:3])) and told["flwr"].startswith("1.41.")
    assert "of PyTorch" in told["threads"] and told["kernels"] == "avx2" and told["reason"] == "compiled for this CPU"
    assert told["cache"] == str(fresh) and " s" in told["library"] and ".so, built in " in told["library"]
    (library,) = fresh.iterdir()
    assert doctor()["library"] == f"{library.name}, found"
    before = library.stat().st_ino
    assert ".so, built in " in doctor("--rebuild")["library"]
    (library,) = fresh.iterdir()
    assert library.stat().st_ino != before


def test_a_cache_that_cannot_be_used(fresh, small):
    fresh.write_text("a file")
    told = doctor()
    assert told["cache"] == "none" and told["library"].startswith("kept in memory, built in ")
    assert "in a temporary folder" in told["reason"] and str(fresh) in told["reason"]


def test_no_compiler_is_a_working_state(monkeypatch, tmp_path):
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    told = doctor()
    assert (told["kernels"], told["compiler"], told["cache"], told["library"]) == ("dense", "none", "none", "none")
    assert told["reason"] == "no C compiler found: install gcc or clang, or set CC"


def test_kernels_that_are_asked_for_and_are_not_here_are_none(monkeypatch):
    monkeypatch.setenv("CC", "/bin/false")
    monkeypatch.setenv("SPARCL_KERNELS", "sparse")
    told = doctor(code=2)
    assert told["kernels"] == "none" and "SPARCL_KERNELS is 'sparse' and there are no kernels" in told["reason"]


def test_a_wrong_value_is_one_message(monkeypatch):
    monkeypatch.setenv("SPARCL_KERNELS", "fast")
    result = CliRunner().invoke(app, ["doctor"])
    assert result.exit_code == 2 and result.stdout == ""
    assert result.stderr.startswith("error: SPARCL_KERNELS is 'fast'") and len(result.stderr.splitlines()) == 1


def test_the_table_has_80_columns_and_breaks_no_path():
    path = "/a/folder-with-hyphens" * 6
    lines = table([("python", "3.11"), ("reason", "word " * 40), ("cache", path), ("x", "y")]).splitlines()
    assert lines[0] == "python      3.11" and lines[-1] == "x           y" and f"cache       {path}" in lines
    assert all(len(line) <= 80 for line in lines if path not in line)
    assert [label for line in lines if (label := line[:12].strip())] == ["python", "reason", "cache", "x"]


def test_it_says_where_processes_compile_everything_again(tmp_path, monkeypatch, small):
    """Of two packages one is compiled. Whether Python may write it is what the variable says."""
    for name in ("quick", "slow"):
        (tmp_path / f"{name}.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(bytecode, "PACKAGES", ("quick", "slow", "not_installed"))
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    importlib.import_module("quick")
    assert bytecode.lacking() == ["slow"] and "the first import writes it" in doctor()["bytecode"]
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    told = doctor()["bytecode"]
    assert told.startswith("none of slow, and PYTHONDONTWRITEBYTECODE is set")
    assert "`env -u PYTHONDONTWRITEBYTECODE python -m simulations.bytecode` once" in told
    monkeypatch.setattr(bytecode, "PACKAGES", ("quick",))
    assert doctor()["bytecode"].startswith("there")


def test_bytecode_is_written_at_the_end_of_the_set_up():
    """And what it imports is there to be imported."""
    root = Path(__file__).parents[2]
    own = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}  # not of the make that runs this
    told = subprocess.run(["make", "-n", "-B", ".venv/.ready"], cwd=root, env=own, capture_output=True, text=True, check=True).stdout
    *_, last, stamp = told.splitlines()
    assert last == "env -u PYTHONDONTWRITEBYTECODE .venv/bin/python -m simulations.bytecode" and stamp == "touch .venv/.ready"
    ours = [module for module in bytecode.MODULES if module.startswith("simulations.")]
    assert ours and all(importlib.util.find_spec(module) for module in ours)
    assert all(importlib.util.find_spec(module.partition(".")[0]) for module in bytecode.MODULES)
    refused = subprocess.run(
        [sys.executable, "-m", "simulations.bytecode"], capture_output=True, text=True, env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    )
    assert refused.returncode == 1 and "env -u PYTHONDONTWRITEBYTECODE" in refused.stderr
