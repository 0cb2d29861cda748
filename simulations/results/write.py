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
from dataclasses import fields
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors.numpy import save

from server.ledger import WallTime
from simulations.config.experiment import Experiment
from simulations.config.loading import config_bytes
from simulations.disk import delete, put
from simulations.environment import environment
from simulations.plugins.packages import used_by
from simulations.results.devices import device_table
from simulations.results.folder import FILES
from simulations.results.summary import SCENARIOS, accuracy_so_far, summarise, summarise_solo, tasks_so_far
from simulations.run import Result
from simulations.single_device import SoloResult
from sparcl_core.sparsity.masks import Masks, State


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


def write_claim(folder: Path, table: str, results: dict[str, dict[int, dict]]) -> None:
    """The table of a claim and the summaries of all its runs, with the machine that made them."""
    (folder / "table.md").write_text(table + "\n")
    _write_json(folder / "runs.json", {row: [*own.values()] for row, own in results.items()})
    _write_json(folder / "environment.json", environment())


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
    config, path = config_bytes(experiment), folder / "config.toml"
    if not path.exists() or path.read_bytes() != config:  # an unfinished run needs it whole at every instant
        put(path, [config])
    _write_json(folder / "environment.json", machine | ({"packages": used} if (used := used_by(experiment)) else {}))
    _write_json(folder / "summary.json", summary)
    _write_table(folder / "accuracy.parquet", _accuracy_columns(accuracy))
    arrays = weights | {f"mask/{name}": mask.astype(np.uint8) for name, mask in masks.items()}
    put(folder / "model.safetensors", [save(arrays)])  # not by the library, whose files nobody else may read


def _write_table(path: Path, columns: dict) -> None:
    pq.write_table(pa.table({name: pa.array(values) for name, values in columns.items()}), path)


def _write_json(path: Path, value: dict) -> None:
    path.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n")
