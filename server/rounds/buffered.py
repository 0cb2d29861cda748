"""Rounds that devices work across: semi-synchronous and asynchronous, as FedBuff (Nguyen et al., AISTATS 2022).

A device is asked at one virtual instant and reports at a later one; meanwhile versions may pass. What it will report is trained for real as
soon as the clock needs to know when that is, and not before: as long as all that is going on ends before a device that was asked could be
done at the earliest, its training waits, so that several devices train side by side. Results do not depend on it: a device's training is a
function of what it was sent (the size of a Flower message may differ by a byte: it holds the number of its exchange).

A device takes part once in a round. An update that is tau versions old has the weight (1 + tau)^-staleness_exponent, and moves the model by
so much less (`aggregation.stale = "shrink"`, as in FedBuff); places that masks have dropped since are left out of it, and those grown since
it did not hold.
"""

from dataclasses import replace

from server.global_model.broadcast import Base
from server.global_model.contribution import Contribution
from server.rounds import in_flight
from server.rounds.clock import EventHeap
from server.rounds.federation import RETRY_S, Counts, Federation, Talk
from server.rounds.in_flight import Flight
from server.rounds.messages import Reply, Request, Verdict, answered
from server.snapshot import Snapshot
from sparcl_core.codec import SparseTensor


class BufferedRounds:
    """Plays rounds on a federation. Its state between rounds is who is at work.

    Attributes:
        flights: device -> what it is at, all of them trained already.
        events: when each of them ends.
    """

    def __init__(self, federation: Federation):
        self.federation = federation
        self.flights: dict[int, Flight] = {}
        self.events = EventHeap()

    def play(self, server_round: int, talk: Talk) -> Counts:
        """One round.

        Raises:
            FleetError: see `Federation.all_failed`.
        """
        return _Round(self, server_round, talk).play()

    def close(self) -> None:
        """The run is over: what devices are still at has been paid for up to now, and is cancelled."""
        federation = self.federation
        for device in sorted(self.flights):
            flight = self.flights.pop(device)
            flight = flight.cut(min(federation.now, flight.fate.end), outcome="cancelled", reason="the run was over")
            federation.settle(flight, Verdict())
            if not flight.fate.has_trained:
                federation.undone.append(device)
        self.events = EventHeap()

    def add(self, flight: Flight) -> None:
        """A device that has begun."""
        self.flights[flight.device] = flight
        self.events.push(flight.fate.end, flight.device)

    def snapshot(self) -> Snapshot:
        """All that changes from round to round, see `server.snapshot`."""
        return in_flight.pack(self.flights)

    def restore(self, snapshot: Snapshot) -> None:
        """Go on where `snapshot` was taken."""
        self.flights, self.events = {}, EventHeap()
        for flight in in_flight.unpack(snapshot, tuple(self.federation.model.masks)).values():
            self.add(flight)


class _Round:
    """One round while it is played.

    Attributes:
        pending: who was asked, and has not been trained for real yet.
        earliest: a bound on the next thing that their work may lead to.
        asked: devices that were, or that have reported, in this round.
        arrived: what is averaged when it is over.
        problems: device -> what was wrong with it; `returned` counts these, and all that came in.
    """

    def __init__(self, rounds: BufferedRounds, server_round: int, talk: Talk):
        self.rounds, self.federation, self.clock, self.talk = rounds, rounds.federation, rounds.federation.clock, talk
        self.number, self.draws, self.returned = server_round, 0, 0
        self.wants_report = False
        self.pending: list[Request] = []
        self.earliest = float("inf")
        self.asked: set[int] = set()
        self.arrived: list[Contribution] = []
        self.problems: dict[int, str] = {}

    def play(self) -> Counts:
        federation, clock = self.federation, self.clock
        self.wants_report = federation.begin_round(self.number)
        end = federation.now + clock.period_s if clock.mode == "semi-sync" else float("inf")
        self._ask()
        self._work_until(end)
        if end < float("inf"):
            federation.now = max(federation.now, end)
        elif not self.arrived:  # everybody who was asked has declined or failed
            federation.now += RETRY_S
        self._train()  # nobody who was asked is left untrained between rounds: the checkpoint holds replies, not messages
        if self.problems and len(self.problems) == self.returned and not self.arrived and not self.rounds.flights:
            federation.all_failed(self.number, self.problems)
        return federation.finish(self.number, sorted(self.arrived, key=lambda one: one.device))

    def _work_until(self, end: float) -> None:
        """One event after the other, until the round is over."""
        while not self._is_full:
            next_time = self.rounds.events.next_time
            if self.pending and self.earliest <= min(next_time, end):
                self._train()
            elif min(next_time, end) == float("inf"):
                if not self._await_somebody(end):
                    return
            elif next_time > end:
                return
            else:
                self._arrive()
                if self.clock.mode == "async" and not self._is_full:  # else they wait for the next version
                    self._ask()

    @property
    def _is_full(self) -> bool:
        """Are as many updates in as an asynchronous round waits for?"""
        return self.clock.mode == "async" and len(self.arrived) >= self.clock.buffer_size

    def _ask(self) -> None:
        """Ask as many devices as may work at once, of those who are there and were not asked in this round."""
        federation = self.federation
        at_work = self.rounds.flights.keys() | {request.device for request in self.pending}
        wanted = federation.cohort_size
        room = wanted - len(at_work)
        if wanted and room <= 0:
            return
        self.draws += 1
        among = {"draw": self.draws, "busy": at_work | self.asked}
        chosen = federation.cohorts.choose(self.number, federation.now, room if wanted else 0, float("inf"), **among)
        self.asked |= {one.member.device for one in chosen}
        new = federation.ask(self.number, federation.willing(self.number, chosen), self.wants_report)
        self.pending += new
        self.earliest = min([self.earliest, *map(self._least_end, new)])

    def _await_somebody(self, end: float) -> bool:
        """Nobody is at work: move the clock to when somebody can be asked. False if that is not before the round, or the run, ends."""
        federation, cohorts, horizon_s = self.federation, self.federation.cohorts, self.clock.horizon_s
        time = cohorts.wait(self.number, federation.now, 1, horizon_s, busy=self.asked)
        if time == float("inf") or time > min(end, horizon_s):
            is_last = cohorts.is_deserted(self.number, federation.now)
            federation.is_over = end == float("inf") and not self.asked and is_last
            return False
        federation.now, before = time, len(self.asked)
        self._ask()
        return len(self.asked) > before  # the policy may admit none of them

    def _least_end(self, request: Request) -> float:
        conditions, where = self.federation.conditions, request.where
        if conditions.may_fail(where.device):
            return where.time  # it may be cut short at any time
        takes = self.federation.cohorts.least_s(where.device, request.member.samples[where.task], request.sizes.total)
        return min(where.time + takes, conditions.until(where.device, where.time))

    def _train(self) -> None:
        """Let everybody who was asked train, and look up on the clock what becomes of them."""
        if not self.pending:
            return
        federation, pending, self.pending, self.earliest = self.federation, self.pending, [], float("inf")
        replies = {request.device: Reply(missing=f"{request}: no reply") for request in pending}
        for request, message in answered(pending, self.talk([request.message for request in pending])):
            replies[request.device] = federation.exchange.read(request, message)
        for request in pending:
            reply = replies[request.device]
            if reply.missing:
                federation.failed(request, reply.missing)
                self.problems[request.device] = reply.missing
                self.returned += 1
                continue
            flight = federation.follow(request.sealed(), reply)
            self.rounds.add(flight)
            if not flight.fate.has_trained:
                federation.undone.append(flight.device)

    def _arrive(self) -> None:
        """The next event: a device reports, or was cut short."""
        federation = self.federation
        federation.now, device = self.rounds.events.pop()
        flight = self.rounds.flights.pop(device)
        self.asked.add(device)
        self.returned += 1
        verdict = federation.exchange.accept(flight.request, flight.reply)
        base, newest = flight.request.base, federation.exchange.newest(device)
        age, most = newest.version - base.version, self.clock.max_staleness
        stale = f"it is {age} versions old, at most {most} are used" if most and age > most else ""
        verdict = federation.settle(flight, verdict, stale)
        if verdict.problem:
            self.problems[device] = verdict.problem
        if verdict.contribution:
            weight = (1 + age) ** -self.clock.staleness_exponent
            self.arrived.append(aged(verdict.contribution, base, newest, weight))


def aged(contribution: Contribution, base: Base, newest: Base, weight: float) -> Contribution:
    """As it counts against the newest version: at `weight`, and where shared masks have moved on, at places that both have."""
    update = replace(contribution.update, weight=weight)
    if base.mask_version == newest.mask_version:
        return replace(contribution, update=update)
    own = update.masks or base.masks
    # a place that the device grew by itself counts whatever the server has there, one that the server dropped since does not
    masks = {name: own[name] & (newest.masks[name] | ~base.masks[name]) for name in own}
    tensors = {}
    for name, tensor in update.tensors.items():
        if name in masks:
            held = masks[name].reshape(-1)[tensor.places]
            tensor = SparseTensor(tensor.places[held], tensor.values[held])
        tensors[name] = tensor
    return replace(contribution, update=replace(update, tensors=tensors, masks=masks), importance=None)
