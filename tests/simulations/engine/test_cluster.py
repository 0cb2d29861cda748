"""Two nodes (two raylets on this machine): the same bits; a node that dies in the middle of a round, one that joins late."""

import logging
import os
import sys
import time
from pathlib import Path

import pytest
import ray
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from ray.cluster_utils import Cluster
from worlds import assert_same_arrays, play, tiny, tiny_world

from simulations.client_app import client_app
from simulations.engine import cluster as clusters
from simulations.engine import replicas
from simulations.engine.adapter import EngineError
from simulations.engine.files import LocalFiles, StoreError, open_files
from simulations.engine.pool import EngineOptions, Pool
from simulations.engine.ray import RayGrid
from simulations.results.control_file import How
from simulations.results.resumable import give_up, new_run, open_run
from simulations.run import run_world

pytestmark = [pytest.mark.ray, pytest.mark.rare]


@pytest.fixture(scope="module")
def two_nodes():
    """A cluster of two nodes with one CPU each, and a pool that is attached to it."""
    ray.shutdown()
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    made.second = made.add_node(num_cpus=1)
    made.wait_for_nodes()
    yield made
    ray.shutdown()
    made.shutdown()


@pytest.fixture(scope="module")
def pool(two_nodes):
    opened = Pool(EngineOptions(address=two_nodes.address), warm=("simulations.client_app",))
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def world():
    return tiny_world()


@pytest.fixture(scope="module")
def on_inline(world):
    return run_world(world, "inline")


def same(strategy, on_inline) -> bool:
    assert_same_arrays(strategy.weights, on_inline.strategy.weights)
    assert_same_arrays(strategy.masks, on_inline.strategy.masks)
    return strategy.ledger.rows == on_inline.strategy.ledger.rows


def test_the_code_travels_with_the_run(pool):
    """Workers find what the driver has sent also where there is no copy (`make test-net` hides ours from the second node)."""

    @ray.remote(num_cpus=0)
    def sent() -> set[str]:
        return {found.parent.name for path in sys.path if "py_modules_files" in path for found in Path(path).glob("*/__init__.py")}

    assert len(pool.slots) == 2
    assert ray.get(sent.remote()) == set(clusters.OUR_PACKAGES)


def test_two_nodes_give_the_same_bits(world, on_inline, pool):
    result = run_world(world, "ray", pool=pool)
    assert same(result.strategy, on_inline) and result.workers == 2
    assert result.accuracy.tobytes() == on_inline.accuracy.tobytes()


def test_nodes_with_other_software_are_named(pool, monkeypatch):
    monkeypatch.setattr(clusters, "software", lambda: {"python": "3.11", "torch": "0.1"})
    own = clusters._look()[0] | {"torch": "0.1"}
    monkeypatch.setattr(clusters, "software", lambda: own)
    with pytest.raises(EngineError, match=r"^node .* has torch .*, this process 0.1: install the same on all nodes$"):
        clusters.check_nodes()


def test_a_store_that_is_not_the_same_place_everywhere_is_refused(pool, tmp_path):
    with pytest.raises(StoreError, match="--store memory://there is not the same place on node .* it finds nothing there"):
        replicas.expect_shared(open_files("memory://there"))
    replicas.expect_shared(LocalFiles(str(tmp_path)))
    assert list(tmp_path.rglob("probe*")) == []


def test_states_that_no_node_holds_any_more_cannot_be_resumed(pool, tmp_path):
    """As when the cluster was started anew meanwhile: one sentence, and none of resuming."""
    how = How("ray", False, address="auto", on_nodes=True)
    with new_run(tmp_path, tiny(), how) as run:  # and its process was killed
        (run.folder / "checkpoint" / "run").mkdir(parents=True)
        (run.folder / "checkpoint" / "run" / "latest.json").touch()
    with pytest.raises(replicas.StatesGone) as gone, open_run(run.folder) as again:
        again.keep("run")
    assert str(gone.value) == "the cluster holds no device states of this run any more"
    (note,) = gone.value.__notes__
    assert note.startswith("the run cannot be resumed as it is: `sparcl run ")
    with open_run(run.folder) as again:
        assert give_up(again) == f"{run.folder} is removed" and not run.folder.exists()


def test_a_node_is_lost_and_another_joins(world, on_inline, two_nodes, pool, caplog):
    """The second node dies while round 3 is being trained, with one of two workers and one of two copies of all states.

    A third one joins before round 5, is given a worker, and takes over its part of the states.
    """
    grid = RayGrid(client_app, world.app_args, 3, pool=pool, waits_for_commit=True)
    heard, workers, store, files = [], {}, grid.store, grid.store.files

    def kill(device: int) -> None:
        heard.append(device)
        if len(heard) == 7:  # the first reply of round 3
            two_nodes.remove_node(two_nodes.second, allow_graceful=False)

    def observe(record, strategy) -> None:
        grid.commit()
        workers[record.round] = grid.num_workers
        if record.round == 4:
            two_nodes.third = two_nodes.add_node(num_cpus=1)
            two_nodes.wait_for_nodes()
            pool._looked = 0.0  # it looks once a second

    grid.on_reply = kill
    with caplog.at_level(logging.WARNING):
        strategy = play(world, grid, observe)
    said = [record.getMessage() for record in caplog.records]
    assert same(strategy, on_inline)
    assert any(line.startswith(("the worker of", "a worker was lost")) for line in said), said
    assert any("held device states was lost" in line for line in said), said
    assert len(ray.nodes()) == 3 and sum(node["Alive"] for node in ray.nodes()) == 2
    assert workers[8] == 2
    assert grid.store is store and store.files is not files  # whoever lent it knows of the new copy, and can destroy it
    grid.close()


def gpu_app(folder: str) -> ClientApp:
    """It answers when two processes are at work, or after a minute: a fast one would else answer all before the other has started."""
    app = ClientApp()

    @app.query()
    def which(message: Message, context: Context) -> Message:
        Path(folder, str(os.getpid())).touch()
        late = time.monotonic() + 60
        while len(os.listdir(folder)) < 2 and time.monotonic() < late:
            time.sleep(0.05)
        seen = {"gpu": os.environ["CUDA_VISIBLE_DEVICES"], "process": os.getpid()}
        return Message(RecordDict({"seen": ConfigRecord(seen)}), reply_to=message)

    return app


def test_workers_share_a_gpu(two_nodes, pool, tmp_path):
    """The GPU is one in Ray's books only; as many workers as have room on it, whatever CPUs there are."""
    pool.close()
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    two_nodes.add_node(num_cpus=3, num_gpus=1)
    two_nodes.wait_for_nodes()
    sharing = Pool(EngineOptions(address=two_nodes.address, gpus_per_worker=0.5))
    grid = RayGrid(gpu_app, (str(tmp_path),), 6, pool=sharing)
    seen = [reply.content["seen"] for reply in grid.send_and_receive([Message(RecordDict(), node, "query") for node in range(1, 7)])]
    assert grid.num_workers == 2
    assert {one["gpu"] for one in seen} == {"0"} and len({one["process"] for one in seen}) == 2
    grid.close()
    sharing.close()
