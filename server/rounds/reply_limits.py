"""What a round of a device can have been at most, by formula: measures beyond it are none, and a reply beyond it is not read.

A round of e epochs over n samples in batches of b at most takes

    samples, replayed        e n, and as many replayed as the learning method says; e n may be left out of last batches
    steps                    e ceil(n / b)
    passes P                 what the method says of (e + 2) n samples, two rankings of weights among them: forward and backward, or
                             forward through a teacher; and what it says of the beginning and the end of a task
    training, importance     P times the FLOPs of one sample in the dense network; by the published convention 3 P forward passes
    statistics               forward passes over n + c samples, and the method's between tasks; c fit into the buffer
    method                   what the method says of so many steps, and of the beginning and the end of a task
    masks                    one operation per maskable weight and step, and 3 for each of two rankings
    memory                   the footprint of dense training, buffer included

and the dense twin the same. All of it is taken `GENEROUS` times: what is beyond is no matter of rounding, or of another way to count.
"""

from dataclasses import dataclass

import numpy as np

from server.selection.estimate import Workload
from sparcl_core.codec import Layout
from sparcl_core.costs.flops import per_sample

GENEROUS = 2
LONGEST_S = 1e9  # measured on the machine that simulates: no formula knows how fast it is
LARGEST_LOSS = float(np.finfo(np.float32).max)
LARGEST_STATISTIC = 1e18  # its square, which is part of a pooled variance, is finite in float32


@dataclass(frozen=True)
class Bounds:
    """The most that a round can report. flops: column of `Flops` -> most; counts: column of the ledger -> most; memory in bytes.

    reply_bytes: what the reply can weigh.
    statistics: samples that recomputed statistics of BatchNorm can rest on.
    """

    reply_bytes: int
    flops: dict[str, int]
    counts: dict[str, int]
    memory_bytes: int
    statistics: int


class Workbook:
    """Bounds of the rounds of one experiment."""

    def __init__(self, workload: Workload, layout: Layout, beside: Layout):
        """layout: of the whole model, statistics included; beside: of the arrays that devices send beside their updates."""
        self.workload, self.reply_bytes = workload, most_reply_bytes(layout, beside)
        self._cost = per_sample(workload.layers, workload.masked, workload.masked)
        self._maskable = sum(workload.masked.values())

    def bounds(self, step: int, samples: tuple[int, ...]) -> Bounds:
        """Of a device with `samples` in each step of its stream, at this one."""
        work, method, cost = self.workload, self.workload.learning, self._cost
        own, capacity = samples[step], method.buffer_capacity(sum(samples))
        steps = work.epochs * -(-own // work.method.learner.batch_size)
        in_round, passes = (method.step_passes(epochs * own, epochs * own) for epochs in (work.epochs, work.epochs + 2))
        weights = sum(work.model.parameters.values())
        between, beside = method.task_passes(max(samples), capacity, weights), method.session_passes(own)
        beside += method.upload_passes(own, capacity)
        computed = cost.whole * (passes.trained + between.trained) + cost.forward * (passes.taught + beside.taught)
        flops = {
            "train_sparse": computed, "train_dense": computed, "importance": computed, "masks": self._maskable * (steps + 6),
            "paper": 3 * (passes.trained + passes.taught + beside.taught) * cost.forward,
            "statistics": (own + capacity + between.taught) * cost.forward,
            "samples": passes.trained + between.trained, "steps": steps,
            "method": method.step_flops(weights * steps, passes.replayed) + between.flops + beside.flops
            + method.session_flops(weights) + work.correcting.step_flops(weights * steps) + work.correcting.session_flops(weights),
        }  # fmt: skip
        counts = {
            "samples": work.epochs * own, "replayed": in_round.replayed, "dropped": work.epochs * own, "steps": steps,
            "kept": own, "active": self._maskable, "updated": self._maskable,
        }  # fmt: skip
        memory = int(work.memory(0.0, np.array([capacity]), np.array([max(samples)]))[0])
        most = {name: GENEROUS * count for name, count in flops.items()}
        counts = {name: GENEROUS * count for name, count in counts.items()}
        return Bounds(self.reply_bytes, most, counts, memory_bytes=GENEROUS * memory, statistics=own + capacity)


def most_reply_bytes(layout: Layout, beside: Layout) -> int:
    """What a reply can weigh at most, in bytes, for a model of this layout (the whole one, statistics included), and what it has beside it.

    A coordinate takes at most 8 bytes of value (f64; narrower forms with a scale for every place, `wire.block=1`, take 3) and one bit of
    position: a bitmap is always among the forms that the codec chooses from, and it takes the smallest. A reply brings at most four such
    payloads: the update, importance of the masked tensors, what is shown of running statistics, and what is beside the model. Each has
    headers, checksum and tables of frequencies: at most 1 KB per tensor. Control, measures, and Flower's names around them are a few
    hundred bytes, and 1 bit per class: 64 KB leave room for what other versions add.
    """
    statistics = sum(layout.size(name) for name in layout.statistics)
    masked = sum(layout.size(name) for name in layout.masked)
    places = sum(map(layout.size, layout.shapes)) + masked + statistics + sum(map(beside.size, beside.shapes))
    return 8 * places + places // 8 + 1024 * (3 * len(layout.shapes) + len(beside.shapes) + 3) + 64 * 1024
