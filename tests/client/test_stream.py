"""A stream hands out a device's own samples, task by task."""

import numpy as np
import pytest

from client.stream import Stream

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
