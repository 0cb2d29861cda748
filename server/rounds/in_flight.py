"""Devices at work between two rounds, as values and as arrays for a checkpoint."""

import json
from dataclasses import asdict, dataclass

import numpy as np

from server.fleet.conditions import Fate
from server.fleet.roster import Member
from server.global_model.broadcast import Base
from server.ledger import Where
from server.rounds.exchange import Reply, Sent
from server.rounds.replies import Measures
from server.snapshot import Snapshot, under, within
from sparcl_core.codec import Sizes
from sparcl_core.costs.device import Cost
from sparcl_core.costs.flops import Flops
from sparcl_core.sparsity.masks import Masks
from sparcl_core.wire.protocol import Report


@dataclass(frozen=True)
class Flight:
    """A device at work: what it was sent, what it will report, and what becomes of it."""

    sent: Sent
    reply: Reply
    costs: tuple[Cost, ...]
    fate: Fate


def pack(flights: dict[int, Flight]) -> Snapshot:
    """text: JSON (whose floats are exact), one entry per flight; data: reports, one behind the other; masks that several share once."""
    entries, data, masks = [], [], {}
    for flight in flights.values():
        sent, reply = flight.sent, flight.reply
        key = f"{len(masks)}"
        key = next((known for known, found in masks.items() if found is sent.base.masks), key)
        masks[key] = sent.base.masks
        parts = (reply.report.control, reply.report.delta, reply.report.masks) if reply.report else ()
        data += parts
        entries.append(
            {
                "member": [sent.member.device, sent.member.node_id, list(sent.member.samples)],
                "where": asdict(sent.where),
                "sent": [asdict(sent.sizes), sent.message_bytes, list(sent.extra_s)],
                "base": [sent.base.version, sent.base.mask_version, key],
                "reply": [reply.missing, reply.problem, reply.message_bytes, reply.report_bytes],
                "measures": asdict(reply.measures) if reply.measures else None,
                "report": [len(part) for part in parts],
                "costs": [asdict(cost) for cost in flight.costs],
                "fate": asdict(flight.fate),
            }
        )
    arrays = {
        "text": np.frombuffer(json.dumps(entries).encode(), np.uint8),
        "data": np.frombuffer(b"".join(data), np.uint8),
    }
    for key, found in masks.items():
        arrays |= under(f"masks/{key}", found)
    return arrays


def unpack(arrays: Snapshot, names: tuple[str, ...]) -> dict[int, Flight]:
    """The inverse of `pack`. `names`: of the masked tensors, in the model's order."""
    data, position, flights = arrays["data"].tobytes(), 0, {}
    shared: dict[str, Masks] = {}
    for entry in json.loads(arrays["text"].tobytes()):
        device, node_id, samples = entry["member"]
        sizes, message_bytes, extra_s = entry["sent"]
        version, mask_version, key = entry["base"]
        if key not in shared:
            found = within(f"masks/{key}", arrays)
            shared[key] = {name: found[name].copy() for name in names if name in found}
        base = Base(version, mask_version, shared[key])
        where = Where(**entry["where"])
        sent = Sent(Member(device, node_id, tuple(samples)), where, base, Sizes(**sizes), message_bytes, tuple(extra_s))
        parts = []
        for length in entry["report"]:
            parts.append(data[position : position + length])
            position += length
        missing, problem, reply_bytes, report_bytes = entry["reply"]
        measured = entry["measures"] and Measures(**(entry["measures"] | _flops_of(entry["measures"])))
        reply = Reply(missing, measured, Report.from_wire(*parts) if parts else None, None, problem, reply_bytes, report_bytes)
        costs = tuple(Cost(**(cost | {"flops": Flops(**cost["flops"])})) for cost in entry["costs"])
        fate = Fate(**(entry["fate"] | {"shares": tuple(entry["fate"]["shares"])}))
        flights[device] = Flight(sent, reply, costs, fate)
    return flights


def _flops_of(measures: dict) -> dict:
    return {name: Flops(**measures[name]) for name in ("flops", "dense_flops")}
