"""Server optimisers: what becomes of the round's average u before it is added to the weights w. Per coordinate:

- `sgd`: w += lr u. With lr = 1 the average itself, to the bit.
- `momentum`: v <- momentum v + u; w += lr v, v from 0. FedAvgM (Hsu, Qi and Brown, "Measuring the Effects of Non-Identical Data
  Distribution for Federated Visual Classification", 2019).
- `adam`: m <- beta1 m + (1 - beta1) u; v <- beta2 v + (1 - beta2) u^2; w += lr m / (sqrt(v) + tau), m from 0, v from tau^2, no bias
  correction. FedAdam (Reddi et al., "Adaptive Federated Optimization", ICLR 2021, Algorithm 2). A coordinate moves by about lr a
  round, whatever the size of u: lr = 1 is for the others, 0.01 to 0.1 for this one.

Sparse: weight and state move only where enough devices voted. Elsewhere both rest, so that a coordinate that nobody held this round
is not carried on by old momentum. The one thing that passes there is an update that is not 0: the average erases the
coordinate (`aggregation.unheld = "zero"`), which must reach 0 exactly, and its state starts afresh.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from server.snapshot import Snapshot, in_order, under, within
from sparcl_core.codec import Layout
from sparcl_core.sparsity.masks import Masks, State

NAMES = ("sgd", "momentum", "adam")


@dataclass(frozen=True)
class ServerOptimizerConfig:
    """Settings of the server's step; the formulas stand in the module's text.

    Attributes:
        name: `sgd`, `momentum` or `adam`.
        lr: server learning rate; `adam` wants a smaller one than the others.
        momentum: share of the old velocity that is kept; read by `momentum` only.
        beta1, beta2: shares of the old moments that are kept; read by `adam` only.
        tau: what keeps a coordinate with small updates from moving too far; in units of a weight; read by `adam` only.
    """

    read_with: ClassVar[dict[str, tuple[str, ...]]] = {
        "server_optimizer.name=momentum": ("momentum",),
        "server_optimizer.name=adam": ("beta1", "beta2", "tau"),
    }
    name: Literal["sgd", "momentum", "adam"] = "sgd"
    lr: float = 1.0
    momentum: float = 0.9
    beta1: float = 0.9
    beta2: float = 0.99
    tau: float = 1e-3

    def __post_init__(self):
        if self.name not in NAMES:
            raise ValueError(f"name is {self.name!r}: choose one of {', '.join(NAMES)}")
        for key in ("lr", "tau"):
            if not 0 < getattr(self, key) < math.inf:
                raise ValueError(f"{key} is {getattr(self, key)}: finite and above 0; the default is {getattr(type(self), key)}")
        for key in ("momentum", "beta1", "beta2"):
            if not 0 <= getattr(self, key) < 1:
                raise ValueError(f"{key} is {getattr(self, key)}: a share in [0, 1); 0 keeps nothing of the past")


class ServerOptimizer:
    """The server's step and its state.

    Attributes:
        first: tensor -> float64 array in the layout's shape: the velocity of `momentum`, the first moment m of `adam`; else empty.
        second: the second moment v of `adam`; else empty. Both are filled at a tensor's first step, and are all that changes.
    """

    def __init__(self, config: ServerOptimizerConfig, layout: Layout):
        self.config, self.layout = config, layout
        self.first: State = {}
        self.second: State = {}

    @property
    def is_plain(self) -> bool:
        """The average is added as it is: votes are not read."""
        return self.config.name == "sgd" and self.config.lr == 1

    def step(self, update: State, voted: dict[str, np.ndarray]) -> State:
        """What to add to w, float64 in the layout's shapes. Arrays of `update` may be part of the result: do not write into it.

        Args:
            update: u per tensor, float64, from `server.aggregation.average.mean_update`.
            voted: bool per tensor in the same shapes, from `server.aggregation.average.voted`.
        """
        if self.is_plain:
            return update
        # statistics are averages, not steps downhill: momentum would carry a running variance below 0
        return {name: u if name in self.layout.statistics else self._move(name, u, voted[name]) for name, u in update.items()}

    def drop(self, masks: Masks) -> None:
        """Forget the state of inactive weights, so that a weight that was dropped and grown back starts afresh.

        Args:
            masks: bool per masked tensor. Call after a drop and before the growth of the same update, which may grow back what was
                dropped; and before a growth without a drop, as a second moment decays at inactive weights that count as voted.
        """
        for name, mask in masks.items():
            self._forget(name, ~mask)

    def snapshot(self) -> Snapshot:
        """All that changes from round to round, see `server.snapshot`."""
        return under("first", self.first) | under("second", self.second)

    def restore(self, snapshot: Snapshot) -> None:
        """Go on where `snapshot` was taken."""
        self.first, self.second = (in_order(self.layout.shapes, within(part, snapshot)) for part in ("first", "second"))

    def _move(self, name: str, u: np.ndarray, moves: np.ndarray) -> np.ndarray:
        config = self.config
        step = u.copy()  # where nobody voted it stays as it is: 0, or an erased coordinate
        if config.name == "sgd":
            step[moves] *= config.lr
            return step
        first = self.first.setdefault(name, np.zeros(u.shape))
        if config.name == "momentum":
            first[moves] = config.momentum * first[moves] + u[moves]
            step[moves] = config.lr * first[moves]
        else:
            if name not in self.second:
                self.second[name] = np.full(u.shape, config.tau**2)
            second = self.second[name]
            first[moves] = config.beta1 * first[moves] + (1 - config.beta1) * u[moves]
            second[moves] = config.beta2 * second[moves] + (1 - config.beta2) * u[moves] ** 2
            step[moves] = config.lr * first[moves] / (np.sqrt(second[moves]) + config.tau)
        self._forget(name, ~moves & (u != 0))
        return step

    def _forget(self, name: str, where: np.ndarray) -> None:
        """Back to the start: 0, and tau^2 for a second moment."""
        if name in self.first:
            self.first[name][where] = 0.0
        if name in self.second:
            self.second[name][where] = self.config.tau**2
