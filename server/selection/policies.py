"""The choice of a cohort: a function of the candidates, the seed and the round, whatever was chosen before.

A policy is a function (candidates, size, rng, **options) -> rows of the candidates that are chosen, in any order: `size` of them, which is
at least 1 and at most all, or fewer if it admits no more. What it knows of them stands in `server.selection.candidates.Candidates`; it
draws from `rng` alone. Those of ours are here, `oort` in `server.selection.oort`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np

from server.selection.candidates import Candidates, draw_by_weight
from sparcl_core.foreign import printable
from sparcl_core.plugins.kinds import Kind
from sparcl_core.plugins.options import check_options
from sparcl_core.seeding import generator

OURS = {
    "uniform": "server.selection.policies:uniform",
    "feasible": "server.selection.policies:feasible",
    "energy": "server.selection.policies:energy",
    "oort": "server.selection.oort:oort",
}
POLICIES = Kind(setting="selection.policy", noun="policy", group="sparcl.policies", ours=OURS)
SETTINGS = {"energy": ("min_charge",), "oort": ("exploration", "alpha", "preferred_s", "cutoff")}  # of ours, which are keys of the section


@dataclass(frozen=True)
class SelectionConfig:
    """Settings of the choice.

    Attributes:
        policy: `uniform`, `feasible`, `energy` or `oort`; or one of an installed package, or `package.module:name`.
        options: of a policy of another package, if it has any.
        min_charge: `energy` chooses nobody below this state of charge, a share in [0, 1); and nobody without charge.
        exploration: share of the cohort, rounded up, that `oort` reserves for devices never tried.
        alpha: how hard `oort` is on devices slower than T; 0: not at all.
        preferred_s: T of `oort`, seconds; 0: the median of the candidates that have been tried, but no more than the deadline.
        cutoff: share of the cut-off utility that `oort` still admits to the draw; 1: the best only, 0: all.
    """

    read_with: ClassVar[dict[str, tuple[str, ...]]] = {f"selection.policy={policy}": keys for policy, keys in SETTINGS.items()}
    policy: str = "uniform"
    options: dict[str, Any] = field(default_factory=dict)
    min_charge: float = 0.0
    exploration: float = 0.2
    alpha: float = 2.0
    preferred_s: float = 0.0
    cutoff: float = 0.95

    def __post_init__(self):
        POLICIES.offer(self.policy)
        if not 0 <= self.min_charge < 1:
            raise ValueError(f"min_charge is {self.min_charge}: a share in [0, 1); 0 leaves out empty devices only")
        for key in ("exploration", "cutoff"):
            if not 0 <= getattr(self, key) <= 1:
                raise ValueError(f"{key} is {getattr(self, key)}: a share in [0, 1]; the default is {getattr(type(self), key)}")
        for key in ("alpha", "preferred_s"):
            if not 0 <= getattr(self, key) < math.inf:
                raise ValueError(f"{key} is {getattr(self, key)}: finite and not negative; the default is {getattr(type(self), key)}")


def uniform(candidates: Candidates, size: int, rng: np.random.Generator) -> np.ndarray:
    """Every candidate alike."""
    return _alike(np.arange(len(candidates)), size, rng)


def feasible(candidates: Candidates, size: int, rng: np.random.Generator) -> np.ndarray:
    """Every candidate alike whose estimated round fits the deadline; there may be few, even none."""
    return _alike(np.flatnonzero(candidates.seconds <= candidates.deadline_s), size, rng)


def energy(candidates: Candidates, size: int, rng: np.random.Generator, *, min_charge: float = 0.0) -> np.ndarray:
    """Drawn by state of charge; those without any, or below `min_charge`, are left in peace."""
    able = np.flatnonzero((candidates.charge > 0) & (candidates.charge >= min_charge))
    if size >= len(able):
        return able
    return draw_by_weight(able, candidates.charge, rng.standard_exponential(len(candidates)), size)


def find_policy(config: SelectionConfig) -> tuple[Callable[..., Any], dict[str, Any]]:
    """The policy of these settings, and what it is given by name.

    Raises:
        ValueError: if there is none of that name, it is no function, or the options do not fit it.
    """
    found, shown = POLICIES.find(config.policy), f"selection.policy is {printable(repr(config.policy), 120)}"
    if config.policy in POLICIES.ours:
        own = SETTINGS.get(config.policy, ())
        if config.options:
            keys = ", ".join(f"selection.{key}" for key in own)
            raise ValueError(f"{shown}, which has no options{f'; its settings are {keys}' if own else ''}: leave selection.options empty")
        return found, {key: getattr(config, key) for key in own}
    if not callable(found) or isinstance(found, type):
        raise ValueError(f"{shown}, which is no policy: a function (candidates, size, rng, **options) that returns rows of the candidates")
    check_options(
        found,
        config.options,
        setting="selection.options",
        given=3,
        needed=f"{shown}: a policy is a function (candidates, size, rng, **options)",
    )
    return found, config.options


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
        ValueError: if size is negative, the round is below 1, the deadline is negative or NaN, or a policy returns what are no rows.
    """
    if size < 0 or server_round < 1 or not deadline_s >= 0:
        raise ValueError(
            f"size is {size}, server_round {server_round}, deadline_s {deadline_s}: size from 0 (all), rounds from 1, seconds from 0"
        )
    if not len(candidates):
        return np.zeros(0, np.int64)
    rng = generator(seed, "cohort", server_round, *([draw] if draw > 1 else []))
    size = min(size or len(candidates), len(candidates))
    policy, options = find_policy(config)
    among = replace(candidates, server_round=server_round, deadline_s=deadline_s)
    return _rows(policy(among, size, rng, **options), len(candidates), size, config)


def _alike(able: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    return able if size >= len(able) else able[rng.permutation(len(able))[:size]]


def _rows(chosen: Any, count: int, size: int, config: SelectionConfig) -> np.ndarray:
    """What a policy has returned, in ascending order."""
    rows = np.sort(np.asarray(chosen).reshape(-1))
    if not len(rows):
        return np.zeros(0, np.int64)
    fits = np.issubdtype(rows.dtype, np.integer) and rows[0] >= 0 and rows[-1] < count and (np.diff(rows) > 0).all() and len(rows) <= size
    if not fits:
        raise ValueError(
            f"selection.policy {printable(config.policy, 120)} was asked for {size} of {count} candidates and has returned "
            f"{printable(repr(chosen), 200)}: rows from 0 to {count - 1} are needed, whole numbers, none twice, at most {size}"
        )
    return rows.astype(np.int64)
