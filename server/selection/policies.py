"""The choice of a cohort: a function of the candidates, the seed and the round, whatever was chosen before. Policies:

- `uniform`: every candidate alike.
- `feasible`: uniform among those whose estimated round fits the deadline.
- `energy`: drawn by state of charge; those without any, or below `min_charge`, are left in peace.
- `oort`: Lai et al., "Oort: Efficient Federated Learning via Guided Participant Selection", OSDI 2021, Algorithm 1. Devices that have
  been tried are drawn by utility, a reserved share of the cohort goes to those that have not, by speed. Utility of a device with samples
  B, last tried in round L and needing t seconds, in round R:

      (U + sqrt(0.1 ln R / L)) * (T / t)^alpha where t > T, else without the last factor

  It is drawn with probability by utility among those that have at least `cutoff` times the cut-off utility, which is that of the last
  one if only the best were taken.

Differences of `oort` from the paper: U is |B| sqrt(mean of loss^2) there. A device reports the mean of its losses only, so we take
|B| |mean loss|; both are the same if all its samples have the same loss. U is clipped at its 95th percentile, as there, and divided by
what it was clipped at, so that losses and sizes of any scale can be weighed against the other summand (the released code maps it to
[0, 1] by smallest and largest). The percentile is the lower of the two values beside it: of two devices or more the largest U never sets
the scale alone, or one that reports a loss of 1e30 would leave all others without utility. That helps against one in twenty; a loss has no
bound of its own, as that of an honest device with new classes may be thousands of times that of others. T and the share of exploration
are settings, and do not move with the rounds ("pacer", decay); nobody is retired after many rounds. Those never tried are drawn by 1 / t.

Draws by weight w without replacement take the lowest of E / w, E exponential (Efraimidis and Spirakis, "Weighted random sampling with a
reservoir", 2006): as if drawn one after another in proportion to w among those that are left.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from sparcl_core.seeding import generator

POLICIES = ("uniform", "feasible", "energy", "oort")
CLIP = 0.95
TINY = np.finfo(np.float64).tiny


@dataclass(frozen=True)
class SelectionConfig:
    """Settings of the choice.

    Attributes:
        policy: `uniform`, `feasible`, `energy` or `oort`; the formulas stand in the module's text.
        min_charge: `energy` chooses nobody below this state of charge, a share in [0, 1); and nobody without charge.
        exploration: share of the cohort, rounded up, that `oort` reserves for devices never tried.
        alpha: how hard `oort` is on devices slower than T; 0: not at all.
        preferred_s: T of `oort`, seconds; 0: the median of the candidates that have been tried, but no more than the deadline.
        cutoff: share of the cut-off utility that `oort` still admits to the draw; 1: the best only, 0: all.
    """

    policy: Literal["uniform", "feasible", "energy", "oort"] = "uniform"
    min_charge: float = 0.0
    exploration: float = 0.2
    alpha: float = 2.0
    preferred_s: float = 0.0
    cutoff: float = 0.95

    def __post_init__(self):
        if self.policy not in POLICIES:
            raise ValueError(f"policy is {self.policy!r}: choose one of {', '.join(POLICIES)}")
        if not 0 <= self.min_charge < 1:
            raise ValueError(f"min_charge is {self.min_charge}: a share in [0, 1); 0 leaves out empty devices only")
        for key in ("exploration", "cutoff"):
            if not 0 <= getattr(self, key) <= 1:
                raise ValueError(f"{key} is {getattr(self, key)}: a share in [0, 1]; the default is {getattr(type(self), key)}")
        for key in ("alpha", "preferred_s"):
            if not 0 <= getattr(self, key) < math.inf:
                raise ValueError(f"{key} is {getattr(self, key)}: finite and not negative; the default is {getattr(type(self), key)}")


@dataclass(frozen=True, eq=False, kw_only=True)
class Candidates:
    """The n devices that could be in a round, as the server knows them.

    Attributes:
        devices: [n] int64, numbers, ascending, none twice.
        samples: [n] int64, what each would train on.
        seconds: [n] float, estimated duration of its round; infinite if it would never end.
        charge: [n] float, state of charge in [0, 1]; 1 for a device on the mains.
        loss: [n] float, mean training loss of its last round; NaN: never trained.
        last_round: [n] int64, the round it last trained in, from 1; 0: never.

    Raises:
        ValueError: if the arrays do not fit each other, devices are not in ascending order, or a value cannot be.
    """

    devices: np.ndarray
    samples: np.ndarray
    seconds: np.ndarray
    charge: np.ndarray
    loss: np.ndarray
    last_round: np.ndarray

    def __post_init__(self):
        shapes = {name: column.shape for name, column in vars(self).items()}
        if set(shapes.values()) != {(len(self.devices),)}:
            raise ValueError(f"the columns of the candidates have shapes {shapes}: they must be [n], all of the same length")
        if not (np.diff(self.devices) > 0).all():
            raise ValueError("candidates must be in ascending order of their devices, and none twice")
        for name in ("samples", "seconds", "last_round"):
            if not (getattr(self, name) >= 0).all():  # also refuses NaN
                raise ValueError(f"{name} of a candidate is negative or NaN: give an estimate of at least 0")
        if not ((self.charge >= 0) & (self.charge <= 1)).all():
            raise ValueError("charge of a candidate is not in [0, 1]: it is a share of the full battery, 1 for a device on the mains")

    def __len__(self) -> int:
        return len(self.devices)


def choose(
    config: SelectionConfig, candidates: Candidates, size: int, *, seed: int, server_round: int, deadline_s: float = math.inf, draw: int = 1
) -> np.ndarray:
    """The cohort of a round, as ascending rows (int64) of `candidates`: `size` of them, or all that the policy admits if they are fewer.

    `feasible` and `energy` may admit few, even none; `uniform` and `oort` admit all. Draws come from (seed, "cohort", round).

    Args:
        size: devices in the cohort; 0: all that the policy admits.
        server_round: from 1.
        deadline_s: how long the round may take, from its start, in virtual seconds.
        draw: which draw of the round this is, from 1, where it has several; further ones come from (seed, "cohort", round, draw).

    Raises:
        ValueError: if size is negative, the round is below 1, or the deadline is negative or NaN.
    """
    if size < 0 or server_round < 1 or not deadline_s >= 0:
        raise ValueError(
            f"size is {size}, server_round {server_round}, deadline_s {deadline_s}: size from 0 (all), rounds from 1, seconds from 0"
        )
    rng = generator(seed, "cohort", server_round, *([draw] if draw > 1 else []))
    able = np.arange(len(candidates))
    if config.policy == "feasible":
        able = np.flatnonzero(candidates.seconds <= deadline_s)
    elif config.policy == "energy":
        able = np.flatnonzero((candidates.charge > 0) & (candidates.charge >= config.min_charge))
    if size == 0 or size >= len(able):
        return able
    if config.policy in ("uniform", "feasible"):
        return np.sort(able[rng.permutation(len(able))[:size]])
    noise = rng.standard_exponential(len(candidates))
    if config.policy == "energy":
        return np.sort(_draw(able, candidates.charge, noise, size))
    if config.policy == "oort":
        return _oort(config, candidates, size, noise, server_round=server_round, deadline_s=deadline_s)
    raise NotImplementedError(f"selection.policy {config.policy!r} is a name without a draw: choose needs a branch for it")


def utility(config: SelectionConfig, candidates: Candidates, server_round: int, deadline_s: float = math.inf) -> np.ndarray:
    """[n] float64, `oort`'s utility of the devices that have been tried, 0 for the others. Pure, no draw.

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
    preferred = config.preferred_s or min(float(np.median(seconds)), deadline_s)
    late = seconds > preferred
    value += np.sqrt(0.1 * math.log(server_round) / candidates.last_round[tried])
    value[late] *= (preferred / seconds[late]) ** config.alpha
    result[tried] = value
    return result


def _percentile(values: np.ndarray) -> float:
    """The 95th, as `numpy.percentile` with `method="lower"` gives it: of two values or more never the largest alone. 0 of none."""
    return float(np.sort(values)[int(CLIP * (len(values) - 1))]) if len(values) else 0.0


def _oort(
    config: SelectionConfig, candidates: Candidates, size: int, noise: np.ndarray, *, server_round: int, deadline_s: float
) -> np.ndarray:
    """Rows of `size` candidates, fewer than there are: exploitation first, and each part takes what the other cannot fill."""
    tried, new = np.flatnonzero(candidates.last_round > 0), np.flatnonzero(candidates.last_round == 0)
    # rounded first: 0.3 of 10 must not be 4 because of the last bit
    explored = min(math.ceil(round(config.exploration * size, 9)), len(new))
    exploited = min(size - explored, len(tried))
    explored = size - exploited
    value = utility(config, candidates, server_round, deadline_s)
    if exploited > 0:
        cut = config.cutoff * np.sort(value[tried])[-exploited]
        tried = tried[value[tried] >= cut]
    speed = 1 / np.maximum(candidates.seconds, TINY)
    return np.sort(np.concatenate([_draw(tried, value, noise, exploited), _draw(new, speed, noise, explored)]))


def _draw(rows: np.ndarray, weights: np.ndarray, noise: np.ndarray, size: int) -> np.ndarray:
    """`size` of `rows` without replacement, by weight. Weight 0 comes last, in random order; ties go to the lower device.

    Args:
        rows: which candidates, ascending.
        weights, noise: [n] of all candidates; noise is exponential, one draw each.
    """
    with np.errstate(divide="ignore"):
        keys = np.log(np.maximum(noise[rows], TINY)) - np.log(weights[rows])
    return rows[np.lexsort((noise[rows], keys))[:size]]
