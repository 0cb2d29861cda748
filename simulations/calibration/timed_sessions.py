"""Training sessions of known work, timed: what a calibration is fitted to, and what it is checked with.

A session is `Learner.train` for one epoch on random images: gradient masks drawn, replay from a full buffer, layers on the kernels as
`choose_kernels` picks them. One thread, as every simulated device; seconds are CPU time of the thread, so that a busy machine counts
little. Sessions are timed in turn, and the least of each counts: what is added to it by other work differs from turn to turn.
"""

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from simulations.build import choose_kernels
from simulations.config.experiment import Experiment
from simulations.config.sections import StreamConfig
from simulations.data.raw import Dataset, Raw
from sparcl_core.config import LearnerConfig
from sparcl_core.costs.flops import Flops
from sparcl_core.costs.memory import activation_bytes
from sparcl_core.inputs import InputSpec
from sparcl_core.learner import Learner
from sparcl_core.networks.models import ModelConfig
from sparcl_core.seeding import generator
from sparcl_core.solo import start_model
from sparcl_core.sparsity.ddr import DDRConfig
from sparcl_core.sparsity.tdm import TDMConfig
from sparcl_core.task_data import TaskData

CLASSES, SEED, LR = 10, 0, 0.001
PRODUCT = 1024  # rows and columns of the matrices whose product shows the rate
BACKBONES = {  # name: model, shape of its inputs
    "mlp": (ModelConfig("mlp", width=256), (1, 28, 28)),
    "cnn": (ModelConfig("cnn", width=32), (1, 8, 8)),
    "resnet18": (ModelConfig("resnet18", width=20), (3, 32, 32)),
    "mobilenetv2": (ModelConfig("mobilenetv2", width=32), (3, 32, 32)),
    "mobilenetv3-small": (ModelConfig("mobilenetv3-small", width=16), (3, 32, 32)),
    "efficientnet-b0": (ModelConfig("efficientnet-b0", width=32), (3, 32, 32)),
    "vit-tiny": (ModelConfig("vit-tiny", width=192), (3, 32, 32)),
}
PHONES = ("mobilenetv2", "mobilenetv3-small", "efficientnet-b0", "vit-tiny")
SPARSITIES, QUICK_SPARSITIES = (0.0, 0.6, 0.8, 0.92, 0.97), (0.0, 0.8, 0.97)
SESSIONS = {  # name: (method, batch size, steps) of the sessions at every sparsity; the quick ones stand first
    "mlp": (("sgd", 64, 16), ("sgd", 16, 16), ("derpp", 32, 16)),
    "cnn": (("sgd", 64, 8), ("sgd", 16, 16), ("derpp", 32, 8)),
    "resnet18": (("sgd", 16, 6), ("sgd", 8, 8), ("sgd", 32, 6), ("derpp", 16, 6)),
    **dict.fromkeys(PHONES, (("sgd", 16, 4), ("sgd", 8, 4), ("derpp", 16, 4))),
}
QUICK_SESSIONS = {"mlp": 2, "cnn": 2, "resnet18": 1, **dict.fromkeys(PHONES, 1)}


@dataclass(frozen=True)
class Point:
    """A workload of the grid: one session of `steps` steps of `batch` samples (shape [C, H, W]), replay of the method besides."""

    model: ModelConfig
    shape: tuple[int, ...]
    method: str
    sparsity: float
    batch: int
    steps: int


@dataclass(frozen=True)
class Measured:
    """What a session of `point` took: FLOPs as the learner counts them, the model's part of `costs.compute_cost`, least CPU seconds."""

    point: Point
    flops: Flops
    moved_per_sample: int
    layer_passes: int
    seconds: float


class PointSessions:
    """Sessions of one point, each the same as the one before."""

    def __init__(self, point: Point):
        rng = generator(SEED, "calibrate", "samples")
        count = point.batch * point.steps
        x, y = rng.integers(0, 256, (count, *point.shape), dtype=np.uint8), rng.integers(0, CLASSES, count)
        channels = point.shape[0]
        inputs = InputSpec(point.shape, CLASSES, (127.5,) * channels, (64.0,) * channels)
        learns = LearnerConfig(point.method, lr=LR, batch_size=point.batch, buffer_size=2 * point.batch)
        experiment = Experiment(
            sparsity=point.sparsity, model=point.model, learner=learns, tdm=TDMConfig(enabled=False), ddr=DDRConfig(enabled=False),
            stream=StreamConfig(tasks=1, devices=1),
        )  # fmt: skip
        method = choose_kernels(experiment, Dataset(Raw(x, y, x[:0], y[:0]), inputs)).method
        self.point, self.learner = point, Learner(method, inputs, 1, SEED)
        self.moved_per_sample = activation_bytes(self.learner.model, point.shape)
        self.layer_passes = self.learner.layer_passes
        self._state, self._masks = start_model(self.learner, method, SEED)
        self._data = TaskData(x, y, tuple(range(CLASSES)), 0)
        self._memory = self.learner.new_memory(0).in_task(count)
        held = self._memory.buffer
        held.x[:], held.y[:], held.offered = x[: held.capacity], y[: held.capacity], held.capacity  # full, so that every step replays
        self.flops = Flops()  # of a session, after the first one

    def run(self) -> float:
        """CPU seconds of this thread for one session."""
        start = time.thread_time()
        session = self.learner.train(self._state, self._masks, self._data, self._memory, epochs=1, device=0)
        seconds = time.thread_time() - start
        self.flops = session.flops
        return seconds


def grid(models: Sequence[str], quick: bool = False) -> tuple[Point, ...]:
    """The points of these backbones, by sparsity within each kind of session."""
    points = []
    for name in dict.fromkeys(models):
        if name not in BACKBONES:
            raise ValueError(f"model is {name!r}: choose from {', '.join(BACKBONES)}")
        sessions = SESSIONS[name][: QUICK_SESSIONS[name] if quick else None]
        sparsities = QUICK_SPARSITIES if quick else SPARSITIES
        points += [Point(*BACKBONES[name], method, s, batch, steps) for method, batch, steps in sessions for s in sparsities]
    return tuple(points)


def measure(points: Sequence[Point], repeats: int, observe: Callable[[str], None] = lambda text: None) -> tuple[Measured, ...]:
    """Every point's session, `repeats` times in turn after one that does not count, with one thread; the least seconds of each."""
    with one_thread():
        prepared = []
        for number, point in enumerate(points, 1):
            observe(f"preparing {number}/{len(points)}")
            prepared.append(PointSessions(point))
        best = [float("inf")] * len(points)
        for turn in range(1 + repeats):
            observe(f"turn {turn}/{repeats}")
            for number, sessions in enumerate(prepared):
                seconds = sessions.run()
                best[number] = min(best[number], seconds) if turn else float("inf")
    return tuple(
        Measured(one.point, one.flops, one.moved_per_sample, one.layer_passes, seconds) for one, seconds in zip(prepared, best, strict=True)
    )


def product_rate(seconds: float = 1.0) -> float:
    """FLOP/s of dense float32 products of one thread: the median over about `seconds` of CPU time, after one that does not count."""
    rng = generator(SEED, "calibrate", "product")
    a, b = (torch.from_numpy(rng.standard_normal((PRODUCT, PRODUCT), dtype=np.float32)) for _ in range(2))
    found: list[float] = []
    with one_thread():
        torch.mm(a, b)
        while sum(found) < seconds or len(found) < 3:
            start = time.thread_time()
            torch.mm(a, b)
            found.append(time.thread_time() - start)
    return 2 * PRODUCT**3 / statistics.median(found)


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread of PyTorch, and no garbage collection, which would hit one session by chance."""
    threads, was_enabled = torch.get_num_threads(), gc.isenabled()
    torch.set_num_threads(1)
    gc.disable()
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        if was_enabled:
            gc.enable()
