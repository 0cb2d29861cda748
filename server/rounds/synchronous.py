"""Synchronous rounds: some devices are asked, all of them are waited for, up to a deadline, and what they send is averaged."""

import logging
import math
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
from flwr.app import Message

from server.fleet.conditions import Fate, cut
from server.ledger import Where
from server.rounds.clock import ClockConfig
from server.rounds.federation import RETRY_S, Counts, Federation, Talk
from server.rounds.in_flight import Flight
from server.rounds.messages import Reply, Request, Verdict, answered
from server.selection.cohort import Chosen
from server.snapshot import Snapshot
from sparcl_core.costs.device import Cost

log = logging.getLogger(__name__)


class SynchronousRounds:
    """Plays rounds on a federation. Nothing of a round is left behind it.

    Attributes:
        asked: of the round that is being played.
    """

    def __init__(self, federation: Federation):
        self.federation, self.clock, self.cohorts = federation, federation.clock, federation.cohorts
        self.asked: list[Request] = []

    def play(self, server_round: int, talk: Talk) -> Counts:
        """One round.

        Raises:
            FleetError: see `Federation.all_failed`.
        """
        return self.conclude(server_round, talk(self.begin(server_round)))

    def begin(self, server_round: int) -> list[Message]:
        """The messages of a round.

        The clock moves on to when enough devices are there; if there will never be any, the run is over.
        """
        federation, self.asked = self.federation, []
        wants_report = federation.begin_round(server_round)
        is_anyone_there = self._wait(server_round)
        if federation.is_over:
            return []
        self._note_without_data(server_round)
        willing = federation.willing(server_round, self._choose(server_round))
        if is_anyone_there and not willing:  # they declined, or the policy admits none of them
            federation.now += RETRY_S
        self.asked = federation.ask(server_round, willing, wants_report)
        return [request.message for request in self.asked]

    def conclude(self, server_round: int, replies: Iterable[Message]) -> Counts:
        """Average what is there in time into the model. Who is late, fails or is rejected has ledger rows; the round goes on without.

        Raises:
            FleetError: see `Federation.all_failed`.
        """
        federation, asked = self.federation, self.asked
        found, verdicts = self._read(replies)
        flights = self._end([federation.follow(one, found[one.device]) for one in asked if not found[one.device].missing])
        contributions, problems = [], {}
        for request in asked:
            device = request.device
            if device in flights:
                verdict = self._settle(flights[device], verdicts[device])
            else:
                verdict = Verdict(problem=found[device].missing)
                federation.failed(request, verdict.problem)
            if verdict.problem:
                problems[device] = verdict.problem
                log.warning("round %d goes on without device %d: %s", server_round, device, verdict.problem)
            if verdict.contribution:
                contributions.append(verdict.contribution)
        if len(problems) == len(asked) > 0:
            federation.all_failed(server_round, problems)
        self.asked = []
        there = [one.request for one in flights.values() if one.fate.outcome != "failed"]  # they have answered, and have not left since
        reached = tuple(Chosen(one.member, one.where.task) for one in there)
        return replace(federation.finish(server_round, contributions), reached=reached)

    def close(self) -> None:
        """The run is over: nobody is at work any more."""

    def snapshot(self) -> Snapshot:
        return {}

    def restore(self, snapshot: Snapshot) -> None:
        """Nothing: between rounds nobody is at work."""

    def _wait(self, server_round: int) -> bool:
        """Until enough devices are there. Is anyone?"""
        federation, cohorts, clock = self.federation, self.cohorts, self.clock
        begins = cohorts.wait(server_round, federation.now, clock.min_devices, clock.horizon_s)
        if np.isfinite(begins):
            federation.now = begins
            return True
        federation.is_over = federation.is_over or cohorts.is_deserted(server_round, federation.now)
        return False

    def _note_without_data(self, server_round: int) -> None:
        """Who has no data for a round that all take part in has a row. With a cohort drawn, it is no candidate, like most who have."""
        federation, least = self.federation, self.cohorts.workload.least
        if federation.cohort_size:
            return
        what = "no data" if least == 1 else f"fewer than {least} samples, the least that the model can be trained on,"
        for device, step in self.cohorts.without_data(server_round, federation.now):
            federation.ledger.absent(Where(server_round, step, device, federation.now), "sat-out", f"{what} for task {step}")

    def _choose(self, server_round: int) -> tuple[Chosen, ...]:
        size = math.ceil(round(self.federation.cohort_size * (1 + self.clock.over_selection), 9))
        return self.cohorts.choose(server_round, self.federation.now, size, self.clock.deadline)

    def _read(self, replies: Iterable[Message]) -> tuple[dict[int, Reply], dict[int, Verdict]]:
        """By device: the reply of everybody who was asked, and what can be used of it. Each is looked at as it comes in."""
        found = {one.device: Reply(missing=f"{one}: no reply") for one in self.asked}
        verdicts: dict[int, Verdict] = {}
        for request, message in answered(self.asked, replies):
            reply = self.federation.exchange.read(request, message)
            verdicts[request.device] = self.federation.exchange.accept(request, reply)
            found[request.device] = replace(reply, report=None)  # its bytes are not kept
        return found, verdicts

    def _end(self, flights: list[Flight]) -> dict[int, Flight]:
        """Move the clock to the end of the round; who is not done by then is cut short."""
        federation, wanted = self.federation, self.federation.cohort_size
        fates, costs = {one.device: one.fate for one in flights}, {one.device: one.costs for one in flights}
        fates, federation.now = end_of_round(self.clock, fates, costs, start=federation.now, wanted=wanted)
        return {one.device: replace(one, fate=fates[one.device]) for one in flights}

    def _settle(self, flight: Flight, verdict: Verdict) -> Verdict:
        verdict = self.federation.settle(flight, verdict)
        if not flight.fate.has_trained:
            self.federation.undone.append(flight.device)
        return verdict


def end_of_round(
    clock: ClockConfig, fates: dict[int, Fate], costs: dict[int, tuple[Cost, ...]], *, start: float, wanted: int
) -> tuple[dict[int, Fate], float]:
    """When a synchronous round is over, and what that does to the devices that are not done by then.

    It is over when all have reported or were cut short; with over-selection when `wanted` of them have reported; at its deadline at the
    latest. Of devices that report at the same instant those with the lower number count first.

    Args:
        fates, costs: by device, as if nobody waited for anybody.
        wanted: size of the cohort before over-selection; 0: all.

    Returns:
        The fates, and the instant at which the next round may begin.
    """
    if not fates:
        return {}, start + clock.period_s
    done = sorted((fate.end, device) for device, fate in fates.items() if fate.is_done)
    end, outcome, reason = max(fate.end for fate in fates.values()), "cancelled", f"{wanted} devices had reported"
    counted = {device for _, device in done}
    if wanted and clock.over_selection and len(done) >= wanted:
        end = done[wanted - 1][0]
        counted = {device for _, device in done[:wanted]}
    if (deadline := start + clock.deadline) < end:
        end, outcome, reason = deadline, "late", f"the deadline of {clock.deadline_s:g} s was over"
        counted = {device for time, device in done if time <= end}
    ended = {}
    for device, fate in fates.items():
        is_stopped = fate.end > end or (fate.is_done and device not in counted)
        ended[device] = cut(fate, costs[device], min(end, fate.end), outcome=outcome, reason=reason) if is_stopped else fate
    return ended, max(end, start + clock.period_s)
