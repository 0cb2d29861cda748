"""Rounds that devices work across: semi-synchronous and asynchronous, as FedBuff (Nguyen et al., AISTATS 2022).

A device is asked at one virtual instant and reports at a later one; meanwhile versions may pass. What it will report is trained for real as
soon as the clock needs to know when that is, and not before: as long as all that is going on ends before a device that was asked could be
done at the earliest, its training waits, so that several devices train side by side. Results do not depend on it: a device's training is a
function of what it was sent (the size of a Flower message may differ by a byte: it holds the number of its exchange).

A device takes part once in a round. An update that is tau versions old has the weight (1 + tau)^-staleness_exponent, and moves the model by
so much less (`aggregation.stale = "shrink"`, as in FedBuff); places that masks have dropped since are left out of it, and those grown since
it did not hold.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

from flwr.app import Message, MetricRecord

from server.fleet.conditions import cut
from server.global_model.broadcast import Base
from server.rounds import in_flight
from server.rounds.clock import EventHeap
from server.rounds.exchange import Reply, Sent
from server.rounds.in_flight import Flight
from server.rounds.replies import Accepted
from server.snapshot import Snapshot
from sparcl_core.codec import SparseTensor

if TYPE_CHECKING:
    from server.strategy import SparCLStrategy

RETRY_S = 900.0  # a round in which nobody could be won begins again so much later


class BufferedRounds:
    """Plays rounds on a strategy. Its state between rounds is who is at work.

    Attributes:
        flights: device -> what it is at, all of them trained already.
    """

    def __init__(self, strategy: "SparCLStrategy"):
        self.strategy, self.clock = strategy, strategy.clock
        self.flights: dict[int, Flight] = {}
        self.events = EventHeap()

    def play(self, server_round: int, exchange: Callable[[Iterable[Message]], Iterable[Message]]) -> MetricRecord:
        """One round. `exchange`: messages -> replies.

        Raises:
            FleetError: see `SparCLStrategy.all_failed`.
        """
        return _Round(self, server_round, exchange).play()

    def settle_rest(self) -> None:
        """The run is over: what devices are still at has been paid for up to now, and is cancelled."""
        strategy = self.strategy
        for device in sorted(self.flights):
            flight = self.flights.pop(device)
            fate = cut(flight.fate, flight.costs, min(strategy.now, flight.fate.end), "cancelled", "the run was over")
            strategy.settle(flight.sent, (flight.reply, None, ""), fate, flight.costs)
            if not fate.has_trained:
                strategy.undone.append(device)
        self.events = EventHeap()

    def add(self, flight: Flight) -> None:
        """A device that has begun."""
        device = flight.sent.where.device
        self.flights[device] = flight
        self.events.push(flight.fate.end, device)

    def snapshot(self) -> Snapshot:
        """All that changes from round to round, see `server.snapshot`."""
        return in_flight.pack(self.flights)

    def restore(self, snapshot: Snapshot) -> None:
        """Go on where `snapshot` was taken."""
        self.flights, self.events = {}, EventHeap()
        for flight in in_flight.unpack(snapshot, tuple(self.strategy.masks)).values():
            self.add(flight)


class _Round:
    """One round while it is played."""

    def __init__(self, rounds: BufferedRounds, server_round: int, exchange: Callable[[Iterable[Message]], Iterable[Message]]):
        self.rounds, self.strategy, self.clock, self.exchange = rounds, rounds.strategy, rounds.clock, exchange
        self.number, self.draws = server_round, 0
        self.pending: list[tuple[Message, Sent]] = []
        self.asked: set[int] = set()
        self.arrived: list[Accepted] = []
        self.problems: dict[int, str] = {}
        self.returned = 0

    def play(self) -> MetricRecord:
        strategy = self.strategy
        self.wants_report = strategy.begin_round(self.number)
        end = strategy.now + self.clock.period_s if self.clock.mode == "semi-sync" else float("inf")
        self._ask()
        while self.clock.mode == "semi-sync" or len(self.arrived) < self.clock.buffer_size:
            next_time = self.rounds.events.next_time
            if self.pending and self._earliest() <= min(next_time, end):
                self._train()
            elif min(next_time, end) == float("inf"):
                if not self._await_somebody(end):
                    break
            elif next_time > end:
                break
            else:
                self._arrive()
                if self.clock.mode == "async" and len(self.arrived) < self.clock.buffer_size:  # else they wait for the next version
                    self._ask()
        if end < float("inf"):
            strategy.now = max(strategy.now, end)
        elif not self.arrived:  # everybody who was asked has declined or failed
            strategy.now += RETRY_S
        self._train()  # nobody who was asked is left untrained between rounds: the checkpoint holds replies, not messages
        if self.problems and len(self.problems) == self.returned and not self.arrived and not self.rounds.flights:
            strategy.all_failed(self.number, self.problems)
        return strategy.finish_round(self.number, sorted(self.arrived, key=lambda one: one.update.device))

    def _ask(self) -> None:
        """Ask as many devices as may work at once, of those who are there and were not asked in this round."""
        strategy, attendance = self.strategy, self.strategy.attendance
        at_work = self.rounds.flights.keys() | {sent.where.device for _, sent in self.pending}
        wanted = strategy.federation.cohort_size
        room = wanted - len(at_work)
        if wanted and room <= 0:
            return
        self.draws += 1
        chosen = attendance.choose(self.number, strategy.now, room if wanted else 0, float("inf"), self.draws, at_work | self.asked)
        self.asked |= {one.member.device for one in chosen}
        willing = strategy.willing(self.number, chosen)
        messages = strategy.send("train", self.number, willing, self.wants_report)
        self.pending += zip(messages, strategy.cohort, strict=True)

    def _await_somebody(self, end: float) -> bool:
        """Nobody is at work: move the clock to when somebody can be asked. False if that is not before the round, or the run, ends."""
        strategy = self.strategy
        time = strategy.attendance.wait(self.number, strategy.now, 1, self.clock.horizon_s, self.asked)
        if time == float("inf") or time > min(end, self.clock.horizon_s):
            is_last = strategy.attendance.has_work(self.number, strategy.now) or not strategy.attendance.anyone_comes(strategy.now)
            strategy.is_over = end == float("inf") and not self.asked and is_last
            return False
        strategy.now, before = time, len(self.asked)
        self._ask()
        return len(self.asked) > before  # the policy may admit none of them

    def _earliest(self) -> float:
        """A bound on the next thing that pending work may lead to."""
        return min(self._least_end(sent) for _, sent in self.pending)

    def _least_end(self, sent: Sent) -> float:
        conditions, where = self.strategy.attendance.conditions, sent.where
        if conditions.failure or conditions.hardware[where.device].battery_j:
            return where.time  # it may be cut short at any time
        least = where.time + self.strategy.attendance.least_s(where.device, sent.member.samples[where.task], sent.sizes.total)
        return min(least, conditions.until(where.device, where.time))

    def _train(self) -> None:
        """Let everybody who was asked train, and look up on the clock what becomes of them."""
        if not self.pending:
            return
        strategy, pending, self.pending = self.strategy, self.pending, []
        by_node = {sent.member.node_id: sent for _, sent in pending}
        replies = {}
        for message in self.exchange([message for message, _ in pending]):
            if sent := by_node.get(message.metadata.src_node_id):
                replies[sent.where.device] = strategy.exchange.read(sent, message)
        for _, sent in pending:
            device = sent.where.device
            reply = replies.get(device) or Reply(missing=f"device {device}, round {sent.where.round}: no reply")
            if reply.missing:
                strategy.failed(sent, reply.missing)
                self.problems[device] = reply.missing
                self.returned += 1
                continue
            costs = strategy.exchange.costs(sent, reply)
            fate = strategy.attendance.conditions.fate(device, sent.where.round, sent.where.time, costs)
            self.rounds.add(Flight(sent.sealed(), reply, costs, fate))
            if not fate.has_trained:
                strategy.undone.append(device)

    def _arrive(self) -> None:
        """The next event: a device reports, or was cut short."""
        strategy = self.strategy
        strategy.now, device = self.rounds.events.pop()
        flight = self.rounds.flights.pop(device)
        self.asked.add(device)
        self.returned += 1
        accepted, problem = strategy.exchange.accept(flight.sent, flight.reply, strategy.masking)
        broadcast = strategy.exchange.broadcasts[strategy.exchange.tier(device)]
        age = broadcast.version - flight.sent.base.version
        most = self.clock.max_staleness
        stale = f"it is {age} versions old, at most {most} are used" if most and age > most else ""
        update, problem = strategy.settle(flight.sent, (flight.reply, accepted, problem), flight.fate, flight.costs, stale)
        if problem:
            self.problems[device] = problem
        if update:
            weight = (1 + age) ** -self.clock.staleness_exponent
            self.arrived.append(aged(update, flight.sent.base, broadcast.base, weight))


def aged(accepted: Accepted, base: Base, now: Base, weight: float) -> Accepted:
    """An update as it counts against the version of `now`: at `weight`, and where shared masks have moved on, at places that both have."""
    update = replace(accepted.update, weight=weight)
    if base.mask_version == now.mask_version:
        return replace(accepted, update=update)
    own = update.masks or base.masks
    # a place that the device grew by itself counts whatever the server has there, one that the server dropped since does not
    masks = {name: own[name] & (now.masks[name] | ~base.masks[name]) for name in own}
    tensors = {}
    for name, tensor in update.tensors.items():
        if name in masks:
            held = masks[name].reshape(-1)[tensor.places]
            tensor = SparseTensor(tensor.places[held], tensor.values[held])
        tensors[name] = tensor
    return replace(accepted, update=replace(update, tensors=tensors, masks=masks), report=None)
