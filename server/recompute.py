"""BatchNorm statistics that devices recompute before an evaluation (`federation.batchnorm = recompute`), booked and pooled."""

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

from flwr.app import Message

from server import intake
from server.intake import message_bytes
from server.ledger import Done, Where
from sparcl_core.codec import CodecError, Sizes

if TYPE_CHECKING:
    from server.strategy import SparCLStrategy


def pool(strategy: "SparCLStrategy", server_round: int, replies: Iterable[Message]) -> None:
    """Pool the devices' statistics by samples into the global model; those that fail are ledger rows. Without any, the old ones stay.

    The clock moves on by what the slowest device took.
    """
    cohort, ledger, pooled, took = strategy.by_node, strategy.ledger, [], [0.0]
    by_device = {cohort[one.metadata.src_node_id].where.device: one for one in replies if one.metadata.src_node_id in cohort}
    for sent in cohort.values():
        where, device = sent.where, sent.where.device
        reply, name = by_device.get(device), f"device {device}, round {server_round}"
        if reason := intake.missing(reply, name):
            strategy.failed(sent, reason, "calibrate")
            continue
        before = len(ledger.rows)

        def at(before: int = before, where: Where = where) -> Where:
            """Where the next phase begins: behind those that were booked."""
            return replace(where, time=where.time + sum(row.seconds for row in ledger.rows[before:]))

        ledger.downloaded(where, sent.sizes, sent.message_bytes, Done(extra_s=sent.extra_s[0]), has_twin=False)
        try:
            ledger.calibrated(at(), intake.read_flops(reply), strategy.method.is_sparse)
            report = intake.read_report(reply)
            own, sizes = intake.accept_statistics(report, strategy.exchange.broadcasts[strategy.exchange.tier(device)], strategy.whole)
        except CodecError as error:
            strategy.exchange.held[device], own = 0, None
            unread = Sizes(unread=intake.report_bytes(reply))
            ledger.uploaded(at(), unread, message_bytes(reply), Done("rejected", f"{name}, stage decode: {error}"), has_twin=False)
        else:
            strategy.exchange.held[device] = report.base_version
            ledger.uploaded(at(), sizes, message_bytes(reply), Done(extra_s=sent.extra_s[1]), has_twin=False)
            pooled.append((report.samples, own))
        took.append(at().time - where.time)
        strategy.attendance.conditions.spend(device, where.time, at().time, sum(row.joules for row in ledger.rows[before:]))
    strategy.now += max(took)
    strategy.is_over = strategy.is_over or strategy.now >= strategy.clock.horizon_s
    if pooled:
        strategy.set_statistics(pooled)
