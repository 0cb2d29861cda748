"""How sparse a device's model is, from what its memory and its energy allow; the masks of weaker devices lie within those of stronger ones.

A tier is a sparsity. Every device is in the densest tier whose work fits its budgets: the first of the experiment's own sparsity and the
`levels` above it. The masks of a sparser tier are the largest weights of the shared mask, as many per layer as its sparsity allows: nested,
as the widths of HeteroFL (Diao et al., ICLR 2021) and FjORD (Horvath et al., NeurIPS 2021), but of single weights. Its devices are sent and
send these weights alone, and a coordinate is averaged over the devices that hold it.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from server.fleet.hardware import Hardware
from server.selection.estimate import Estimates, Level, Workload


@dataclass(frozen=True)
class BudgetConfig:
    """Section [budget]: what a round may take of a device.

    Attributes:
        memory: what becomes of a device whose memory is too small for training at the experiment's sparsity: `refuse` it, `fit` a higher
            sparsity to it, or `ignore` it.
        joules_per_round: energy that a round may take, by estimate; 0: any. A device beyond it is refused, or with `memory = "fit"` given
            a higher sparsity.
        levels: the higher sparsities to choose from, ascending.
    """

    read_with: ClassVar[dict[str, tuple[str, ...]]] = {"sparsity": ("levels",), "budget.memory=fit": ("levels",)}
    memory: Literal["refuse", "fit", "ignore"] = "refuse"
    joules_per_round: float = 0.0
    levels: tuple[float, ...] = (0.9, 0.95, 0.97, 0.98, 0.99)

    def __post_init__(self):
        if self.memory not in ("refuse", "fit", "ignore"):
            raise ValueError(f"memory is {self.memory!r}: choose refuse, fit or ignore")
        if not 0 <= self.joules_per_round < float("inf"):
            raise ValueError(f"joules_per_round is {self.joules_per_round}: finite and not negative; 0 is no budget")
        levels = list(self.levels)
        if levels != sorted(set(levels)) or not all(0 < level < 1 for level in levels):
            raise ValueError(f"levels are {levels}: sparsities in (0, 1), ascending, none twice")


@dataclass(frozen=True, eq=False)
class Tiers:
    """Who trains how sparse.

    Attributes:
        levels: of the tiers that have devices, ascending in sparsity; the first is the experiment's own.
        of: [N] int64, the tier of each device, -1: it cannot take part.
        reasons: device -> why it cannot.
        minds_memory: what does not fit into a device's memory is not asked of it.
    """

    levels: tuple[Level, ...]
    of: np.ndarray
    reasons: dict[int, str]
    minds_memory: bool = True

    @property
    def sparsities(self) -> tuple[float, ...]:
        return tuple(level.sparsity for level in self.levels)


def assign(config: BudgetConfig, workload: Workload, hardware: Hardware, *, buffered: np.ndarray, samples: np.ndarray) -> Tiers:
    """The tiers of a fleet.

    Args:
        buffered: [N] int64, samples that a device's buffer can hold.
        samples: [N] int64, the most samples that a device has for a round.
    """
    own = workload.method.sparsity
    sparser = [level for level in config.levels if level > own] if config.memory == "fit" and workload.method.is_sparse else []
    levels = [workload.level(sparsity) for sparsity in (own, *sparser)]
    count = len(hardware)
    tier, devices = np.full(count, -1, np.int64), np.arange(count)
    memory = hardware.column("memory_bytes")
    estimates = Estimates(hardware, workload, tuple(levels), np.zeros(count, np.int64))
    needs_of, joules_of = [], []
    for number, level in enumerate(levels):
        needs = workload.memory(level.sparsity, buffered, samples)
        joules = estimates.joules(devices, samples, level.bytes, level.bytes, level=np.full(count, number))
        needs_of.append(needs)
        joules_of.append(joules)
        fits = (needs <= memory) | (config.memory == "ignore")
        if config.joules_per_round:
            fits &= joules <= config.joules_per_round
        tier[(tier < 0) & fits] = number
    reasons = {}
    for device in np.flatnonzero(tier < 0).tolist():
        at = f"at sparsity {levels[-1].sparsity:g}"
        if config.memory != "ignore" and needs_of[-1][device] > memory[device]:
            reasons[device] = f"training needs {needs_of[-1][device]:,.0f} bytes {at}, the device has {memory[device]:,.0f}"
        else:
            reasons[device] = f"a round takes {joules_of[-1][device]:.3g} J {at}, its budget is {config.joules_per_round:g} J"
    used = sorted({0, *np.unique(tier[tier >= 0]).tolist()})
    place = {old: new for new, old in enumerate(used)} | {-1: -1}
    of = np.array([place[old] for old in tier.tolist()], np.int64)
    return Tiers(tuple(levels[number] for number in used), of, reasons, minds_memory=config.memory != "ignore")
