"""Devices at work between two rounds, as arrays and back."""

import json

import numpy as np
import pytest
from test_snapshot import contents, differences
from worlds import play, tiny_world, toy_fleet

from server.rounds.in_flight import pack, unpack


@pytest.fixture(params=["shared", "nested", "local", "dense"])
def flights(request, tmp_path):
    """What devices of an asynchronous run are at after its first round, masks and jitter included."""
    overrides = {
        "shared": ("wire.importance=f32",),
        "nested": ("budget.memory=fit",),
        "local": ("federation.mask=local",),
        "dense": ("sparsity=0", "wire.up=f32", "wire.down=f32"),
    }[request.param]
    fleet = toy_fleet(tmp_path, 4, flops_per_s=[1e6, 4e6, 4e5, 3e5], memory_bytes=[1e6, 1e6, 135_000, 1e6], jitter_s=[0.1] * 4)
    overrides += ("stream.tasks=1", "clock.mode=async", "clock.buffer_size=1", "stream.partition=iid")
    if request.param != "nested":
        overrides += ("budget.memory=ignore",)
    found = {}

    def observe(record, strategy):
        if record.round == 2:
            arrays = {name: array.copy() for name, array in pack(strategy.rounds.flights).items()}
            found.update(arrays=arrays, flights=dict(strategy.rounds.flights), names=tuple(strategy.masks))

    play(tiny_world(*overrides, *fleet), observe=observe)
    assert len(found["flights"]) >= 2
    return found


def test_flights_are_unpacked_as_they_were(flights):
    """All the way down, floats to the bit and masks that were one object one again; and as JSON and plain arrays, no objects."""
    restored = unpack(flights["arrays"], flights["names"])
    assert list(restored) == list(flights["flights"])
    assert differences(contents(restored), contents(flights["flights"])) == set()
    assert {array.dtype.kind for array in flights["arrays"].values()} <= {"u", "b"}
    for one, other in zip(restored.values(), flights["flights"].values(), strict=True):
        for earlier, before in zip(restored.values(), flights["flights"].values(), strict=True):
            if one.request.base.masks:  # nobody asks whether two dense models have the same masks
                assert (one.request.base.masks is earlier.request.base.masks) == (other.request.base.masks is before.request.base.masks)


def test_what_is_packed_is_readable_without_our_code(flights):
    entries = json.loads(flights["arrays"]["text"].tobytes())
    assert [entry["member"][0] for entry in entries] == list(flights["flights"])
    assert all(entry["fate"]["outcome"] == "ok" and entry["where"]["round"] in (1, 2) for entry in entries)
    assert sum(sum(entry["report"]) for entry in entries) == flights["arrays"]["data"].size


def test_unpacked_masks_do_not_move_with_the_arrays(flights):
    restored = unpack(flights["arrays"], flights["names"])
    before = contents(restored)
    for array in flights["arrays"].values():
        array.flags.writeable = True
        array[...] = 0
    assert contents(restored) == before


def test_nobody_at_work_is_nothing_to_keep():
    arrays = pack({})
    assert unpack(arrays, ("w",)) == {} and {array.size for array in arrays.values()} == {2, 0}
    assert all(isinstance(array, np.ndarray) for array in arrays.values())
