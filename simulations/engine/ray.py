"""The Ray engine: devices train on worker processes, whichever is free takes the next one.

A message's large parts go into Ray's store once per exchange, the ClientApp's arguments (data above all) once per run. Device
states go from worker to store and never through here. A worker that dies, hangs or lacks memory is replaced, and what it had been
given is handled again from the same states, with the same bits.
"""

import logging
import time
from collections.abc import Callable

import numpy as np
import ray
from ray import ObjectRef

from simulations.engine.adapter import WORKER_LOST, AppFactory, EngineError, Error, reply_to
from simulations.engine.grid import EngineGrid, Job
from simulations.engine.parcel import Parcel
from simulations.engine.pool import EngineOptions, Pool, Slot
from simulations.engine.queue import Queue
from simulations.engine.replicas import heal, open_store
from simulations.engine.store import StateStore
from simulations.engine.worker import Order
from sparcl_core.foreign import printable

log = logging.getLogger(__name__)
IN_FLIGHT = 2  # the next message is there when a worker is done, so that it need not wait for the driver
START_PATIENCE_S = 300.0
STILLBORN = 4  # a process that is lost so many times in a row before it has made an app will not make it


class RayGrid(EngineGrid):
    """Runs `make_app(*args)` in the processes of a pool."""

    def __init__(
        self,
        make_app: AppFactory,
        args: tuple,
        num_devices: int,
        *,
        workers: int = 0,
        run_config: dict | None = None,
        on_reply: Callable[[int], None] | None = None,
        store: StateStore | None = None,
        waits_for_commit: bool = False,
        pool: Pool | None = None,
        options: EngineOptions | None = None,
        reply_limit_bytes: int | None = None,
    ):
        """`store`: where device states are kept; default: in a folder of this machine, on a cluster with two of its nodes, until `close`.
        `pool`: workers that are already there, and stay; else a pool with `options`, or just `workers`, is opened.
        `reply_limit_bytes`: a larger reply is an error, and does not leave its worker.
        """
        self._own_pool = pool is None
        self._pool = pool or Pool(options or EngineOptions(workers=workers))
        self._own_store = store is None
        store = store or open_store(self._pool.options)
        super().__init__(
            num_devices,
            run_config=run_config,
            on_reply=on_reply,
            store=store,
            waits_for_commit=waits_for_commit,
            reply_limit_bytes=reply_limit_bytes,
        )
        self._queue = Queue()
        self._sent: dict[int, tuple[bytes, ObjectRef]] = {}
        cache_bytes = self._pool.options.cache_mb * 1_000_000
        put = [ray.put(arg) for arg in args]
        self._pool.setup(make_app, self.run_config, self.store, cache_bytes, reply_limit_bytes, *put)

    def close(self) -> None:
        """End the workers unless they were lent; remove device states unless the store was."""
        if self._own_pool:
            self._pool.close()
        if self._own_store:
            self.store.destroy()

    # -- messages out

    @property
    def num_workers(self) -> int:
        """Processes at work."""
        return len(self._pool.slots)

    def _submit(self, jobs: list[Job]) -> None:
        self._sent = {}
        self._queue.add(jobs, {slot.number for slot in self._pool.slots})
        self._feed()

    def _feed(self) -> None:
        """Idle workers first; more than one message in flight only where that leaves enough for the others.

        Who may have brought a worker down is tried alone, so that it becomes known.
        """
        slots = [slot for slot in self._pool.slots if slot.starting is None]
        for depth in range(IN_FLIGHT):
            for slot in slots:
                is_ahead = depth and (self._queue.has_suspects or slot.in_flight and slot.in_flight[0][1][0].alone)
                if len(slot.in_flight) == depth and not is_ahead and (not depth or len(self._queue) >= len(slots)):
                    self._hand_out(slot, len(slots))

    def _hand_out(self, slot: Slot, workers: int) -> None:
        batch = self._one_each(self._queue.take(slot.number, workers))
        if not batch:
            return
        orders = []
        for job in batch:
            blobs = [self._stored(blob) for blob in job.payload.blobs]
            config, made = self.node_config(job.device + 1), self.manifest.current(job.device)
            orders.append(Order(job.payload.shell, blobs, job.device, config, made, job.exchange))
        if not slot.in_flight:
            slot.since = time.monotonic()
        slot.in_flight.append((slot.handle.work.remote(orders), batch))

    def _one_each(self, batch: list[Job]) -> list[Job]:
        """Those of `batch` whose device is not at work already: the others wait for the state that it will leave."""
        busy = {job.device for slot in self._pool.slots for job in _jobs(slot.in_flight)}
        now, later = [], []
        for job in batch:
            (later if job.device in busy else now).append(job)
            busy.add(job.device)
        self._queue.add_again(later)
        return now

    def _stored(self, blob: bytes) -> ObjectRef:
        """The blob in Ray's store, put there once however many messages it is in."""
        if id(blob) not in self._sent:
            self._sent[id(blob)] = (blob, ray.put(np.frombuffer(blob, np.uint8)))
        return self._sent[id(blob)][1]

    def _forget(self, ids: set[str]) -> None:
        self._queue.forget(ids)

    # -- replies in

    def _step(self, timeout: float | None) -> None:
        until = None if timeout is None else time.monotonic() + timeout
        while True:
            if self._collect(until) or (until is not None and time.monotonic() >= until):
                return

    def _collect(self, until: float | None) -> bool:
        """Wait once; has a job been finished?"""
        if joined := self._pool.grow():
            log.debug("workers %s join", [slot.number for slot in joined])
        waiting = {slot.starting or slot.in_flight[0][0]: slot for slot in self._pool.slots if slot.starting or slot.in_flight}
        if not waiting:
            raise EngineError("no worker is left to do what waits; see the messages above")
        now, limits = time.monotonic(), [self._limit(slot) for slot in waiting.values()]
        patience = min([limit for limit in (*limits, until) if limit is not None], default=None)
        refs = list(waiting)
        found, _ = ray.wait(refs, num_returns=1, timeout=None if patience is None else max(0.0, patience - now))
        if found and len(refs) > 1:
            found, _ = ray.wait(refs, num_returns=len(refs), timeout=0)
        before = len(self._open)
        for ref in found:
            slot = waiting[ref]
            self._started(slot) if slot.starting is ref else self._answered(slot)
        for slot in waiting.values():  # as they are now: one that answered has begun with its next
            limit = self._limit(slot)
            if limit is not None and time.monotonic() >= limit:
                self._overdue(slot)
        self._feed()
        return len(self._open) < before

    def _limit(self, slot: Slot) -> float | None:
        """When the slot's worker is overdue."""
        if slot.starting is not None:
            return self._pool.started + START_PATIENCE_S
        allowed = self._pool.options.device_timeout_s
        return slot.since + allowed * len(slot.in_flight[0][1]) if allowed and slot.in_flight else None

    def _started(self, slot: Slot) -> None:
        try:
            slot.process, slot.stillborn = ray.get(slot.starting), 0
        except ray.exceptions.RayTaskError as error:
            raise EngineError(f"a worker cannot start: {_last_line(error)}") from error
        except ray.exceptions.RayError as error:
            if getattr(error, "actor_init_failed", False):
                raise EngineError(f"a worker cannot start: {_last_line(error)}") from error
            slot.stillborn += 1
            if slot.stillborn == STILLBORN:
                raise EngineError(f"a worker cannot start: its process {_what_happened(error)}, {STILLBORN} times in a row") from error
            self._lost(slot, _what_happened(error), [], [])
            return
        slot.starting = None

    def _answered(self, slot: Slot) -> None:
        ref, batch = slot.in_flight[0]
        try:
            done, seconds, lost = ray.get(ref)
        except ray.exceptions.RayTaskError as error:
            slot.in_flight.popleft()  # it is told once
            raise EngineError(f"a worker cannot go on with device {batch[0].device}: {_last_line(error)}") from error
        except ray.exceptions.RayError as error:
            self._lost(slot, _what_happened(error), _jobs(slot.in_flight), [])
            return
        slot.in_flight.popleft()
        slot.since = time.monotonic()
        self._queue.took(batch[0].request.message_type, seconds, len(done))
        self._heal(lost)
        for job, one in zip(batch, done, strict=False):
            if one.out_of_memory:
                self._lost(slot, "ran out of memory", [job], batch[len(done) :] + _jobs(slot.in_flight))
                return
            self._receive(job, Parcel(one.shell, tuple(blob.tobytes() for blob in one.blobs)), one.state)

    def _heal(self, lost: list[str]) -> None:
        """If a node that held device states is lost, they are held by others from now on."""
        if healed := heal(self.store.files, lost):
            self.store.files = healed  # in place: whoever lent the store destroys, at the end, what it is by then
            self._pool.use(self.store)

    def commit(self) -> None:
        super().commit()
        self._heal([])

    def _overdue(self, slot: Slot) -> None:
        if slot.starting is not None:
            if all(other.starting for other in self._pool.slots):
                raise EngineError(
                    f"no worker has started for {START_PATIENCE_S:.0f} s: are there CPUs free for them? Try fewer with --workers"
                )
            log.warning("a worker has not started for %.0f s: going on without it", START_PATIENCE_S)
            self._pool.drop(slot)
            self._queue.gone(slot.number)
            return
        allowed = self._pool.options.device_timeout_s * len(slot.in_flight[0][1])
        suspects, *others = [batch for _, batch in slot.in_flight]
        self._lost(slot, f"did not answer within {allowed:g} s", suspects, [job for batch in others for job in batch])

    def _lost(self, slot: Slot, what: str, suspects: list[Job], others: list[Job]) -> None:
        """The slot's worker is gone: what it had been given is tried again. The user sees one line.

        Args:
            suspects: one of them brought the worker down, or none. A single one has used up a try; several, of which nobody knows which
                one it was, are tried again one by one.
            others: what it had been given besides.
        """
        suspects = [job for job in suspects if job.id in self._open]
        self._pool.replace(slot)
        again = []
        for job in suspects:
            job.alone = True
            job.tries += len(suspects) == 1
            if job.tries < self._pool.options.tries:
                again.append(job)
                continue
            reason = f"device {job.device}, stage worker: its worker {what}; tried {job.tries} times"
            self._finish(job, reply_to(job.request, error=Error(WORKER_LOST, reason)), None)
        if again:
            names = ", ".join(str(job.device) for job in again[:5]) + (", ..." if len(again) > 5 else "")
            log.warning("the worker of device%s %s %s: tried again by another", "s" if len(again) > 1 else "", names, what)
        elif not suspects:
            log.warning("a worker %s before it had anything to do: it is replaced", what)
        self._queue.add_again(again + [job for job in others if job.id in self._open])


def _jobs(in_flight) -> list[Job]:
    return [job for _, batch in in_flight for job in batch]


def _last_line(error: Exception) -> str:
    return printable((str(error).strip().splitlines() or [type(error).__name__])[-1])


def _what_happened(error: ray.exceptions.RayError) -> str:
    """What became of a worker, for the user."""
    if isinstance(error, ray.exceptions.OutOfMemoryError):
        return "was ended by Ray, because its node ran out of memory"
    text = str(error).lower()
    if "node" in text and ("died" in text or "dead" in text or "terminated" in text) and "its node" in text:
        return "was lost with its node"
    return "was lost"
