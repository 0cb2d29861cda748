"""The command line: the only place that prints."""

import logging
import os
import sys
import warnings
from enum import StrEnum
from pathlib import Path
from typing import Annotated

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import typer
from rich.console import Console
from rich.logging import RichHandler

from simulations.config import ConfigError, Experiment, available, dense_twin, load

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
        resolved = load(experiment, [*(set_ or []), *([] if seed is None else [f"seed={seed}"])])
        _run(resolved, engine.value, workers, baseline, out)


def _run(experiment: Experiment, engine: str, workers: int, baseline: bool, out: Path) -> None:
    from simulations.profiles import load_profile
    from simulations.report import draw_report
    from simulations.results import run_folder, write_run
    from simulations.view import final_table

    profile, assumed = load_profile(experiment.profile)
    with run_folder(out, experiment) as (folder, final):
        result = _watch(experiment, engine, workers, experiment.name)
        twin = _watch(dense_twin(experiment), engine, workers, "dense twin") if baseline else None
        summary = write_run(folder, result, twin)
        draw_report(folder)
    console.print(final_table(summary, assumed, profile.name))
    console.print(f"\nrun folder: {final}", soft_wrap=True)


def _watch(experiment: Experiment, engine: str, workers: int, title: str):
    from simulations.build import make_world
    from simulations.run import run_world
    from simulations.view import View

    federation = experiment.federation
    rounds = experiment.stream.tasks * federation.rounds_per_task
    world = make_world(experiment)
    with View(console, title, rounds, federation.rounds_per_task, experiment.stream.devices) as view:
        return run_world(world, engine, workers, view)


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
        logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[RichHandler(console=errors, show_path=False, show_time=False)])

    def __exit__(self, kind, error, _):
        _stop_ray()
        if error is None or self.debug or isinstance(error, SystemExit | typer.Exit):
            return False
        if isinstance(error, KeyboardInterrupt):
            errors.print("interrupted; nothing was written", soft_wrap=True)
            raise typer.Exit(130)
        if isinstance(error, ConfigError | ValueError) or type(error).__name__ in ("EngineError", "FleetError"):
            errors.print(f"error: {error}", soft_wrap=True, markup=False)
        else:
            errors.print(f"error: {type(error).__name__}: {error} (--debug shows where)", soft_wrap=True, markup=False)
        raise typer.Exit(2)


def _stop_ray() -> None:
    if "ray" in sys.modules:
        sys.modules["ray"].shutdown()


if __name__ == "__main__":
    app()
