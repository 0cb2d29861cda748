"""How a device learns, as settings: backbone, replay method, optimiser, and the three mechanisms; and what of it crosses the wire."""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch

from sparcl_core import dgm as gradient_masking
from sparcl_core.batches import LastBatch
from sparcl_core.codec import Layout
from sparcl_core.ddr import DDRConfig
from sparcl_core.dgm import DGMConfig
from sparcl_core.inputs import Augmentation
from sparcl_core.kernels.choice import KernelConfig
from sparcl_core.models import ModelConfig, read_state, sparse_names
from sparcl_core.tdm import TDMConfig


@dataclass(frozen=True)
class LearnerConfig:
    """Settings of the replay method and its optimiser.

    Attributes:
        method: sgd, er, der or derpp.
        lr: learning rate of SGD.
        batch_size: samples per step, and per buffer draw (mammoth's minibatch_size).
        alpha: weight of the distillation term of der and derpp.
        beta: weight of the replayed cross-entropy of derpp.
        replay_weight: weight of the replayed cross-entropy of er.
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
    """

    method: Literal["sgd", "er", "der", "derpp"] = "derpp"
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

    def __post_init__(self):
        if not self.lr > 0:
            raise ValueError(f"lr is {self.lr}: the learning rate must be above 0")
        if self.batch_size < 1:
            raise ValueError(f"batch_size is {self.batch_size}: a batch holds at least 1 sample")
        if not 0 <= self.buffer_share <= 1 or self.buffer_size < 0:
            raise ValueError(f"buffer_share is {self.buffer_share} and buffer_size {self.buffer_size}: take [0, 1] and >= 0")
        if self.last_batch not in ("keep", "join", "drop"):
            raise ValueError(f"last_batch is {self.last_batch!r}: choose keep, join or drop")
        for name in ("alpha", "beta", "replay_weight"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}: a loss weight may not be negative")

    def buffer_capacity(self, stream_samples: int) -> int:
        """Buffer capacity of a device whose stream has `stream_samples` samples; 0 for sgd."""
        if self.method == "sgd":
            return 0
        return self.buffer_size or int(np.ceil(self.buffer_share * stream_samples - 1e-9))


@dataclass(frozen=True)
class MethodConfig:
    """How a device learns: backbone, replay method, weight sparsity and the three mechanisms.

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

    def __post_init__(self):
        if not 0 <= self.sparsity < 1:
            raise ValueError(f"sparsity is {self.sparsity}: it must be in [0, 1); 0 trains the dense network")
        if self.is_sparse and self.dgm.enabled:
            gradient_masking.gradient_sparsity(self.dgm, self.sparsity)

    @property
    def is_sparse(self) -> bool:
        return self.sparsity > 0


def make_layout(model: torch.nn.Module, method: MethodConfig) -> Layout:
    """Every floating-point parameter and buffer of `model`; masked are those that are sparse, statistics the buffers."""
    shapes = {name: value.shape for name, value in read_state(model).items()}
    statistics = shapes.keys() - dict(model.named_parameters()).keys()
    return Layout(shapes, frozenset(sparse_names(model, method.model) if method.is_sparse else ()), frozenset(statistics))
