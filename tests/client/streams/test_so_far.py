"""Streams of joint training: every step brings the data of all steps so far."""

import numpy as np
import pytest

from client.streams.so_far import StreamsSoFar
from client.streams.stream import DrawnStreams, SplitStreams
from client.streams.task_order import ArrangedStreams
from sparcl_core.domains import Domains

CLASSES = ((0, 1), (2, 3), (4, 5))
Y = np.repeat(np.arange(6), 4)
X = np.arange(24 * 4, dtype=np.uint8).reshape(24, 1, 2, 2)


def split() -> SplitStreams:
    """Two devices; the second has no data of the first task."""
    flat = np.array([0, 5, 8, 9, 13, 20, 10, 14, 17, 18])
    return SplitStreams.of(X, Y, CLASSES, flat=flat, sizes=np.array([[2, 3, 1], [0, 2, 2]]))


def test_a_step_has_what_the_steps_before_have_too():
    streams = StreamsSoFar.of(split())
    assert streams.sizes.tolist() == [[2, 5, 6], [0, 2, 4]] and len(streams) == 2
    for device in (0, 1):
        assert streams[device].sizes == streams.sizes[device].tolist()
    data = streams[0].task(1)
    assert data.x.tobytes() == X[[0, 5, 8, 9, 13]].tobytes() and data.y.tolist() == Y[[0, 5, 8, 9, 13]].tolist()
    assert (data.classes, data.task) == ((0, 1, 2, 3), 1)
    assert streams[1].task(2).classes == (2, 3, 4, 5)  # of the first task it has nothing
    assert streams.all_samples(0)[2].tolist() == [20]  # the tables of a run speak of each step's own


def test_a_device_without_data_so_far_has_none():
    with pytest.raises(ValueError, match="the device has no data for task 0"):
        StreamsSoFar.of(split())[1].task(0)
    with pytest.raises(ValueError, match="task is 3: the stream has tasks 0 to 2"):
        StreamsSoFar.of(split())[1].task(3)


def test_in_an_order_of_each_devices_own_and_in_pieces():
    base = ArrangedStreams.of(split(), np.array([[2, 0, 1], [1, 2, 0]]), CLASSES, chunks=2)
    streams = StreamsSoFar.of(base)
    assert streams.chunks == 2 and streams.order.tolist() == base.order.tolist()
    assert streams.sizes.tolist() == np.cumsum(base.sizes, axis=1).tolist()
    assert streams[0].task(3).y.tolist() == np.concatenate([base[0].task(step).y for step in range(4) if base[0].sizes[step]]).tolist()
    assert streams[0].task(3).classes == (0, 1, 4, 5)


def test_each_task_keeps_its_own_transformation():
    one = SplitStreams.of(X, Y, (tuple(range(6)),), flat=np.arange(24), sizes=np.array([[24]]))
    base = ArrangedStreams.of(one, np.array([[0, 1]]), (tuple(range(6)),) * 2, domains=Domains("permuted", seed=0))
    data = StreamsSoFar.of(base)[0].task(1)
    assert data.x.tobytes() == base[0].task(0).x.tobytes() + base[0].task(1).x.tobytes()


def test_where_devices_draw_too():
    base = DrawnStreams.of(X, Y, CLASSES, devices=3, size=2, alpha=1.0, seed=0)
    assert StreamsSoFar.of(base).sizes.tolist() == [[2, 4, 6]] * 3
    assert StreamsSoFar.of(base)[2].task(2).y.shape == (6,)
