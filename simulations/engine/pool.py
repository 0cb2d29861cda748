"""The worker processes: as many Ray actors as there are CPUs for, replaced when they die, joined by more when nodes join.

A pool can be opened before there is anything to do: its processes start and import what will be needed while the driver is
busy with its own start.
"""

import logging
import math
import time
from collections import deque
from dataclasses import dataclass, field

import ray
from ray import ObjectRef
from ray.actor import ActorHandle

from simulations.engine import cluster
from simulations.engine.adapter import EngineError
from simulations.engine.grid import Job
from simulations.engine.process import ProcessOnNode, end_process
from simulations.engine.worker import Worker

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EngineOptions:
    """How a run is carried out. Nothing here changes its result.

    Attributes:
        workers: worker processes; 0: one per CPU, on a cluster also on nodes that join later.
        address: of a running Ray, `auto` or HOST:PORT; empty: one of our own on this machine.
        gpus_per_worker: share of a GPU that each worker holds, for ClientApps that use one.
        cache_mb: device states that each worker keeps in memory beside the store, in MB.
        device_timeout_s: wall-clock seconds after which a device counts as hung and its worker is replaced; 0: never.
        tries: how often a device is tried when it loses its worker, before it counts as failed.
    """

    workers: int = 0
    address: str = ""
    gpus_per_worker: float = 0.0
    cache_mb: int = 256
    device_timeout_s: float = 3600.0
    tries: int = 3

    def __post_init__(self):
        if self.workers < 0:
            raise EngineError(f"workers is {self.workers}: a number of processes, or 0 for one per CPU")
        amounts = {"gpus_per_worker": self.gpus_per_worker, "cache_mb": self.cache_mb, "device_timeout_s": self.device_timeout_s}
        for name, value in amounts.items():
            if not 0 <= value < math.inf:
                raise EngineError(f"{name} is {value}: it must be finite and not negative")
        if self.tries < 1:
            raise EngineError(f"tries is {self.tries}: a device must be tried at least once")


@dataclass(eq=False)
class Slot:
    """The place of one worker process.

    Attributes:
        starting: done when the process has made the app; None once it has, or while there is no app to make.
        in_flight: what it was given and has not answered, the first one being worked on.
        since: when the first one's turn began.
        process: which one it is, once it has made an app.
        stillborn: how many were lost in a row before that.
    """

    number: int
    handle: ActorHandle
    starting: ObjectRef | None = None
    in_flight: deque[tuple[ObjectRef, list[Job]]] = field(default_factory=deque)
    since: float = 0.0
    process: ProcessOnNode | None = None
    stillborn: int = 0


class Pool:
    """Worker processes on a Ray that this object started or attached to."""

    def __init__(self, options: EngineOptions, warm: tuple[str, ...] = ()):
        """`warm`: modules that the workers import at once.

        Raises:
            EngineError: if Ray cannot be started or reached, its nodes differ, or it has too few CPUs.
        """
        self.options, self._warm = options, warm
        self._setup: tuple | None = None
        self._numbers = 0
        if options.address:
            cluster.attach(options.address)
            cluster.check_nodes()
        else:
            self._start_here()
        workers = options.workers or self._room()
        if not workers:
            raise EngineError("Ray has no CPU free for a worker (or no GPU, with --gpus-per-worker): wait for others' work, or add a node")
        cluster.wait_for_cpus(workers)
        self._expect_gpus(workers)
        settings = {"num_cpus": 1, "num_gpus": options.gpus_per_worker, "max_concurrency": 1}
        if options.address:
            settings["scheduling_strategy"] = "SPREAD"
        self._class = ray.remote(Worker).options(**settings)
        self.slots: list[Slot] = []
        self._looked = time.monotonic()
        self._add(workers)

    def setup(self, *args) -> None:
        """Have all workers, and those that come later, make an app: arguments of `Worker.setup`.

        What they may still be at work on is of an app before this one: it is ended with their processes, and nobody hears of it.
        """
        self._setup = args
        for slot in self.slots:
            if slot.in_flight:
                self.replace(slot)
            else:
                slot.starting = slot.handle.setup.remote(*args)
        self.started = time.monotonic()

    def use(self, store) -> None:
        """Device states are kept elsewhere from now on."""
        make_app, run_config, _, *rest = self._setup
        self._setup = (make_app, run_config, store, *rest)
        for slot in self.slots:
            slot.handle.use.remote(store)

    def replace(self, slot: Slot) -> None:
        """A new process in the place of a lost one. An actor that Ray restarts refuses calls until it is up; a new one lets them wait."""
        self._end(slot)
        slot.handle = self._class.remote(self._warm)
        slot.in_flight.clear()
        slot.starting = slot.handle.setup.remote(*self._setup)
        self.started = time.monotonic()

    def drop(self, slot: Slot) -> None:
        """Give a place up."""
        self._end(slot)
        self.slots.remove(slot)

    def grow(self) -> list[Slot]:
        """Workers on CPUs that have joined since; looks once a second at most."""
        if self.options.workers or not self.options.address or time.monotonic() < self._looked + 1.0:
            return []
        self._looked = time.monotonic()
        waiting = sum(slot.starting is not None for slot in self.slots)
        joined = min(self._room() - waiting, cluster.all_cpus() - len(self.slots))
        if joined < 1:
            return []
        log.warning("%d more CPUs have joined: %d workers now", joined, len(self.slots) + joined)
        return self._add(joined)

    def close(self) -> None:
        """End the workers; Ray itself goes on until `ray.shutdown`."""
        for slot in self.slots:
            ray.kill(slot.handle)
        self.slots = []

    def _end(self, slot: Slot) -> None:
        ray.kill(slot.handle)
        if slot.process:  # the actor may be gone for Ray, and its process be there
            end_process(slot.process)
            slot.process = None

    def _add(self, workers: int) -> list[Slot]:
        added = []
        for _ in range(workers):
            slot = Slot(self._numbers, self._class.remote(self._warm))
            if self._setup is not None:
                slot.starting = slot.handle.setup.remote(*self._setup)
            self._numbers += 1
            added.append(slot)
        self.slots += added
        return added

    def _start_here(self) -> None:
        """A Ray of our own, unless one runs in this process."""
        options, there = self.options, cluster.cpus_here()
        if not ray.is_initialized() and options.workers > there:
            raise EngineError(f"workers is {options.workers}, but this machine has {there} CPUs: ask for fewer with --workers")
        cluster.start_ray(options.workers or there, cluster.gpus_here() if options.gpus_per_worker else 0)

    def _room(self) -> int:
        """Workers for which there is room now."""
        share = self.options.gpus_per_worker
        return min(cluster.free_cpus(), int(ray.available_resources().get("GPU", 0.0) / share)) if share else cluster.free_cpus()

    def _expect_gpus(self, workers: int) -> None:
        needed, there = workers * self.options.gpus_per_worker, ray.cluster_resources().get("GPU", 0.0)
        if needed > there:
            raise EngineError(
                f"{workers} workers with gpus_per_worker {self.options.gpus_per_worker} need {needed:g} GPUs, but there are {there:g}; "
                f"take a smaller share or fewer workers"
            )
