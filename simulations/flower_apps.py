"""The two apps as Flower's own commands load them: `flwr run .`, or SuperLink and SuperNodes on real machines.

Which experiment it is stands in the run config (`[tool.flwr.app.config]` in pyproject.toml); both apps build their parts from it,
once per process, when the first message or the run arrives. docs/flower.md has the commands, and what differs from `sparcl run`.
"""

import json
import logging
import time
import traceback
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from flwr.app import Context, Error, Message
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from server.app import RoundRecord, run_rounds
from server.errors import FleetError
from server.rounds.absence import ensure_anyone_came
from simulations.build import World, make_evaluator, make_strategy, make_world
from simulations.client_app import client_app as make_client_app
from simulations.config.loading import load
from simulations.config.sections import StreamConfig
from simulations.config.unread import Given, expect_read
from simulations.engine.adapter import APP_RAISED
from simulations.engine.boundary import reason_of
from simulations.results.summary import SCENARIOS, accuracy_so_far, percent, tasks_so_far
from simulations.run import accuracy_matrix
from sparcl_core.metrics.continual import scores

log = logging.getLogger("flwr")  # Flower shows what comes from here, on the console and in `flwr log`
POLL_S = 0.2

client_app = ClientApp()
server_app = ServerApp()


@client_app.query()
def describe(message: Message, context: Context) -> Message:
    return _answer(message, context)


@client_app.train()
def train(message: Message, context: Context) -> Message:
    return _answer(message, context)


@client_app.query("calibrate")
def calibrate(message: Message, context: Context) -> Message:
    return _answer(message, context)


@client_app.query("sensitivity")
def sensitivity(message: Message, context: Context) -> Message:
    return _answer(message, context)


@client_app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    return _answer(message, context)


@server_app.main()
def main(grid: Grid, context: Context) -> None:
    """Wait for the fleet, run all rounds, log the result, and write it if `out` names a file.

    Raises:
        FleetError: if there are fewer nodes than the experiment has devices.
    """
    name, settings = _names(context)
    world = _world(name, settings, finds_weights=True)
    experiment = world.experiment
    expect_read(experiment, Given.of(name, overrides(settings)))
    wait_for_devices(grid, experiment.stream.devices, float(context.run_config["patience-seconds"]))
    torch.set_num_threads(1)  # as on our own engines, so that the same bits come out
    strategy, records = make_strategy(world), []

    def observe(record: RoundRecord) -> None:
        records.append(record)
        log.info(_line(record, experiment.stream))

    rounds = {"rounds": experiment.rounds, "evaluate_every": experiment.evaluate_every}
    run_rounds(grid, strategy, **rounds, evaluate=make_evaluator(world), observe=observe, own_models=world.own_models)
    ensure_anyone_came(strategy.federation)
    result = {"experiment": experiment.name, "seed": experiment.seed, **_figures(records), "totals": strategy.ledger.totals()}
    log.info("result: %s", json.dumps(result["accuracy"]))
    if out := str(context.run_config["out"]):
        Path(out).expanduser().write_text(json.dumps(result, indent=2) + "\n")
        log.info("result written to %s", out)


def wait_for_devices(grid: Grid, devices: int, patience_s: float) -> None:
    """Wait until `devices` nodes are connected. Whether one of them is too many, they say themselves when they are registered.

    Raises:
        FleetError: if they are not within `patience_s`.
    """
    give_up = time.monotonic() + patience_s
    while (connected := len(list(grid.get_node_ids()))) < devices and time.monotonic() < give_up:
        time.sleep(POLL_S)
    if connected < devices:
        raise FleetError(
            f"stream.devices is {devices}, but {connected} SuperNodes are connected: start `flwr run` with "
            f"--federation-config 'num-supernodes={devices}', or set stream.devices={connected}"
        )


def overrides(text: str) -> list[str]:
    """`KEY=VALUE` settings of one string: parted by semicolons if it has any, else by spaces."""
    parts = text.split(";") if ";" in text else text.split()
    return [part.strip() for part in parts if part.strip()]


def _answer(message: Message, context: Context) -> Message:
    """The ClientApp's, or an error whose reason is the one of our own engines; Flower's would be its class around text of any length."""
    try:
        return _client(*_names(context))(message, context)
    except Exception as error:
        reason = reason_of(error, f"node {context.node_id}")
        log.error("%s\n%s", reason, "".join(traceback.format_tb(error.__traceback__)))  # the error's own text is bounded in the reason
        return Message(Error(APP_RAISED, reason), reply_to=message)


def _names(context: Context) -> tuple[str, str]:
    return str(context.run_config["experiment"]), str(context.run_config["set"])


@lru_cache(maxsize=1)
def _world(experiment: str, settings: str, finds_weights: bool) -> World:
    return make_world(load(experiment, overrides(settings), finds_weights=finds_weights))


@lru_cache(maxsize=1)
def _client(experiment: str, settings: str) -> ClientApp:
    return make_client_app(*_world(experiment, settings, finds_weights=False).app_args)


def _line(record: RoundRecord, stream: StreamConfig) -> str:
    """One round as it is logged; accuracy over the tasks seen so far."""
    line = f"round {record.round}, task {record.task}: {record.num_devices} devices, {record.num_samples} samples"
    if record.accuracy is None:
        return line
    class_il, task_il = accuracy_so_far(record, tasks_so_far(stream, record.task) or stream.tasks)
    return f"{line}, Class-IL {percent(class_il)}, Task-IL {percent(task_il)}"


def _known(matrix: np.ndarray) -> list[list[float | None]]:
    """As JSON has it; None where there is no accuracy."""
    return [[None if np.isnan(value) else value for value in line] for line in matrix.tolist()]


def _figures(records: list[RoundRecord]) -> dict:
    """Accuracy matrices and their figures, per scenario."""
    accuracy = accuracy_matrix(records)
    figures = {}
    for row, name in enumerate(SCENARIOS):
        found = scores(accuracy[row], records[0].accuracy[row])
        figures[name] = {key: None if np.isnan(value) else value for key, value in vars(found).items()}
    return {"accuracy": figures, "matrices": {name: _known(accuracy[row]) for row, name in enumerate(figures)}}
