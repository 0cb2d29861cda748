"""Averaging sparse updates: pure functions, sums over devices in the order given, in float64.

Device k has n_k samples and sends d_k, its change of the model that it received. v_kj = 1 where its change of coordinate j counts:
its mask holds j and, in a classifier with row voting, it has seen the class of j's row; else 0. What a holder did not send is 0.
With the server's weights w, what is added to w_j is, by rule:

- `masked-mean`: u_j = sum_k n_k v_kj d_kj / (sum_k n_k v_kj + tau). The sparse weighted average of FedDST (Bibikar et al., AAAI 2022:
  sum n m theta / sum n m), of changes. A coordinate that one device holds takes that device's change whole.
- `count-mean`: the same with n_k = 1 in all sums. HeteroFL (Diao et al., ICLR 2021, section 3): the plain mean over holders.
- `zero-filled`: theta_j = (sum_k n_k v_kj (w_j + d_kj) + tau w_j) / (sum_k n_k + tau), u_j = theta_j - w_j. FedAvg (McMahan et al.,
  AISTATS 2017, Algorithm 1) with 0 for what a device does not hold. It shrinks a coordinate to its share of holders: kept as
  the baseline that shows the danger. In the row of a class, devices that have not seen it leave both sums: to have no data
  of a class is not to want its weights at 0.

An update that is old has a weight s_k < 1 (asynchronous rounds). With `stale = "shrink"` d_kj counts as s_k d_kj above and all else stays:
a round of old updates moves the model less, as FedBuff's sum of s_k d_k over K (Nguyen et al., AISTATS 2022, Algorithm 1; its K updates
count alike, ours by samples). With `stale = "normalise"` n_k counts as n_k s_k throughout: who is older has less to say beside the others,
and three updates of one age move the model as if they were new.

tau = shrinkage * sum_k n_k over all devices: the server's own value is one more holder, with tau samples, so that the fewer devices
hold a coordinate, the closer it stays to the server's value.

Where fewer than `min_votes` devices count, a coordinate is unheld under every rule: u_j = 0, or -w_j with `unheld = "zero"`. Only
masked tensors are zeroed, and only where at least `min_votes` devices could have voted: a classifier row whose class was absent
this round is kept (absence of data says nothing about a weight), and so is a model of which too few devices came back. Dense
tensors and BatchNorm statistics are always kept: no mask speaks against them.

With shared masks every device holds every active coordinate and no update has masks of its own: FedAvg on the active set under
all rules (`count-mean` without the weights), at the cost of the values sent and one pass over the model.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from sparcl_core.codec import Layout, SparseTensor
from sparcl_core.masks import Masks, State

RULES = ("masked-mean", "zero-filled", "count-mean")


@dataclass(frozen=True)
class AggregationConfig:
    """Settings of the average; the formulas stand in the module's text.

    Attributes:
        rule: `masked-mean`, `zero-filled` or `count-mean`.
        unheld: what becomes of a masked coordinate that fewer than `min_votes` devices hold: `keep` the server's value or `zero` it.
        min_votes: devices (not samples) that must hold a coordinate to move it. More than the cohort has means that nothing moves,
            dense tensors included.
        shrinkage: weight of the server's own value as a share of all samples of the round; 0 for none.
        row_voting: classifier rows are averaged over the devices that have seen the class.
        stale: what the weight of an old update does: `shrink` its step, or `normalise`, only its say beside the others.
        clip: an update that is more than so many times as large as the largest median of a round so far is scaled down to the median of its
            own, see `server.clipping`. 0: none is.
        probation: updates for which a device is on probation then: what stands out of its round is refused. 0: none.
    """

    rule: Literal["masked-mean", "zero-filled", "count-mean"] = "masked-mean"
    unheld: Literal["keep", "zero"] = "keep"
    min_votes: int = 1
    shrinkage: float = 0.0
    row_voting: bool = True
    stale: Literal["shrink", "normalise"] = "shrink"
    clip: float = 5.0
    probation: int = 10

    def __post_init__(self):
        if self.rule not in RULES:
            raise ValueError(f"rule is {self.rule!r}: choose one of {', '.join(RULES)}")
        if self.unheld not in ("keep", "zero"):
            raise ValueError(f"unheld is {self.unheld!r}: keep the server's value or zero it; choose keep or zero")
        if self.min_votes < 1:
            raise ValueError(f"min_votes is {self.min_votes}: at least 1; 1 moves whatever a single device holds")
        if not 0 <= self.shrinkage < math.inf:
            raise ValueError(f"shrinkage is {self.shrinkage}: finite and not negative; 0 switches it off")
        if self.stale not in ("shrink", "normalise"):
            raise ValueError(f"stale is {self.stale!r}: choose shrink (an old update moves the model less) or normalise")
        if not (self.clip == 0 or 1 <= self.clip < math.inf):
            raise ValueError(f"clip is {self.clip}: at least 1 times the largest median, and finite; 0 switches it off")
        if self.probation < 0:
            raise ValueError(f"probation is {self.probation}: a number of updates; 0 for none")


@dataclass(frozen=True)
class Update:
    """One device's decoded update.

    Attributes:
        device: its number.
        samples: n_k, samples of the current task processed this round.
        seen: [C] bool, classes it has had data of.
        tensors: d_k, the change of the model that the device received; tensors and places left out did not change.
        masks: the weight masks that the device ended with (mask mode `local`), bool in the layout's shapes. A tensor without a mask is
            held wholly; None: so are all (shared masks: inactive places are in no update, and stay at 0).
        weight: s_k; less than 1 for an update that is stale.
    """

    device: int
    samples: int
    seen: np.ndarray
    tensors: dict[str, SparseTensor]
    masks: Masks | None = None
    weight: float = 1.0


def mean_update(updates: list[Update], weights: State, layout: Layout, classifier: tuple[str, ...], config: AggregationConfig) -> State:
    """What is to be added to `weights`: u of the module's text, float64 arrays in the layout's shapes.

    Args:
        updates: sorted by device.
        weights: the server's w, any float dtype; read by `zero-filled` and `unheld = "zero"` only.
        classifier: names of the tensors whose first axis is the class; read under `row_voting` only. What a device sends for
            rows of classes that it has not seen is left out, not refused: a dense softmax moves every row.

    Raises:
        ValueError: if there is no update, they are out of order, all samples are 0, or a device sent a value where its mask is off.
    """
    counts = _counts(updates, config)
    steps = counts if config.stale == "normalise" else [count * update.weight for count, update in zip(counts, updates, strict=True)]
    tau = config.shrinkage * sum(counts)
    result = {}
    for name, shape in layout.shapes.items():
        votes = _votes(name, updates, counts, layout, classifier, config)
        mean = _sums(name, updates, steps, votes, layout)
        old = weights[name].reshape(mean.shape)
        total = votes.weight
        if config.rule == "zero-filled":
            # theta - w = (sum n v d - (weight of those without the coordinate) w) / (sum n + tau): exact where nobody is without
            total = votes.electorate_weight
            missing = total - votes.weight
            if missing.any():
                mean -= missing * old
        np.divide(mean, total + tau, out=mean, where=total + tau > 0)  # where the weights are 0, so is the sum
        unheld = votes.holders < config.min_votes
        np.copyto(mean, 0.0, where=unheld)
        if config.unheld == "zero" and name in layout.masked - layout.statistics:
            erased = unheld & (votes.electorate >= config.min_votes)
            if erased.any():
                np.copyto(mean, -old, where=erased)
        result[name] = mean.reshape(shape)
    return result


def voted(updates: list[Update], layout: Layout, classifier: tuple[str, ...], config: AggregationConfig) -> dict[str, np.ndarray]:
    """Which coordinates at least `min_votes` devices count for: bool arrays in the layout's shapes. Arguments as in `mean_update`."""
    counts = _counts(updates, config)
    result = {}
    for name, shape in layout.shapes.items():
        enough = _votes(name, updates, counts, layout, classifier, config).holders >= config.min_votes
        result[name] = np.broadcast_to(enough, (enough.shape[0], layout.size(name) // enough.shape[0])).copy().reshape(shape)
    return result


def mean_importance(reports: list[tuple[int, dict[str, SparseTensor]]], layout: Layout) -> dict[str, np.ndarray]:
    """sum_k n_k I_k / sum_k n_k per masked tensor, float64; `reports`: (n_k, decoded importance) in device order."""
    if not reports:
        raise ValueError("no device reported an importance: the masks cannot be updated")
    total = sum(samples for samples, _ in reports)
    result = {name: np.zeros(layout.shapes[name]) for name in layout.shapes if name in layout.masked}
    for samples, tensors in reports:
        for name, mean in result.items():
            mean.reshape(-1)[tensors[name].places] += samples / total * tensors[name].values
    return result


@dataclass(frozen=True)
class _Votes:
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


def _votes(
    name: str, updates: list[Update], counts: list[float], layout: Layout, classifier: tuple[str, ...], config: AggregationConfig
) -> _Votes:
    row_voting = config.row_voting and name in classifier
    rows = layout.shapes[name][0] if row_voting else 1
    width = layout.size(name) // rows
    masks = [_mask(update, name, layout) for update in updates]
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
    return _Votes(electorate, electorate_weight, holders, weight, row_voting)


def _sums(name: str, updates: list[Update], counts: list[float], votes: _Votes, layout: Layout) -> np.ndarray:
    """sum_k n_k v_kj d_kj, [rows, width] float64, at the cost of the values sent."""
    rows = votes.electorate.shape[0]
    sums = np.zeros((rows, layout.size(name) // rows))
    flat = sums.reshape(-1)
    for update, count in zip(updates, counts, strict=True):
        if name not in update.tensors:
            continue
        places, values = update.tensors[name].places, update.tensors[name].values
        mask = _mask(update, name, layout)
        if mask is not None and not mask.reshape(-1)[places].all():
            outside = np.count_nonzero(~mask.reshape(-1)[places])
            raise ValueError(f"device {update.device} sent {outside} values of {name} at places that its mask does not hold")
        if votes.row_voting:
            counted = update.seen[places // sums.shape[1]]
            places, values = places[counted], values[counted]
        flat[places] += np.multiply(values, count, dtype=np.float64)  # float32 values would be multiplied in float32
    return sums


def _mask(update: Update, name: str, layout: Layout) -> np.ndarray | None:
    """The device's mask of a tensor, None if it holds all of it."""
    mask = None if update.masks is None else update.masks.get(name)
    if mask is not None and mask.shape != layout.shapes[name]:
        raise ValueError(f"device {update.device} has a mask of shape {mask.shape} for {name}, which has shape {layout.shapes[name]}")
    return mask


def _counts(updates: list[Update], config: AggregationConfig) -> list[float]:
    """n_k by device, 1 under `count-mean`, of updates that are fit to be averaged; times s_k where weights are normalised."""
    order = [update.device for update in updates]
    if not updates or order != sorted(set(order)):
        raise ValueError(f"updates of devices {order}: at least one, each device once, in device order")
    if sum(update.samples for update in updates) <= 0:
        raise ValueError("no update has a sample behind it: they cannot be weighted")
    counts = [1.0 if config.rule == "count-mean" else float(update.samples) for update in updates]
    if config.stale == "normalise":
        return [count * update.weight for count, update in zip(counts, updates, strict=True)]
    return counts
