"""Commands that train: `run`, `resume`, `forget`, `train-one`."""

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from simulations.cli.carrying_out import announce, carry_out, fetch, load_experiment, show, with_findings, worker_pool
from simulations.cli.messages import hide, one_message, say
from simulations.cli.options import (
    AddressOption,
    CacheOption,
    DebugOption,
    DenseOption,
    DownloadOption,
    Engine,
    ExperimentArgument,
    GpusOption,
    OutOption,
    RunArgument,
    SeedOption,
    SetOption,
    TimeoutOption,
    TriesOption,
    Workers,
    WorkersOption,
    app,
)
from simulations.engine.address import cluster_address

if TYPE_CHECKING:
    from simulations.config.experiment import Experiment


@app.command()
def run(
    experiment: ExperimentArgument = "split-digits",
    set_: SetOption = None,
    seed: SeedOption = None,
    engine: Annotated[Engine, typer.Option(help="ray: worker processes; inline: one process, for a debugger.")] = Engine.ray,
    workers: WorkersOption = 0,
    dense: DenseOption = False,
    download: DownloadOption = False,
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
        resolved = load_experiment(experiment, set_, seed=seed, dense=dense, baseline=baseline)
        here = (preflight.output_folder(out), preflight.store_url(store), options.problems(engine.value))
        if download:
            preflight.expect(*here)
            fetch(resolved)
        preflight.expect(preflight.experiment_files(resolved), *here)
        announce(resolved, engine.value)
        with worker_pool(engine.value, options, stops) as pool:
            from simulations.config.run_name import run_name
            from simulations.results.control_file import How
            from simulations.results.resumable import new_run

            how = How(engine.value, baseline, store, ray_address, on_nodes=bool(ray_address) and not store)
            with new_run(out, with_findings(resolved), how, run_name(resolved, set_ or [])) as unfinished:
                carry_out(unfinished, pool)


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
        from simulations.data.sources import expect_same
        from simulations.results.resumable import open_run

        with open_run(run) as unfinished:
            how = unfinished.how
            hide(how.store)
            unfinished.how = replace(how, address=options.address)
            expect_same(unfinished.experiment.data)  # before worker processes start
            with worker_pool(how.engine, options, stops) as pool:
                carry_out(unfinished, pool)


@app.command()
def forget(run: RunArgument, ray_address: AddressOption = "", debug: DebugOption = False) -> None:
    """Give an unfinished run up: remove its folder and its device states, also those that a cluster holds."""
    with one_message(debug):
        from simulations import preflight

        address = ray_address or preflight.engine_of(run)[1]
        preflight.expect(preflight.run_folder(run), cluster_address(address))
        from simulations.results.resumable import give_up, open_run

        with open_run(run) as unfinished:
            hide(unfinished.how.store)
            if address:
                from simulations.engine import cluster

                cluster.attach(address)
            said = give_up(unfinished)
        say(said)


@app.command("train-one")
def train_one(
    experiment: ExperimentArgument = "split-digits",
    set_: SetOption = None,
    seed: SeedOption = None,
    dense: DenseOption = False,
    download: DownloadOption = False,
    baseline: Annotated[bool, typer.Option("--baseline", help="Also train the dense twin, for its accuracy.")] = False,
    out: OutOption = Path("runs"),
    debug: DebugOption = False,
) -> None:
    """Train a single device that sees all data: the paper's own setting, without Flower or Ray. Interrupted, the same command goes on."""
    with one_message(debug):
        from simulations import preflight
        from simulations.config.run_name import run_name

        resolved = load_experiment(experiment, set_, seed=seed, dense=dense, baseline=baseline, alone=True)
        if download:
            preflight.expect(preflight.output_folder(out))
            fetch(resolved)
        preflight.expect(preflight.alone(resolved), preflight.experiment_files(resolved), preflight.output_folder(out))
        alone = replace(resolved, name=f"{resolved.name}-alone")
        announce(alone, "inline")
        _train_one(with_findings(alone), baseline, out, run_name(alone, set_ or []))


def _train_one(experiment: "Experiment", baseline: bool, out: Path, name: str) -> None:
    from simulations.checkpoints.lone_device import LonePoint, digest
    from simulations.config.experiment import dense_twin
    from simulations.fleet.profiles import load_profile
    from simulations.results.folder import new_folder
    from simulations.results.summary import percent
    from simulations.results.write import write_solo
    from simulations.single_device import train_one as train

    _, assumed = load_profile(experiment.profile)
    epochs = experiment.federation.task_epochs

    def observe(progress, accuracy) -> None:
        line = f"task {progress.task}  epoch {progress.epoch}/{epochs}  loss {progress.loss:.3f}"
        if accuracy is not None:
            line += "  Class-IL {}  Task-IL {}".format(*map(percent, accuracy[:, : progress.task + 1].mean(1)))
        say(line)

    parts = [experiment, *([dense_twin(experiment)] if baseline else [])]
    with ExitStack() as stack:
        points = [stack.enter_context(LonePoint(out / f".{part.name}.{digest(part)[:12]}", part)) for part in parts]
        folder, final = stack.enter_context(new_folder(out, name))
        try:
            results = [train(part, observe, point) for part, point in zip(parts, points, strict=True)]
        except KeyboardInterrupt as interrupt:
            interrupt.add_note("interrupted; the same command goes on behind the last session that was shown")
            raise
        summary = write_solo(folder, *results)
        for point in points:
            point.remove()
    show(summary, {experiment.profile: assumed}, final)
