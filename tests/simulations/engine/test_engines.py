"""Inline, one, two or four workers: the same bits. Workers that die, hang or lack memory cost time and nothing else.

Most tests that need a Ray are in this file and share one, and two workers where they are not about how workers begin or end: both are
slow to start. Clusters are in test_cluster.py. Foreign Flower apps run unchanged.
"""

import contextlib
import logging
import os
import signal
import sys
import time
from pathlib import Path

import hostile
import numpy as np
import pytest
import ray
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg
from worlds import TINY, assert_same_arrays, play, tiny_world, toy_fleet

import sparcl
from client.app import make_client_app
from client.streams.stream import Stream
from simulations.engine import cluster
from simulations.engine import ray as engine
from simulations.engine.adapter import RUN_ID, EngineError, identify_process
from simulations.engine.files import LocalFiles
from simulations.engine.inline import InlineGrid
from simulations.engine.pool import EngineOptions, Pool
from simulations.engine.ray import RayGrid
from simulations.engine.store import StateStore
from simulations.run import run_world

pytestmark = pytest.mark.ray
LOG_BYTES = 100_000


@pytest.fixture(scope="module")
def six_cores(tmp_path_factory):
    """Ray with six CPUs, four beside `pool`; started in a folder that has a `client` of its own, as many projects do: workers must not
    import that."""
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import a test file
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "client").mkdir()
    (elsewhere / "client" / "__init__.py").write_text("raise RuntimeError('this is not the client')")
    ray.cloudpickle.register_pickle_by_value(hostile)
    os.environ["RAY_ROTATION_MAX_BYTES"] = str(LOG_BYTES)
    with contextlib.chdir(elsewhere):
        cluster.start_ray(6)
        assert Path.cwd() == elsewhere
    yield
    del os.environ["RAY_ROTATION_MAX_BYTES"]
    cluster.stop_ray()


@pytest.fixture(scope="module")
def pool(six_cores):
    """Two workers that go from test to test."""
    opened = Pool(EngineOptions(workers=2))
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def world():
    return tiny_world()


# -- the same bits


@pytest.fixture(scope="module")
def on_inline(world):
    return run_world(world, "inline")


def plain(record) -> dict:
    """Arrays as their bits: a class without test samples in a task has a NaN."""
    return vars(record) | {"accuracy": record.accuracy.tobytes(), "by_class": record.by_class.tobytes()}


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_the_result_does_not_depend_on_the_engine(world, on_inline, pool, workers):
    result = run_world(world, "ray", workers, pool=pool if workers == 2 else None)
    assert_same_arrays(result.strategy.weights, on_inline.strategy.weights)
    assert_same_arrays(result.strategy.masks, on_inline.strategy.masks)
    assert result.strategy.ledger.rows == on_inline.strategy.ledger.rows
    assert result.accuracy.tobytes() == on_inline.accuracy.tobytes()
    for record, other in zip(result.rounds, on_inline.rounds, strict=True):
        assert plain(record) == plain(other)
    assert (result.workers, result.engine) == (workers, "ray")


def test_nor_on_how_a_script_starts_it(on_inline, six_cores):
    """And the Ray that was there stays."""
    result = sparcl.run(str(TINY), workers=2)
    assert (result.engine, result.workers) == ("ray", 2) and ray.is_initialized()
    assert_same_arrays(result.strategy.weights, on_inline.strategy.weights)


@pytest.mark.parametrize(
    "overrides",
    [
        ("federation.mask=local", "server_optimizer.name=momentum"),
        ("wire.importance=votes", "wire.up_share=0.3"),
        ("masks.initial=snip", "masks.scheme=rigl", "masks.stage_epochs=1"),
        ("federation.correction=scaffold", "learner.method=fedspace", "dgm.enabled=false", "evaluate_on=devices", "evaluate_devices=2"),
        ("learner.method=packnet", "masks.scheme=packnet", "stream.setting=task-il", "sparsity=0.5", "stream.tasks=2"),
        ("learner.method=lps", "masks.scheme=packnet", "stream.setting=task-il", "sparsity=0.5", "stream.tasks=2", "learner.admm_from=0"),
    ],
    ids=["local", "votes", "snip, rigl", "beside the model", "weights of tasks", "choices of tasks"],
)
def test_nor_does_it_with_masks_of_devices_or_votes_or_arrays_beside_the_model(overrides, pool):
    """One task: the default wire rounds at random, and so must every engine, by address."""
    world = tiny_world("stream.tasks=1", *overrides)
    inline, result = run_world(world, "inline"), run_world(world, "ray", pool=pool)
    assert_same_arrays(result.strategy.weights, inline.strategy.weights)
    assert_same_arrays(result.strategy.masks, inline.strategy.masks)
    assert result.strategy.ledger.rows == inline.strategy.ledger.rows
    assert [record.diversity for record in result.rounds] == [record.diversity for record in inline.rounds]
    assert result.accuracy.tobytes() == inline.accuracy.tobytes()


FLEETS = {
    "sync": ("clock.deadline_s=25", "availability.failure=0.2"),
    "async": ("clock.mode=async", "clock.buffer_size=1", "wire.importance=f32"),
}


@pytest.mark.parametrize("mode", FLEETS)
def test_nor_does_it_with_an_unlike_fleet_on_the_clock(mode, pool, tmp_path):
    """Stragglers, failures, batteries, jitter and a device of a sparser tier: what becomes of work depends on the virtual clock alone."""
    fleet = {"flops_per_s": [1e6, 3e6, 4e5], "memory_bytes": [1e6, 135_000, 1e6], "battery_j": [1e4] * 3, "jitter_s": [0.5] * 3}
    world = tiny_world("stream.tasks=1", "budget.memory=fit", *FLEETS[mode], *toy_fleet(tmp_path, **fleet))
    inline, result = run_world(world, "inline"), run_world(world, "ray", pool=pool)
    assert_same_arrays(result.strategy.weights, inline.strategy.weights)
    assert_same_arrays(result.strategy.masks, inline.strategy.masks)
    assert_same_arrays(result.strategy.snapshot(), inline.strategy.snapshot())
    assert result.strategy.ledger.rows == inline.strategy.ledger.rows
    assert [plain(record) for record in result.rounds] == [plain(record) for record in inline.rounds]
    assert {row.outcome for row in inline.strategy.ledger.rows} > {"ok"}


def mortal_app(lives: str, config, streams) -> ClientApp:
    """The SparCL app in a process that dies under device 1 as long as the file `lives` says so."""

    def stream_of(device: int) -> Stream:
        left = int(Path(lives).read_text())
        if device == 1 and left:
            Path(lives).write_text(str(left - 1))
            os.kill(os.getpid(), signal.SIGKILL)
        return streams[device]

    return make_client_app(config, stream_of)


def test_a_worker_that_dies_in_a_round_changes_nothing(world, on_inline, six_cores, tmp_path, caplog):
    """With one worker only: nobody else can take over, the round must wait for a new process."""
    lives = tmp_path / "lives"
    lives.write_text("0")

    def observe(record, strategy):
        if record.round == 2:
            lives.write_text("1")  # the process that trains device 1 in round 3 is killed

    grid = RayGrid(mortal_app, (str(lives), *world.app_args), 3, workers=1)
    try:
        with caplog.at_level(logging.WARNING):
            strategy = play(world, grid, observe)
    finally:
        grid.close()
    assert lives.read_text() == "0"  # it did die
    (said,) = (record.getMessage() for record in caplog.records)
    assert said.startswith("the worker of device") and said.endswith("was lost: tried again by another")
    assert_same_arrays(strategy.weights, on_inline.strategy.weights)
    assert_same_arrays(strategy.masks, on_inline.strategy.masks)
    assert strategy.ledger.rows == on_inline.strategy.ledger.rows


# -- a small app of our own, on both engines


def counting_app(folder: str = "") -> ClientApp:
    """Counts the messages of a device in its state, and then does what it is told: once only, if there is a file of that name."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        count = context.state["count"]["n"] + 1 if "count" in context.state else 1
        context.state["count"] = ConfigRecord({"n": count})
        order = message.content["order"]["do"]
        device = context.node_config["partition-id"]
        if order.endswith("-once"):
            mark = Path(folder) / f"{device}-{order}-{message.metadata.group_id}"
            if mark.exists():
                order = ""
            mark.touch()
        if order.startswith("raise"):
            raise ValueError("told to")
        if order.startswith("die"):
            os.kill(os.getpid(), signal.SIGKILL)
        if order.startswith("starve"):
            try:
                raise MemoryError("no more")
            except MemoryError as error:
                raise RuntimeError("device 0, round 1, stage train") from error
        if order.startswith("hang"):
            time.sleep(10_000)
        if order == "close files":
            (Path(folder) / f"process-{os.getpid()}").touch()
            os.closerange(3, 1000)
            time.sleep(10_000)
        if order == "print":
            for _ in range(100):
                print("x" * LOG_BYTES)
        if order == "toil":
            sum(range(10_000_000))
        answer = {"count": count, "device": device, "of": context.node_config["num-partitions"], "process": os.getpid()}
        return Message(RecordDict({"answer": ConfigRecord(answer)}), reply_to=message)

    return app


def open_grid(request, make_app, *args, **kwargs):
    """Four devices on the engine that the fixture is run for."""
    if request.param == "inline":
        return InlineGrid(make_app, args, 4, **kwargs)
    return RayGrid(make_app, args, 4, pool=request.getfixturevalue("pool"), **kwargs)


@pytest.fixture(scope="class", params=["inline", "ray"])
def grid(request):
    """One for all tests of the class: so they look at how counts change."""
    opened = open_grid(request, counting_app, on_reply=lambda device: opened.heard.append(device))
    opened.heard = []
    yield opened
    opened.close()


def orders(*what: str, group: str = "1", **extra) -> list[Message]:
    return [
        Message(RecordDict({"order": ConfigRecord({"do": order, **extra})}), node, "train", group_id=group)
        for node, order in enumerate(what, start=1)
    ]


def answers(replies) -> dict[int, dict | str]:
    """Node id -> the answer, or the reason of an error."""
    return {reply.metadata.src_node_id: reply.error.reason if reply.has_error() else dict(reply.content["answer"]) for reply in replies}


def counts(grid) -> list[int]:
    """One more message to every device: how many have there been, not counting it?"""
    replies = answers(grid.send_and_receive(orders("", "", "", "")))
    return [replies[node]["count"] - 1 for node in grid.get_node_ids()]


class TestTheSmallApp:
    def test_every_device_has_its_own_number_and_state(self, grid):
        assert list(grid.get_node_ids()) == [1, 2, 3, 4]
        before = counts(grid)
        grid.heard.clear()
        replies = answers(grid.send_and_receive(orders("", "", "")))
        assert sorted(grid.heard) == [0, 1, 2]
        assert {node: (answer["device"], answer["of"]) for node, answer in replies.items()} == {1: (0, 4), 2: (1, 4), 3: (2, 4)}
        assert counts(grid) == [before[0] + 2, before[1] + 2, before[2] + 2, before[3] + 1]

    def test_a_failure_is_a_reply_and_leaves_the_state_as_it_was(self, grid):
        before = counts(grid)
        replies = answers(grid.send_and_receive(orders("raise", "")))
        assert replies[1] == "told to" and replies[2]["count"] == before[1] + 2
        assert counts(grid) == [before[0] + 1, before[1] + 2, before[2] + 1, before[3] + 1]

    def test_replies_can_be_taken_one_by_one_and_the_rest_left(self, grid):
        before = counts(grid)
        for reply in grid.stream(orders("", "", "", "")):
            heard = reply.metadata.src_node_id
            break
        after = counts(grid)
        moved = [now - then - 1 for now, then in zip(after, before, strict=True)]
        assert moved[heard - 1] == 1 and sum(moved) <= 4 and set(moved) <= {0, 1}

    @pytest.mark.parametrize("grid", ["ray"], indirect=True)
    def test_a_large_value_goes_into_the_store_once_however_many_get_it(self, grid, monkeypatch):
        put, sizes = ray.put, []
        monkeypatch.setattr(ray, "put", lambda value: (sizes.append(value.nbytes), put(value))[1])
        large = os.urandom(1_000_000)
        assert len(answers(grid.send_and_receive(orders("", "", "", "", large=large)))) == 4
        assert sizes == [1_000_000]

    def test_messages_to_one_device_are_handled_in_turn(self, grid):
        before = counts(grid)
        messages = [message for _ in range(3) for message in orders("", "")]
        found = [reply.content["answer"] for reply in grid.send_and_receive(messages)]
        assert sorted(answer["count"] for answer in found if answer["device"] == 0) == [before[0] + n for n in (2, 3, 4)]
        assert counts(grid) == [before[0] + 4, before[1] + 4, before[2] + 1, before[3] + 1]


class TestFaults:
    """One grid with two workers. Every fault costs one worker process, and no state."""

    @pytest.fixture(scope="class")
    def grid(self, six_cores, tmp_path_factory):
        options = EngineOptions(workers=2, device_timeout_s=4.0, tries=2)
        args = (str(tmp_path_factory.mktemp("marks")),)
        opened = RayGrid(counting_app, args, 4, options=options)
        opened.args = args
        yield opened
        opened.close()

    def faulty(self, grid, caplog, *what: str, group: str) -> tuple[dict, list[str]]:
        """Answers to these orders, and what the user was told."""
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            return answers(grid.send_and_receive(orders(*what, group=group))), [record.getMessage() for record in caplog.records]

    def test_a_device_that_kills_every_worker_fails_alone(self, grid, caplog):
        before = counts(grid)
        replies, said = self.faulty(grid, caplog, "", "die", "", "", group="die")
        assert replies.pop(2) == "device 1, stage worker: its worker was lost; tried 2 times"
        assert [replies[node]["count"] for node in (1, 3, 4)] == [before[device] + 2 for device in (0, 2, 3)]
        assert 1 <= len(said) <= 3 and all(line.endswith("was lost: tried again by another") for line in said)
        assert counts(grid) == [before[0] + 2, before[1] + 1, before[2] + 2, before[3] + 2]  # the state that it had before

    def test_a_device_that_lacked_memory_once_is_tried_by_another_process(self, grid, caplog):
        before = counts(grid)
        replies, said = self.faulty(grid, caplog, "starve-once", "", group="starve")
        assert replies[1]["count"] == before[0] + 2
        assert said == ["the worker of device 0 ran out of memory: tried again by another"]

    def test_a_device_that_hangs_once_is_tried_again_and_one_that_always_does_is_given_up(self, grid, caplog):
        before = counts(grid)
        replies, said = self.faulty(grid, caplog, "hang-once", "hang", "", group="hang")
        assert replies.pop(2) == "device 1, stage worker: its worker did not answer within 4 s; tried 2 times"
        assert replies[1]["count"] == before[0] + 2 and replies[3]["count"] == before[2] + 2
        assert 1 <= len(said) <= 3 and all(line.endswith(" s: tried again by another") for line in said)
        assert counts(grid) == [before[0] + 2, before[1] + 1, before[2] + 2, before[3] + 1]

    def test_a_device_that_closes_its_workers_files_fails_alone_and_its_processes_end(self, grid, caplog):
        """Ray takes the worker for lost and leaves the process, which spins on what it has left."""
        replies, _ = self.faulty(grid, caplog, "close files", "", group="close")
        assert replies.pop(1) == "device 0, stage worker: its worker was lost; tried 2 times" and replies[2]["process"]
        (folder,) = grid.args
        processes = [Path("/proc") / path.name.removeprefix("process-") for path in Path(folder).glob("process-*")]
        give_up = time.monotonic() + 30
        while (alive := [path for path in processes if is_running(path)]) and time.monotonic() < give_up:
            time.sleep(0.05)
        assert len(processes) >= 2 and alive == []

    def test_the_log_of_an_app_that_prints_without_end_is_bounded(self, grid):
        """Ten megabytes here; a log and one older part of it are kept."""
        replies = answers(grid.send_and_receive(orders("print", group="print")))
        logs = Path(ray._private.worker._global_node.get_logs_dir_path()).glob(f"worker-*-{replies[1]['process']}.out*")
        assert 0 < sum(path.stat().st_size for path in logs) <= 3 * LOG_BYTES

    def test_after_a_timeout_of_the_call_what_is_missing_is_left_out(self, grid):
        before = counts(grid)
        found = answers(grid.send_and_receive(orders("hang", "", group="late"), timeout=2.0))
        assert set(found) <= {2}
        assert counts(grid)[0] == before[0] + 1  # the hanging process was replaced, the state is the old one


def is_running(process: Path) -> bool:
    """By its folder in /proc; one that has ended may be listed until its parent has looked."""
    try:
        return (process / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_whatever_an_app_does_is_the_row_of_its_device_alone(pool, caplog):
    settings = {"run_config": {"lr": 0.1}, "waits_for_commit": True, "reply_limit_bytes": hostile.LIMIT}
    grid = RayGrid(hostile.hostile_app, (), hostile.DEVICES, pool=pool, **settings)
    with caplog.at_level(logging.WARNING):
        hostile.expect_rows(grid)
    assert caplog.records == []  # nobody lost a worker
    grid.close()


class Full(LocalFiles):
    """A disk that is full."""

    def write(self, key: str, data: bytes) -> None:
        raise OSError(28, "No space left on device")


def test_a_pool_is_lent_again_after_a_grid_that_failed_and_one_that_hangs(six_cores, tmp_path):
    pool = Pool(EngineOptions(workers=1))
    full = RayGrid(counting_app, (), 4, store=StateStore(Full(str(tmp_path))), pool=pool)
    with pytest.raises(EngineError, match="a worker cannot go on with device 0: .*No space left on device"):
        full.send_and_receive(orders("", "", "", ""))
    hanging = RayGrid(counting_app, (), 4, pool=pool)
    assert hanging.send_and_receive(orders("hang", "hang"), timeout=1.0) == []
    hanging.close()
    last = RayGrid(counting_app, (), 4, pool=pool)
    assert {node: answer["count"] for node, answer in answers(last.send_and_receive(orders("", "", ""))).items()} == {1: 1, 2: 1, 3: 1}
    last.close()
    pool.close()


def test_what_ray_says_of_a_lost_worker_is_said_in_three_words():
    assert engine._what_happened(ray.exceptions.OutOfMemoryError("x")) == "was ended by Ray, because its node ran out of memory"
    died = ray.exceptions.ActorDiedError()
    assert engine._what_happened(died) == "was lost"


# -- states


def test_states_live_in_the_store_and_a_round_that_was_not_committed_did_not_happen(pool, tmp_path):
    store = StateStore(LocalFiles(str(tmp_path)))
    grid = RayGrid(counting_app, (), 4, store=store, waits_for_commit=True, pool=pool)
    grid.send_and_receive(orders("", "", ""))
    history, exchange = [grid.changes()], grid.manifest.exchange
    grid.commit()
    assert len(store.files.keys()) == 3
    grid.send_and_receive(orders("", "", "", ""))  # the driver dies behind this
    assert len(store.files.keys()) == 7
    grid.close()

    resumed = RayGrid(counting_app, (), 4, store=store, waits_for_commit=True, pool=pool)  # the same workers, another run
    resumed.restore(exchange, history)
    assert len(store.files.keys()) == 3
    assert [answer["count"] for _, answer in sorted(answers(resumed.send_and_receive(orders("", "", "", ""))).items())] == [2, 2, 2, 1]
    resumed.commit()
    assert len(store.files.keys()) == 7  # what the checkpoint before the last needs stays until the next one
    resumed.commit()
    assert len(store.files.keys()) == 4
    resumed.close()


def test_a_grid_that_is_closed_leaves_no_state_behind(pool):
    grid = RayGrid(counting_app, (), 4, pool=pool)
    folder = Path(grid.store.files.url)
    grid.send_and_receive(orders("", ""))
    assert len(grid.store.files.keys()) == 2
    grid.close()
    assert not folder.exists()


# -- bad input


def broken_app() -> ClientApp:
    raise ModuleNotFoundError("No module named 'sensor'")


def test_an_app_that_cannot_be_made_ends_the_run_at_once(six_cores):
    identify_process()
    grid = RayGrid(broken_app, (), 4, workers=1)
    try:
        with pytest.raises(EngineError, match="^a worker cannot start: ModuleNotFoundError: No module named 'sensor'$"):
            grid.send_and_receive(orders("", ""))
    finally:
        grid.close()


def app_of_surrogates() -> ClientApp:
    raise ValueError("so\ud800rry")


def app_that_exits() -> ClientApp:
    os._exit(3)


@pytest.mark.parametrize(
    ("make_app", "message"),
    [
        (app_of_surrogates, "a worker cannot start: RuntimeError: ValueError: so\ufffdrry"),
        (app_that_exits, "a worker cannot start: its process was lost, 4 times in a row"),
        (sys.exit, "a worker cannot start: RuntimeError: SystemExit:"),
    ],
)
def test_nor_does_one_whose_making_ends_its_process_or_cannot_be_told(six_cores, make_app, message):
    grid = RayGrid(make_app, (), 4, workers=1)
    try:
        with pytest.raises(EngineError, match=f"^{message}$") as caught:
            grid.send_and_receive(orders("", ""))
        assert str(caught.value).isprintable()
    finally:
        grid.close()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"workers": -1}, "workers is -1"),
        ({"tries": 0}, "tries is 0: a device must be tried at least once"),
        ({"gpus_per_worker": -0.5}, "gpus_per_worker is -0.5"),
        ({"device_timeout_s": float("inf")}, "device_timeout_s is inf: it must be finite and not negative"),
    ],
)
def test_options_that_cannot_be(setting, message):
    with pytest.raises(EngineError, match=message):
        EngineOptions(**setting)


def test_more_than_there_is(pool, monkeypatch):
    cluster.wait_for_cpus(4)  # workers of the test before give theirs back
    monkeypatch.setattr(cluster.wait_for_cpus, "__defaults__", (0.1,))
    with pytest.raises(EngineError, match="workers is 5, but Ray has only 4 free CPUs here; ask for fewer with --workers"):
        Pool(EngineOptions(workers=5))
    with pytest.raises(EngineError, match=r"2 workers with gpus_per_worker 0.5 need 1 GPUs, but there are 0"):
        Pool(EngineOptions(workers=2, gpus_per_worker=0.5))


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


@pytest.fixture(params=["inline", "ray"])
def quickstart_grid(request):
    opened = open_grid(request, quickstart_client, run_config={"learning-rate": 0.1})
    yield opened
    opened.close()


def test_an_ordinary_flower_app_runs_unchanged(quickstart_grid):
    """Two rounds of Flower's own FedAvg over four nodes, against the same by hand."""
    app, results = ServerApp(), []

    @app.main()
    def main(grid, context: Context) -> None:
        strategy = FedAvg(fraction_train=1.0, fraction_evaluate=1.0)
        results.append(strategy.start(grid=grid, initial_arrays=ArrayRecord([np.zeros(3)]), num_rounds=2))

    app(quickstart_grid, Context(RUN_ID, 0, {}, RecordDict(), {}))

    w, counts = np.zeros(3), [10, 11, 12, 13]
    for _ in range(2):
        w = sum(n * descend(w, partition, 0.1) for partition, n in enumerate(counts)) / sum(counts)
    (trained,) = results[0].arrays.to_numpy_ndarrays()
    assert np.allclose(trained, w, rtol=1e-12)
    loss = sum(np.sum((x @ w - y) ** 2) for x, y in map(private_data, range(4))) / sum(counts)
    assert results[0].evaluate_metrics_clientapp[2]["loss"] == pytest.approx(loss)
    assert loss < results[0].evaluate_metrics_clientapp[1]["loss"]  # it learns
