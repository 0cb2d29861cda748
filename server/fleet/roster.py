"""The roster of devices.

A fleet may have a million devices, so the roster is three arrays; a `Member` is made only for a device that is spoken to.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Member:
    """A device as the server knows it: its number, the runtime's node id, and its samples per task."""

    device: int
    node_id: int
    samples: tuple[int, ...]


@dataclass(frozen=True)
class Roster:
    """All devices, in device order.

    Attributes:
        devices: [N] int64, ascending, none twice.
        node_ids: [N] uint64, the runtime's name of each; Flower deals out all 64 bits.
        samples: [N, T] int64, samples per task; may be a broadcast view, it is only read.

    Raises:
        ValueError: if the arrays do not fit each other, or devices are not in ascending order.
    """

    devices: np.ndarray
    node_ids: np.ndarray
    samples: np.ndarray

    def __post_init__(self):
        count = len(self.devices)
        if self.devices.shape != (count,) or self.node_ids.shape != (count,) or self.samples.ndim != 2 or len(self.samples) != count:
            shapes = f"devices {self.devices.shape}, node_ids {self.node_ids.shape}, samples {self.samples.shape}"
            raise ValueError(f"the arrays of a roster are {shapes}: they must be [N], [N] and [N, T]")
        if not (np.diff(self.devices) > 0).all():
            raise ValueError("the devices of a roster must be in ascending order, and none twice")

    @classmethod
    def of(cls, members: list[Member]) -> "Roster":
        """The roster of devices that were asked one by one, in any order.

        Raises:
            ValueError: if two say that they are the same device, or not all speak of as many tasks.
        """
        ordered = sorted(members, key=lambda member: member.device)
        devices = np.array([member.device for member in ordered], dtype=np.int64)
        if len(twice := np.unique(devices[1:][np.diff(devices) == 0])):
            raise ValueError(f"two nodes say they are the same device: {twice.tolist()}")
        if len(tasks := {len(member.samples) for member in ordered}) > 1:
            raise ValueError(f"devices say that there are {sorted(tasks)} tasks: all must have the same stream of tasks")
        node_ids = np.array([member.node_id for member in ordered], dtype=np.uint64)
        samples = np.array([member.samples for member in ordered], dtype=np.int64)
        return cls(devices, node_ids, samples if ordered else samples.reshape(0, 0))

    def __len__(self) -> int:
        return len(self.devices)

    def members(self, rows: np.ndarray) -> tuple[Member, ...]:
        """The devices of these rows."""
        columns = (self.devices[rows].tolist(), self.node_ids[rows].tolist(), self.samples[rows].tolist())
        return tuple(Member(device, node_id, tuple(samples)) for device, node_id, samples in zip(*columns, strict=True))
