"""The SparCL strategy for Flower: per-device messages out, validated replies in.

A round: update the masks if their schedule says so, publish the next model version, send every device of the cohort what it
is missing; decode the replies, average them in device order, apply. Replies arrive in any order and node ids are random
per run: a device's identity is the number that it registered with.
"""

import logging
from collections.abc import Iterable

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from server import intake
from server.aggregate import AggregationConfig, mean_update, voted
from server.broadcast import Broadcast
from server.fleet import Member, Roster
from server.intake import Accepted, message_bytes
from server.ledger import Ledger
from server.masking import Diversity, LocalMasks, MasksOverdue, SharedMasks, diversity
from server.optimizer import ServerOptimizer, ServerOptimizerConfig
from server.settings import FederationConfig
from server.statistics import pooled_statistics
from sparcl_core import tdm
from sparcl_core.codec import CodecError, Layout, Sizes
from sparcl_core.flops import Flops
from sparcl_core.masks import Masks, State
from sparcl_core.method import MethodConfig
from sparcl_core.protocol import Instruction
from sparcl_core.wire import WireConfig

log = logging.getLogger(__name__)


class FleetError(RuntimeError):
    """The run cannot go on; the message says why."""


class SparCLStrategy(Strategy):
    """Holds the server's state: weights w, the broadcast, who decides on masks, the optimiser and the ledger."""

    def __init__(
        self,
        method: MethodConfig,
        federation: FederationConfig,
        wire: WireConfig,
        aggregation: AggregationConfig,
        optimizer: ServerOptimizerConfig,
        layout: Layout,
        classifier: tuple[str, ...],
        weights: State,
        masks: Masks,
        ledger: Ledger,
        seed: int,
    ):
        """`layout`: of the whole model. `classifier`: tensors whose first axis is the class, for row voting. `weights`: inactive ones are 0."""
        tdm.check(method.tdm, method.sparsity, federation.task_epochs)
        self.method, self.federation, self.aggregation, self.seed, self.ledger = method, federation, aggregation, seed, ledger
        self.whole, self.classifier = layout, classifier
        self.layout = layout if federation.batchnorm == "global" else layout.without_statistics()
        self.weights = {name: value.copy() for name, value in weights.items()}
        self.broadcast = Broadcast(weights, masks, self.layout, wire, seed)
        self.optimizer = ServerOptimizer(optimizer, self.layout)
        schedule = tdm.Schedule(method.tdm, method.sparsity, federation.task_epochs, federation.local_epochs)
        is_shared = federation.mask == "shared"
        self.masking = SharedMasks(method, schedule, wire.importance) if is_shared else LocalMasks(method, seed)
        self.diversity: Diversity | None = None
        self.roster = Roster(())
        self._held: dict[int, int] = {}
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
            sizes[content["device"]] = message_bytes(reply)
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
        try:
            surviving = self.masking.before_round(task, session, self.weights, self.broadcast)
        except MasksOverdue as error:
            raise FleetError(str(error)) from error
        self.optimizer.drop(surviving)
        self._publish()
        for member in self.roster.without_data(task):
            self.ledger.sat_out(server_round, task, member.device, f"no data for task {task}")
        cohort = self.roster.cohort(self.seed, server_round, task, self.federation.cohort_size)
        self._cohort = {member.node_id: member for member in cohort}
        wants_report = self.masking.wants_report(task, session)
        return [self._instruct("train", server_round, task, member, wants_report) for member in cohort]

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Average the replies into the model. Failed and rejected devices are ledger rows; the round goes on without them.

        Raises:
            FleetError: if not one device of the round could be used.
        """
        task, _ = self.position(server_round)
        by_device = self._by_device(replies)
        accepted, observed, problems = [], [], []
        for member in self._cohort.values():
            reply = by_device.get(member.device)
            try:
                accepted.append(self._accept(server_round, task, member.device, reply))
            except _Unusable as problem:
                log.warning("round %d goes on without device %d: %s", server_round, member.device, problem)
                problems.append(str(problem))
                continue
            if "observed" in reply.content:
                observed.append((accepted[-1].update.samples, intake.statistics(reply.content["observed"]["statistics"], self.whole)))
        if not accepted and self._cohort:
            raise FleetError(f"all {len(problems)} devices of round {server_round} failed; the first: {problems[0]}")
        self._apply(accepted)
        if observed:  # statistics that stay on the devices: their average is what the global model is evaluated with, it is never sent
            self._set_statistics(observed)
        samples = sum(one.update.samples for one in accepted)
        return None, MetricRecord({"num-devices": len(accepted), "num-examples": samples})

    @property
    def recomputes_statistics(self) -> bool:
        """Do devices recompute the global model's statistics before it is evaluated?"""
        return self.federation.batchnorm == "recompute" and bool(self.whole.statistics)

    def configure_calibrate(self, server_round: int) -> Iterable[Message]:
        """Bring the round's devices to the model as it is now, and ask for its statistics on their data."""
        task, _ = self.position(server_round)
        self._publish()
        return [self._instruct("query.calibrate", server_round, task, member, False) for member in self._cohort.values()]

    def aggregate_calibrate(self, server_round: int, replies: Iterable[Message]) -> None:
        """Pool the devices' statistics by samples; those that fail are ledger rows. Without any, the old statistics stay."""
        task, _ = self.position(server_round)
        by_device, pooled = self._by_device(replies), []
        for member in self._cohort.values():
            device, reply = member.device, by_device.get(member.device)
            where = f"device {device}, round {server_round}"
            if reason := intake.missing(reply, where):
                self._lost(server_round, task, device, reason, "calibrate")
                continue
            self.ledger.calibrated(server_round, task, device, _flops(reply.content["measures"], "flops"), self.method.is_sparse)
            size = message_bytes(reply)
            try:
                report = intake.read_report(reply)
                own = intake.statistics(report.delta, self.whole)
            except CodecError as error:
                self._rejected(server_round, task, device, reply, f"{where}, stage decode: {error}")
                continue
            self._held[device] = report.base_version
            sizes = Sizes(header=len(report.control), rest=len(report.delta))
            self.ledger.uploaded(server_round, task, device, sizes, size)
            pooled.append((report.samples, own))
        if pooled:
            self._set_statistics(pooled)

    def configure_evaluate(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid) -> Iterable[Message]:
        """Nothing: the global model is evaluated at the server, which costs a device nothing."""
        return []

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        return None

    def summary(self) -> None:
        log.info("SparCL %s at sparsity %s over %d devices", self.method.learner.method, self.method.sparsity, len(self.roster.members))

    def _publish(self) -> None:
        try:
            self.broadcast.publish(self.weights)
        except ValueError as error:
            raise FleetError(f"the global model cannot be sent: {error}") from error

    def _instruct(self, action: str, server_round: int, task: int, member: Member, wants_report: bool) -> Message:
        payloads = self.broadcast.payloads(self._held.get(member.device, 0))
        data = tuple(payload.data for payload in payloads)
        instruction = Instruction(server_round, task, self.federation.local_epochs, wants_report, data)
        wire = ConfigRecord({"control": instruction.control, "payloads": list(data)})
        message = Message(RecordDict({"instruction": wire}), member.node_id, action, group_id=str(server_round))
        sizes = sum((payload.sizes for payload in payloads), Sizes(header=len(instruction.control)))
        self.ledger.downloaded(server_round, task, member.device, sizes, message_bytes(message))
        return message

    def _by_device(self, replies: Iterable[Message]) -> dict[int, Message]:
        return {self._cohort[reply.metadata.src_node_id].device: reply for reply in replies}

    def _accept(self, server_round: int, task: int, device: int, reply: Message | None) -> Accepted:
        """The decoded update of one device, its rows written."""
        where = f"device {device}, round {server_round}"
        if reason := intake.missing(reply, where):
            self._lost(server_round, task, device, reason, "train")
            raise _Unusable(reason)
        self._record_training(server_round, task, device, reply.content["measures"])
        try:
            report = intake.read_report(reply)
            accepted = intake.accept(report, device, server_round, self.broadcast, self.masking, self._voting_rows)
        except CodecError as error:
            reason = f"{where}, stage decode: {error}"
            self._rejected(server_round, task, device, reply, reason)
            raise _Unusable(reason) from error
        self._held[device] = accepted.base_version
        self.ledger.uploaded(server_round, task, device, accepted.sizes, message_bytes(reply))
        return accepted

    @property
    def _voting_rows(self) -> tuple[str, ...]:
        return self.classifier if self.aggregation.row_voting else ()

    def _lost(self, server_round: int, task: int, device: int, reason: str, phase: str) -> None:
        self._held[device] = 0  # it may have lost its state, or moved on before its reply was lost: the whole model next time
        self.ledger.failed(server_round, task, device, reason, phase)

    def _rejected(self, server_round: int, task: int, device: int, reply: Message, reason: str) -> None:
        self._held[device] = 0  # what it holds is unknown now, so it gets the whole model next time
        size = sum(len(value) for value in reply.content["report"].values() if isinstance(value, bytes))
        self.ledger.uploaded(server_round, task, device, Sizes(unread=size), message_bytes(reply), reason)

    def _apply(self, accepted: list[Accepted]) -> None:
        """Move the weights by the average, then let the masks follow."""
        updates = [one.update for one in accepted]
        if not updates:
            return
        mean = mean_update(updates, self.weights, self.layout, self.classifier, self.aggregation)
        votes = {} if self.optimizer.is_plain else voted(updates, self.layout, self.classifier, self.aggregation)
        step = self.optimizer.step(mean, votes)
        for name, change in step.items():
            self.weights[name] += change.astype(self.weights[name].dtype)
        reports = [(one.update.samples, one.report) for one in accepted if one.report is not None]
        self.masking.after_round(updates, reports, self.weights, self.broadcast)
        self.optimizer.drop(self.masks)
        if self.masks:
            self.diversity = diversity([update.masks or self.masks for update in updates])

    def _set_statistics(self, found: list[tuple[int, dict[str, np.ndarray]]]) -> None:
        for name, value in pooled_statistics(found).items():
            self.weights[name] = value.astype(self.weights[name].dtype)

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


def _flops(measures: MetricRecord, kind: str) -> Flops:
    prefix = f"{kind}."
    return Flops(**{key.removeprefix(prefix): value for key, value in measures.items() if key.startswith(prefix)})
