"""One experiment from start to result, on either engine. Prints nothing: whoever calls passes an observer."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch
from flwr.app import Context, RecordDict

from server.app import RoundRecord, make_server_app
from server.strategy import SparCLStrategy
from simulations.build import World, client_app, make_evaluator, make_strategy
from simulations.engine.adapter import RUN_ID, EngineGrid
from simulations.engine.inline import InlineGrid
from sparcl_core import metrics
from sparcl_core.metrics import Scores

EngineName = Literal["ray", "inline"]


class Observer(Protocol):
    """What a run tells while it goes on."""

    def round_done(self, record: RoundRecord) -> None: ...

    def device_done(self, device: int) -> None: ...


class Silent:
    """An observer that does nothing."""

    def round_done(self, record: RoundRecord) -> None:
        pass

    def device_done(self, device: int) -> None:
        pass


@dataclass(frozen=True)
class Result:
    """What a run leaves behind.

    Attributes:
        world: experiment, data and streams.
        strategy: final model, masks and ledger.
        rounds: one record per round, round 0 the untrained model.
        accuracy: [2, T, T], Class-IL and Task-IL matrices, rows after each task.
        wall_s: seconds of the rounds, start-up not included.
    """

    world: World
    strategy: SparCLStrategy
    rounds: list[RoundRecord]
    accuracy: np.ndarray
    engine: str
    workers: int
    wall_s: float

    def scores(self, row: int) -> Scores:
        """Figures of Class-IL (row 0) or Task-IL (row 1)."""
        return metrics.scores(self.accuracy[row], self.rounds[0].accuracy[row])


def run_world(world: World, engine: EngineName = "ray", workers: int = 0, observer: Observer | None = None) -> Result:
    """Run an experiment.

    Args:
        engine: `ray`, or `inline` for one process.
        workers: Ray workers; 0 takes one per core. The result does not depend on it.
    """
    observer = observer or Silent()
    workers = 1 if engine == "inline" else workers or os.cpu_count()
    grid = make_grid(world, engine, workers, observer.device_done)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # so that the same bits come out on every engine
    strategy, records = make_strategy(world), []

    def observe(record: RoundRecord) -> None:
        records.append(record)
        observer.round_done(record)

    tasks = world.experiment.stream.tasks
    app = make_server_app(
        lambda: strategy,
        num_tasks=tasks,
        evaluate_every=world.experiment.evaluate_every,
        evaluate=make_evaluator(world),
        observe=observe,
    )
    started = time.perf_counter()
    try:
        app(grid, Context(RUN_ID, 0, {}, RecordDict(), {}))
    finally:
        grid.close()
        torch.set_num_threads(threads)
    wall_s = time.perf_counter() - started
    accuracy = np.stack([record.accuracy for record in records if record.ends_task], axis=1)
    return Result(world, strategy, records, accuracy, engine, workers, wall_s)


def make_grid(world: World, engine: EngineName, workers: int, on_reply: Callable[[int], None]) -> EngineGrid:
    """The engine, its workers already starting."""
    devices = len(world.streams)
    if engine == "inline":
        return InlineGrid(client_app, world.app_args, devices, on_reply=on_reply)
    from simulations.engine.ray import RayGrid  # imported late: the inline engine needs no Ray

    return RayGrid(client_app, world.app_args, devices, workers, on_reply=on_reply)
