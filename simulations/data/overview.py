"""What is in a data set and who gets what of it, in numbers: for `sparcl data`."""

from dataclasses import dataclass

import numpy as np

from client.streams.stream import Streams
from simulations.data.raw import Dataset

MOST_DEVICES = 40  # whose classes are counted: no picture has room for more


@dataclass(frozen=True)
class Parts:
    """Samples per class.

    Attributes:
        names: of the classes: words, or the labels of the source.
        train, test: [classes] int64.
    """

    names: tuple[str, ...]
    train: np.ndarray
    test: np.ndarray


@dataclass(frozen=True)
class Split:
    """Who gets what.

    Attributes:
        by_task: [devices, tasks] int64, samples of a device's task, recurring ones counted each time.
        by_class: [first devices, classes] int64, samples of a class that a device meets in all its steps.
        classes: per task.
    """

    by_task: np.ndarray
    by_class: np.ndarray
    classes: tuple[tuple[int, ...], ...]


def count_parts(data: Dataset) -> Parts:
    """Samples per class of both parts."""
    raw, names = data.raw, data.names or tuple(map(str, data.labels))
    return Parts(names, *(np.bincount(y, minlength=data.num_classes) for y in (raw.train_y, raw.test_y)))


def count_split(streams: Streams, num_classes: int) -> Split:
    """Samples per device and task, and per device and class."""
    devices, tasks = len(streams), len(streams.classes)
    by_task = np.zeros((devices, tasks), dtype=np.int64)
    np.add.at(by_task, (np.arange(devices)[:, None], streams.order), streams.sizes)
    by_class = [_classes_of(streams, device, num_classes) for device in range(min(devices, MOST_DEVICES))]
    return Split(by_task, np.stack(by_class), streams.classes)


def _classes_of(streams: Streams, device: int, num_classes: int) -> np.ndarray:
    return np.bincount(streams.y[np.concatenate(streams.all_samples(device))], minlength=num_classes)
