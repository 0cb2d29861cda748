"""`oort`: Lai et al., "Oort: Efficient Federated Learning via Guided Participant Selection", OSDI 2021, Algorithm 1.

Devices that have been tried are drawn by utility, a reserved share of the cohort goes to those that have not, by speed. Utility of a device
with samples B, last tried in round L and needing t seconds, in round R:

    (U + sqrt(0.1 ln R / L)) * (T / t)^alpha where t > T, else without the last factor

It is drawn with probability by utility among those that have at least `cutoff` times the cut-off utility, which is that of the last one if
only the best were taken.

Differences from the paper: U is |B| sqrt(mean of loss^2) there. A device reports the mean of its losses only, so we take |B| |mean loss|;
both are the same if all its samples have the same loss. U is clipped at its 95th percentile, as there, and divided by what it was clipped
at, so that losses and sizes of any scale can be weighed against the other summand (the released code maps it to [0, 1] by smallest and
largest). The percentile is the lower of the two values beside it: of two devices or more the largest U never sets the scale alone, or one
that reports a loss of 1e30 would leave all others without utility. That helps against one in twenty; a loss has no bound of its own, as
that of an honest device with new classes may be thousands of times that of others. T and the share of exploration are settings, and do not
move with the rounds ("pacer", decay); nobody is retired after many rounds. Those never tried are drawn by 1 / t.
"""

import math

import numpy as np

from server.selection.candidates import TINY, Candidates, draw_by_weight

CLIP = 0.95


def oort(
    candidates: Candidates,
    size: int,
    rng: np.random.Generator,
    *,
    exploration: float = 0.2,
    alpha: float = 2.0,
    preferred_s: float = 0.0,
    cutoff: float = 0.95,
) -> np.ndarray:
    """Who learns much in little time, and a share of those never tried.

    Exploitation comes first, and each part takes what the other cannot fill. Settings: `server.selection.policies.SelectionConfig`.
    """
    if size >= len(candidates):
        return np.arange(len(candidates))
    noise = rng.standard_exponential(len(candidates))
    tried, new = np.flatnonzero(candidates.last_round > 0), np.flatnonzero(candidates.last_round == 0)
    # rounded first: 0.3 of 10 must not be 4 because of the last bit
    explored = min(math.ceil(round(exploration * size, 9)), len(new))
    exploited = min(size - explored, len(tried))
    explored = size - exploited
    value = utility(candidates, alpha=alpha, preferred_s=preferred_s)
    if exploited > 0:
        cut = cutoff * np.sort(value[tried])[-exploited]
        tried = tried[value[tried] >= cut]
    speed = 1 / np.maximum(candidates.seconds, TINY)
    return np.concatenate([draw_by_weight(tried, value, noise, exploited), draw_by_weight(new, speed, noise, explored)])


def utility(candidates: Candidates, *, alpha: float, preferred_s: float) -> np.ndarray:
    """[n] float64: of the devices that have been tried, 0 for the others. Pure, no draw.

    A device whose last loss is not finite says nothing about its data: its U is 0.
    """
    tried = candidates.last_round > 0
    result = np.zeros(len(candidates))
    if not tried.any():
        return result
    with np.errstate(over="ignore", invalid="ignore"):
        value = candidates.samples[tried] * np.abs(candidates.loss[tried])
    value[~np.isfinite(value)] = 0.0
    # the percentile may be 0 where few have a loss: then it is that of those few
    top = _percentile(value) or _percentile(value[value > 0]) or 1.0
    value = np.minimum(value, top) / top
    seconds = candidates.seconds[tried]
    preferred = preferred_s or min(float(np.median(seconds)), candidates.deadline_s)
    late = seconds > preferred
    value += np.sqrt(0.1 * math.log(candidates.server_round) / candidates.last_round[tried])
    value[late] *= (preferred / seconds[late]) ** alpha
    result[tried] = value
    return result


def _percentile(values: np.ndarray) -> float:
    """The 95th, as `numpy.percentile` with `method="lower"` gives it: of two values or more never the largest alone. 0 of none."""
    return float(np.sort(values)[int(CLIP * (len(values) - 1))]) if len(values) else 0.0
