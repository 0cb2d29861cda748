"""Settings of the average, and the rules by their names."""

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from sparcl_core.plugins.kinds import Kind

OURS = {
    "masked-mean": "server.aggregation.masked_mean:MaskedMean",
    "zero-filled": "server.aggregation.zero_filled:ZeroFilled",
    "count-mean": "server.aggregation.count_mean:CountMean",
    "median": "server.aggregation.median:Median",
    "trimmed-mean": "server.aggregation.trimmed_mean:TrimmedMean",
    "krum": "server.aggregation.krum:Krum",
    "multi-krum": "server.aggregation.krum:MultiKrum",
    "rfa": "server.aggregation.rfa:GeometricMedian",
}
RULES = Kind(setting="aggregation.rule", noun="rule", group="sparcl.rules", ours=OURS)


@dataclass(frozen=True)
class AggregationConfig:
    """Settings of the average; the formulas stand with the rules, what is done around them in `server.aggregation.average`.

    Attributes:
        rule: `masked-mean`, `zero-filled`, `count-mean`, or one that a few hostile devices cannot move far: `median`, `trimmed-mean`,
            `krum`, `multi-krum`, `rfa`; or one of an installed package, or `package.module:name`.
        options: of a rule that has some of its own: `trim` of `trimmed-mean`, `byzantine` of `krum`, `byzantine` and `keep` of
            `multi-krum`.
        unheld: what becomes of a masked coordinate that fewer than `min_votes` devices hold: `keep` the server's value or `zero` it.
        min_votes: devices (not samples) that must hold a coordinate to move it. More than the cohort has means that nothing moves,
            dense tensors included.
        shrinkage: weight of the server's own value as a share of all samples of the round; 0 for none.
        row_voting: classifier rows are averaged over the devices that have seen the class.
        stale: what the weight of an old update does: `shrink` its step, or `normalise`, only its say beside the others.
        clip: an update that is more than so many times as large as the largest median of a round so far is scaled down to the median of its
            own, see `server.defence.clipping`. 0: none is.
        probation: updates for which a device is on probation then: what stands out of its round is refused. 0: none.
    """

    read_with: ClassVar[dict[str, tuple[str, ...]]] = {
        "clock.mode=semi-sync|async": ("stale",),
        "sparsity": ("unheld",),
        "aggregation.clip": ("probation",),
    }
    rule: str = "masked-mean"
    options: dict[str, Any] = field(default_factory=dict)
    unheld: Literal["keep", "zero"] = "keep"
    min_votes: int = 1
    shrinkage: float = 0.0
    row_voting: bool = True
    stale: Literal["shrink", "normalise"] = "shrink"
    clip: float = 5.0
    probation: int = 10

    def __post_init__(self):
        RULES.offer(self.rule)
        if self.unheld not in ("keep", "zero"):
            raise ValueError(f"unheld is {self.unheld!r}: keep the server's value or zero it; choose keep or zero")
        if self.min_votes < 1:
            raise ValueError(f"min_votes is {self.min_votes}: at least 1; 1 moves whatever a single device holds")
        if not 0 <= self.shrinkage < math.inf:
            raise ValueError(f"shrinkage is {self.shrinkage}: finite and not negative; 0 switches it off")
        if self.stale not in ("shrink", "normalise"):
            raise ValueError(f"stale is {self.stale!r}: choose shrink (an old update moves the model less) or normalise")
        if not (self.clip == 0 or 1 <= self.clip < math.inf):
            raise ValueError(f"clip is {self.clip}: at least 1 times the largest median, and finite; 0 switches it off")
        if self.probation < 0:
            raise ValueError(f"probation is {self.probation}: a number of updates; 0 for none")
