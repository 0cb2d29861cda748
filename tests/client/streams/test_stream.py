"""A stream hands out a device's own samples, task by task; a fleet of streams is a few arrays."""

import pickle

import numpy as np
import pytest
from effort import at_most
from hypothesis import given
from hypothesis import strategies as st

from client.streams.stream import DrawnStreams, SplitStreams, Stream, Streams
from sparcl_core.seeding import generator

X = np.arange(10, dtype=np.uint8).reshape(10, 1, 1, 1)  # image i is the number i
Y = np.array([0, 1, 0, 1, 2, 3, 2, 3, 2, 3])
STREAM = Stream(X, Y, (np.array([0, 3]), np.array([], dtype=int), np.array([4, 5, 8])), ((0, 1), (0, 1), (2, 3)))


def test_a_task_holds_the_devices_samples_with_their_labels():
    data = STREAM.task(2)
    assert data.x.ravel().tolist() == [4, 5, 8]
    assert data.y.tolist() == [2, 3, 2]
    assert (data.classes, data.task) == ((2, 3), 2)
    assert STREAM.sizes == [2, 0, 3]


def test_a_task_is_a_copy_that_may_be_changed():
    STREAM.task(0).x[:] = 99
    assert X.ravel().tolist() == list(range(10))


@pytest.mark.parametrize("task", [-1, 3])
def test_a_task_that_does_not_exist_is_refused(task):
    with pytest.raises(ValueError, match=f"task is {task}: the stream has tasks 0 to 2"):
        STREAM.task(task)


def test_a_task_without_data_is_refused():
    with pytest.raises(ValueError, match="no data for task 1"):
        STREAM.task(1)


# -- a fleet

SIZES = np.array([[2, 0, 1], [0, 0, 0], [1, 3, 2]])  # three devices, three tasks
SPLIT = SplitStreams.of(X, Y, ((0,), (1,), (2, 3)), flat=np.arange(9)[::-1].copy(), sizes=SIZES)


def fleet(devices: int = 4, size: int = 6, alpha: float = 1.0, seed: int = 0, counts: tuple[int, ...] = (30, 20, 10, 40)) -> DrawnStreams:
    """Two tasks of two classes; `counts`: samples per class, in random order."""
    y = generator(0, "labels").permutation(np.repeat(np.arange(len(counts)), counts))
    x = np.arange(len(y), dtype=np.uint8).reshape(-1, 1, 1, 1)
    return DrawnStreams.of(x, y, ((0, 1), (2, 3)), devices=devices, size=size, alpha=alpha, seed=seed)


def test_a_split_fleet_is_cut_device_by_device_and_task_by_task():
    assert len(SPLIT) == 3 and SPLIT.sizes.tolist() == SIZES.tolist()
    assert [[part.tolist() for part in stream.samples] for stream in SPLIT] == [[[8, 7], [], [6]], [[], [], []], [[5], [4, 3, 2], [1, 0]]]
    assert [stream.classes for stream in SPLIT] == [((0,), (1,), (2, 3))] * 3


@pytest.mark.parametrize("streams", [SPLIT, fleet()], ids=["split", "drawn"])
def test_a_fleet_is_a_sequence_of_streams(streams):
    assert isinstance(streams, Streams)
    assert streams.sizes.shape == (len(streams), len(streams.classes)) and streams.sizes.dtype == np.int64
    for device, stream in enumerate(streams):
        assert stream.sizes == streams.sizes[device].tolist()
        assert stream.x is streams.x and stream.y is streams.y
        for task, own in enumerate(stream.samples):
            assert own.dtype == np.int64 and np.array_equal(own, streams.samples(device, task))
    for device in (-1, len(streams)):
        with pytest.raises(IndexError, match=f"device is {device}: the fleet has devices 0 to {len(streams) - 1}"):
            streams[device]


@pytest.mark.parametrize("streams", [SPLIT, fleet()], ids=["split", "drawn"])
def test_a_fleet_travels_as_arrays_that_are_not_copied(streams):
    """As Ray stores it: pickle protocol 5 leaves every array out of the message, and workers read it where it lies."""
    arrays = []
    message = pickle.dumps(streams, protocol=5, buffer_callback=arrays.append)
    assert len(message) < 2000
    read_only = [memoryview(bytes(array.raw())) for array in arrays]
    arrived = pickle.loads(message, buffers=read_only)
    for stream, other in zip(arrived, streams, strict=True):
        for task, size in enumerate(stream.sizes):
            if size:
                assert np.array_equal(stream.task(task).x, other.task(task).x)
    sizes = {len(array.raw()) for array in arrays}
    assert {streams.x.nbytes, streams.y.nbytes} <= sizes


# -- drawn


@given(
    counts=st.tuples(*[st.integers(0, 30)] * 4), size=st.integers(1, 60), seed=st.integers(0, 99),
    alpha=st.sampled_from([1e-12, 1e-3, 0.1, 1.0, 100.0, 1e12]),
)  # fmt: skip
def test_a_draw_has_the_size_and_the_classes_asked_for_and_nothing_twice(counts, size, seed, alpha):
    """Also where a class is empty, or the device takes all that there is."""
    if min(counts[0] + counts[1], counts[2] + counts[3]) < size:
        return
    streams = fleet(2, size, alpha, seed, counts)
    for stream in streams:
        for own, members in zip(stream.samples, streams.classes, strict=True):
            assert len(own) == len(set(own.tolist())) == size
            assert np.isin(streams.y[own], members).all()


def test_a_draw_depends_on_its_address_alone():
    """Not on the order of asking, nor on how many devices there are."""
    few, many = fleet(devices=3, seed=5), fleet(devices=10**9, seed=5)
    backwards = [many.samples(device, task).tolist() for device in (2, 1, 0) for task in (1, 0)]
    assert backwards[::-1] == [few.samples(device, task).tolist() for device in (0, 1, 2) for task in (0, 1)]
    assert len({tuple(own) for own in backwards}) == 6
    assert few.samples(0, 0).tolist() != fleet(seed=6).samples(0, 0).tolist()
    assert len(many[10**9 - 1].task(1).y) == 6


def test_what_a_full_class_cannot_take_the_others_do():
    """Of 3 and 40 samples every device takes 30: at least 27 are of the second class, whatever its mix."""
    streams = fleet(50, 30, 0.01, counts=(3, 40, 30, 0))
    of_first = [int(np.count_nonzero(streams.y[streams.samples(device, 0)] == 0)) for device in range(50)]
    assert set(of_first) == {0, 3}  # at alpha 0.01 it wants none or all
    assert all((streams.y[streams.samples(device, 1)] == 2).all() for device in range(50))  # all 30 of the one class that has any


def test_class_mixes_are_those_of_the_distribution():
    """Dirichlet(a, a): a share p has mean 1/2 and variance 1 / (4 (2a + 1)). The count of n draws is then beta-binomial with mean n/2 and
    variance n/4 (2a + n) / (2a + 1): for n = 6, a = 1 it is 4 (3/2 * 8/3), for a = 100 it is 1.537. 2000 devices: the mean errs by
    sqrt(4/2000) = 0.045; the variance, whose kurtosis is below 3, by less than 4 sqrt(2/2000) = 0.13. Allowed: 4 of them."""
    for alpha, variance in ((1.0, 4.0), (100.0, 1.537)):
        streams = fleet(2000, 6, alpha)
        counts = [np.count_nonzero(streams.y[streams.samples(device, 1)] == 2) for device in range(2000)]
        assert abs(np.mean(counts) - 3) < 0.18
        assert abs(np.var(counts) - variance) < 0.52
    streams = fleet(200, 6, 0.001)
    assert np.mean([len(set(streams.y[stream.samples[0]])) == 1 for stream in streams]) > 0.95


def test_samples_of_a_class_are_drawn_uniformly_and_lie_in_any_order():
    """Every one of the 10 samples of class 2 is drawn as often as the others, and comes first as often as last: 6 of 50 a device, 4000
    devices, alpha large: a sample is in a device's draw with p = 3/10. Expected 1200, deviation sqrt(4000 * .3 * .7) = 29. Allowed: 4.5."""
    streams = fleet(4000, 6, 1e6)
    members = np.flatnonzero(streams.y == 2)
    drawn = np.stack([streams.samples(device, 1) for device in range(4000)])
    totals = np.array([np.count_nonzero(drawn == member) for member in members])
    assert (np.abs(totals - 1200) < 131).all()
    is_two = streams.y[drawn] == 2  # [devices, place]: half of every place
    assert (np.abs(is_two.mean(0) - 0.5) < 4.5 * 0.5 / np.sqrt(4000)).all()


def test_more_than_a_task_has_cannot_be_drawn():
    fleet(size=50)
    with pytest.raises(ValueError, match=r"size is 51: task 0 \(classes \(0, 1\)\) has only 50 samples, and a device has none twice"):
        fleet(size=51)


def test_a_million_drawn_devices_cost_nothing_until_they_are_asked():
    """And then each costs its own draw."""
    with at_most(calls=100_000):
        streams = fleet(devices=1_000_000, size=20)
        assert streams.sizes.sum() == 40_000_000 and streams.sizes.base.nbytes <= 8
        for device in range(0, 1_000_000, 10_000):
            streams[device]
