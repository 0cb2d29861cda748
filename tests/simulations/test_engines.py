"""Inline, one worker, two workers: the same bits. Workers that die cost time and nothing else. Foreign Flower apps run unchanged.

All tests that need Ray are in this file and share one Ray: starting it takes about ten seconds.
"""

import logging
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import ray
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg

from client.app import make_client_app
from client.stream import Stream
from simulations.engine.adapter import RUN_ID, EngineError, identify_process
from simulations.engine.inline import InlineGrid
from simulations.engine.ray import RayGrid, start_ray
from simulations.run import run_world
from worlds import assert_same_arrays, play, tiny_world


@pytest.fixture(scope="module")
def two_cores():
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import a test file
    start_ray(2)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def world():
    return tiny_world()


# -- the same bits


@pytest.fixture(scope="module")
def on_inline(world):
    return run_world(world, "inline")


@pytest.mark.parametrize("workers", [1, 2])
def test_the_result_does_not_depend_on_the_engine(world, on_inline, two_cores, workers):
    result = run_world(world, "ray", workers)
    assert_same_arrays(result.strategy.weights, on_inline.strategy.weights)
    assert_same_arrays(result.strategy.masks, on_inline.strategy.masks)
    assert result.strategy.ledger.rows == on_inline.strategy.ledger.rows
    assert result.accuracy.tobytes() == on_inline.accuracy.tobytes()
    for record, other in zip(result.rounds, on_inline.rounds, strict=True):
        assert vars(record) | {"accuracy": record.accuracy.tolist()} == vars(other) | {"accuracy": other.accuracy.tolist()}
    assert (result.workers, result.engine) == (workers, "ray")


def mortal_app(lives: str, config, x, y, samples, classes) -> ClientApp:
    """The SparCL app in a process that dies under device 1 as long as the file `lives` says so."""

    def stream_of(device: int) -> Stream:
        left = int(Path(lives).read_text())
        if device == 1 and left:
            Path(lives).write_text(str(left - 1))
            os.kill(os.getpid(), signal.SIGKILL)
        return Stream(x, y, samples[device], classes)

    return make_client_app(config, stream_of)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_worker_that_dies_in_a_round_changes_nothing(world, on_inline, two_cores, workers, tmp_path, caplog):
    lives = tmp_path / "lives"
    lives.write_text("0")

    def observe(record, strategy):
        if record.round == 2:
            lives.write_text("1")  # the process that trains device 1 in round 3 is killed

    grid = RayGrid(mortal_app, (str(lives), *world.app_args), 3, workers)
    try:
        with caplog.at_level(logging.WARNING):
            strategy = play(world, grid, observe)
    finally:
        grid.close()
    assert lives.read_text() == "0"  # it did die
    assert [record.getMessage() for record in caplog.records] == ["the worker of device 1 was lost; its round is tried again"]
    assert_same_arrays(strategy.weights, on_inline.strategy.weights)
    assert_same_arrays(strategy.masks, on_inline.strategy.masks)
    assert strategy.ledger.rows == on_inline.strategy.ledger.rows


# -- a small app of our own, on both engines


def counting_app() -> ClientApp:
    """Counts the messages of a device in its state, and then does what it is told."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        count = context.state["count"]["n"] + 1 if "count" in context.state else 1
        context.state["count"] = ConfigRecord({"n": count})
        order = message.content["order"]["do"]
        if order == "raise":
            raise ValueError("told to")
        if order == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if order == "dawdle":
            time.sleep(0.2)
        answer = {"count": count, "device": context.node_config["partition-id"], "of": context.node_config["num-partitions"]}
        return Message(RecordDict({"answer": ConfigRecord(answer)}), reply_to=message)

    return app


@pytest.fixture(params=["inline", "ray"])
def make_grid(request):
    """Grids of an engine, closed at the end."""
    grids = []

    def make(make_app, args=(), devices=4, **kwargs):
        if request.param == "inline":
            grids.append(InlineGrid(make_app, args, devices, **kwargs))
        else:
            request.getfixturevalue("two_cores")
            grids.append(RayGrid(make_app, args, devices, workers=2, **kwargs))
        return grids[-1]

    yield make
    for grid in grids:
        grid.close()


def orders(*what: str) -> list[Message]:
    return [
        Message(RecordDict({"order": ConfigRecord({"do": order})}), node, "train", group_id="1") for node, order in enumerate(what, start=1)
    ]


def answers(replies) -> dict[int, dict | str]:
    """Node id -> the answer, or the reason of an error."""
    return {
        reply.metadata.src_node_id: reply.error.reason if reply.has_error() else dict(reply.content["answer"]) for reply in replies
    }


def test_every_device_has_its_own_number_and_state(make_grid):
    heard = []
    grid = make_grid(counting_app, on_reply=heard.append)
    assert list(grid.get_node_ids()) == [1, 2, 3, 4]
    grid.send_and_receive(orders("", "", ""))
    replies = answers(grid.send_and_receive(orders("", "", "", "")))
    assert replies == {node: {"count": 2 if node < 4 else 1, "device": node - 1, "of": 4} for node in (1, 2, 3, 4)}
    assert sorted(heard) == [0, 0, 1, 1, 2, 2, 3]


def test_a_failure_is_a_reply_and_leaves_the_state_as_it_was(make_grid):
    grid = make_grid(counting_app)
    grid.send_and_receive(orders("", ""))
    replies = answers(grid.send_and_receive(orders("raise", "")))
    assert replies[1] == "told to" and replies[2]["count"] == 2
    assert {node: answer["count"] for node, answer in answers(grid.send_and_receive(orders("", ""))).items()} == {1: 2, 2: 3}


def test_replies_can_be_pushed_and_pulled(make_grid):
    """Ids come back in the order of the messages, whatever finished first; a reply is handed out once."""
    grid = make_grid(counting_app)
    first, second, third = grid.push_messages(orders("dawdle", "", ""))
    assert list(answers(grid.pull_messages([first]))) == [1]
    assert list(answers(grid.pull_messages([third, second]))) == [3, 2]
    assert list(grid.pull_messages([first, second, third])) == []


def test_a_message_for_nobody_is_refused(make_grid):
    with pytest.raises(ValueError, match="message for node 5: there are nodes 1 to 4"):
        make_grid(counting_app).send_and_receive(orders("", "", "", "", ""))


def test_a_device_that_kills_every_worker_fails_alone(two_cores, caplog):
    grid = RayGrid(counting_app, (), 4, workers=2)
    try:
        grid.send_and_receive(orders("", "", "", ""))
        with caplog.at_level(logging.WARNING):
            replies = answers(grid.send_and_receive(orders("", "die", "", "")))
        assert replies.pop(2).startswith("device 1, stage worker: lost its worker 3 times")
        assert {node: answer["count"] for node, answer in replies.items()} == {1: 2, 3: 2, 4: 2}
        assert len(caplog.records) == 2  # tried three times, so tried again twice
        assert answers(grid.send_and_receive(orders("", "")))[2]["count"] == 2  # with the state that it had
    finally:
        grid.close()


def broken_app() -> ClientApp:
    raise ModuleNotFoundError("No module named 'sensor'")


def test_an_app_that_cannot_be_made_ends_the_run_at_once(two_cores):
    identify_process()
    grid = RayGrid(broken_app, (), 4, workers=2)
    try:
        with pytest.raises(EngineError, match="a worker cannot start: (?s:.*)No module named 'sensor'"):
            grid.send_and_receive(orders("", ""))
    finally:
        grid.close()


def test_at_least_one_worker_is_needed():
    with pytest.raises(EngineError, match="workers is 0"):
        RayGrid(counting_app, (), 4, workers=0)


# -- an ordinary Flower app, as its quickstarts write them: it knows nothing of SparCL


def private_data(partition: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(partition)
    x = rng.standard_normal((10 + partition, 3))
    return x, x @ np.array([1.0, -2.0, 3.0])


def descend(w: np.ndarray, partition: int, lr: float) -> np.ndarray:
    x, y = private_data(partition)
    for _ in range(5):
        w = w - lr * x.T @ (x @ w - y) / len(y)
    return w


def quickstart_client() -> ClientApp:
    app = ClientApp()

    @app.train()
    def train(msg: Message, context: Context) -> Message:
        partition = context.node_config["partition-id"]
        (w,) = msg.content["arrays"].to_numpy_ndarrays()
        w = descend(w, partition, context.run_config["learning-rate"])
        metrics = MetricRecord({"num-examples": len(private_data(partition)[1]), "norm": float(np.linalg.norm(w))})
        return Message(content=RecordDict({"arrays": ArrayRecord([w]), "metrics": metrics}), reply_to=msg)

    @app.evaluate()
    def evaluate(msg: Message, context: Context) -> Message:
        x, y = private_data(context.node_config["partition-id"])
        (w,) = msg.content["arrays"].to_numpy_ndarrays()
        metrics = MetricRecord({"num-examples": len(y), "loss": float(np.mean((x @ w - y) ** 2))})
        return Message(content=RecordDict({"metrics": metrics}), reply_to=msg)

    return app


def test_an_ordinary_flower_app_runs_unchanged(make_grid):
    """Two rounds of Flower's own FedAvg over four nodes, against the same by hand."""
    app, results = ServerApp(), []

    @app.main()
    def main(grid, context: Context) -> None:
        strategy = FedAvg(fraction_train=1.0, fraction_evaluate=1.0)
        results.append(strategy.start(grid=grid, initial_arrays=ArrayRecord([np.zeros(3)]), num_rounds=2))

    app(make_grid(quickstart_client, run_config={"learning-rate": 0.1}), Context(RUN_ID, 0, {}, RecordDict(), {}))

    w, counts = np.zeros(3), [10, 11, 12, 13]
    for _ in range(2):
        w = sum(n * descend(w, partition, 0.1) for partition, n in enumerate(counts)) / sum(counts)
    (trained,) = results[0].arrays.to_numpy_ndarrays()
    assert np.allclose(trained, w, rtol=1e-12)
    loss = sum(np.sum((x @ w - y) ** 2) for x, y in map(private_data, range(4))) / sum(counts)
    assert results[0].evaluate_metrics_clientapp[2]["loss"] == pytest.approx(loss)
    assert np.linalg.norm(w - [1, -2, 3]) < 2  # from 3.7: it learns
