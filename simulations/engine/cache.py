"""A worker's cache of device states: least recently used first out, over total bytes, written through.

A shared value counts once and comes back as the same object for every device, so an app can remember by it what it has made of it.
"""

from collections import OrderedDict

from simulations.engine.parcel import Parcel
from simulations.engine.store import StateStore, StoredState, digest, split

_Key = tuple[int, int] | str | tuple[str]


class StateCache:
    """`put` and `get` as of `store`, for one thread of one process. Versions are immutable, so what is held never goes stale."""

    def __init__(self, store: StateStore, capacity_bytes: int):
        """`capacity_bytes`: of states and shared values together; 0 holds nothing."""
        self.store, self._capacity = store, capacity_bytes
        # (device, exchange) -> state; digest -> shared value; (digest,) -> the last other object of the same content
        self._held: OrderedDict[_Key, StoredState | bytes] = OrderedDict()
        self._names: dict[int, str] = {}  # id of every shared value that is held, and so not given to another object -> digest
        self._bytes = 0

    @property
    def num_bytes(self) -> int:
        """Bytes held: never more than the capacity."""
        return self._bytes

    def put(self, device: int, exchange: int, parcel: Parcel) -> tuple[str, ...]:
        """Keep a state, in the store before this returns; the digests of the shared values that it refers to."""
        state, shared = split(parcel, self._digest)
        self.store.write(device, exchange, state, shared)
        for name, blob in shared.items():
            self._remember(name, blob)
        self._hold((device, exchange), state)
        return state.digests

    def get(self, device: int, exchange: int) -> Parcel:
        """A state that was put.

        Raises:
            StateLost: if it is not held, and missing or damaged in the store.
        """
        state = self._held.get((device, exchange))
        if state is None:
            state = self.store.read(device, exchange)
        parcel = state.parcel(lambda name: self._blob(name, device, exchange))
        self._hold((device, exchange), state)
        return parcel

    def use(self, store: StateStore) -> None:
        """From now on this is the store behind it; what is held stays."""
        self.store = store

    def _digest(self, blob: bytes) -> str:
        return self._names.get(id(blob)) or digest(blob)

    def _blob(self, name: str, device: int, exchange: int) -> bytes:
        blob = self._held.get(name)
        if blob is None:
            blob = self.store.read_blob(name, device, exchange)
        self._hold(name, blob)
        return blob

    def _remember(self, name: str, blob: bytes) -> None:
        """Hold a shared value. If another object of that content is held, that one stays, and of this one only the digest is of use."""
        first = self._held.get(name, blob)
        if first is not blob:
            self._hold((name,), blob)
        elif self._held.get((name,)) is blob:
            self._forget((name,))
        self._hold(name, first)

    def _hold(self, key: _Key, value: StoredState | bytes) -> None:
        """Put it in front, and let go of what was not used for longest until all fits."""
        if key in self._held:
            self._forget(key)
        if _size(value) > self._capacity:
            return
        self._held[key] = value
        self._bytes += _size(value)
        if isinstance(value, bytes):
            self._names[id(value)] = key if isinstance(key, str) else key[0]
        while self._bytes > self._capacity:
            self._forget(next(iter(self._held)))

    def _forget(self, key: _Key) -> None:
        value = self._held.pop(key)
        self._bytes -= _size(value)
        self._names.pop(id(value), None)


def _size(value: StoredState | bytes) -> int:
    return len(value) if isinstance(value, bytes) else value.num_bytes
