"""Which devices a fleet has, where every node is asked: what they answer is checked, and a node whose answer cannot be is left out."""

from collections.abc import Iterable
from dataclasses import dataclass

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from server.fleet.roster import Member, Roster
from server.rounds.replies import message_bytes
from sparcl_core.foreign import printable


@dataclass(frozen=True)
class Registered:
    """message_bytes: device -> size of its answer; refused: why a node was left out, one reason each."""

    roster: Roster
    message_bytes: dict[int, int]
    refused: list[str]


def register(grid: Grid, devices: int, steps: int, most_samples: int) -> Registered:
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
        found = _read(node, by_node.get(node), devices, steps, most_samples)
        if isinstance(found, Member) and found.device in members:
            found = f"it says that it is device {found.device}, which node {members[found.device].node_id} is already"
        if isinstance(found, str):
            refused.append(f"node {node} could not be registered: {found}")
        else:
            members[found.device], sizes[found.device] = found, message_bytes(by_node[node])
    return Registered(Roster.of(list(members.values())), sizes, refused)


def _read(node: int, reply: Message | None, devices: int, steps: int, most_samples: int) -> Member | str:
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
