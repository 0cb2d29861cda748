"""Updates held against each other: one that stands out is scaled down, and its device is on probation. Pure functions on values.

Norm clipping as in Sun et al., "Can You Really Backdoor Federated Learning?" (2019), with bounds that follow from the run itself. An update
d_k has three sizes, in float64: the L2 norm of its change of the parameters, its largest single change (a coordinate that one device holds
takes that device's change whole), and the L2 norm of its change of running statistics, which are of another scale. Of each,

    m_t   the median over the updates of round t that change anything
    M_t   the largest median so far, max(M_t-1, min(m_t, 2 M_t-1))

and how far an update stands out is the largest of its sizes over the medians, the largest single change taken half: that varies more. Then

- more than `clip` times both m_t and M_t: it is scaled down to m_t, and the device is on probation for its next `probation` updates;
- more than `STRICT` times m_t, from a device on probation: it is not used, and probation begins again;
- else it is used as it is, to the bit.

Why two bounds: honest updates late in a task shrink to a tenth of those at its beginning, and one that still learns stands out of its round
by 12, or by 100 where only few meet new classes. Held against M_t none of 9,200 honest updates stood out by more than 4.2 (docs/wire.md).
So M_t finds who is to blame, without an innocent, and m_t keeps whoever was found from doing more than its share in the quiet rounds.

The norm is of all values, not per coordinate, sample or step: what counts is how far an update moves the model, and it is what honest
devices agree on most. Devices of sparser tiers hold fewer weights and stay below it. Where fewer than `LEAST` updates of a round (or of the
buffer of an asynchronous one) change anything, there is nobody to compare with, and all stay as they are. Clipping bounds how far one
device moves the model, not where to: an update times -1 looks as an honest one. A robust rule (median, Krum) is
one more in `server.aggregation`, behind this.
"""

from dataclasses import dataclass, field, replace

import numpy as np

from server.aggregation.config import AggregationConfig
from server.aggregation.update import Update
from server.snapshot import Snapshot
from sparcl_core.codec import Layout, SparseTensor

LEAST = 3  # updates that a median says anything about
STRICT = 3.0
GROWTH = 2.0  # of M_t from round to round at most, so that a round with a hostile majority does not lift it out of reach
SIZES = ("norm", "largest change", "change of the running statistics")
_SHARES = np.array([1.0, 0.5, 1.0])


@dataclass(frozen=True, eq=False)
class Seen:
    """What earlier updates leave behind.

    Attributes:
        largest: [3] float64, M_t; 0 as long as there was no median.
        probation: device -> updates for which it is on probation still.
    """

    largest: np.ndarray = field(default_factory=lambda: np.zeros(3))
    probation: dict[int, int] = field(default_factory=dict)

    def snapshot(self) -> Snapshot:
        """See `server.snapshot`."""
        devices = np.array(sorted(self.probation.items()), np.int64).reshape(-1, 2)
        return {"largest": self.largest, "probation": devices}

    @classmethod
    def restored(cls, snapshot: Snapshot) -> "Seen":
        return cls(snapshot["largest"].copy(), dict(snapshot["probation"].tolist()))


@dataclass(frozen=True)
class Unusual:
    """An update that stood out. is_refused: it is not used, else it was scaled down. reason: for the ledger."""

    device: int
    is_refused: bool
    reason: str


@dataclass(frozen=True)
class Bounded:
    """A round's updates as they may be averaged.

    Attributes:
        updates: those that are used, in the order given.
        unusual: what was done to some of them, likewise.
        largest: of those that are used, the device with the largest norm as it is used, and that norm; None without any.
    """

    updates: list[Update]
    unusual: list[Unusual]
    largest: tuple[int, float] | None

    def told(self, server_round: int) -> str:
        """The average of these updates in a few words: whose is the largest, and which stood out."""
        device, norm = self.largest or (-1, 0.0)
        largest = f"the largest is that of device {device}, of norm {norm:.3g}"
        stood_out = [f"device {one.device} was {'refused' if one.is_refused else 'clipped'}" for one in self.unusual]
        seen = f"{len(self.updates)} devices; {largest}; {', '.join(stood_out[:3]) or 'none was clipped'}"
        return f"the update of round {server_round} ({seen})"


def bounded(updates: list[Update], seen: Seen, layout: Layout, config: AggregationConfig) -> tuple[Bounded, Seen]:
    """What of `updates` is used, and what is remembered. `updates`: by device, not changed."""
    parts = [name for name in layout.shapes if name not in layout.statistics], [name for name in layout.shapes if name in layout.statistics]
    found = np.array([sizes(update, *parts) for update in updates]).reshape(-1, 3)
    median, largest = _medians(found, seen.largest)
    used, unusual, moves, probation = [], [], [], dict(seen.probation)
    for update, own in zip(updates, found, strict=True):
        near, far, left, factor = _excess(own, median), _excess(own, largest), probation.pop(update.device, 0), 1.0
        if (config.clip and np.minimum(near, far).max() > config.clip) or (left and near.max() > STRICT):
            probation[update.device] = config.probation
            unusual.append(Unusual(update.device, left > 0, _reason(own, near, left)))
            if left:
                continue
            factor = float(1 / near.max())
            update = scaled(update, factor)
        elif left > 1:
            probation[update.device] = left - 1
        used.append(update)
        moves.append((factor * float(own[0]), -update.device))
    top = max(moves, default=None)
    left = {device: count for device, count in probation.items() if count}
    return Bounded(used, unusual, top and (-top[1], top[0])), Seen(largest, left)


def sizes(update: Update, parameters: list[str], statistics: list[str]) -> tuple[float, float, float]:
    """The three sizes of an update, sums in the order of the names."""
    square, most, square_statistics = 0.0, 0.0, 0.0
    with np.errstate(over="ignore"):  # infinite is large enough
        for name in parameters:
            if name in update.tensors:
                values = update.tensors[name].values.astype(np.float64)
                square += float(np.square(values).sum())
                most = max(most, float(np.abs(values).max(initial=0.0)))
        for name in statistics:
            if name in update.tensors:
                square_statistics += float(np.square(update.tensors[name].values.astype(np.float64)).sum())
    return float(np.sqrt(square)), most, float(np.sqrt(square_statistics))


def scaled(update: Update, factor: float) -> Update:
    """The update with all that it changes times `factor`."""
    own = {}
    for name, tensor in update.tensors.items():
        own[name] = SparseTensor(tensor.places, (tensor.values * np.float64(factor)).astype(tensor.values.dtype), tensor.ranks)
    return replace(update, tensors=own)


def _medians(found: np.ndarray, before: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """m_t and M_t of each size, [3] each. m_t is 0 where there is none; M_t then stays."""
    median, largest = np.zeros(3), before.copy()
    for size in range(3):
        some = found[found[:, size] > 0, size]
        if len(some) >= LEAST:
            median[size] = np.median(some)
            most = GROWTH * before[size] or np.inf
            largest[size] = max(before[size], min(median[size], most))
    return median, largest


def _excess(own: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """[3]: how many times the reference each size is; 0 where there is no reference."""
    return _SHARES * np.divide(own, reference, out=np.zeros(3), where=reference > 0)


def _reason(own: np.ndarray, near: np.ndarray, probation: int) -> str:
    size = int(near.argmax())
    what = f"the update's {SIZES[size]} is {own[size]:.3g}, {near[size] / _SHARES[size]:.3g} times the median of its round"
    if not probation:
        return f"{what}: it was scaled down to that"
    return f"{what}, and its device is on probation for {probation} updates since one that was larger still: it was refused"
