"""The Flower ServerApp and the round loop.

`run_rounds` is the whole experiment as seen by the server: one visible loop, each arrow one call.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, Message
from flwr.serverapp import Grid, ServerApp

from server.fleet import Roster
from server.masking import Diversity
from server.strategy import SparCLStrategy
from sparcl_core.masks import State


@dataclass(frozen=True)
class RoundRecord:
    """One finished round. accuracy: [2, T] Class-IL and Task-IL per task, or None where this round was not evaluated.

    ends_task: the round was the last of its task, so its accuracy is a row of the accuracy matrix. diversity: of the devices' masks;
    None without masks.
    """

    round: int
    task: int
    ends_task: bool
    num_devices: int
    num_samples: int
    accuracy: np.ndarray | None
    diversity: Diversity | None = None


def run_rounds(
    grid: Grid,
    strategy: SparCLStrategy,
    num_tasks: int,
    evaluate_every: int,
    evaluate: Callable[[State], np.ndarray],
    observe: Callable[[RoundRecord], None],
    roster: Roster | None = None,
    first_round: int = 0,
) -> None:
    """All rounds of all tasks.

    Args:
        evaluate: global model -> accuracy [2, T]; called at the end of every task and every `evaluate_every` rounds (0: never else).
        observe: told of every round when it is over; of round 0, the untrained model, first.
        roster: the fleet, where it is known, as in a simulation; without it every node is asked who it is.
        first_round: 0, the evaluation of the untrained model; or the round behind the one that `strategy` was restored at.
    """
    if roster is None:
        strategy.register(grid)
    else:
        strategy.enrol(roster)
    if first_round == 0:
        observe(RoundRecord(0, -1, False, 0, 0, evaluate(strategy.weights)))
    rounds_per_task = strategy.federation.rounds_per_task
    for server_round in range(max(first_round, 1), num_tasks * rounds_per_task + 1):
        task, session = strategy.position(server_round)
        messages = strategy.configure_train(server_round, ArrayRecord(), ConfigRecord(), grid)
        replies = _exchange(grid, messages)
        _, metrics = strategy.aggregate_train(server_round, replies)
        ends_task = session == rounds_per_task - 1
        is_due = ends_task or (evaluate_every > 0 and server_round % evaluate_every == 0)
        if is_due and strategy.recomputes_statistics:
            strategy.aggregate_calibrate(server_round, _exchange(grid, strategy.configure_calibrate(server_round)))
        accuracy = evaluate(strategy.weights) if is_due else None
        observe(RoundRecord(server_round, task, ends_task, metrics["num-devices"], metrics["num-examples"], accuracy, strategy.diversity))


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
