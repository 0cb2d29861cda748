"""The run folder: whole or not there, readable without our code, and the same when the run is repeated."""

import json
import os
import stat
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file
from worlds import assert_same_arrays, tiny, tiny_world

from server.ledger import COLUMNS
from simulations.config.errors import ConfigError
from simulations.config.loading import load
from simulations.results import folder
from simulations.results.folder import new_folder
from simulations.results.plot import KINDS, draw_report
from simulations.results.summary import accuracy_so_far, savings, summarise
from simulations.results.write import write_run
from simulations.run import run_world
from sparcl_core.codec import Sizes

REPEATABLE = (
    "accuracy.parquet", "classes.parquet", "config.toml", "devices.parquet", "ledger.parquet", "model.safetensors", "rounds.parquet",
    "summary.json",
)  # fmt: skip
FILES = {*REPEATABLE, "environment.json", "wall.parquet", "report.png"}
assert set(folder.FILES) == FILES


@pytest.fixture(scope="module")
def result():
    return run_world(tiny_world("evaluate_every=2"), "inline")


@pytest.fixture(scope="module")
def folder(result, tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "tiny-seed0"
    path.mkdir()
    write_run(path, result)
    draw_report(path)
    return path


def read(path) -> dict[str, list]:
    return pq.read_table(path).to_pydict()


def test_a_run_folder_holds_what_it_says(folder):
    assert {path.name for path in folder.iterdir()} == FILES
    assert (folder / "report.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    for path in folder.iterdir():
        assert path.read_bytes()[:2] not in (b"\x80\x04", b"\x80\x05"), f"{path.name} is a pickle"


def test_the_stored_experiment_is_the_one_that_ran(folder):
    assert load(str(folder / "config.toml")) == tiny("evaluate_every=2")


def test_the_stored_model_is_the_final_one(folder, result):
    stored = load_file(folder / "model.safetensors")
    masks = {name.removeprefix("mask/"): value.astype(bool) for name, value in stored.items() if name.startswith("mask/")}
    assert_same_arrays(masks, result.strategy.masks)
    assert_same_arrays({name: value for name, value in stored.items() if not name.startswith("mask/")}, result.strategy.weights)


def test_the_stored_ledger_is_the_ledger(folder, result):
    ledger = read(folder / "ledger.parquet")
    assert tuple(ledger) == COLUMNS and ledger == result.strategy.ledger.columns()
    wall = read(folder / "wall.parquet")
    trained = [(row.round, row.device) for row in result.strategy.ledger.rows if (row.phase, row.outcome) == ("train", "ok")]
    assert list(zip(wall["round"], wall["device"], strict=True)) == trained and min(wall["wall_s"]) > 0


def test_rounds_and_accuracy_are_stored_as_measured(folder, result):
    """evaluate_every=2 of 4 rounds a task: accuracy after rounds 2, 4, 6 and 8, none after the others."""
    rounds = read(folder / "rounds.parquet")
    assert rounds["round"] == list(range(9)) and rounds["task"] == [-1] + [0] * 4 + [1] * 4
    known = [number for number, value in zip(rounds["round"], rounds["class-il"], strict=True) if not np.isnan(value)]
    assert known == [2, 4, 6, 8]
    assert rounds["class-il"][8] == pytest.approx(result.accuracy[0, 1].mean())
    assert rounds["task-il"][4] == pytest.approx(result.accuracy[1, 0, 0])
    table = read(folder / "accuracy.parquet")
    assert table["scenario"] == ["class-il"] * 4 + ["task-il"] * 4
    assert table["after_task"] == [0, 0, 1, 1] * 2 and table["task"] == [0, 1] * 4
    assert table["accuracy"] == result.accuracy.ravel().tolist()


def test_the_summary_adds_up(folder, result):
    summary, totals = json.loads((folder / "summary.json").read_text()), result.strategy.ledger.totals()
    assert summary["totals"] == totals
    assert summary["accuracy"]["class-il"]["average"] == pytest.approx(result.accuracy[0, 1].mean())
    assert summary["accuracy"]["class-il"]["forgetting"] == pytest.approx(result.accuracy[0, :, 0].max() - result.accuracy[0, 1, 0])
    assert summary["savings"]["flops"] == totals["dense_flops"] / totals["flops"]
    assert summary["savings"]["up_bytes"] == totals["dense_up_bytes"] / totals["up_bytes"]
    assert summary["rows_by_outcome"] == {"ok": len(result.strategy.ledger.rows)}
    assert summary["dense_accuracy"] is None


def test_a_baseline_is_shown_beside_the_run(result):
    summary = summarise(result, baseline=result)
    assert summary["dense_accuracy"] == summary["accuracy"] and summary["dense_run_totals"] == summary["totals"]


def test_one_task_leaves_figures_open(tmp_path):
    """Forgetting and transfer need two tasks: they are null in the file, not NaN, which is no JSON."""
    write_run(tmp_path, run_world(tiny_world("stream.tasks=1"), "inline"))
    figures = json.loads((tmp_path / "summary.json").read_text())["accuracy"]["class-il"]
    assert figures["forgetting"] is figures["forward_transfer"] is None and figures["average"] > 0


def test_a_repeated_run_writes_the_same_bytes(folder, tmp_path):
    write_run(tmp_path, run_world(tiny_world("evaluate_every=2"), "inline"))
    for name in REPEATABLE:
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes(), name


def test_another_seed_is_another_run(folder, tmp_path):
    write_run(tmp_path, run_world(tiny_world("evaluate_every=2", "seed=1"), "inline"))
    for name in REPEATABLE:
        assert (tmp_path / name).read_bytes() != (folder / name).read_bytes(), name


def test_savings_by_hand():
    assert savings({"flops": 10, "dense_flops": 50, "up_bytes": 0, "dense_up_bytes": 7}) == {"flops": 5.0}


def test_accuracy_so_far_looks_at_tasks_seen_only():
    class Record:
        accuracy = np.array([[0.5, 0.7, 0.0], [0.9, 1.0, 0.2]])

    assert accuracy_so_far(Record, 2) == pytest.approx((0.6, 0.95))
    assert np.isnan(accuracy_so_far(Record, 0)).all()


# -- whole or not there


def test_a_folder_appears_when_it_is_whole(tmp_path):
    out = tmp_path / "a" / "b"
    with new_folder(out, "run") as (staging, final):
        (staging / "x").write_text("1")
        assert not final.exists() and staging.parent == out
    assert final == out / "run" and [path.name for path in out.iterdir()] == ["run"]


def test_folders_do_not_overwrite_each_other(tmp_path):
    for expected in ("run", "run-2", "run-3"):
        with new_folder(tmp_path, "run") as (_, final):
            pass
        assert final.name == expected


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_a_run_that_fails_leaves_nothing(tmp_path, error):
    with pytest.raises(error), new_folder(tmp_path, "run") as (staging, _):
        (staging / "summary.json").write_text("1")
        raise error
    assert list(tmp_path.iterdir()) == []


def test_what_somebody_else_has_put_there_stays_and_is_named(tmp_path):
    with pytest.raises(RuntimeError) as failed, new_folder(tmp_path, "run") as (staging, _):
        (staging / "summary.json").write_text("1")
        (staging / "thesis").write_text("years of work")
        raise RuntimeError
    assert [path.name for path in staging.iterdir()] == ["thesis"] and failed.value.__notes__ == [f"what is not ours stays in {staging}"]


def test_results_that_cannot_be_moved_are_not_lost(tmp_path, monkeypatch):
    def rename(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "rename", rename)
    said = r"the results are whole, in (.*), and cannot be moved to .*run \(No space left"
    with pytest.raises(ConfigError, match=said) as failed, new_folder(tmp_path, "run") as (staging, _):
        (staging / "summary.json").write_text("1")
    assert (staging / "summary.json").read_text() == "1" and str(staging) in str(failed.value)


def test_results_have_the_rights_that_the_umask_says_and_replace_links(result, tmp_path):
    """What a link leads to stays as it is."""
    (tmp_path / "thesis").write_text("years of work")
    folder, before = tmp_path / "run", os.umask(0o027)
    try:
        folder.mkdir()
        for name in FILES:
            (folder / name).symlink_to(tmp_path / "thesis")
        write_run(folder, result)
        draw_report(folder)
    finally:
        os.umask(before)
    assert (tmp_path / "thesis").read_text() == "years of work"
    assert {path.name: stat.filemode(path.lstat().st_mode) for path in folder.iterdir()} == dict.fromkeys(FILES, "-rw-r-----")


def test_the_software_is_noted_where_a_run_went_on_with_another(result, tmp_path):
    versions = ({"after_round": -1, "torch": "1"}, {"after_round": 3, "torch": "2"})
    for own, expected in ((versions, list(versions)), (versions[:1], None)):
        write_run(tmp_path, replace(result, versions=own))
        assert json.loads((tmp_path / "environment.json").read_text()).get("software") == expected


def test_a_name_taken_meanwhile_is_not_overwritten(tmp_path):
    """Two runs of one experiment at once: both find the name free, the slower one takes the next."""
    with new_folder(tmp_path, "run") as (staging, _):
        (staging / "mine").touch()
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "theirs").touch()
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")) == ["run", "run-2", "run-2/mine", "run/theirs"]


def test_a_folder_that_cannot_be_written_is_told_before_anything_runs(tmp_path):
    (tmp_path / "file").touch()
    message = r"run folder .*file/runs cannot be written \(Not a directory\); choose another with --out"
    with pytest.raises(ConfigError, match=message), new_folder(tmp_path / "file" / "runs", "run"):
        pytest.fail("the block must not run")


def test_the_picture_has_all_kinds_of_bytes():
    assert {*KINDS} == {kind.name for kind in fields(Sizes)}
