"""The SparCL strategy for Flower: per-device messages out, validated replies in.

A round: update the masks if their schedule says so, publish the next model version, send every device of the cohort what it
is missing; decode the replies, average them in device order, apply. Replies arrive in any order and node ids are random
per run: a device's identity is the number that it registered with.
"""

import logging
from collections.abc import Iterable
from dataclasses import dataclass

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.common.serde import message_to_proto
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from server.aggregate import Update, mean_importance, mean_update
from server.broadcast import Broadcast
from server.fleet import Member, Roster
from server.ledger import Ledger
from sparcl_core import codec, tdm
from sparcl_core.codec import CodecError, Layout, Values
from sparcl_core.flops import Flops
from sparcl_core.learner import MethodConfig
from sparcl_core.masks import Masks, State
from sparcl_core.protocol import Instruction, Report

log = logging.getLogger(__name__)


class FleetError(RuntimeError):
    """The run cannot go on; the message says why."""


@dataclass(frozen=True)
class FederationConfig:
    """Settings of the federation.

    Attributes:
        rounds_per_task: rounds of one task.
        local_epochs: epochs a device trains in a round.
        cohort_size: devices per round, drawn from those with data; 0 takes all of them.
        up_values, down_values: how updates are coded: f16, or lossless f32 or f64.
        row_voting: classifier rows are averaged over devices that have seen the class.
    """

    rounds_per_task: int = 10
    local_epochs: int = 2
    cohort_size: int = 0
    up_values: Values = "f16"
    down_values: Values = "f16"
    row_voting: bool = True

    def __post_init__(self):
        if self.rounds_per_task < 1 or self.local_epochs < 1:
            raise ValueError(f"rounds_per_task is {self.rounds_per_task}, local_epochs {self.local_epochs}: both at least 1")
        if self.cohort_size < 0:
            raise ValueError(f"cohort_size is {self.cohort_size}: 0 for all devices, or a number of devices")
        for name in ("up_values", "down_values"):
            if getattr(self, name) not in ("f16", "f32", "f64"):
                raise ValueError(f"{name} is {getattr(self, name)!r}: weights are coded as f16, f32 or f64")

    @property
    def task_epochs(self) -> int:
        """K: local epochs of a whole task."""
        return self.rounds_per_task * self.local_epochs


class SparCLStrategy(Strategy):
    """Holds the server's state: weights w, the broadcast, the masks' schedule and the ledger."""

    def __init__(
        self,
        method: MethodConfig,
        federation: FederationConfig,
        layout: Layout,
        classifier: tuple[str, ...],
        weights: State,
        masks: Masks,
        ledger: Ledger,
        seed: int,
    ):
        """`classifier`: tensors whose first axis is the class, for row voting. `weights`: inactive ones are 0."""
        tdm.check(method.tdm, method.sparsity, federation.task_epochs)
        self.method, self.federation, self.layout, self.seed, self.ledger = method, federation, layout, seed, ledger
        self.classifier = classifier if federation.row_voting else ()
        self.weights = {name: value.copy() for name, value in weights.items()}
        self.broadcast = Broadcast(weights, masks, layout, federation.down_values)
        self.schedule = tdm.Schedule(method.tdm, method.sparsity, federation.task_epochs, federation.local_epochs)
        self.roster = Roster(())
        self._held: dict[int, int] = {}
        self._importance: dict = {}
        self._cohort: dict[int, Member] = {}

    @property
    def masks(self) -> Masks:
        return self.broadcast.masks

    def register(self, grid: Grid) -> None:
        """Ask every node which device it is and how much data it has for each task.

        Raises:
            FleetError: if a node does not answer, or there is none.
        """
        queries = [Message(RecordDict(), node, "query", group_id="register") for node in grid.get_node_ids()]
        members, sizes = [], {}
        for reply in grid.send_and_receive(queries):
            if reply.has_error():
                raise FleetError(f"a device could not be registered: {reply.error.reason}")
            content = reply.content["device"]
            members.append(Member(content["device"], reply.metadata.src_node_id, tuple(content["samples"])))
            sizes[content["device"]] = _message_bytes(reply)
        if not members:
            raise FleetError("no device is connected: nothing can be trained")
        self.roster = Roster.of(members)
        for member in self.roster.members:  # in device order: replies come in any
            self.ledger.registered(member.device, sizes[member.device])

    def position(self, server_round: int) -> tuple[int, int]:
        """Task and session within the task, both from 0, of `server_round`, from 1."""
        return divmod(server_round - 1, self.federation.rounds_per_task)

    def configure_train(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid) -> Iterable[Message]:
        """The instructions of a round. `arrays` and `config` are not read: the strategy holds the model and the schedule."""
        task, session = self.position(server_round)
        what = self.schedule.action(task, session)
        if what != "rest":
            self._update_masks(what)
        self.broadcast.publish(self.weights)
        for member in self.roster.without_data(task):
            self.ledger.sat_out(server_round, task, member.device, f"no data for task {task}")
        cohort = self.roster.cohort(self.seed, server_round, task, self.federation.cohort_size)
        self._cohort = {member.node_id: member for member in cohort}
        wants_importance = self.schedule.action(task, session + 1) == "adapt"
        return [self._instruct(server_round, task, member, wants_importance) for member in cohort]

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Average the replies into the model. Failed and rejected devices are ledger rows; the round goes on without them.

        Raises:
            FleetError: if not one device of the round could be used.
        """
        task, _ = self.position(server_round)
        by_device = {self._cohort[reply.metadata.src_node_id].device: reply for reply in replies}
        updates, importance, problems = [], [], []
        for member in self._cohort.values():
            try:
                update, ranks = self._accept(server_round, task, member, by_device.get(member.device))
            except _Unusable as problem:
                log.warning("round %d goes on without device %d: %s", server_round, member.device, problem)
                problems.append(str(problem))
                continue
            updates.append(update)
            if ranks is not None:
                importance.append((update.samples, ranks))
        if not updates and self._cohort:
            raise FleetError(f"all {len(problems)} devices of round {server_round} failed; the first: {problems[0]}")
        if updates:
            for name, mean in mean_update(updates, self.layout, self.classifier).items():
                self.weights[name] += mean.astype(self.weights[name].dtype)
        self._importance = mean_importance(importance, self.layout) if importance else {}
        metrics = {"num-devices": len(updates), "num-examples": sum(update.samples for update in updates)}
        return None, MetricRecord(metrics)

    def configure_evaluate(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid) -> Iterable[Message]:
        """Nothing: the global model is evaluated at the server, which costs a device nothing."""
        return []

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        return None

    def summary(self) -> None:
        log.info("SparCL %s at sparsity %s over %d devices", self.method.learner.method, self.method.sparsity, len(self.roster.members))

    def _update_masks(self, what: tdm.Action) -> None:
        if what == "adapt" and not self._importance:
            raise FleetError("the masks are due for an update, but no device of the last round reported an importance")
        number = self.broadcast.mask_version + 1
        update = tdm.plan_update(what, self.masks, self.weights, self._importance, self.method.tdm, self.method.sparsity, number)
        self.broadcast.update_masks(self.weights, update, self.method.tdm, self.method.sparsity, self.seed)

    def _instruct(self, server_round: int, task: int, member: Member, wants_importance: bool) -> Message:
        payloads = self.broadcast.payloads(self._held.get(member.device, 0))
        instruction = Instruction(server_round, task, self.federation.local_epochs, wants_importance, payloads)
        wire = ConfigRecord({"control": instruction.control, "payloads": list(payloads)})
        message = Message(RecordDict({"instruction": wire}), member.node_id, "train", group_id=str(server_round))
        self.ledger.downloaded(server_round, task, member.device, instruction.num_bytes, _message_bytes(message))
        return message

    def _accept(self, server_round: int, task: int, member: Member, reply: Message | None):
        """The decoded update of one device, its rows written."""
        device = member.device
        reason = _missing(reply, f"device {device}, round {server_round}")
        if reason:
            self._held[device] = 0  # it may have lost its state, or moved on before its reply was lost: the whole model next time
            self.ledger.failed(server_round, task, device, reason)
            raise _Unusable(reason)
        self._record_training(server_round, task, device, reply.content["measures"])
        wire, size = reply.content["report"], _message_bytes(reply)
        payload_bytes = sum(len(value) for value in wire.values())
        try:
            report = Report.from_wire(wire["control"], wire["delta"], wire["importance"])
            update, importance = self._decode(device, report)
        except (CodecError, KeyError) as error:
            reason = f"device {device}, round {server_round}, stage decode: {error}"
            self._held[device] = 0  # what it holds is unknown now, so it gets the whole model next time
            self.ledger.uploaded(server_round, task, device, payload_bytes, size, reason)
            raise _Unusable(reason) from error
        self._held[device] = report.base_version
        self.ledger.uploaded(server_round, task, device, report.num_bytes, size)
        return update, importance

    def _decode(self, device: int, report: Report):
        delta = codec.decode(report.delta, self.layout, self.masks)
        if delta.kind != "delta" or report.base_version != self.broadcast.version or delta.mask_version != self.broadcast.mask_version:
            raise CodecError(
                f"{delta.kind} against version {report.base_version}, masks {delta.mask_version}: "
                f"this round wants a delta against version {self.broadcast.version}, masks {self.broadcast.mask_version}"
            )
        if report.samples < 1:
            raise CodecError("the update rests on no sample, so it has no weight")
        if any(self.layout.shapes[name][0] != report.classes.size for name in self.classifier):
            raise CodecError(f"the report speaks of {report.classes.size} classes: the classifier has another number of rows")
        importance = None
        if report.importance:
            payload = codec.decode(report.importance, self.layout, self.masks)
            if payload.kind != "importance" or payload.tensors.keys() != self.masks.keys():
                raise CodecError("the importance report does not cover the masked tensors")
            importance = payload.tensors
        return Update(device, report.samples, report.classes, delta.tensors), importance

    def _record_training(self, server_round: int, task: int, device: int, measures: MetricRecord) -> None:
        flops = {kind: _flops(measures, kind) for kind in ("flops", "dense-flops")}
        memory = sum(value for key, value in measures.items() if key.startswith("memory."))
        counts = {key: measures[key] for key in ("samples", "replayed", "steps", "kept", "active", "updated", "loss")}
        self.ledger.trained(
            server_round, task, device, flops["flops"], flops["dense-flops"], self.method.is_sparse,
            memory_bytes=memory, **counts,
        )  # fmt: skip
        self.ledger.wall_s.append((server_round, device, measures["wall-seconds"]))


class _Unusable(Exception):
    """A reply that cannot be used; the message is the reason in the ledger."""


def _missing(reply: Message | None, where: str) -> str:
    """Why there is nothing to decode; empty if there is."""
    if reply is None:
        return f"{where}: no reply"
    if reply.has_error():
        return reply.error.reason or f"{where}: failed without a reason"
    absent = {"report", "measures"} - set(reply.content)
    return f"{where}: the reply has no record {sorted(absent)[0]!r}" if absent else ""


def _flops(measures: MetricRecord, kind: str) -> Flops:
    prefix = f"{kind}."
    return Flops(**{key.removeprefix(prefix): value for key, value in measures.items() if key.startswith(prefix)})


def _message_bytes(message: Message) -> int:
    return message_to_proto(message).ByteSize()
