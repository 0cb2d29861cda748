"""What a run was worth and what it took, over virtual time, joules and bytes; and how evenly that is spread over the devices."""

from dataclasses import asdict

import numpy as np

from server.fleet.local_time import HOUR
from server.ledger import DELIVERED
from simulations.results.devices import booked_rounds, endings
from simulations.run import Result
from sparcl_core.metrics.curves import area, reach
from sparcl_core.metrics.fairness import fairness


def curve(result: Result) -> dict[str, np.ndarray]:
    """One point per evaluated round: round, hours since the start, joules and bytes of all devices so far, and the headline accuracy.

    The headline accuracy is the mean over all tasks, also those still to come: Class-IL, or Task-IL in the setting `task-il`.
    """
    rows = result.strategy.ledger.rows
    size = result.rounds[-1].round + 1
    rounds = booked_rounds(result)
    joules = np.cumsum(np.bincount(rounds, [row.joules for row in rows], size)) if rows else np.zeros(size)
    sent = np.cumsum(np.bincount(rounds, [row.down_bytes + row.up_bytes for row in rows], size)) if rows else np.zeros(size)
    scenario = int(result.world.experiment.stream.setting == "task-il")
    found = [record for record in result.rounds if record.accuracy is not None]
    numbers = np.array([record.round for record in found])
    return {
        "round": numbers,
        "hours": np.array([(record.time - result.rounds[0].time) / HOUR for record in found]),
        "joules": joules[numbers],
        "bytes": sent[numbers],
        "accuracy": np.array([float(record.accuracy[scenario].mean()) for record in found]),
    }


def fleet_figures(result: Result, devices: dict[str, np.ndarray]) -> dict:
    """The figures of a run that a fleet adds to those of its learning; None where one is not defined."""
    points, target = curve(result), result.world.experiment.target
    over = ("hours", "joules", "bytes")
    asked, rows = int(devices["asked"].sum()), result.strategy.ledger.rows
    lost = {turn for turn, outcome in endings(rows).items() if outcome in LOST}
    outcomes = {name.removeprefix("rounds_"): int(count.sum()) for name, count in devices.items() if name.startswith("rounds_")}
    return {
        "virtual_hours": float((result.rounds[-1].time - result.rounds[0].time) / HOUR),
        "asked": asked,
        "in_time": sum(outcomes[name] for name in DELIVERED) / asked if asked else None,
        "outcomes": outcomes,
        "refused": int((devices["refused"] > 0).sum()),
        "joules_lost": float(sum(row.joules for row in rows if (row.round, row.device) in lost)),
        "accuracy_over": {name: _known(area(points[name], points["accuracy"])) for name in over},
        "target": target or None,
        "to_target": {name: _known(reach(points[name], points["accuracy"], target)) for name in over} if target else None,
        "fairness": {name: _known(value) for name, value in asdict(fairness(devices["accuracy"])).items()},
        "device_forgetting": _known(float(np.nanmean(devices["forgetting"]))) if (~np.isnan(devices["forgetting"])).any() else None,
    }


LOST = ("failed", "late", "cancelled", "stale", "rejected")


def _known(value: float) -> float | None:
    return None if np.isnan(value) else value
