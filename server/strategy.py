"""The SparCL strategy for Flower: per-device messages out, validated replies in.

A round: update the masks if their schedule says so, publish the next model version, send every device of the cohort what it
is missing; decode the replies, see on the virtual clock who is done in time, average in device order, apply. Replies arrive in any order
and node ids are random per run: a device's identity is the number that it registered with.
"""

import logging
import math
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from server.aggregation.average import mean_update, voted
from server.aggregation.config import AggregationConfig
from server.config import FederationConfig
from server.defence.clipping import Seen, bounded
from server.defence.importance import bounded_reports
from server.defence.rollback import Rollback, Step
from server.defence.ruin import ruinous
from server.errors import FleetError
from server.fleet.conditions import Fate
from server.fleet.local_time import HOUR
from server.fleet.roster import Roster
from server.global_model.batchnorm import Observed, bounded_statistics, pooled_statistics
from server.global_model.broadcast import Broadcast
from server.global_model.mask_schedule import StageClock
from server.global_model.masks import Diversity, LocalMasks, SharedMasks, diversity
from server.global_model.optimizer import ServerOptimizer, ServerOptimizerConfig
from server.ledger import DONE, STRANGER, Done, Ledger, Where
from server.rounds import recalibration
from server.rounds.absence import ensure_anyone_comes
from server.rounds.buffered import RETRY_S, BufferedRounds
from server.rounds.clock import ClockConfig
from server.rounds.exchange import Exchange, Reply, Sent
from server.rounds.registration import register
from server.rounds.replies import Accepted
from server.rounds.round_end import end_of_round
from server.selection.cohort import Attendance, Chosen
from server.snapshot import Snapshot, same_model, under, within
from sparcl_core.codec import Layout
from sparcl_core.config import MethodConfig
from sparcl_core.costs.device import Cost
from sparcl_core.foreign import printable
from sparcl_core.sparsity import tdm
from sparcl_core.sparsity.masks import Masks, State, apply_masks_
from sparcl_core.wire.error_feedback import WireConfig

log = logging.getLogger(__name__)


class SparCLStrategy(Strategy):
    """Holds the server's state: weights w, what devices hold, who decides on masks, the optimiser, the fleet, the clock and the ledger.

    Attributes:
        now: virtual seconds.
        is_over: nobody will come any more, or the clock is past its horizon.
        undone: devices that were cut short before their training was done; whoever keeps their states gives them the old ones back.
    """

    def __init__(
        self,
        method: MethodConfig,
        federation: FederationConfig,
        wire: WireConfig,
        aggregation: AggregationConfig,
        optimizer: ServerOptimizerConfig,
        clock: ClockConfig,
        layout: Layout,
        classifier: tuple[str, ...],
        weights: State,
        masks: Masks,
        attendance: Attendance,
        ledger: Ledger,
        seed: int,
        follows_reports: bool = False,
    ):
        """
        Args:
            layout: of the whole model.
            classifier: tensors whose first axis is the class.
            weights: inactive ones are 0.
            follows_reports: the masks' schedule begins a task when devices say that theirs has changed, not when it does.
        """
        tdm.check(method.tdm, method.sparsity, federation.task_epochs)
        self.method, self.federation, self.aggregation, self.seed, self.ledger = method, federation, aggregation, seed, ledger
        self.clock, self.attendance, self.whole, self.classifier = clock, attendance, layout, classifier
        self.weights = {name: value.copy() for name, value in weights.items()}
        args = (layout, classifier, weights, masks, attendance.tiers, attendance.conditions, ledger, seed, attendance.estimates.workload)
        self.exchange = Exchange(method, federation, wire, aggregation, *args)
        self.layout = self.exchange.layout
        self.optimizer = ServerOptimizer(optimizer, self.layout)
        schedule = tdm.Schedule(method.tdm, method.sparsity, federation.task_epochs, federation.local_epochs)
        is_shared = federation.mask == "shared"
        self.masking = SharedMasks(method, schedule, wire.importance) if is_shared else LocalMasks(method, seed)
        self.stages = StageClock(federation.rounds_per_task, follows_reports)
        self.diversity: Diversity | None = None
        self.seen, self.seen_statistics, self.rollback = Seen(), Seen(), Rollback()
        self.now, self.is_over = clock.start_hour * HOUR, False
        self.undone: list[int] = []
        self.buffered = BufferedRounds(self) if clock.is_buffered else None
        self._cohort: dict[int, Sent] = {}
        self._reached: set[int] = set()

    @property
    def broadcast(self) -> Broadcast:
        """That of the shared masks."""
        return self.exchange.broadcasts[0]

    @property
    def masks(self) -> Masks:
        return self.broadcast.masks

    @property
    def cohort(self) -> list[Sent]:
        """Whom messages went to last, in device order."""
        return list(self._cohort.values())

    @property
    def by_node(self) -> dict[int, Sent]:
        """The same by node id."""
        return self._cohort

    @property
    def roster(self) -> Roster:
        return self.attendance.roster

    def register(self, grid: Grid) -> None:
        """Ask every node which device it is and how much data it has. A node whose answer cannot be has a row, and is left out.

        Raises:
            FleetError: if no device is left, and as `enrol` does.
        """
        attendance, is_resumed = self.attendance, bool(self.ledger.rows)
        found = register(grid, len(attendance.conditions.hardware), attendance.conditions.pace.steps, attendance.most_samples)
        for reason in found.refused:
            log.warning("%s", reason)
        if found.refused and not len(found.roster):
            raise FleetError(f"none of {len(found.refused)} nodes could be registered; the first: {found.refused[0]}")
        self.enrol(found.roster)
        if is_resumed:
            return
        for device, size in sorted(found.message_bytes.items()):  # in device order: replies come in any
            self.ledger.registered(device, size)
        for reason in found.refused:
            self.ledger.absent(Where(0, -1, STRANGER, self.now), "refused", reason, "register")

    def enrol(self, roster: Roster) -> None:
        """Take the fleet as known, as a simulation does that made it: nobody is asked, which for 100,000 devices takes minutes.

        Raises:
            FleetError: if there is no device, none fits its budget, or none can meet the deadline.
        """
        if not len(roster):
            raise FleetError("no device is connected: nothing can be trained")
        self.attendance.enrol(roster)
        reasons = self.attendance.tiers.reasons
        if len(reasons) == len(roster):
            raise FleetError(
                f"no device can take part: {reasons[min(reasons)]} (device {min(reasons)}); let sparsity follow the budget "
                f"(budget.memory=fit), or take a smaller model, learner.batch_size or learner.buffer_share"
            )
        if not self.ledger.rows:  # later in a run all may have gone
            ensure_anyone_comes(self.attendance, self.clock, self.now)
        least = self.attendance.least_seconds()
        if least > self.clock.deadline:
            raise FleetError(
                f"clock.deadline_s is {self.clock.deadline_s:g}: no device can meet it, the fastest needs at least {least:.3g} s; "
                f"raise it, lower federation.local_epochs, or take a smaller model"
            )
        if not self.ledger.rows:  # a resumed run has these rows
            for device, reason in reasons.items():
                self.ledger.absent(Where(0, -1, device, self.now), "refused", reason)

    def begin_round(self, server_round: int) -> bool:
        """Update the masks if it is their turn, and publish the next version. Are devices to say what they think of the masks?"""
        task, session = self.stages.position(server_round)
        surviving = self.masking.before_round(task, session, self.weights, self.broadcast)
        self.optimizer.drop(surviving)
        self._publish(server_round)
        return self.masking.wants_report(task, session)

    def configure_train(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid) -> Iterable[Message]:
        """The instructions of a synchronous round. `arrays` and `config` are not read: the strategy holds the model and the schedule.

        The clock moves on to when enough devices are there; if there will never be any, the run is over.
        """
        wants_report, attendance = self.begin_round(server_round), self.attendance
        begins = attendance.wait(server_round, self.now, self.clock.min_devices, self.clock.horizon_s)
        if np.isfinite(begins):
            self.now = begins
        elif attendance.has_work(server_round, self.now) or not attendance.anyone_comes(self.now):
            self.is_over = True
        self._cohort = {}
        if self.is_over:
            return []
        if not self.federation.cohort_size:  # with a cohort drawn, who has no data is no candidate, like most who have: no row
            least = attendance.estimates.workload.least
            what = "no data" if least == 1 else f"fewer than {least} samples, the least that the model can be trained on,"
            for device, step in attendance.without_data(server_round, self.now):
                self.ledger.absent(Where(server_round, step, device, self.now), "sat-out", f"{what} for task {step}")
        size = math.ceil(round(self.federation.cohort_size * (1 + self.clock.over_selection), 9))
        chosen = attendance.choose(server_round, self.now, size, self.clock.deadline)
        willing = self.willing(server_round, chosen)
        if np.isfinite(begins) and not willing:  # they declined, or the policy admits none of them
            self.now += RETRY_S
        return self.send("train", server_round, willing, wants_report)

    def willing(self, server_round: int, chosen: Iterable[Chosen]) -> list[Chosen]:
        """Those that do not decline; who does has a row in the ledger."""
        chosen = list(chosen)
        devices = np.array([one.member.device for one in chosen], np.int64)
        reasons = self.attendance.conditions.batteries.declines(devices, self.now)
        for one, reason in zip(chosen, reasons, strict=True):
            if reason:
                self.ledger.absent(Where(server_round, one.step, one.member.device, self.now), "skipped", reason)
        return [one for one, reason in zip(chosen, reasons, strict=True) if not reason]

    def send(self, action: str, server_round: int, chosen: Iterable[Chosen], wants_report: bool) -> list[Message]:
        """The messages to these devices, which are the cohort from now on."""
        messages, sizes = [], []
        self._cohort = {}
        for one in chosen:
            message, sent = self.exchange.instruct(action, server_round, one, self.now, wants_report)
            messages.append(message)
            self._cohort[one.member.node_id] = sent
            sizes.append((self.exchange.tier(one.member.device), sent.sizes.total))
        if action == "train":
            self.attendance.sent(sizes, direction=0)
        return messages

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Average what is there in time into the model. Who is late, fails or is rejected has ledger rows; the round goes on without.

        Raises:
            FleetError: see `all_failed`.
        """
        found: dict[int, tuple[Reply, Accepted | None, str]] = {}
        for message in replies:  # each as it comes in; a reply of a device that was not asked is none
            if sent := self._cohort.get(message.metadata.src_node_id):
                reply = self.exchange.read(sent, message)
                accepted, problem = self.exchange.accept(sent, reply, self.masking)
                found[sent.where.device] = (replace(reply, report=None), accepted, problem)  # its bytes are not kept
        fates, costs = {}, {}
        for sent in self._cohort.values():
            device = sent.where.device
            if device in found and not found[device][0].missing:
                costs[device] = self.exchange.costs(sent, found[device][0])
                fates[device] = self.attendance.conditions.fate(device, server_round, sent.where.time, costs[device])
        fates, self.now = end_of_round(self.clock, fates, costs, self.now, self.federation.cohort_size)
        self._reached = {device for device, fate in fates.items() if fate.outcome != "failed"}
        accepted, problems = [], {}
        for sent in self._cohort.values():
            device = sent.where.device
            if device not in fates:
                missing = found[device][0].missing if device in found else f"device {device}, round {server_round}: no reply"
                self.failed(sent, missing)
                problems[device] = missing
                log.warning("round %d goes on without device %d: %s", server_round, device, missing)
                continue
            update, problem = self.settle(sent, found[device], fates[device], costs[device])
            if not fates[device].has_trained:
                self.undone.append(device)
            if problem:
                problems[device] = problem
                log.warning("round %d goes on without device %d: %s", server_round, device, problem)
            if update:
                accepted.append(update)
        if len(problems) == len(self._cohort) > 0:
            self.all_failed(server_round, problems)
        return None, self.finish_round(server_round, accepted)

    def settle(
        self, sent: Sent, found: tuple[Reply, Accepted | None, str], fate: Fate, costs: tuple[Cost, ...], stale: str = ""
    ) -> tuple[Accepted | None, str]:
        """Book a device's round as it went, its battery included. Returns its update if that counts, and what was wrong with it.

        `stale`: why an update that came in is too old.
        """
        (reply, accepted, problem), device = found, sent.where.device
        refusal = Done("rejected", problem) if problem else Done("stale", stale) if stale else DONE
        self.exchange.book(sent, reply, fate, costs, accepted.sizes if accepted else None, refusal)
        self.attendance.conditions.spend(device, fate.start, fate.end, fate.joules)
        if fate.has_trained and reply.measures:
            self.attendance.finished[device] += 1
        if not fate.is_done:
            return None, ""
        self.attendance.trained(device, sent.where.round, reply.measures.loss if reply.measures else float("nan"))
        return (None, problem) if problem or stale else (accepted, "")

    def failed(self, sent: Sent, reason: str, phase: str = "train") -> None:
        """Book a device of which nothing came back; what it was sent has been paid for."""
        before = len(self.ledger.rows)
        self.exchange.failed(sent, reason, phase)
        rows = self.ledger.rows[before:]
        start, device = sent.where.time, sent.where.device
        self.attendance.conditions.spend(device, start, start + sum(row.seconds for row in rows), sum(row.joules for row in rows))

    def all_failed(self, server_round: int, problems: dict[int, str]) -> None:
        """In a round that brought nothing every device raised an error or sent what cannot be used: `problems`, by device.

        Takes back the model's last update, with a row in the ledger, or where that was done already, or there is none, gives up.

        Raises:
            FleetError: if that was done already, or there is nothing to take back.
        """
        if not self.rollback.is_the_models_fault(set(problems), len(self.roster)):
            return
        count, rounds, first = len(self.rollback.failed), self.rollback.rounds, problems[min(problems)]
        when = f"round {server_round}" if rounds == 1 else f"the last {rounds} rounds"
        self._take_back(server_round, f"all {count} devices of {when} failed; the first: {first}")

    def finish_round(self, server_round: int, accepted: list[Accepted]) -> MetricRecord:
        """Average these updates, in device order, into the model; what stands out of them is clipped or refused, with its row."""
        accepted = self._bounded(server_round, accepted)
        self._apply(accepted)
        if observed := [(one.update.device, one.update.samples, one.statistics) for one in accepted if one.statistics]:
            self.set_statistics(observed)  # what stays on the devices, pooled: the global model is evaluated with it; it is never sent
        self.attendance.sent([(self.exchange.tier(one.update.device), one.sizes.total) for one in accepted], direction=1)
        self.stages.advance([one.has_changed for one in accepted])
        self.is_over = self.is_over or self.now >= self.clock.horizon_s
        samples = sum(one.update.samples for one in accepted)
        return MetricRecord({"num-devices": len(accepted), "num-examples": samples})

    def _bounded(self, server_round: int, accepted: list[Accepted]) -> list[Accepted]:
        """Those that are used, as they are used; what was done to the others is in the ledger."""
        refused = ruinous([one.update for one in accepted], self.weights, bool(self.aggregation.clip))
        devices = {one.device for one in refused}
        accepted = [one for one in accepted if one.update.device not in devices]
        found, self.seen = bounded([one.update for one in accepted], self.seen, self.layout, self.aggregation)
        for one in [*refused, *found.unusual]:
            self.ledger.amend(one.device, "rejected" if one.is_refused else "clipped", one.reason)
            if one.is_refused:
                self.exchange.held[one.device] = 0
        used = {update.device: update for update in found.updates}
        if found.updates:
            before = {name: value.copy() for name, value in self.weights.items()}
            optimizer = {name: array.copy() for name, array in sorted(self.optimizer.snapshot().items())}
            step = Step(server_round, before, optimizer, found.told(server_round), self.broadcast.version)
            self.rollback.moved(step, max(one.base_version for one in accepted))
        used = [replace(one, update=used[one.update.device]) for one in accepted if one.update.device in used]
        return used if self.masking.by_votes else self._bounded_reports(used, {one.device for one in found.unusual})

    def _bounded_reports(self, used: list[Accepted], clipped: set[int]) -> list[Accepted]:
        """The same with their reports of importance as these count: that of a device whose update stood out does not."""
        told = {one.update.device: one.report for one in used if one.report is not None and one.update.device not in clipped}
        reports, unusual = bounded_reports(told, self.aggregation.clip)
        for one in unusual:
            self.ledger.amend(one.device, "clipped", one.reason)
        return [replace(one, report=reports.get(one.update.device)) for one in used]

    def _take_back(self, server_round: int, reason: str) -> None:
        """Let the model be as before its last update, and send it whole to everybody.

        Raises:
            FleetError: if there is none to take back, or the one before was taken back and it did not help.
        """
        step = self.rollback.take()
        if step is None:
            rate = self.optimizer.config.lr
            advice = f"; server_optimizer.lr is {rate:g}: lower it" if rate > 1 else ""
            raise FleetError(f"{reason}; {self.rollback.undone}{advice}" if self.rollback.undone else reason)
        self.weights = step.weights
        apply_masks_(self.weights, self.masks)
        self.optimizer.restore(step.optimizer)
        self.optimizer.drop(self.masks)
        self.exchange.restart(self.weights)
        self.ledger.rolled_back(server_round, self.now, printable(f"{step.told} was taken back: {reason}"))
        log.warning("round %d: %s was taken back: %s", server_round, step.told, printable(reason))

    @property
    def recomputes_statistics(self) -> bool:
        """Do devices recompute the global model's statistics before it is evaluated?"""
        return self.federation.batchnorm == "recompute" and bool(self.whole.statistics)

    def configure_calibrate(self, server_round: int) -> Iterable[Message]:
        """Bring the round's devices to the model as it is now, and ask for its statistics on their data."""
        self._publish(server_round)
        again = [Chosen(sent.member, sent.where.task) for sent in self._cohort.values() if sent.where.device in self._reached]
        return self.send("query.calibrate", server_round, again, False)

    def aggregate_calibrate(self, server_round: int, replies: Iterable[Message]) -> None:
        """Pool the devices' statistics by samples; those that fail are ledger rows. Without any, the old statistics stay."""
        recalibration.pool(self, server_round, replies)

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
        return {
            "diversity": np.array([] if apart is None else [apart.union_density, apart.distance], np.float64),
            "clock": np.array([self.now, self.is_over], np.float64),
            **under("weights", self.weights),
            **under("exchange", self.exchange.snapshot()),
            **under("optimizer", self.optimizer.snapshot()),
            **under("masking", self.masking.snapshot()),
            **under("stages", self.stages.snapshot()),
            **under("seen", self.seen.snapshot()),
            **under("seen_statistics", self.seen_statistics.snapshot()),
            **under("rollback", self.rollback.snapshot()),
            **under("attendance", self.attendance.snapshot()),
            **under("batteries", self.attendance.conditions.batteries.snapshot()),
            **(under("flights", self.buffered.snapshot()) if self.buffered else {}),
        }

    def restore(self, snapshot: Snapshot) -> None:
        """Go on where `snapshot` was taken, in a strategy that was just made for the same experiment.

        Raises:
            ValueError: if the snapshot is of another model, or written by another version of this code.
        """
        try:
            self.weights = same_model("weights", snapshot, self.weights)
            self.exchange.restore(within("exchange", snapshot))
            self.optimizer.restore(within("optimizer", snapshot))
            self.masking.restore(within("masking", snapshot), self.broadcast)
            self.stages.restore(within("stages", snapshot))
            self.seen = Seen.restored(within("seen", snapshot))
            self.seen_statistics = Seen.restored(within("seen_statistics", snapshot))
            self.rollback.restore(within("rollback", snapshot), self.weights)
            self.attendance.restore(within("attendance", snapshot))
            self.attendance.conditions.batteries.restore(within("batteries", snapshot))
            if self.buffered:
                self.buffered.restore(within("flights", snapshot))
            self.now, is_over = snapshot["clock"].tolist()
            apart = snapshot["diversity"].tolist()
        except KeyError as error:
            raise ValueError(f"the snapshot has no {error}: another version of this code made it; resume the run with that one") from error
        self.is_over = bool(is_over)
        self.diversity = Diversity(*apart) if apart else None

    def _publish(self, server_round: int) -> None:
        try:
            self.exchange.publish(self.weights)
        except ValueError as error:
            self._take_back(server_round, f"the global model cannot be sent: {error}")
            self.exchange.publish(self.weights)

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
            with np.errstate(over="ignore"):  # looked at below
                self.weights[name] += change.astype(self.weights[name].dtype)
            if name in self.layout.statistics and name.endswith("running_var"):
                # a lossy code errs by a share of the change, which may be more than what is left of a variance that fell
                np.maximum(self.weights[name], 0, out=self.weights[name])
        if infinite := [name for name, value in self.weights.items() if not np.isfinite(value).all()]:
            step = self.rollback.step
            self._take_back(step.round, f"the update of round {step.round} made {infinite[0]} infinite")
        reports = [(one.update.samples, one.report) for one in accepted if one.report is not None]
        self.masking.after_round(updates, reports, self.weights, self.broadcast)
        self.optimizer.drop(self.masks)
        if self.masks:
            self.diversity = diversity([update.masks or self.masks for update in updates])

    def set_statistics(self, found: list[Observed]) -> None:
        """Running statistics of the global model from those of devices, by their samples. Which stand out are scaled down, with a row."""
        found, unusual, self.seen_statistics = bounded_statistics(found, self.weights, self.seen_statistics, self.whole, self.aggregation)
        for one in unusual:
            self.ledger.amend(one.device, "clipped", one.reason)
        for name, value in pooled_statistics([(samples, own) for _, samples, own in found]).items():
            self.weights[name] = value.astype(self.weights[name].dtype)
