"""What a claim is, and how its file is read: what is wrong with it is said at once, before anything runs.

A claim is a TOML file, in simulations/claims/ or your own: the experiment (or one per row), the seeds (or a row's own), rows with
overrides, whether they are run by the fleet or by a single device that sees all data (`alone`), and which table is made of them
(`simulations.tables.markdown`).
"""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError

from simulations.config.claims import CLAIMS
from simulations.config.errors import ConfigError, command, did_you_mean
from simulations.config.experiment import SECTIONS, Experiment, dense_twin
from simulations.config.loading import EXPERIMENTS, load
from simulations.config.toml_file import read_toml
from simulations.config.unread import Given, keys_of, unread, unread_keys
from sparcl_core.foreign import printable

Table = Literal["learning", "fleet", "costs", "sweep"]
Scenario = Literal["class-il", "task-il"]


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

    scenario: whose accuracy comes first, and is compared. sweep: `rows` are those of `families`, each with every value.
    """

    name: str
    seeds: tuple[int, ...]
    rows: tuple[ClaimRow, ...]
    table: Table = "learning"
    scenario: Scenario = "class-il"
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
    scenario: Scenario = "class-il"
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
        hint = (
            f" it is an experiment's name: {command('run', name)} runs it;"
            if name in EXPERIMENTS.offers()
            else did_you_mean(name, CLAIMS.offers())
        )
        here = ", ".join(CLAIMS.offers())
        raise ConfigError(f"claim {printable(repr(name))} is not here{why};{hint} there are {here}, or give a .toml file") from error
    if "row" not in tree and any(section in tree for section in SECTIONS):
        raise ConfigError(f"{path} is no claim, but an experiment: it has no [[row]]; {command('run', path)} runs it")
    try:
        found = TypeAdapter(_File).validate_json(json.dumps(tree, default=str))  # TOML also knows dates
    except ValidationError as error:
        raise ConfigError(f"{path}: {'; '.join(_fault(item, tree) for item in error.errors())}") from error
    rows = tuple(replace(row, experiment=_beside(path, row.experiment or found.experiment)) for row in found.row)
    families = rows
    if sweep := found.sweep:
        rows = tuple(sweep.row(row, value) for row in families for value in sweep.values)
    claim = Claim(path.stem, found.seeds, rows, found.table, found.scenario, found.alone, found.set, sweep, families)
    _check(claim, path)
    return claim


def _fault(item: Any, tree: dict[str, Any]) -> str:
    """What pydantic has found, in words: in which row, which key, the rule, and what was probably meant."""
    *parents, last = item["loc"]
    where, section, rows = "", _File, tree.get("row")
    if item["loc"][0] == "row" and len(item["loc"]) > 1:
        number, section, parents = item["loc"][1], ClaimRow, parents[2:]
        name = rows[number].get("name") if isinstance(rows[number], dict) else None
        where = f"row {name!r}: " if isinstance(name, str) and last != "name" else f"row {number + 1}: "
    elif parents[:1] == ["sweep"]:
        section = Sweep
    known = [part.name for part in fields(section)]
    key = ".".join(map(str, [*parents, last]))
    if item["type"] == "unexpected_keyword_argument":
        meant = did_you_mean(last, known) or " known keys here: " + ", ".join(known)
        return f"{where}unknown key {printable(repr(key), 120)};{meant}"
    if item["type"] == "missing":
        return f"{where}{key} is missing"
    return f"{where}{key}: {item['msg'].lower()}"


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
