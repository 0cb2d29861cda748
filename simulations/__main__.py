"""The command line: the only place that prints.

What takes long to import is imported where it is needed: Ray's processes start while this one imports PyTorch.
"""

import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import typer

from simulations.cli import messages
from simulations.cli.messages import complain, console, errors, hide, one_message, say

if TYPE_CHECKING:
    from simulations.cli.signals import Stops
    from simulations.config.experiment import Experiment
    from simulations.engine.pool import Pool
    from simulations.results.resumable import Unfinished
    from simulations.run import Result

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode="rich")


class Engine(StrEnum):
    ray = "ray"
    inline = "inline"


class Backbone(StrEnum):
    mlp = "mlp"
    cnn = "cnn"
    resnet18 = "resnet18"


@dataclass(frozen=True)
class Workers:
    """Options of the Ray engine; their meaning: `simulations.engine.pool.EngineOptions`, which has its fields in the same order."""

    workers: int
    address: str
    gpus_per_worker: float
    cache_mb: int
    device_timeout_s: float
    tries: int

    def problems(self, engine: str) -> Iterator[str]:
        from simulations import preflight

        amounts = {"gpus_per_worker": self.gpus_per_worker, "device_timeout_s": self.device_timeout_s}
        yield from preflight.engine_options(engine, self.address, self.workers, **amounts)
        if engine == "ray":
            yield from preflight.cluster_address(self.address)


ExperimentArgument = Annotated[str, typer.Argument(metavar="EXPERIMENT", help="An experiment's name (`sparcl list`), or a TOML file.")]
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="The folder of an unfinished run.")]
SetOption = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a setting, e.g. learner.lr=0.05.")]
SeedOption = Annotated[int | None, typer.Option(help="Seed of the run; default: the experiment's own.")]
OutOption = Annotated[Path, typer.Option("--out", metavar="DIR", help="Where the run folder goes.")]
DenseOption = Annotated[bool, typer.Option("--dense", help="Run the dense twin itself: no sparsity of any kind, fp32 on the wire.")]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
WorkersOption = Annotated[int, typer.Option(min=0, help="Ray workers; 0: one per core. The result does not depend on it.")]
AddressOption = Annotated[str, typer.Option(metavar="auto|HOST:PORT", help="A running Ray cluster; default: a Ray of its own.")]
GpusOption = Annotated[float, typer.Option(min=0, help="Share of a GPU that each worker holds, for ClientApps that use one.")]
CacheOption = Annotated[int, typer.Option(min=0, metavar="MB", help="Device states that each worker keeps in memory.")]
TimeoutOption = Annotated[float, typer.Option(min=0, metavar="SECONDS", help="A device that takes longer counts as hung; 0: never.")]
TriesOption = Annotated[int, typer.Option(min=1, help="How often a device is tried when it loses its worker.")]


@app.callback()
def about() -> None:
    """SparCL Fleet: fleets of edge devices that learn continually, with sparse training, through Flower on Ray."""


@app.command()
def run(
    experiment: ExperimentArgument = "split-digits",
    set_: SetOption = None,
    seed: SeedOption = None,
    engine: Annotated[Engine, typer.Option(help="ray: worker processes; inline: one process, for a debugger.")] = Engine.ray,
    workers: WorkersOption = 0,
    dense: DenseOption = False,
    baseline: Annotated[bool, typer.Option("--baseline", help="Also run the dense twin, for its accuracy.")] = False,
    out: OutOption = Path("runs"),
    ray_address: AddressOption = "",
    store: Annotated[str, typer.Option(metavar="PATH|URL", help="Where device states are kept; on a cluster, shared by its nodes.")] = "",
    gpus_per_worker: GpusOption = 0.0,
    cache: CacheOption = 256,
    device_timeout: TimeoutOption = 3600.0,
    tries: TriesOption = 3,
    debug: DebugOption = False,
) -> None:
    """Run an experiment: a fleet of devices learns a task stream."""
    options = Workers(workers, ray_address, gpus_per_worker, cache, device_timeout, tries)
    with one_message(debug) as stops:
        from simulations import preflight

        hide(store)
        resolved = _resolve(experiment, set_, seed, dense, baseline)
        here = (preflight.output_folder(out), preflight.store_url(store), options.problems(engine.value))
        preflight.expect(preflight.experiment_files(resolved), *here)
        _start(resolved, engine.value)
        with _workers(engine.value, options, stops) as pool:
            from simulations.config.run_name import run_name
            from simulations.results.resumable import How, new_run

            how = How(engine.value, baseline, store, ray_address, on_nodes=bool(ray_address) and not store)
            with new_run(out, _choose(resolved), how, run_name(resolved, set_ or [])) as unfinished:
                _carry_out(unfinished, pool)


@app.command()
def resume(
    run: RunArgument,
    workers: WorkersOption = 0,
    ray_address: Annotated[str, typer.Option(metavar="auto|HOST:PORT", help="Where its cluster is now; default: where it was.")] = "",
    gpus_per_worker: GpusOption = 0.0,
    cache: CacheOption = 256,
    device_timeout: TimeoutOption = 3600.0,
    tries: TriesOption = 3,
    debug: DebugOption = False,
) -> None:
    """Go on with a run that was interrupted: its result is the same to the bit as without."""
    options = Workers(workers, ray_address, gpus_per_worker, cache, device_timeout, tries)
    with one_message(debug) as stops:
        from simulations import preflight

        engine, address = preflight.engine_of(run)
        options = replace(options, address=ray_address or address)
        preflight.expect(preflight.run_folder(run), options.problems(engine))
        say(f"{run}: going on, starting PyTorch")
        from simulations.results.resumable import open_run

        with open_run(run) as unfinished:
            how = unfinished.how
            hide(how.store)
            unfinished.how = replace(how, address=options.address)
            with _workers(how.engine, options, stops) as pool:
                _carry_out(unfinished, pool)


@app.command()
def forget(run: RunArgument, ray_address: AddressOption = "", debug: DebugOption = False) -> None:
    """Give an unfinished run up: remove its folder and its device states, also those that a cluster holds."""
    with one_message(debug):
        from simulations import preflight

        address = ray_address or preflight.engine_of(run)[1]
        preflight.expect(preflight.run_folder(run), preflight.cluster_address(address))
        from simulations.results.resumable import give_up, open_run

        with open_run(run) as unfinished:
            hide(unfinished.how.store)
            if address:
                from simulations.engine import cluster

                cluster.attach(address)
            said = give_up(unfinished)
        say(said)


def _resolve(experiment: str, overrides: list[str] | None, seed: int | None, dense: bool, baseline: bool) -> "Experiment":
    from simulations.config.errors import ConfigError
    from simulations.config.experiment import dense_twin, load

    if dense and baseline:
        raise ConfigError("--dense runs the dense twin alone, and --baseline runs it beside the experiment: leave one out")
    resolved = load(experiment, [*(overrides or []), *([] if seed is None else [f"seed={seed}"])])
    return dense_twin(resolved) if dense else resolved


def _start(experiment: "Experiment", engine: str) -> None:
    """The first line, before what takes seconds: that all is well so far, and what is going on."""
    from simulations.config.experiment import left_on

    say(f"{experiment.name}: starting {'Ray and ' if engine == 'ray' else ''}PyTorch")
    if parts := left_on(experiment):
        say(f"sparsity is 0, but {' and '.join(parts)} stay on; --dense runs the dense twin")


def _choose(experiment: "Experiment") -> "Experiment":
    from simulations.build import choose_kernels
    from sparcl_core.kernels.build import backend

    chosen = choose_kernels(experiment)
    wants = experiment.sparsity and experiment.kernels.mode != "dense" and os.environ.get("SPARCL_KERNELS") != "dense"
    if wants and backend().library is None:
        complain(f"warning: masks act on dense tensors, which saves no time: {backend().reason}")
    return chosen


@contextmanager
def _workers(engine: str, options: Workers, stops: "Stops") -> Iterator["Pool | None"]:
    """Ray's worker processes, which import what they need while this process does the same."""
    if engine == "inline":
        yield None
        return
    importing = threading.Thread(target=_import_early, daemon=True)
    importing.start()
    try:
        from simulations.engine.pool import EngineOptions, Pool

        pool = Pool(EngineOptions(**vars(options)), warm=("simulations.client_app",))
    finally:
        importing.join()
    stops.arm()  # Ray has set a handler of its own
    try:
        yield pool
    finally:
        pool.close()


def _import_early() -> None:
    import simulations.results.resumable  # noqa: F401


def _carry_out(run: "Unfinished", pool: "Pool | None") -> None:
    from simulations.config.experiment import dense_twin
    from simulations.fleet.mix import make_hardware
    from simulations.results.plot import draw_report
    from simulations.results.write import write_run

    if run.is_whole:  # it was stopped while it cleaned up
        run.finish()
        say(f"run folder: {run.folder}")
        return
    experiment, baseline = run.experiment, run.how.baseline
    fleet = make_hardware(experiment.fleet, experiment.profile, experiment.stream.devices, experiment.seed)
    result = _watch(run, "run", experiment, pool, experiment.name)
    twin = _twin(run, dense_twin(experiment), pool) if baseline else None
    summary = write_run(run.folder, result, twin)
    draw_report(run.folder)
    run.finish()
    _show(summary, fleet.assumed, run.folder)


def _twin(run: "Unfinished", experiment: "Experiment", pool: "Pool | None") -> "Result | None":
    """The dense twin, or a word on why it cannot be run: it may be too large for every device, or too slow for the deadline."""
    from server.errors import FleetError

    try:
        return _watch(run, "twin", experiment, pool, "dense twin")
    except FleetError as error:
        complain(f"the dense twin cannot be run: {error}")
        return None


def _show(summary: dict, assumed: dict[str, list[str]], folder: Path) -> None:
    from simulations.results.console import bytes_by_kind, final_table, footnote, problems

    console.print(final_table(summary, console.width))
    if went_wrong := problems(summary):
        console.print(went_wrong, markup=False)
    if made_of := bytes_by_kind(summary):
        console.print(made_of)
    console.print(footnote(summary, assumed))
    say(f"run folder: {folder}")


def _watch(run: "Unfinished", part: str, experiment: "Experiment", pool: "Pool | None", title: str) -> "Result":
    from simulations.build import make_world
    from simulations.results.console import View
    from simulations.run import run_world

    federation, world = experiment.federation, make_world(experiment)
    devices = min(federation.cohort_size or experiment.stream.devices, experiment.stream.devices)
    with View(console, title, experiment.rounds, devices, experiment.stream) as view:
        return run_world(world, run.how.engine, observer=view, keep=run.keep(part), pool=pool)


@app.command("train-one")
def train_one(
    experiment: ExperimentArgument = "split-digits",
    set_: SetOption = None,
    seed: SeedOption = None,
    dense: DenseOption = False,
    baseline: Annotated[bool, typer.Option("--baseline", help="Also train the dense twin, for its accuracy.")] = False,
    out: OutOption = Path("runs"),
    debug: DebugOption = False,
) -> None:
    """Train a single device that sees all data: the paper's own setting, without Flower or Ray."""
    with one_message(debug):
        from simulations import preflight
        from simulations.config.run_name import run_name

        resolved = _resolve(experiment, set_, seed, dense, baseline)
        preflight.expect(preflight.experiment_files(resolved), preflight.output_folder(out))
        alone = replace(resolved, name=f"{resolved.name}-alone")
        _start(alone, "inline")
        _train_one(_choose(alone), baseline, out, run_name(alone, set_ or []))


def _train_one(experiment: "Experiment", baseline: bool, out: Path, name: str) -> None:
    from simulations.config.experiment import dense_twin
    from simulations.fleet.profiles import load_profile
    from simulations.results.write import new_folder, write_solo
    from simulations.single_device import train_one as train

    _, assumed = load_profile(experiment.profile)
    epochs = experiment.federation.task_epochs

    def observe(progress, accuracy) -> None:
        line = f"task {progress.task}  epoch {progress.epoch}/{epochs}  loss {progress.loss:.3f}"
        if accuracy is not None:
            line += "  Class-IL {:.1%}  Task-IL {:.1%}".format(*accuracy[:, : progress.task + 1].mean(1))
        say(line)

    with new_folder(out, name) as (folder, final):
        result = train(experiment, observe)
        twin = train(dense_twin(experiment), observe) if baseline else None
        summary = write_solo(folder, result, twin)
    _show(summary, {experiment.profile: assumed}, final)


@app.command()
def reproduce(
    claim: Annotated[str, typer.Argument(metavar="CLAIM", help="A published table, e.g. masks, or a TOML file.")] = "split-digits",
    processes: Annotated[int, typer.Option(min=0, help="Runs at once; 0: one per core.")] = 0,
    out: OutOption = Path("runs"),
    debug: DebugOption = False,
) -> None:
    """Repeat a published table: all rows and seeds, paired differences with a 95 % interval."""
    with one_message(debug):
        from simulations import preflight
        from simulations.tables.reproduce import load_claim, markdown, run_claim

        loaded = load_claim(claim)
        total, count = len(loaded.rows) * len(loaded.seeds), 0
        rows = [(row, loaded.experiment_of(row, seed)) for row in loaded.rows for seed in loaded.seeds]
        wrong = (f"row {row.name}: {problem}" for row, experiment in rows for problem in preflight.experiment_files(experiment))
        preflight.expect(wrong, preflight.output_folder(out))
        say(f"{loaded.name}: starting {total} runs of {len(loaded.rows)} rows")
        from simulations.results.write import new_folder, write_claim

        def done(row: str, seed: int, summary: dict) -> None:
            nonlocal count
            count += 1
            accuracy = summary["accuracy"]["class-il"]["average"]
            say(f"{count}/{total}  {row}  seed {seed}  Class-IL {accuracy:.1%}")

        with new_folder(out, f"claim-{loaded.name}") as (folder, final):
            results = run_claim(loaded, min(processes or os.cpu_count() or 1, total), done)
            table = markdown(loaded, results)
            write_claim(folder, table, results)
        console.print(f"\n{table}\n", soft_wrap=True, markup=False)
        say(f"folder: {final}")


@app.command("list")
def list_experiments() -> None:
    """The experiments that come with the project."""
    with one_message(debug=False):
        from simulations.config.experiment import available, load

        for name in available():
            say(f"{name:24} {load(name).description}")


@app.command()
def doctor(
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Compile the kernels again, whatever is cached.")] = False,
    debug: DebugOption = False,
) -> None:
    """What a run finds on this machine: versions, processor, and the sparse kernels; without a compiler these are dense products."""
    with one_message(debug):
        from simulations.doctor import examine, table

        rows, works = examine(rebuild)
        console.print(table(rows), soft_wrap=True, markup=False)
        if not works:
            raise typer.Exit(2)


@app.command()
def calibrate(
    out: Annotated[Path | None, typer.Option(metavar="FILE.toml", help="The profile; default: named after the processor, here.")] = None,
    name: Annotated[str, typer.Option(help="The device's name in the profile; default: its processor.")] = "",
    model: Annotated[list[Backbone] | None, typer.Option(help="Backbones that are trained; default: cnn and resnet18.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer sessions, fewer repeats: less exact.")] = False,
    idle_w: Annotated[float | None, typer.Option(metavar="W", help="Power of the idle device, if you have measured it.")] = None,
    active_w: Annotated[float | None, typer.Option(metavar="W", help="Power of the device while it trains.")] = None,
    down_mbit: Annotated[float | None, typer.Option(metavar="MBIT/S", help="Its network, downwards.")] = None,
    up_mbit: Annotated[float | None, typer.Option(metavar="MBIT/S", help="Its network, upwards.")] = None,
    latency_ms: Annotated[float | None, typer.Option(metavar="MS", help="What a message takes whatever its size.")] = None,
    debug: DebugOption = False,
) -> None:
    """Measure this machine, and write a device profile: rates of training, memory, and power where the system shows it."""
    options = {
        "idle_w": (idle_w, 1.0), "active_w": (active_w, 1.0), "down_bits_per_s": (down_mbit, 1e6), "up_bits_per_s": (up_mbit, 1e6),
        "latency_s": (latency_ms, 1e-3),
    }  # fmt: skip
    given = {key: value * unit for key, (value, unit) in options.items() if value is not None}
    with one_message(debug):
        from simulations import preflight
        from simulations.fleet.profiles import new_profile

        preflight.expect(preflight.figures(given))
        with ExitStack() as stack:
            file = stack.enter_context(new_profile(out)) if out else None  # before PyTorch and the kernels are there
            from simulations.calibration.fit import calibrate, default_name, table, write

            path = out or Path(default_name())
            file = file or stack.enter_context(new_profile(path))
            with errors.status("starting") as status:
                found = calibrate([*(model or (Backbone.cnn, Backbone.resnet18))], quick, name, given, observe=status.update)
            write(file, found)
        console.print(table(found), soft_wrap=True, markup=False)
        assumed = [key for key, figure in found.figures.items() if figure.source.startswith("assumption")]
        console.print()
        if assumed:
            say(f"not measured, so assumed: {', '.join(assumed)}")
        if found.no_power:
            say(f"no power was read: {found.no_power}")
        console.print()
        say(f"profile: {path}")


def main() -> None:
    """The command: what `sparcl` and `python -m simulations` run."""
    messages.is_process = True
    app()


if __name__ == "__main__":
    main()
