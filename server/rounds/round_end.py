"""When a synchronous round is over, and what that does to the devices that are not done by then."""

from server.fleet.conditions import Fate, cut
from server.rounds.clock import ClockConfig
from sparcl_core.costs.device import Cost


def end_of_round(
    clock: ClockConfig, fates: dict[int, Fate], costs: dict[int, tuple[Cost, ...]], start: float, wanted: int
) -> tuple[dict[int, Fate], float]:
    """When a synchronous round is over, and what that does to the devices that are not done by then.

    It is over when all have reported or were cut short; with over-selection when `wanted` of them have reported; at its deadline at the
    latest. Of devices that report at the same instant those with the lower number count first.

    Args:
        fates, costs: by device, as if nobody waited for anybody.
        wanted: size of the cohort before over-selection; 0: all.

    Returns:
        The fates, and the instant at which the next round may begin.
    """
    if not fates:
        return {}, start + clock.period_s
    done = sorted((fate.end, device) for device, fate in fates.items() if fate.is_done)
    end, outcome, reason = max(fate.end for fate in fates.values()), "cancelled", f"{wanted} devices had reported"
    counted = {device for _, device in done}
    if wanted and clock.over_selection and len(done) >= wanted:
        end = done[wanted - 1][0]
        counted = {device for _, device in done[:wanted]}
    if (deadline := start + clock.deadline) < end:
        end, outcome, reason = deadline, "late", f"the deadline of {clock.deadline_s:g} s was over"
        counted = {device for time, device in done if time <= end}
    ended = {}
    for device, fate in fates.items():
        is_stopped = fate.end > end or (fate.is_done and device not in counted)
        ended[device] = cut(fate, costs[device], min(end, fate.end), outcome, reason) if is_stopped else fate
    return ended, max(end, start + clock.period_s)
