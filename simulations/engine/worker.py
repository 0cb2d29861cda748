"""What runs in a worker process: the ClientApp for any device, a cache of device states, and the round's broadcast, fetched once."""

import importlib
import time
from dataclasses import dataclass

import numpy as np
import ray
from ray import ObjectRef

from simulations.engine.adapter import AppFactory, identify_process
from simulations.engine.boundary import handle, sendable
from simulations.engine.cache import StateCache
from simulations.engine.parcel import Parcel
from simulations.engine.process import ProcessOnNode, this_process
from simulations.engine.store import StateStore


@dataclass(frozen=True)
class Order:
    """A message for a device. made: the exchange in which the device's state was made, 0 if it has none; blobs: references."""

    shell: bytes
    blobs: list[ObjectRef]
    device: int
    node_config: dict
    made: int
    exchange: int


@dataclass(frozen=True)
class Finished:
    """A reply. blobs: uint8 arrays, which travel outside of the pickle; state: shared blobs of the new state, None if there is none."""

    shell: bytes
    blobs: list[np.ndarray]
    state: tuple[str, ...] | None
    out_of_memory: bool


class Worker:
    """One process that runs the ClientApp for any device; a Ray actor."""

    def __init__(self, warm: tuple[str, ...]):
        """`warm`: modules that take long to import and will be needed: while they are imported, the driver makes the world."""
        identify_process()
        for name in warm:
            importlib.import_module(name)
        self._fetched: dict[str, tuple[int, bytes]] = {}

    def setup(
        self, make_app: AppFactory, run_config: dict, store: StateStore, cache_bytes: int, reply_limit_bytes: int | None, *args
    ) -> ProcessOnNode:
        """Make the app; `args` come from Ray's store, where all workers of a node read the same copy. Returns which process this is."""
        try:
            self._app = make_app(*args)
        except BaseException as error:
            if (told := sendable(error)) is error:
                raise
            raise told from None
        self._run_config, self._reply_limit_bytes = run_config, reply_limit_bytes
        self._states = StateCache(store, cache_bytes)
        return this_process()

    def use(self, store: StateStore) -> None:
        """From now on device states are kept there."""
        self._states.use(store)

    def work(self, orders: list[Order]) -> tuple[list[Finished], float, list[int]]:
        """Handle messages one after the other, up to the first that lacks memory. New states are in the store when this returns.

        Returns:
            Replies in the order of the messages, seconds, and what of the store was lost (see `ReplicaFiles`).
        """
        started, done = time.perf_counter(), []
        for order in orders:
            done.append(self._handle(order))
            if done[-1].out_of_memory:
                break
        return done, time.perf_counter() - started, list(getattr(self._states.store.files, "lost", ()))

    def _handle(self, order: Order) -> Finished:
        message = Parcel(order.shell, tuple(self._fetch(ref, order.exchange) for ref in order.blobs))
        state = self._states.get(order.device, order.made) if order.made else None
        handled = handle(
            self._app, message, state, node_config=order.node_config, run_config=self._run_config, limit_bytes=self._reply_limit_bytes
        )
        moved = None
        if handled.state is not None:
            moved = self._states.put(order.device, order.exchange, handled.state)
        reply = handled.reply
        return Finished(reply.shell, [np.frombuffer(blob, np.uint8) for blob in reply.blobs], moved, handled.out_of_memory)

    def _fetch(self, ref: ObjectRef, exchange: int) -> bytes:
        """A blob of the driver's; all devices of an exchange get the same object, and so can share what an app makes of it."""
        key = ref.hex()
        if key not in self._fetched:
            self._fetched = {old: found for old, found in self._fetched.items() if found[0] >= exchange - 1}
            self._fetched[key] = (exchange, ray.get(ref).tobytes())
        blob = self._fetched[key][1]
        self._fetched[key] = (exchange, blob)
        return blob
