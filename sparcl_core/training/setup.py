"""What a learner works with, whichever device it trains: the network, the method, and the settings of all mechanisms."""

import math
from functools import cached_property

import numpy as np

from sparcl_core.batches import batch_sizes, largest_batch
from sparcl_core.config import MethodConfig
from sparcl_core.costs.flops import Passes, SampleFlops, layer_shapes, per_sample
from sparcl_core.costs.memory import Held
from sparcl_core.inputs import InputSpec
from sparcl_core.methods.auxiliary import Auxiliary, within
from sparcl_core.methods.given import Running
from sparcl_core.methods.registry import make_correction, make_method
from sparcl_core.networks.masked import Network
from sparcl_core.networks.models import has_batch_statistics, smallest_batch
from sparcl_core.replay.memory import Memory
from sparcl_core.sparsity import dgm as gradient_masking
from sparcl_core.sparsity.masks import Masks, State, count_active
from sparcl_core.task_data import TaskData
from sparcl_core.training.frozen import FrozenNetworks


class Setup:
    """Made once, used for one device after another; nothing of a device stays in it.

    Attributes:
        config, tdm, ddr, dgm, masking: settings.
        scheme: what changes the masks.
        method, correction: the learning method, and what corrects its steps.
        auxiliary: what both of them send beside the model.
        network: the one that is trained; `frozen`: those beside it that a method asks for.
        held, layers, layout: of the dense model.
        is_joint: current data and draws share a forward pass.
        least: samples that a batch must have, see `models.smallest_batch`.

    Raises:
        ValueError: if `learner.batch_size` is below `least`, or there is no such method.
    """

    def __init__(self, method: MethodConfig, inputs: InputSpec, task_epochs: int, seed: int):
        """`task_epochs`: K, local epochs of a whole task, from which the schedules of DDR derive."""
        self.inputs, self.config, self.tdm, self.ddr, self.dgm = inputs, method.learner, method.tdm, method.ddr, method.dgm
        self.task_epochs, self.seed, self.sparsity = task_epochs, seed, method.sparsity
        self.masking, self.scheme = method.masks, method.scheme(task_epochs, seed)
        self.keeps_last_gradient = self.scheme.needs == "importance" and method.tdm.gradient == "last-step"
        self.draws_gradient_masks = method.is_sparse and method.dgm.enabled
        self.gradient_sparsity = gradient_masking.gradient_sparsity(method.dgm, method.sparsity) if self.draws_gradient_masks else 0.0
        self.method, self.correction = make_method(method.learner), make_correction(method.correction, method.learner.lr)
        self.network = Network(method, inputs)
        self.model, self.dtype, self.layout = self.network.model, self.network.dtype, self.network.layout
        self.layers = layer_shapes(self.model, inputs.shape)
        self.auxiliary = Auxiliary(self.method, self.correction, self.layout, self.classifier, dtype=method.model.dtype)
        self.held = Held.of(self.model)
        self._new_network = lambda: Network(method, inputs)
        self.frozen = FrozenNetworks(self._new_network, self.layers)
        self.is_joint = self.config.joint_forward and not has_batch_statistics(self.model)
        self.least = smallest_batch(self.model, inputs.shape)
        if self.config.batch_size < self.least:
            raise ValueError(
                f"learner.batch_size is {self.config.batch_size}: BatchNorm of {method.model.name} on images of {inputs.shape[1]}x"
                f"{inputs.shape[2]} sees one value per channel of a sample, so a batch needs at least {self.least}; "
                f"take more, or a net without BatchNorm (model.name=cnn)"
            )

    @cached_property
    def dense(self) -> Network:
        """A network that never has masks, for gradients of weights that are not active."""
        return self._new_network()

    @property
    def classifier(self) -> tuple[str, ...]:
        """The tensors of the last linear layer: their first axis is the class."""
        last = self.layers[-1].name.removesuffix(".weight")
        return tuple(name for name in self.layout.shapes if name in (f"{last}.weight", f"{last}.bias"))

    @property
    def layer_passes(self) -> int:
        """Layers that a step goes through: counted layers x calls of a network."""
        return len(self.layers) * self.method.forward_passes(self.is_joint)

    def batch_sizes(self, count: int) -> list[int]:
        """Samples of each batch of an epoch over `count` samples."""
        return batch_sizes(count, self.config.batch_size, self.least, self.config.last_batch)

    def samples_per_forward(self, samples: int) -> int:
        """The most samples whose activations are alive at once on a device with `samples` in a task."""
        largest = int(largest_batch(np.int64(samples), self.config.batch_size, self.least, self.config.last_batch))
        return self.method.samples_per_forward(largest, self.is_joint)

    def replays_in(self, task: int) -> bool:
        """Is anything replayed in this task?"""
        return task > 0 or self.config.replay_from == "first-sample"

    def draw_size(self, batch: int, held: int) -> int:
        """Samples that each replay draw beside a batch has, from a buffer that holds `held`; 0 while these are too few for the model."""
        return min(batch, held) if held >= self.least else 0

    def kept_data_bytes(self, samples: int) -> int:
        """Of the data, labels included, that the method keeps beyond a task with `samples`."""
        return self.method.kept_samples(samples) * (math.prod(self.inputs.shape) + 8)

    def cost_at(self, masks: Masks) -> SampleFlops:
        """Of a sample, every active weight updated."""
        active = count_active(masks)
        return per_sample(self.layers, active, active)

    def run(self, state: State, masks: Masks, data: TaskData, memory: Memory, *, is_dense: bool = False) -> Running:
        """The network loaded with `state`, and what its method needs for the steps. `is_dense`: inactive weights are parameters, too."""
        network = self.dense if is_dense else self.network
        network.load(state, {} if is_dense else masks)
        self.frozen.begin()
        running = Running(
            network=network, state=state, masks=masks, data=data, memory=memory, freeze=self.frozen.freeze,
            scheme=self.scheme, received=within("method", memory.received),
        )  # fmt: skip
        running.prepared = self.method.prepare(running)
        running.correction = self.correction.prepare(running, within("correction", memory.received))
        return running

    def passes_between(self, running: Running, samples: int, buffered: int) -> Passes:
        """What the method computes before and behind the steps; in a federation also for what it sends beside the update."""
        found = self.method.session_passes(samples)
        return found + self.method.upload_passes(samples, buffered) if running.received else found

    def check(self, data: TaskData, count: int) -> None:
        """Is `data` for this model, and enough for it? `count`: samples of a pass.

        Raises:
            ValueError: if not.
        """
        if data.x.shape[1:] != tuple(self.inputs.shape) or max(data.classes) >= self.inputs.num_classes or min(data.classes) < 0:
            raise ValueError(
                f"the model is for images of {tuple(self.inputs.shape)} in classes 0 to {self.inputs.num_classes - 1}: task {data.task} of "
                f"this device has {tuple(data.x.shape[1:])} and classes {tuple(data.classes)}"
            )
        if not (known := np.isin(data.y, data.classes)).all():
            raise ValueError(f"task {data.task} of this device has label {data.y[~known][0]}, which is none of its classes {data.classes}")
        if 0 < count < self.least:
            raise ValueError(
                f"this device has {count} sample to train on in task {data.task}: BatchNorm on images of this size needs {self.least} at "
                f"once; give it more data, or take a net without BatchNorm (model.name=cnn)"
            )
