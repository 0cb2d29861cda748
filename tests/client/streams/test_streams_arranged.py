"""Tasks in an order of their own: again and again, in pieces, transformed; nothing lost and nothing copied."""

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.streams.stream import DrawnStreams, SplitStreams, Streams
from client.streams.task_order import ArrangedStreams
from sparcl_core.domains import Domains
from sparcl_core.seeding import generator

CLASSES = ((0, 1), (2, 3), (4, 5))
Y = generator(0, "labels").permutation(np.repeat(np.arange(6), 20))
X = generator(0, "images").integers(0, 256, (120, 1, 4, 4)).astype(np.uint8)


def split(devices: int = 3, seed: int = 0, classes: tuple = CLASSES) -> SplitStreams:
    """Some of each task's samples on every device; at least one of task 0."""
    rng = generator(seed, "split")
    sizes = rng.integers(0, 7, (devices, len(classes)))
    sizes[:, 0] += 1
    flat = [rng.choice(np.flatnonzero(np.isin(Y, classes[task])), sizes[device, task], replace=False)
            for device in range(devices) for task in range(len(classes))]  # fmt: skip
    return SplitStreams.of(X, Y, classes, flat=np.concatenate(flat), sizes=sizes)


def drawn(devices: int = 3, blur: float = 0.0, classes: tuple = CLASSES) -> DrawnStreams:
    return DrawnStreams.of(X, Y, classes, devices=devices, size=7, alpha=1.0, seed=0, blur=blur)


def row(*tasks: int) -> np.ndarray:
    return np.array([tasks])


OWN = np.array([[0, 1, 2], [2, 0, 1], [1, 1, 0]])
FLEETS = {
    "split": ArrangedStreams.of(split(), OWN, CLASSES, cycles=2, chunks=3),
    "drawn": ArrangedStreams.of(drawn(), OWN, CLASSES, cycles=2, chunks=3),
    "same order": ArrangedStreams.of(split(), row(2, 1, 0), CLASSES, chunks=2),
    "blurred": ArrangedStreams.of(drawn(blur=0.4), OWN, CLASSES, cycles=2),
    "domains": ArrangedStreams.of(split(classes=((0, 1, 2),)), OWN, ((0, 1, 2),) * 3, domains=Domains("rotated", 0, 30.0)),
}


@pytest.mark.parametrize("streams", FLEETS.values(), ids=FLEETS)
def test_a_fleet_says_the_same_as_a_whole_and_device_by_device(streams):
    assert isinstance(streams, Streams) and len(streams) == 3
    assert streams.sizes.dtype == np.int64 and streams.order.dtype == np.int32 and streams.sizes.shape == streams.order.shape
    for device, stream in enumerate(streams):
        assert stream.sizes == streams.sizes[device].tolist()
        assert list(stream.order) == streams.order[device].tolist() == list(streams.order_of(device))
        assert stream.x is streams.x and stream.domains is streams.domains
        for step, own in enumerate(stream.samples):
            assert own.dtype == np.int64 and np.array_equal(own, streams.samples(device, step))
            assert set(streams.y[own].tolist()) <= set(stream.classes[step])


def test_order_by_hand():
    """Tasks 2, 0, 1 of device 1, twice, each in 3 pieces."""
    assert FLEETS["split"].order[1].tolist() == [2, 2, 2, 0, 0, 0, 1, 1, 1] * 2
    assert FLEETS["same order"].order.tolist() == [[2, 2, 1, 1, 0, 0]] * 3
    assert [FLEETS[key].chunks for key in ("split", "same order", "blurred")] == [3, 2, 1]


@given(st.integers(0, 50), st.integers(1, 4), st.integers(1, 3))
def test_pieces_make_up_their_task_and_are_even(seed, chunks, cycles):
    """Piece by piece every sample of the task once, in every cycle; sizes differ by one at most."""
    base = split(seed=seed)
    streams = ArrangedStreams.of(base, OWN, CLASSES, cycles=cycles, chunks=chunks)
    for device in range(3):
        samples = streams.all_samples(device)
        assert len(samples) == 3 * cycles * chunks
        for place, task in enumerate(OWN[device].tolist() * cycles):
            pieces = samples[place * chunks : (place + 1) * chunks]
            assert np.array_equal(np.concatenate(pieces), base.samples(device, task))
            sizes = [len(piece) for piece in pieces]
            assert max(sizes) - min(sizes) <= 1


def test_steps_of_a_recurring_task_have_numbers_and_the_same_samples():
    """So that learning it again draws other batches."""
    stream = ArrangedStreams.of(split(), row(1, 0, 2), CLASSES, cycles=2)[0]
    first, again = stream.task(1), stream.task(4)
    assert (first.task, again.task) == (1, 4) and first.classes == again.classes == (0, 1)
    assert np.array_equal(first.x, again.x) and np.array_equal(first.y, again.y)
    with pytest.raises(ValueError, match="task is 6: the stream has tasks 0 to 5"):
        stream.task(6)


def test_domains_transform_the_task_that_a_step_is():
    """The same samples under every task, by the task and not by the step; the shared images stay as they are."""
    streams, before = FLEETS["domains"], X.copy()
    domains = Domains("rotated", 0, 30.0)
    for device, stream in enumerate(streams):
        own = streams.base.samples(device, 0)
        for step, task in enumerate(OWN[device].tolist()):
            data = stream.task(step)
            assert np.array_equal(data.x, domains.apply(X[own], task)) and np.array_equal(data.y, Y[own])
            assert data.classes == (0, 1, 2)
    assert np.array_equal(X, before)


def test_a_task_of_the_first_domain_is_a_copy_that_may_be_changed():
    before = X.copy()
    FLEETS["domains"][0].task(0).x[:] = 99
    assert np.array_equal(X, before)


def test_a_million_devices_in_one_order_cost_nothing():
    streams = ArrangedStreams.of(drawn(1_000_000), row(0, 1, 2), CLASSES, cycles=3, chunks=5)
    for table in (streams.sizes, streams.order):
        assert table.shape == (1_000_000, 45) and table.strides[0] == 0
    assert streams.sizes[0].tolist() == [1, 1, 2, 1, 2] * 9  # 7 in 5 pieces
    assert streams[999_999].sizes == streams.sizes[999_999].tolist()


def test_a_fleet_travels_as_arrays_that_are_not_copied():
    for streams in FLEETS.values():
        arrays = []
        message = pickle.dumps(streams, protocol=5, buffer_callback=arrays.append)
        assert len(message) < 3000
        arrived = pickle.loads(message, buffers=[memoryview(bytes(array.raw())) for array in arrays])
        for stream, other in zip(arrived, streams, strict=True):
            for step, size in enumerate(stream.sizes):
                if size:
                    assert np.array_equal(stream.task(step).x, other.task(step).x)


@pytest.mark.parametrize(
    ("sequences", "classes", "options", "text"),
    [
        (row(0, 1, 2), CLASSES, {"cycles": 0}, "cycles is 0"),
        (row(0, 1, 2), CLASSES, {"chunks": 0}, "chunks 0"),
        (np.zeros((2, 3), int), CLASSES, {}, r"shape \(2, 3\): a row for each of 3 devices"),
        (row(0, 1, 3), CLASSES, {}, "tasks 0 to 3: there are tasks 0 to 2"),
        (row(0, 1, 2), CLASSES, {"domains": Domains("permuted", 0)}, "base has 3 tasks: with domains it has one"),
        (row(0, 1), CLASSES[:2], {}, "classes are of 2 tasks, base has 3"),
    ],
)
def test_parts_must_fit(sequences, classes, options, text):
    with pytest.raises(ValueError, match=text):
        ArrangedStreams.of(split(), sequences, classes, **options)
