"""Which version of every device's state counts. The states themselves lie in a store; the driver only knows their numbers.

A state is never changed, only followed by another one, numbered by the exchange in which it was made. What a device did counts
at once for its next message, but it is final only with `commit`: until then the store keeps what was final before, so that a
run that dies goes on from its last checkpoint. Where there are checkpoints, the store also keeps what the one before the last needs.
"""

from collections.abc import Iterable

import numpy as np

from simulations.engine.states import StateChanges

State = tuple[int, tuple[str, ...]]  # exchange, digests of the shared blobs that the state refers to
NONE: State = (0, ())


class Manifest:
    """The driver's view of all device states: about 250 bytes for every device that was ever reached.

    `keeps_older`: what a commit replaces stays until the next one, for whoever has to go on from the commit before the last.
    """

    def __init__(self, keeps_older: bool = True):
        self._keeps_older = keeps_older
        self.exchange = 0  # the last one that was begun
        self._current: dict[int, State] = {}
        self._final: dict[int, State] = {}  # before the changes: only of devices that changed since the last commit
        self._older: list[tuple[int, State]] = []  # what the last commit replaced
        self._garbage: list[tuple[int, State]] = []
        self._uses: dict[str, int] = {}  # blob -> states, current or final, that refer to it

    def begin(self) -> int:
        """The number of the next exchange, from 1."""
        self.exchange += 1
        return self.exchange

    def current(self, device: int) -> int:
        """The exchange in which the device's state was made, 0 if it has none."""
        return self._current.get(device, NONE)[0]

    def moved(self, device: int, exchange: int, blobs: tuple[str, ...]) -> None:
        """The device has a new state. If it had one of the same exchange, two messages in one, that one was written over."""
        old = self._current.get(device, NONE)
        self._current[device] = (exchange, blobs)
        self._use(blobs, 1)
        if device not in self._final:
            self._final[device] = old
        else:  # the second time since the last commit: the first one's state was never final
            self._garbage.append((device, old))

    def undo(self, device: int) -> None:
        """The device has the state again that it had at the last commit; without one since, it has it still."""
        if device in self._final:
            self._garbage.append((device, self._current.pop(device)))
            before = self._final.pop(device)
            if before != NONE:
                self._current[device] = before

    def changes(self) -> StateChanges:
        """What changed since the last commit, in device order."""
        devices = sorted(self._final)
        states = [self._current[device] for device in devices]
        exchanges = np.array([exchange for exchange, _ in states], np.int64)
        return StateChanges(np.array(devices, np.int64), exchanges, [blobs for _, blobs in states])

    def commit(self) -> tuple[list[tuple[int, int]], list[str]]:
        """Make the changes final. Returns the states and the blobs that nobody needs any more."""
        replaced = [(device, state) for device, state in self._final.items() if state != NONE]
        unwanted = [*self._older, *self._garbage, *(() if self._keeps_older else replaced)]
        self._final, self._garbage, self._older = {}, [], replaced if self._keeps_older else []
        states, blobs = {}, []
        for device, (made, refers_to) in unwanted:
            blobs += self._use(refers_to, -1)
            if made != self.current(device):
                states[device, made] = None
        return list(states), blobs

    def restore(self, exchange: int, history: Iterable[StateChanges]) -> tuple[set[tuple[int, int]], set[str]]:
        """Go on where a checkpoint was made. Returns the states and blobs that it and the one before it need; the store may forget all
        others.

        Args:
            exchange: the last one of the checkpoint.
            history: the changes of every commit up to it, in order.
        """
        self.exchange = exchange
        for changes in history:
            for _, (_, blobs) in self._older:
                self._use(blobs, -1)
            self._older = []
            for device, number, blobs in zip(changes.devices.tolist(), changes.exchanges.tolist(), changes.blobs, strict=True):
                if device in self._current:
                    self._older.append((device, self._current[device]))
                self._current[device] = (number, tuple(blobs))
                self._use(blobs, 1)
        return {(device, made) for device, (made, _) in [*self._current.items(), *self._older]}, set(self._uses)

    def _use(self, blobs: Iterable[str], step: int) -> list[str]:
        gone = []
        for blob in blobs:
            count = self._uses.get(blob, 0) + step
            if count:
                self._uses[blob] = count
            else:
                del self._uses[blob]
                gone.append(blob)
        return gone
