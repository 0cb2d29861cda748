"""Streams of which a device sees a share of the samples with their labels, and the rest not at all."""

from dataclasses import dataclass

import numpy as np

from client.streams.derived import DerivedStreams


@dataclass(frozen=True, eq=False, kw_only=True)
class LabelledStreams(DerivedStreams):
    """The first of the samples of each step of `base`, whose order means nothing: rate x their number, rounded up."""

    rate: float

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
