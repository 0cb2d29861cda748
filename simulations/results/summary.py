"""The figures of a run: what its final table shows, and summary.json holds."""

import re
from collections import Counter

import numpy as np

from server.ledger import Row
from simulations.config.sections import StreamConfig
from simulations.results.curves import fleet_figures
from simulations.results.devices import device_table, own_accuracy
from simulations.run import Result
from simulations.single_device import SoloResult
from sparcl_core.metrics.fairness import fairness

SCENARIOS = ("class-il", "task-il")


def summarise(result: Result, baseline: Result | None = None, devices: dict | None = None) -> dict:
    """The figures of a run. `baseline`: the dense twin's run, if there was one; `devices`: the run's `device_table`, if it is there."""
    totals = result.strategy.ledger.totals()
    rows = result.strategy.ledger.rows
    fleet = fleet_figures(result, devices or device_table(result))
    outcomes = sorted({row.outcome for row in rows})
    return {
        "experiment": result.world.experiment.name,
        "seed": result.world.experiment.seed,
        "sparsity": result.world.experiment.sparsity,
        "accuracy": accuracy_figures(result),
        "own_models": own_models(result),
        "totals": totals,
        "savings": savings(totals),
        "peak_device_memory_bytes": max((row.memory_bytes for row in rows), default=0),
        "masks": mask_figures(result),
        "fleet": fleet,
        "problems": problems(rows),
        "rows_by_outcome": {outcome: sum(row.outcome == outcome for row in rows) for outcome in outcomes},
        "dense_accuracy": accuracy_figures(baseline) if baseline else None,
        "dense_run_totals": baseline.strategy.ledger.totals() if baseline else None,
        "dense_fleet": fleet_figures(baseline, device_table(baseline)) if baseline else None,
    }


PROBLEMS = ("clipped", "rejected", "failed", "rolled-back")


def problems(rows: list[Row]) -> list[dict]:
    """What went wrong, in the order of `PROBLEMS`: outcome, how many rows and devices had it, and its most frequent reason.

    Reasons that differ in numbers alone (device, round, sizes) count as one, and the first of them is shown.
    """
    found = []
    for outcome in PROBLEMS:
        own = [row for row in rows if row.outcome == outcome]
        if not own:
            continue
        kinds = Counter(_NUMBER.sub("#", row.reason) for row in own)
        usual = kinds.most_common(1)[0][0]
        reason = next(row.reason for row in own if _NUMBER.sub("#", row.reason) == usual)
        devices = len({row.device for row in own if row.device >= 0})
        found.append({"outcome": outcome, "rows": len(own), "devices": devices, "reason": reason})
    return found


_NUMBER = re.compile(r"\d+(?:\.\d+)?(?:e[+-]?\d+)?")


def summarise_solo(result: SoloResult, baseline: SoloResult | None = None) -> dict:
    """The figures of a single device's run: as `summarise`, without bytes and rows."""
    own, dense = result.cost, result.dense_cost
    totals = {
        "flops": own.flops.total,
        **own.flops.columns,
        "paper_flops": own.flops.paper,
        "seconds": own.seconds,
        "joules": own.joules,
        "dense_flops": dense.flops.total,
        "dense_paper_flops": dense.flops.paper,
        "dense_seconds": dense.seconds,
        "dense_joules": dense.joules,
    }
    return {
        "experiment": result.experiment.name,
        "seed": result.experiment.seed,
        "sparsity": result.experiment.sparsity,
        "accuracy": accuracy_figures(result),
        "totals": totals,
        "savings": savings(totals),
        "peak_device_memory_bytes": result.peak_memory,
        "dense_accuracy": accuracy_figures(baseline) if baseline else None,
    }


def mask_figures(result: Result) -> dict | None:
    """How far the devices' masks lay apart: the largest union density and the mean distance over the rounds; None if dense."""
    found = [record.diversity for record in result.rounds if record.diversity]
    if not found:
        return None
    distances = [one.distance for one in found]
    return {"largest_union_density": max(one.union_density for one in found), "mean_distance": float(np.mean(distances))}


def accuracy_figures(result: Result | SoloResult) -> dict:
    """Scores of both scenarios as plain dicts; undefined figures are None."""
    figures = {}
    for row, scenario in enumerate(SCENARIOS):
        values = vars(result.scores(row))
        figures[scenario] = {key: None if np.isnan(value) else value for key, value in values.items()}
    return figures


def own_models(result: Result) -> dict | None:
    """Where devices' own models were evaluated, how their accuracy is spread over them, each a mean over the tasks that it has had."""
    found = {scenario: own_accuracy(result, row) for row, scenario in enumerate(SCENARIOS)}
    if not found["class-il"]:
        return None
    return {scenario: vars(fairness(np.array(list(own.values())))) for scenario, own in found.items()}


def savings(totals: dict) -> dict:
    """Dense twin over run, per kind of cost that the run paid."""
    pairs = {
        "flops": ("dense_flops", "flops"),
        "paper_flops": ("dense_paper_flops", "paper_flops"),
        "up_bytes": ("dense_up_bytes", "up_bytes"),
        "down_bytes": ("dense_down_bytes", "down_bytes"),
        "seconds": ("dense_seconds", "seconds"),
        "joules": ("dense_joules", "joules"),
    }
    return {kind: totals[dense] / totals[own] for kind, (dense, own) in pairs.items() if totals.get(own)}


def tasks_so_far(stream: StreamConfig, task: int) -> int:
    """Tasks that accuracy is averaged over while the median device is at `task`, counted through all cycles; all where orders differ."""
    if task < 0:
        return 0
    return stream.tasks if stream.order == "shuffled" else min(task + 1, stream.tasks)


def percent(value: float | None) -> str:
    """As people read it; `-` where there is none."""
    return "-" if value is None or np.isnan(value) else f"{value:.1%}"


def accuracy_so_far(record, tasks_seen: int) -> tuple[float, float]:
    """Mean Class-IL and Task-IL accuracy over the first `tasks_seen` tasks; NaN before the first."""
    if record.accuracy is None or tasks_seen < 1:
        return float("nan"), float("nan")
    return tuple(float(value) for value in record.accuracy[:, :tasks_seen].mean(1))
