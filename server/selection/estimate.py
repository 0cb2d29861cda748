"""What a round would take a device, by formula, before anything was trained: for choosing a cohort, budgets, and deadlines nobody meets.

A round of e epochs over n samples in batches of b has ceil(n / b) steps an epoch; what a step takes besides its batch, draws from a buffer
or a teacher, is the learning method's to say. The estimate takes all n samples and full replay; the least that can be is e epochs over the
share of the data that data removal leaves at the end, without either, and nothing sent back. What a method computes where a task begins or
ends is not estimated.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from server.fleet.hardware import Hardware
from sparcl_core.batches import largest_batch
from sparcl_core.config import MethodConfig
from sparcl_core.costs.flops import Layers, Passes, per_sample
from sparcl_core.costs.memory import Held, footprint
from sparcl_core.methods.base import LearningMethod
from sparcl_core.methods.correction import Correction
from sparcl_core.methods.registry import make_correction, make_method
from sparcl_core.sparsity.densities import active_counts


@dataclass(frozen=True, kw_only=True)
class Level:
    """A sparsity, and what it means for one model.

    Attributes:
        sparsity: s; 0 is the dense model.
        sparse_flops, dense_flops: of one sample in a training step, in layers that may be sparse and in all others.
        sparse_forward, dense_forward: of them a forward pass alone.
        held: weights and buffers that a device holds.
        bytes: of the model as float32, the measure of a message until one was sent.
    """

    sparsity: float
    sparse_flops: int
    dense_flops: int
    sparse_forward: int
    dense_forward: int
    held: int
    bytes: int


@dataclass(frozen=True, eq=False)
class Workload:
    """A round's work on any device.

    Attributes:
        method, epochs: settings of the learner, local epochs of a round.
        layers, model: of the dense model.
        shapes: of the tensors that are sparse; empty for a dense run.
        moved: activation bytes of one sample.
        input_bytes, classes: of a sample in the buffer.
        is_joint: current data and replay share one forward pass.
        least: samples that a batch has at least.
    """

    method: MethodConfig
    epochs: int
    layers: Layers
    model: Held
    shapes: dict[str, tuple[int, ...]]
    moved: int
    input_bytes: int
    classes: int
    is_joint: bool
    least: int = 1

    @cached_property
    def masked(self) -> dict[str, int]:
        """Sizes of the tensors that are sparse."""
        return {name: math.prod(shape) for name, shape in self.shapes.items()}

    @cached_property
    def learning(self) -> LearningMethod:
        """The learning method of `method`."""
        return make_method(self.method.learner)

    @cached_property
    def correcting(self) -> Correction:
        """The correction of the steps."""
        return make_correction(self.method.correction, self.method.learner.lr)

    def level(self, sparsity: float) -> Level:
        """The work at `sparsity`, gradient masks as dense as their settings say in proportion."""
        method, active = self.method, self._active(sparsity)
        share = 1.0
        if method.is_sparse and method.dgm.enabled:
            share = method.dgm.keep if method.dgm.sparsity is None else (1 - method.dgm.sparsity) / (1 - method.sparsity)
        updated = {name: max(1, round(share * count)) for name, count in active.items()}
        cost = per_sample(self.layers, active, updated)
        held = self.model.active_weights(active)
        return Level(
            sparsity=sparsity, sparse_flops=cost.sparse, dense_flops=cost.dense, sparse_forward=cost.forward_sparse,
            dense_forward=cost.forward - cost.forward_sparse, held=held, bytes=held * 4,
        )  # fmt: skip

    def memory(self, sparsity: float, buffered: np.ndarray, samples: np.ndarray) -> np.ndarray:
        """Bytes [n] that training needs, as `footprint` counts them.

        Args:
            buffered: [n], samples that the devices' buffers can hold.
            samples: [n], the most that a device has in a step: no batch is larger.
        """
        method, scheme = self.method, self.method.scheme(task_epochs=1, seed=0)
        active = self._active(0.0 if scheme.begins_dense else sparsity)
        batch = largest_batch(samples, method.learner.batch_size, self.least, method.learner.last_batch)
        in_flight = self.learning.samples_per_forward(batch, self.is_joint)
        per_sample_held = self.input_bytes + 8 + self.classes * self.model.itemsize
        arrays = self.learning.arrays_bytes(self.model, active, buffered=buffered, classes=self.classes)
        ranked = scheme.gradients_held(self.masked.values())
        need = footprint(self.model, active=active, updated=active, activations=0, method_bytes=0, federated=True, ranked=ranked)
        kept = buffered * per_sample_held + self.learning.kept_samples(samples) * (self.input_bytes + 8)
        return need.total + self.moved * in_flight + kept + arrays + self.correcting.arrays_bytes(self.model, active)

    @cached_property
    def dense_memory(self) -> int:
        """Bytes that one forward and backward pass of a batch through the dense network needs: weights, gradients and activations."""
        activations = self.moved * self.method.learner.batch_size
        return footprint(self.model, active={}, updated={}, activations=activations, method_bytes=0, federated=False).total

    def _active(self, sparsity: float) -> dict[str, int]:
        return active_counts(self.method.masks.densities, self.shapes, sparsity)

    @property
    def layer_passes(self) -> int:
        """Layers that the forward passes of a step go through."""
        return len(self.layers) * self.learning.forward_passes(self.is_joint)

    def passes(self, samples: np.ndarray, least: bool = False) -> tuple[Passes, np.ndarray]:
        """Samples that go through a network in a round, and steps, [n] each."""
        learner, ddr = self.method.learner, self.method.ddr
        kept = samples * (1 - ddr.remove) if least and ddr.enabled else samples
        steps = np.ceil(kept / learner.batch_size)
        if least and (learner.last_batch != "keep" or self.least > 1):  # the rest may be dropped, or have no step of its own
            steps = np.maximum(np.floor(kept / learner.batch_size), np.minimum(steps, 1))
            if learner.last_batch == "drop":
                kept = np.minimum(kept, steps * learner.batch_size)
        current = self.epochs * kept
        passes = self.learning.step_passes(current, 0 * current, {}) if least else self.learning.step_passes(current, current)
        return passes, self.epochs * steps


class Estimates:
    """Seconds and joules of a round on every device of a fleet."""

    def __init__(self, hardware: Hardware, workload: Workload, levels: tuple[Level, ...], level_of: np.ndarray):
        """`level_of`: [N] int64, into `levels`; negative: the device cannot take part."""
        self.workload, self.levels, self.level_of = workload, levels, level_of
        column = hardware.column
        rate = column("flops_per_s")
        is_sparse = workload.method.is_sparse
        self._dense_rate = rate * column("efficiency")
        self._sparse_rate = rate * column("sparse_efficiency") if is_sparse else self._dense_rate
        self._moved_rate, self._step_s = column("moved_bytes_per_s"), column("step_s") + workload.layer_passes * column("layer_s")
        self._down, self._up, self._latency, self._jitter = (
            column(name) for name in ("down_bits_per_s", "up_bits_per_s", "latency_s", "jitter_s")
        )
        self._watts, self._per_flop = column("active_w"), column("j_per_flop")
        self._radio_watts, self._per_byte = column("idle_w") + column("radio_w"), column("radio_j_per_byte")

    def train_s(self, devices: np.ndarray, samples: np.ndarray, level: np.ndarray | None = None, least: bool = False) -> np.ndarray:
        """Seconds of training, [n]. `level`: into `levels`, default the devices' own."""
        level = self.level_of[devices] if level is None else level
        passes, steps = self._work(samples, level, least)
        sparse_rate, dense_rate = self._sparse_rate[devices], self._dense_rate[devices]
        seconds = passes.trained * (self._of("sparse_flops", level) / sparse_rate + self._of("dense_flops", level) / dense_rate)
        seconds = seconds + passes.taught * (
            self._of("sparse_forward", level) / sparse_rate + self._of("dense_forward", level) / dense_rate
        )
        return seconds + passes.trained * self.workload.moved / self._moved_rate[devices] + steps * self._step_s[devices]

    def seconds(self, devices: np.ndarray, samples: np.ndarray, down: np.ndarray | float, up: np.ndarray | float) -> np.ndarray:
        """Seconds of a round, [n]. `down`, `up`: bytes."""
        transfer = 2 * (self._latency + self._jitter)[devices] + 8 * (down / self._down[devices] + up / self._up[devices])
        return self.train_s(devices, samples) + transfer

    def least_s(self, devices: np.ndarray, samples: np.ndarray, down: np.ndarray | float) -> np.ndarray:
        """A bound that no round of these devices stays below, [n] seconds: up to the end of its training."""
        return self._latency[devices] + 8 * down / self._down[devices] + 0.95 * self.train_s(devices, samples, least=True)

    def joules(
        self, devices: np.ndarray, samples: np.ndarray, down: np.ndarray | float, up: np.ndarray | float, *, level: np.ndarray | None = None
    ) -> np.ndarray:
        """Joules of a round, [n]."""
        own = self.level_of[devices] if level is None else level
        passes, _ = self._work(samples, own)
        flops = self._flops(passes, own)
        transfer = 2 * (self._latency + self._jitter)[devices] + 8 * (down / self._down[devices] + up / self._up[devices])
        joules = self.train_s(devices, samples, own) * self._watts[devices] + flops * self._per_flop[devices]
        return joules + transfer * self._radio_watts[devices] + (down + up) * self._per_byte[devices]

    def _work(self, samples: np.ndarray, level: np.ndarray, least: bool = False) -> tuple[Passes, np.ndarray]:
        """As `Workload.passes`, as far as the budget of FLOPs goes. At least that is a step, whose samples may be few."""
        passes, steps = self.workload.passes(samples, least)
        budget = self.workload.method.learner.flops_budget
        if not budget:
            return passes, steps
        share = 0.0 if least else np.minimum(1.0, budget / np.maximum(self._flops(passes, level), 1.0))
        share = np.maximum(share, 1.0 / np.maximum(steps, 1.0)) * (1.0 if not least else 1.0 / self.workload.method.learner.batch_size)
        return Passes(passes.current * share, passes.replayed * share, passes.taught * share), steps * share

    def _flops(self, passes: Passes, level: np.ndarray) -> np.ndarray:
        """FLOPs of the passes, [n]."""
        trained = self._of("sparse_flops", level) + self._of("dense_flops", level)
        return passes.trained * trained + passes.taught * (self._of("sparse_forward", level) + self._of("dense_forward", level))

    def _of(self, name: str, level: np.ndarray) -> np.ndarray:
        """A figure of levels, [n]."""
        return np.array([getattr(one, name) for one in self.levels])[level]
