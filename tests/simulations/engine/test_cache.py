"""The cache gives what the store would give, never holds more than it may, and hands out one object per content."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulations.engine import cache as caches
from simulations.engine.cache import StateCache
from simulations.engine.files import MemoryFiles, StoreError
from simulations.engine.parcel import Parcel
from simulations.engine.store import SHARED_BYTES, StateLost, StateStore, digest

SIZE = SHARED_BYTES


def content(number: int, size: int = SIZE) -> bytes:
    """A new object every time."""
    return bytes(bytearray([number]) * size)


class Counting(MemoryFiles):
    """Keeps copies and gives copies, as files do, and remembers what was read."""

    def __init__(self):
        super().__init__()
        self.reads: list[str] = []

    def write(self, key, data):
        super().write(key, bytes(bytearray(data)))

    def read(self, key):
        self.reads.append(key)
        data = super().read(key)
        return None if data is None else bytes(bytearray(data))


@pytest.fixture
def store():
    return StateStore(Counting())


def reads(store: StateStore, kind: str = "") -> int:
    """How many files were read since the last look."""
    found = [key for key in store.files.reads if key.startswith(kind)]
    store.files.reads.clear()
    return len(found)


# -- any history

steps = st.lists(
    st.tuples(
        st.sampled_from(["put", "get", "copy"]),
        st.integers(0, 3),
        st.lists(st.tuples(st.integers(0, 3), st.sampled_from([3, SIZE, SIZE + 5])), max_size=3),
    ),
    max_size=25,
)


@given(steps, st.sampled_from([0, 10, SIZE, 2 * SIZE + 10, 4 * SIZE, 99 * SIZE]))
def test_the_cache_is_the_store_within_its_bounds(history, capacity):
    """Two workers on one store: both see what either put. Blobs of one content in one parcel are one object."""
    store = StateStore(Counting())
    workers = StateCache(store, capacity), StateCache(store, capacity)
    pool = {(number, size): content(number, size) for number in range(4) for size in (3, SIZE, SIZE + 5)}
    put = {}
    for exchange, (step, device, chosen) in enumerate(history):
        cache = workers[exchange % 2]
        if step == "get" and put:
            key = list(put)[device % len(put)]
            assert cache.get(*key) == put[key]
        else:
            blobs = tuple(pool[each] if step == "put" else content(*each) for each in chosen)
            put[device, exchange] = Parcel(b"%d" % exchange, blobs)
            digests = cache.put(device, exchange, put[device, exchange])
            assert digests == tuple(dict.fromkeys(digest(blob) for blob in blobs if len(blob) >= SIZE))
            assert store.get(device, exchange) == put[device, exchange]  # written through
        assert 0 <= cache.num_bytes <= capacity
    for key, parcel in put.items():
        for cache in workers:
            assert cache.get(*key) == parcel


# -- one object per content


def test_all_devices_hold_the_same_object(store):
    cache, first = StateCache(store, 10 * SIZE), content(1)
    cache.put(1, 1, Parcel(b"1", (first,)))
    cache.put(2, 1, Parcel(b"2", (content(1),)))
    store.put(3, 1, Parcel(b"3", (content(1),)))  # by another worker
    reads(store)
    assert all(cache.get(device, 1).blobs[0] is first for device in (1, 2, 3))
    assert reads(store, "blobs") == 0


def test_so_do_those_that_are_read(store):
    for device in (1, 2):
        store.put(device, 1, Parcel(b"%d" % device, (content(1), b"own")))
    cache = StateCache(store, 10 * SIZE)
    assert cache.get(1, 1).blobs[0] is cache.get(2, 1).blobs[0]
    assert reads(store, "blobs") == 1


def test_a_shared_value_counts_once(store):
    cache, model = StateCache(store, 10 * SIZE), content(1)
    for device in range(5):
        cache.put(device, 1, Parcel(b"shell", (model, b"own")))
    per_state = len(b"shell") + len(b"own") + len(digest(model))
    assert cache.num_bytes == SIZE + 5 * per_state
    cache.put(4, 1, Parcel(b"shell", (model, b"own")))  # the same again
    assert cache.num_bytes == SIZE + 5 * per_state


# -- hashing


@pytest.fixture
def hashed(monkeypatch):
    """What the cache has hashed."""
    found = []
    monkeypatch.setattr(caches, "digest", lambda blob: found.append(blob) or digest(blob))
    return found


def test_an_object_is_hashed_once(store, hashed):
    cache, model = StateCache(store, 10 * SIZE), content(1)
    for device in range(5):
        cache.put(device, 1, Parcel(b"", (model,)))
    assert len(hashed) == 1
    cache.put(1, 2, cache.get(1, 1))
    assert len(hashed) == 1


def test_so_is_one_whose_content_was_there_as_another_object(store, hashed):
    store.put(1, 1, Parcel(b"", (content(1),)))
    cache, model = StateCache(store, 10 * SIZE), content(1)
    first = cache.get(1, 1).blobs[0]
    for device in range(5):
        cache.put(device, 2, Parcel(b"", (model,)))
    assert hashed == [model] and hashed[0] is model
    assert cache.get(4, 2).blobs[0] is first is not model


def test_objects_of_one_content_do_not_push_others_out(store):
    """A worker that unpacks the same broadcast anew for every device."""
    cache = StateCache(store, 4 * SIZE)
    cache.put(0, 1, Parcel(b"", (content(7),)))
    for device in range(1, 50):
        cache.put(device, 1, Parcel(b"", (content(1),)))
    reads(store)
    cache.get(0, 1)
    assert reads(store) == 0


def test_another_object_in_the_place_of_a_forgotten_one_is_hashed(store):
    """Python gives the id of an object that is gone to a new one."""
    cache = StateCache(store, SIZE + 100)
    digests = [digest(content(number)) for number in range(50)]
    for number, name in enumerate(digests):
        assert cache.put(1, number, Parcel(b"", (content(number),))) == (name,)


# -- the bound


def test_what_was_not_used_for_longest_goes_first(store):
    cache = StateCache(store, 3 * SIZE + 300)
    for device in (1, 2, 3):
        cache.put(device, 1, Parcel(b"", (content(device),)))
    cache.get(1, 1)
    cache.put(4, 1, Parcel(b"", (content(4),)))
    reads(store)
    for device in (1, 3, 4):
        cache.get(device, 1)
    assert reads(store) == 0
    assert cache.get(2, 1).blobs == (content(2),) and reads(store, "blobs") == 1


def test_what_is_larger_than_the_cache_pushes_nothing_out(store):
    cache = StateCache(store, SIZE + 100)
    cache.put(1, 1, Parcel(b"", (content(1),)))
    cache.put(2, 1, Parcel(b"", (content(2, 5 * SIZE),)))
    reads(store)
    cache.get(1, 1)
    assert reads(store) == 0
    assert cache.get(2, 1).blobs == (content(2, 5 * SIZE),)


def test_a_cache_of_nothing_works(store):
    cache, model = StateCache(store, 0), content(1)
    assert cache.put(1, 1, Parcel(b"s", (model, b"own"))) == (digest(model),)
    assert cache.get(1, 1) == Parcel(b"s", (model, b"own")) and cache.num_bytes == 0


# -- the store behind it


def test_what_could_not_be_written_is_not_held(store, monkeypatch):
    cache = StateCache(store, 10 * SIZE)
    monkeypatch.setattr(Counting, "write", lambda self, key, data: os.stat("/nowhere"))
    with pytest.raises(StoreError, match="cannot write the state of device 1"):
        cache.put(1, 1, Parcel(b"s", (content(1),)))
    assert cache.num_bytes == 0
    with pytest.raises(StateLost, match="device 1 after exchange 1"):
        cache.get(1, 1)


def test_a_shared_value_that_was_dropped_is_written_again(store):
    """That the cache holds it does not mean that the store does."""
    cache, model = StateCache(store, 10 * SIZE), content(1)
    digests = cache.put(1, 1, Parcel(b"", (model,)))
    store.drop([(1, 1)], digests)
    cache.put(1, 2, Parcel(b"", (model,)))
    assert store.get(1, 2).blobs == (model,)


def test_a_lost_state_is_named(store):
    cache = StateCache(store, 10 * SIZE)
    (name,) = store.put(8, 2, Parcel(b"", (content(1),)))
    store.drop([], [name])
    with pytest.raises(StateLost, match=f"device 8 after exchange 2 .* blob {name}, which is not there"):
        cache.get(8, 2)
