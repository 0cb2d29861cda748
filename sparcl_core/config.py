"""How a device learns, as settings: backbone, kernels, learning method, optimiser, and the three mechanisms.

Imports no PyTorch, so that settings are checked before its seconds of import.
"""

import math
import re
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from sparcl_core.batches import LastBatch
from sparcl_core.plugins.kinds import OURS, Kind
from sparcl_core.sparsity import dgm as gradient_masking
from sparcl_core.sparsity.ddr import DDRConfig
from sparcl_core.sparsity.dgm import DGMConfig
from sparcl_core.sparsity.scheme import Scheme
from sparcl_core.sparsity.schemes import make_scheme
from sparcl_core.sparsity.settings import MaskConfig
from sparcl_core.sparsity.tdm import TDMConfig

Augmentation = Literal["none", "crop", "crop-flip"]
Option = bool | int | float | str
MODELS = Kind(
    setting="model.name",
    noun="model",
    group="sparcl.models",
    ours={
        "mlp": "sparcl_core.networks.small:mlp",
        "cnn": "sparcl_core.networks.small:cnn",
        "resnet18": "sparcl_core.networks.resnet:resnet18",
        "mobilenetv2": "sparcl_core.networks.mobile:mobilenet_v2",
        "mobilenetv3-small": "sparcl_core.networks.mobile:mobilenet_v3_small",
        "efficientnet-b0": "sparcl_core.networks.mobile:efficientnet_b0",
        "vit-tiny": "sparcl_core.networks.transformer:vit_tiny",
    },
)


@dataclass(frozen=True)
class ModelConfig:
    """Backbone settings.

    Attributes:
        name: `mlp`, `cnn`, `resnet18`, `mobilenetv2`, `mobilenetv3-small`, `efficientnet-b0` or `vit-tiny` (`sparcl_core.networks`); one of
            an installed package; or `package.module:make`, called with input_shape [C, H, W], num_classes and the `options`, which returns
            an `nn.Module` from [B, C, H, W] to logits [B, num_classes].
        width: channels of the first layer, units of a hidden layer (mlp) or features of a token (vit-tiny); for the models of ours.
        hidden: units of the fully connected layer of the cnn; not used by the others.
        options: for a model that is not of ours: what else it is called with.
        sparse: regular expressions of names of weights that may be sparse; empty: those of hidden convolutions and linear layers, see
            `sparcl_core.networks.sparse_rule`.
        rescale: multiply the kept weights by 1/sqrt(density) at initialisation. It keeps the scale of activations, which
            a normalisation behind the layer does anyway; there it only makes every step smaller relative to its weight.
        dtype: float32, or float64 for parity checks.
        weights: a safetensors file of weights to start from, of this model's names and shapes (see `.networks.pretrained`); empty: drawn.
        classifier: the last layer, where there is such a file: `read` from it, or `drawn`, whether it is in there or not.
        weights_sha256: of that file, as the run has found it; empty: not looked at yet.
    """

    read_with: ClassVar[dict[str, tuple[str, ...]]] = {
        "model.name=cnn": ("hidden",),
        "model.name=mlp|cnn|resnet18|mobilenetv2|mobilenetv3-small|efficientnet-b0|vit-tiny": ("width",),
        "sparsity": ("sparse", "rescale"),
    }
    name: str = "cnn"
    width: int = 32
    hidden: int = 128
    options: dict[str, Option | list[Option]] = field(default_factory=dict, hash=False)
    sparse: tuple[str, ...] = ()
    rescale: bool = False
    dtype: Literal["float32", "float64"] = "float32"
    weights: str = ""
    classifier: Literal["read", "drawn"] = "read"
    weights_sha256: str = ""

    def __post_init__(self):
        if not self.weights and (self.weights_sha256 or self.classifier != "read"):
            raise ValueError("weights is empty: classifier and weights_sha256 say how its file is read; name one, or leave them out")
        for pattern in self.sparse:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"sparse has {pattern!r}, which is no regular expression: {error}") from error
        if self.width < 1 or self.hidden < 1:
            raise ValueError(f"width is {self.width} and hidden {self.hidden}: both must be at least 1")
        if self.is_ours:
            self._check_ours()

    def _check_ours(self) -> None:
        if self.options:
            raise ValueError(
                f"options has {next(iter(self.options))!r}, but {self.name} reads width and hidden: options are for a model of your own"
            )
        if self.name == "cnn" and self.width % 8:
            raise ValueError(f"width is {self.width}: the cnn normalises over 8 groups, so take a multiple of 8")
        if self.name == "resnet18" and self.width < 8:  # seen with torch 2.15, widths 2 to 6, images of 8x8 and 16x16: the process aborts
            raise ValueError(f"width is {self.width}: torch's backward pass of so narrow a resnet18 damages memory; take 8 or more")
        if self.name in ("mobilenetv2", "mobilenetv3-small", "efficientnet-b0") and self.width % 8:
            near = max(8, round(self.width / 8) * 8)
            raise ValueError(f"width is {self.width}: channels of a {self.name} are multiples of 8, so take one such as {near}")
        if self.name == "vit-tiny" and self.width > 64 and self.width % 64:
            raise ValueError(f"width is {self.width}: each head of a vit-tiny has 64 features, so take up to 64 or a multiple, such as 192")

    @property
    def is_ours(self) -> bool:
        """Is it a model of this project?"""
        return MODELS.offer(self.name).origin == OURS


@dataclass(frozen=True)
class KernelConfig:
    """How sparse layers are computed.

    Attributes:
        mode: `auto`: by measurement; `sparse`: on the kernels, where there are any; `dense`: PyTorch's product with a masked weight.
        allow_bf16: let `auto` also choose dense products in bfloat16, whose results differ.
        backend: the instruction set that the choice was made for; empty: it is still to be made, and until it is, `auto` is `sparse`.
        sparse, bf16: the layers (names of weights) that run on the kernels and in bfloat16, once the choice is made; all others run dense.
    """

    read_with: ClassVar[dict[str, tuple[str, ...]]] = {"kernels.mode=auto": ("allow_bf16",)}
    mode: Literal["auto", "sparse", "dense"] = "auto"
    allow_bf16: bool = False
    backend: str = ""
    sparse: tuple[str, ...] = ()
    bf16: tuple[str, ...] = ()

    def __post_init__(self):
        if (self.sparse or self.bf16) and not self.backend:
            raise ValueError(
                "kernels.sparse and kernels.bf16 are what a run has chosen: they need kernels.backend, the machine it was chosen for"
            )
        if both := set(self.sparse) & set(self.bf16):
            raise ValueError(f"kernels.sparse and kernels.bf16 both have {sorted(both)[0]}: a layer runs in one way")


@dataclass(frozen=True)
class LearnerConfig:
    """Settings of the learning method and its optimiser. A method with settings of its own has a `Config` that is derived from this.

    Attributes:
        method: derpp or another of `sparcl_core.methods.registry` (docs/methods.md), or `package.module:name` for one of the user's own.
        lr: learning rate of SGD.
        batch_size: samples per step, and per buffer draw (mammoth's minibatch_size).
        alpha: weight of the distillation term of der and derpp.
        beta: weight of the replayed cross-entropy of derpp.
        replay_weight: weight of the replayed cross-entropy of er. mammoth's steps are those of weight 1 and half of its lr, see
            `sparcl_core.methods.er`.
        single_head: the current term sees the current task's classes only (SparCL's use_cl_mask).
        replay_from: `first-sample`, or `second-task` as in the released code.
        buffer_share: buffer capacity as a share of the device's whole stream, rounded up; used where buffer_size is 0.
        buffer_size: buffer capacity in samples.
        augment: none, crop, or crop-flip.
        last_batch: what becomes of an epoch's samples that do not fill its last batch: `keep`, a smaller batch of their own; `join`, they
            join the batch before it; `drop`, they are left out of this epoch, and counted. Where the net cannot be trained on the single
            sample that is left (BatchNorm over 1x1, see `sparcl_core.batches`), `keep` joins it, too.
        joint_forward: current data and replay draws run in one forward pass where the model allows it (no BatchNorm);
            the same mathematics, fewer calls, more activation memory.
        flops_budget: FLOPs that the steps of a round (alone: of a session) may take; 0: any. No step is taken that would go beyond it,
            except for the first; the round counts with all of its epochs in every schedule. What is computed between steps comes on top:
            importance of weights, and what a method computes where a task begins or ends.
    """

    read_with: ClassVar[dict[str, tuple[str, ...]]] = {"no learner.buffer_size": ("buffer_share",)}
    method: str = "derpp"
    lr: float = 0.03
    batch_size: int = 32
    alpha: float = 0.1
    beta: float = 0.5
    replay_weight: float = 1.0
    single_head: bool = True
    replay_from: Literal["first-sample", "second-task"] = "first-sample"
    buffer_share: float = 0.1
    buffer_size: int = 0
    augment: Augmentation = "none"
    last_batch: LastBatch = "keep"
    joint_forward: bool = True
    flops_budget: float = 0.0

    def __post_init__(self):
        if not 0 <= self.flops_budget < math.inf:
            raise ValueError(f"flops_budget is {self.flops_budget}: finite and not negative; 0 is no budget")
        if not 0 < self.lr < math.inf:
            raise ValueError(f"lr is {self.lr}: the learning rate must be above 0 and finite")
        if self.batch_size < 1:
            raise ValueError(f"batch_size is {self.batch_size}: a batch holds at least 1 sample")
        if not 0 <= self.buffer_share <= 1 or self.buffer_size < 0:
            raise ValueError(f"buffer_share is {self.buffer_share} and buffer_size {self.buffer_size}: take [0, 1] and >= 0")
        if self.last_batch not in ("keep", "join", "drop"):
            raise ValueError(f"last_batch is {self.last_batch!r}: choose keep, join or drop")
        for name in ("alpha", "beta", "replay_weight"):
            weight_of_a_loss(name, getattr(self, name))


def weight_of_a_loss(name: str, value: float) -> None:
    """Raises ValueError if `value` is none."""
    if not 0 <= value < math.inf:
        raise ValueError(f"{name} is {value}: a loss weight must be finite and may not be negative")


@dataclass(frozen=True)
class CorrectionConfig:
    """What corrects the steps of devices. name: see `sparcl_core.methods.registry.CORRECTIONS`; mu: weight of FedProx's term."""

    name: str = "none"
    mu: float = 0.0


@dataclass(frozen=True)
class MethodConfig:
    """How a device learns: backbone, learning method, correction of its steps, sparsity, where it comes from, and the three mechanisms.

    Raises:
        ValueError: where two settings contradict each other: sparsity outside [0, 1), q below s.
    """

    model: ModelConfig
    learner: LearnerConfig
    tdm: TDMConfig
    ddr: DDRConfig
    dgm: DGMConfig
    sparsity: float
    kernels: KernelConfig = field(default_factory=KernelConfig)
    masks: MaskConfig = field(default_factory=MaskConfig)
    correction: CorrectionConfig = field(default_factory=CorrectionConfig)

    def __post_init__(self):
        if not 0 <= self.sparsity < 1:
            raise ValueError(f"sparsity is {self.sparsity}: it must be in [0, 1); 0 trains the dense network")
        if self.is_sparse and self.dgm.enabled:
            gradient_masking.gradient_sparsity(self.dgm, self.sparsity)

    @property
    def is_sparse(self) -> bool:
        return self.sparsity > 0

    @property
    def asks_first(self) -> bool:
        """Is the first mask found on data?"""
        return self.is_sparse and self.masks.initial == "snip"

    @property
    def first_sparsity(self) -> float:
        """Of the first mask, the densest that a device must have room for."""
        return 0.0 if self.scheme(task_epochs=1, seed=0).begins_dense else self.sparsity

    def scheme(self, task_epochs: int, seed: int) -> Scheme:
        """What changes the masks, in tasks of so many epochs."""
        return make_scheme(self.masks, self.tdm, self.sparsity, task_epochs=task_epochs, seed=seed)
