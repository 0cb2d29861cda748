"""A setting that somebody has given and that nothing reads is refused: with its value, who reads it, and the way out."""

import re
from dataclasses import fields, is_dataclass

import pytest
import tomli_w
from typer.testing import CliRunner
from worlds import TINY, tiny

from simulations.__main__ import app
from simulations.config.errors import ConfigError
from simulations.config.experiment import Experiment
from simulations.config.loading import available, load, read_tables, to_tree
from simulations.config.unread import GIVEN_ALL, Given, conditions, expect_read, in_words, unread
from simulations.tables.claim_file import load_claim
from sparcl_core.methods.registry import OURS, find_method


def told(*overrides: str, name: str = str(TINY), alone: bool = False) -> str:
    return "; ".join(unread(load(name, list(overrides)), Given.of(name, overrides), alone=alone))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ("learner.method=icarl", "learner.alpha=0.3"),
            "learner.alpha is 0.3, but learner.method is 'icarl': it is read with learner.method=der or ",
        ),
        (
            ("learner.method=der", "learner.beta=2"),
            "learner.beta is 2.0, but learner.method is 'der': it is read with learner.method=derpp only",
        ),
        (("learner.method=sgd", "learner.buffer_share=0.3"), "learner.buffer_share is 0.3, but learner.method is 'sgd': it is read with "),
        (("learner.method=sgd", "learner.buffer_size=9"), "leave it out, or take learner.method=agem"),
        (
            ("learner.buffer_size=9", "learner.buffer_share=0.3"),
            "but learner.buffer_size is 9: it is read with learner.buffer_size=0 only; leave it",
        ),
        (("learner={buffer_size=9, buffer_share=0.3}",), "learner.buffer_share is 0.3, but learner.buffer_size is 9"),
        (("masks.scheme=set", "tdm.p_intra=0.02"), "tdm.p_intra is 0.02, but masks.scheme is 'set': it is read with masks.scheme=tdm only"),
        (
            ("masks.scheme=set", "masks.batches=2"),
            "but masks.scheme is 'set' and masks.initial is 'random': it is read with masks.scheme=rigl or ",
        ),
        (
            ("masks.scheme=static", "masks.exchange=0.5"),
            "masks.exchange is 0.5, but masks.scheme is 'static': it is read with masks.scheme=set or rigl",
        ),
        (
            ("sparsity=0", "masks.scheme=rigl", "dgm.enabled=true"),
            "dgm.enabled is True, masks.scheme is 'rigl', but sparsity is 0.0: they are read ",
        ),
        (("selection.alpha=3",), "selection.alpha is 3.0, but selection.policy is 'uniform': it is read with selection.policy=oort only"),
        (("data.path=/tmp",), "data.path is '/tmp', but data.name is 'digits': it is read with data.name=parquet, folder, npz, "),
        (("server_optimizer.momentum=0.5",), "but server_optimizer.name is 'sgd': it is read with server_optimizer.name=momentum only"),
        (("change.window=7",), "but stream.boundaries is 'known'"),
        (("model.name=mlp", "model.hidden=9"), "model.hidden is 9, but model.name is 'mlp': it is read with model.name=cnn only"),
        (("model.name=own_models:make", "model.width=8"), "model.width is 8, but model.name is 'own_models:make'"),
        (
            ("fleet.mix.phone=1", "profile=phone"),
            "profile is 'phone', but fleet.mix is {'phone': 1.0}: it is read with an empty fleet.mix only",
        ),
    ],
)
def test_what_nothing_reads_is_told(overrides, message):
    found = told(*overrides)
    assert message in found and re.search("leave (it|them) out, or take ", found)
    with pytest.raises(ConfigError, match=re.escape(message)):
        expect_read(tiny(*overrides), Given.of(str(TINY), overrides))


@pytest.mark.parametrize(
    "overrides",
    [
        ("learner.method=er",),  # alpha stands in the file, for derpp
        ("learner.method=own_methods:Distilled", "learner.alpha=0.3", "learner.buffer_share=0.3"),  # another's, which is given all
        ("dgm.enabled=false", "dgm.keep=0.5"), ("tdm.enabled=false", "tdm.p_intra=0.02"), ("ddr.enabled=false", "ddr.remove=0.2"),
        ("sparsity=0", "masks.scheme=static", "tdm.enabled=false", "dgm.enabled=false", "federation.mask=shared"),
        ("masks.initial=snip", "masks.scheme=set", "masks.batches=2"),
        ("learner.method=sgd", "learner.alpha=0"), ("profile=phone",), ("learner.buffer_size=0", "learner.buffer_share=0.3"),
    ],
)  # fmt: skip
def test_what_is_read_or_says_that_nothing_is_done_is_no_fault(overrides):
    assert told(*overrides) == ""


@pytest.mark.parametrize("name", available())
def test_experiments_of_ours_have_nothing_that_is_not_read(name):
    assert told(name=name) == ""


def test_of_a_file_counts_what_stands_beside_the_setting_that_it_depends_on(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(TINY.read_text().replace('method = "derpp"', 'method = "er"\nbeta = 0.7'))
    assert "learner.beta is 0.7, but learner.method is 'er'" in told(name=str(path))
    assert told("learner.method=derpp", name=str(path)) == told("learner.method=sgd", name=str(path)) == ""
    path.write_text(TINY.read_text().replace('method = "derpp"', "beta = 0.7"))
    assert told(name=str(path)) == told("learner.method=er", name=str(path)) == ""


def test_a_file_that_a_run_has_written_counts_as_nobodys(tmp_path):
    path = tmp_path / "config.toml"
    path.write_text(tomli_w.dumps(to_tree(tiny("learner.method=er", "learner.alpha=0.2"))))
    assert {part.name for part in fields(Experiment) if is_dataclass(part.type)} <= read_tables(str(path)).keys()
    assert told(name=str(path)) == ""
    assert "learner.beta is 2.0" in told("learner.beta=2", name=str(path))


def test_a_device_that_is_alone_reads_nothing_of_a_fleet():
    found = told("evaluate_on=devices", "clock.start_hour=3", "profile=phone", alone=True)
    assert found == (
        "clock.start_hour is 3.0, evaluate_on is 'devices', which a device that is alone does not read: leave them out, or take sparcl run"
    )
    assert told("clock.start_hour=3") == "" and told("fleet.mix.phone=1", "profile=phone", alone=True).startswith("fleet.mix is {")


@pytest.mark.parametrize("command", ["run", "train-one"])
def test_the_commands_refuse_it_before_anything_starts(command, tmp_path):
    done = CliRunner().invoke(
        app, [command, str(TINY), "--out", str(tmp_path / "out"), "--set", "masks.scheme=set", "--set", "tdm.batches=3"]
    )
    assert done.exit_code == 2 and done.stderr.startswith("error: tdm.batches is 3, but masks.scheme is 'set'")
    assert not (tmp_path / "out").exists() and len(done.output.strip().splitlines()) == 1


CLAIM = """
experiment = "{tiny}"
seeds = [0]
set = ["learner.alpha=0.3"]
[[row]]
name = "er"
set = ["learner.method=er"]
[[row]]
name = "der"
set = ["learner.method=der"]
"""


def test_a_claims_setting_must_be_read_by_one_row_and_a_rows_own_by_that(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(CLAIM.format(tiny=TINY))
    load_claim(str(path))
    path.write_text(CLAIM.format(tiny=TINY).replace("learner.method=der", "learner.method=sgd"))
    with pytest.raises(ConfigError, match="no row reads a setting of all: learner.alpha is 0.3, but learner.method is 'er'"):
        load_claim(str(path))
    path.write_text(CLAIM.format(tiny=TINY).replace('"learner.method=er"', '"learner.method=er", "learner.beta=2"'))
    with pytest.raises(ConfigError, match="row 'er': learner.beta is 2.0, but learner.method is 'er'"):
        load_claim(str(path))
    path.write_text(CLAIM.format(tiny=TINY) + '[sweep]\nkey = "learner.beta"\nvalues = [1, 2]\n')
    path.write_text(path.read_text().replace("seeds", 'table = "sweep"\nseeds'))
    with pytest.raises(ConfigError, match="no row reads a setting of all: learner.beta is 1.0"):
        load_claim(str(path))


def test_a_method_that_has_no_buffer_to_draw_from_is_refused():
    for method in ("agem", "fdr", "er", "derpp"):
        with pytest.raises(ConfigError, match=f"learner.method is '{method}', which draws from a buffer, but learner.buffer_size and"):
            tiny(f"learner.method={method}", "learner.buffer_share=0")
    tiny("learner.method=sgd", "learner.buffer_share=0")


def test_conditions_speak_of_settings_and_values_that_there_are():
    keys = {f"{part.name}.{one.name}" for part in fields(Experiment) if is_dataclass(part.type) for one in fields(part.type)}
    keys |= {part.name for part in fields(Experiment)}
    assert keys >= conditions().keys()
    for condition in {one for all_of in conditions().values() for one in all_of}:
        for one in condition.split(" or "):
            switch, _, values = one.removeprefix("no ").partition("=")
            assert switch in keys
            for value in values.split("|") if values else ():
                assert switch not in GIVEN_ALL or value in GIVEN_ALL[switch].ours
                assert switch in GIVEN_ALL or value in str(_hint(switch)) or switch in ("model.name", "selection.policy")
        assert in_words(condition)


def _hint(key: str) -> object:
    section, _, name = key.partition(".")
    return next(f.type for f in fields(next(p.type for p in fields(Experiment) if p.name == section)) if f.name == name)


def test_every_method_says_what_it_reads_of_the_settings_that_are_not_for_all():
    """Seen in its source: `self.config.alpha` and the like."""
    import inspect

    for name in OURS:
        method = find_method(name)
        source = "".join(inspect.getsource(one) for one in method.__mro__ if one.__module__ not in ("builtins", "sparcl_core.methods.base"))
        assert {key for key in ("alpha", "beta", "replay_weight") if f"self.config.{key}" in source} == set(method.reads), name
