"""Messages out and replies in: what every device holds, what it is sent, and what of its answer can be used."""

from dataclasses import replace

import numpy as np
from flwr.app import ConfigRecord, Message, RecordDict

from server.fleet.conditions import Conditions
from server.global_model.broadcast import Base
from server.global_model.model import GlobalModel
from server.ledger import Where
from server.rounds import replies
from server.rounds.messages import Reply, Request, Verdict, message_bytes, metadata_bytes
from server.rounds.reply_limits import Bounds, Workbook
from server.selection.cohort import Chosen
from server.selection.estimate import Workload
from server.selection.sparsity_tiers import Tiers
from server.snapshot import Snapshot
from sparcl_core.codec import CodecError, Sizes
from sparcl_core.wire.protocol import Instruction


class Exchange:
    """The server's side of the wire.

    Attributes:
        held: device -> the version that it holds; 0: what it holds is unknown, and it is sent the whole model.
        told: device -> the step with which it was sent the arrays beside the model, where that is done once a task.
        most_bytes: what a reply can weigh.
    """

    def __init__(self, model: GlobalModel, tiers: Tiers, conditions: Conditions, workload: Workload):
        self.model, self.tiers, self.conditions = model, tiers, conditions
        self.workbook = Workbook(workload, model.whole, model.beside.channel_up.layout)
        self.most_bytes = self.workbook.reply_bytes
        self.local_epochs = model.settings.federation.local_epochs
        self.shown = model.whole if model.settings.federation.batchnorm == "local" and model.whole.statistics else None
        self.held: dict[int, int] = {}
        self.told: dict[int, int] = {}

    def holds(self, device: int, version: int) -> None:
        """It has moved on to this version."""
        self.held[device] = version

    def forget(self, device: int) -> None:
        """Nobody knows what it holds any more: it is sent the whole model next time."""
        self.held[device] = 0
        self.told.pop(device, None)

    def tier(self, device: int) -> int:
        return int(self.tiers.of[device])

    def newest(self, device: int) -> Base:
        """The version that was published last for the device's tier."""
        return self.model.broadcasts[self.tier(device)].base

    def instruct(
        self, chosen: Chosen, *, action: str, server_round: int, time: float, wants_report: bool, brings_model: bool = True
    ) -> Request:
        """What asks a device to train (or for something beside training)."""
        member, device = chosen.member, chosen.member.device
        tier = self.tier(device)
        broadcast = self.model.broadcasts[tier]
        payloads = broadcast.payloads(self.held.get(device, 0)) if brings_model else ()
        data = tuple(payload.data for payload in payloads)
        # masks are the shared ones' business: sparser tiers are not asked
        beside = self.model.beside.payload(tier, broadcast.base) if action == "train" and self._wants_arrays(device, chosen.step) else None
        instruction = Instruction(server_round, chosen.step, self.local_epochs, wants_report and not tier, data)
        parts = {"control": instruction.control, "payloads": list(data)}
        wire = ConfigRecord(parts | {"auxiliary": beside.data} if beside else parts)
        message = Message(RecordDict({"instruction": wire}), member.node_id, action, group_id=str(server_round))
        sizes = sum((payload.sizes for payload in (*payloads, *([beside] if beside else ()))), Sizes(header=len(instruction.control)))
        extra_s = tuple(self.conditions.jitter(device, server_round, f"{action}-{way}") for way in ("down", "up"))
        where = Where(server_round, chosen.step, device, time)
        rest_bytes = message_bytes(message) - metadata_bytes(message.metadata)
        return Request(member, where, broadcast.base, sizes, rest_bytes, extra_s, message)

    def read(self, request: Request, message: Message) -> Reply:
        """What a reply of training says. Changes nothing here, so it does not matter which reply comes first."""
        return replies.read(message, request, self.bounds(request), self.shown)

    def bounds(self, request: Request) -> Bounds:
        """What this device's reply can be at most."""
        return self.workbook.bounds(request.where.task, request.member.samples)

    def accept(self, request: Request, reply: Reply) -> Verdict:
        """What of a reply can be used."""
        if reply.missing or reply.problem:
            return Verdict(problem=reply.missing or reply.problem)
        tier = self.tier(request.device)
        most = request.member.samples[request.where.task] * self.local_epochs
        broadcast, model = self.model.broadcasts[tier], self.model
        try:
            found = replies.accept(reply.report, request, broadcast, model.masking, voting_rows=model.voting_rows, most_samples=most)
            beside, sizes = model.beside.read(reply.report, request.base)
            found = replace(found, beside=beside, sizes=found.sizes + sizes)
        except CodecError as error:
            return Verdict(problem=f"{request}, stage decode: {error}")
        if tier:  # it holds fewer weights than the shared mask has
            found = replace(found, update=replace(found.update, masks=request.base.masks))
        rest = Sizes(unread=reply.report_bytes - found.sizes.total)  # whatever else was in the report
        return Verdict(replace(found, sizes=found.sizes + rest, statistics=reply.statistics))

    def snapshot(self) -> Snapshot:
        """All that changes from round to round, see `server.snapshot`. [2, n] int64 each, devices, and what is known of them."""
        pairs = {"held": self.held, "told": self.told}
        return {name: np.array([list(own.keys()), list(own.values())], np.int64) for name, own in pairs.items()}

    def restore(self, snapshot: Snapshot) -> None:
        """Go on where `snapshot` was taken."""
        self.held, self.told = (dict(zip(*snapshot[name].tolist(), strict=True)) for name in ("held", "told"))

    def _wants_arrays(self, device: int, step: int) -> bool:
        """Is the device to be sent what is beside the model? Once a task, whoever was sent it for this step is not."""
        if not self.model.beside.once_a_task:
            return True
        is_new, self.told[device] = self.told.get(device) != step, step
        return is_new
