"""BatchNorm statistics that devices recompute before an evaluation (`federation.batchnorm = recompute`), booked and pooled."""

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

from flwr.app import Message

from server.ledger import Done, Where
from server.rounds import replies
from server.rounds.replies import message_bytes
from sparcl_core.codec import CodecError, Sizes

if TYPE_CHECKING:
    from server.strategy import SparCLStrategy


def pool(strategy: "SparCLStrategy", server_round: int, answers: Iterable[Message]) -> None:
    """Pool the devices' statistics by samples into the global model; those that fail are ledger rows. Without any, the old ones stay.

    The clock moves on by what the slowest device took.
    """
    cohort, ledger, pooled, took = strategy.by_node, strategy.ledger, [], [0.0]
    exchange, by_device = strategy.exchange, {}
    for reply in answers:
        if sent := cohort.get(reply.metadata.src_node_id):
            missing = replies.missing(reply, f"device {sent.where.device}, round {server_round}")
            problem = "" if missing else exchange.oversize(reply)
            by_device[sent.where.device] = (missing, problem, None if problem else reply)  # what is too large is not kept
    for sent in cohort.values():
        where, device = sent.where, sent.where.device
        name, bounds, broadcast = (
            f"device {device}, round {server_round}",
            exchange.bounds(sent),
            exchange.broadcasts[exchange.tier(device)],
        )
        missing, problem, reply = by_device.get(device, (f"{name}: no reply", "", None))
        if missing:
            strategy.failed(sent, missing, "calibrate")
            continue
        before = len(ledger.rows)

        def at(before: int = before, where: Where = where) -> Where:
            """Where the next phase begins: behind those that were booked."""
            return replace(where, time=where.time + sum(row.seconds for row in ledger.rows[before:]))

        ledger.downloaded(where, sent.sizes, sent.message_bytes, Done(extra_s=sent.extra_s[0]), has_twin=False)
        try:
            if problem:
                raise CodecError(problem)
            ledger.calibrated(at(), replies.read_flops(reply, bounds), strategy.method.is_sparse)
            report = replies.read_report(reply)
            own, sizes = replies.accept_statistics(report, broadcast, strategy.whole, bounds.statistics)
        except CodecError as error:
            exchange.held[device] = 0
            size, unread = (message_bytes(reply), replies.report_bytes(reply)) if reply else (exchange.most_bytes,) * 2
            done = Done("rejected", f"{name}, stage decode: {error}")
            ledger.uploaded(at(), Sizes(unread=unread), size, done, has_twin=False)
        else:
            exchange.held[device] = report.base_version
            ledger.uploaded(at(), sizes, message_bytes(reply), Done(extra_s=sent.extra_s[1]), has_twin=False)
            pooled.append((device, report.samples, own))
        took.append(at().time - where.time)
        strategy.attendance.conditions.spend(device, where.time, at().time, sum(row.joules for row in ledger.rows[before:]))
    strategy.now += max(took)
    strategy.is_over = strategy.is_over or strategy.now >= strategy.clock.horizon_s
    if pooled:
        strategy.set_statistics(pooled)
