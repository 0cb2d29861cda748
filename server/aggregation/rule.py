"""What an averaging rule is: from the changes of one tensor, and from who holds what, to what is added to the server's tensor.

Device k with n_k samples sends d_k, its change of the model that it received. v_kj = 1 where its change of coordinate j counts: its mask
holds j and, in a classifier with row voting, it has seen the class of j's row; else 0. What a holder did not send is 0. An update that is
old has a weight s_k < 1 (asynchronous rounds, `AggregationConfig.stale`).

A rule sees a whole round in `chosen`, where one that compares devices (Krum) leaves some out, and in `counts`, where it may weigh them
by what they sent (RFA); and each tensor in `combine`, where one that compares coordinates (a median) looks at every device's values. A
function from `Changes` to an array is a rule, too. What is done around every rule stands in `average`: coordinates that too few devices
hold. Old updates, the server's own value as one more holder, and who holds what are the rule's to heed; the methods of
`Changes` have them worked out.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from server.aggregation.update import Update
from sparcl_core.codec import Layout


@dataclass(frozen=True)
class Support:
    """Who counts for a tensor seen as [rows, width]: a row for each class under row voting, else one. Sums over devices in order.

    Arrays of one column say the same of a whole row: without masks, no array of the tensor's size is needed.

    Attributes:
        electorate: [rows, 1] int64, devices that could vote (that have seen the class); all where there is no row voting.
        electorate_weight: [rows, 1] float64, sum of their n_k.
        holders: [rows, width or 1] int64, sum of v_kj.
        weight: [rows, width or 1] float64, sum of n_k v_kj.
        row_voting: rows are classes.
    """

    electorate: np.ndarray
    electorate_weight: np.ndarray
    holders: np.ndarray
    weight: np.ndarray
    row_voting: bool

    @classmethod
    def of(cls, name: str, updates: list[Update], counts: list[float], layout: Layout, *, row_voting: bool) -> "Support":
        """`counts`: n_k of each update."""
        rows = layout.shapes[name][0] if row_voting else 1
        width = layout.size(name) // rows
        masks = [mask_of(update, name, layout) for update in updates]
        extent = (rows, 1 if all(mask is None for mask in masks) else width)
        electorate, electorate_weight = np.zeros((rows, 1), np.int64), np.zeros((rows, 1))
        holders, weight = np.zeros(extent, np.int64), np.zeros(extent)
        for update, mask, count in zip(updates, masks, counts, strict=True):
            able = update.seen[:, None] if row_voting else np.ones((1, 1), bool)
            holds = able if mask is None else mask.reshape(rows, width) & able
            electorate += able
            electorate_weight += count * able
            holders += holds
            np.add(weight, count, out=weight, where=holds)
        return cls(electorate, electorate_weight, holders, weight, row_voting)


@dataclass(frozen=True, eq=False)
class Changes:
    """One tensor's changes by the updates of a round.

    Attributes:
        name: of the tensor; shape: [rows, width], as `support` sees it.
        updates: in device order.
        counts: n_k of each, or n_k s_k where weights are normalised.
        scales: what becomes of each change before it counts: s_k, or 1 where s_k is in n_k already.
        support: who holds what.
        old: [rows, width], the server's tensor w, any float dtype.
        tau: the weight of the server's own value, as one more holder.
        layout: of the model.
    """

    name: str
    shape: tuple[int, int]
    updates: list[Update]
    counts: list[float]
    scales: list[float]
    support: Support
    old: np.ndarray
    tau: float
    layout: Layout

    def each(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Per update what it sent that counts: flat places, and values d_kj as they came; none where it did not change the tensor.

        Raises:
            ValueError: if a device sent a value where its mask is off.
        """
        for update in self.updates:
            if self.name not in update.tensors:
                yield np.zeros(0, np.int64), np.zeros(0)
                continue
            places, values = update.tensors[self.name].places, update.tensors[self.name].values
            mask = mask_of(update, self.name, self.layout)
            if mask is not None and not mask.reshape(-1)[places].all():
                outside = np.count_nonzero(~mask.reshape(-1)[places])
                raise ValueError(f"device {update.device} sent {outside} values of {self.name} at places that its mask does not hold")
            if self.support.row_voting:
                counted = update.seen[places // self.shape[1]]
                places, values = places[counted], values[counted]
            yield places, values

    def total(self) -> np.ndarray:
        """sum_k n_k s_k v_kj d_kj, [rows, width] float64, at the cost of the values sent."""
        sums = np.zeros(self.shape)
        flat = sums.reshape(-1)
        for (places, values), count, scale in zip(self.each(), self.counts, self.scales, strict=True):
            flat[places] += np.multiply(values, count * scale, dtype=np.float64)  # float32 values would be multiplied in float32
        return sums

    def held(self) -> np.ndarray:
        """s_k d_kj of every device, [K, rows, width] float64: NaN where v_kj = 0, and 0 where a holder sent nothing.

        For rules that look at coordinates device by device; takes K times the memory of the tensor.
        """
        found = np.zeros((len(self.updates), *self.shape))
        for own, update, scale, (places, values) in zip(found, self.updates, self.scales, self.each(), strict=True):
            own.reshape(-1)[places] = np.multiply(values, scale, dtype=np.float64)
            if (mask := mask_of(update, self.name, self.layout)) is not None:
                own[~mask.reshape(self.shape)] = np.nan
            if self.support.row_voting:
                own[~update.seen] = np.nan
        return found


class Rule(ABC):
    """An averaging rule. It has no state: a round is combined as if there had been none before.

    Attributes:
        settings: the `AggregationConfig`, for rules that read more of it than their name. Options of a rule's own, which stand in
            [aggregation.options], are further arguments of its `__init__`, given by name.
        least_updates: with fewer in a round the rule does not do what it promises; an experiment that asks fewer devices is refused.
    """

    least_updates = 1

    def __init__(self, settings: Any):
        self.settings = settings

    def count(self, update: Update) -> float:
        """n_k: what a device counts beside the others."""
        return float(update.samples)

    def counts(self, updates: list[Update], layout: Layout) -> list[float]:
        """n_k of all updates of a round, where it depends on the others."""
        return [self.count(update) for update in updates]

    def chosen(self, updates: list[Update], layout: Layout) -> list[Update]:
        """The updates of a round that count at all, in the order given."""
        return updates

    @abstractmethod
    def combine(self, changes: Changes) -> np.ndarray:
        """u_j: what is to be added to the server's tensor, [rows, width] float64; where nobody holds a coordinate, anything finite."""


def mask_of(update: Update, name: str, layout: Layout) -> np.ndarray | None:
    """The device's mask of a tensor, None if it holds all of it. Raises ValueError if it is of another shape."""
    mask = None if update.masks is None else update.masks.get(name)
    if mask is not None and mask.shape != layout.shapes[name]:
        raise ValueError(f"device {update.device} has a mask of shape {mask.shape} for {name}, which has shape {layout.shapes[name]}")
    return mask


def quotient(total: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """total / weight in place of `total`; where the weight is 0, nobody counts and so is the sum."""
    return np.divide(total, weight, out=total, where=weight > 0)
