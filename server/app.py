"""The Flower ServerApp and the round loop.

`run_rounds` is the whole experiment as seen by the server: one visible loop, each arrow one call.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from server.fleet.roster import Roster
from server.global_model.masks import Diversity
from server.rounds.evaluation import Evaluate, Evaluation, OwnModels, evaluate_devices
from server.rounds.federation import Counts, Federation, Talk
from server.rounds.first_masks import find_masks
from server.rounds.recalibration import recalibrate
from server.rounds.registration import enrol, register
from server.strategy import SparCLStrategy


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
        own: of devices' own models, where it is these that were evaluated.
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
    own: OwnModels | None = None


def run_rounds(
    grid: Grid,
    strategy: SparCLStrategy,
    *,
    rounds: int,
    evaluate_every: int,
    evaluate: Evaluate,
    observe: Callable[[RoundRecord], None],
    roster: Roster | None = None,
    first_round: int = 0,
    own_models: int | None = None,
) -> None:
    """All rounds, or as many as there are before the virtual clock ends the run.

    Args:
        evaluate: called with the global model at the end of every task, every `evaluate_every` rounds (0: never else), and at the end.
        observe: told of every round when it is over; of round 0, the untrained model, first.
        roster: the fleet, where it is known, as in a simulation; without it every node is asked who it is.
        first_round: 0, the evaluation of the untrained model; or the round behind the one that `strategy` was restored at.
        own_models: evaluate those of so many devices instead, as soon as any has trained (`server.rounds.evaluation`); 0: of all.
    """
    federation, played, talk = strategy.federation, strategy.rounds, talk_over(grid)
    if roster is None:
        register(federation, grid)
    else:
        enrol(federation, roster)
    if first_round == 0:
        observe(untrained(federation, _of_the_server(federation, evaluate)))
    for server_round in range(max(first_round, 1), rounds + 1):
        if federation.is_over:
            return
        find_masks(federation, server_round, talk)
        task = federation.usual_task(server_round)
        counts = played.play(server_round, talk)
        is_last = federation.is_over or server_round == rounds
        if is_last:
            played.close()
        give_back(federation, grid)
        ends_task = is_last or federation.usual_task(server_round + 1) > max(task, 0)
        is_due = ends_task or (evaluate_every > 0 and server_round % evaluate_every == 0)
        if is_due:
            recalibrate(federation, server_round, talk, counts.reached)
        found = evaluate_devices(federation, server_round, talk, own_models) if is_due and own_models is not None else None
        if is_due and found is None:
            found = _of_the_server(federation, evaluate)
        observe(finished(federation, server_round, task, counts, ends_task=ends_task, found=found))


def _of_the_server(federation: Federation, evaluate: Evaluate) -> Evaluation:
    """Accuracy of the global model."""
    model = federation.model
    return evaluate(model.weights, model.owners, model.beside.of_method)


def talk_over(grid: Grid) -> Talk:
    """Messages to replies; those of our own engines come one by one, so that they are decoded while others are still being trained."""
    return getattr(grid, "stream", grid.send_and_receive)


def give_back(federation: Federation, grid: Grid) -> None:
    """Devices that were cut short have what they had before; where nobody can give it back to them, they are sent the whole model."""
    undo = getattr(grid, "undo", federation.exchange.forget)
    for device in federation.undone:
        undo(device)
        federation.exchange.told.pop(device, None)  # what it was sent beside the model went with its state
    federation.undone.clear()


def untrained(federation: Federation, found: Evaluation) -> RoundRecord:
    """Round 0."""
    return finished(federation, 0, -1, Counts(0, 0), ends_task=False, found=found)


def finished(
    federation: Federation, server_round: int, task: int, counts: Counts, *, ends_task: bool, found: Evaluation | None
) -> RoundRecord:
    """The record of a round that is over; `found`: of its model, where it was evaluated."""
    return RoundRecord(
        round=server_round,
        task=task,
        ends_task=ends_task,
        num_devices=counts.num_devices,
        num_samples=counts.num_samples,
        accuracy=found.accuracy if found else None,
        diversity=federation.model.diversity,
        by_class=found.by_class if found else None,
        time=federation.now,
        own=found.own if found else None,
    )


def make_server_app(make_strategy: Callable[[], SparCLStrategy], **loop) -> ServerApp:
    """A ServerApp that runs `run_rounds`; `loop`: its remaining arguments."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        run_rounds(grid, make_strategy(), **loop)

    return app
