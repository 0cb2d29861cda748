"""What devices are asked beside training, in one batch of messages: each answer is read, checked and booked, and the clock moves on."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from flwr.app import Message

from server.ledger import DONE, Ending, Where
from server.rounds import replies
from server.rounds.federation import Federation, Talk
from server.rounds.messages import Request, answered, message_bytes
from server.rounds.reply_limits import Bounds
from sparcl_core.codec import CodecError, Sizes
from sparcl_core.costs.flops import Flops
from sparcl_core.wire.protocol import Report

Decode = Callable[[Request, Report, Bounds], tuple[Any, Sizes]]  # raises CodecError; sizes of the report by kind


@dataclass(frozen=True, eq=False)
class Answer:
    """What came back of a device.

    Attributes:
        missing: why nothing did.
        problem: why it cannot be used.
        flops: of what was computed; None if they cannot be read.
        report, found: what it says, and what was made of it; None if that is nothing.
        sizes: of the report by kind; message_bytes, report_bytes: as in `Reply`.
    """

    missing: str = ""
    problem: str = ""
    flops: Flops | None = None
    report: Report | None = None
    found: Any = None
    sizes: Sizes = Sizes()
    message_bytes: int = 0
    report_bytes: int = 0


def run_errand(
    federation: Federation, requests: Iterable[Request], talk: Talk, decode: Decode, *, phase: str, memory_bytes: int = 0
) -> list[tuple[Request, Answer]]:
    """Send these, and wait for the slowest device.

    Args:
        phase: of the ledger, that the devices compute in; `memory_bytes`: what that needs.

    Returns:
        Every request with its answer, in their order; those that failed have ledger rows.
    """
    requests = list(requests)
    answers = {one.device: Answer(missing=f"{one}: no reply") for one in requests}
    for request, message in answered(requests, talk([one.message for one in requests])):
        answers[request.device] = _read(federation, request, message, decode)
    took = [0.0]
    for request in requests:
        answer = answers[request.device]
        if answer.missing:
            federation.failed(request, answer.missing, phase)
        else:
            took.append(_book(federation, request, answer, phase=phase, memory_bytes=memory_bytes))
    federation.move_on(federation.now + max(took))
    return [(request, answers[request.device]) for request in requests]


def _read(federation: Federation, request: Request, message: Message, decode: Decode) -> Answer:
    """What a reply says, decoded and checked. Changes nothing, so it does not matter which reply comes first."""
    stage, bounds = f"{request}, stage decode", federation.exchange.bounds(request)
    if missing := replies.missing(message, f"{request}"):
        return Answer(missing=missing)
    if problem := replies.oversize(message, bounds):
        most = bounds.reply_bytes
        return Answer(problem=f"{stage}: {problem}", sizes=Sizes(unread=most), message_bytes=most, report_bytes=most)
    size = replies.report_bytes(message)
    answer = Answer(sizes=Sizes(unread=size), message_bytes=message_bytes(message), report_bytes=size)
    try:
        answer = replace(answer, flops=replies.read_flops(message, bounds))
        report = replies.read_report(message)
        found, sizes = decode(request, report, bounds)
    except CodecError as error:
        return replace(answer, problem=f"{stage}: {error}")
    return replace(answer, report=report, found=found, sizes=sizes + Sizes(unread=size - sizes.total))


def _book(federation: Federation, request: Request, answer: Answer, *, phase: str, memory_bytes: int) -> float:
    """The rows of a device's turn, and what it takes from its battery. Returns virtual seconds."""
    costs, ledger, where = federation.costs, federation.ledger, request.where
    phases = [costs.download(request, has_twin=False)]
    ledger.transferred(where, phases[0], request.sizes, request.message_bytes)
    if answer.flops is not None:
        computed = costs.errand(phase, request, answer.flops)
        ledger.computed(_behind(where, phases), computed, memory_bytes=memory_bytes)
        phases.append(computed)
    upload = costs.upload(request, answer.report_bytes, has_twin=False)
    ending = Ending("rejected", answer.problem) if answer.problem else DONE
    ledger.transferred(_behind(where, phases), upload, answer.sizes, answer.message_bytes, ending=ending)
    phases.append(upload)
    end = _behind(where, phases).time
    federation.conditions.spend(request.device, where.time, end, sum(one.cost.joules for one in phases))
    return end - where.time


def _behind(where: Where, phases: list) -> Where:
    """Where the phase behind these begins."""
    return replace(where, time=where.time + sum(phase.cost.seconds for phase in phases))
