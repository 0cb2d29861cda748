"""Device x task splits: which samples of which task a device gets.

Our own few lines instead of flwr-datasets: importing that package takes as long as the rest of a start (10 s on two cores),
and it draws from a generator of its own.
"""

import numpy as np

from client.stream import DrawnStreams, SplitStreams, Streams
from simulations.errors import ConfigError
from simulations.sections import StreamConfig
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


def make_streams(config: StreamConfig, data: Dataset, seed: int) -> Streams:
    """The streams of all devices. `dirichlet` and `iid` give every sample to exactly one device; with `drawn` devices share them.

    A task's samples lie in random order: data removal breaks ties by position, and sources are often sorted (by class, or
    by writer), so that their order would decide what is removed.

    Raises:
        ConfigError: if there are more devices to split the data among than training samples, or a task has none, or too few to draw.
    """
    x, y, classes = data.raw.train_x, data.raw.train_y, task_classes(data.num_classes, config.tasks)
    for number, members in enumerate(classes):
        if not np.isin(y, members).any():
            raise ConfigError(f"task {number} (classes {members}) has no training sample")
    if config.partition == "drawn":
        try:
            return DrawnStreams.of(x, y, classes, config.devices, config.samples, config.alpha, seed)
        except ValueError as error:
            raise ConfigError(f"stream.samples: {error}; take fewer") from error
    if config.devices > len(y):
        raise ConfigError(
            f"stream.devices is {config.devices}: there are only {len(y)} training samples, at least one per device is needed; "
            f"with stream.partition=drawn devices share samples"
        )
    owned = [_owned(np.flatnonzero(np.isin(y, members)), y, config, seed, task) for task, members in enumerate(classes)]
    sizes = np.stack([sizes for _, sizes in owned], axis=1)
    streams = SplitStreams.of(x, y, classes, np.empty(sizes.sum(), dtype=np.int64), sizes)
    for task, (indices, ends) in enumerate((indices, np.cumsum(sizes)) for indices, sizes in owned):
        for device in np.flatnonzero(sizes[:, task]).tolist():
            own = indices[ends[device] - sizes[device, task] : ends[device]]
            streams.samples(device, task)[:] = generator(seed, "order", task, device).permutation(own)
    return streams


def _owned(members: np.ndarray, y: np.ndarray, config: StreamConfig, seed: int, task: int) -> tuple[np.ndarray, np.ndarray]:
    """The samples `members` of a task by device, and ascending on a device; and how many each has, [devices]."""
    owner = np.empty(len(members), dtype=np.int64)
    for label in np.unique(y[members]).tolist():
        rng = generator(seed, "partition", task, label)
        order = rng.permutation(np.flatnonzero(y[members] == label))
        owner[order] = _split(len(order), config, rng)
    return members[np.argsort(owner, kind="stable")], np.bincount(owner, minlength=config.devices)


def _split(count: int, config: StreamConfig, rng: np.random.Generator) -> np.ndarray:
    """Who owns each of the `count` samples of a class, [count]: a device's lie side by side."""
    if config.partition == "iid":
        parts = count // config.devices + (np.arange(config.devices) < count % config.devices)
        first = int(rng.integers(config.devices))  # the larger parts do not all go to the first devices
        return np.repeat(np.roll(np.arange(config.devices), -first), parts)
    shares = rng.dirichlet(np.full(config.devices, config.alpha))
    cuts = np.floor(np.cumsum(shares)[:-1] * count).astype(int)
    return np.searchsorted(cuts, np.arange(count), side="right")
