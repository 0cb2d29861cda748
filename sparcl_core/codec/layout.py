"""What both sides know of a model before a byte is sent: names, shapes, which tensors are masked, which are statistics."""

import math
import weakref
import zlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np


class CodecError(ValueError):
    """A payload that cannot be decoded: truncated, damaged, made for another model or another version."""


@dataclass(frozen=True)
class Layout:
    """Names and shapes of the tensors on the wire, in order.

    Attributes:
        shapes: name -> shape.
        masked: names of the tensors with a weight mask; all others are the dense rest.
        statistics: names of running statistics (BatchNorm's mean and variance); no parameters, never coded below 16 bits.
    """

    shapes: dict[str, tuple[int, ...]]
    masked: frozenset[str]
    statistics: frozenset[str] = frozenset()

    @cached_property
    def fingerprint(self) -> int:
        text = ";".join(f"{name}{list(shape)}{name in self.masked}{name in self.statistics}" for name, shape in self.shapes.items())
        return zlib.crc32(text.encode())

    @property
    def dense_bytes(self) -> int:
        """4 bytes for every parameter and float buffer: one message of a federation that sends everything."""
        return 4 * sum(map(self.size, self.shapes))

    def size(self, name: str) -> int:
        return math.prod(self.shapes[name])

    @property
    def batchnorm(self) -> frozenset[str]:
        """All tensors of the normalisations that have running statistics: these, weights and biases."""
        norms = {name.removesuffix("running_mean") for name in self.statistics if name.endswith("running_mean")}
        return self.statistics | {f"{norm}{part}" for norm in norms for part in ("weight", "bias") if f"{norm}{part}" in self.shapes}

    def sent(self, batchnorm: str) -> "Layout":
        """What of the model crosses the wire in every round, as `federation.batchnorm` says."""
        if batchnorm == "global":
            return self
        stay = self.batchnorm if batchnorm == "fedbn" else self.statistics
        return Layout({name: shape for name, shape in self.shapes.items() if name not in stay}, self.masked)


@dataclass(frozen=True)
class SparseTensor:
    """`values` [k] at the sorted flat `places` [k] int64 of a tensor; everything else is 0.

    `ranks` [k]: the places' indices within the reference set, where whoever made it knows them.
    """

    places: np.ndarray
    values: np.ndarray
    ranks: np.ndarray | None = None


@dataclass(frozen=True)
class Reference:
    """The places that positions of one tensor are counted over: the active ones of a mask, or all (`places` None)."""

    total: int
    places: np.ndarray | None = None

    def ranks(self, places: np.ndarray, name: str) -> np.ndarray:
        """Index of each of the sorted `places` within the reference set.

        Raises:
            ValueError: if a place lies outside the set, or they are not sorted.
        """
        if places.size > 1 and not (np.diff(places) > 0).all():
            raise ValueError(f"places of {name} are not sorted, each once")
        if self.places is None:
            if places.size and (places[0] < 0 or places[-1] >= self.total):
                raise ValueError(f"{name} has values outside its {self.total} places: they cannot be encoded")
            return places
        if places.size == self.total and np.array_equal(places, self.places):
            return np.arange(self.total)
        ranks = np.searchsorted(self.places, places)
        if (ranks == self.total).any() or not np.array_equal(self.places[ranks], places):
            raise ValueError(f"{name} has values outside its mask: they cannot be encoded")
        return ranks

    def at(self, ranks: np.ndarray) -> np.ndarray:
        """The inverse of `ranks`, which are sorted, each once."""
        if self.places is None:
            return ranks
        return self.places if ranks.size == self.total else self.places[ranks]


def reference_set(layout: Layout, name: str, masks: dict[str, np.ndarray]) -> Reference:
    """The reference set of a tensor, given the weight masks that both sides hold."""
    if name not in layout.masked or name not in masks:
        return Reference(layout.size(name))
    mask = masks[name]
    known, of_mask = _LAST.get(name, (None, None))
    if of_mask is None or known() is not mask or mask.flags.writeable:  # a server reads a cohort's replies over the same masks
        places = np.flatnonzero(mask)
        of_mask = Reference(places.size, places)
        _LAST[name] = weakref.ref(mask), of_mask
    return of_mask


_LAST: dict[str, tuple[weakref.ref, Reference]] = {}  # per tensor, of the last read-only mask
