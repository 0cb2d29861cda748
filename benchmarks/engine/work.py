"""The work that every side does on a device. Needs torch and NumPy only, since pfl may run in an environment of its own."""

from functools import cache

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

DEVICES = 40
SAMPLES, BATCH, CLASSES = 50, 10, 10
SHAPE = (3, 32, 32)
LR = 0.01
PARAMETERS = 2_168_362
SEED = 0


class Net(nn.Sequential):
    """Two times conv-conv-pool, then two linear layers; 3x3 convolutions that keep the image's size."""

    def __init__(self):
        super().__init__(
            nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(4096, 512), nn.ReLU(), nn.Linear(512, CLASSES),
        )  # fmt: skip


def build() -> Net:
    """The model with the same weights in every process, on one thread."""
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    model = Net()
    if (count := sum(p.numel() for p in model.parameters())) != PARAMETERS:
        raise AssertionError(f"the model has {count} parameters instead of {PARAMETERS}")
    return model


@cache
def data() -> tuple[Tensor, Tensor]:
    """x [devices, samples, 3, 32, 32] float32, y [devices, samples] int64; made once per process."""
    rng = np.random.default_rng(SEED)
    x = rng.standard_normal((DEVICES, SAMPLES, *SHAPE), dtype=np.float32)
    return torch.from_numpy(x), torch.from_numpy(rng.integers(0, CLASSES, (DEVICES, SAMPLES)))


def train(model: nn.Module, x: Tensor, y: Tensor, optimizer: torch.optim.Optimizer | None = None) -> None:
    """One epoch of plain SGD over one device's data, in its order."""
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=LR)
    for start in range(0, len(y), BATCH):
        optimizer.zero_grad()
        cross_entropy(model(x[start : start + BATCH]), y[start : start + BATCH]).backward()
        optimizer.step()


def measured(rounds_s: list[float], first_reply_s: float | None = None, parameters: int = PARAMETERS) -> dict:
    """What a side hands back. `rounds_s`: seconds of the rounds after the warm-up."""
    return {"rate": DEVICES * len(rounds_s) / sum(rounds_s), "first_reply_s": first_reply_s, "parameters": parameters}
