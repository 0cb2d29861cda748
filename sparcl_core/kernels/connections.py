"""Which weights of a layer exist, as the lists that the kernels walk through. Made in time proportional to their number.

The weights themselves are a vector over the active places, in the order of their flat indices. Lists depend on the batch size,
so they are made for each that occurs and kept: a last, smaller batch of an epoch has lists of its own.
"""

import functools
import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sparcl_core.kernels.geometry import LIMIT, Part, Shape, backward_parts, forward_part

KEPT_SHAPES = 4


@dataclass(frozen=True)
class Lists:
    """Lists of one gather, see `sparcl_gather` in sparse.c.

    Attributes:
        part: their geometry.
        order: int32 [blocks, outs], output channels, longest list first.
        ptr: int32 [blocks, outs, kernel rows + 1], where each kernel row of a list begins, and its end.
        off: int32 [n], offsets into the packed source.
        values: int32 [n], positions in the vector of weights; None: 0 .. n - 1.
    """

    part: Part
    order: Tensor
    ptr: Tensor
    off: Tensor
    values: Tensor | None

    def pick(self, weights: Tensor) -> Tensor:
        """The weights in the order of the lists."""
        return weights if self.values is None else weights.index_select(0, self.values)


class Connections:
    """The active weights of one layer.

    Args:
        weight_shape: (outs, channels, kernel rows, kernel columns).
        places: flat indices of active weights, integers of any type, strictly increasing; None: all are.
        vector: floats per vector register.
        updated: as for `update`.

    Raises:
        ValueError: if a place is no integer, out of range or not larger than the one before.
    """

    def __init__(self, weight_shape: tuple[int, int, int, int], places: np.ndarray | None, vector: int, updated: np.ndarray | None = None):
        size = math.prod(weight_shape)
        if places is not None:
            places = _increasing("places", "flat indices", places, size, f"weight of {weight_shape}")
            if places.size == size:
                places = None
        if size + weight_shape[0] * weight_shape[1] >= LIMIT:  # lists have an end beside their kernel rows
            raise ValueError(f"a layer of {size} weights is too large: offsets have 32 bits")
        self.weight_shape, self.places, self.vector = weight_shape, places, vector
        self.count = size if places is None else places.size
        self._forward = functools.lru_cache(KEPT_SHAPES)(self._make_forward)
        self._backward = functools.lru_cache(KEPT_SHAPES)(self._make_backward)
        self._gradient = functools.lru_cache(KEPT_SHAPES)(self._make_gradient)
        self._offsets_of = functools.lru_cache(KEPT_SHAPES)(self._make_offsets)
        ends = np.arange(1, weight_shape[0] + 1) * (size // weight_shape[0])
        self._ends = ends if places is None else np.searchsorted(places, ends)  # active weights up to each output channel
        self.updated: np.ndarray | None = None  # positions in the vector of weights whose gradient is wanted; None: of all
        self.update(updated)

    def __reduce__(self):  # copies and pickles make lists of their own
        return Connections, (self.weight_shape, self.places, self.vector, self.updated)

    @property
    def density(self) -> float:
        return self.count / int(np.prod(self.weight_shape))

    def forward(self, shape: Shape) -> Lists:
        """Lists of the forward pass for inputs of `shape`."""
        return self._forward(self._checked(shape))

    def backward(self, shape: Shape) -> tuple[tuple[Lists, ...], bool]:
        """Lists of the gradient of the input, and whether they write all of it."""
        return self._backward(self._checked(shape))

    def gradient(self, shape: Shape) -> tuple[Tensor, Tensor]:
        """Of the weights in `updated`: ptr int32 [outs + 1] and off int32 [n] into the packed source of the forward pass."""
        return self._gradient(self._checked(shape))

    def update(self, positions: np.ndarray | None) -> None:
        """Ask for the gradients of these positions only (integers of any type, strictly increasing); None: of all.

        Raises:
            ValueError: if a position is no integer, out of range or not larger than the one before.
        """
        if positions is not None:
            positions = _increasing("positions", "positions in the vector of weights", positions, self.count, "active weight")
            if positions.size == self.count:
                positions = None
        self.updated = positions
        self._gradient.cache_clear()

    def _checked(self, shape: Shape) -> Shape:
        if shape.weight_shape != self.weight_shape:
            raise ValueError(f"weights of shape {self.weight_shape} cannot serve a layer of {shape.weight_shape}")
        return shape

    def _where(self) -> tuple[np.ndarray, ...]:
        """Output channel, input channel, kernel row and column of each active weight."""
        return np.unravel_index(np.arange(self.count) if self.places is None else self.places, self.weight_shape)

    def _make_forward(self, shape: Shape) -> Lists:
        part = forward_part(shape, self.vector, self.density)
        outs, channels, rows, columns = self._where()
        return _lists(part, outs, channels, rows, _offsets(part, channels, rows, columns), None)

    def _make_backward(self, shape: Shape) -> tuple[tuple[Lists, ...], bool]:
        parts, is_whole = backward_parts(shape, self.vector, self.density)
        outs, channels, rows, columns = self._where()
        (step_h, step_w), made = shape.stride, []
        for part in parts:
            picked = None
            here = outs, channels, rows, columns
            if shape.stride != (1, 1):
                picked = np.flatnonzero((rows % step_h == part.residue[0]) & (columns % step_w == part.residue[1]))
                here = tuple(array[picked] for array in here)
            o, c, k, l = here  # noqa: E741
            row = part.kernel[0] - 1 - k // step_h  # counted from the far end
            far = _offsets(part, o, row, part.kernel[1] - 1 - l // step_w)
            made.append(_lists(part, c, o, row, far, picked))
        return tuple(made), is_whole

    def _make_gradient(self, shape: Shape) -> tuple[Tensor, Tensor]:
        off, ptr = self._offsets_of(shape), np.zeros(self.weight_shape[0] + 1, np.int32)
        ptr[1:] = self._ends if self.updated is None else np.searchsorted(self.updated, self._ends)
        return torch.from_numpy(ptr), torch.from_numpy(off if self.updated is None else off[self.updated])

    def _make_offsets(self, shape: Shape) -> np.ndarray:
        part = forward_part(shape, self.vector, self.density)
        _, channels, rows, columns = self._where()
        return _offsets(part, channels, rows, columns)


def _increasing(name: str, what: str, given: np.ndarray, end: int, last: str) -> np.ndarray:
    """`given` as int64, if it is integers that increase strictly from 0 to below `end`."""
    given = np.asarray(given)
    if given.ndim != 1 or given.dtype.kind not in "iu":
        raise ValueError(f"{name} are {given.dtype} of shape {given.shape}: {what} are integers in one dimension")
    if given.size and not (given[0] >= 0 and given[-1] < end and (given[1:] > given[:-1]).all()):
        raise ValueError(f"{name} must increase strictly from 0 to at most {end - 1}, the last {last}")
    return given.astype(np.int64, copy=False)


def _offsets(part: Part, channels: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    f = part.field
    part.struct()  # refuses what has no 32-bit offset
    found = (channels * f["packed_rows"] + rows) * f["row_floats"]
    found += columns % f["stride_w"] * f["phase_floats"] + columns // f["stride_w"] * f["slice"]
    return found.astype(np.int32)


def _lists(part: Part, to: np.ndarray, source: np.ndarray, row: np.ndarray, off: np.ndarray, picked: np.ndarray | None) -> Lists:
    """Entries by block of source channels, then by output channel, longest list first, then by kernel row, then as they come."""
    outs, blocks, rows = part.field["outs"], part.field["blocks"], part.kernel[0]
    block = source // -(-part.field["channels"] // blocks)
    counts = np.bincount(block * outs + to, minlength=blocks * outs).reshape(blocks, outs)
    order = np.argsort(-counts, axis=1, kind="stable")
    rank = np.argsort(order, axis=1, kind="stable")
    key = (block * outs + rank[block, to]) * rows + row
    turned = np.argsort(key.astype(np.uint16) if blocks * outs * rows <= 2**16 else key, kind="stable")  # 16 bits are sorted by radix
    ends = np.cumsum(np.bincount(key, minlength=blocks * outs * rows))
    starts = np.concatenate([[0], ends])[:-1].reshape(blocks, outs, rows)
    ptr = np.concatenate([starts, ends.reshape(blocks, outs, rows)[:, :, -1:]], axis=2).astype(np.int32)
    values = turned if picked is None else picked[turned]
    is_plain = picked is None and (turned[1:] > turned[:-1]).all()
    return Lists(
        part,
        torch.from_numpy(order.astype(np.int32)),
        torch.from_numpy(ptr),
        torch.from_numpy(off[turned]),
        None if is_plain else torch.from_numpy(values.astype(np.int32)),
    )
