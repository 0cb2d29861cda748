"""Devices at work: what each was sent, what it will report, and what becomes of it on the virtual clock.

In the buffered modes devices work across the ends of rounds, so a checkpoint has them, as arrays.
"""

import json
from dataclasses import asdict, dataclass, replace

import numpy as np

from server.fleet.conditions import Fate, cut
from server.fleet.roster import Member
from server.global_model.broadcast import Base
from server.ledger import Phase, Where
from server.rounds.messages import Measures, Reply, Request
from server.snapshot import Snapshot, under, within
from sparcl_core.codec import Sizes
from sparcl_core.costs.device import Cost
from sparcl_core.costs.flops import Flops
from sparcl_core.sparsity.masks import Masks
from sparcl_core.wire.protocol import Report


@dataclass(frozen=True, eq=False)
class Flight:
    """A device at work: what it was sent, what it will report, what its phases cost, and what becomes of it."""

    request: Request
    reply: Reply
    phases: tuple[Phase, ...]
    fate: Fate

    @property
    def device(self) -> int:
        return self.request.device

    @property
    def costs(self) -> tuple[Cost, ...]:
        return tuple(phase.cost for phase in self.phases)

    def cut(self, end: float, *, outcome: str, reason: str) -> "Flight":
        """The same, cut short at this instant."""
        return replace(self, fate=cut(self.fate, self.costs, end, outcome=outcome, reason=reason))


def pack(flights: dict[int, Flight]) -> Snapshot:
    """text: JSON (whose floats are exact), one entry per flight; data: reports, one behind the other; masks that several share once."""
    entries, data, masks = [], [], {}
    for flight in flights.values():
        request, reply = flight.request, flight.reply
        key = next((known for known, found in masks.items() if found is request.base.masks), f"{len(masks)}")
        masks[key] = request.base.masks
        report = reply.report
        parts = (report.control, report.delta, report.masks, report.auxiliary) if report else ()
        data += parts
        entries.append(
            {
                "member": [request.member.device, request.member.node_id, list(request.member.samples)],
                "where": asdict(request.where),
                "request": [asdict(request.sizes), request.message_bytes, list(request.extra_s)],
                "base": [request.base.version, request.base.mask_version, key],
                "reply": [reply.missing, reply.problem, reply.message_bytes, reply.report_bytes],
                "measures": asdict(reply.measures) if reply.measures else None,
                "report": [len(part) for part in parts],
                "phases": [asdict(phase) for phase in flight.phases],
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
        version, mask_version, key = entry["base"]
        if key not in shared:
            found = within(f"masks/{key}", arrays)
            shared[key] = {name: found[name].copy() for name in names if name in found}
        parts = []
        for length in entry["report"]:
            parts.append(data[position : position + length])
            position += length
        request = _request_of(entry, Base(version, mask_version, shared[key]))
        reply = _reply_of(entry, Report.from_wire(*parts) if parts else None)
        phases = tuple(Phase(one["name"], _cost_of(one["cost"]), _cost_of(one["dense"])) for one in entry["phases"])
        fate = Fate(**(entry["fate"] | {"shares": tuple(entry["fate"]["shares"])}))
        flights[request.device] = Flight(request, reply, phases, fate)
    return flights


def _request_of(entry: dict, base: Base) -> Request:
    device, node_id, samples = entry["member"]
    sizes, message_bytes, extra_s = entry["request"]
    member, where = Member(device, node_id, tuple(samples)), Where(**entry["where"])
    return Request(member, where, base, Sizes(**sizes), message_bytes, tuple(extra_s))


def _reply_of(entry: dict, report: Report | None) -> Reply:
    missing, problem, message_bytes, report_bytes = entry["reply"]
    measured = entry["measures"]
    if measured:
        measured = Measures(**(measured | {name: Flops(**measured[name]) for name in ("flops", "dense_flops")}))
    return Reply(missing, problem, measured, report, message_bytes=message_bytes, report_bytes=report_bytes)


def _cost_of(cost: dict) -> Cost:
    return Cost(**(cost | {"flops": Flops(**cost["flops"])}))
