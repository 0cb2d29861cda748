"""The arrays that a learning method or a correction has beside the global model: kept here, sent whole, and moved by what devices send."""

from dataclasses import replace

import numpy as np

from server.aggregation.config import AggregationConfig
from server.aggregation.update import Update
from server.defence.clipping import Seen, Unusual, bounded
from server.global_model.broadcast import Base
from server.global_model.contribution import Contribution
from server.global_model.settings import Start
from server.snapshot import Snapshot, same_model, under, within
from sparcl_core.codec import CodecError, Encoded, Sizes, SparseTensor
from sparcl_core.config import MethodConfig
from sparcl_core.methods.auxiliary import Auxiliary
from sparcl_core.methods.auxiliary import within as of_part
from sparcl_core.methods.registry import make_correction, make_method
from sparcl_core.methods.sends_arrays import Upload
from sparcl_core.sparsity.masks import Masks, State
from sparcl_core.sparsity.packnet import Owners, tasks_over
from sparcl_core.wire.protocol import Report


class Beside:
    """What the server keeps for its devices' methods.

    Attributes:
        kept: the arrays by name; never written to.
        chosen: where tasks choose among the weights of earlier ones, what those have chosen that are over.
        channel_up: what devices send.
        once_a_task: a device is sent the arrays with the first round of a task alone.
        scores: the method wants its arrays where a model is tested.
    """

    def __init__(self, method: MethodConfig, start: Start):
        learner = method.learner
        parts = make_method(learner), make_correction(method.correction, learner.lr)
        self._auxiliary = Auxiliary(*parts, start.layout, start.classifier, dtype=method.model.dtype)
        self.kept, self.channel_up = self._auxiliary.start(), self._auxiliary.up
        self._method, self.scores, self.chosen = parts[0], parts[0].scores, dict[str, np.ndarray]()
        self.once_a_task = bool(self._auxiliary.down) and self._auxiliary.once_a_task
        self.seen = Seen()
        self._sent: dict[int, tuple[int, Encoded]] = {}  # tier -> version, and what went out beside it

    def payload(self, tier: int, base: Base) -> Encoded | None:
        """What is sent beside the version `base` of a tier, one object for all devices that are brought to it; None if nothing is."""
        if not self._auxiliary.down:
            return None
        if tier not in self._sent or self._sent[tier][0] != base.version:
            self._sent[tier] = base.version, self.encode(base)
        return self._sent[tier][1]

    def encode(self, base: Base) -> Encoded:
        """What is kept now, beside the version `base`."""
        return self._auxiliary.down.encode(self.kept, base.masks, base.version)

    @property
    def of_method(self) -> State:
        """What is kept for the learning method, by its own names."""
        return of_part("method", self.kept)

    def own(self, owners: Owners, begins: bool) -> None:
        """Whose each weight is, for a method whose tasks own weights; empty for others. `begins`: a task does, with this round."""
        kept = self.of_method
        if begins and owners:
            self.chosen = self.chosen | self._method.chosen(kept, tasks_over(owners) - 1)
        told = self._method.told(owners, kept, begins) if owners else {}
        self.kept = self.kept | {f"method/{name}": value.astype(self._auxiliary.down.dtype) for name, value in told.items()}

    def networks(self, owners: Owners) -> Owners:
        """`owners`, and what each task has chosen of earlier ones', where tasks do that."""
        return owners | self.chosen | self._method.chosen(self.of_method, tasks_over(owners)) if owners else owners

    def drop(self, masks: Masks) -> None:
        """What is kept of weights becomes 0 where these masks have none."""
        self.kept = self._auxiliary.down.within(self.kept, masks)

    def read(self, report: Report, base: Base) -> tuple[State, Sizes]:
        """The arrays of a report, decoded and checked, and their bytes by kind. Raises CodecError if anything about them is wrong."""
        if not self.channel_up:
            return {}, Sizes()
        if not report.auxiliary:
            raise CodecError("the report has no auxiliary arrays, which the learning method or federation.correction needs")
        arrays, sizes = self.channel_up.decode(report.auxiliary, base.masks, base.version)
        self._auxiliary.check(arrays, report.samples)
        return arrays, sizes

    def combine(self, used: list[Contribution], fleet: int, config: AggregationConfig) -> list[Unusual]:
        """Move what is kept by what these have sent, in device order, unless that would be infinite.

        Returns whose arrays stood out, and were scaled down.
        """
        uploads = [Upload(one.device, one.update.samples, one.beside) for one in used if one.beside]
        if not uploads:
            return []
        uploads, unusual = self._bounded(uploads, config)
        with np.errstate(over="ignore", invalid="ignore"):  # looked at in the next line
            found = self._auxiliary.combine(self.kept, uploads, fleet)
        if all(np.isfinite(value).all() for value in found.values()):
            self.kept = found
        return unusual

    def snapshot(self) -> Snapshot:
        """All that changes from round to round, see `server.snapshot`."""
        return {**under("kept", self.kept), **under("seen", self.seen.snapshot()), **under("chosen", self.chosen)}

    def restore(self, snapshot: Snapshot) -> None:
        """Go on where `snapshot` was taken. Raises ValueError if it is of another model."""
        self.kept, self._sent = same_model("kept", snapshot, self.kept), {}
        self.seen = Seen.restored(within("seen", snapshot))
        self.chosen = {name: value.copy() for name, value in within("chosen", snapshot).items()}

    def _bounded(self, uploads: list[Upload], config: AggregationConfig) -> tuple[list[Upload], list[Unusual]]:
        """Arrays that stand out of the round's are scaled down, as it is done with updates (`clipping`); counts and labels are left as they
        are."""
        spared = {*self._auxiliary.counts, *self.channel_up.labels}
        compared = [name for name in self.channel_up.layout.shapes if name not in spared]
        updates = []
        for one in uploads:
            values = {name: one.arrays[name].reshape(-1) for name in compared}
            tensors = {name: SparseTensor(np.arange(value.size), value) for name, value in values.items()}
            updates.append(Update(one.device, one.samples, np.zeros(0, bool), tensors))
        held, self.seen = bounded(updates, self.seen, self.channel_up.layout, replace(config, probation=0))
        scaled = {one.device for one in held.unusual}
        result = []
        for one, update in zip(uploads, held.updates, strict=True):
            moved = {name: update.tensors[name].values.reshape(one.arrays[name].shape) for name in compared}
            result.append(Upload(one.device, one.samples, one.arrays | moved) if one.device in scaled else one)
        return result, held.unusual
