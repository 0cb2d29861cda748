"""Reports of importance held against each other: one that stands out is scaled down before it is averaged. Pure functions on values.

The masks follow |w| plus the mean of what devices report (`server.global_model.masks`): a report without a bound would decide them alone.
The size of a report is its L2 norm over all masked tensors, in float64; more than `clip` times `SPREAD` times the median of its round, and
it is scaled down to that median. Importance follows gradients, whose spread over honest devices is far larger than that of updates: of 400
reports of honest runs (docs/wire.md) the largest was 88 times the median, and in 15 of 40 rounds one was above 5 times. So the bound is far
out: it ends what has no limit, and not that some weigh more than others. Votes (`wire.importance = "votes"`) weigh alike by themselves.

Where fewer than `LEAST` reports say anything there is nobody to compare with, and all stay as they are.
"""

import numpy as np

from server.defence.clipping import LEAST, Unusual
from sparcl_core.codec import SparseTensor

SPREAD = 50.0
Importance = dict[str, SparseTensor]


def bounded_reports(reports: dict[int, Importance], clip: float) -> tuple[dict[int, Importance], list[Unusual]]:
    """Reports by device as they may be averaged, and what was done to some of them.

    What is not scaled is the same object. `clip`: `aggregation.clip`; 0: none is.
    """
    norms = {device: _norm(report) for device, report in reports.items()}
    some = [norm for norm in norms.values() if norm > 0]
    if not clip or len(some) < LEAST:
        return reports, []
    median = float(np.median(some))
    result, unusual = dict(reports), []
    for device, norm in norms.items():
        if norm > clip * SPREAD * median:
            result[device] = {name: _scaled(tensor, median / norm) for name, tensor in reports[device].items()}
            what = f"the norm of the importance that it reports is {norm:.3g}, {norm / median:.3g} times the median of its round"
            unusual.append(Unusual(device, False, f"{what}: it was scaled down to that"))
    return result, unusual


def _norm(report: Importance) -> float:
    """In units of the largest value: the square of a double may be infinite, and so small a factor would leave nothing."""
    values = [tensor.values.astype(np.float64) for tensor in report.values()]
    largest = max((float(np.abs(own).max(initial=0.0)) for own in values), default=0.0)
    if not largest:
        return 0.0
    return largest * float(np.sqrt(sum(float(np.square(own / largest).sum()) for own in values)))


def _scaled(tensor: SparseTensor, factor: float) -> SparseTensor:
    return SparseTensor(tensor.places, tensor.values * np.float64(factor), tensor.ranks)
