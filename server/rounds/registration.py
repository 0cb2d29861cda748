"""Which devices a fleet has: known to a simulation that made it, or asked for, one by one.

Where every node is asked, what they answer is checked, and a node whose answer cannot be is left out.
"""

import logging
from collections.abc import Iterable
from dataclasses import dataclass

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from server.errors import FleetError
from server.fleet.roster import Member, Roster
from server.ledger import STRANGER, Where
from server.rounds.absence import ensure_anyone_comes
from server.rounds.federation import Federation
from server.rounds.messages import message_bytes
from sparcl_core.foreign import printable

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Registered:
    """message_bytes: device -> size of its answer; refused: why a node was left out, one reason each."""

    roster: Roster
    message_bytes: dict[int, int]
    refused: list[str]


def enrol(federation: Federation, roster: Roster) -> None:
    """Take the fleet as known, as a simulation does that made it: nobody is asked, which for 100,000 devices takes minutes.

    Raises:
        FleetError: if there is no device, none fits its budget, or none can meet the deadline.
    """
    if not len(roster):
        raise FleetError("no device is connected: nothing can be trained")
    cohorts, is_resumed = federation.cohorts, bool(federation.ledger.rows)
    cohorts.enrol(roster)
    reasons = cohorts.tiers.reasons
    if len(reasons) == len(roster):
        raise FleetError(
            f"no device can take part: {reasons[min(reasons)]} (device {min(reasons)}); let sparsity follow the budget "
            f"(budget.memory=fit), or take a smaller model, learner.batch_size or learner.buffer_share"
        )
    if not is_resumed:  # later in a run all may have gone
        ensure_anyone_comes(federation)
    least = cohorts.least_seconds()
    if least > federation.clock.deadline:
        raise FleetError(
            f"clock.deadline_s is {federation.clock.deadline:g}: no device can meet it, the fastest needs at least {least:.3g} s; "
            f"raise it, lower federation.local_epochs, or take a smaller model"
        )
    if not is_resumed:  # else these rows are there
        for device, reason in reasons.items():
            federation.ledger.absent(Where(0, -1, device, federation.now), "refused", reason)


def register(federation: Federation, grid: Grid) -> None:
    """Ask every node which device it is and how much data it has. A node whose answer cannot be has a row, and is left out.

    Raises:
        FleetError: if no device is left, and as `enrol` does.
    """
    cohorts, ledger, is_resumed = federation.cohorts, federation.ledger, bool(federation.ledger.rows)
    conditions = cohorts.conditions
    found = ask_everybody(grid, len(conditions.hardware), conditions.pace.steps, cohorts.most_samples)
    for reason in found.refused:
        log.warning("%s", reason)
    if found.refused and not len(found.roster):
        raise FleetError(f"none of {len(found.refused)} nodes could be registered; the first: {found.refused[0]}")
    enrol(federation, found.roster)
    if is_resumed:
        return
    for device, size in sorted(found.message_bytes.items()):  # in device order: replies come in any
        ledger.registered(device, size)
    for reason in found.refused:
        ledger.absent(Where(0, -1, STRANGER, federation.now), "refused", reason, "register")


def ask_everybody(grid: Grid, devices: int, steps: int, most_samples: int) -> Registered:
    """Ask every node which device it is and how much data it has. Of several that say the same number the lowest node id counts.

    Args:
        devices: numbers are 0 to `devices` - 1.
        steps: of a stream, each with at most `most_samples` samples.
    """
    nodes = sorted(grid.get_node_ids())
    replies = grid.send_and_receive([Message(RecordDict(), node, "query", group_id="register") for node in nodes])
    by_node = {reply.metadata.src_node_id: reply for reply in replies}
    members: dict[int, Member] = {}
    sizes, refused = {}, []
    for node in nodes:
        found = _read(node, by_node.get(node), devices=devices, steps=steps, most_samples=most_samples)
        if isinstance(found, Member) and found.device in members:
            found = f"it says that it is device {found.device}, which node {members[found.device].node_id} is already"
        if isinstance(found, str):
            refused.append(f"node {node} could not be registered: {found}")
        else:
            members[found.device], sizes[found.device] = found, message_bytes(by_node[node])
    return Registered(Roster.of(list(members.values())), sizes, refused)


def _read(node: int, reply: Message | None, *, devices: int, steps: int, most_samples: int) -> Member | str:
    """Who answered, or what is wrong with the answer."""
    if reply is None:
        return "it did not answer"
    if reply.has_error():
        return printable(reply.error.reason) or "it failed without a reason"
    record = reply.content.get("device") if reply.has_content() else None
    if not isinstance(record, ConfigRecord):
        return "its answer has no record 'device'"
    device, samples = record.get("device"), record.get("samples")
    if not _is_count(device, devices - 1):
        return f"its number is {printable(device, 50)}: there are devices 0 to {devices - 1}"
    if not isinstance(samples, list) or len(samples) != steps:
        has = f"{len(samples)} steps" if isinstance(samples, Iterable) else printable(samples, 50)
        return f"device {device} says that its stream has {has}: the experiment's has {steps}"
    if wrong := [number for number in samples if not _is_count(number, most_samples)]:
        return f"device {device} says that it has {printable(wrong[0], 50)} samples in a step: at most {most_samples} can be"
    return Member(device, node, tuple(samples))


def _is_count(value: object, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= most
