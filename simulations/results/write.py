"""The run folder: everything a run leaves on disk, no pickle.

    config.toml          the resolved experiment; `sparcl run RUN/config.toml` repeats the run
    environment.json     versions, machine, engine, seconds
    rounds.parquet       one row per round: virtual time, devices, samples, accuracy so far, how far the devices' masks lie apart
    accuracy.parquet     one row per (scenario, after task, task)
    classes.parquet      one row per (evaluated round, scenario, task, true class): its label in the data, accuracy
    devices.parquet      one row per device: its profile, what it paid, how its rounds ended, what the model is worth to it
    ledger.parquet       one row per device, round and phase
    wall.parquet         measured seconds per device and round, all and of training alone (CPU time); with environment.json the only
                         file that differs when repeated
    model.safetensors    final weights, and the masks as `mask/NAME` (uint8)
    summary.json         the figures of the final table
    report.png           accuracy and cost over the rounds

A single device's run (`sparcl train-one`) has no rounds, ledger, wall or report; its folder is written under a temporary name
and renamed when it is whole. A fleet's run has run.json in its folder until it is whole, see `simulations.results.resumable`.
"""

import json
import os
import re
import secrets
from collections import Counter
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tomli_w
from safetensors.numpy import save

from server.ledger import Row, WallTime
from simulations.config.experiment import ConfigError, Experiment, to_tree
from simulations.config.sections import StreamConfig
from simulations.disk import delete, flush, make_folder, put
from simulations.environment import environment
from simulations.results.curves import fleet_figures
from simulations.results.devices import device_table
from simulations.run import Result
from simulations.single_device import SoloResult
from sparcl_core.sparsity.masks import Masks, State

SCENARIOS = ("class-il", "task-il")
FILES = (  # of a fleet's run
    "config.toml", "environment.json", "rounds.parquet", "accuracy.parquet", "classes.parquet", "devices.parquet", "ledger.parquet",
    "wall.parquet", "model.safetensors", "summary.json", "report.png",
)  # fmt: skip
CLAIM_FILES = ("table.md", "runs.json", "environment.json")


def claim_folder(parent: Path, name: str) -> Path:
    """Make `parent/NAME[-K]`, the first of these that is not there.

    Raises:
        ConfigError: if it cannot be made.
    """
    while True:
        folder = _free_name(parent, name)
        try:
            make_folder(parent)
            folder.mkdir()
        except FileExistsError:
            if parent.is_dir():
                continue  # somebody else was faster
            raise ConfigError(f"run folder {parent} cannot be written (it is a file); choose another with --out") from None
        except OSError as error:
            raise ConfigError(f"run folder {parent} cannot be written ({error.strerror or error}); choose another with --out") from error
        return folder


@contextmanager
def new_folder(parent: Path, name: str):
    """A staging folder that becomes `parent/NAME[-K]` when the block ends well, and is removed when it does not.

    Yields (staging folder, final path).

    Raises:
        ConfigError: before anything runs, if the folder cannot be written; or at the end, if it cannot be renamed: then it stays.
    """
    final = _free_name(parent, name)
    staging = parent / f".{final.name}.{secrets.token_hex(4)}"
    try:
        make_folder(parent)
        staging.mkdir()
        put(staging / FILES[0], [])
        delete(staging, FILES[:1])
    except OSError as error:
        raise ConfigError(f"run folder {parent} cannot be written ({error.strerror or error}); choose another with --out") from error
    try:
        yield staging, final
    except BaseException as error:
        delete(staging, {*FILES, *CLAIM_FILES})
        try:
            staging.rmdir()
        except OSError:
            error.add_note(f"what is not ours stays in {staging}")
        raise
    try:
        flush([*staging.iterdir(), staging])
        if os.path.lexists(final):
            final = _free_name(parent, name)
        staging.rename(final)
        flush([parent])
    except OSError as error:
        raise ConfigError(f"the results are whole, in {staging}, and cannot be moved to {final} ({error.strerror or error})") from error


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


def write_run(folder: Path, result: Result, baseline: Result | None = None) -> dict:
    """Write everything but the picture into `folder`; returns the summary. What lies there under these names is replaced, and links are
    not followed."""
    delete(folder, FILES[1:])
    strategy = result.strategy
    devices = device_table(result)
    summary = summarise(result, baseline, devices)
    machine = environment() | {"engine": result.engine, "workers": result.workers, "wall_s": round(result.wall_s, 3)}
    if len(result.versions) > 1:  # else it was resumed with what it was begun with, or not at all
        machine["software"] = result.versions
    _write_common(
        folder, result.world.experiment, machine, summary=summary, accuracy=result.accuracy, weights=strategy.weights, masks=strategy.masks
    )
    _write_table(folder / "ledger.parquet", strategy.ledger.columns())
    _write_table(folder / "rounds.parquet", _round_columns(result))
    _write_table(folder / "classes.parquet", _class_columns(result))
    _write_table(folder / "devices.parquet", devices)
    measured = strategy.ledger.wall_times
    _write_table(folder / "wall.parquet", {field.name: [getattr(own, field.name) for own in measured] for field in fields(WallTime)})
    return summary


def write_solo(folder: Path, result: SoloResult, baseline: SoloResult | None = None) -> dict:
    """Write a single device's run into `folder`; returns the summary."""
    summary = summarise_solo(result, baseline)
    progress = result.progress
    _write_common(
        folder, result.experiment, environment(), summary=summary, accuracy=result.accuracy, weights=progress.state, masks=progress.masks
    )
    return summary


def write_claim(folder: Path, table: str, results: dict[str, list[dict]]) -> None:
    """The table of a claim and the summaries of all its runs, with the machine that made them."""
    (folder / "table.md").write_text(table + "\n")
    _write_json(folder / "runs.json", results)
    _write_json(folder / "environment.json", environment())


def tasks_so_far(stream: StreamConfig, task: int) -> int:
    """Tasks that accuracy is averaged over while the median device is at `task`, counted through all cycles; all where orders differ."""
    if task < 0:
        return 0
    return stream.tasks if stream.order == "shuffled" else min(task + 1, stream.tasks)


def accuracy_so_far(record, tasks_seen: int) -> tuple[float, float]:
    """Mean Class-IL and Task-IL accuracy over the first `tasks_seen` tasks; NaN before the first."""
    if record.accuracy is None or tasks_seen < 1:
        return float("nan"), float("nan")
    return tuple(float(value) for value in record.accuracy[:, :tasks_seen].mean(1))


def _round_columns(result: Result) -> dict[str, list]:
    whole = [f"{scenario}-all" for scenario in SCENARIOS]  # over all tasks, also those to come
    names = ("round", "task", "time_s", "num_devices", "num_samples", *SCENARIOS, *whole, "union_density", "mask_distance")
    columns = {key: [] for key in names}
    for record in result.rounds:
        apart = (record.diversity.union_density, record.diversity.distance) if record.diversity else (None, None)
        counts = (record.round, record.task, record.time, record.num_devices, record.num_samples)
        stream = result.world.experiment.stream
        so_far = accuracy_so_far(record, tasks_so_far(stream, record.task)), accuracy_so_far(record, stream.tasks)
        values = (*counts, *so_far[0], *so_far[1], *apart)
        for key, value in zip(columns, values, strict=True):
            columns[key].append(value)
    return columns


def _class_columns(result: Result) -> dict[str, np.ndarray]:
    """Where the test data has no sample of a class in a task, there is no row. `label` is what the data calls the class."""
    found = [record for record in result.rounds if record.by_class is not None]
    curve = np.stack([record.by_class for record in found])  # [E, 2, T, C]
    points, scenarios, tasks, classes = np.nonzero(~np.isnan(curve))
    return {
        "round": np.array([record.round for record in found])[points],
        "scenario": np.array(SCENARIOS, dtype=object)[scenarios],
        "task": tasks,
        "class": classes,
        "label": np.array(result.world.data.labels or range(curve.shape[3]))[classes],
        "accuracy": curve[points, scenarios, tasks, classes],
    }


def _accuracy_columns(matrices: np.ndarray) -> dict[str, list]:
    columns = {key: [] for key in ("scenario", "after_task", "task", "accuracy")}
    for row, scenario in enumerate(SCENARIOS):
        for after, accuracies in enumerate(matrices[row]):
            for task, accuracy in enumerate(accuracies):
                for key, value in zip(columns, (scenario, after, task, float(accuracy)), strict=True):
                    columns[key].append(value)
    return columns


def _write_common(
    folder: Path, experiment: Experiment, machine: dict, *, summary: dict, accuracy: np.ndarray, weights: State, masks: Masks
) -> None:
    config, path = tomli_w.dumps(to_tree(experiment)).encode(), folder / "config.toml"
    if not path.exists() or path.read_bytes() != config:  # an unfinished run needs it whole at every instant
        put(path, [config])
    _write_json(folder / "environment.json", machine)
    _write_json(folder / "summary.json", summary)
    _write_table(folder / "accuracy.parquet", _accuracy_columns(accuracy))
    arrays = weights | {f"mask/{name}": mask.astype(np.uint8) for name, mask in masks.items()}
    put(folder / "model.safetensors", [save(arrays)])  # not by the library, whose files nobody else may read


def _write_table(path: Path, columns: dict) -> None:
    pq.write_table(pa.table({name: pa.array(values) for name, values in columns.items()}), path)


def _write_json(path: Path, value: dict) -> None:
    path.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n")


def _free_name(parent: Path, name: str) -> Path:
    candidate, number = parent / name, 2
    while os.path.lexists(candidate):  # a link to nowhere is taken, too
        candidate, number = parent / f"{name}-{number}", number + 1
    return candidate
