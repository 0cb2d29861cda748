"""What is told of each setting is what its dataclass says; the page of settings has the same keys."""

import subprocess
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

import pytest
from typer.testing import CliRunner

from simulations.__main__ import app
from simulations.config.errors import ConfigError
from simulations.config.experiment import SECTIONS, Experiment
from simulations.config.loading import load
from simulations.config.meanings import _setting, matching, meanings, settings
from sparcl_core.config import LearnerConfig
from sparcl_core.methods.registry import OURS, find_method


@dataclass(frozen=True)
class Oven:
    """An oven. It has a

    Attributes:
        heat: degrees; with
            heat: more of it.
        top, bottom: which elements are on.
        mode: `slow` or `fast`.
    """

    heat: float = 180.0
    top: bool = True
    bottom: bool | None = None
    mode: Literal["slow", "fast"] = "slow"
    shelves: tuple[int, ...] = (1, 2)


def test_meanings_are_read_from_the_docstring():
    assert meanings(Oven) == {
        "heat": "degrees; with heat: more of it.", "top": "which elements are on.", "bottom": "which elements are on.",
        "mode": "`slow` or `fast`.",
    }  # fmt: skip
    made = {part.name: _setting("oven", Oven, part) for part in fields(Oven)}
    assert [(one.key, one.kind, one.default) for one in made.values()] == [
        ("oven.heat", "number", "180.0"), ("oven.top", "true or false", "true"), ("oven.bottom", "true or false or left out", ""),
        ("oven.mode", "slow or fast", '"slow"'), ("oven.shelves", "list of whole numbers", "[1, 2]"),
    ]  # fmt: skip


def test_every_setting_has_a_meaning_and_its_default():
    told = {one.key: one for one in settings()}
    expected = {part.name for part in fields(Experiment)} - SECTIONS.keys()
    expected |= {f"{name}.{part.name}" for name, section in SECTIONS.items() for part in fields(section)}
    expected |= {f"learner.{part.name}" for method in OURS for part in fields(find_method(method).Config)}
    assert told.keys() == expected and len(settings()) == len(expected)
    assert not [one for one in settings() if len(one.meaning) < 10]
    assert told["learner.lr"].default == str(LearnerConfig.lr) and told["masks.until"].default == ""
    assert told["learner.alpha"].read_with == "learner.method=der or derpp"
    assert told["learner.softmax_temp"].read_with == "learner.method=lwf or flwf2t"


def test_defaults_can_be_set_as_they_are_shown():
    for one in settings():
        if one.default and one.key not in ("data.sha256",) and not one.read_with.startswith("learner.method="):
            load("split-digits", [f"{one.key}={one.default}"])


def test_a_section_a_key_or_a_part_of_one_is_found():
    assert {one.key.partition(".")[0] for one in matching("tdm")} == {"tdm"}
    assert [one.key for one in matching("learner.lr")] == ["learner.lr"]
    assert [one.key for one in matching("learner.buffer")] == ["learner.buffer_share", "learner.buffer_size"]
    assert {"learner.lr", "server_optimizer.lr"} <= {one.key for one in matching("lr")}
    with pytest.raises(ConfigError, match="there is no setting 'lernr'; did you mean 'learner'"):
        matching("lernr")


@pytest.mark.parametrize("command", [("list", "settings"), ("list", "settings", "learner"), ("list", "settings", "a")])
def test_lists_of_settings_fit_a_terminal(command):
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0 and max(map(len, done.stdout.splitlines())) <= 80
    assert "learner.alpha = 0.1" in done.stdout


def test_only_settings_have_sections():
    done = CliRunner().invoke(app, ["list", "methods", "er"])
    assert done.exit_code == 2 and "error: er is one too many: sparcl list methods lists them all" in done.stderr


def test_the_list_needs_no_pytorch():
    code = (
        "import sys; from simulations.__main__ import app; app(['list', 'settings'], standalone_mode=False); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "False", done.stderr


def test_the_page_of_settings_has_the_keys_that_there_are():
    page = Path(__file__).parents[3].joinpath("docs", "settings.md").read_text().split("| section | keys | where |")[1]
    rows = [line.strip("|").split("|") for line in page.strip().partition("\n\n")[0].splitlines()[1:]]
    listed = {section.strip(): keys for section, keys, _ in rows}
    names = SECTIONS
    assert listed.keys() == {"(top)", *names}
    for section, keys in listed.items():
        plain, _, found = keys.partition("(")
        found = found.partition(":")[2] if section in ("data", "model", "kernels") else ""
        own = {part.name for part in fields(names.get(section, Experiment))} - ({*names} if section == "(top)" else set())
        assert {key.strip(" )") for key in f"{plain},{found}".split(",") if key.strip(" )")} == own, section
