"""Which samples and which task a device sees: one device's stream, and the streams of a whole fleet.

A fleet is held in a few arrays, whatever its size, and travels to a worker process once; there the arrays are mapped, not
copied. A device's `Stream` is cut out when it is asked for.
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sparcl_core.learner import TaskData
from sparcl_core.seeding import generator


@dataclass(frozen=True)
class Stream:
    """One device's tasks in order: views into shared arrays, cut out when a task is asked for.

    Attributes:
        x: [N, C, H, W] uint8, all training images of the experiment.
        y: [N] int64.
        samples: per task, the indices of this device's samples, in an order that means nothing.
        classes: per task, its classes.
    """

    x: np.ndarray
    y: np.ndarray
    samples: tuple[np.ndarray, ...]
    classes: tuple[tuple[int, ...], ...]

    @property
    def sizes(self) -> list[int]:
        """Samples per task."""
        return [len(indices) for indices in self.samples]

    def task(self, number: int) -> TaskData:
        """Task `number`, from 0.

        Raises:
            ValueError: if the device has no such task, or no data for it.
        """
        if not 0 <= number < len(self.samples):
            raise ValueError(f"task is {number}: the stream has tasks 0 to {len(self.samples) - 1}")
        indices = self.samples[number]
        if not len(indices):
            raise ValueError(f"the device has no data for task {number}: it must not be asked to train on it")
        return TaskData(self.x[indices], self.y[indices], self.classes[number], number)


@dataclass(frozen=True, eq=False)
class Streams(Sequence[Stream]):
    """The streams of a fleet: `streams[device]` is a `Stream`, `len(streams)` the number of devices.

    Attributes:
        x, y, classes: those of every `Stream`.
    """

    x: np.ndarray
    y: np.ndarray
    classes: tuple[tuple[int, ...], ...]

    @property
    @abstractmethod
    def sizes(self) -> np.ndarray:
        """[devices, tasks] int64, samples per device and task; not to be written to."""

    @abstractmethod
    def samples(self, device: int, task: int) -> np.ndarray:
        """[n] int64, the indices of a device's samples of a task, in an order that means nothing."""

    def __getitem__(self, device: int) -> Stream:
        """The stream of `device`, from 0.

        Raises:
            IndexError: if there is no such device.
        """
        if not 0 <= device < len(self):
            raise IndexError(f"device is {device}: the fleet has devices 0 to {len(self) - 1}")
        samples = tuple(self.samples(device, task) for task in range(len(self.classes)))
        return Stream(self.x, self.y, samples, self.classes)


@dataclass(frozen=True, eq=False)
class SplitStreams(Streams):
    """The data set cut up among the devices.

    Attributes:
        flat: [n] int64, sample indices, device by device, and within a device task by task.
        offsets: [devices, tasks + 1] int64; those of a device's task t are flat[offsets[device, t]:offsets[device, t + 1]].
    """

    flat: np.ndarray
    offsets: np.ndarray

    @classmethod
    def of(cls, x: np.ndarray, y: np.ndarray, classes: tuple[tuple[int, ...], ...], flat: np.ndarray, sizes: np.ndarray) -> "SplitStreams":
        """`sizes`: [devices, tasks]; they cut `flat` up in its order."""
        ends = np.cumsum(sizes, dtype=np.int64).reshape(sizes.shape)
        return cls(x, y, classes, flat, np.concatenate([ends[:, :1] - sizes[:, :1], ends], axis=1))

    @property
    def sizes(self) -> np.ndarray:
        return np.diff(self.offsets, axis=1)

    def __len__(self) -> int:
        return len(self.offsets)

    def samples(self, device: int, task: int) -> np.ndarray:
        start, end = self.offsets[device, task : task + 2]
        return self.flat[start:end]


@dataclass(frozen=True, eq=False)
class DrawnStreams(Streams):
    """Every device draws samples for itself when it is asked, as a function of (seed, device, task): nothing is stored for a device.

    A device's task is a latent Dirichlet allocation (Hsu et al. 2019, arXiv:1909.06335): its class mix is drawn from
    Dirichlet(alpha), the same alpha for each class of the task (theirs, with a uniform prior, is alpha times the number of classes), the
    classes of its samples from that mix, and the samples from those of the class. None is drawn twice by a device; once it has
    all of a class, the rest is drawn from the other classes by their mix. Devices do share samples, so the fleet may be larger
    than the data set.

    Attributes:
        devices: their number.
        size: samples per device and task; no more than a task has.
        alpha, seed: of the draw.
        by_class: [N] int64, all sample indices, class by class.
        starts: [classes + 1] int64; those of class c are by_class[starts[c]:starts[c + 1]].
    """

    devices: int
    size: int
    alpha: float
    seed: int
    by_class: np.ndarray
    starts: np.ndarray

    @classmethod
    def of(
        cls, x: np.ndarray, y: np.ndarray, classes: tuple[tuple[int, ...], ...], devices: int, size: int, alpha: float, seed: int
    ) -> "DrawnStreams":
        """The fleet over the data `x`, `y`.

        Raises:
            ValueError: if a task has fewer than `size` samples.
        """
        by_class = np.argsort(y, kind="stable")
        starts = np.searchsorted(y[by_class], np.arange(max(map(max, classes)) + 2))
        for task, members in enumerate(classes):
            if (room := int(sum(np.diff(starts)[list(members)]))) < size:
                raise ValueError(f"size is {size}: task {task} (classes {members}) has only {room} samples, and a device has none twice")
        return cls(x, y, classes, devices, size, alpha, seed, by_class, starts)

    @property
    def sizes(self) -> np.ndarray:
        return np.broadcast_to(np.int64(self.size), (self.devices, len(self.classes)))

    def __len__(self) -> int:
        return self.devices

    def samples(self, device: int, task: int) -> np.ndarray:
        rng, members = generator(self.seed, "draw", device, task), np.array(self.classes[task])
        starts, room = self.starts[members], self.starts[members + 1] - self.starts[members]
        counts = _deal(rng, rng.dirichlet(np.full(len(members), self.alpha)), room, self.size)
        chosen = [
            start + rng.choice(most, count, replace=False, shuffle=False)  # shuffled below, all classes together
            for start, most, count in zip(starts, room, counts, strict=True)
            if count
        ]
        return rng.permutation(self.by_class[np.concatenate(chosen)])


def _deal(rng: np.random.Generator, mix: np.ndarray, room: np.ndarray, size: int) -> np.ndarray:
    """`size` draws over classes by `mix`, no class above its `room`: the counts that drawing one by one from the classes not yet
    full would give. Each pass fills a class or is the last, if `room` is enough for all."""
    counts = np.zeros_like(room)
    while left := size - counts.sum():
        is_open = counts < room
        share = np.where(is_open, mix, 0.0)
        if not share.any():  # a small alpha leaves exact zeros
            share = is_open.astype(float)
        counts = np.minimum(counts + rng.multinomial(left, share / share.sum()), room)
    return counts
