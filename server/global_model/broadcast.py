"""What the devices hold, and what is sent to bring each of them up to date.

The server keeps its weights w and the broadcast model w^, what devices hold: w^ <- w^ + Q(w - w^), one encoding for all; the
rest w - w^ stays here and goes out with the next version. Every version's payloads are stored: a stale device gets them
in sequence, or w^ whole if that is smaller; a device never seen gets it whole. Payloads that the whole model undercuts are
forgotten.
"""

from dataclasses import dataclass
from itertools import islice

import numpy as np

from server.snapshot import Snapshot, pack, same_model, under, unpack, within
from sparcl_core import codec
from sparcl_core.codec import Encoded, Layout, SparseTensor
from sparcl_core.seeding import generator
from sparcl_core.sparsity.masks import Masks, State, apply_masks_, num_active, shrink
from sparcl_core.sparsity.scheme import Scheme
from sparcl_core.sparsity.update import MaskUpdate, surviving
from sparcl_core.wire.error_feedback import WireConfig, code_update, statistics_form


@dataclass(frozen=True, eq=False)
class Base:
    """A version as an update refers to it: its number, that of its masks, and the masks."""

    version: int
    mask_version: int
    masks: Masks


class Broadcast:
    """The broadcast side of a run; `version` counts published models, `mask_version` mask updates."""

    def __init__(self, weights: State, masks: Masks, layout: Layout, *, wire: WireConfig, seed: int):
        self.layout, self.wire, self.seed = layout, wire, seed
        self.held = {name: weights[name].copy() for name in layout.shapes}
        self.masks = masks
        self.version = self.mask_version = 0
        self._steps: dict[int, list[Encoded]] = {}
        self._pending_mask: list[Encoded] = []
        self._whole: Encoded | None = None

    @property
    def masks(self) -> Masks:
        """The shared masks; read-only, so that what is worked out from them can be kept."""
        return self._masks

    @masks.setter
    def masks(self, masks: Masks) -> None:
        for mask in masks.values():
            mask.flags.writeable = False
        self._masks = masks

    @property
    def base(self) -> Base:
        """The version that was published last."""
        return Base(self.version, self.mask_version, self.masks)

    def update_masks(self, weights: State, update: MaskUpdate, scheme: Scheme) -> None:
        """Change the masks by an update; dropped places of `weights` and of the held model become 0, in place.

        Devices are sent what it drops, and redo the rest; what is grown only where they could not draw it.
        """
        self._pending_mask.append(self._places(update.what if scheme.draws_growth else "drop", update.dropped, update.number))
        before, self.masks = self.masks, surviving(self.masks, update)
        if not scheme.draws_growth:
            self._pending_mask.append(self._places("add", update.grown, update.number))
        self.masks = scheme.redo(before, [weights, self.held], update)
        self.mask_version = update.number

    def replace_masks(self, masks: Masks, weights: State | None = None) -> None:
        """Change the masks to others that devices cannot foresee: dropped and added places are sent; as `update_masks` otherwise.

        `weights`: None where those of the server are not theirs to change."""
        gone = {name: np.flatnonzero(old & ~masks[name]) for name, old in self.masks.items()}
        come = {name: np.flatnonzero(masks[name] & ~old) for name, old in self.masks.items()}
        if not any(places.size for places in (*gone.values(), *come.values())):
            return
        number = self.mask_version + 1
        self._pending_mask.append(self._places("drop", gone, number))
        self.masks = {name: old & masks[name] for name, old in self.masks.items()}
        self._pending_mask.append(self._places("add", come, number))
        self.masks = {name: mask.copy() for name, mask in masks.items()}
        self.mask_version = number
        for state in (self.held,) if weights is None else (weights, self.held):
            apply_masks_(state, self.masks)

    def publish(self, weights: State) -> None:
        """Make the next version: encode what `weights` differ from the held model, and move the held model by what was encoded."""
        self.version += 1
        if self.version > 1:
            delta = self._delta(weights)
            self._steps[self.version] = [*self._pending_mask, delta]
        self._pending_mask = []
        self._whole = None
        self._forget()

    def restart(self, weights: State) -> None:
        """Let the held model be `weights`, as far as the masks go. No step leads there from an older version: whoever has one, or is at
        work with one, is sent the whole model next."""
        self.held = {name: weights[name].copy() for name in self.layout.shapes}
        apply_masks_(self.held, self.masks)
        self.version += 1
        self._steps, self._pending_mask, self._whole = {}, [], None

    def _delta(self, weights: State) -> Encoded:
        coded, wire = {}, self.wire
        for name in self.layout.shapes:
            is_statistics = name in self.layout.statistics
            form = statistics_form(wire.down) if is_statistics else wire.down
            rng = generator(self.seed, "rounding", "server", self.version, name) if wire.rounding == "stochastic" else None
            over = codec.reference("delta", self.layout, name, self.masks)
            sent = code_update(weights[name] - self.held[name], None, over, form, name=name, rng=rng, block=wire.block).coded
            self.held[name].reshape(-1)[sent.places] += sent.values.astype(self.held[name].dtype)
            coded[name] = sent
        return codec.encode("delta", self.layout, coded, model_version=self.version, mask_version=self.mask_version)

    def payloads(self, version: int) -> tuple[Encoded, ...]:
        """What a device that holds `version` (0: nothing) needs; one shared object for all devices of the same version."""
        missing = range(version + 1, self.version + 1)
        if version == 0 or any(number not in self._steps for number in missing):
            return (self.whole,)
        steps = tuple(payload for number in missing for payload in self._steps[number])
        return steps if sum(map(len, steps)) <= len(self.whole) else (self.whole,)

    @property
    def whole(self) -> Encoded:
        """The held model, lossless, masks included."""
        if self._whole is None:
            self._whole = self.whole_of(self.held)
        return self._whole

    def whole_of(self, weights: State) -> Encoded:
        """These weights as `whole` has the held ones, in this version's place."""
        tensors = {}
        for name in self.layout.shapes:
            flat = weights[name].reshape(-1)
            places = np.flatnonzero(self.masks[name]) if name in self.masks else np.arange(flat.size)
            form = "f64" if flat.dtype == np.float64 else "f32"
            over = codec.reference("whole", self.layout, name, self.masks)
            tensors[name] = codec.quantise(SparseTensor(places, flat[places]), over, form, name)
        return codec.encode("whole", self.layout, tensors, model_version=self.version, mask_version=self.mask_version)

    def snapshot(self) -> Snapshot:
        """All that changes from round to round, see `server.snapshot`. The whole model's payload is made anew when it is needed."""
        steps = [payload for step in self._steps.values() for payload in step]
        return {
            "versions": np.array([self.version, self.mask_version], np.int64),
            "steps/made": np.array([(number, len(step)) for number, step in self._steps.items()], np.int64).reshape(-1, 2),
            **under("held", self.held),
            **under("masks", self.masks),
            **under("steps", pack(steps)),
            **under("pending", pack(self._pending_mask)),
        }

    def restore(self, snapshot: Snapshot) -> None:
        """Go on where `snapshot` was taken. Raises ValueError if it is of another model."""
        self.held, self.masks = same_model("held", snapshot, self.held), same_model("masks", snapshot, self.masks)
        self.version, self.mask_version = snapshot["versions"].tolist()
        steps = iter(unpack(within("steps", snapshot)))
        self._steps = {number: list(islice(steps, count)) for number, count in snapshot["steps/made"].tolist()}
        self._pending_mask = unpack(within("pending", snapshot))
        self._whole = None

    def _places(self, kind: str, places: dict[str, np.ndarray], number: int) -> Encoded:
        return codec.encode_places(kind, self.layout, places, self.masks, versions=(self.version, number))

    def _forget(self) -> None:
        total = 0
        for number in sorted(self._steps, reverse=True):
            total += sum(map(len, self._steps[number]))
            if total > len(self.whole):
                del self._steps[number]


class TieredBroadcast:
    """The broadcasts of a run, by tier: the masks of sparser tiers lie within the shared one, and follow it.

    Args:
        sparsities: of the tiers, ascending; the first is the experiment's own.
    """

    def __init__(self, weights: State, masks: Masks, layout: Layout, sparsities: tuple[float, ...], *, wire: WireConfig, seed: int):
        self.sparsities = sparsities
        shared = Broadcast(weights, masks, layout, wire=wire, seed=seed)
        sparser = [Broadcast(weights, nested(masks, weights, sparsity), layout, wire=wire, seed=seed) for sparsity in sparsities[1:]]
        for broadcast in sparser:
            for name, mask in broadcast.masks.items():
                broadcast.held[name][~mask] = 0
        self.by_tier = (shared, *sparser)
        self._nested_at = shared.mask_version

    @property
    def shared(self) -> Broadcast:
        """That of the shared masks."""
        return self.by_tier[0]

    def __getitem__(self, tier: int) -> Broadcast:
        return self.by_tier[tier]

    def publish(self, weights: State) -> None:
        """The next version for every tier; masks of sparser ones follow the shared one first.

        Raises:
            ValueError: if a weight cannot be sent.
        """
        if self._nested_at != self.shared.mask_version:
            self._nested_at = self.shared.mask_version
            for broadcast, sparsity in zip(self.by_tier[1:], self.sparsities[1:], strict=True):
                broadcast.replace_masks(nested(self.shared.masks, weights, sparsity))
        for broadcast in self.by_tier:
            broadcast.publish(weights)

    def restart(self, weights: State) -> None:
        """Everybody is sent these weights whole; masks stay as they are."""
        for broadcast in self.by_tier:
            broadcast.restart(weights)

    def snapshot(self) -> Snapshot:
        """All that changes from round to round, see `server.snapshot`."""
        own = {name: array for tier, one in enumerate(self.by_tier) for name, array in under(f"{tier}", one.snapshot()).items()}
        return {"nested": np.array(self._nested_at), **own}

    def restore(self, snapshot: Snapshot) -> None:
        """Go on where `snapshot` was taken. Raises ValueError if it is of another model."""
        for tier, broadcast in enumerate(self.by_tier):
            broadcast.restore(within(f"{tier}", snapshot))
        self._nested_at = int(snapshot["nested"])


def nested(masks: Masks, weights: State, sparsity: float) -> Masks:
    """The masks of a sparser tier: within `masks`, the largest weights of each tensor; of equal ones those with the lower index."""
    return {
        name: shrink(mask, np.abs(weights[name]), min(num_active(mask.size, sparsity), int(np.count_nonzero(mask))))
        for name, mask in masks.items()
    }
