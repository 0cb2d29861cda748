"""Section [masks]: where the first mask of a run comes from, how dense each layer is, and what changes the mask later."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from sparcl_core.plugins.kinds import Kind

SCHEMES = Kind(
    setting="masks.scheme",
    noun="scheme",
    group="sparcl.schemes",
    ours={
        "tdm": "sparcl_core.sparsity.schemes:TDM",
        "set": "sparcl_core.sparsity.set:SET",
        "rigl": "sparcl_core.sparsity.rigl:RigL",
        "packnet": "sparcl_core.sparsity.packnet:PackNet",
        "static": "sparcl_core.sparsity.scheme:Scheme",
    },
)


@dataclass(frozen=True)
class MaskConfig:
    """Settings of the weight masks; docs/sparsity.md compares the schemes.

    Attributes:
        scheme: what changes the masks: `tdm` (SparCL, by section [tdm]), `set` (Mocanu et al. 2018), `rigl` (Evci et al. 2020),
            `packnet`, for the methods `packnet` and `lps`, or `static`: nothing does; or a class derived from
            `sparcl_core.sparsity.scheme.Scheme`, of an installed package or by its path.
        initial: the first mask: `random`; `magnitude`, the largest initial weights, drawn or from model.weights; or `snip`, the weights
            of highest connection sensitivity on data of the first task (Lee et al. 2019).
        densities: `uniform`, every layer as sparse as the network; `erk`, Erdos-Renyi-Kernel (Evci et al. 2020), as dense as a layer is
            narrow; `global`, one ranking of all layers' weights, as SNIP is published: for `magnitude` and `snip`.
        exchange: share of a layer's active weights that an update exchanges: SET's zeta, RigL's drop fraction at the start of a task.
        until: share of a task's epochs in which updates happen; None: 0.75 for rigl, 1 for set. Of packnet: behind which it
            prunes; None: 0.7.
        stage_epochs: epochs between updates; 0 takes max(1, round(K / 10)). SET's paper has 1.
        batches: batches of current data that RigL's gradients and SNIP's sensitivity are computed from; 0: all of the task's data once.
    """

    read_with: ClassVar[dict[str, tuple[str, ...]]] = {
        "sparsity": ("scheme", "initial", "densities", "exchange", "until", "stage_epochs", "batches"),
        "masks.scheme=set|rigl": ("exchange",),
        "masks.scheme=set|rigl|packnet": ("until", "stage_epochs"),
        "masks.scheme=rigl or masks.initial=snip": ("batches",),
    }
    scheme: str = "tdm"
    initial: Literal["random", "magnitude", "snip"] = "random"
    densities: Literal["uniform", "erk", "global"] = "uniform"
    exchange: float = 0.3
    until: float | None = None
    stage_epochs: int = 0
    batches: int = 1

    def __post_init__(self):
        SCHEMES.offer(self.scheme)
        if self.densities == "global" and self.initial == "random":
            raise ValueError("densities is 'global', but initial 'random' ranks nothing: take initial=snip or magnitude, or densities=erk")
        if not 0 < self.exchange < 1:
            raise ValueError(f"exchange is {self.exchange}: a share of the active weights, in (0, 1); scheme=static exchanges none")
        if self.until is not None and not 0 < self.until <= 1:
            raise ValueError(f"until is {self.until}: a share of a task's epochs, in (0, 1]")
        if self.stage_epochs < 0 or self.batches < 0:
            raise ValueError(f"stage_epochs is {self.stage_epochs}, batches {self.batches}: neither may be negative")
