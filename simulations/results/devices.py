"""What each device paid, and what the model is worth to it: one row a device, from the ledger and the evaluations of a run.

A device's accuracy is Class-IL, or Task-IL where the method has no other, on the test data in the device's own mix of (task, class) over
its whole stream; its forgetting is that of the matrix of its own steps, in its own order, each task in the device's own mix of classes.
Where devices' own models are evaluated, its accuracy is that of its own in the last evaluation, a mean over the tasks that it has had.
"""

import numpy as np

from server.ledger import Row
from simulations.run import Result
from sparcl_core.costs.flops import FLOP_COLUMNS
from sparcl_core.methods.registry import make_method
from sparcl_core.metrics.continual import scores
from sparcl_core.metrics.curves import matrix_at
from sparcl_core.metrics.fairness import device_accuracy

MOST = 5_000  # devices: for larger fleets these figures are of those that were reached, and of the first so many
PAID = {
    "flops": FLOP_COLUMNS,
    "down_bytes": ("down_bytes",),
    "up_bytes": ("up_bytes",),
    "seconds": ("seconds",),
    "joules": ("joules",),
}
OUTCOMES = ("ok", "clipped", "late", "cancelled", "stale", "failed", "rejected", "skipped")


def device_table(result: Result) -> dict[str, np.ndarray]:
    """Columns, a row for every device that the ledger knows, in device order."""
    rows = result.strategy.ledger.rows
    devices = np.array(sorted({row.device for row in rows if row.device >= 0})[:MOST], np.int64)
    place = {device: index for index, device in enumerate(devices.tolist())}
    paid = {name: np.zeros(len(devices)) for name in PAID}
    ended = {outcome: np.zeros(len(devices), np.int64) for outcome in OUTCOMES}
    asked, refused = np.zeros(len(devices), np.int64), np.zeros(len(devices), np.int64)
    for row in rows:
        if (index := place.get(row.device)) is None:
            continue
        for name, columns in PAID.items():
            paid[name][index] += sum(getattr(row, column) for column in columns)
        refused[index] += row.outcome == "refused"
    for (_, device), outcome in endings(rows).items():
        if outcome in ended and device in place:
            ended[outcome][place[device]] += 1
            asked[place[device]] += outcome != "skipped"
    federation = result.strategy.federation
    hardware, tiers = result.world.fleet.hardware, federation.cohorts.tiers
    names = [hardware.kinds[kind].name for kind in hardware.kind[devices].tolist()]
    sparsities = np.array([level.sparsity for level in tiers.levels] + [np.nan])  # the last: of those that are in no tier
    accuracy, forgetting = _worth(result, devices)
    return {
        "device": devices,
        "profile": np.array(names, dtype=object),
        "sparsity": sparsities[tiers.of[devices]],
        "asked": asked,
        **{f"rounds_{outcome}": count for outcome, count in ended.items()},
        "refused": refused,
        **{name: values.astype(np.int64) if name.endswith(("flops", "bytes")) else values for name, values in paid.items()},
        "charge": federation.conditions.charge(devices, federation.now),
        "accuracy": accuracy,
        "forgetting": forgetting,
    }


def endings(rows: list[Row]) -> dict[tuple[int, int], str]:
    """(round, device) -> outcome of the device's part in the round: that of the first phase that did not end well, else of its upload.

    Where BatchNorm statistics are recomputed, a second exchange follows in the same round; it is no ending.
    """
    found: dict[tuple[int, int], str] = {}
    for row in rows:
        if row.device >= 0 and (row.phase == "upload" or row.outcome != "ok"):
            found.setdefault((row.round, row.device), row.outcome)
    return found


def _worth(result: Result, devices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Accuracy and forgetting of each device."""
    found = [record for record in result.rounds if record.by_class is not None]
    scenario = int(make_method(result.world.experiment.learner).owns)
    curve, own_models = np.stack([record.by_class[scenario] for record in found]), own_accuracy(result, scenario)  # [E, T, C]
    steps = _steps_at(result, devices, [record.round for record in found], [record.time for record in found])
    streams, (tasks, classes) = result.world.streams, curve.shape[1:]
    accuracy, forgetting = np.full(len(devices), np.nan), np.full(len(devices), np.nan)
    for index, device in enumerate(devices.tolist()):
        order, own = streams.order_of(device), streams.all_samples(device)
        mix = np.zeros((tasks, classes))
        for task, samples in zip(order, own, strict=True):
            mix[task] += np.bincount(streams.y[samples], minlength=classes)
        accuracy[index] = own_models.get(device, np.nan) if own_models else device_accuracy(curve[-1], mix[None])[0]
        held = np.array([task for task in dict.fromkeys(order) if mix[task].any()])
        if len(held) < 2:
            continue
        first = [_first_run_end(order, int(one)) for one in held.tolist()]
        ends = np.array([_when(steps[:, index], step) for step in first])
        known = mix * ~np.isnan(curve)
        with np.errstate(invalid="ignore"):  # a task that the device has nothing of
            by_task = (known * np.nan_to_num(curve)).sum(axis=2) / known.sum(axis=2)  # [E, T]
        ranks = np.argsort(ends, kind="stable")
        matrix = matrix_at(ends[ranks], np.arange(len(curve), dtype=float), by_task, held[ranks])
        matrix = np.vstack([matrix[:-1], by_task[-1][held[ranks]][None]])  # the last row is the end of the run, whatever recurred
        if not np.isnan(matrix).any():
            forgetting[index] = scores(matrix).forgetting
    return accuracy, forgetting


def own_accuracy(result: Result, scenario: int) -> dict[int, float]:
    """By device, how good its own model was in the last evaluation: a mean over the tasks that it has had. Empty if the server's was."""
    last = next(record for record in reversed(result.rounds) if record.accuracy is not None)
    if last.own is None:
        return {}
    known = zip(last.own.devices.tolist(), last.own.accuracy[:, scenario], strict=True)
    return {device: float(np.nanmean(own)) for device, own in known if not np.isnan(own).all()}


def booked_rounds(result: Result) -> np.ndarray:
    """[rows] int64: the round by whose end each row of the ledger was over; of work that went on across rounds not the one that asked."""
    rows, ends = result.strategy.ledger.rows, np.array([record.time for record in result.rounds])
    over = np.searchsorted(ends, [row.time + row.seconds - 1e-6 for row in rows])
    asked = np.array([row.round for row in rows], np.int64)
    return np.minimum(np.maximum(asked, over), result.rounds[-1].round)


def _steps_at(result: Result, devices: np.ndarray, rounds: list[int], times: list[float]) -> np.ndarray:
    """[E, n] int64: the step at which each device is behind each of these rounds."""
    cohorts = result.strategy.federation.cohorts
    finished = np.zeros((result.rounds[-1].round + 1, len(devices)), np.int64)
    if cohorts.conditions.pace.advance == "participation":  # else nobody reads it
        place = {device: index for index, device in enumerate(devices.tolist())}
        for row, number in zip(result.strategy.ledger.rows, booked_rounds(result).tolist(), strict=True):
            if row.phase == "train" and row.steps and row.device in place:
                finished[number, place[row.device]] += 1
        finished = np.cumsum(finished, axis=0)
    rows = np.searchsorted(cohorts.roster.devices, devices)
    return np.stack([cohorts.steps_of(rows, number + 1, time, finished[number]) for number, time in zip(rounds, times, strict=True)])


def _first_run_end(order: tuple[int, ...], task: int) -> int:
    """The last step of the first stretch of steps that are `task`."""
    step = order.index(task)
    while step + 1 < len(order) and order[step + 1] == task:
        step += 1
    return step


def _when(steps: np.ndarray, step: int) -> float:
    """The first evaluation at which `step` was over; infinite if it never was."""
    over = np.flatnonzero(steps > step)
    return float(over[0]) if len(over) else np.inf
