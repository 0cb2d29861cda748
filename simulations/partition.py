"""Device x task splits: which samples of which task a device gets.

Our own few lines instead of flwr-datasets: importing that package takes as long as the rest of a start (10 s on two cores),
and it draws from a generator of its own.
"""

import numpy as np

from client.stream import Stream
from simulations.config import ConfigError, StreamConfig
from simulations.data import Dataset
from sparcl_core.seeding import generator


def task_classes(num_classes: int, tasks: int) -> tuple[tuple[int, ...], ...]:
    """The classes of each task, in class order.

    Raises:
        ConfigError: if they cannot be cut into tasks of equal size.
    """
    if num_classes % tasks:
        raise ConfigError(f"stream.tasks is {tasks}: {num_classes} classes cannot be cut into that many tasks of equal size")
    size = num_classes // tasks
    return tuple(tuple(range(t * size, (t + 1) * size)) for t in range(tasks))


def make_streams(config: StreamConfig, data: Dataset, seed: int) -> list[Stream]:
    """One stream per device. Every sample goes to exactly one device.

    A task's samples lie in random order: data removal breaks ties by position, and sources are often sorted (by class, or
    by writer), so that their order would decide what is removed.

    Raises:
        ConfigError: if there are more devices than training samples, or a task has no sample.
    """
    y = data.raw.train_y
    if config.devices > len(y):
        raise ConfigError(
            f"stream.devices is {config.devices}: there are only {len(y)} training samples, at least one per device is needed"
        )
    classes = task_classes(data.num_classes, config.tasks)
    samples: list[list[np.ndarray]] = [[] for _ in range(config.devices)]
    for number, members in enumerate(classes):
        if not np.isin(y, members).any():
            raise ConfigError(f"task {number} (classes {members}) has no training sample")
        shares = [_split(np.flatnonzero(y == label), config, seed, number, label) for label in members]
        for device, parts in enumerate(zip(*shares, strict=True)):
            indices = np.sort(np.concatenate(parts))
            samples[device].append(generator(seed, "order", number, device).permutation(indices))
    return [Stream(data.raw.train_x, y, tuple(indices), classes) for indices in samples]


def _split(members: np.ndarray, config: StreamConfig, seed: int, task: int, label: int) -> list[np.ndarray]:
    """The samples of one class, cut among the devices."""
    rng = generator(seed, "partition", task, label)
    order = rng.permutation(members)
    if config.partition == "iid":
        cuts = np.array_split(order, config.devices)
        first = int(rng.integers(config.devices))  # the larger parts do not all go to the first devices
        return cuts[-first:] + cuts[:-first] if first else cuts
    shares = rng.dirichlet(np.full(config.devices, config.alpha))
    return np.split(order, np.floor(np.cumsum(shares)[:-1] * len(order)).astype(int))
