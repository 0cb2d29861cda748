"""Device x task splits: which samples of which task a device gets.

`dirichlet`, `iid` and `drawn` are our own few lines instead of flwr-datasets: importing that package takes as long as the rest of a start
(10 s on two cores), and it draws from a generator of its own. The other partitions are its, see `simulations.data.flwr_partitioners`.
"""

import numpy as np

from client.streams.labelled import LabelledStreams
from client.streams.so_far import StreamsSoFar
from client.streams.stream import DrawnStreams, SplitStreams, Streams
from simulations.config.errors import ConfigError
from simulations.config.sections import StreamConfig
from simulations.data.flwr_partitioners import natural_owners, owners
from simulations.data.raw import Dataset
from simulations.data.task_order import arranged, check_data
from sparcl_core.seeding import generator


def task_classes(num_classes: int, tasks: int) -> tuple[tuple[int, ...], ...]:
    """The classes of each task, in class order.

    Raises:
        ConfigError: if they cannot be cut into tasks of equal size.
    """
    if num_classes % tasks:
        fits = ", ".join(str(count) for count in range(1, num_classes + 1) if num_classes % count == 0)
        raise ConfigError(
            f"stream.tasks is {tasks}: {num_classes} classes cannot be cut into that many tasks of equal size; take one of {fits}"
        )
    size = num_classes // tasks
    return tuple(tuple(range(t * size, (t + 1) * size)) for t in range(tasks))


def stream_classes(config: StreamConfig, num_classes: int) -> tuple[tuple[int, ...], ...]:
    """The classes of each task: its own, or all of them where a task changes the images (`domain-il`)."""
    if config.setting == "domain-il":
        return (tuple(range(num_classes)),) * config.tasks
    return task_classes(num_classes, config.tasks)


def make_streams(config: StreamConfig, data: Dataset, seed: int, rounds_per_task: int | None = None, *, so_far: bool = False) -> Streams:
    """The streams of all devices. With `drawn` devices share samples; all other partitions give every sample to exactly one device.

    A task's samples lie in random order: data removal breaks ties by position, and sources are often sorted (by class, or
    by writer), so that their order would decide what is removed.

    Args:
        rounds_per_task: pieces that a task comes in if `config.online`; else not read.
        so_far: every step brings the data of all steps before, too.

    Raises:
        ConfigError: if there are more devices to split the data among than training samples, if a task has none, or too few to draw, or a
            partition cannot be made; and, but for plain `dirichlet`, `iid` and `drawn`, if a task or a device is left without data.
    """
    classes = stream_classes(config, data.num_classes)
    for number, members in enumerate(classes):
        if not np.isin(data.raw.train_y, members).any():
            raise ConfigError(f"task {number} (classes {members}) has no training sample")
    # under domains all tasks show the same samples: one split, transformed for each
    base = _split_streams(config, data, classes[:1] if config.setting == "domain-il" else classes, seed)
    streams = arranged(config, base, classes, seed=seed, rounds_per_task=rounds_per_task)
    if streams is not base or config.blur or config.partition not in ("dirichlet", "iid", "drawn"):
        check_data(streams)
    if config.label_rate < 1:
        streams = LabelledStreams.of(streams, rate=config.label_rate)
    return StreamsSoFar.of(streams) if so_far else streams


def _split_streams(config: StreamConfig, data: Dataset, classes: tuple[tuple[int, ...], ...], seed: int) -> Streams:
    """The tasks in their own order, every device's samples of each."""
    x, y = data.raw.train_x, data.raw.train_y
    if config.partition == "drawn":
        try:
            return DrawnStreams.of(
                x, y, classes, devices=config.devices, size=config.samples, alpha=config.alpha, seed=seed, blur=config.blur
            )
        except ValueError as error:
            raise ConfigError(f"stream.samples: {error}; take fewer") from error
    if config.devices > len(y):
        raise ConfigError(
            f"stream.devices is {config.devices}: there are only {len(y)} training samples, at least one per device is needed; "
            f"with stream.partition=drawn devices share samples"
        )
    by_id = natural_owners(config, data.raw.train_ids) if config.partition == "natural" else None
    owned = []
    for task, labels in enumerate(classes):
        members = np.flatnonzero(np.isin(y, labels))
        owner = _owners(y[members], config, seed, task) if by_id is None else by_id[members]
        # by device, and ascending on a device; and how many each has, [devices]
        owned.append((members[np.argsort(owner, kind="stable")], np.bincount(owner, minlength=config.devices)))
    sizes = np.stack([sizes for _, sizes in owned], axis=1)
    streams = SplitStreams.of(x, y, classes, flat=np.empty(sizes.sum(), dtype=np.int64), sizes=sizes)
    for task, (indices, ends) in enumerate((indices, np.cumsum(sizes)) for indices, sizes in owned):
        for device in np.flatnonzero(sizes[:, task]).tolist():
            own = indices[ends[device] - sizes[device, task] : ends[device]]
            streams.samples(device, task)[:] = generator(seed, "order", task, device).permutation(own)
    return streams.blurred(config.blur, seed) if config.blur else streams


def _owners(labels: np.ndarray, config: StreamConfig, seed: int, task: int) -> np.ndarray:
    """Which device owns each sample of a task, [n] int64."""
    if config.partition not in ("dirichlet", "iid"):
        return owners(config, labels, seed, task)
    owner = np.empty(len(labels), dtype=np.int64)
    for label in np.unique(labels).tolist():
        rng = generator(seed, "partition", task, label)
        order = rng.permutation(np.flatnonzero(labels == label))
        owner[order] = _split(len(order), config, rng)
    return owner


def _split(count: int, config: StreamConfig, rng: np.random.Generator) -> np.ndarray:
    """Who owns each of the `count` samples of a class, [count]: a device's lie side by side."""
    if config.partition == "iid":
        parts = count // config.devices + (np.arange(config.devices) < count % config.devices)
        first = int(rng.integers(config.devices))  # the larger parts do not all go to the first devices
        return np.repeat(np.roll(np.arange(config.devices), -first), parts)
    shares = rng.dirichlet(np.full(config.devices, config.alpha))
    cuts = np.floor(np.cumsum(shares)[:-1] * count).astype(int)
    return np.searchsorted(cuts, np.arange(count), side="right")
