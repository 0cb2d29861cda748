"""What devices contribute to the model in a round, and what of it is used: what is refused, and what is scaled down."""

from dataclasses import dataclass, field, replace

from server.aggregation.average import chosen
from server.aggregation.config import AggregationConfig
from server.aggregation.update import Update
from server.defence.clipping import Bounded, Seen, Unusual, bounded
from server.defence.importance import Importance, bounded_reports
from server.defence.ruin import ruinous
from sparcl_core.codec import Layout, Sizes
from sparcl_core.sparsity.masks import State


@dataclass(frozen=True, eq=False)
class Contribution:
    """A device's report, decoded and checked.

    Attributes:
        update: its change of the model.
        importance: what a shared mask's update needs, where it was asked for.
        base_version: of the model that it was trained with.
        sizes: bytes of the report by kind.
        statistics: BatchNorm's, where they stay on the device.
        has_changed: the device found that its task has.
        beside: the arrays that it sent beside its update.
    """

    update: Update
    importance: Importance | None
    base_version: int
    sizes: Sizes
    statistics: State | None = None
    has_changed: bool = False
    beside: State = field(default_factory=dict)

    @property
    def device(self) -> int:
        return self.update.device


@dataclass(frozen=True, eq=False)
class Judged:
    """A round's contributions, held against each other.

    Attributes:
        used: those that are used, as they are used, in the order given.
        unusual: what was done to some of them, and why others are not used.
        bounded: what clipping has made of the updates.
        trained_with: the newest version that a device has trained with; 0 without any.
        taken_back: why the model is as before all the same, empty if it is not.
    """

    used: list[Contribution]
    unusual: list[Unusual]
    bounded: Bounded
    trained_with: int
    taken_back: str = ""


def judge(
    contributions: list[Contribution], weights: State, seen: Seen, layout: Layout, *, config: AggregationConfig
) -> tuple[Judged, Seen]:
    """What of a round's contributions is used, by their updates (see `server.defence`), and what is remembered of these.

    Args:
        contributions: in device order.
        weights: of the model that they would change.
        seen: what earlier rounds have left.
    """
    refused = ruinous([one.update for one in contributions], weights, bool(config.clip))
    ruins = {one.device for one in refused}
    kept = [one for one in contributions if one.device not in ruins]
    found, seen = bounded([one.update for one in kept], seen, layout, config)
    updates = {update.device: update for update in chosen(found.updates, layout, config)}
    used = [replace(one, update=updates[one.device]) for one in kept if one.device in updates]
    reason = f"aggregation.rule={config.rule} has left its update out"
    out = [Unusual(update.device, True, reason) for update in found.updates if update.device not in updates]
    return Judged(used, [*refused, *found.unusual, *out], found, max((one.base_version for one in kept), default=0)), seen


def judge_importance(judged: Judged, clip: float) -> Judged:
    """The same with importance as it counts: that of a device whose update stood out does not. `clip`: `aggregation.clip`."""
    clipped = {one.device for one in judged.unusual}
    told = {one.device: one.importance for one in judged.used if one.importance is not None and one.device not in clipped}
    reports, unusual = bounded_reports(told, clip)
    used = [replace(one, importance=reports.get(one.device)) for one in judged.used]
    return replace(judged, used=used, unusual=[*judged.unusual, *unusual])
