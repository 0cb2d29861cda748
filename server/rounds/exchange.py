"""Messages out and replies in: what every device holds, what it is sent, and what it made of it, down to the ledger's rows."""

from collections.abc import Collection
from dataclasses import dataclass, replace

import numpy as np
from flwr.app import ConfigRecord, Message, Metadata, RecordDict

from server.aggregation.config import AggregationConfig
from server.config import FederationConfig
from server.fleet.conditions import PHASES, Conditions, Fate
from server.fleet.roster import Member
from server.global_model.broadcast import Base, Broadcast
from server.global_model.masks import LocalMasks, SharedMasks
from server.ledger import DONE, Done, Ledger, Where
from server.rounds import replies
from server.rounds.replies import Accepted, Measures, message_bytes
from server.rounds.reply_limits import Bounds, Workbook, most_reply_bytes
from server.selection.cohort import Chosen
from server.selection.estimate import Workload
from server.selection.sparsity_tiers import Tiers, nested
from server.snapshot import Snapshot, under, within
from sparcl_core.codec import CodecError, Layout, Sizes
from sparcl_core.config import MethodConfig
from sparcl_core.costs.device import Cost, download_cost, upload_cost
from sparcl_core.costs.flops import Flops
from sparcl_core.sparsity.masks import Masks, State
from sparcl_core.wire.error_feedback import WireConfig
from sparcl_core.wire.protocol import Instruction, Report


@dataclass(frozen=True)
class Sent:
    """A message on its way to a device.

    Attributes:
        member, where: to whom; round, step and instant.
        base: the version that it brings the device to.
        sizes: of its payloads by kind.
        rest_bytes: of the Flower message without its metadata.
        extra_s: what jitter adds to the way there and back.
        metadata: the message's, which has its number only when the message has been pushed; None: it is part of `rest_bytes`.
    """

    member: Member
    where: Where
    base: Base
    sizes: Sizes
    rest_bytes: int
    extra_s: tuple[float, float] = (0.0, 0.0)
    metadata: Metadata | None = None

    @property
    def message_bytes(self) -> int:
        """Of the Flower message; of one that was pushed, as it was serialised."""
        return self.rest_bytes + (replies.metadata_bytes(self.metadata) if self.metadata else 0)

    def sealed(self) -> "Sent":
        """The same as a value: the message was pushed, and its metadata will not change any more."""
        return replace(self, rest_bytes=self.message_bytes, metadata=None)


@dataclass(frozen=True)
class Reply:
    """What came back. missing: why nothing did; problem: why it cannot be used; sizes in bytes."""

    missing: str = ""
    measures: Measures | None = None
    report: Report | None = None
    observed: State | None = None
    problem: str = ""
    message_bytes: int = 0
    report_bytes: int = 0


class Exchange:
    """The server's side of the wire.

    Attributes:
        broadcasts: one per tier; the first is that of the shared masks.
        held: device -> the version that it holds; 0: what it holds is unknown, and it is sent the whole model.
    """

    def __init__(
        self,
        method: MethodConfig,
        federation: FederationConfig,
        wire: WireConfig,
        aggregation: AggregationConfig,
        whole: Layout,
        classifier: tuple[str, ...],
        weights: State,
        masks: Masks,
        tiers: Tiers,
        conditions: Conditions,
        ledger: Ledger,
        seed: int,
        workload: Workload,
    ):
        self.workbook, self.most_bytes = Workbook(workload), most_reply_bytes(whole)
        self.method, self.federation, self.whole, self.tiers = method, federation, whole, tiers
        self.conditions, self.ledger = conditions, ledger
        self.layout = whole if federation.batchnorm == "global" else whole.without_statistics()
        self.voting_rows = classifier if aggregation.row_voting else ()
        self.broadcasts = [
            Broadcast(weights, nested(masks, weights, level.sparsity) if tier else masks, self.layout, wire, seed)
            for tier, level in enumerate(tiers.levels)
        ]
        for sparser in self.broadcasts[1:]:
            for name, mask in sparser.masks.items():
                sparser.held[name][~mask] = 0
        self.held: dict[int, int] = {}
        self._nested_at = self.broadcasts[0].mask_version

    def publish(self, weights: State) -> None:
        """The next version for every tier; masks of sparser ones follow the shared one first.

        Raises:
            ValueError: if a weight cannot be sent.
        """
        shared = self.broadcasts[0]
        if self._nested_at != shared.mask_version:
            self._nested_at = shared.mask_version
            for sparser, level in zip(self.broadcasts[1:], self.tiers.levels[1:], strict=True):
                sparser.replace_masks(nested(shared.masks, weights, level.sparsity))
        for broadcast in self.broadcasts:
            broadcast.publish(weights)

    def restart(self, weights: State) -> None:
        """Everybody is sent these weights whole; masks stay as they are."""
        for broadcast in self.broadcasts:
            broadcast.restart(weights)

    def tier(self, device: int) -> int:
        return int(self.tiers.of[device])

    def instruct(self, action: str, server_round: int, chosen: Chosen, time: float, wants_report: bool) -> tuple[Message, Sent]:
        """The message that asks a device to train (or to recompute statistics), and what is to be remembered of it."""
        member, device = chosen.member, chosen.member.device
        tier = self.tier(device)
        broadcast = self.broadcasts[tier]
        payloads = broadcast.payloads(self.held.get(device, 0))
        data = tuple(payload.data for payload in payloads)
        # masks are the shared ones' business: sparser tiers are not asked
        instruction = Instruction(server_round, chosen.step, self.federation.local_epochs, wants_report and not tier, data)
        wire = ConfigRecord({"control": instruction.control, "payloads": list(data)})
        message = Message(RecordDict({"instruction": wire}), member.node_id, action, group_id=str(server_round))
        sizes = sum((payload.sizes for payload in payloads), Sizes(header=len(instruction.control)))
        extra_s = tuple(self.conditions.jitter(device, server_round, f"{action}-{way}") for way in ("down", "up"))
        where = Where(server_round, chosen.step, device, time)
        rest_bytes = message_bytes(message) - replies.metadata_bytes(message.metadata)
        return message, Sent(member, where, broadcast.base, sizes, rest_bytes, extra_s, message.metadata)

    def read(self, sent: Sent, message: Message | None) -> Reply:
        """What a reply of training says. Changes nothing here, so it does not matter which reply comes first."""
        where = f"device {sent.where.device}, round {sent.where.round}"
        if reason := replies.missing(message, where):
            return Reply(missing=reason)
        if problem := self.oversize(message):
            return Reply(problem=f"{where}, stage decode: {problem}", message_bytes=self.most_bytes, report_bytes=self.most_bytes)
        measures, report, observed, problem = None, None, None, ""
        try:
            measures = replies.read_measures(message, self.bounds(sent))
            report = replies.read_report(message)
            if self.federation.batchnorm == "local" and self.whole.statistics:
                observed = replies.observed(message, self.whole)
        except CodecError as error:
            problem = f"{where}, stage decode: {error}"
        return Reply("", measures, report, observed, problem, message_bytes(message), replies.report_bytes(message))

    def oversize(self, message: Message) -> str:
        """Why a reply is too large to be looked at, empty if it is not. What came of it is not read beyond that size, nor paid for."""
        size = replies.payload_bytes(message)
        return f"the reply has {size} bytes: for this model at most {self.most_bytes} can be needed" if size > self.most_bytes else ""

    def bounds(self, sent: Sent) -> Bounds:
        """What this device's round can have taken at most."""
        return self.workbook.bounds(sent.where.task, sent.member.samples)

    def accept(self, sent: Sent, reply: Reply, masking: SharedMasks | LocalMasks) -> tuple[Accepted | None, str]:
        """The update of a reply, or why there is none."""
        if reply.missing or reply.problem:
            return None, reply.missing or reply.problem
        where = sent.where
        most = sent.member.samples[where.task] * self.federation.local_epochs
        broadcast = self.broadcasts[self.tier(where.device)]
        try:
            accepted = replies.accept(reply.report, where.device, where.round, broadcast, sent.base, masking, self.voting_rows, most)
        except CodecError as error:
            return None, f"device {where.device}, round {where.round}, stage decode: {error}"
        if self.tier(where.device):  # it holds fewer weights than the shared mask has
            accepted = replace(accepted, update=replace(accepted.update, masks=sent.base.masks))
        return replace(accepted, statistics=reply.observed), ""

    def costs(self, sent: Sent, reply: Reply) -> tuple[Cost, Cost, Cost]:
        """What the phases of a device's round take if nothing cuts them short."""
        device, profile = sent.where.device, self.conditions.profile(sent.where.device)
        down = download_cost(profile, sent.sizes.total, sent.extra_s[0])
        flops = reply.measures.flops if reply.measures else Flops()
        train = self.ledger.compute_cost(device, flops, self.method.is_sparse)
        return down, train, upload_cost(profile, reply.report_bytes, sent.extra_s[1])

    def snapshot(self) -> Snapshot:
        """All that changes from round to round, see `server.snapshot`."""
        known = [np.fromiter(column, np.int64, len(self.held)) for column in (self.held.keys(), self.held.values())]
        return {
            "known": np.stack(known),  # devices, and the version that each holds
            "nested": np.array(self._nested_at),
            **{name: array for tier, one in enumerate(self.broadcasts) for name, array in under(f"{tier}", one.snapshot()).items()},
        }

    def restore(self, snapshot: Snapshot) -> None:
        """Go on where `snapshot` was taken. Raises ValueError if it is of another model."""
        for tier, broadcast in enumerate(self.broadcasts):
            broadcast.restore(within(f"{tier}", snapshot))
        self.held = dict(zip(*snapshot["known"].tolist(), strict=True))
        self._nested_at = int(snapshot["nested"])

    def failed(self, sent: Sent, reason: str, phase: str = "train") -> None:
        """A device of which nothing came back: it may have lost its state, or moved on, so it is sent the whole model next time."""
        self.held[sent.where.device] = 0
        self.ledger.downloaded(sent.where, sent.sizes, sent.message_bytes, has_twin=phase == "train")
        self.ledger.absent(sent.where, "failed", reason, phase)

    def book(self, sent: Sent, reply: Reply, fate: Fate, costs: Collection[Cost], sizes: Sizes | None, refusal: Done = DONE) -> None:
        """The ledger's rows of a device's round as it went, and what the device holds now.

        Args:
            sizes: of its report; None: it could not be read.
            refusal: why a report that came in is not used.
        """
        ledger, device, start = self.ledger, sent.where.device, sent.where.time
        for phase, cost, share in zip(PHASES, costs, fate.shares, strict=True):
            where = replace(sent.where, time=start)
            done = DONE if share == 1 else Done(fate.outcome, fate.reason, share)
            if phase == "download":
                ledger.downloaded(where, sent.sizes, sent.message_bytes, replace(done, extra_s=sent.extra_s[0]))
            elif phase == "train" and reply.measures:
                self._book_training(where, reply.measures, done)
            elif phase == "upload":
                done = replace(refusal if share == 1 else done, extra_s=sent.extra_s[1])
                ledger.uploaded(where, sizes or Sizes(unread=reply.report_bytes), reply.message_bytes, done)
            start += cost.seconds
            if share < 1:
                break
        if fate.has_trained:
            self.held[device] = 0 if refusal.outcome == "rejected" else sent.base.version

    def _book_training(self, where: Where, measured: Measures, done: Done) -> None:
        self.ledger.trained(
            where, measured.flops, measured.dense_flops, self.method.is_sparse, done,
            memory_bytes=measured.memory_bytes, loss=measured.loss, **measured.counts,
        )  # fmt: skip
        self.ledger.wall_s.append((where.round, where.device, measured.wall_s, measured.compute_s))
