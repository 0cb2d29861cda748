"""The learner of a device: sessions of SGD on current data and replay, with the three sparsities at work.

A session is what a device does in one round (or, alone, in one stage): some epochs over the rest of the task's data that
DDR keeps, with fixed weight masks. Plain SGD, no momentum, no weight decay, as in the paper: so there is no optimiser state to drop with a
weight. What the loss is, and what is kept and computed between tasks, is the learning method's (`sparcl_core.methods`); `.training` has the
parts: a step, a session, importance.

Differences from the released code: replay starts as soon as the buffer holds something (`replay_from` restores the
second task); augmentation draws per sample; NumPy and torch randomness both have addresses.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F

from sparcl_core.batches import batch_sizes, cut
from sparcl_core.costs.flops import Counted, Flops, Passes, per_sample, sizes
from sparcl_core.methods.given import Border
from sparcl_core.networks.masked import Network
from sparcl_core.networks.models import collect_statistics
from sparcl_core.replay import memory as memories
from sparcl_core.replay.memory import Memory
from sparcl_core.seeding import generator
from sparcl_core.sparsity.masks import Masks, State, count_active
from sparcl_core.task_data import TaskData
from sparcl_core.training import importance as rankings
from sparcl_core.training.session import Session, SessionLoop
from sparcl_core.training.setup import Setup

SOUND_WEIGHT = 1e3  # trained weights and running statistics stay far below; a model with more was spoilt before it came here


class Learner(Setup):
    """Trains one device after another with one reusable network. State, masks and memory that it is given are never changed."""

    def new_memory(self, stream_samples: int) -> Memory:
        """What a device keeps that has seen nothing yet of a stream of so many samples."""
        dtype = str(self.dtype).removeprefix("torch.")
        return memories.empty(self.method.buffer_capacity(stream_samples), self.inputs.shape, self.inputs.num_classes, dtype)

    def begin_task(self, state: State, masks: Masks, data: TaskData, memory: Memory, *, device: int) -> tuple[Memory, Counted]:
        """`memory` at the start of the task that `data` is of, and what its method computed for that, its dense twin's share beside it.

        Args:
            state, masks: the model that the device has then.
            device: the device's number, part of every random address.
        """
        rng = generator(self.seed, "begin-task", device, data.task)
        with self.network.drawing(self.seed, "begin-task", device, data.task):
            memory, passes = self.method.begin_task(self._border(state, masks, data, memory.in_task(len(data.y)), rng=rng))
        return memory, self._counted(passes, masks)

    def end_task(self, state: State, masks: Masks, data: TaskData, memory: Memory, *, device: int) -> tuple[Memory, Counted]:
        """As `begin_task`, at the end of the task that `data` is of."""
        border = self._border(state, masks, data, memory, rng=generator(self.seed, "end-task", device, data.task))
        with self.network.drawing(self.seed, "end-task", device, data.task):
            memory, passes = self.method.end_task(border)
        return memory, self._counted(passes, masks)

    def train(self, state: State, masks: Masks, data: TaskData, memory: Memory, *, epochs: int, device: int) -> Session:
        """One session of `epochs` local epochs.

        Args:
            state: weights to start from. Inactive weights must be 0.
            masks: weight masks of the sparse tensors; fixed during the session.
            memory: a session that is lost can be run again with it.

        Raises:
            ValueError: if `data` is not for this model, or too little for it.
            FloatingPointError: if the loss of a step, or a weight afterwards, is not finite.
        """
        self.check(data, memory.kept_samples)
        with self.network.drawing(self.seed, "train", device, data.task, memory.epochs):
            return self._train(state, masks, data, memory.copy(), epochs=epochs, device=device)

    def _train(self, state: State, masks: Masks, data: TaskData, memory: Memory, *, epochs: int, device: int) -> Session:
        loop = SessionLoop(self, self.run(state, masks, data, memory), device)
        try:
            for _ in range(epochs):
                loop.epoch()
            for name, value in self.network.tensors().items():
                if not value.isfinite().all():
                    raise loop.diverged(f"{name} is not finite, the last loss was {loop.loss:.4g}")
        except FloatingPointError as error:
            largest = max(float(np.abs(own).max(initial=0)) for own in state.values())
            if largest < SOUND_WEIGHT:
                raise
            blame = f"unless the model that it began with is to blame: its largest value is {largest:.3g}"
            raise FloatingPointError(f"{error}, {blame}") from None
        return loop.result()

    def importance(self, state: State, masks: Masks, data: TaskData, memory: Memory, *, device: int) -> tuple[dict[str, np.ndarray], Flops]:
        """What the masks' scheme ranks by, per sparse tensor (float64, the tensor's shape), and what computing it cost.

        Of TDM I, 0 at inactive places; of RigL |dL/dw| everywhere. Gradients are means over `tdm.batches` or `masks.batches` batches of
        the data that DDR keeps (0: all of it), each beside its replay draws, taken before the absolute value; of the method's terms,
        whatever its `gradients` would make of them.

        Raises:
            ValueError: as `train`.
            FloatingPointError: if a gradient is not finite.
        """
        self.check(data, memory.kept_samples)
        with self.network.drawing(self.seed, "importance", device, data.task, memory.epochs):
            if self.scheme.needs == "gradients":
                return rankings.gradients(self, self.run(state, masks, data, memory, is_dense=True), device)
            return rankings.importance(self, self.run(state, masks, data, memory), device)

    def sensitivity(self, weights: State, data: TaskData, memory: Memory, *, device: int) -> tuple[dict[str, np.ndarray], Flops]:
        """SNIP's connection sensitivity of every weight that may be sparse (float64, the tensor's shape), and what computing it cost.

        Args:
            weights: of the dense network. Gradients are over `masks.batches` batches, as in `importance`.

        Raises:
            ValueError, FloatingPointError: as `importance`.
        """
        self.check(data, memory.kept_samples)
        with self.network.drawing(self.seed, "sensitivity", device, data.task):
            return rankings.sensitivity(self, self.run(weights, {}, data, memory, is_dense=True), device)

    def importance_after(self, done: Session, masks: Masks, data: TaskData, device: int) -> tuple[dict[str, np.ndarray], Flops]:
        """What masks are ranked by behind a session: what it left, or what `importance` computes for it; and what that cost."""
        if done.importance is not None:
            return done.importance, Flops(masks=3 * sum(count_active(masks).values()))
        return self.importance(done.state, masks, data, done.memory, device=device)

    def loss(self, state: State, masks: Masks, data: TaskData, batches: int) -> tuple[float, Flops]:
        """Mean cross-entropy over all classes of `state` on the first samples of `data`, which lie in random order, and what that cost.

        At most `batches` batches; statistics of BatchNorm are those of the batch, as in training.

        Raises:
            ValueError: as `train`.
            FloatingPointError: if the loss is not finite.
        """
        self.check(data, len(data.y))
        self.network.load(state, masks)
        total, count = 0.0, min(len(data.y), batches * self.config.batch_size)
        with torch.no_grad(), self.network.drawing(self.seed, "loss", data.task):
            for own in cut(np.arange(count), batch_sizes(count, self.config.batch_size, self.least)):
                total += float(F.cross_entropy(self.model(self.network.feed(data.x[own])), torch.from_numpy(data.y[own]))) * len(own)
        if not math.isfinite(total):
            raise FloatingPointError(f"the model that came has a loss of {total} on this device's data: it diverged in the rounds before")
        return total / count, Flops(statistics=self.cost_at(masks).forward * count)

    def statistics(self, state: State, masks: Masks, data: TaskData, memory: Memory) -> tuple[State, int, Flops]:
        """BatchNorm statistics of `state` on what DDR keeps of the current data and on the buffer, recomputed in one pass.

        Returns:
            Mean and variance per statistics tensor, averaged over batches; how many samples they rest on; and what that cost.

        Raises:
            ValueError: as `train`.
        """
        self.check(data, memory.kept_samples + len(memory.buffer))
        self.network.load(state, masks)
        x = np.concatenate([data.x[memory.ddr.kept], memory.buffer.x[: len(memory.buffer)]])
        batches = np.array_split(x, max(1, len(x) // self.config.batch_size))
        with self.network.drawing(self.seed, "statistics", data.task, memory.epochs):
            collect_statistics(self.model, [self.network.feed(batch) for batch in batches])
        own = {name: value for name, value in self.network.read().items() if name in self.layout.statistics}
        return own, len(x), Flops(statistics=self.cost_at(masks).forward * len(x))

    def _border(self, state: State, masks: Masks, data: TaskData, memory: Memory, *, rng: np.random.Generator) -> Border:
        def load() -> Network:
            self.network.load(state, masks)
            return self.network

        return Border(state=state, masks=masks, data=data, memory=memory, rng=rng, load=load)

    def _counted(self, passes: Passes, masks: Masks) -> Counted:
        whole = sizes(masks)
        return Counted(self.cost_at(masks).between_tasks(passes), per_sample(self.layers, whole, whole).between_tasks(passes))
