"""The figures of a fleet: curves add up to the ledger, targets by hand, and every figure is there or None."""

import json

import numpy as np
import pytest
from worlds import tiny_world, toy_fleet

from server.fleet.local_time import HOUR
from simulations.results.console import final_table, footnote
from simulations.results.curves import curve, fleet_figures
from simulations.results.devices import device_table
from simulations.results.summary import accuracy_so_far, tasks_so_far
from simulations.run import Result, run_world

# rounds of an hour, two of four evaluated; the last device is far too slow for the deadline
TIMED = ("clock.period_s=3600", "clock.deadline_s=20", "evaluate_every=2", "target=0.15")


@pytest.fixture(scope="module")
def result(tmp_path_factory) -> Result:
    fleet = toy_fleet(tmp_path_factory.mktemp("fleet"), 4, flops_per_s=[1e6, 2e6, 4e6, 1e4])
    return run_world(tiny_world(*fleet, "clock.start_hour=5", *TIMED), "inline")


@pytest.fixture(scope="module")
def figures(result) -> dict:
    return fleet_figures(result, device_table(result))


# -- the curve


def test_the_curve_has_a_point_per_evaluated_round(result):
    points = curve(result)
    assert points["round"].tolist() == [0, 2, 4, 6, 8]
    assert points["hours"].tolist() == [0, 2, 4, 6, 8]  # of virtual time since the start, which is 5 o'clock
    assert points["accuracy"].tolist() == [record.accuracy[0].mean() for record in result.rounds if record.accuracy is not None]
    assert points["accuracy"][-1] == result.scores(0).average


def test_what_was_paid_up_to_a_point_is_the_sum_of_the_rows_so_far(result):
    points, ledger = curve(result), result.strategy.ledger.columns()
    rounds, joules = np.array(ledger["round"]), np.array(ledger["joules"])
    sent = np.array(ledger["down_bytes"]) + np.array(ledger["up_bytes"])
    for index, number in enumerate(points["round"]):
        assert points["joules"][index] == pytest.approx(joules[rounds <= number].sum())
        assert points["bytes"][index] == sent[rounds <= number].sum()
    totals = result.strategy.ledger.totals()
    assert points["joules"][-1] == pytest.approx(totals["joules"])
    assert points["bytes"][-1] == totals["down_bytes"] + totals["up_bytes"]


@pytest.mark.parametrize(
    "mode",
    [
        ("clock.mode=async", "clock.buffer_size=2"),
        ("clock.mode=semi-sync", "clock.period_s=0.1"),
        ("federation.rounds=3",),
        ("clock.period_s=600", "clock.horizon_hours=1"),
    ],
    ids=["async", "semi-sync", "cut short by rounds", "cut short by the clock"],
)
def test_the_last_point_of_a_curve_is_the_end_of_the_run(mode):
    ended = run_world(tiny_world("evaluate_every=0", *mode), "inline")
    points, totals = curve(ended), ended.strategy.ledger.totals()
    assert points["round"][-1] == ended.rounds[-1].round
    assert points["joules"][-1] == pytest.approx(totals["joules"]) and totals["joules"] > 0
    assert points["hours"][-1] * HOUR == pytest.approx(ended.strategy.federation.now)
    assert all((np.diff(points[name]) >= 0).all() for name in ("hours", "joules", "bytes"))


def test_in_task_il_the_curve_is_of_task_il():
    judged = run_world(tiny_world("stream.setting=task-il", "evaluate_every=0"), "inline")
    assert curve(judged)["accuracy"].tolist() == [one.accuracy[1].mean() for one in judged.rounds if one.accuracy is not None]
    assert (judged.accuracy[1] > judged.accuracy[0]).any()


# -- what a target took


def first_at(result: Result, target: float) -> int:
    """The first evaluated round that has it, by the records."""
    return next(one.round for one in result.rounds if one.accuracy is not None and one.accuracy[0].mean() >= target)


def test_the_price_of_a_target_by_hand(result, figures):
    number = first_at(result, 0.15)
    rows = [row for row in result.strategy.ledger.rows if row.round <= number]
    assert 0 < number < 8
    assert figures["target"] == 0.15
    assert figures["to_target"] == {
        "hours": number,
        "joules": pytest.approx(sum(row.joules for row in rows)),
        "bytes": sum(row.down_bytes + row.up_bytes for row in rows),
    }


def test_a_target_that_is_not_reached_and_none_at_all():
    for target in (0.99, 0.0):
        short = run_world(tiny_world("stream.tasks=1", f"target={target}"), "inline")
        found = fleet_figures(short, device_table(short))
        nothing = dict.fromkeys(("hours", "joules", "bytes")) if target else None
        assert found["to_target"] == nothing and found["target"] == (target or None)


def test_accuracy_over_time_by_hand(result, figures):
    """Evaluations two hours apart: every point but the last holds for a quarter of the run."""
    means = [one.accuracy[0].mean() for one in result.rounds if one.accuracy is not None]
    assert figures["accuracy_over"]["hours"] == pytest.approx(np.mean(means[:4]))
    points = curve(result)
    by_joules = sum(means[i] * (points["joules"][i + 1] - points["joules"][i]) for i in range(4)) / points["joules"][-1]
    assert figures["accuracy_over"]["joules"] == pytest.approx(by_joules)


# -- how rounds ended, and how evenly the model serves


def test_endings_by_hand(result, figures):
    """Four devices, eight rounds; the slow one is late in all of them, what it had paid by then is lost."""
    assert figures["asked"] == 32 and figures["outcomes"] == dict.fromkeys(figures["outcomes"], 0) | {"ok": 24, "late": 8}
    assert figures["in_time"] == 0.75 and figures["virtual_hours"] == 8 and figures["refused"] == 0
    lost = [row for row in result.strategy.ledger.rows if row.device == 3]
    assert figures["joules_lost"] == pytest.approx(sum(row.joules for row in lost))
    assert sum(row.joules for row in lost if row.outcome == "ok") > 0  # its downloads went well


def test_fairness_by_hand(result, figures):
    values = np.sort(device_table(result)["accuracy"])
    assert figures["fairness"] == {
        "mean": pytest.approx(values.mean()),
        "std": pytest.approx(values.std()),
        "worst_decile": pytest.approx(values[0]),  # a tenth of four devices is one
        "best_decile": pytest.approx(values[-1]),
        "jain": pytest.approx(values.sum() ** 2 / (4 * (values**2).sum())),
        "devices": 4,
        "missing": 0,
    }
    assert figures["device_forgetting"] == pytest.approx(device_table(result)["forgetting"].mean())


@pytest.mark.parametrize(
    "settings",
    [
        ("stream.order=shuffled",),
        ("stream.cycles=2",),
        ("stream.setting=domain-il", "stream.domain=rotated"),
        ("stream.setting=domain-il", "stream.order=shuffled", "stream.cycles=2", "clock.mode=async", "clock.buffer_size=2"),
        ("stream.tasks=1",),
        ("federation.rounds=1", "availability.failure=1"),
        ("stream.advance=time", "stream.task_hours=1", "stream.start_spread=1", "clock.period_s=1800", "clock.horizon_hours=3"),
    ],
    ids=lambda settings: " ".join(settings),
)
def test_the_figures_of_any_run_are_json_and_can_be_shown(settings):
    """Every figure is finite or None; the view takes what comes."""
    ended = run_world(tiny_world("stream.partition=iid", "target=0.12", *settings), "inline")
    found = fleet_figures(ended, device_table(ended))
    json.dumps(found, allow_nan=False)
    assert found["asked"] == sum(found["outcomes"].values()) - found["outcomes"]["skipped"]
    for record in ended.rounds:
        so_far = accuracy_so_far(record, tasks_so_far(ended.world.experiment.stream, record.task))
        assert all(np.isnan(value) or 0 <= value <= 1 for value in so_far)
    solo = {"accuracy": dict.fromkeys(("class-il", "task-il"), {"average": 0.5, "forgetting": None}), "dense_accuracy": None}
    shown = {"experiment": "x", "seed": 0, "sparsity": 0.9, "totals": {}, "savings": {}, "fleet": found, "dense_fleet": found, **solo}
    table = final_table(shown)
    assert "virtual time *" in list(table.columns[0].cells) and "phone" in footnote(shown, {"phone": ["idle_w"]})
