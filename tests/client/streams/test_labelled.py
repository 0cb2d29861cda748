"""Streams with a share of the labels: the first samples of every step, rounded up, and nothing else."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.streams.labelled import LabelledStreams
from client.streams.so_far import StreamsSoFar
from client.streams.stream import DrawnStreams, SplitStreams
from client.streams.task_order import ArrangedStreams
from simulations.config.sections import StreamConfig

CLASSES = ((0, 1), (2, 3))
Y = np.repeat(np.arange(4), 6)
X = np.arange(24 * 4, dtype=np.uint8).reshape(24, 1, 2, 2)


def split() -> SplitStreams:
    flat = np.array([0, 5, 8, 9, 13, 20, 10, 14, 17, 18])
    return SplitStreams.of(X, Y, CLASSES, flat=flat, sizes=np.array([[3, 4], [0, 3]]))


@given(st.floats(0.01, 1.0))
def test_the_first_samples_of_each_step(rate):
    base = split()
    streams = LabelledStreams.of(base, rate=rate)
    for device in (0, 1):
        for step in (0, 1):
            own = base.samples(device, step)
            wanted = own[: int(np.ceil(round(rate * len(own), 9)))]
            assert streams.samples(device, step).tolist() == wanted.tolist()
            assert streams.sizes[device, step] == len(wanted) == streams[device].sizes[step]
            assert (len(wanted) > 0) == (len(own) > 0)  # whoever has data has a label


def test_a_third_of_three_is_one():
    assert LabelledStreams.of(split(), rate=1 / 3).sizes.tolist() == [[1, 2], [0, 1]]


def test_classes_order_and_pieces_are_those_of_before():
    base = ArrangedStreams.of(split(), np.array([[1, 0], [0, 1]]), CLASSES, chunks=2)
    streams = LabelledStreams.of(base, rate=0.5)
    assert (streams.chunks, streams.order.tolist(), streams.order_of(1)) == (2, base.order.tolist(), base.order_of(1))
    assert streams[0].classes == base[0].classes
    assert StreamsSoFar.of(streams).sizes.tolist() == np.cumsum(streams.sizes, axis=1).tolist()


def test_a_large_fleet_of_equals_needs_no_table():
    base = DrawnStreams.of(X, Y, CLASSES, devices=10**6, size=5, alpha=1.0, seed=0)
    sizes = LabelledStreams.of(base, rate=0.5).sizes
    assert sizes.shape == (10**6, 2) and not any(sizes.strides) and sizes[7, 1] == 3


@pytest.mark.parametrize("rate", [0.0, -0.1, 1.5, float("nan")])
def test_a_rate_that_is_none(rate):
    with pytest.raises(ValueError, match="label_rate is"):
        StreamConfig(label_rate=rate)
