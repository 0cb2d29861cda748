"""The command line: the only place that prints."""

import logging
import os
import sys
import warnings
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import typer
from rich.console import Console
from rich.logging import RichHandler

from server.strategy import FleetError
from simulations.config import ConfigError, Experiment, available, dense_twin, load
from simulations.engine.adapter import EngineError

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode="rich")
console = Console(highlight=False)
errors = Console(stderr=True, highlight=False)


class Engine(StrEnum):
    ray = "ray"
    inline = "inline"


ExperimentArgument = Annotated[str, typer.Argument(metavar="EXPERIMENT", help="An experiment's name (`sparcl list`), or a TOML file.")]
SetOption = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a setting, e.g. learner.lr=0.05.")]
SeedOption = Annotated[int | None, typer.Option(help="Seed of the run; default: the experiment's own.")]
OutOption = Annotated[Path, typer.Option("--out", metavar="DIR", help="Where the run folder goes.")]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


@app.callback()
def main() -> None:
    """SparCL Fleet: fleets of edge devices that learn continually, with sparse training, through Flower on Ray."""


@app.command()
def run(
    experiment: ExperimentArgument = "split-digits",
    set_: SetOption = None,
    seed: SeedOption = None,
    engine: Annotated[Engine, typer.Option(help="ray: worker processes; inline: one process, for a debugger.")] = Engine.ray,
    workers: Annotated[int, typer.Option(min=0, help="Ray workers; 0: one per core. The result does not depend on it.")] = 0,
    baseline: Annotated[bool, typer.Option("--baseline", help="Also run the dense twin, for its accuracy.")] = False,
    out: OutOption = Path("runs"),
    debug: DebugOption = False,
) -> None:
    """Run an experiment: a fleet of devices learns a task stream."""
    with _one_message(debug):
        resolved = _resolve(experiment, set_, seed)
        _run(resolved, engine.value, workers, baseline, out)


def _resolve(experiment: str, overrides: list[str] | None, seed: int | None) -> Experiment:
    return load(experiment, [*(overrides or []), *([] if seed is None else [f"seed={seed}"])])


def _run(experiment: Experiment, engine: str, workers: int, baseline: bool, out: Path) -> None:
    from simulations.profiles import load_profile
    from simulations.report import draw_report
    from simulations.results import run_folder, write_run

    profile, assumed = load_profile(experiment.profile)
    with run_folder(out, experiment) as (folder, final):
        result = _watch(experiment, engine, workers, experiment.name)
        twin = _watch(dense_twin(experiment), engine, workers, "dense twin") if baseline else None
        summary = write_run(folder, result, twin)
        draw_report(folder)
    _show(summary, assumed, profile.name, final)


def _show(summary: dict, assumed: list[str], profile: str, folder: Path) -> None:
    from simulations.view import bytes_by_kind, final_table, footnote

    console.print(final_table(summary))
    if made_of := bytes_by_kind(summary):
        console.print(made_of)
    console.print(footnote(summary, assumed, profile))
    console.print(f"\nrun folder: {folder}", soft_wrap=True)


def _watch(experiment: Experiment, engine: str, workers: int, title: str):
    from simulations.build import make_world
    from simulations.run import run_world
    from simulations.view import View

    federation = experiment.federation
    rounds = experiment.stream.tasks * federation.rounds_per_task
    world = make_world(experiment)
    with View(console, title, rounds, federation.rounds_per_task, experiment.stream.devices) as view:
        return run_world(world, engine, workers, view)


@app.command("train-one")
def train_one(
    experiment: ExperimentArgument = "split-digits",
    set_: SetOption = None,
    seed: SeedOption = None,
    baseline: Annotated[bool, typer.Option("--baseline", help="Also train the dense twin, for its accuracy.")] = False,
    out: OutOption = Path("runs"),
    debug: DebugOption = False,
) -> None:
    """Train a single device that sees all data: the paper's own setting, without Flower or Ray."""
    with _one_message(debug):
        resolved = _resolve(experiment, set_, seed)
        _train_one(replace(resolved, name=f"{resolved.name}-alone"), baseline, out)


def _train_one(experiment: Experiment, baseline: bool, out: Path) -> None:
    from simulations.alone import train_one as train
    from simulations.profiles import load_profile
    from simulations.results import run_folder, write_solo

    profile, assumed = load_profile(experiment.profile)
    epochs = experiment.federation.task_epochs

    def observe(progress, accuracy) -> None:
        line = f"task {progress.task}  epoch {progress.epoch}/{epochs}  loss {progress.loss:.3f}"
        if accuracy is not None:
            line += "  Class-IL {:.1%}  Task-IL {:.1%}".format(*accuracy[:, : progress.task + 1].mean(1))
        console.print(line, soft_wrap=True)

    with run_folder(out, experiment) as (folder, final):
        result = train(experiment, observe)
        twin = train(dense_twin(experiment), observe) if baseline else None
        summary = write_solo(folder, result, twin)
    _show(summary, assumed, profile.name, final)


@app.command()
def reproduce(
    claim: Annotated[str, typer.Argument(metavar="CLAIM", help="A published table: split-digits, masks or wire.")] = "split-digits",
    processes: Annotated[int, typer.Option(min=0, help="Runs at once; 0: one per core.")] = 0,
    out: OutOption = Path("runs"),
    debug: DebugOption = False,
) -> None:
    """Repeat a published table: all rows and seeds, paired differences with a 95 % interval."""
    with _one_message(debug):
        from simulations.reproduce import load_claim, markdown, run_claim
        from simulations.results import new_folder, write_claim

        loaded = load_claim(claim)
        total, count = len(loaded.rows) * len(loaded.seeds), 0

        def done(row: str, seed: int, summary: dict) -> None:
            nonlocal count
            count += 1
            accuracy = summary["accuracy"]["class-il"]["average"]
            console.print(f"{count}/{total}  {row}  seed {seed}  Class-IL {accuracy:.1%}", soft_wrap=True)

        with new_folder(out, f"claim-{claim}") as (folder, final):
            results = run_claim(loaded, processes, done)
            table = markdown(loaded, results)
            write_claim(folder, table, results)
        console.print(f"\n{table}\n\nfolder: {final}", soft_wrap=True, markup=False)


@app.command("list")
def list_experiments() -> None:
    """The experiments that come with the project."""
    for name in available():
        console.print(f"{name:24} {load(name).description}", soft_wrap=True)


class _one_message:
    """Bad input ends with exit code 2 and one message; anything else too, but then it points to --debug."""

    def __init__(self, debug: bool):
        self.debug = debug

    def __enter__(self):
        warnings.filterwarnings("ignore")
        logging.basicConfig(
            level=logging.WARNING, format="%(message)s", handlers=[RichHandler(console=errors, show_path=False, show_time=False)]
        )

    def __exit__(self, kind, error, _):
        _stop_ray()
        if error is None or self.debug or isinstance(error, SystemExit | typer.Exit):
            return False
        if isinstance(error, KeyboardInterrupt):
            errors.print("interrupted; nothing was written", soft_wrap=True)
            raise typer.Exit(130)
        known = isinstance(error, ConfigError | FleetError | EngineError | ValueError)
        text = str(error) if known else f"{kind.__name__}: {error} (--debug shows where)"
        errors.print(f"error: {text}", soft_wrap=True, markup=False)
        raise typer.Exit(2)


def _stop_ray() -> None:
    if "ray" in sys.modules:
        sys.modules["ray"].shutdown()


if __name__ == "__main__":
    app()
