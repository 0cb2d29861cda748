"""What `step` and `memory` train: a real learner between two sessions, or a plain PyTorch loop that does as much."""

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.kernels.settings import KEEP, SEED
from benchmarks.kernels.sides import LAYOUTS
from sparcl_core.config import LearnerConfig, MethodConfig
from sparcl_core.inputs import InputSpec, normalise
from sparcl_core.kernels.choice import KernelConfig
from sparcl_core.learner import Learner
from sparcl_core.methods.registry import find_method
from sparcl_core.networks.models import ModelConfig, build_model
from sparcl_core.replay.memory import Memory
from sparcl_core.seeding import generator
from sparcl_core.solo import start_model
from sparcl_core.sparsity.ddr import DDRConfig
from sparcl_core.sparsity.dgm import DGMConfig
from sparcl_core.sparsity.tdm import TDMConfig
from sparcl_core.task_data import TaskData
from sparcl_core.training import step
from sparcl_core.training.session import SessionLoop

CLASSES, BATCHES, LR = 10, 4, 0.01
INTERVAL = 30  # steps between two draws of gradient masks


def inputs(image: int) -> InputSpec:
    return InputSpec((3, image, image), CLASSES, (127.5,) * 3, (64.0,) * 3)


def samples(count: int, image: int) -> tuple[np.ndarray, np.ndarray]:
    rng = generator(SEED, "benchmark", "samples")
    return rng.integers(0, 256, (count, 3, image, image), dtype=np.uint8), rng.integers(0, CLASSES, count)


class Training:
    """A learner in the middle of a session, whose steps are called one by one.

    Args:
        mode: of the kernels.
        is_joint: the forward passes of all parts of the loss come before one backward pass.
    """

    def __init__(self, method: str, sparsity: float, mode: str, width: int, image: int, batch: int, is_joint: bool = False):
        config = MethodConfig(
            ModelConfig("resnet18", width=width),
            LearnerConfig(method, lr=LR, batch_size=batch, buffer_size=2 * batch),
            TDMConfig(enabled=False),
            DDRConfig(enabled=False),
            DGMConfig(keep=KEEP, interval=INTERVAL),
            sparsity,
            KernelConfig(mode),
        )
        x, y = samples(BATCHES * batch, image)
        data = TaskData(x, y, tuple(range(CLASSES)), 0)
        self.learner = Learner(config, inputs(image), 1, SEED)
        state, masks = start_model(self.learner, config, SEED)
        memory = self.learner.new_memory(0).in_task(len(y))
        _fill(memory, data)
        loop = _JoinedLoop if is_joint else SessionLoop
        self.run = loop(self.learner, self.learner.run(state, masks, data, memory), 0)
        self.batches = self._indices(len(y), batch)
        self.rng = generator(SEED, "benchmark", "steps")

    def step(self, draws: bool = False) -> None:
        """One step; `draws`: one that draws gradient masks, if the learner is sparse."""
        self.run.steps = 0 if draws else 1  # the learner draws where this is a multiple of the interval
        self.run.step(next(self.batches), self.rng, self.rng)

    @staticmethod
    def _indices(count: int, batch: int) -> Iterator[np.ndarray]:
        while True:
            yield from np.split(np.arange(count), range(batch, count, batch))


class _JoinedLoop(SessionLoop):
    """Goes forward through all parts of a step's loss before it goes backward."""

    def _backward(self, parts, rows, apart):
        return super()._backward([step.joined(parts)], rows, apart)


def _fill(memory: Memory, data: TaskData) -> None:
    """Let the buffer be full, in place."""
    buffer = memory.buffer
    buffer.x[:], buffer.y[:], buffer.offered = data.x[: buffer.capacity], data.y[: buffer.capacity], buffer.capacity


class Plain:
    """PyTorch's own loop on the dense network: as many parts of the loss as the method has, each with its backward pass."""

    def __init__(self, method: str, layout: str, width: int, image: int, batch: int):
        self.spec, self.form = inputs(image), {"memory_format": LAYOUTS[layout]}
        self.model = build_model(ModelConfig("resnet18", width=width), self.spec.shape, CLASSES).to(**self.form).train()
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=LR)
        self.parts = 1 + find_method(method).draws
        x, y = samples(batch, image)
        self.x, self.y = torch.from_numpy(x), torch.from_numpy(y)

    def step(self) -> None:
        self.optimizer.zero_grad()
        for _ in range(self.parts):
            x = normalise(self.x, self.spec, torch.float32).contiguous(**self.form)
            F.cross_entropy(self.model(x), self.y).backward()
        self.optimizer.step()
