"""The bare training loop: one process per core, the model stays, nothing is sent."""

import multiprocessing
import time

import torch
from torch import nn

from benchmarks.engine import work


def dense(rounds: int, cores: int) -> dict:
    return _measure("dense", rounds, cores, work.PARAMETERS)


def sparcl(rounds: int, cores: int) -> dict:
    """The model of the SparCL sides."""
    return _measure("sparcl", rounds, cores, sum(p.numel() for p in _model("sparcl").parameters()))


def _measure(kind: str, rounds: int, cores: int, parameters: int) -> dict:
    """All devices of all rounds are dealt out to the processes at the beginning; the last to be done ends the time."""
    context = multiprocessing.get_context("spawn")
    barrier, times = context.Barrier(cores), context.Queue()
    processes = [context.Process(target=_train_share, args=(kind, rounds, core, cores, barrier, times)) for core in range(cores)]
    for process in processes:
        process.start()
    begins, ends = zip(*(times.get() for _ in processes), strict=True)
    for process in processes:
        process.join()
    return work.measured([(max(ends) - min(begins)) / rounds] * rounds, parameters=parameters)


def _train_share(kind: str, rounds: int, core: int, cores: int, barrier, times) -> None:
    torch.set_num_threads(1)
    model = _model(kind)
    own = list(model.parameters())
    sent = [p.detach().clone() for p in own]
    optimizer = torch.optim.SGD(own, lr=work.LR)
    x, y = work.data()
    layout = torch.channels_last if kind == "sparcl" else torch.contiguous_format
    devices = [(part.contiguous(memory_format=layout), labels) for part, labels in zip(x, y, strict=True)]

    def train(device: int) -> None:
        with torch.no_grad():
            for p, value in zip(own, sent, strict=True):
                p.copy_(value)
        work.train(model, *devices[device % work.DEVICES], optimizer)

    for device in range(core, work.DEVICES, cores):
        train(device)
    barrier.wait()
    begin = time.monotonic()
    for device in range(core, rounds * work.DEVICES, cores):
        train(device)
    times.put((begin, time.monotonic()))


def _model(kind: str) -> nn.Module:
    if kind == "dense":
        return work.build()
    from benchmarks.engine.sparcl import MODEL
    from sparcl_core.networks.models import build_model

    return build_model(MODEL, work.SHAPE, work.CLASSES)
