"""Who decides which weights exist: the server between rounds, or every device for itself.

`SharedMasks`: at the server. In the round before an update devices report what its scheme asks for, importance (which is bounded) or votes;
the next downlink carries what is dropped, and everybody draws the same growth, or is sent it where it is not drawn (RigL).
`LocalMasks`: on the devices (FedDST, Bibikar et al. 2022). Each device starts a round from the global mask, adapts it, and sends what
it changed; the server averages over holders, and keeps the largest weights of the union in every
layer, so that the model stays as sparse as it was. K masks of density d that were drawn apart would have a union of
density 1 - (1 - d)^K: `Diversity` watches it.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from server.aggregation.update import Update
from server.global_model.broadcast import Base, Broadcast
from server.snapshot import Snapshot, in_order, under, within
from sparcl_core.codec import CodecError, Layout, Payload, SparseTensor
from sparcl_core.sparsity.masks import Masks, State, shrink
from sparcl_core.sparsity.packnet import Owners, claimed, nobody
from sparcl_core.sparsity.schedule import Sessions
from sparcl_core.sparsity.scheme import Scheme
from sparcl_core.sparsity.update import MaskUpdate, surviving


@dataclass(frozen=True)
class Diversity:
    """How the masks of one round's devices differ.

    union_density: share of the maskable weights that at least one device holds.
    distance: mean over all pairs of devices of the Hamming distance between their masks, as a share of the maskable weights.
    """

    union_density: float
    distance: float


def diversity(masks: list[Masks]) -> Diversity:
    """Raises ValueError without a device or a mask."""
    size = sum(mask.size for mask in masks[0].values()) if masks else 0
    if not size:
        raise ValueError("there are no masks to compare")
    held = apart = 0
    if all(own is masks[0] for own in masks):  # one mask for all: nothing to count
        return Diversity(sum(int(np.count_nonzero(mask)) for mask in masks[0].values()) / size, 0.0)
    for name in masks[0]:
        holders = np.sum([own[name] for own in masks], axis=0, dtype=np.int64)
        held += int(np.count_nonzero(holders))
        apart += int((holders * (len(masks) - holders)).sum())
    pairs = len(masks) * (len(masks) - 1) / 2
    return Diversity(held / size, apart / pairs / size if pairs else 0.0)


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
class Reported:
    """What a device's report says of masks. masks: its own, where it has its own; importance: what a shared mask's update needs."""

    masks: Masks | None = None
    importance: dict[str, SparseTensor] | None = None


class SharedMasks:
    """One mask for all, updated between rounds.

    Attributes:
        asks: do devices compute what an update is decided by?
        by_votes: and do they vote?
        owners: whose each place is, where the scheme wants to know.
    """

    def __init__(self, scheme: Scheme, schedule: Sessions, masks: Masks, importance: str):
        """`masks`: to begin with; `importance`: form of the reports, see `WireConfig`; what RigL asks for are votes in any case."""
        self.scheme, self.schedule, self.by_votes = scheme, schedule, importance == "votes" or scheme.needs == "gradients"
        self.asks = scheme.asks
        self.owners: Owners = nobody(masks) if scheme.needs == "owners" else {}
        self._reported: dict[str, np.ndarray] = {}
        self._is_owed = False

    def wants_report(self, task: int, session: int) -> bool:
        """Does a mask update follow this session that devices are asked about?"""
        return self.asks and (self._is_owed or self.schedule.action(task, session + 1) == "adapt")

    def before_round(self, task: int, session: int, weights: State, broadcast: Broadcast) -> Masks:
        """Update the masks if the schedule says so; dropped places of `weights` become 0, in place.

        An update for which no device has reported anything (nobody had data, or was there) is owed until one has, or the next task begins.

        Returns:
            The masks after the drop and before the growth; empty where nothing changed.
        """
        what = self.schedule.action(task, session)
        if what == "rest" and self._is_owed:
            what = "adapt"
        self._is_owed = self.asks and what == "adapt" and not self._reported
        if what == "rest" or self._is_owed:
            return {}
        if what == "grow" and self.owners:
            self.owners = claimed(self.owners, broadcast.masks, task - 1)
        planned = {"number": broadcast.mask_version + 1, "epoch": session * self.schedule.session_epochs}
        if what == "adapt" and self.asks and self.by_votes:
            update = self.scheme.plan_by_votes(broadcast.masks, weights, self._reported, **planned)
        else:
            update = self.scheme.plan(what, broadcast.masks, weights, self.owners or self._reported, **planned)
        left = surviving(broadcast.masks, update)
        broadcast.update_masks(weights, update, self.scheme)
        return left

    def read(self, payload: Payload | None, device: int, server_round: int, base: Base) -> Reported:
        """A device's report of a round, None if it sent none. Raises CodecError if it is none that was asked for."""
        if payload is None:
            return Reported()
        wanted = "candidates" if self.scheme.needs == "gradients" else "votes" if self.by_votes else "importance"
        if payload.kind != wanted or payload.tensors.keys() != base.masks.keys():
            raise CodecError(f"a report of {wanted} was asked for, and it must cover the masked tensors; this is {payload.kind!r}")
        if not self.by_votes:
            return Reported(importance=payload.tensors)
        votes = {name: SparseTensor(tensor.places, np.ones(tensor.places.size)) for name, tensor in payload.tensors.items()}
        return Reported(importance=votes)

    def after_round(self, updates: list[Update], reports: list[tuple[int, dict]], weights: State, broadcast: Broadcast) -> None:
        """Keep the mean of the reports for the next update, weighted by samples; where devices name what to grow, each counts once: few
        name the same places, and the device with the most data would decide all of them."""
        if self.scheme.needs == "gradients":
            reports = [(1, votes) for _, votes in reports]
        self._reported = mean_importance(reports, broadcast.layout) if reports else {}

    def snapshot(self) -> Snapshot:
        """All that changes from round to round, see `server.snapshot`."""
        return under("reported", self._reported) | under("owners", self.owners) | {"owed": np.array(self._is_owed)}

    def restore(self, snapshot: Snapshot, broadcast: Broadcast) -> None:
        """Go on where `snapshot` was taken."""
        self._reported = in_order(broadcast.layout.shapes, within("reported", snapshot))
        self.owners = in_order(broadcast.layout.shapes, within("owners", snapshot))
        self._is_owed = bool(snapshot["owed"])


class LocalMasks:
    """Every device adapts its own mask; the server thins the union."""

    by_votes = False
    owners: ClassVar[Owners] = {}

    def __init__(self, scheme: Scheme):
        self.scheme = scheme

    def wants_report(self, task: int, session: int) -> bool:
        return False

    def before_round(self, task: int, session: int, weights: State, broadcast: Broadcast) -> Masks:
        """Nothing: masks change after a round."""
        return {}

    def read(self, payload: Payload | None, device: int, server_round: int, base: Base) -> Reported:
        """The masks that a device trained with, from what it changed; None: it kept them. Raises CodecError if that is no such update."""
        if payload is None:
            return Reported(base.masks)
        kinds = ("grow", "adapt") if self.scheme.draws_growth else ("flip",)
        if payload.kind not in kinds or payload.tensors.keys() != base.masks.keys():
            raise CodecError(f"a mask update must cover the masked tensors; this is {payload.kind!r}")
        named = {name: tensor.places for name, tensor in payload.tensors.items()}
        if payload.kind == "flip":
            return Reported(_flipped(base.masks, named))
        if payload.kind == "grow" and any(places.size for places in named.values()):
            raise CodecError("a mask update that only grows drops weights: damaged")
        try:
            return Reported(self.scheme.redo(base.masks, [], MaskUpdate(server_round, payload.kind, named, device)))
        except ValueError as error:  # more dropped than there are to grow back
            raise CodecError(f"a mask update that cannot be redone: {error}") from error

    def after_round(self, updates: list[Update], reports: list[tuple[int, dict]], weights: State, broadcast: Broadcast) -> None:
        """Keep the largest weights of the union, as many per layer as the server's own mask has; the others become 0, in place.

        The server's own mask is part of the union: a weight that every device dropped stays in the running with its old value,
        unless `aggregation.unheld` has set it to 0.
        """
        own = [update.masks for update in updates if update.masks is not None]
        if not own:
            return
        thinned = {}
        for name, mask in broadcast.masks.items():
            union = np.logical_or.reduce([mask, *(masks[name] for masks in own)])
            thinned[name] = shrink(union, np.abs(weights[name]), int(np.count_nonzero(mask)))
        broadcast.replace_masks(thinned, weights)

    def snapshot(self) -> Snapshot:
        """Nothing: the masks are the broadcast's, and what a device's own were is forgotten after the round."""
        return {}

    def restore(self, snapshot: Snapshot, broadcast: Broadcast) -> None:
        pass


def _flipped(masks: Masks, places: dict[str, np.ndarray]) -> Masks:
    """`masks` with these places the other way round. Raises CodecError if a layer has another count then."""
    result = {}
    for name, mask in masks.items():
        result[name] = mask.copy()
        result[name].reshape(-1)[places[name]] ^= True
        if np.count_nonzero(result[name]) != np.count_nonzero(mask):
            raise CodecError(f"a mask update grows another number of weights of {name} than it drops: damaged")
    return result
