"""Where device states are kept: a path or URL that all nodes share, a folder of this machine, or two nodes of a cluster.

Ray's objects die with the node of their owner, and a worker's memory with the worker. So on a cluster without a common path every
state is held by actors on two nodes, each in a folder of its node. When one is lost, a third takes its place and copies what
the other has. They outlive the driver of a named run, so that the run can be resumed.
"""

import contextlib
import logging
import secrets
import tempfile
from collections.abc import Iterable

import ray
from ray.actor import ActorHandle

from simulations.config.errors import Lost
from simulations.engine import cluster
from simulations.engine.files import Files, LocalFiles, StoreError, open_files, reason_of
from simulations.engine.pool import EngineOptions
from simulations.engine.store import StateStore

log = logging.getLogger(__name__)
NAMESPACE = "sparcl"
COPIES = 2


class StatesGone(StoreError, Lost):
    """All nodes that held device states are lost."""


class Replica:
    """One copy of all device states, in a folder of the node that this actor runs on."""

    def __init__(self):
        self._files = LocalFiles(tempfile.mkdtemp(prefix="sparcl-states-"))

    def call(self, method: str, *args):
        """A method of `Files`."""
        return getattr(self._files, method)(*args)

    def where(self) -> str:
        """The id of the node."""
        return ray.get_runtime_context().get_node_id()

    def copy_from(self, other: ActorHandle) -> None:
        """Take over what `other` has. What was written here meanwhile stays, and what vanishes meanwhile is of no use any more."""
        for key in ray.get(other.call.remote("keys")):
            if self._files.size(key) is None and (data := ray.get(other.call.remote("read", key))) is not None:
                self._files.write(key, data)


class ReplicaFiles:
    """`Files` that every replica holds. lost: ids of those that did not answer, as seen by this process."""

    secrets = ()

    def __init__(self, replicas: list[ActorHandle], run: str):
        self.replicas, self.run = replicas, run
        self.url = f"two nodes of the cluster (run {run or 'without a name'})"
        self.lost: list[str] = []

    def __reduce__(self):
        return ReplicaFiles, (self.replicas, self.run)

    def write(self, key: str, data: bytes) -> None:
        self._ask_all("write", key, data)

    def read(self, key: str) -> bytes | None:
        for replica in self._answering():
            try:
                data = ray.get(replica.call.remote("read", key))
            except ray.exceptions.RayActorError:
                self.lost.append(_id(replica))
                continue
            if data is not None:  # else this one may be a new copy that is not complete yet
                return data
        if not self._answering():
            raise _all_lost()
        return None

    def size(self, key: str) -> int | None:
        sizes = set(self._ask_all("size", key))
        return sizes.pop() if len(sizes) == 1 else None

    def flush(self, keys: Iterable[str]) -> None:
        """Nothing: a replica ends with its node, and it is the other copy that survives that."""

    def delete(self, keys: Iterable[str]) -> None:
        self._ask_all("delete", list(keys))

    def keys(self) -> list[str]:
        return sorted({key for keys in self._ask_all("keys") for key in keys})

    def destroy(self) -> None:
        with contextlib.suppress(StoreError):
            self._ask_all("destroy")
        for replica in self.replicas:
            ray.kill(replica)

    def _answering(self) -> list[ActorHandle]:
        return [replica for replica in self.replicas if _id(replica) not in self.lost]

    def _ask_all(self, method: str, *args) -> list:
        asked = [(replica, replica.call.remote(method, *args)) for replica in self._answering()]
        answers = []
        for replica, answer in asked:
            try:
                answers.append(ray.get(answer))
            except ray.exceptions.RayActorError:
                self.lost.append(_id(replica))
        if not answers:
            raise _all_lost()
        return answers


def on_two_nodes(run: str = "") -> ReplicaFiles:
    """Replicas on two nodes, or on one where there is no other. `run`: its name; without one they end with this process."""
    nodes = cluster.nodes()[:COPIES]
    if len(nodes) < COPIES:
        log.warning("the cluster has one node: device states are held there only, and are lost with it; --store names a safer place")
    return ReplicaFiles([_start(node["NodeID"], run) for node in nodes], run)


def find(run: str) -> ReplicaFiles:
    """The replicas of a run whose driver has gone.

    Raises:
        StatesGone: if there are none.
    """
    named = [item["name"] for item in ray.util.list_named_actors(all_namespaces=True) if item["namespace"] == NAMESPACE]
    found = [ray.get_actor(name, namespace=NAMESPACE) for name in sorted(named) if name.startswith(f"{run}-states-")]
    if not found:
        raise StatesGone("the cluster holds no device states of this run any more")
    return ReplicaFiles(found, run)


def heal(files: Files, lost: Iterable[str] = ()) -> ReplicaFiles | None:
    """Replicas with a new one in the place of one that was lost; None if none was.

    Args:
        lost: ids of replicas that did not answer elsewhere.

    Raises:
        StatesGone: if all are lost.
    """
    if not isinstance(files, ReplicaFiles):
        return None
    files.lost += [one for one in lost if one not in files.lost]
    alive = files._answering()
    if len(alive) == len(files.replicas):
        return None
    if not alive:
        raise _all_lost()
    taken = set(ray.get([replica.where.remote() for replica in alive]))
    free = [node["NodeID"] for node in cluster.nodes() if node["NodeID"] not in taken]
    if not free:
        log.warning("a node that held device states was lost, and no other can take its place: one node holds them now")
        return ReplicaFiles(alive, files.run)
    log.warning("a node that held device states was lost: another one takes its place")
    copy = _start(free[0], files.run)
    copy.copy_from.remote(alive[0])
    return ReplicaFiles([*alive, copy], files.run)


def open_store(options: EngineOptions, url: str = "", run: str = "") -> StateStore:
    """Where the device states of a new run are kept.

    Args:
        url: a path or URL that all nodes can reach; without one, a folder of this machine, or two nodes of the cluster.
        run: name of the run, see `on_two_nodes`.

    Raises:
        StoreError: if it cannot be written, on any node.
    """
    if not url and options.address:
        return StateStore(on_two_nodes(run))
    files = open_files(url or tempfile.mkdtemp(prefix="sparcl-states-"))
    if options.address:
        expect_shared(files)
    return StateStore(files)


def expect_shared(files: Files) -> None:
    """Raises StoreError if a node cannot read there what this process has written."""
    key, data = f"states/probe-{secrets.token_hex(8)}", secrets.token_bytes(16)
    files.write(key, data)
    try:
        look = ray.remote(num_cpus=0, max_retries=0)(_read)
        for node in cluster.nodes():
            found = ray.get(look.options(scheduling_strategy=cluster.on_node(node["NodeID"])).remote(files, key))
            if found != data:
                why = "it finds nothing there" if found is None else f"it reads {found!r}"
                raise StoreError(
                    f"--store {files.url} is not the same place on node {cluster.name_of(node)}: {why}; name a shared folder or URL, "
                    f"or leave --store out: two nodes hold the states then"
                )
    finally:
        files.delete([key])


def _read(files: Files, key: str) -> bytes | str | None:
    try:
        return files.read(key)
    except Exception as error:
        return f"{type(error).__name__}: {reason_of(error, files.secrets)}"


def _start(node_id: str, run: str) -> ActorHandle:
    """A named replica outlives this process: without it, the run could not be resumed."""
    lasting = {"name": f"{run}-states-{secrets.token_hex(4)}", "namespace": NAMESPACE, "lifetime": "detached"} if run else {}
    settings = {"num_cpus": 0, "max_concurrency": 4, "scheduling_strategy": cluster.on_node(node_id), **lasting}
    return ray.remote(Replica).options(**settings).remote()


def _id(replica: ActorHandle) -> str:
    return replica._actor_id.hex()


def _all_lost() -> StatesGone:
    return StatesGone("all nodes that held device states are lost, and the states with them: --store would have kept them elsewhere")
