"""One experiment from start to result, on either engine. Prints nothing: whoever calls passes an observer."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
import torch
from flwr.app import Context, RecordDict

from server.app import RoundRecord, make_server_app
from server.rounds.absence import ensure_anyone_came
from server.rounds.registration import enrol
from server.strategy import SparCLStrategy
from simulations.build import World, make_evaluator, make_roster, make_strategy
from simulations.checkpoints.checkpoint import Checkpoints
from simulations.checkpoints.round_log import Journal
from simulations.client_app import client_app
from simulations.engine.adapter import RUN_ID
from simulations.engine.grid import EngineGrid
from simulations.engine.inline import InlineGrid
from simulations.engine.store import StateStore
from sparcl_core.metrics import continual
from sparcl_core.metrics.continual import Scores

if TYPE_CHECKING:
    from simulations.engine.pool import Pool

EngineName = Literal["ray", "inline"]


class Observer(Protocol):
    """What a run tells while it goes on."""

    def round_done(self, record: RoundRecord) -> None: ...

    def device_done(self, device: int) -> None: ...

    def resumed(self, records: list[RoundRecord]) -> None:
        """The run goes on behind these rounds, of which `round_done` was told when they were played."""


class Silent:
    """An observer that does nothing."""

    def round_done(self, record: RoundRecord) -> None:
        pass

    def device_done(self, device: int) -> None:
        pass

    def resumed(self, records: list[RoundRecord]) -> None:
        pass


@dataclass(frozen=True)
class Keep:
    """Where a run is kept while it goes on: the server's side as checkpoints, the devices' states in a store of this run alone."""

    checkpoints: Checkpoints
    store: StateStore


@dataclass(frozen=True)
class Result:
    """What a run leaves behind.

    Attributes:
        world: experiment, data and streams.
        strategy: final model, masks and ledger.
        rounds: one record per round, round 0 the untrained model.
        accuracy: [2, T, T], Class-IL and Task-IL matrices, rows after each task.
        wall_s: seconds of the rounds, start-up not included.
        versions: of the software, one more whenever the run was resumed with others, see `Checkpoints`.
    """

    world: World
    strategy: SparCLStrategy
    rounds: list[RoundRecord]
    accuracy: np.ndarray
    engine: str
    workers: int
    wall_s: float
    versions: tuple[dict, ...] = ()

    def scores(self, row: int) -> Scores:
        """Figures of Class-IL (row 0) or Task-IL (row 1)."""
        return continual.scores(self.accuracy[row], self.rounds[0].accuracy[row])


def run_world(
    world: World,
    engine: EngineName = "ray",
    workers: int = 0,
    *,
    observer: Observer | None = None,
    keep: Keep | None = None,
    pool: "Pool | None" = None,
) -> Result:
    """Run an experiment, or go on with it where `keep` has a checkpoint.

    Args:
        engine: `ray`, or `inline` for one process.
        workers: Ray workers; 0 takes one per core. The result does not depend on it.
        keep: where the run is kept from round to round; without it, it cannot be resumed.
        pool: Ray workers that are already there; they stay.

    Raises:
        FleetError: if the run cannot go on, or nobody ever took part in it.
    """
    observer, strategy, rounds = observer or Silent(), make_strategy(world), world.experiment.rounds
    found = keep.checkpoints.load(keep.store.check) if keep else None
    records = [journal.record for journal in found.journals] if found else []
    wall_s = 0.0
    if found:
        found.restore(strategy)
        observer.resumed(records)
    if len(records) <= rounds and not strategy.federation.is_over:
        most = strategy.federation.exchange.most_bytes
        grid = make_grid(world, engine, workers, on_reply=observer.device_done, keep=keep, pool=pool, reply_limit_bytes=most)
        if found:
            try:
                grid.restore(found.journals[-1].exchange, [journal.changes for journal in found.journals])
            except BaseException:
                grid.close()
                raise
        observe = _observe(strategy, grid, records=records, observer=observer, keep=keep)
        workers = grid.num_workers
        wall_s = _play(world, strategy, grid, observe=observe, first_round=len(records))
    else:
        enrol(strategy.federation, make_roster(world.streams))  # nothing is played any more, but results speak of the fleet
    ensure_anyone_came(strategy.federation)
    versions = tuple(keep.checkpoints.versions) if keep else ()
    return Result(world, strategy, records, accuracy_matrix(records), engine, workers, wall_s, versions)


def accuracy_matrix(records: list[RoundRecord]) -> np.ndarray:
    """[2, T, T] from a run's rounds: row t is the accuracy when task t was over for the median device; the last row that of the end.

    Where tasks recur, their first time counts. A task that was never over (the clock ended the run) has the accuracy of the end.
    """
    tasks = records[0].accuracy.shape[1]
    ends = {record.task: record.accuracy for record in reversed(records) if record.ends_task}  # reversed: the first of a task stays
    last = next(record.accuracy for record in reversed(records) if record.accuracy is not None)
    reached = sorted(ends)
    rows = [next((ends[task] for task in reached if task >= number), last) for number in range(tasks - 1)]
    return np.stack([*rows, last], axis=1)


def _observe(
    strategy: SparCLStrategy, grid: EngineGrid, *, records: list[RoundRecord], observer: Observer, keep: Keep | None
) -> Callable[[RoundRecord], None]:
    """What is done at the end of a round: it is committed, and whoever watches is told."""

    def observe(record: RoundRecord) -> None:
        nonlocal mark
        records.append(record)
        if keep:
            rows, wall_times = strategy.ledger.since(mark)
            changes = grid.changes()
            grid.store.flush(changes)  # before a checkpoint counts on them
            journal = Journal(record, rows, wall_times, changes, grid.manifest.exchange)
            keep.checkpoints.save(record.round, strategy.snapshot(), journal)
            mark = strategy.ledger.mark()
        grid.commit()
        observer.round_done(record)

    mark = strategy.ledger.mark()
    return observe


def _play(world: World, strategy: SparCLStrategy, grid: EngineGrid, *, observe: Callable[[RoundRecord], None], first_round: int) -> float:
    """The rounds from `first_round`; closes `grid`. Returns wall-clock seconds."""
    app = make_server_app(
        lambda: strategy,
        rounds=world.experiment.rounds,
        evaluate_every=world.experiment.evaluate_every,
        evaluate=make_evaluator(world),
        observe=observe,
        roster=make_roster(world.streams),
        first_round=first_round,
        own_models=world.own_models,
    )
    threads, started = torch.get_num_threads(), time.perf_counter()
    torch.set_num_threads(1)  # so that the same bits come out on every engine
    try:
        app(grid, Context(RUN_ID, 0, {}, RecordDict(), {}))
    finally:
        grid.close()
        torch.set_num_threads(threads)
    return time.perf_counter() - started


def make_grid(
    world: World,
    engine: EngineName,
    workers: int,
    *,
    on_reply: Callable[[int], None],
    keep: Keep | None,
    pool: "Pool | None" = None,
    reply_limit_bytes: int | None = None,
) -> EngineGrid:
    """The engine, its workers already starting. Rounds are committed by the caller. `reply_limit_bytes`: what a reply can weigh."""
    devices = len(world.streams)
    common = {"on_reply": on_reply, "store": keep.store if keep else None, "waits_for_commit": True, "reply_limit_bytes": reply_limit_bytes}
    if engine == "inline":
        return InlineGrid(client_app, world.app_args, devices, **common)
    from simulations.engine.ray import RayGrid  # imported late: the inline engine needs no Ray

    return RayGrid(client_app, world.app_args, devices, workers=workers, pool=pool, **common)
