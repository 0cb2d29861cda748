"""A learning method in one file of the user's own, named by `learner.method`: it trains a fleet and a single device, all it costs is
counted, and a run with it is interrupted and goes on."""

import os
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import tomli_w
from own_methods import Distilled
from worlds import TINY, RecordingGrid, play, tiny, tiny_world

from simulations.build import make_strategy
from simulations.cli.carrying_out import carry_out
from simulations.config.errors import ConfigError
from simulations.config.loading import from_tree, to_tree
from simulations.results import plot
from simulations.results.console import View
from simulations.results.resumable import How, new_run, open_run
from simulations.single_device import train_one
from sparcl_core.methods.registry import OURS, make_method
from sparcl_core.sparsity.masks import count_active

KNOWN = ", ".join(map(repr, list(OURS)[:-1])) + f" or {list(OURS)[-1]!r}"

OWN = "learner.method=own_methods:Distilled"
QUIET = "ddr.enabled=false"  # so that how much is trained does not depend on what is learned
# The network of tiny.toml, a cnn of width 8 and 16 hidden units on images of 8x8. Weights, and places where each is used:
# conv1 72 x 64, conv2 576 x 64, fc 8*4*4*16 = 2048 x 1, classifier 160 x 1; conv2 and fc are sparse. At sparsity 0.9 they have 58 and 205
# active weights; a task that begins grows a hundredth of each layer, 6 and 20. The model that a device ends the first task with is the one
# that it is sent for the second: 64 and 225.
ACTIVE = {"conv2.weight": 64, "fc.weight": 225}
FORWARD = 2 * (72 * 64 + 64 * 64 + 225 + 160)  # FLOPs of the teacher, of one sample
DENSE_FORWARD = 2 * (72 * 64 + 576 * 64 + 2048 + 160)
# conv1 72, three norms 2 * (8 + 8 + 16), classifier 170; active weights; and a bit for each place of conv2 and fc
TEACHER_BYTES = 4 * (72 + 64 + 170 + 64 + 225) + 576 // 8 + 2048 // 8


# -- what it costs


@pytest.fixture(scope="module")
def ledgers() -> dict[str, dict]:
    """Rows of training by round and device, of the method and of plain SGD, which does the same but for the teacher."""
    found = {}
    for method in (OWN, "learner.method=sgd"):
        strategy = play(tiny_world(method, QUIET))
        assert {row.outcome for row in strategy.ledger.rows} <= {"ok", "clipped"}
        found[method] = {(row.round, row.device): row for row in strategy.ledger.rows if row.phase == "train"}
    return found


def test_the_passes_of_a_teacher_are_counted_where_there_is_one(ledgers):
    """From the second task on (round 5), once for each sample of each batch; where importance is computed, for its one batch of 4."""
    assert len(ledgers[OWN]) == 8 * 3
    for (round_, device), row in ledgers[OWN].items():
        plain, taught = ledgers["learner.method=sgd"][round_, device], round_ > 4
        assert row.samples == plain.samples and row.steps == plain.steps and row.replayed == 0
        assert row.train_flops == plain.train_flops + taught * row.samples * FORWARD
        assert row.importance_flops == plain.importance_flops + (taught and plain.importance_flops > 0) * 4 * FORWARD
        assert row.dense_flops == plain.dense_flops + taught * row.samples * DENSE_FORWARD
        assert (
            row.paper_flops == plain.paper_flops and row.dense_paper_flops == plain.dense_paper_flops
        )  # the published columns leave it out
    assert sum(row.importance_flops > 0 for (round_, _), row in ledgers[OWN].items() if round_ > 4) >= 3


def test_the_weights_of_a_teacher_are_counted_as_memory(ledgers):
    for (round_, device), row in ledgers[OWN].items():
        plain = ledgers["learner.method=sgd"][round_, device]
        assert row.active == plain.active and row.updated == plain.updated
        assert row.memory_bytes == plain.memory_bytes + (round_ > 4) * TEACHER_BYTES


def test_the_estimate_knows_of_the_teacher():
    """A second call of each layer in a step, its passes, and its weights, whether there is one yet or not."""
    own, plain = (workload_of(method) for method in (OWN, "learner.method=sgd"))
    assert (own.layer_passes, plain.layer_passes) == (8, 4)
    samples = np.array([10])
    passes, _ = own.passes(samples)
    assert (passes.trained.tolist(), passes.taught.tolist()) == ([10], [10])
    assert own.passes(samples, least=True)[0].taught.tolist() == [0]
    grown = 4 * (6 + 20)  # the estimate is of the experiment's own density
    room = own.memory(0.9, np.array([0]), samples) - plain.memory(0.9, np.array([0]), samples)
    assert room.tolist() == [TEACHER_BYTES - grown]


def workload_of(method: str):
    return make_strategy(tiny_world(method)).federation.cohorts.workload


def test_the_teacher_is_the_model_that_came_with_the_next_task():
    world = tiny_world(OWN)
    grid, sent = RecordingGrid(world), {}

    def observe(record, strategy):
        if record.round == 5:
            sent.update({number: grid.device(number) for number in range(3)})
        if record.round == 6:
            for number, then in sent.items():
                arrays = grid.device(number).memory.arrays
                assert {key: array.tobytes() for key, array in arrays.items()} == {
                    key: array.tobytes() for key, array in then.memory.arrays.items()
                }  # it stays while the task does

    play(world, grid, observe)
    for device in sent.values():
        assert count_active(device.masks) == ACTIVE
        arrays = device.memory.arrays
        for name, value in device.base.items():
            own = value[device.masks[name]] if name in device.masks else value
            assert arrays[name].tobytes() == own.tobytes()
        assert sum(array.nbytes for array in arrays.values()) == TEACHER_BYTES


def test_on_one_device_it_costs_the_same():
    """All samples in one place: the teacher is the model at the end of the first task, before masks grow for the second."""
    found = {}
    for method in (OWN, "learner.method=sgd"):
        progress = []
        train_one(tiny(method, QUIET), lambda one, accuracy, seen=progress: seen.append(one))
        found[method] = progress
    forward = 2 * (72 * 64 + 58 * 64 + 205 + 160)
    samples = 5 * 12  # five digits a task, twelve pictures of each
    for own, plain in zip(found[OWN], found["learner.method=sgd"], strict=True):
        taught = samples if own.task else 0
        assert own.flops.train == plain.flops.train + taught * forward
        assert own.dense_flops.train == plain.dense_flops.train + taught * DENSE_FORWARD
    bytes_ = [sum(array.nbytes for array in one.memory.arrays.values()) for one in found[OWN]]
    assert bytes_[:3] == [0, 0, 0] and set(bytes_[3:]) == {TEACHER_BYTES - 4 * 26}


# -- it does something, and goes on where it was


def test_it_trains_another_model_than_plain_sgd_and_its_setting_counts():
    ways = ((OWN,), (OWN, "learner.softmax_temp=4"), (OWN, "learner.alpha=0.9"), ("learner.method=sgd",))
    weights = [play(tiny_world(*way)).weights["classifier.weight"].tobytes() for way in ways]
    assert len(set(weights)) == 4


class Stop(BaseException):
    """As a signal: nothing catches it."""


def test_a_run_with_it_goes_on_to_the_bit(tmp_path, monkeypatch):
    """Stopped in the second task, when every device has a teacher: what is saved has its weights."""
    monkeypatch.setattr(plot, "draw_report", lambda folder: None)
    experiment, how, true = tiny(OWN, "learner.softmax_temp=3"), How("inline", baseline=False), View.round_done

    def round_done(view, record):
        if record.round == 6:
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
    config = tomllib.loads((parts.folder / "config.toml").read_text())["learner"]
    assert (config["method"], config["softmax_temp"]) == ("own_methods:Distilled", 3.0)


@pytest.mark.ray
def test_workers_train_with_it_too(tmp_path):
    """The command, on Ray: worker processes import the method themselves."""
    folders = []
    for engine in ("inline", "ray"):
        command = [sys.executable, "-m", "simulations", "run", str(TINY), "--engine", engine, "--out", str(tmp_path / engine)]
        env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
        done = subprocess.run([*command, "--set", OWN], capture_output=True, text=True, env=env, cwd=Path(__file__).parents[2])
        assert done.returncode == 0, done.stderr
        folders.append(next(path for path in (tmp_path / engine).iterdir() if path.is_dir()))
    assert folders[0].name == folders[1].name == "tiny-method-own_methods_Distilled-seed0"
    ours, theirs = (pq.read_table(folder / "ledger.parquet") for folder in folders)
    assert ours.equals(theirs) and max(ours["memory_bytes"].to_pylist()) > 0
    assert (folders[0] / "model.safetensors").read_bytes() == (folders[1] / "model.safetensors").read_bytes()


# -- its settings


def test_its_settings_stand_flat_among_those_of_the_learner():
    experiment = tiny(OWN, "learner.softmax_temp=3", "learner.alpha=0.5")
    assert experiment.learner == Distilled.Config(method="own_methods:Distilled", batch_size=4, softmax_temp=3.0, alpha=0.5)
    assert isinstance(make_method(experiment.method.learner), Distilled)
    tree = to_tree(experiment)
    assert tree["learner"]["softmax_temp"] == 3.0
    assert from_tree(tomllib.loads(tomli_w.dumps(tree))) == experiment
    assert tiny(OWN).learner.softmax_temp == 2.0  # its default


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ((OWN, "learner.softmax_tmp=3"), "unknown config key 'learner.softmax_tmp'; did you mean 'learner.softmax_temp'?"),
        ((OWN, "learner.softmax_temp=warm"), "learner.softmax_temp is 'warm': input should be a valid number"),
        ((OWN, "learner.softmax_temp=true"), "learner.softmax_temp is True: input should be a valid number"),
        ((OWN, "learner.softmax_temp=0"), "learner: softmax_temp is 0.0: a temperature must be above 0"),
        (("learner.softmax_temp=3",), "unknown config key 'learner.softmax_temp'"),  # of another method than derpp
        (
            ("learner.method=own_methods:Distiled",),
            "learner.method is 'own_methods:Distiled', but own_methods has no Distiled; did you mean Distilled?",
        ),
        (
            ("learner.method=no.such.module:Method",),
            "learner.method is 'no.such.module:Method', but no.such.module cannot be imported (ModuleNotFoundError: No module named 'no'); "
            "it must lie where Python looks for modules, on every node (PYTHONPATH)",
        ),
        (("learner.method=own_methods:pack",), "learner.method is 'own_methods:pack', which is no learning method: a class derived from"),
        (("learner.method=own_methods:",), "learner.method is 'own_methods:': a method of your own is written package.module:name"),
        (("learner.method=smoothed",), f"learner.method is 'smoothed': input should be {KNOWN}, or package.module:name for a method of"),
        (("learner.method=7",), "learner.method is 7: input should be a valid string"),
    ],
)
def test_a_method_that_is_none_and_settings_that_it_does_not_have(overrides, message):
    with pytest.raises(ConfigError) as caught:
        tiny(*overrides)
    assert str(caught.value).startswith(message) and "learner.method" not in str(caught.value)[len(message) :]


def test_a_module_that_breaks_while_it_is_read_is_one_message_before_anything_starts(tmp_path):
    (tmp_path / "broken_method.py").write_text("import sparcl_core.methods.base\nraise RuntimeError('half written')\n")
    command = [sys.executable, "-m", "simulations", "run", str(TINY), "--out", str(tmp_path / "out")]
    env = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [*command, "--set", "learner.method=broken_method:Mine"], capture_output=True, text=True, env=env, cwd=TINY.parents[1]
    )
    assert done.returncode == 2 and not (tmp_path / "out").exists()
    assert "broken_method cannot be imported (RuntimeError: half written)" in done.stderr and "Traceback" not in done.stderr


def test_all_mistakes_are_told_beside_a_method_that_is_none():
    with pytest.raises(ConfigError) as caught:
        tiny("learner.method=derp", "learner.lrr=1", "seed=x")
    for told in ("did you mean 'derpp'?", "'learner.lrr'", "seed is 'x'"):
        assert told in str(caught.value)


def test_settings_without_the_methods_own_are_refused():
    e = tiny()
    with pytest.raises(
        ValueError, match=r"the settings of the learner are a LearnerConfig: learner.method .* own_methods.Distilled.Config"
    ):
        replace(e, learner=replace(e.learner, method="own_methods:Distilled"))
