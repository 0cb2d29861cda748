"""`sparcl reproduce`: a published table of ours, from one command. Rows x seeds, paired with a reference.

The runs of a claim (`simulations.tables.claim_file`) are spread over processes, each on the inline engine, whose bits are those of every
other engine. Runs that are over are kept in a folder of the claim until all are, and a single device's run is kept while it goes on: the
same command goes on where it was.
"""

import json
import multiprocessing
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path

from simulations import disk
from simulations.config.errors import ConfigError
from simulations.config.experiment import Experiment
from simulations.config.loading import config_bytes, load
from simulations.environment import software
from simulations.tables.claim_file import Claim


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
