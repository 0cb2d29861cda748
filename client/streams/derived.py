"""Streams made of others: the same devices, tasks in the same order, other samples of them."""

from dataclasses import dataclass

import numpy as np

from client.streams.stream import Streams
from sparcl_core.domains import Domains


@dataclass(frozen=True, eq=False, kw_only=True)
class DerivedStreams(Streams):
    """`base`: the streams that these are made of."""

    base: Streams

    @classmethod
    def of(cls, base: Streams, **own) -> "DerivedStreams":
        """`own`: what the kind has besides."""
        return cls(base.x, base.y, base.classes, base=base, blur=base.blur, **own)

    def all_samples(self, device: int) -> tuple[np.ndarray, ...]:
        return self.base.all_samples(device)

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
