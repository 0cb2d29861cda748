"""What rounds of every mode are made of: a global model, the devices that work on it, and the virtual clock.

`SynchronousRounds` and `BufferedRounds` say when devices are asked and what is waited for. The steps of a round are here, in the order in
which a device goes through them: the model is published, the device is asked, or declines; it works for as long as the clock says; it is
settled with what it brought, or had failed; and what all have brought is finished into the next model.
"""

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from flwr.app import Message

from server.defence.clipping import Unusual
from server.global_model.batchnorm import Observed
from server.global_model.contribution import Contribution
from server.global_model.model import GlobalModel
from server.ledger import DONE, Ending, Ledger, Where
from server.rounds.clock import ClockConfig
from server.rounds.exchange import Exchange
from server.rounds.in_flight import Flight
from server.rounds.messages import Reply, Request, Verdict
from server.rounds.phases import PhaseCosts, book
from server.selection.cohort import Chosen, Cohorts
from server.selection.history import DOWN, UP
from server.snapshot import Snapshot, under, within
from sparcl_core.foreign import printable

log = logging.getLogger(__name__)
Talk = Callable[[Iterable[Message]], Iterable[Message]]  # messages -> replies, in any order
RETRY_S = 900.0  # a round in which nobody could be won begins again so much later


@dataclass(frozen=True)
class Counts:
    """Whose updates a round has averaged, and the samples behind them. reached: of a synchronous round, whom one may ask again at once."""

    num_devices: int
    num_samples: int
    reached: tuple[Chosen, ...] = ()


class Federation:
    """The server's state between rounds.

    Attributes:
        now: virtual seconds.
        is_over: nobody will come any more, or the clock is past its horizon.
        undone: devices that were cut short before their training was done; whoever keeps their states gives them the old ones back.
    """

    def __init__(self, model: GlobalModel, cohorts: Cohorts, clock: ClockConfig):
        self.model, self.cohorts, self.clock = model, cohorts, clock
        self.conditions, self.history, self.cohort_size = cohorts.conditions, cohorts.history, model.settings.federation.cohort_size
        self.ledger = Ledger()
        self.exchange = Exchange(model, cohorts.tiers, self.conditions, cohorts.workload)
        self.costs = PhaseCosts(self.conditions, cohorts.workload, model.whole.dense_bytes)
        self.now, self.is_over = clock.start_s, False
        self.undone: list[int] = []

    def begin_round(self, server_round: int) -> bool:
        """Publish the next version, its masks updated if it is their turn. Are devices to say what they think of the masks?"""
        wants_report, taken_back = self.model.begin_round(server_round)
        self._note(server_round, taken_back)
        return wants_report

    def publish(self, server_round: int) -> None:
        """Make a version of the model as it is now. Raises FleetError if it cannot be sent, nor the one before."""
        self._note(server_round, self.model.publish())

    def willing(self, server_round: int, chosen: Iterable[Chosen]) -> list[Chosen]:
        """Those that do not decline; who does has a row in the ledger."""
        chosen = list(chosen)
        reasons = self.conditions.declines(np.array([one.member.device for one in chosen], np.int64), self.now)
        for one, reason in zip(chosen, reasons, strict=True):
            if reason:
                self.ledger.absent(Where(server_round, one.step, one.member.device, self.now), "skipped", reason)
        return [one for one, reason in zip(chosen, reasons, strict=True) if not reason]

    def ask(self, server_round: int, chosen: Iterable[Chosen], wants_report: bool) -> list[Request]:
        """Ask these devices to train, from now on."""
        order = {"action": "train", "server_round": server_round, "time": self.now, "wants_report": wants_report}
        requests = [self.exchange.instruct(one, **order) for one in chosen]
        self.history.transferred([(self.exchange.tier(one.device), one.sizes.total) for one in requests], DOWN)
        return requests

    def follow(self, request: Request, reply: Reply) -> Flight:
        """Look up on the clock what becomes of a device's work if nobody stops it."""
        phases = self.costs.of_round(request, reply)
        costs = tuple(phase.cost for phase in phases)
        fate = self.conditions.fate(request.device, request.where.round, request.where.time, costs)
        return Flight(request, reply, phases, fate)

    def settle(self, flight: Flight, verdict: Verdict, stale: str = "") -> Verdict:
        """Book a device's round as it went, its battery included. Returns what of it counts, and what was wrong with it.

        `stale`: why an update that came in is too old.
        """
        device, fate, measures = flight.device, flight.fate, flight.reply.measures
        refusal = Ending("rejected", verdict.problem) if verdict.problem else Ending("stale", stale) if stale else DONE
        book(self.ledger, flight, verdict.sizes, refusal)
        self.conditions.spend(device, fate.start, fate.end, fate.joules)
        if fate.has_trained:
            self._trained(flight, is_known=not verdict.problem)
        if not fate.is_done:
            return Verdict()
        self.history.reported(device, flight.request.where.round, measures.loss if measures else float("nan"))
        return Verdict(problem=verdict.problem) if verdict.problem or stale else verdict

    def failed(self, request: Request, reason: str, phase: str = "train") -> None:
        """Book a device of which nothing came back: what it was sent has been paid for. It may have lost its state, or moved on."""
        where, download = request.where, self.costs.download(request, has_twin=phase == "train")
        self.exchange.forget(request.device)
        self.ledger.transferred(where, download, request.sizes, request.message_bytes)
        self.ledger.absent(where, "failed", reason, phase)
        self.conditions.spend(request.device, where.time, where.time + download.cost.seconds, download.cost.joules)

    def all_failed(self, server_round: int, problems: dict[int, str]) -> None:
        """In a round that brought nothing every device raised an error or sent what cannot be used: `problems`, by device.

        Takes back the model's last update, with a row in the ledger.

        Raises:
            FleetError: if that was done already, or there is nothing to take back.
        """
        if reason := self.model.rollback.blame(server_round, problems, len(self.cohorts.roster)):
            diverged = any(FloatingPointError.__name__ in problem for problem in problems.values())
            self._note(server_round, self.model.take_back(reason, diverged=diverged))

    def finish(self, server_round: int, contributions: list[Contribution]) -> Counts:
        """Average these, in device order, into the model; what stands out of them is clipped or refused, with its row."""
        judged = self.model.apply(server_round, contributions, len(self.cohorts.roster))
        self._note(server_round, judged.taken_back)
        self._amend(judged.unusual)
        self.history.transferred([(self.exchange.tier(one.device), one.sizes.total) for one in judged.used], UP)
        self.move_on(self.now)
        return Counts(len(judged.used), sum(one.update.samples for one in judged.used))

    def set_statistics(self, found: list[Observed]) -> None:
        """Running statistics of the global model from those of devices; which stand out are scaled down, with a row."""
        self._amend(self.model.set_statistics(found))

    def move_on(self, now: float) -> None:
        """The clock shows this at the end of a round, or of what follows it."""
        self.now = now
        self.is_over = self.is_over or now >= self.clock.horizon_s

    def usual_task(self, server_round: int) -> int:
        """The task of its stream, from 0, that the median device is at now."""
        return self.cohorts.usual_task(server_round, self.now)

    def snapshot(self) -> Snapshot:
        """All that changes from round to round, at the end of one, see `server.snapshot`: write it before the next round changes it.

        Not in it: the ledger, which only grows (`Ledger.since`), and the roster, which is made anew.
        """
        return {
            "clock": np.array([self.now, self.is_over], np.float64),
            **under("model", self.model.snapshot()),
            **under("exchange", self.exchange.snapshot()),
            **under("history", self.history.snapshot()),
            **under("conditions", self.conditions.snapshot()),
        }

    def restore(self, snapshot: Snapshot) -> None:
        """Go on where `snapshot` was taken. Raises ValueError if it is of another model."""
        self.model.restore(within("model", snapshot))
        self.exchange.restore(within("exchange", snapshot))
        self.history.restore(within("history", snapshot))
        self.conditions.restore(within("conditions", snapshot))
        self.now, is_over = snapshot["clock"].tolist()
        self.is_over = bool(is_over)

    def _trained(self, flight: Flight, is_known: bool) -> None:
        """The device's state has moved on; `is_known`: its report says so."""
        if is_known:
            self.exchange.holds(flight.device, flight.request.base.version)
        else:
            self.exchange.forget(flight.device)
        if flight.reply.measures:
            self.history.trained(flight.device)

    def _amend(self, unusual: list[Unusual]) -> None:
        for one in unusual:
            self.ledger.amend(one.device, "rejected" if one.is_refused else "clipped", one.reason)
            if one.is_refused:
                self.exchange.forget(one.device)

    def _note(self, server_round: int, taken_back: str) -> None:
        """The model's last update was taken back, if this says why."""
        if taken_back:
            self.ledger.rolled_back(server_round, self.now, printable(taken_back))
            log.warning("round %d: %s", server_round, printable(taken_back))
