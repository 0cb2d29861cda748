"""SNIP in a fleet: before anything is trained, devices of the first cohort are asked which weights of the dense network they would keep.

They draw the dense network from the seed, as everybody does with growth, so that they are sent nothing; each computes the sensitivity of
all weights on its first data and names as many places as the network is to have. Those that most name are kept. A device that cannot hold
the dense network and its gradients is not asked.
"""

import numpy as np

from server.errors import FleetError
from server.global_model.model import GlobalModel
from server.rounds.errands import run_errand
from server.rounds.federation import RETRY_S, Federation, Talk
from server.rounds.messages import Request
from server.rounds.reply_limits import Bounds
from server.selection.cohort import PATIENCE_S, Chosen
from sparcl_core import codec
from sparcl_core.codec import CodecError, Sizes
from sparcl_core.sparsity.densities import active_counts
from sparcl_core.sparsity.masks import num_active
from sparcl_core.wire.protocol import Report

Places = dict[str, np.ndarray]


def find_masks(federation: Federation, server_round: int, talk: Talk) -> None:
    """Ask, and let the model begin with what was found. Only with `masks.initial=snip`, in the first round in which somebody is there.

    Raises:
        FleetError: if no device of the cohort can compute it, all decline for a month, or none of those that did sent what can be used.
    """
    if not federation.model.awaits_masks or not (willing := _willing(federation, server_round)):
        return
    order = {"action": "query.sensitivity", "server_round": server_round, "time": federation.now, "wants_report": False}
    requests = [federation.exchange.instruct(one, **order, brings_model=False) for one in _able(federation, willing)]
    federation.model.choose_masks(_votes(federation, requests, talk))


def _willing(federation: Federation, server_round: int) -> list[Chosen]:
    """Those of the round's cohort that do not decline; the clock moves on until there are some. Empty: nobody is there, as the round will
    find, too."""
    cohorts, clock, size = federation.cohorts, federation.clock, federation.cohort_size
    until = federation.now + PATIENCE_S
    while federation.now <= until:
        begins = cohorts.wait(server_round, federation.now, clock.min_devices, clock.horizon_s)
        if not np.isfinite(begins):
            return []
        federation.now = begins
        if willing := federation.willing(server_round, cohorts.choose(server_round, begins, size, clock.deadline)):
            return willing
        federation.now += RETRY_S
    raise FleetError("masks.initial is 'snip', and all devices that were asked for their sensitivity have declined for 30 days")


def _votes(federation: Federation, requests: list[Request], talk: Talk) -> dict[str, np.ndarray]:
    """How many devices would keep each place, per masked tensor."""
    model = federation.model

    def decode(request: Request, report: Report, bounds: Bounds) -> tuple[Places, Sizes]:
        return read_places(report, model)

    answers = run_errand(federation, requests, talk, decode, phase="sensitivity", memory_bytes=federation.cohorts.workload.dense_memory)
    told = [answer.found for _, answer in answers if answer.found]
    if not told:
        why = next(answer.missing or answer.problem for _, answer in answers)
        raise FleetError(f"masks.initial is 'snip', and no device could say which weights to keep: {why}")
    votes = {name: np.zeros(mask.shape) for name, mask in model.masks.items()}
    for name, count in votes.items():
        for places in told:
            count.reshape(-1)[places[name]] += 1
    return votes


def read_places(report: Report, model: GlobalModel) -> tuple[Places, Sizes]:
    """The places that a device would keep; bytes by kind. Raises CodecError unless they are as many as the network is to have."""
    payload, method = codec.decode(report.masks, model.layout, model.masks), model.settings.method
    if payload.kind != "keep" or payload.tensors.keys() != model.masks.keys():
        raise CodecError(f"the places to keep were asked for, of every masked tensor; this is {payload.kind!r}")
    wanted = active_counts(method.masks.densities, {name: mask.shape for name, mask in model.masks.items()}, method.sparsity)
    places = {name: payload.tensors[name].places for name in wanted}
    counts = {name: own.size for name, own in places.items()}
    if method.masks.densities == "global":
        wanted = num_active(sum(mask.size for mask in model.masks.values()), method.sparsity)
        counts = sum(counts.values())
    if counts != wanted:
        raise CodecError(f"the device would keep {counts} weights: {wanted} are to be kept")
    return places, payload.sizes + Sizes(header=len(report.control))


def _able(federation: Federation, willing: list[Chosen]) -> list[Chosen]:
    """Those that can hold what it takes. Raises FleetError if none can."""
    cohorts, least = federation.cohorts, federation.cohorts.workload.dense_memory
    memory = federation.conditions.hardware.column("memory_bytes")
    able = [one for one in willing if memory[one.member.device] >= least or not cohorts.tiers.minds_memory]
    if not able:
        raise FleetError(
            f"masks.initial is 'snip': the dense network and its gradients take {least:,} bytes, which no device of the first cohort has; "
            f"take masks.initial=magnitude or random"
        )
    return able
