"""The Flower ServerApp and the round loop.

`run_rounds` is the whole experiment as seen by the server: one visible loop, each arrow one call.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord
from flwr.serverapp import Grid, ServerApp

from server.fleet.roster import Roster
from server.global_model.masks import Diversity
from server.strategy import SparCLStrategy
from sparcl_core.sparsity.masks import State


@dataclass(frozen=True)
class Evaluation:
    """accuracy: [2, T], Class-IL and Task-IL per task. by_class: [2, T, C], the same per true class; NaN where there is no test sample."""

    accuracy: np.ndarray
    by_class: np.ndarray


@dataclass(frozen=True)
class RoundRecord:
    """One finished round.

    Attributes:
        round: from 1; 0 is the untrained model.
        task: that of its stream that the median device was at; -1 for round 0.
        ends_task: it was over with this round, so its accuracy is a row of the accuracy matrix.
        num_devices, num_samples: whose updates were averaged, and the samples behind them.
        accuracy, by_class: see `Evaluation`; None where this round was not evaluated.
        diversity: of the devices' masks; None without masks.
        time: virtual second at which it was over.
    """

    round: int
    task: int
    ends_task: bool
    num_devices: int
    num_samples: int
    accuracy: np.ndarray | None
    diversity: Diversity | None = None
    by_class: np.ndarray | None = None
    time: float = 0.0


def run_rounds(
    grid: Grid,
    strategy: SparCLStrategy,
    rounds: int,
    evaluate_every: int,
    evaluate: Callable[[State], Evaluation],
    observe: Callable[[RoundRecord], None],
    roster: Roster | None = None,
    first_round: int = 0,
) -> None:
    """All rounds, or as many as there are before the virtual clock ends the run.

    Args:
        evaluate: called with the global model at the end of every task, every `evaluate_every` rounds (0: never else), and at the end.
        observe: told of every round when it is over; of round 0, the untrained model, first.
        roster: the fleet, where it is known, as in a simulation; without it every node is asked who it is.
        first_round: 0, the evaluation of the untrained model; or the round behind the one that `strategy` was restored at.
    """
    if roster is None:
        strategy.register(grid)
    else:
        strategy.enrol(roster)
    if first_round == 0:
        found = evaluate(strategy.weights)
        observe(RoundRecord(0, -1, False, 0, 0, found.accuracy, by_class=found.by_class, time=strategy.now))
    for server_round in range(max(first_round, 1), rounds + 1):
        if strategy.is_over:
            return
        task = strategy.attendance.usual_task(server_round, strategy.now)
        metrics = _play(grid, strategy, server_round)
        is_last = strategy.is_over or server_round == rounds
        if is_last and strategy.buffered:
            strategy.buffered.settle_rest()
        _undo(grid, strategy)
        ends_task = is_last or strategy.attendance.usual_task(server_round + 1, strategy.now) > max(task, 0)
        is_due = ends_task or (evaluate_every > 0 and server_round % evaluate_every == 0)
        if is_due and strategy.recomputes_statistics:
            strategy.aggregate_calibrate(server_round, _exchange(grid, strategy.configure_calibrate(server_round)))
        found = evaluate(strategy.weights) if is_due else None
        counts = (metrics["num-devices"], metrics["num-examples"])
        accuracy, by_class = (found.accuracy, found.by_class) if found else (None, None)
        observe(RoundRecord(server_round, task, ends_task, *counts, accuracy, strategy.diversity, by_class, strategy.now))


def _play(grid: Grid, strategy: SparCLStrategy, server_round: int) -> MetricRecord:
    """One round of training. Returns its counts."""
    if strategy.buffered:
        return strategy.buffered.play(server_round, lambda messages: _exchange(grid, messages))
    messages = strategy.configure_train(server_round, ArrayRecord(), ConfigRecord(), grid)
    _, metrics = strategy.aggregate_train(server_round, _exchange(grid, messages))
    return metrics


def _undo(grid: Grid, strategy: SparCLStrategy) -> None:
    """Devices that were cut short have what they had before; where nobody can give it back to them, they are sent the whole model."""
    for device in strategy.undone:
        if hasattr(grid, "undo"):
            grid.undo(device)
        else:
            strategy.exchange.held[device] = 0
    strategy.undone.clear()


def _exchange(grid: Grid, messages: Iterable[Message]) -> Iterable[Message]:
    """The replies; from our own engines one by one, so that they are decoded while others are still being trained."""
    return getattr(grid, "stream", grid.send_and_receive)(messages)


def make_server_app(make_strategy: Callable[[], SparCLStrategy], **loop) -> ServerApp:
    """A ServerApp that runs `run_rounds`; `loop`: its remaining arguments."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        run_rounds(grid, make_strategy(), **loop)

    return app
