"""A run between the command that asks for it and its results: what was asked is looked up, workers started, the result written and shown.

What takes long to import is imported where it is needed: Ray's processes start while this one imports PyTorch.
"""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from simulations.cli.messages import complain, console, say
from simulations.cli.options import Workers

if TYPE_CHECKING:
    from simulations.cli.signals import Stops
    from simulations.config.experiment import Experiment
    from simulations.engine.pool import Pool
    from simulations.results.resumable import Unfinished
    from simulations.run import Result


def load_experiment(
    experiment: str, overrides: list[str] | None, *, seed: int | None, dense: bool, baseline: bool, alone: bool = False
) -> "Experiment":
    from simulations.config.errors import ConfigError
    from simulations.config.experiment import dense_twin
    from simulations.config.loading import load
    from simulations.config.unread import Given, expect_read

    if dense and baseline:
        raise ConfigError("--dense runs the dense twin alone, and --baseline runs it beside the experiment: leave one out")
    resolved = load(experiment, [*(overrides or []), *([] if seed is None else [f"seed={seed}"])])
    expect_read(resolved, Given.of(experiment, overrides or []), alone=alone)
    if not (dense or baseline):
        return resolved
    try:
        twin = dense_twin(resolved)
    except ValueError as error:
        raise ConfigError(f"--{'dense' if dense else 'baseline'}: {error}") from error
    return twin if dense else resolved


def fetch(experiment: "Experiment") -> None:
    """`--download`: the only thing that ever goes to the network."""
    from simulations.data.download import download

    download(experiment.data, say)


def announce(experiment: "Experiment", engine: str) -> None:
    """The first line, before what takes seconds: that all is well so far, and what is going on."""
    from simulations.config.experiment import left_on

    say(f"{experiment.name}: starting {'Ray and ' if engine == 'ray' else ''}PyTorch")
    if parts := left_on(experiment):
        say(f"sparsity is 0, but {' and '.join(parts)} stay on; --dense runs the dense twin")


def with_findings(experiment: "Experiment") -> "Experiment":
    """With what a run finds when it starts, and is resumed with: the digest of its data, and which layers run on kernels."""
    from simulations.build import bind_data, choose_kernels
    from sparcl_core.kernels.build import backend

    chosen = choose_kernels(bind_data(experiment), tell=say)
    wants = experiment.sparsity and experiment.kernels.mode != "dense" and os.environ.get("SPARCL_KERNELS") != "dense"
    if wants and backend().library is None:
        complain(f"warning: masks act on dense tensors, which saves no time: {backend().reason}")
    return chosen


@contextmanager
def worker_pool(engine: str, options: Workers, stops: "Stops") -> Iterator["Pool | None"]:
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


def carry_out(run: "Unfinished", pool: "Pool | None") -> None:
    from simulations.config.experiment import dense_twin
    from simulations.results.plot import draw_report
    from simulations.results.write import write_run

    if run.is_whole:  # it was stopped while it cleaned up
        run.finish()
        say(f"run folder: {run.folder}")
        return
    experiment, baseline = run.experiment, run.how.baseline
    result = _watch(run, "run", experiment, pool=pool, title=experiment.name)
    twin = _twin(run, dense_twin(experiment), pool) if baseline else None
    summary = write_run(run.folder, result, twin)
    draw_report(run.folder)
    run.finish()
    show(summary, result.world.fleet.assumed, run.folder)


def _twin(run: "Unfinished", experiment: "Experiment", pool: "Pool | None") -> "Result | None":
    """The dense twin, or a word on why it cannot be run: it may be too large for every device, or too slow for the deadline."""
    from server.errors import FleetError

    try:
        return _watch(run, "twin", experiment, pool=pool, title="dense twin")
    except FleetError as error:
        complain(f"the dense twin cannot be run: {error}")
        return None


def show(summary: dict, assumed: dict[str, list[str]], folder: Path) -> None:
    from simulations.results.console import bytes_by_kind, final_table, footnote, problems

    console.print(final_table(summary, console.width))
    if went_wrong := problems(summary):
        console.print(went_wrong, markup=False)
    if made_of := bytes_by_kind(summary):
        console.print(made_of)
    console.print(footnote(summary, assumed))
    say(f"run folder: {folder}")


def _watch(run: "Unfinished", part: str, experiment: "Experiment", *, pool: "Pool | None", title: str) -> "Result":
    from simulations.build import make_world
    from simulations.results.console import View
    from simulations.run import run_world

    federation, world = experiment.federation, make_world(experiment)
    devices = min(federation.cohort_size or experiment.stream.devices, experiment.stream.devices)
    with View(console, title, rounds=experiment.rounds, devices=devices, stream=experiment.stream) as view:
        return run_world(world, run.how.engine, observer=view, keep=run.keep(part), pool=pool)
