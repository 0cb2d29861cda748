"""BatchNorm statistics that devices recompute before an evaluation (`federation.batchnorm = recompute`), booked and pooled."""

from collections.abc import Iterable

from server.global_model.batchnorm import Observed
from server.rounds import replies
from server.rounds.errands import run_errand
from server.rounds.federation import Federation, Talk
from server.rounds.messages import Request
from server.rounds.reply_limits import Bounds
from server.selection.cohort import Chosen
from sparcl_core.codec import Sizes
from sparcl_core.wire.protocol import Report


def recalibrate(federation: Federation, server_round: int, talk: Talk, reached: Iterable[Chosen]) -> None:
    """Bring the devices that a round has `reached` to the model as it is now, and pool their statistics by samples into it.

    Only with `federation.batchnorm=recompute`; else nothing is done.

    Those that fail are ledger rows; without any, the old statistics stay. The clock moves on by what the slowest device took.
    """
    if not federation.model.recomputes_statistics:
        return
    federation.publish(server_round)
    order = {"action": "query.calibrate", "server_round": server_round, "time": federation.now, "wants_report": False}
    exchange, whole, pooled = federation.exchange, federation.model.whole, []

    def decode(request: Request, report: Report, bounds: Bounds) -> tuple[Observed, Sizes]:
        own, sizes = replies.accept_statistics(report, exchange.newest(request.device), whole, bounds.statistics)
        return Observed(request.device, report.samples, own), sizes

    requests = [exchange.instruct(one, **order) for one in reached]
    for request, answer in run_errand(federation, requests, talk, decode, phase="calibrate"):
        if answer.found:
            exchange.holds(request.device, answer.report.base_version)
            pooled.append(answer.found)
        else:
            exchange.forget(request.device)
    if pooled:
        federation.set_statistics(pooled)
