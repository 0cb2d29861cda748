"""The run folder: everything a run leaves on disk, no pickle.

    config.toml          the resolved experiment; `sparcl run RUN/config.toml` repeats the run
    environment.json     versions, machine, engine, seconds
    rounds.parquet       one row per round: devices, samples, accuracy so far
    accuracy.parquet     one row per (scenario, after task, task)
    ledger.parquet       one row per device, round and phase
    wall.parquet         measured seconds per device and round (the only file besides environment.json that differs between repeats)
    model.safetensors    final weights, and the masks as `mask/NAME` (uint8)
    summary.json         the figures of the final table
    report.png           accuracy and cost over the rounds

A folder is written under a temporary name and renamed when it is whole.
"""

import json
import os
import shutil
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tomli_w
from safetensors.numpy import save_file

from simulations.config import ConfigError, Experiment, to_tree
from simulations.run import Result

SCENARIOS = ("class-il", "task-il")


@contextmanager
def run_folder(parent: Path, experiment: Experiment):
    """A staging folder that becomes `parent/NAME-seedN[-K]` when the block ends well, and is removed when it does not.

    Yields (staging folder, final path).

    Raises:
        ConfigError: before anything runs, if the folder cannot be written.
    """
    final = _free_name(parent, f"{experiment.name}-seed{experiment.seed}")
    staging = parent / f".{final.name}.{os.getpid()}"
    try:
        staging.mkdir(parents=True)
        (staging / ".probe").write_bytes(b"")
        (staging / ".probe").unlink()
    except OSError as error:
        raise ConfigError(f"run folder {parent} cannot be written ({error.strerror or error}); choose another with --out") from error
    try:
        yield staging, final
        if final.exists():
            final = _free_name(parent, final.name)
        staging.rename(final)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise


def summarise(result: Result, baseline: Result | None = None) -> dict:
    """The figures of a run; `baseline`: the dense twin's run, if there was one."""
    totals = result.strategy.ledger.totals()
    rows = result.strategy.ledger.rows
    outcomes = sorted({row.outcome for row in rows})
    return {
        "experiment": result.world.experiment.name,
        "seed": result.world.experiment.seed,
        "sparsity": result.world.experiment.sparsity,
        "accuracy": accuracy_figures(result),
        "totals": totals,
        "savings": savings(totals),
        "peak_device_memory_bytes": max((row.memory_bytes for row in rows), default=0),
        "rows_by_outcome": {outcome: sum(row.outcome == outcome for row in rows) for outcome in outcomes},
        "dense_accuracy": accuracy_figures(baseline) if baseline else None,
        "dense_run_totals": baseline.strategy.ledger.totals() if baseline else None,
    }


def accuracy_figures(result: Result) -> dict:
    """Scores of both scenarios as plain dicts; undefined figures are None."""
    figures = {}
    for row, scenario in enumerate(SCENARIOS):
        values = vars(result.scores(row))
        figures[scenario] = {key: None if np.isnan(value) else value for key, value in values.items()}
    return figures


def savings(totals: dict) -> dict:
    """Dense twin over run, per kind of cost; None where the run paid nothing."""
    pairs = {
        "flops": ("dense_flops", "flops"),
        "paper_flops": ("dense_paper_flops", "paper_flops"),
        "up_bytes": ("dense_up_bytes", "up_bytes"),
        "down_bytes": ("dense_down_bytes", "down_bytes"),
        "seconds": ("dense_seconds", "seconds"),
        "joules": ("dense_joules", "joules"),
    }
    return {kind: totals[dense] / totals[own] if totals[own] else None for kind, (dense, own) in pairs.items()}


def write_run(folder: Path, result: Result, baseline: Result | None = None) -> dict:
    """Write everything but the picture into `folder`; returns the summary."""
    experiment, strategy = result.world.experiment, result.strategy
    (folder / "config.toml").write_bytes(tomli_w.dumps(to_tree(experiment)).encode())
    machine = result.environment | {"engine": result.engine, "workers": result.workers, "wall_s": round(result.wall_s, 3)}
    _write_json(folder / "environment.json", machine)
    summary = summarise(result, baseline)
    _write_json(folder / "summary.json", summary)
    pq.write_table(pa.table(strategy.ledger.columns()), folder / "ledger.parquet")
    wall = list(zip(*strategy.ledger.wall_s, strict=True)) or [(), (), ()]
    pq.write_table(pa.table(dict(zip(("round", "device", "wall_s"), map(list, wall), strict=True))), folder / "wall.parquet")
    pq.write_table(pa.table(_round_columns(result)), folder / "rounds.parquet")
    pq.write_table(pa.table(_accuracy_columns(result)), folder / "accuracy.parquet")
    masks = {f"mask/{name}": mask.astype(np.uint8) for name, mask in strategy.masks.items()}
    save_file(strategy.weights | masks, folder / "model.safetensors")
    return summary


def accuracy_so_far(record, tasks_seen: int) -> tuple[float, float]:
    """Mean Class-IL and Task-IL accuracy over the first `tasks_seen` tasks; NaN before the first."""
    if record.accuracy is None or tasks_seen < 1:
        return float("nan"), float("nan")
    return tuple(float(value) for value in record.accuracy[:, :tasks_seen].mean(1))


def _round_columns(result: Result) -> dict[str, list]:
    columns = {key: [] for key in ("round", "task", "num_devices", "num_samples", *SCENARIOS)}
    for record in result.rounds:
        values = (record.round, record.task, record.num_devices, record.num_samples, *accuracy_so_far(record, record.task + 1))
        for key, value in zip(columns, values, strict=True):
            columns[key].append(value)
    return columns


def _accuracy_columns(result: Result) -> dict[str, list]:
    columns = {key: [] for key in ("scenario", "after_task", "task", "accuracy")}
    for row, scenario in enumerate(SCENARIOS):
        for after, accuracies in enumerate(result.accuracy[row]):
            for task, accuracy in enumerate(accuracies):
                for key, value in zip(columns, (scenario, after, task, float(accuracy)), strict=True):
                    columns[key].append(value)
    return columns


def _write_json(path: Path, value: dict) -> None:
    path.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n")


def _free_name(parent: Path, name: str) -> Path:
    candidate, number = parent / name, 2
    while candidate.exists():
        candidate, number = parent / f"{name}-{number}", number + 1
    return candidate
