"""Ray itself: started on this machine, or attached to where it runs; the check that all nodes have the same software.

On a cluster our packages travel with the run (Ray's `py_modules`), so nodes need Python and the packages of pyproject.toml, but no
copy of ours and no common path. In a job that was submitted with a working directory, that directory is what travels.
"""

import contextlib
import logging
import os
import re
import secrets
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import ray
from ray._common.utils import get_default_ray_temp_dir
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from simulations.engine.adapter import EngineError
from simulations.engine.address import cluster_address
from simulations.environment import OUR_PACKAGES, processor, software
from sparcl_core.foreign import printable

log = logging.getLogger(__name__)
OUR_ROOT = Path(__file__).parents[2]
PROBE_PATIENCE_S = 180.0
OURS = "SPARCL_RAY"
START_TRIES = 3  # Ray itself waits for 30 s, and cannot be told to wait for longer
SOCKET_BYTES = 103 if sys.platform == "darwin" else 107  # that the path of a socket may have
SOCKET = "/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store"  # the longest name that Ray gives one
LOGS = {"RAY_ROTATION_MAX_BYTES": "16000000", "RAY_ROTATION_BACKUP_COUNT": "1"}  # an app may print without end
_marks: list[str] = []  # of the Rays that this process has started
_folders: list[str] = []  # made for them


def start_ray(workers: int, gpus: float = 0) -> None:
    """Start a Ray of our own on this machine, quietly and without phoning home; does nothing if Ray runs in this process.

    Raises:
        EngineError: if it does not start, on a busy machine not even at the third try.
    """
    if ray.is_initialized():
        return
    _quiet()
    folder = _folder()
    for again in range(START_TRIES - 1, -1, -1):
        _marks.append(secrets.token_hex(8))
        os.environ[OURS] = _marks[-1]
        try:
            with contextlib.chdir(OUR_ROOT), _without_daemons():
                ray.init(
                    address="local",
                    num_cpus=workers,
                    num_gpus=gpus,
                    include_dashboard=False,
                    logging_level=logging.ERROR,
                    log_to_driver=False,
                    _temp_dir=folder,
                )
            break
        except Exception as error:
            ray.shutdown()
            _end_marked()  # what of it has started
            said = printable(error)
            if not again or not re.search("timed out|timeout|deadline", f"{type(error).__name__} {said}", re.IGNORECASE):
                stop_ray()
                raise EngineError(f"Ray cannot start: {said}; '--engine inline' runs without it") from error
            log.warning("Ray has not started in time, as on a machine that is busy: tried again (%d more)", again)
    _hush()


def _folder() -> str | None:
    """Where Ray keeps its files: its own default, unless the sockets in there would have longer names than a system allows.

    Raises:
        EngineError: if there is no folder with a shorter name.
    """
    default = get_default_ray_temp_dir()
    if len(os.fsencode(os.path.abspath(default))) + len(SOCKET) <= SOCKET_BYTES:
        return None
    for parent in ("/tmp", "/var/tmp", "/dev/shm"):
        if os.path.isdir(parent) and os.access(parent, os.W_OK | os.X_OK):
            _folders.append(tempfile.mkdtemp(prefix="sparcl-", dir=parent))
            return os.path.join(_folders[-1], "ray")  # which Ray opens to everybody
    raise EngineError(
        f"Ray cannot start: it keeps sockets in {default}, which has more than the {SOCKET_BYTES - len(SOCKET)} bytes that leave room "
        f"for their names, and /tmp cannot be written: set TMPDIR (or RAY_TMPDIR) to a folder with a shorter name"
    )


def stop_ray() -> None:
    """End the Ray that was started here, or let go of the one that was attached to.

    Ray's agents notice only after a minute that their raylet has gone, if that happens while they start: they are ended here, known by a
    mark that all processes of this Ray have inherited.
    """
    ray.shutdown()
    _end_marked()
    while _folders:
        shutil.rmtree(_folders.pop(), ignore_errors=True)


def _end_marked() -> None:
    ours = {f"{OURS}={mark}".encode() for mark in _marks}  # not what this process has inherited: its own Ray is somebody else's
    _marks.clear()
    if not ours:
        return
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):  # it ended meanwhile, or is somebody else's
            if not ours.isdisjoint(path.read_bytes().split(b"\0")):
                os.kill(int(path.parent.name), signal.SIGKILL)


@contextlib.contextmanager
def _without_daemons() -> Iterator[None]:
    """No dashboard, no autoscaler, and nobody who reads the workers' logs: each is a Python process that takes seconds to start, and Ray
    waits for the first.

    Ray has no public switch for them; where a later version moves these, they just run.
    """
    from ray._private.node import Node
    from ray._private.parameter import RayParams

    def slim(self, *args, **settings) -> None:
        begin(self, *args, **settings)
        self.include_log_monitor, self.no_monitor = False, True

    begin, serve = RayParams.__init__, getattr(Node, "start_api_server", None)
    RayParams.__init__ = slim
    if serve:
        Node.start_api_server = lambda node, **_: None
    try:
        yield
    finally:
        RayParams.__init__ = begin
        if serve:
            Node.start_api_server = serve


def attach(address: str) -> None:
    """Attach to a running Ray: `auto` for the one that this machine is a node of, or HOST:PORT of its head.

    Does nothing if this process is attached already.

    Raises:
        EngineError: if no Ray answers there, or it is one of another version.
    """
    if ray.is_initialized():
        return
    for problem in cluster_address(address):
        raise EngineError(problem)
    _quiet()
    is_job = "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
    modules = [str(OUR_ROOT / name) for name in OUR_PACKAGES]
    runtime = None if is_job else {"py_modules": modules, "excludes": ["__pycache__"], "env_vars": LOGS}
    try:
        with contextlib.chdir(OUR_ROOT):
            ray.init(address=address, runtime_env=runtime, namespace="sparcl", logging_level=logging.ERROR, log_to_driver=False)
    except Exception as error:
        text = str(error).strip().splitlines()
        raise EngineError(f"--ray-address {address}: cannot attach to a Ray there: {text[0] if text else type(error).__name__}") from error
    _hush()


def _quiet() -> None:
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_raylet_start_wait_time_s", "120")  # for the parts that are not Python, which else wait for 30
    for name, value in LOGS.items():
        os.environ.setdefault(name, value)
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")


def _hush() -> None:
    """What Ray's daemons tell the driver goes into the log: a lost worker is ten lines of it, and the engine says it in one."""
    import ray._private.worker as private

    if hasattr(private, "print_to_stdstream"):
        private.print_to_stdstream = lambda data, *_, **__: log.debug("Ray: %s", "\n".join(data["lines"]))


def nodes() -> list[dict]:
    """The nodes that are alive, the driver's own first, then by id."""
    own = ray.get_runtime_context().get_node_id()
    alive = [node for node in ray.nodes() if node["Alive"]]
    return sorted(alive, key=lambda node: (node["NodeID"] != own, node["NodeID"]))


def name_of(node: dict) -> str:
    return f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})"


def on_node(node_id: str) -> NodeAffinitySchedulingStrategy:
    """Schedule there and nowhere else."""
    return NodeAffinitySchedulingStrategy(node_id=node_id, soft=False)


def free_cpus() -> int:
    return int(ray.available_resources().get("CPU", 0))


def wait_for_cpus(workers: int, patience_s: float = 10.0) -> None:
    """Wait until Ray has `workers` free CPUs: those of workers that were just closed come back a moment later.

    Raises:
        EngineError: if they do not. An actor that Ray cannot place would otherwise wait in silence for ever.
    """
    give_up = time.monotonic() + patience_s
    while (free := free_cpus()) < workers:
        if time.monotonic() > give_up:
            raise EngineError(f"workers is {workers}, but Ray has only {free} free CPUs here; ask for fewer with --workers")
        time.sleep(0.05)


def _look() -> tuple[dict[str, str], str]:
    return software(), processor()


def check_nodes() -> None:
    """Look at the software of every node.

    Raises:
        EngineError: names the first node that has other versions than this process, or does not answer.
    """
    own, own_processor = _look()
    look = ray.remote(num_cpus=0, max_retries=0)(_look)
    asked = [(node, look.options(scheduling_strategy=on_node(node["NodeID"])).remote()) for node in nodes()]
    others = []
    for node, answer in asked:
        try:
            found, processor = ray.get(answer, timeout=PROBE_PATIENCE_S)
        except Exception as error:
            last = str(error).strip().splitlines()[-1:] or [type(error).__name__]
            raise EngineError(f"node {name_of(node)} cannot run our code: {last[0]}; install sparcl-fleet's dependencies there") from error
        for what, version in own.items():
            if found[what] != version:
                raise EngineError(f"node {name_of(node)} has {what} {found[what]}, this process {version}: install the same on all nodes")
        if processor != own_processor:
            others.append(name_of(node))
    if others:
        log.warning("%s has another processor than this node: results may differ from other runs in the last bits", ", ".join(others))


def cpus_here() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def gpus_here() -> int:
    """GPUs of this machine, as Ray would count them."""
    from ray._private.accelerators import NvidiaGPUAcceleratorManager

    return NvidiaGPUAcceleratorManager.get_current_node_num_accelerators()


def all_cpus() -> int:
    """CPUs of the nodes that are alive."""
    return int(sum(node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]))
