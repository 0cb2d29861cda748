"""Streams of which a device sees a share of the samples with their labels, and the rest not at all."""

from dataclasses import dataclass

import numpy as np

from client.streams.stream import Streams
from sparcl_core.domains import Domains


@dataclass(frozen=True, eq=False, kw_only=True)
class LabelledStreams(Streams):
    """The first of the samples of each step of `base`, whose order means nothing: rate x their number, rounded up."""

    base: Streams
    rate: float

    @classmethod
    def of(cls, base: Streams, rate: float) -> "LabelledStreams":
        return cls(base.x, base.y, base.classes, base=base, rate=rate, blur=base.blur)

    @property
    def sizes(self) -> np.ndarray:
        sizes = self.base.sizes
        if not any(sizes.strides):  # one number for all, as where devices draw: no table for a large fleet
            return np.broadcast_to(self._count(sizes[:1, :1])[0, 0], sizes.shape)
        return self._count(sizes)

    def all_samples(self, device: int) -> tuple[np.ndarray, ...]:
        return tuple(own[: int(self._count(np.int64(len(own))))] for own in self.base.all_samples(device))

    def _count(self, sizes: np.ndarray) -> np.ndarray:
        return np.ceil(self.rate * sizes - 1e-9).astype(np.int64)

    @property
    def order(self) -> np.ndarray:
        return self.base.order

    @property
    def chunks(self) -> int:
        return self.base.chunks

    @property
    def domains(self) -> Domains | None:
        return self.base.domains

    def order_of(self, device: int) -> tuple[int, ...]:
        return self.base.order_of(device)

    def __len__(self) -> int:
        return len(self.base)
