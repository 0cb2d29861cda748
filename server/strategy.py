"""The SparCL strategy for Flower: per-device messages out, validated replies in.

A round: update the masks if their schedule says so, publish the next model version, send every device of the cohort what it
is missing; decode the replies, average them in device order, apply. Replies arrive in any order and node ids are random
per run: a device's identity is the number that it registered with.
"""

import logging
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from server import intake
from server.aggregate import AggregationConfig, mean_update, voted
from server.broadcast import Broadcast
from server.fleet import Member, Roster
from server.intake import Accepted, Decoded, Measures, message_bytes
from server.ledger import Ledger
from server.masking import Diversity, LocalMasks, MasksOverdue, SharedMasks, diversity
from server.optimizer import ServerOptimizer, ServerOptimizerConfig
from server.settings import FederationConfig
from server.snapshot import Snapshot, same_model, under, within
from server.statistics import pooled_statistics
from sparcl_core import tdm
from sparcl_core.codec import CodecError, Layout, Sizes
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
        """`layout`: of the whole model. `classifier`: tensors whose first axis is the class. `weights`: inactive ones are 0."""
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
        self.roster = Roster.of([])
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
        self.enrol(Roster.of(members))
        if self.ledger.rows:  # a resumed run has these rows
            return
        for device in self.roster.devices.tolist():  # in device order: replies come in any
            self.ledger.registered(device, sizes[device])

    def enrol(self, roster: Roster) -> None:
        """Take the fleet as known, as a simulation does that made it: nobody is asked, which for 100,000 devices takes minutes.

        Raises:
            FleetError: if there is no device.
        """
        if not len(roster):
            raise FleetError("no device is connected: nothing can be trained")
        self.roster = roster

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
        if not self.federation.cohort_size:  # with a cohort drawn, who has no data is no candidate, like most who have: no row
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
        decoded = {}
        for reply in replies:  # each as it comes in; a reply of a device that was not asked is none
            if member := self._cohort.get(reply.metadata.src_node_id):
                decoded[member.device] = self._decode(server_round, task, member, reply)
        accepted, problems = [], []
        for member in self._cohort.values():
            found = decoded.get(member.device) or Decoded(missing=f"device {member.device}, round {server_round}: no reply")
            self._book(server_round, task, member.device, found)
            if found.accepted:
                accepted.append(found.accepted)
            else:
                problems.append(found.missing or found.problem)
                log.warning("round %d goes on without device %d: %s", server_round, member.device, problems[-1])
        if not accepted and self._cohort:
            raise FleetError(f"all {len(problems)} devices of round {server_round} failed; the first: {problems[0]}")
        self._apply(accepted)
        if observed := [(one.update.samples, one.statistics) for one in accepted if one.statistics]:
            self._set_statistics(observed)  # what stays on the devices, pooled: the global model is evaluated with it; it is never sent
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
            try:
                self.ledger.calibrated(server_round, task, device, intake.read_flops(reply), self.method.is_sparse)
                report = intake.read_report(reply)
                own, sizes = intake.accept_statistics(report, self.broadcast, self.whole)
            except CodecError as error:
                problem = f"{where}, stage decode: {error}"
                self._rejected(server_round, task, device, message_bytes(reply), intake.report_bytes(reply), problem, has_twin=False)
                continue
            self._held[device] = report.base_version
            self.ledger.uploaded(server_round, task, device, sizes, message_bytes(reply), has_twin=False)
            pooled.append((report.samples, own))
        if pooled:
            self._set_statistics(pooled)

    def configure_evaluate(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid) -> Iterable[Message]:
        """Nothing: the global model is evaluated at the server, which costs a device nothing."""
        return []

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        return None

    def summary(self) -> None:
        log.info("SparCL %s at sparsity %s over %d devices", self.method.learner.method, self.method.sparsity, len(self.roster))

    def snapshot(self) -> Snapshot:
        """All that changes from round to round, at the end of one, see `server.snapshot`: write it before the next round changes it.

        Not in it: the ledger, which only grows (`Ledger.since`), and the roster and the cohort, which are made anew.
        """
        apart = self.diversity
        known = [np.fromiter(column, np.int64, len(self._held)) for column in (self._held.keys(), self._held.values())]
        return {
            "diversity": np.array([] if apart is None else [apart.union_density, apart.distance], np.float64),
            "known": np.stack(known),  # devices, and the version that each holds
            **under("weights", self.weights),
            **under("broadcast", self.broadcast.snapshot()),
            **under("optimizer", self.optimizer.snapshot()),
            **under("masking", self.masking.snapshot()),
        }

    def restore(self, snapshot: Snapshot) -> None:
        """Go on where `snapshot` was taken, in a strategy that was just made for the same experiment.

        Raises:
            ValueError: if the snapshot is of another model, or written by another version of this code.
        """
        try:
            self.weights = same_model("weights", snapshot, self.weights)
            self.broadcast.restore(within("broadcast", snapshot))
            self.optimizer.restore(within("optimizer", snapshot))
            self.masking.restore(within("masking", snapshot), self.broadcast)
            self._held = dict(zip(*snapshot["known"].tolist(), strict=True))
            apart = snapshot["diversity"].tolist()
        except KeyError as error:
            raise ValueError(f"the snapshot has no {error}: another version of this code made it; resume the run with that one") from error
        self.diversity = Diversity(*apart) if apart else None

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
        self.ledger.downloaded(server_round, task, member.device, sizes, message_bytes(message), has_twin=action == "train")
        return message

    def _by_device(self, replies: Iterable[Message]) -> dict[int, Message]:
        """The round's replies; one of a device that was not asked is none of them."""
        cohort = self._cohort
        return {cohort[reply.metadata.src_node_id].device: reply for reply in replies if reply.metadata.src_node_id in cohort}

    def _decode(self, server_round: int, task: int, member: Member, reply: Message) -> Decoded:
        """What a reply of training says. Changes nothing here, so it does not matter which reply comes first."""
        where = f"device {member.device}, round {server_round}"
        if reason := intake.missing(reply, where):
            return Decoded(missing=reason)
        most = member.samples[task] * self.federation.local_epochs
        measures, accepted, problem = None, None, ""
        try:
            measures = intake.read_measures(reply)
            report = intake.read_report(reply)
            accepted = intake.accept(report, member.device, server_round, self.broadcast, self.masking, self._voting_rows, most)
            if self.federation.batchnorm == "local" and self.whole.statistics:
                accepted = replace(accepted, statistics=intake.observed(reply, self.whole))
        except CodecError as error:
            accepted, problem = None, f"{where}, stage decode: {error}"
        return Decoded("", measures, accepted, problem, message_bytes(reply), intake.report_bytes(reply))

    def _book(self, server_round: int, task: int, device: int, found: Decoded) -> None:
        """The ledger's rows of a reply, and what the device holds now."""
        if found.missing:
            self._lost(server_round, task, device, found.missing, "train")
            return
        if found.measures:
            self._record_training(server_round, task, device, found.measures)
        if found.accepted is None:
            self._rejected(server_round, task, device, found.message_bytes, found.report_bytes, found.problem)
            return
        self._held[device] = found.accepted.base_version
        self.ledger.uploaded(server_round, task, device, found.accepted.sizes, found.message_bytes)

    @property
    def _voting_rows(self) -> tuple[str, ...]:
        return self.classifier if self.aggregation.row_voting else ()

    def _lost(self, server_round: int, task: int, device: int, reason: str, phase: str) -> None:
        self._held[device] = 0  # it may have lost its state, or moved on before its reply was lost: the whole model next time
        self.ledger.failed(server_round, task, device, reason, phase)

    def _rejected(self, server_round: int, task: int, device: int, size: int, unread: int, reason: str, has_twin: bool = True) -> None:
        """`size`: of the message; `unread`: bytes of the report in it."""
        self._held[device] = 0  # what it holds is unknown now, so it gets the whole model next time
        self.ledger.uploaded(server_round, task, device, Sizes(unread=unread), size, reason, has_twin)

    def _apply(self, accepted: list[Accepted]) -> None:
        """Move the weights by the average, then let the masks follow."""
        updates = [one.update for one in accepted]
        if not updates:  # nobody has data for the task: what was reported before is out of date
            self.masking.after_round([], [], self.weights, self.broadcast)
            self.diversity = None
            return
        mean = mean_update(updates, self.weights, self.layout, self.classifier, self.aggregation)
        votes = {} if self.optimizer.is_plain else voted(updates, self.layout, self.classifier, self.aggregation)
        step = self.optimizer.step(mean, votes)
        for name, change in step.items():
            self.weights[name] += change.astype(self.weights[name].dtype)
            if name in self.layout.statistics and name.endswith("running_var"):
                # a lossy code errs by a share of the change, which may be more than what is left of a variance that fell
                np.maximum(self.weights[name], 0, out=self.weights[name])
        reports = [(one.update.samples, one.report) for one in accepted if one.report is not None]
        self.masking.after_round(updates, reports, self.weights, self.broadcast)
        self.optimizer.drop(self.masks)
        if self.masks:
            self.diversity = diversity([update.masks or self.masks for update in updates])

    def _set_statistics(self, found: list[tuple[int, dict[str, np.ndarray]]]) -> None:
        for name, value in pooled_statistics(found).items():
            self.weights[name] = value.astype(self.weights[name].dtype)

    def _record_training(self, server_round: int, task: int, device: int, measured: Measures) -> None:
        self.ledger.trained(
            server_round, task, device, measured.flops, measured.dense_flops, self.method.is_sparse,
            memory_bytes=measured.memory_bytes, loss=measured.loss, **measured.counts,
        )  # fmt: skip
        self.ledger.wall_s.append((server_round, device, measured.wall_s, measured.compute_s))
