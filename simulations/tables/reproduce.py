"""`sparcl reproduce`: a published table of ours, from one command. Rows x seeds, paired with a reference.

A claim is a TOML file, in simulations/claims/ or your own: the experiment (or one per row), the seeds (or a row's own), rows with
overrides, whether they are run by the fleet or by a single device that sees all data (`alone`), and which table is made of them
(`simulations.tables.markdown`). Runs are spread over processes, each run on the inline engine, whose bits are those of every other engine.

Runs that are over are kept in a folder of the claim until all are, and a single device's run is kept while it goes on: the same command
goes on where it was.
"""

import json
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter, ValidationError

from simulations import disk
from simulations.config.claims import CLAIMS
from simulations.config.errors import ConfigError
from simulations.config.experiment import Experiment, dense_twin
from simulations.config.loading import config_bytes, load
from simulations.config.toml_file import read_toml
from simulations.config.unread import Given, keys_of, unread, unread_keys
from simulations.environment import software

Table = Literal["learning", "fleet", "costs", "sweep"]


@dataclass(frozen=True)
class ClaimRow:
    """One row: its name, experiment, overrides, whether it is run as the dense twin, the row it is paired with, and seeds of its own."""

    __pydantic_config__ = {"extra": "forbid", "strict": True}

    name: str
    experiment: str = ""
    set: tuple[str, ...] = ()
    dense: bool = False
    versus: str = ""
    seeds: tuple[int, ...] = ()


@dataclass(frozen=True)
class Sweep:
    """A setting, and the values that every row is run with. title: what it is, for tables and axes."""

    __pydantic_config__ = {"extra": "forbid", "strict": True}

    key: str
    values: Annotated[tuple[float | int | str, ...], Field(min_length=1)]
    title: str = ""

    def row(self, row: ClaimRow, value: float | int | str) -> ClaimRow:
        """That row with this value."""
        setting = f"{self.key}={value!r}" if isinstance(value, str) else f"{self.key}={value}"
        return replace(row, name=self.name(row.name, value), set=(*row.set, setting), versus=row.versus and self.name(row.versus, value))

    def name(self, row: str, value: float | int | str) -> str:
        return f"{row}, {self.key.rpartition('.')[2]} {value}"


@dataclass(frozen=True)
class Claim:
    """A table: rows x seeds. alone: each run is of a single device. set: overrides of all rows, before their own.

    sweep: `rows` are those of `families`, each with every value.
    """

    name: str
    seeds: tuple[int, ...]
    rows: tuple[ClaimRow, ...]
    table: Table = "learning"
    alone: bool = False
    set: tuple[str, ...] = ()
    sweep: Sweep | None = None
    families: tuple[ClaimRow, ...] = ()

    def experiment_of(self, row: ClaimRow, seed: int) -> Experiment:
        made = self.as_set(row, seed)
        return dense_twin(made) if row.dense else made

    def as_set(self, row: ClaimRow, seed: int) -> Experiment:
        """The experiment whose dense twin is run where the row is dense."""
        return load(row.experiment, [f"seed={seed}", *self.set, *row.set])

    @property
    def jobs(self) -> list[tuple[ClaimRow, int]]:
        """Rows and seeds, in order."""
        return [(row, seed) for row in self.rows for seed in row.seeds or self.seeds]


@dataclass(frozen=True)
class _File:
    """What a claim's file says."""

    __pydantic_config__ = {"extra": "forbid", "strict": True}

    seeds: Annotated[tuple[int, ...], Field(min_length=1)]
    row: Annotated[tuple[ClaimRow, ...], Field(min_length=1)]
    experiment: str = ""
    table: Table = "learning"
    alone: bool = False
    set: tuple[str, ...] = ()
    sweep: Sweep | None = None


def available() -> list[str]:
    """Names of the claims that come with the project."""
    return list(CLAIMS.ours())


def load_claim(name: str) -> Claim:
    """A claim, and the proof that all its experiments can be made.

    Args:
        name: one of `available()`, one of an installed package, or the path of a file of your own, with or without .toml. Experiments that
            it names by a relative path lie beside it, or else where the command is called.

    Raises:
        ConfigError: if there is no such claim, or something in it is wrong.
    """
    try:
        path = CLAIMS.path(name) or Path(os.path.expanduser(name if name.endswith(".toml") else f"{name}.toml"))
    except ValueError as error:
        raise ConfigError(str(error)) from error
    try:
        tree = read_toml(path)
    except OSError as error:
        why = "" if isinstance(error, FileNotFoundError) else f" ({error.strerror or error})"
        raise ConfigError(f"claim {name!r} is not here{why}; there are {', '.join(CLAIMS.offers())}, or give a .toml file") from error
    try:
        found = TypeAdapter(_File).validate_json(json.dumps(tree, default=str))  # TOML also knows dates
    except ValidationError as error:
        faults = [f"{'.'.join(map(str, item['loc']))}: {item['msg'].lower()}" for item in error.errors()]
        raise ConfigError(f"{path}: {'; '.join(faults)}") from error
    rows = tuple(replace(row, experiment=_beside(path, row.experiment or found.experiment)) for row in found.row)
    families = rows
    if sweep := found.sweep:
        rows = tuple(sweep.row(row, value) for row in families for value in sweep.values)
    claim = Claim(path.stem, found.seeds, rows, found.table, found.alone, found.set, sweep, families)
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
    if (claim.table == "sweep") != bool(claim.sweep):
        faults.append("table 'sweep' and the section [sweep] belong together: give both, or neither")
    if any(len({*seeds}) < len(seeds) for seeds in (claim.seeds, *(row.seeds for row in claim.rows))):
        faults.append("a seed is there twice")
    for row in claim.rows if not faults else ():
        for seed in row.seeds or claim.seeds:
            try:
                claim.experiment_of(row, seed)
            except ConfigError as error:
                faults.append(f"row {row.name!r}, seed {seed}: {error}")
                break  # the others would most likely say the same
    faults += _unread(claim) if not faults else []
    if faults:
        raise ConfigError(f"{path}: {'; '.join(faults)}")


def _unread(claim: Claim) -> Iterator[str]:
    """Settings that nothing reads: of a row's own, each; of those of all rows and of the sweep, what no row reads."""
    shared = [*claim.set, *([f"{claim.sweep.key}=0"] if claim.sweep else [])]
    nowhere, first = keys_of(shared), None
    for row in claim.rows:
        made = claim.as_set(row, claim.seeds[0])
        first = first or made
        own = [setting for setting in row.set if not claim.sweep or keys_of([setting]) != {claim.sweep.key}]
        for problem in unread(made, Given.of(row.experiment, own, shared), alone=claim.alone):
            yield f"row {row.name!r}: {problem}"
        nowhere &= unread_keys(made, Given(keys_of(shared)), alone=claim.alone).keys()
    yield from (f"no row reads a setting of all: {problem}" for problem in unread(first, Given(nowhere), alone=claim.alone))


def run_claim(claim: Claim, processes: int, done: Callable[[str, int, dict], None], kept: Path) -> dict[str, dict[int, dict]]:
    """Summaries by row and seed. `done` is told of every run that is over, in the order of the rows, those that were kept first.

    Args:
        kept: folder of what was run before, and is run now.
    """
    results: dict[str, dict[int, dict]] = {row.name: {} for row in claim.rows}
    # a Ctrl-C reaches all processes of a terminal: this one ends the others, which have nothing to say of it
    ignoring = {"initializer": signal.signal, "initargs": (signal.SIGINT, signal.SIG_IGN)}
    with multiprocessing.get_context("spawn").Pool(processes or os.cpu_count(), **ignoring) as pool:
        arguments = [(claim.experiment_of(row, seed), claim.alone, kept) for row, seed in claim.jobs]
        for (row, seed), summary in zip(claim.jobs, pool.imap(_kept_summary, arguments), strict=True):
            results[row.name][seed] = summary
            done(row.name, seed, summary)
    return results


def _kept_summary(job: tuple[Experiment, bool, Path]) -> dict:
    """One run, in a worker process; or what is kept of one with these settings. With it the software that made it."""
    from simulations.checkpoints.lone_device import digest
    from simulations.data.sources import bound

    experiment, alone, kept = job
    experiment = replace(experiment, data=bound(experiment.data, experiment.seed))  # what was kept of other data is not of this run
    name = digest(experiment)
    file = kept / f"{name}.json"
    with suppress(OSError, ValueError):
        return json.loads(disk.read(file))
    chosen = _with_kernels(experiment, kept / f"{name}.toml")
    summary = (_alone(chosen, kept / name) if alone else _summary(chosen)) | {"software": software()}
    disk.put(f"{file}.new", [json.dumps(summary).encode()])
    disk.flush([f"{file}.new"])
    os.replace(f"{file}.new", file)
    return summary


def _with_kernels(experiment: Experiment, file: Path) -> Experiment:
    """The experiment with the choice of kernels that was made when its run first began: another one may change its last bits."""
    from simulations.build import choose_kernels

    with suppress(OSError, ConfigError):
        return load(str(file))
    chosen = choose_kernels(experiment)
    disk.put(file, [config_bytes(chosen)])
    return chosen


def _summary(experiment: Experiment) -> dict:
    from simulations.build import make_world
    from simulations.results.summary import summarise
    from simulations.run import run_world
    from simulations.tables.ceilings import ceilings

    world = make_world(experiment)
    return summarise(run_world(world, "inline")) | {"ceilings": asdict(ceilings(world))}


def _alone(experiment: Experiment, folder: Path) -> dict:
    from simulations.checkpoints.lone_device import LonePoint
    from simulations.results.summary import summarise_solo
    from simulations.single_device import train_one

    with LonePoint(folder, experiment) as point:
        summary = summarise_solo(train_one(experiment, lambda progress, accuracy: None, point))
        point.remove()
    return summary
