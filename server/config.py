"""Settings of the federation."""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal


@dataclass(frozen=True)
class FederationConfig:
    """Settings of the federation.

    Attributes:
        rounds_per_task: rounds of one task.
        rounds: of the whole run; 0: as many as its tasks have.
        local_epochs: epochs a device trains in a round.
        cohort_size: devices per round, drawn from those with data; 0 takes all of them, and then those without data have ledger rows
            that say so.
        mask: `shared`, the server updates one mask for all between rounds; `local`, every device adapts its own within a round and the
            server thins what comes back to the target sparsity (FedDST, Bibikar et al. 2022; all of it with `masks.scheme = "rigl"`).
        batchnorm: what happens to BatchNorm's running statistics. `global`: they cross the wire and are averaged like weights;
            `local`: they stay on the device (SiloBN, Andreux et al. 2020), and the global model is evaluated with their average;
            `recompute`: before an evaluation devices recompute those of the global model in one pass (HeteroFL, Diao et al. 2021);
            `fedbn`: statistics, weights and biases of BatchNorm stay on the device (FedBN, Li et al. 2021), whose own model is evaluated.
        correction: of the devices' steps, see `sparcl_core.methods.correction`: none (FedAvg), fedprox or scaffold, or
            `package.module:name`.
        mu: weight of FedProx's term, which keeps a device's model near the one that it was sent; 0 is FedAvg.
    """

    read_with: ClassVar[dict[str, tuple[str, ...]]] = {"sparsity": ("mask",)}
    rounds_per_task: int = 10
    local_epochs: int = 2
    cohort_size: int = 0
    mask: Literal["shared", "local"] = "shared"
    batchnorm: Literal["global", "local", "recompute", "fedbn"] = "global"
    rounds: int = 0
    correction: str = "none"
    mu: float = 0.0

    def __post_init__(self):
        if self.rounds_per_task < 1 or self.local_epochs < 1:
            raise ValueError(f"rounds_per_task is {self.rounds_per_task}, local_epochs {self.local_epochs}: both at least 1")
        if self.rounds < 0:
            raise ValueError(f"rounds is {self.rounds}: a number of rounds, or 0 for those of all tasks")
        if self.cohort_size < 0:
            raise ValueError(f"cohort_size is {self.cohort_size}: 0 for all devices, or a number of devices")
        if not 0 <= self.mu < math.inf:
            raise ValueError(f"mu is {self.mu}: the weight of FedProx's term must be finite and may not be negative")
        if self.mu and self.correction in ("none", "scaffold"):
            raise ValueError(f"mu is {self.mu}, but correction is {self.correction!r}: mu is FedProx's; set correction=fedprox, or mu=0")

    @property
    def task_epochs(self) -> int:
        """K: local epochs of a whole task."""
        return self.rounds_per_task * self.local_epochs
