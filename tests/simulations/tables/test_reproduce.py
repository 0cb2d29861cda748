"""Claims: ours and a user's own. What is wrong with one is said before anything runs, all at once."""

import json
from dataclasses import replace

import numpy as np
import pytest
from typer.testing import CliRunner
from worlds import TINY

from simulations.__main__ import app
from simulations.checkpoints.lone_device import LonePoint, digest
from simulations.config.errors import ConfigError
from simulations.environment import software
from simulations.results.summary import summarise_solo
from simulations.single_device import train_one
from simulations.tables.claim_file import ClaimRow, available, load_claim
from simulations.tables.markdown import _scientific, gap, markdown, shown
from simulations.tables.picture import draw_sweep, interval
from simulations.tables.reproduce import run_claim

OWN = """
experiment = "{experiment}"
seeds = [3, 4]

[[row]]
name = "all"

[[row]]
name = "half"
set = ["learner.lr=0.05"]
versus = "all"
"""


@pytest.fixture
def own(tmp_path):
    path = tmp_path / "my claims" / "mine.toml"
    path.parent.mkdir()
    path.write_text(OWN.format(experiment=TINY))
    return path


@pytest.mark.parametrize("name", available())
def test_every_claim_of_ours_can_be_made(name):
    claim = load_claim(name)
    assert claim.name == name and claim.rows and claim.seeds


def test_a_claim_of_ones_own_is_found_with_and_without_its_suffix(own, monkeypatch):
    claim = load_claim(str(own))
    assert (claim.name, claim.seeds, [row.name for row in claim.rows]) == ("mine", (3, 4), ["all", "half"])
    assert claim.experiment_of(claim.rows[1], 4).learner.lr == 0.05 and claim.experiment_of(claim.rows[0], 3).seed == 3
    assert load_claim(str(own.with_suffix(""))) == claim
    monkeypatch.chdir(own.parent)
    assert load_claim("mine") == load_claim("./mine.toml") == load_claim("mine.toml")


def test_an_experiment_beside_its_claim_is_found_from_anywhere(own):
    own.write_text(OWN.format(experiment="tiny.toml"))
    with pytest.raises(ConfigError, match="there is no file 'tiny.toml'"):
        load_claim(str(own))
    (own.parent / "tiny.toml").write_text(TINY.read_text())
    assert load_claim(str(own)).rows[0].experiment == str(own.parent / "tiny.toml")


@pytest.mark.parametrize("name", ["nowhere", "/nowhere/mine", "/nowhere/mine.toml", "", "."])
def test_a_claim_that_is_not_there_lists_those_that_are(name):
    with pytest.raises(ConfigError, match=f"claim '{name}' is not here.*; there are {', '.join(available())}, or give a .toml file"):
        load_claim(name)


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (lambda text: text.replace("seeds", "sedes"), ("seeds is missing", "unknown key 'sedes'; did you mean 'seeds'?")),
        (lambda text: text.replace("[3, 4]", "[]"), ("seeds: ",)),
        (lambda text: text.replace("[3, 4]", '["3", 4.5]'), ("seeds.0: ", "seeds.1: ")),
        (lambda text: text.replace("[3, 4]", "[3, 3]"), ("a seed is there twice",)),
        (
            lambda text: text.replace('name = "half"', 'nme = "half"'),
            ("row 2: name is missing", "row 2: unknown key 'nme'; did you mean 'name'?"),
        ),
        (lambda text: text.replace('"half"', '"all"'), ("row 'all' is there 2 times",)),
        (lambda text: text.replace('versus = "all"', 'versus = "al"'), ("row 'half' is paired with 'al', which is none of its rows",)),
        (lambda text: text.replace("learner.lr=", "learner.lrr="), ("row 'half', seed 3: unknown config key", "did you mean")),
        (lambda text: text.split("[[row]]")[0], ("row is missing",)),
        (lambda text: text.split("\n", 2)[2], ("row 'all' names no experiment", "row 'half' names no experiment")),
        (
            lambda text: text + 'table = "x"',
            ("row 'half': unknown key 'table'; known keys here: name, experiment, set, dense, versus, seeds",),
        ),
        (lambda text: text + "seeds = [1.5]", ("row 'half': seeds.0: input should be a valid integer",)),
        (
            lambda text: text + '[sweep]\nkey = "learner.lr"\nvals = [1]',
            ("unknown key 'sweep.vals'; did you mean 'values'?", "sweep.values is missing"),
        ),
        (lambda text: text.replace("= [3", "= ["), ("is no TOML",)),
        (lambda text: text.replace("[3, 4]", "[" * 3000 + "]" * 3000), ("too deep",)),
        (lambda text: text.replace("[3, 4]", f"[{'9' * 5000}]"), ("is no TOML",)),
    ],
)
def test_what_is_wrong_with_a_claim_is_said_at_once(own, change, parts):
    text = own.read_text()
    assert change(text) != text
    own.write_text(change(text))
    with pytest.raises(ConfigError) as raised:
        load_claim(str(own))
    for part in (str(own), *parts):
        assert part in str(raised.value)


@pytest.mark.parametrize("is_given", ["a file in the place of --out", "a claim with a fault"])
def test_nothing_runs_before_all_is_known_to_work(own, tmp_path, monkeypatch, is_given):
    monkeypatch.setattr("simulations.tables.reproduce.run_claim", lambda *args: pytest.fail("it ran"))
    (tmp_path / "file").write_text("kept")
    if is_given == "a claim with a fault":
        own.write_text(own.read_text().replace("learner.lr=", "learner.lrr="))
    done = CliRunner().invoke(app, ["reproduce", str(own), "--out", str(tmp_path / "file" / "out")])
    assert done.exit_code == 2 and len(done.output.strip().splitlines()) == 1, done.output
    assert (tmp_path / "file").read_text() == "kept"


def test_a_claim_of_ones_own_leaves_a_folder_of_its_name(own, tmp_path, monkeypatch):
    """Though it was given as a path; what the runs give is test_cli's affair."""

    def play(claim, processes, done, kept):
        for row, seed in claim.jobs:
            done(row.name, seed, {"accuracy": {"class-il": {"average": 0.5}}})
        return {row.name: {} for row in claim.rows}

    monkeypatch.setattr("simulations.tables.reproduce.run_claim", play)
    monkeypatch.setattr("simulations.tables.markdown.markdown", lambda claim, results: f"the table of {claim.name}")
    done = CliRunner().invoke(app, ["reproduce", str(own.with_suffix("")), "--out", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["claim-mine"]
    assert (tmp_path / "out/claim-mine/table.md").read_text() == "the table of mine\n"
    assert json.loads((tmp_path / "out/claim-mine/runs.json").read_text()) == {"all": [], "half": []}


ALONE = """
experiment = "{experiment}"
alone = true
table = "costs"
seeds = [3, 4]
set = ["learner.method=er"]

[[row]]
name = "dense"
dense = true

[[row]]
name = "sparse"
seeds = [4]
versus = "dense"
"""


def summary_of(claim, row: int, seed: int) -> dict:
    """What a run of the claim gives when it is run for itself."""
    return summarise_solo(train_one(claim.experiment_of(claim.rows[row], seed), lambda progress, accuracy: None))


def test_a_claim_of_single_devices_goes_on_where_it_was(own, tmp_path, monkeypatch):
    """A run that is over is not run again, one that was begun goes on, and the figures are those of runs for themselves."""
    own.write_text(ALONE.format(experiment=TINY))
    claim, kept = load_claim(str(own)), tmp_path / "kept"
    kept.mkdir()
    wanted = {("dense", 3): summary_of(claim, 0, 3), ("dense", 4): summary_of(claim, 0, 4), ("sparse", 4): summary_of(claim, 1, 4)}
    begun = claim.experiment_of(claim.rows[1], 4)

    class Stopped(Exception):
        pass

    def stop(progress, accuracy):
        if progress.task:
            raise Stopped

    with LonePoint(kept / digest(begun), begun) as point, pytest.raises(Stopped):
        train_one(begun, stop, point)
    told = []
    marked = wanted[("dense", 3)] | {"software": {"python": "an older one"}}
    (kept / f"{digest(claim.experiment_of(claim.rows[0], 3))}.json").write_text(json.dumps(marked))
    results = run_claim(claim, 1, lambda *run: told.append(run[:2]), kept)
    assert told == [("dense", 3), ("dense", 4), ("sparse", 4)]
    assert results["dense"][3] == marked
    for row, seed in told[1:]:
        assert results[row][seed] == wanted[(row, seed)] | {"software": software()}
    assert not (kept / digest(begun)).exists()
    lines = markdown(claim, results).splitlines()
    assert lines[0].startswith(
        "| run | seeds | Class-IL % | minus dense, 95 % interval | Task-IL % | forgetting | FLOPs | peak memory MB |"
    )
    own_gap = 100 * (wanted[("sparse", 4)]["accuracy"]["class-il"]["average"] - wanted[("dense", 4)]["accuracy"]["class-il"]["average"])
    assert lines[3].startswith("| sparse | 1 |") and f"| {own_gap:+.1f} |" in lines[3]


def test_a_table_has_differences_only_where_rows_are_compared(own, tmp_path):
    own.write_text(own.read_text().replace('versus = "all"\n', ""))
    claim = load_claim(str(own))
    results = run_claim(claim, 1, lambda *run: None, tmp_path)
    for table in ("learning", "costs"):
        lines = markdown(replace(claim, table=table), results).splitlines()
        assert "minus" not in lines[0] and len({line.count("|") for line in lines}) == 1


def test_files_and_names_of_the_other_kind_are_pointed_to_their_command(own, monkeypatch):
    for name, told in (
        (str(own), f"{own} is no experiment, but a claim: it has [[row]] and seeds; `sparcl reproduce '{own}'` runs it"),
        (
            "budgets-flops",
            "experiment 'budgets-flops' is not here; it is a claim's name: `sparcl reproduce budgets-flops` runs it; there are",
        ),
    ):
        done = CliRunner().invoke(app, ["run", name])
        assert done.exit_code == 2 and done.stderr.startswith(f"error: {told}"), done.stderr
    for name, told in (
        (str(TINY), f"{TINY} is no claim, but an experiment: it has no [[row]]; `sparcl run {TINY}` runs it"),
        ("split-cifar10", "claim 'split-cifar10' is not here; it is an experiment's name: `sparcl run split-cifar10` runs it; there are"),
    ):
        done = CliRunner().invoke(app, ["reproduce", name])
        assert done.exit_code == 2 and done.stderr.startswith(f"error: {told}"), done.stderr


def test_an_interval_is_of_the_seeds_that_both_rows_have():
    runs = {"a": {0: 0.5, 1: 0.6, 2: 0.9}, "b": {1: 0.7, 2: 0.8, 5: 0.1}}
    results = {row: {seed: {"accuracy": {"class-il": {"average": value}}} for seed, value in own.items()} for row, own in runs.items()}
    mean, half = gap(ClaimRow("b", versus="a"), results)
    assert mean == pytest.approx(0.0)  # of +0.1 and -0.1
    assert half == pytest.approx(12.706 * 0.1 * 2**0.5 / 2**0.5, rel=1e-3)  # t at 97.5 %, one degree of freedom; deviation 0.1 sqrt(2)


def test_a_claim_in_task_il_has_its_accuracies_first_and_compares_them(own, tmp_path):
    own.write_text('scenario = "task-il"\n' + own.read_text())
    claim = load_claim(str(own))
    results = run_claim(claim, 1, lambda *run: None, tmp_path)
    row = next(row for row in claim.rows if row.versus)
    head, _, *lines = ([cell.strip() for cell in line.split("|")[1:-1]] for line in markdown(claim, results).splitlines())
    assert [cell for cell in head if "minus" in cell or "IL" in cell] == ["Task-IL %", f"minus {row.versus}, 95 % interval", "Class-IL %"]
    cells = next(line for line in lines if line[0] == row.name)
    runs = {name: [summary["accuracy"]["task-il"] for summary in own.values()] for name, own in results.items()}
    means = {name: 100 * sum(found["average"] for found in own) / len(own) for name, own in runs.items()}
    assert float(cells[1]) == pytest.approx(means[row.name], abs=0.06)
    assert float(cells[2].split(" ")[0]) == pytest.approx(means[row.name] - means[row.versus], abs=0.06)
    assert float(cells[4]) == pytest.approx(100 * sum(found["forgetting"] for found in runs[row.name]) / len(runs[row.name]), abs=0.06)


def test_figures_are_written_with_their_thousands():
    assert [_scientific(value) for value in (0, 999, 1.25e13, 4.4e15, 2e20)] == ["0 ", "999 ", "12.5 T", "4.4 P", "2e+05 P"]


SWEEP = """
experiment = "{experiment}"
seeds = [0, 1]
table = "sweep"
set = ["stream.tasks=1"]

[sweep]
key = "learner.lr"
title = "learning rate"
values = [0.01, 0.05]

[[row]]
name = "dense"
dense = true

[[row]]
name = "sparse"
versus = "dense"
"""


def test_a_sweep_runs_every_row_with_every_value(own):
    own.write_text(SWEEP.format(experiment=TINY))
    claim = load_claim(str(own))
    assert [row.name for row in claim.rows] == ["dense, lr 0.01", "dense, lr 0.05", "sparse, lr 0.01", "sparse, lr 0.05"]
    assert [row.versus for row in claim.rows] == ["", "", "dense, lr 0.01", "dense, lr 0.05"]
    made = [claim.experiment_of(row, 1) for row in claim.rows]
    assert [one.learner.lr for one in made] == [0.01, 0.05, 0.01, 0.05] and {one.stream.tasks for one in made} == {1}
    assert [bool(one.sparsity) for one in made] == [False, False, True, True]


def test_the_table_and_the_picture_of_a_sweep(own, tmp_path):
    own.write_text(SWEEP.format(experiment=TINY))
    claim = load_claim(str(own))
    results = {
        row.name: {
            seed: {"accuracy": {"class-il": {"average": 0.5 + place / 10 + seed / 50}}, "totals": {"flops": 2e6 * (place + 1)}}
            for seed in claim.seeds
        }
        for place, row in enumerate(claim.rows)
    }
    assert markdown(claim, results).splitlines() == [
        "| learning rate | 0.01 | 0.05 |",
        "| --- | --- | --- |",
        "| dense | 51.0 (2M) | 61.0 (4M) |",
        "| sparse | 71.0 (6M) | 81.0 (8M) |",
    ]
    draw_sweep(claim, results, tmp_path / "sweep.png")
    assert (tmp_path / "sweep.png").read_bytes().startswith(b"\x89PNG")
    assert interval(np.array([0.5, 0.52])) == pytest.approx(12.706 * 0.01, rel=1e-3)  # t at 97.5 % x deviation / sqrt(2)
    assert interval(np.array([0.5])) == 0.0


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda text: text.replace('table = "sweep"', 'table = "costs"'), "table 'sweep' and the section [sweep] belong together"),
        (lambda text: text.replace("[0.01, 0.05]", "[]"), "sweep.values"),
        (lambda text: text.replace('key = "learner.lr"', 'key = "learner.lrr"'), "did you mean 'learner.lr'?"),
    ],
)
def test_what_is_wrong_with_a_sweep(own, change, part):
    own.write_text(change(SWEEP.format(experiment=TINY)))
    with pytest.raises(ConfigError) as raised:
        load_claim(str(own))
    assert part in str(raised.value)


def test_values_are_written_as_people_write_them():
    assert [shown(value) for value in (7, 0.05, 1.0, 2.5e7, "er")] == ["7", "0.05", "1", "25 M", "er"]
