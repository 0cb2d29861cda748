"""Which samples and which task a device sees: one device's stream, and the streams of a whole fleet.

A fleet is held in a few arrays, whatever its size, and travels to a worker process once; there the arrays are mapped, not
copied. A device's `Stream` is cut out when it is asked for.

A stream is a sequence of steps. Here every step is a task, the same for all devices; `.task_order` puts tasks in other orders.
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from client.streams.blurry import exchange
from sparcl_core.domains import Domains
from sparcl_core.seeding import generator
from sparcl_core.task_data import TaskData


@dataclass(frozen=True)
class Stream:
    """One device's steps in order: views into shared arrays, cut out when a step is asked for.

    Attributes:
        x: [N, C, H, W] uint8, all training images of the experiment.
        y: [N] int64.
        samples: per step, the indices of this device's samples, in an order that means nothing.
        classes: per step, its classes.
        order: per step, the task that it is; read with `domains` only.
        domains: what is done to the images of a task; None: nothing.
    """

    x: np.ndarray
    y: np.ndarray
    samples: tuple[np.ndarray, ...]
    classes: tuple[tuple[int, ...], ...]
    order: tuple[int, ...] = ()
    domains: Domains | None = None

    @property
    def sizes(self) -> list[int]:
        """Samples per step."""
        return [len(indices) for indices in self.samples]

    def task(self, number: int) -> TaskData:
        """The data of step `number`, from 0; `TaskData.task` is that number too.

        Raises:
            ValueError: if the device has no such step, or no data for it.
        """
        if not 0 <= number < len(self.samples):
            raise ValueError(f"task is {number}: the stream has tasks 0 to {len(self.samples) - 1}")
        indices = self.samples[number]
        if not len(indices):
            raise ValueError(f"the device has no data for task {number}: it must not be asked to train on it")
        x = self.x[indices]
        if self.domains:
            x = self.domains.apply(x, self.order[number])
        return TaskData(x, self.y[indices], self.classes[number], number)


@dataclass(frozen=True, eq=False)
class Streams(Sequence[Stream]):
    """The streams of a fleet: `streams[device]` is a `Stream`, `len(streams)` the number of devices.

    Attributes:
        x, y: those of every `Stream`.
        classes: per task, its classes, whatever the order of tasks on a device.
        blur: share of a task's samples that were exchanged for samples of other tasks (`.blurry`). Above 0 the classes of a device's
            step are those that it really has, else all of the task.
    """

    x: np.ndarray
    y: np.ndarray
    classes: tuple[tuple[int, ...], ...]
    blur: float = field(default=0.0, kw_only=True)

    @property
    @abstractmethod
    def sizes(self) -> np.ndarray:
        """[devices, steps] int64, samples per device and step; not to be written to."""

    @abstractmethod
    def all_samples(self, device: int) -> tuple[np.ndarray, ...]:
        """Per step [n] int64, the indices of a device's samples, in an order that means nothing."""

    def samples(self, device: int, step: int) -> np.ndarray:
        """Those of one step."""
        return self.all_samples(device)[step]

    @property
    def order(self) -> np.ndarray:
        """[devices, steps] int32, the task that each step is; not to be written to."""
        return np.broadcast_to(np.arange(len(self.classes), dtype=np.int32), (len(self), len(self.classes)))

    @property
    def chunks(self) -> int:
        """Pieces that a task comes in, side by side, each a step of its own; 1 if it comes as a whole."""
        return 1

    @property
    def domains(self) -> Domains | None:
        """What is done to the images of a task; None: nothing."""
        return None

    def order_of(self, device: int) -> tuple[int, ...]:
        """A device's row of `order`."""
        return tuple(range(len(self.classes)))

    def __getitem__(self, device: int) -> Stream:
        """The stream of `device`, from 0.

        Raises:
            IndexError: if there is no such device.
        """
        if not 0 <= device < len(self):
            raise IndexError(f"device is {device}: the fleet has devices 0 to {len(self) - 1}")
        samples, order = self.all_samples(device), self.order_of(device)
        if self.blur:
            classes = tuple(tuple(np.unique(self.y[own]).tolist()) for own in samples)
        else:
            classes = tuple(self.classes[task] for task in order)
        return Stream(self.x, self.y, samples, classes, order, self.domains)


@dataclass(frozen=True, eq=False, kw_only=True)
class SplitStreams(Streams):
    """The data set cut up among the devices.

    Attributes:
        flat: [n] int64, sample indices, device by device, and within a device task by task.
        offsets: [devices, tasks + 1] int64; those of a device's task t are flat[offsets[device, t]:offsets[device, t + 1]].
    """

    flat: np.ndarray
    offsets: np.ndarray

    @classmethod
    def of(
        cls, x: np.ndarray, y: np.ndarray, classes: tuple[tuple[int, ...], ...], *, flat: np.ndarray, sizes: np.ndarray
    ) -> "SplitStreams":
        """`sizes`: [devices, tasks]; they cut `flat` up in its order."""
        ends = np.cumsum(sizes, dtype=np.int64).reshape(sizes.shape)
        return cls(x, y, classes, flat=flat, offsets=np.concatenate([ends[:, :1] - sizes[:, :1], ends], axis=1))

    def blurred(self, blur: float, seed: int) -> "SplitStreams":
        """These streams, a share `blur` of every task's samples exchanged within each device."""
        parts = [exchange(self.all_samples(device), self.y, blur, seed=seed, device=device) for device in range(len(self))]
        sizes = np.array([[len(part) for part in own] for own in parts], dtype=np.int64)
        flat = np.concatenate([part for own in parts for part in own])
        return replace(SplitStreams.of(self.x, self.y, self.classes, flat=flat, sizes=sizes), blur=blur)

    @property
    def sizes(self) -> np.ndarray:
        return np.diff(self.offsets, axis=1)

    def __len__(self) -> int:
        return len(self.offsets)

    def samples(self, device: int, step: int) -> np.ndarray:
        start, end = self.offsets[device, step : step + 2]
        return self.flat[start:end]

    def all_samples(self, device: int) -> tuple[np.ndarray, ...]:
        offsets = self.offsets[device].tolist()
        return tuple(self.flat[start:end] for start, end in zip(offsets, offsets[1:], strict=False))


@dataclass(frozen=True, eq=False, kw_only=True)
class DrawnStreams(Streams):
    """Every device draws samples for itself when it is asked, as a function of (seed, device, task): nothing is stored for a device.

    A device's task is a latent Dirichlet allocation (Hsu et al. 2019, arXiv:1909.06335): its class mix is drawn from
    Dirichlet(alpha), the same alpha for each class of the task (theirs, with a uniform prior, is alpha times the number of classes), the
    classes of its samples from that mix, and the samples from those of the class. None is drawn twice by a device; once it has
    all of a class, the rest is drawn from the other classes by their mix. Devices do share samples, so the fleet may be larger
    than the data set. With `blur` a device's draws of all tasks are exchanged whenever it is asked.

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
        cls, x: np.ndarray, y: np.ndarray, classes: tuple[tuple[int, ...], ...], *, devices: int, size: int, alpha: float, seed: int,
        blur: float = 0.0,
    ) -> "DrawnStreams":  # fmt: skip
        """The fleet over the data `x`, `y`.

        Raises:
            ValueError: if a task has fewer than `size` samples.
        """
        by_class = np.argsort(y, kind="stable")
        starts = np.searchsorted(y[by_class], np.arange(max(map(max, classes)) + 2))
        for task, members in enumerate(classes):
            if (room := int(sum(np.diff(starts)[list(members)]))) < size:
                raise ValueError(f"size is {size}: task {task} (classes {members}) has only {room} samples, and a device has none twice")
        return cls(x, y, classes, blur=blur, devices=devices, size=size, alpha=alpha, seed=seed, by_class=by_class, starts=starts)

    @property
    def sizes(self) -> np.ndarray:
        return np.broadcast_to(np.int64(self.size), (self.devices, len(self.classes)))

    def __len__(self) -> int:
        return self.devices

    def samples(self, device: int, step: int) -> np.ndarray:
        return self.all_samples(device)[step] if self.blur else self._drawn(device, step)

    def all_samples(self, device: int) -> tuple[np.ndarray, ...]:
        drawn = tuple(self._drawn(device, task) for task in range(len(self.classes)))
        return exchange(drawn, self.y, self.blur, seed=self.seed, device=device) if self.blur else drawn

    def _drawn(self, device: int, task: int) -> np.ndarray:
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
