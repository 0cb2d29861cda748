"""The phases of a device's round: what each costs, worked out once, for the clock and for the ledger; and their rows as the round went."""

from collections.abc import Callable
from dataclasses import replace

from server.fleet.conditions import Conditions
from server.ledger import DONE, Ending, Ledger, Phase, WallTime, Where
from server.rounds.in_flight import Flight
from server.rounds.messages import Reply, Request
from server.selection.estimate import Workload
from sparcl_core.codec import Sizes
from sparcl_core.costs.device import Cost, compute_cost, download_cost, upload_cost
from sparcl_core.costs.flops import Flops

Transfer = Callable[..., Cost]


class PhaseCosts:
    """What the phases of a round cost a device of one fleet with one workload, and what its dense twin would pay.

    Args:
        dense_message_bytes: what one message of the dense twin weighs, 4 bytes per parameter and float buffer.
    """

    def __init__(self, conditions: Conditions, workload: Workload, dense_message_bytes: int):
        self.conditions, self.dense_message_bytes = conditions, dense_message_bytes
        self.is_sparse, self.moved, self.layer_passes = workload.method.is_sparse, workload.moved, workload.layer_passes

    def of_round(self, request: Request, reply: Reply) -> tuple[Phase, Phase, Phase]:
        """Download, training and upload. Training whose measures cannot be read costs nothing."""
        measures = reply.measures
        trained = self.training(request, measures.flops, measures.dense_flops) if measures else Phase("train")
        return self.download(request), trained, self.upload(request, reply.report_bytes)

    def download(self, request: Request, *, has_twin: bool = True) -> Phase:
        """`has_twin`: the dense twin, which averages its statistics, receives such a message, too."""
        return self._transfer(
            "download", download_cost, request, num_bytes=request.sizes.total, extra_s=request.extra_s[0], has_twin=has_twin
        )

    def upload(self, request: Request, num_bytes: int, *, has_twin: bool = True) -> Phase:
        """`num_bytes`: of the report; `has_twin`: as in `download`."""
        return self._transfer("upload", upload_cost, request, num_bytes=num_bytes, extra_s=request.extra_s[1], has_twin=has_twin)

    def training(self, request: Request, flops: Flops, dense_flops: Flops) -> Phase:
        return Phase("train", self._compute(request, flops, self.is_sparse), self._compute(request, dense_flops, False))

    def errand(self, name: str, request: Request, flops: Flops) -> Phase:
        """What a device computes beside training, as a forward pass that recomputes BatchNorm statistics; the dense twin has none."""
        return Phase(name, self._compute(request, flops, self.is_sparse))

    def _compute(self, request: Request, flops: Flops, is_sparse: bool) -> Cost:
        return compute_cost(
            self.conditions.profile(request.device), flops, is_sparse=is_sparse, moved_per_sample=self.moved, layer_passes=self.layer_passes
        )

    def _transfer(self, name: str, cost_of: Transfer, request: Request, *, num_bytes: int, extra_s: float, has_twin: bool) -> Phase:
        profile = self.conditions.profile(request.device)
        dense = cost_of(profile, self.dense_message_bytes, extra_s) if has_twin else Cost()
        return Phase(name, cost_of(profile, num_bytes, extra_s), dense)


def book(ledger: Ledger, flight: Flight, sizes: Sizes | None, refusal: Ending = DONE) -> None:
    """A device's round as it went: rows up to where it was cut short.

    Args:
        sizes: of its report; None: it could not be read.
        refusal: why a report that came in is not used.
    """
    request, reply, fate, start = flight.request, flight.reply, flight.fate, flight.request.where.time
    for phase, share in zip(flight.phases, fate.shares, strict=True):
        where = replace(request.where, time=start)
        ending = DONE if share == 1 else Ending(fate.outcome, fate.reason, share)
        if phase.name == "download":
            ledger.transferred(where, phase, request.sizes, request.message_bytes, ending=ending)
        elif phase.name == "upload":
            ending = refusal if share == 1 else ending
            ledger.transferred(where, phase, sizes or Sizes(unread=reply.report_bytes), reply.message_bytes, ending=ending)
        elif reply.measures:
            _book_training(ledger, flight, phase, where, ending=ending)
        start += phase.cost.seconds
        if share < 1:
            break


def _book_training(ledger: Ledger, flight: Flight, phase: Phase, where: Where, *, ending: Ending) -> None:
    measures = flight.reply.measures
    counts = measures.counts | {"memory_bytes": measures.memory_bytes, "loss": measures.loss}
    ledger.computed(where, phase, ending=ending, **counts)
    ledger.wall_times.append(WallTime(where.round, where.device, measures.wall_s, measures.compute_s))
