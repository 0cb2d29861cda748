"""The Ray engine: devices train on worker processes (Ray actors), whichever is free takes the next one.

Device state is an object in Ray's store: the driver holds a reference and never the bytes, and a worker that dies takes
no state with it. A state is replaced only when its round succeeded, so a lost worker's message is simply handled again,
with the same bits, by a new process. The ClientApp's arguments (data above all) go into the store once per run.
"""

import contextlib
import logging
import os
import time
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path

import ray
from flwr.app import Message

from simulations.engine.adapter import (
    WORKER_LOST,
    AppFactory,
    EngineError,
    EngineGrid,
    error_reply,
    from_bytes,
    handle,
    identify_process,
    to_bytes,
)

log = logging.getLogger(__name__)
TRIES = 3
OUR_ROOT = Path(__file__).parents[2]


def start_ray(workers: int) -> None:
    """Start a local Ray with `workers` CPUs, quietly and without phoning home; does nothing if Ray runs in this process.

    Raises:
        EngineError: if it does not start.
    """
    if ray.is_initialized():
        return
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_raylet_start_wait_time_s", "120")  # Ray's own 30 s are too short on a machine that is busy
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        # Ray puts the current folder first on its workers' path: a `client` or `server` folder there would stand in for ours
        with contextlib.chdir(OUR_ROOT):
            ray.init(
                address="local",
                num_cpus=workers,
                num_gpus=0,
                include_dashboard=False,
                logging_level=logging.ERROR,
                log_to_driver=False,
            )
    except Exception as error:
        raise EngineError(f"Ray cannot start: {error}; '--engine inline' runs without it") from error


def _wait_for_cpus(workers: int, patience_s: float = 10.0) -> None:
    """Wait until Ray has `workers` free CPUs: those of workers that were just closed come back a moment later.

    Raises:
        EngineError: if they do not. An actor that Ray cannot place would otherwise wait in silence for ever.
    """
    give_up = time.monotonic() + patience_s
    while (free := int(ray.available_resources().get("CPU", 0))) < workers:
        if time.monotonic() > give_up:
            raise EngineError(f"workers is {workers}, but Ray has only {free} free CPUs here; ask for fewer with --workers")
        time.sleep(0.05)


@ray.remote(num_cpus=1)
class _Worker:
    """One process that runs the ClientApp for any device."""

    def __init__(self, make_app: AppFactory, run_config: dict, *args):
        identify_process()
        self._app, self._run_config = make_app(*args), run_config

    @ray.method(num_returns=2)
    def handle(self, message: bytes, state: bytes, node_config: dict) -> tuple[tuple[bytes, bool], bytes]:
        """(reply, whether the state is a new one), state."""
        handled = handle(self._app, message, state, node_config, self._run_config)
        return (handled.reply, handled.state is not None), handled.state or b""


class RayGrid(EngineGrid):
    """Runs `make_app(*args)` on `workers` Ray actors."""

    def __init__(
        self,
        make_app: AppFactory,
        args: tuple,
        num_devices: int,
        workers: int,
        run_config: dict | None = None,
        on_reply: Callable[[int], None] | None = None,
    ):
        super().__init__(num_devices, run_config, on_reply)
        if workers < 1:
            raise EngineError(f"workers is {workers}: at least 1 is needed")
        start_ray(workers)
        _wait_for_cpus(workers)
        self._worker_args = (make_app, self.run_config, *(ray.put(arg) for arg in args))
        self._workers = [_Worker.remote(*self._worker_args) for _ in range(workers)]
        self._states: dict[int, ray.ObjectRef] = {}

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Replies in completion order. A message whose worker was lost is tried `TRIES` times, then answered with an error."""
        waiting = deque((message, TRIES) for message in self._prepare(messages))
        free, running, replies = list(self._workers), {}, []
        while waiting or running:
            while waiting and free:
                message, tries = waiting.popleft()
                worker, node = free.pop(0), message.metadata.dst_node_id
                result, state = worker.handle.remote(to_bytes(message), self._states.get(node, b""), self.node_config(node))
                running[result] = (message, tries - 1, worker, state)
            done, _ = ray.wait(list(running), num_returns=1)
            message, tries, worker, state = running.pop(done[0])
            free.append(worker)
            node = message.metadata.dst_node_id
            try:
                reply, is_new = ray.get(done[0])
            except ray.exceptions.RayActorError as error:
                if error.actor_init_failed:
                    raise EngineError(f"a worker cannot start: {str(error).strip().splitlines()[-1]}") from error
                free[-1] = self._replace(worker)
                if tries:
                    log.warning("the worker of device %d was lost; its round is tried again", node - 1)
                    waiting.appendleft((message, tries))
                    continue
                reply = error_reply(message, WORKER_LOST, f"device {node - 1}, stage worker: lost its worker {TRIES} times: {error}")
                is_new = False
            if is_new:
                self._states[node] = state
            replies.append(from_bytes(reply))
            self.on_reply(node - 1)
        return replies

    def _replace(self, lost: ray.actor.ActorHandle) -> ray.actor.ActorHandle:
        """A new worker in the place of a lost one. An actor that Ray restarts refuses calls until it is up; a new one lets them wait."""
        ray.kill(lost)
        fresh = _Worker.remote(*self._worker_args)
        self._workers[self._workers.index(lost)] = fresh
        return fresh

    def close(self) -> None:
        """End the workers; Ray itself goes on until `ray.shutdown`."""
        for worker in self._workers:
            ray.kill(worker)
        self._workers, self._states = [], {}
