"""Runs in which nobody can ever take part: an error that says why, instead of the figures of an untrained model."""

import json

import numpy as np
import pytest
import tomli_w
from typer.testing import CliRunner
from worlds import play, tiny, tiny_world, toy_fleet

from server.errors import FleetError
from simulations.__main__ import app
from simulations.build import make_strategy
from simulations.config.loading import to_tree
from simulations.results.plot import draw_report
from simulations.results.write import write_run
from simulations.run import Result, run_world

SHORT = "stream.tasks=1"
EMPTY = ("energy.start_level=0.1", "energy.charging=none", "energy.drain_idle=false")


def trace(folder, *windows: tuple[float, float]) -> tuple[str, ...]:
    (folder / "trace.csv").write_text("device,on,off\n" + "".join(f"{device},{on},{off}\n" for device, (on, off) in enumerate(windows)))
    return ("availability.kind=trace", f"availability.trace={folder / 'trace.csv'}")


@pytest.mark.parametrize("mode", [(), ("clock.mode=async", "clock.buffer_size=2"), ("clock.mode=semi-sync", "clock.period_s=9")])
def test_empty_batteries_for_ever(tmp_path, mode):
    world = tiny_world(SHORT, *mode, *EMPTY, *toy_fleet(tmp_path, battery_j=[1000] * 3))
    message = r"no device is there within the horizon: 12 times one could have been asked, .*battery at 10 %, reserve is 20 %"
    with pytest.raises(FleetError, match=message):
        run_world(world, "inline")


def test_a_trace_that_is_over_before_the_run_begins(tmp_path):
    world = tiny_world(SHORT, "clock.start_hour=1", *trace(tmp_path, (0, 10), (5, 20), (0, 3000)))
    with pytest.raises(FleetError, match=r"no device is there within the horizon: the run begins at 3600 s .*none comes any more"):
        run_world(world, "inline")


def test_a_trace_of_unix_time(tmp_path):
    world = tiny_world(SHORT, *trace(tmp_path, *[(1.7e9, 1.8e9)] * 3))
    with pytest.raises(FleetError, match=r"the first comes at 1.7e\+09 s.*a trace of UNIX time must be shifted"):
        run_world(world, "inline")


def test_a_run_without_anybody_leaves_nothing_and_is_not_to_be_resumed(tmp_path):
    config, out = tmp_path / "nobody.toml", tmp_path / "out"
    config.write_bytes(tomli_w.dumps(to_tree(tiny(SHORT, *trace(tmp_path, *[(1.7e9, 1.8e9)] * 3)))).encode())
    result = CliRunner().invoke(app, ["run", str(config), "--engine", "inline", "--out", str(out)])
    assert result.exit_code == 2 and "no device is there within the horizon" in result.stderr
    assert "resume" not in result.stderr and list(out.iterdir()) == []


def test_who_takes_part_and_is_late_has_taken_part(tmp_path):
    """Such a run has figures: of what it cost."""
    world = tiny_world(SHORT, "availability.failure=1", "federation.rounds=1", *toy_fleet(tmp_path))
    result = run_world(world, "inline")
    assert {row.outcome for row in result.strategy.ledger.rows} <= {"ok", "failed"}


@pytest.mark.parametrize("rounds", [0, 1])
def test_results_of_a_run_without_anybody_can_be_written_and_drawn(tmp_path, rounds):
    """Figures of nothing are null. Such a run has no results of its own any more, but a table must not fail for want of rows."""
    world = tiny_world(SHORT, *trace(tmp_path, *[(1.7e9, 1.8e9)] * 3))
    records = []
    strategy = play(world, observe=lambda record, _: records.append(record)) if rounds else make_strategy(world)
    if not rounds:
        play(world, observe=lambda record, _: records.append(record))
        del records[1:]
    accuracy = np.zeros((2, 1, 1))
    summary = write_run(tmp_path, Result(world, strategy, records, accuracy, "inline", 1, 0.0))
    assert summary["fleet"]["in_time"] is None and summary["fleet"]["asked"] == 0 and summary["problems"] == []
    assert json.loads((tmp_path / "summary.json").read_text())["fleet"]["fairness"]["mean"] is None
    assert draw_report(tmp_path).stat().st_size > 10_000
