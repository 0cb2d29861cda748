"""`sparcl reproduce`: a published table of ours, from one command. Rows x seeds, paired with a reference.

A claim is a TOML file, in simulations/claims/ or your own: the experiment (or one per row), the seeds, rows with overrides, and which
table is made of them: `learning`, accuracy and savings, or `fleet`, what it took on the virtual clock. Runs are spread over processes, each
run on the inline engine, whose bits are those of every other engine.
"""

import json
import multiprocessing
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, TypeAdapter, ValidationError

from simulations.config.errors import ConfigError
from simulations.config.experiment import Experiment, dense_twin
from simulations.config.loading import load
from simulations.config.toml_file import read_toml

CLAIMS = Path(__file__).parents[1] / "claims"


@dataclass(frozen=True)
class ClaimRow:
    """One row: its name, experiment, overrides, whether it is run as the dense twin, and the row it is paired with."""

    __pydantic_config__ = {"extra": "forbid", "strict": True}

    name: str
    experiment: str = ""
    set: tuple[str, ...] = ()
    dense: bool = False
    versus: str = ""


@dataclass(frozen=True)
class Claim:
    """A table: rows x seeds."""

    name: str
    seeds: tuple[int, ...]
    rows: tuple[ClaimRow, ...]
    table: Literal["learning", "fleet"] = "learning"

    def experiment_of(self, row: ClaimRow, seed: int) -> Experiment:
        made = load(row.experiment, [f"seed={seed}", *row.set])
        return dense_twin(made) if row.dense else made


@dataclass(frozen=True)
class _File:
    """What a claim's file says."""

    __pydantic_config__ = {"extra": "forbid", "strict": True}

    seeds: Annotated[tuple[int, ...], Field(min_length=1)]
    row: Annotated[tuple[ClaimRow, ...], Field(min_length=1)]
    experiment: str = ""
    table: Literal["learning", "fleet"] = "learning"


def available() -> list[str]:
    """Names of the claims that come with the project."""
    return sorted(path.stem for path in CLAIMS.glob("*.toml"))


def load_claim(name: str) -> Claim:
    """A claim, and the proof that all its experiments can be made.

    Args:
        name: one of `available()`, or the path of a file of your own, with or without .toml. Experiments that it names by a relative path
            lie beside it, or else where the command is called.

    Raises:
        ConfigError: if there is no such claim, or something in it is wrong.
    """
    known, own = CLAIMS / f"{name}.toml", Path(os.path.expanduser(name if name.endswith(".toml") else f"{name}.toml"))
    path = known if name in available() else own
    try:
        tree = read_toml(path)
    except OSError as error:
        why = "" if isinstance(error, FileNotFoundError) else f" ({error.strerror or error})"
        raise ConfigError(f"claim {name!r} is not here{why}; there are {', '.join(available())}, or give a .toml file") from error
    try:
        found = TypeAdapter(_File).validate_json(json.dumps(tree, default=str))  # TOML also knows dates
    except ValidationError as error:
        faults = [f"{'.'.join(map(str, item['loc']))}: {item['msg'].lower()}" for item in error.errors()]
        raise ConfigError(f"{path}: {'; '.join(faults)}") from error
    rows = tuple(replace(row, experiment=_beside(path, row.experiment or found.experiment)) for row in found.row)
    claim = Claim(path.stem, found.seeds, rows, found.table)
    _check(claim, path)
    return claim


def _beside(claim: Path, experiment: str) -> str:
    near = claim.parent / experiment
    return str(near) if experiment.endswith(".toml") and near.is_file() else experiment


def _check(claim: Claim, path: Path) -> None:
    names = [row.name for row in claim.rows]
    faults = [f"row {name!r} is there {names.count(name)} times" for name in dict.fromkeys(names) if names.count(name) > 1]
    faults += [f"row {row.name!r} names no experiment" for row in claim.rows if not row.experiment]
    faults += [
        f"row {row.name!r} is paired with {row.versus!r}, which is none of its rows" for row in claim.rows if row.versus not in ("", *names)
    ]
    if len(set(claim.seeds)) < len(claim.seeds):
        faults.append("a seed is there twice")
    for row in claim.rows if not faults else ():
        for seed in claim.seeds:
            try:
                claim.experiment_of(row, seed)
            except ConfigError as error:
                faults.append(f"row {row.name!r}, seed {seed}: {error}")
                break  # the others would most likely say the same
    if faults:
        raise ConfigError(f"{path}: {'; '.join(faults)}")


def run_claim(claim: Claim, processes: int, done: Callable[[str, int, dict], None]) -> dict[str, list[dict]]:
    """Summaries per row, in the order of the seeds. `done` is told of every finished run."""
    from simulations.build import choose_kernels

    jobs = [(row, seed) for row in claim.rows for seed in claim.seeds]
    results: dict[str, list[dict]] = {row.name: [] for row in claim.rows}
    with multiprocessing.get_context("spawn").Pool(processes or os.cpu_count()) as pool:
        arguments = [choose_kernels(claim.experiment_of(row, seed)) for row, seed in jobs]
        for (row, seed), summary in zip(jobs, pool.imap(_summary, arguments), strict=True):
            results[row.name].append(summary)
            done(row.name, seed, summary)
    return results


def paired(values: list[float], reference: list[float]) -> tuple[float, float]:
    """Mean difference and half-width of its 95 % interval (Student's t over the pairs)."""
    differences = np.asarray(values) - np.asarray(reference)
    if len(differences) < 2:
        return float(differences.mean()), float("nan")
    from scipy import stats  # imported late: it takes half a second, and a misspelt claim needs none of it

    half = stats.t.ppf(0.975, len(differences) - 1) * differences.std(ddof=1) / np.sqrt(len(differences))
    return float(differences.mean()), float(half)


def markdown(claim: Claim, results: dict[str, list[dict]]) -> str:
    """The claim's table."""
    return _fleet_table(claim, results) if claim.table == "fleet" else _learning_table(claim, results)


def _fleet_table(claim: Claim, results: dict[str, list[dict]]) -> str:
    """Means over the seeds. What it took to reach the target is the mean over all seeds, and missing if one of them never did."""
    head = (
        "run",
        "Class-IL %",
        "rounds in time %",
        "too small",
        "joules",
        "virtual hours",
        "target %",
        "hours to it",
        "joules to it",
        "MB to it",
    )
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for row in claim.rows:
        summaries = results[row.name]
        fleets = [summary["fleet"] for summary in summaries]
        gap = ""
        if row.versus:
            gap = " ({:+.1f} ± {:.1f})".format(
                *(100 * part for part in paired(_average(summaries, "class-il"), _average(results[row.versus], "class-il")))
            )
        cells = [
            row.name,
            f"{100 * np.mean(_average(summaries, 'class-il')):.1f}{gap}",
            f"{100 * np.mean([fleet['in_time'] or 0 for fleet in fleets]):.0f}",
            f"{np.mean([fleet['refused'] for fleet in fleets]):.0f}",
            f"{np.mean([summary['totals']['joules'] for summary in summaries]):,.0f}",
            f"{np.mean([fleet['virtual_hours'] for fleet in fleets]):.3g}",
            f"{100 * fleets[0]['target']:.0f}",
            *(_to_target(fleets, kind, unit) for kind, unit in (("hours", 1), ("joules", 1), ("bytes", 1e6))),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _to_target(fleets: list[dict], kind: str, unit: float) -> str:
    found = [fleet["to_target"][kind] for fleet in fleets]
    missed = found.count(None)
    return f"missed by {missed} of {len(found)}" if missed else f"{np.mean(found) / unit:,.3g}"


def _learning_table(claim: Claim, results: dict[str, list[dict]]) -> str:
    """Accuracy over seeds, paired difference to the row it is compared with, savings beside their ceilings.

    The plain ceiling of bytes is without entropy coding and without values that round to 0: it can be beaten.
    """
    head = ("run", "Class-IL %", f"minus {_reference(claim)}, 95 % interval", "Task-IL %", "forgetting")
    head += ("FLOPs saved (ceiling)", "bytes up (plain ceiling)", "bytes down (plain ceiling)")
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for row in claim.rows:
        summaries = results[row.name]
        class_il = _average(summaries, "class-il")
        gap = "-"
        if row.versus:
            difference, half = paired(class_il, _average(results[row.versus], "class-il"))
            gap = f"{100 * difference:+.1f} ± {100 * half:.1f}"
        cells = [
            row.name,
            f"{100 * np.mean(class_il):.1f}",
            gap,
            f"{100 * np.mean(_average(summaries, 'task-il')):.1f}",
            f"{100 * np.mean([s['accuracy']['class-il']['forgetting'] for s in summaries]):.1f}",
            *(_saving(summaries, kind) for kind in ("flops", "up_bytes", "down_bytes")),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _reference(claim: Claim) -> str:
    """What rows are compared with: the one row that all name, or each its own dense twin."""
    named = {row.versus for row in claim.rows if row.versus}
    return named.pop() if len(named) == 1 else "its dense twin"


def _average(summaries: list[dict], scenario: str) -> list[float]:
    return [summary["accuracy"][scenario]["average"] for summary in summaries]


def _saving(summaries: list[dict], kind: str) -> str:
    value = np.mean([summary["savings"][kind] for summary in summaries])
    ceiling = summaries[0]["ceilings"].get(kind)
    return f"{value:.1f}x" + (f" ({ceiling:.1f}x)" if ceiling else "")


def _summary(experiment: Experiment) -> dict:
    """One run, in a worker process."""
    from simulations.build import make_world
    from simulations.results.summary import summarise
    from simulations.run import run_world
    from simulations.tables.ceilings import ceilings

    world = make_world(experiment)
    return summarise(run_world(world, "inline")) | {"ceilings": asdict(ceilings(world))}
