"""One row per device: what it paid is the ledger's, how its rounds ended adds up, and what the model is worth to it by slow code."""

from dataclasses import replace

import numpy as np
import pytest
from worlds import RecordingGrid, play, tiny_world, toy_fleet

from server.app import RoundRecord
from server.ledger import Row
from simulations.results.devices import MOST, OUTCOMES, PAID, device_table, endings
from simulations.run import Result, run_world
from sparcl_core.metrics.continual import scores

# six toy devices: one is slow, one lives on a battery, one is too small
FIGURES = {
    "flops_per_s": [1e6, 1e6, 1e6, 3e5, 1e6, 1e6],
    "battery_j": [0, 0, 0, 0, 700, 0],
    "memory_bytes": [1e6, 1e6, 1e6, 1e6, 1e6, 1e3],
}
MODES = {
    "sync": ("clock.deadline_s=12", "energy.charging=none", "energy.reserve=0.85"),
    "over-selection": ("clock.over_selection=0.25",),
    "async": ("clock.mode=async", "clock.buffer_size=2", "clock.max_staleness=1"),
    "semi-sync": ("clock.mode=semi-sync", "clock.period_s=6"),
}
EXPECTED = {
    "sync": {"ok", "late", "failed", "skipped"},
    "over-selection": {"ok", "cancelled", "failed"},
    "async": {"ok", "cancelled", "stale", "failed"},
    "semi-sync": {"ok", "cancelled", "failed"},
}


@pytest.fixture(scope="module", params=MODES)
def troubled(request, tmp_path_factory) -> tuple[set[str], Result]:
    """What should have happened to some device, and a run in which much goes wrong."""
    fleet = toy_fleet(tmp_path_factory.mktemp("fleet"), 6, **FIGURES)
    more = ("availability.failure=0.2", "federation.cohort_size=4", "evaluate_every=3", *MODES[request.param])
    return EXPECTED[request.param], run_world(tiny_world(*fleet, *more), "inline")


@pytest.fixture(scope="module")
def single_class() -> Result:
    """Ten tasks of one class and a round each, three devices that have as many samples of every class: no mix but the tasks' own."""
    plain = ("stream.partition=iid", "stream.tasks=10", "federation.rounds_per_task=1", "tdm.enabled=false", "ddr.enabled=false")
    return run_world(tiny_world(*plain), "inline")


def of(table: dict[str, np.ndarray], device: int) -> dict:
    (row,) = np.flatnonzero(table["device"] == device)
    return {name: column[row] for name, column in table.items()}


# -- what it paid, and how its rounds ended


def test_what_devices_paid_is_the_sum_of_their_rows(troubled):
    _, result = troubled
    table, ledger = device_table(result), result.strategy.ledger.columns()
    for device in range(6):
        own = np.array(ledger["device"]) == device
        for name, columns in PAID.items():
            assert of(table, device)[name] == pytest.approx(sum(np.array(ledger[column])[own].sum() for column in columns))
    totals = result.strategy.ledger.totals()
    for name in PAID:
        assert table[name].sum() == pytest.approx(totals[name])
        assert totals[name] > 0
    assert table["flops"].dtype == table["up_bytes"].dtype == np.int64 and table["joules"].dtype == np.float64


def test_every_round_that_a_device_was_asked_for_has_one_ending(troubled):
    expected, result = troubled
    table, rows = device_table(result), result.strategy.ledger.rows
    endings = {outcome: table[f"rounds_{outcome}"] for outcome in OUTCOMES}
    assert {outcome for outcome, count in endings.items() if count.any()} == expected
    begun = [sum(row.phase == "download" and row.device == device for row in rows) for device in table["device"]]
    assert table["asked"].tolist() == begun
    assert table["asked"].tolist() == sum(count for outcome, count in endings.items() if outcome != "skipped").tolist()
    assert table["rounds_ok"].sum() == sum(record.num_devices for record in result.rounds)


def test_a_device_that_is_too_small_is_refused_once_and_pays_nothing(troubled):
    _, result = troubled
    small = of(device_table(result), 5)
    assert small["refused"] == 1 and np.isnan(small["sparsity"]) and small["profile"] == "toy"
    assert all(small[name] == 0 for name in ("asked", *PAID, *(f"rounds_{outcome}" for outcome in OUTCOMES)))
    others = device_table(result)["refused"][:5]
    assert not others.any()


def test_charge_is_that_of_the_end(troubled):
    _, result = troubled
    table, batteries = device_table(result), result.strategy.federation.conditions.batteries
    assert table["charge"][[0, 1, 2, 3, 5]].tolist() == [1.0] * 5  # on the mains
    assert table["charge"][4] == batteries.share(np.array([4]), result.strategy.federation.now)[0] < 1


def test_a_reply_that_cannot_be_used_is_a_rejected_round():
    def garble(server_round, replies):
        if server_round == 2:
            replies[0].content["report"]["delta"] = b"no payload"
        return replies

    records: list[RoundRecord] = []
    world = tiny_world("stream.tasks=1")
    strategy = play(world, RecordingGrid(world, garble), lambda record, _: records.append(record))
    table = device_table(Result(world, strategy, records, np.zeros((2, 1, 1)), "inline", 1, 0.0))
    assert table["rounds_rejected"].tolist() == [1, 0, 0] and table["rounds_ok"].tolist() == [3, 4, 4]
    assert table["asked"].tolist() == [4] * 3


def test_recomputed_statistics_are_no_round_of_their_own():
    """Behind the training of a round a second exchange follows; also where the first one ended badly, or the second one does."""
    phases = {
        0: [("download", "ok"), ("train", "ok"), ("upload", "ok"), ("download", "ok"), ("calibrate", "ok"), ("upload", "ok")],
        1: [("download", "ok"), ("train", "ok"), ("upload", "late"), ("download", "ok"), ("calibrate", "ok"), ("upload", "ok")],
        2: [("download", "ok"), ("train", "ok"), ("upload", "ok"), ("download", "ok"), ("calibrate", "failed")],
        3: [("download", "ok"), ("train", "failed")],
    }
    rows = [Row(1, 0, device, *phase) for device, own in phases.items() for phase in own]
    assert endings(rows) == {(1, 0): "ok", (1, 1): "late", (1, 2): "ok", (1, 3): "failed"}


def test_devices_that_were_never_reached_have_no_row():
    result = run_world(tiny_world("stream.partition=drawn", "stream.samples=4", "stream.devices=50", "federation.cohort_size=2"), "inline")
    reached = {row.device for row in result.strategy.ledger.rows}
    assert device_table(result)["device"].tolist() == sorted(reached) and len(reached) <= 16 < MOST


# -- what the model is worth to it


def test_accuracy_of_a_device_with_all_tasks_in_equal_shares_is_the_mean(single_class):
    table = device_table(single_class)
    assert single_class.world.streams.sizes.tolist() == [[4] * 10] * 3
    assert table["accuracy"] == pytest.approx([single_class.accuracy[0, -1].mean()] * 3)


def test_forgetting_of_a_device_in_step_with_all_others_is_that_of_the_matrix(single_class):
    expected = scores(single_class.accuracy[0]).forgetting
    assert device_table(single_class)["forgetting"] == pytest.approx([expected] * 3) and expected > 0


def slow_worth(result: Result, device: int) -> tuple[float, float]:
    """Accuracy and forgetting of a device whose tasks come one after the other, in its own mix, cell by cell."""
    stream = result.world.streams[device]
    tasks, classes = result.accuracy.shape[1], result.world.data.num_classes
    counts = np.zeros((tasks, classes))
    for step, samples in enumerate(stream.samples):
        for sample in samples:
            counts[stream.order[step], result.world.streams.y[sample]] += 1
    ends = [record.by_class[0] for record in result.rounds if record.ends_task]

    def mean(point: np.ndarray, only: list[int]) -> float:
        pairs = [(counts[t, c], point[t, c]) for t in only for c in range(classes) if counts[t, c]]
        return sum(count * value for count, value in pairs) / sum(count for count, _ in pairs)

    order = list(dict.fromkeys(stream.order))
    matrix = np.array([[mean(point, [task]) for task in order] for point in ends])
    return mean(ends[-1], list(range(tasks))), scores(matrix).forgetting


@pytest.mark.parametrize("order", ["same", "shuffled"])
def test_accuracy_and_forgetting_in_the_devices_own_mix_and_order(order):
    skewed = ("stream.partition=drawn", "stream.samples=12", "stream.alpha=0.5", f"stream.order={order}")
    result = run_world(tiny_world(*skewed, "evaluate_every=0"), "inline")
    table = device_table(result)
    for device in range(3):
        row = of(table, device)
        assert (row["accuracy"], row["forgetting"]) == pytest.approx(slow_worth(result, device))
    assert len(set(table["accuracy"].tolist())) > 1


def test_forgetting_needs_two_tasks():
    table = device_table(run_world(tiny_world("stream.tasks=1"), "inline"))
    assert np.isnan(table["forgetting"]).all() and (table["accuracy"] > 0).all()


def test_a_task_that_was_not_over_is_judged_at_the_end():
    """Of two tasks the second is never reached: both rows of the matrix are the end of the run, so nothing is forgotten."""
    table = device_table(run_world(tiny_world("federation.rounds=3", "stream.partition=iid"), "inline"))
    assert table["forgetting"].tolist() == [0.0] * 3


def test_by_time_a_device_is_judged_at_the_ends_of_its_own_steps():
    """Rounds of an hour; device 0's first task is over after the second round, when it is not for one that began half a step late."""
    settings = ("stream.advance=time", "stream.task_hours=2", "clock.period_s=3600", "stream.start_spread=0.9", "evaluate_every=1")
    result = run_world(tiny_world("stream.partition=iid", *settings), "inline")
    pace = result.strategy.federation.conditions.pace
    begins = ((pace.delay + 1 / pace.speed) * 7200).tolist()  # of each device's second step
    table, tasks = device_table(result), range(2)
    mix = np.array([[np.bincount(result.world.streams.y[own], minlength=10) for own in stream.samples] for stream in result.world.streams])
    assert len(set(begins)) == 3
    for device in table["device"].tolist():
        after = next(record for record in result.rounds if record.time >= begins[device])
        points = [np.nansum(one.by_class[0] * mix[device], axis=1) / mix[device].sum(1) for one in (after, result.rounds[-1])]
        matrix = np.array([[point[task] for task in tasks] for point in points])
        assert of(table, device)["forgetting"] == pytest.approx(scores(matrix).forgetting)


ARRANGED = {
    "shuffled": ("stream.order=shuffled",),
    "cycles": ("stream.cycles=2",),
    "domain-il": ("stream.setting=domain-il",),
    "new-classes": ("stream.new_classes_share=0.4",),
    "blur": ("stream.blur=0.3",),
    "online": ("stream.online=true", "ddr.enabled=false"),
    "participation": ("stream.advance=participation", "federation.cohort_size=2", "federation.rounds=12", "stream.pace_spread=0.5"),
    "detected": ("stream.boundaries=detected", "stream.order=shuffled"),
    "all": ("stream.order=shuffled", "stream.cycles=2", "stream.setting=domain-il", "stream.start_spread=1", "clock.mode=async",
            "clock.buffer_size=2"),
}  # fmt: skip


@pytest.mark.parametrize("name", ARRANGED)
def test_whatever_the_streams_are_every_figure_is_a_share(name):
    result = run_world(tiny_world("data.train_limit=16", "stream.partition=iid", *ARRANGED[name]), "inline")
    table = device_table(result)
    assert ((table["accuracy"] > 0) & (table["accuracy"] <= 1)).all()
    has_two = [len(set(result.world.streams.order_of(device))) > 1 for device in table["device"].tolist()]
    assert (~np.isnan(table["forgetting"])).tolist() == has_two
    assert ((table["forgetting"][has_two] >= 0) & (table["forgetting"][has_two] <= 1)).all()


def test_the_figures_do_not_depend_on_the_order_of_the_rows(single_class):
    """Rows of different devices may come in any order, as replies do."""
    ledger, before = single_class.strategy.ledger, device_table(single_class)
    kept = list(ledger.rows)
    try:
        ledger.rows = [replace(row) for row in sorted(kept, key=lambda row: -row.device)]
        after = device_table(single_class)
    finally:
        ledger.rows = kept
    assert all(before[name].tolist() == after[name].tolist() for name in before)
