"""BatchNorm statistics that devices recompute before an evaluation (`federation.batchnorm = recompute`), booked and pooled."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from flwr.app import Message

from server.global_model.batchnorm import Observed
from server.ledger import DONE, Ending, Phase, Where
from server.rounds import replies
from server.rounds.federation import Federation, Talk
from server.rounds.messages import Request, answered, message_bytes
from server.selection.cohort import Chosen
from sparcl_core.codec import CodecError, Sizes
from sparcl_core.costs.flops import Flops


@dataclass(frozen=True, eq=False)
class _Answer:
    """What came back of a device.

    Attributes:
        missing: why nothing did.
        problem: why it cannot be used.
        flops: of the forward pass; None if they cannot be read.
        observed, version: its statistics, and the version that it holds now.
        sizes: of the report by kind; message_bytes, report_bytes: as in `Reply`.
    """

    missing: str = ""
    problem: str = ""
    flops: Flops | None = None
    observed: Observed | None = None
    version: int = 0
    sizes: Sizes = Sizes()
    message_bytes: int = 0
    report_bytes: int = 0


def recalibrate(federation: Federation, server_round: int, talk: Talk, reached: Iterable[Chosen]) -> None:
    """Bring the devices that a round has `reached` to the model as it is now, and pool their statistics by samples into it.

    Only with `federation.batchnorm=recompute`; else nothing is done.

    Those that fail are ledger rows; without any, the old statistics stay. The clock moves on by what the slowest device took.
    """
    if not federation.model.recomputes_statistics:
        return
    federation.publish(server_round)
    order = {"action": "query.calibrate", "server_round": server_round, "time": federation.now, "wants_report": False}
    requests = [federation.exchange.instruct(one, **order) for one in reached]
    answers = {one.device: _Answer(missing=f"{one}: no reply") for one in requests}
    for request, message in answered(requests, talk([one.message for one in requests])):
        answers[request.device] = _read(federation, request, message)
    pooled, took = [], [0.0]
    for request in requests:
        answer = answers[request.device]
        if answer.missing:
            federation.failed(request, answer.missing, "calibrate")
            continue
        took.append(_book(federation, request, answer))
        if answer.observed:
            federation.exchange.holds(request.device, answer.version)
            pooled.append(answer.observed)
        else:
            federation.exchange.forget(request.device)
    federation.move_on(federation.now + max(took))
    if pooled:
        federation.set_statistics(pooled)


def _read(federation: Federation, request: Request, message: Message) -> _Answer:
    """What a reply says, decoded and checked. Changes nothing, so it does not matter which reply comes first."""
    exchange, decode = federation.exchange, f"{request}, stage decode"
    bounds = exchange.bounds(request)
    if missing := replies.missing(message, f"{request}"):
        return _Answer(missing=missing)
    if problem := replies.oversize(message, bounds):
        most = bounds.reply_bytes
        return _Answer(problem=f"{decode}: {problem}", sizes=Sizes(unread=most), message_bytes=most, report_bytes=most)
    size = replies.report_bytes(message)
    answer = _Answer(sizes=Sizes(unread=size), message_bytes=message_bytes(message), report_bytes=size)
    try:
        answer = replace(answer, flops=replies.read_flops(message, bounds))
        report = replies.read_report(message)
        base, whole = exchange.newest(request.device), federation.model.whole
        own, sizes = replies.accept_statistics(report, base, whole, bounds.statistics)
    except CodecError as error:
        return replace(answer, problem=f"{decode}: {error}")
    observed = Observed(request.device, report.samples, own)
    return replace(answer, observed=observed, version=report.base_version, sizes=sizes + Sizes(unread=size - sizes.total))


def _book(federation: Federation, request: Request, answer: _Answer) -> float:
    """The rows of a device's turn, and what it takes from its battery. Returns virtual seconds."""
    costs, ledger, where = federation.costs, federation.ledger, request.where
    phases = [costs.download(request, has_twin=False)]
    ledger.transferred(where, phases[0], request.sizes, request.message_bytes)
    if answer.flops is not None:
        forward = costs.calibration(request, answer.flops)
        ledger.computed(_behind(where, phases), forward)
        phases.append(forward)
    upload = costs.upload(request, answer.report_bytes, has_twin=False)
    ending = Ending("rejected", answer.problem) if answer.problem else DONE
    ledger.transferred(_behind(where, phases), upload, answer.sizes, answer.message_bytes, ending=ending)
    phases.append(upload)
    end = _behind(where, phases).time
    federation.conditions.spend(request.device, where.time, end, sum(phase.cost.joules for phase in phases))
    return end - where.time


def _behind(where: Where, phases: list[Phase]) -> Where:
    """Where the phase behind these begins."""
    return replace(where, time=where.time + sum(phase.cost.seconds for phase in phases))
