"""Blurry borders: samples change tasks, none is lost, the share is that asked for, evenly over classes and tasks."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.streams.blurry import exchange
from client.streams.stream import DrawnStreams, SplitStreams
from sparcl_core.seeding import generator


def parts(sizes: list[int], classes: int = 2) -> tuple[list[np.ndarray], np.ndarray]:
    """Tasks of `classes` classes each, in turn; labels by index."""
    ends = np.cumsum(sizes)
    tasks = [np.arange(end - size, end) for end, size in zip(ends, sizes, strict=True)]
    y = np.concatenate([task * classes + np.arange(size) % classes for task, size in enumerate(sizes)]).astype(np.int64)
    return tasks, y


@given(st.lists(st.integers(0, 40), min_size=1, max_size=6), st.floats(0, 0.999), st.integers(0, 99), st.integers(0, 99))
def test_nothing_is_lost_and_the_share_leaves(sizes, blur, seed, device):
    tasks, y = parts(sizes)
    blurred = exchange(tasks, y, blur, seed=seed, device=device)
    assert np.array_equal(np.sort(np.concatenate(blurred)), np.concatenate(tasks))
    for own, now in zip(tasks, blurred, strict=True):
        left = len(np.setdiff1d(own, now))
        assert now.dtype == np.int64
        assert (len(sizes) == 1 and left == 0) or np.floor(blur * len(own)) <= left <= np.ceil(blur * len(own))


@given(st.integers(2, 6), st.integers(1, 40), st.floats(0.01, 0.9), st.integers(0, 99))
def test_equal_tasks_stay_equal(count, size, blur, seed):
    tasks, y = parts([size] * count)
    assert [len(now) for now in exchange(tasks, y, blur, seed=seed, device=0)] == [size] * count


def test_every_class_gives_alike_and_every_other_task_gets_alike():
    """3 tasks of 2 classes of 30; 0.4 of 60 are 24: 12 of each class leave, 6 to each of the two other tasks."""
    tasks, y = parts([60] * 3)
    for now, task in zip(exchange(tasks, y, 0.4, seed=7, device=3), range(3), strict=True):
        counts = np.bincount(y[now], minlength=6)
        assert sorted(counts[[2 * task, 2 * task + 1]]) == [18, 18]
        assert set(np.delete(counts, [2 * task, 2 * task + 1])) == {6}


def test_small_shares_are_kept_on_average():
    """0.1 of 3 samples is 0.3: of 1000 devices, 300 lose one, deviation sqrt(1000 * .3 * .7) = 14.5. Allowed: 4.5 of them. Each other task
    gets half of these, deviation 8.7."""
    tasks, y = parts([3, 3, 3])
    moved = [exchange(tasks, y, 0.1, seed=0, device=device) for device in range(1000)]
    assert abs(sum(len(np.setdiff1d(tasks[0], now[0])) for now in moved) - 300) < 65
    assert abs(sum(len(np.intersect1d(tasks[0], now[1])) for now in moved) - 150) < 52


def test_every_sample_moves_as_often_as_the_others():
    """A quarter of 8 samples on 2000 devices: 500 each, deviation 19.4. Allowed: 4.5 of them."""
    tasks, y = parts([8, 8])
    stayed = np.concatenate([exchange(tasks, y, 0.25, seed=1, device=device)[0] for device in range(2000)])
    assert (np.abs(2000 - np.bincount(stayed, minlength=16)[:8] - 500) < 87).all()


def test_the_draw_depends_on_seed_and_device():
    tasks, y = parts([20, 20])
    one = exchange(tasks, y, 0.5, seed=1, device=2)[0].tolist()
    assert exchange(tasks, y, 0.5, seed=1, device=2)[0].tolist() == one
    assert exchange(tasks, y, 0.5, seed=1, device=3)[0].tolist() != one != exchange(tasks, y, 0.5, seed=2, device=2)[0].tolist()


# -- fleets

CLASSES = ((0, 1), (2, 3))
Y = generator(0, "labels").permutation(np.repeat(np.arange(4), 30))
X = np.arange(120, dtype=np.uint8).reshape(-1, 1, 1, 1)
BY_TASK = np.argsort(Y // 2, kind="stable")
FLAT = np.concatenate([BY_TASK[:20], BY_TASK[60:80], BY_TASK[20:60], BY_TASK[80:]])
SPLIT = SplitStreams.of(X, Y, CLASSES, flat=FLAT, sizes=np.array([[20, 20], [40, 40]]))
DRAW = {"devices": 4, "size": 10, "alpha": 1.0, "seed": 5}


@pytest.mark.parametrize("streams", [SPLIT.blurred(0.3, 5), DrawnStreams.of(X, Y, CLASSES, **DRAW, blur=0.3)], ids=["split", "drawn"])
def test_a_blurred_fleet(streams):
    """Sizes are told without asking devices; a step's classes are those that are there."""
    for device, stream in enumerate(streams):
        assert stream.sizes == streams.sizes[device].tolist()
        for step in range(2):
            data = stream.task(step)
            assert data.classes == tuple(np.unique(data.y).tolist())
            assert np.mean(np.isin(data.y, CLASSES[step])) == pytest.approx(0.7)
            assert np.array_equal(streams.samples(device, step), stream.samples[step])
    assert streams.blur == 0.3 and streams.classes == CLASSES


def test_a_device_has_the_same_samples_with_and_without_blur():
    blurred, plain = (DrawnStreams.of(X, Y, CLASSES, **DRAW, blur=blur) for blur in (0.5, 0.0))
    for fleet, other in ((SPLIT.blurred(0.5, 1), SPLIT), (blurred, plain)):
        for device in range(len(fleet)):
            own, before = (np.sort(np.concatenate(streams.all_samples(device))) for streams in (fleet, other))
            assert np.array_equal(own, before)
