"""An app for speed on our engine: the model stays in the worker, its weights travel as one float32 buffer.

The server adds up the replies in float64 and in device order while others are still on their way, so that the same bits come out
whoever is done first.
"""

import time

import numpy as np
import torch
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from benchmarks.engine import work

BLOCK = 1 << 16  # places added up at once: 512 KiB of float64 stay in a core's cache
GROUP = 8  # replies folded in together, so that the sum is read and written once for all of them


class OrderedSum:
    """The float64 sum of float32 buffers, always added in the order of their numbers, in whatever order they come."""

    def __init__(self, size: int):
        self.total = np.zeros(size)
        self._scratch = np.empty(BLOCK)
        self._waiting: dict[int, np.ndarray] = {}
        self._next = 0

    def add(self, number: int, buffer: bytes) -> None:
        """Buffer `number`, from 0."""
        self._waiting[number] = np.frombuffer(buffer, np.float32)
        ready = 0
        while ready < GROUP and self._next + ready in self._waiting:
            ready += 1
        if ready == GROUP:
            self._fold(ready)

    def take(self, count: int) -> np.ndarray:
        """The sum of all `count` buffers; the object starts again from zero, and the array is overwritten with the next first fold."""
        while self._next < count:
            ready = next(n for n in range(count - self._next + 1) if self._next + n not in self._waiting)
            if not ready:
                raise RuntimeError(f"buffer {self._next} of {count} did not come")
            self._fold(min(ready, GROUP))
        self._next = 0
        return self.total

    def _fold(self, count: int) -> None:
        parts = [self._waiting.pop(number) for number in range(self._next, self._next + count)]
        for start in range(0, self.total.size, BLOCK):
            block = self.total[start : start + BLOCK]
            scratch = self._scratch[: block.size]
            if not self._next:
                block[:] = 0
            for part in parts:
                np.copyto(scratch, part[start : start + BLOCK])
                np.add(block, scratch, out=block)
        self._next += count


def client_app() -> ClientApp:
    app = ClientApp()
    model = work.build()
    flat = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
    start = 0
    for p in model.parameters():
        p.data = flat[start : start + p.numel()].view_as(p)
        start += p.numel()
    weights = flat.numpy()
    images, labels = work.data()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        torch.set_num_threads(1)
        weights[:] = np.frombuffer(message.content["global"]["weights"], np.float32)
        device = context.node_config["partition-id"]
        work.train(model, images[device], labels[device])
        return Message(RecordDict({"local": ConfigRecord({"weights": weights.tobytes()})}), reply_to=message)

    return app


def exchange(grid: Grid, message_type: str, buffer: bytes, total: OrderedSum, group_id: str) -> np.ndarray:
    """Send `buffer` to all devices, and sum what they send back as it comes in."""
    send = getattr(grid, "stream", None) or grid.send_and_receive
    content = RecordDict({"global": ConfigRecord({"weights": buffer})})
    nodes = {node: number for number, node in enumerate(sorted(grid.get_node_ids()))}
    for reply in send([Message(content, node, message_type, group_id=group_id) for node in nodes]):
        if reply.has_error():
            raise RuntimeError(reply.error.reason)
        total.add(nodes[reply.metadata.src_node_id], reply.content["local"]["weights"])
    return total.take(len(nodes))


def ours(rounds: int, cores: int) -> dict:
    from simulations.engine.ray import RayGrid

    start, heard, rounds_s = time.perf_counter(), [], []
    grid = RayGrid(client_app, (), work.DEVICES, workers=cores, on_reply=lambda device: heard.append(time.perf_counter()))
    weights = torch.cat([p.detach().reshape(-1) for p in work.build().parameters()]).numpy()
    total = OrderedSum(work.PARAMETERS)
    try:
        for number in range(rounds + 1):
            begin = time.perf_counter()
            weights = (exchange(grid, "train", weights.tobytes(), total, str(number)) / work.DEVICES).astype(np.float32)
            rounds_s.append(time.perf_counter() - begin)
    finally:
        grid.close()
    return work.measured(rounds_s[1:], heard[0] - start)
