"""A server's broadcast and devices that receive from it, without Flower: what the tests of a device and of its state share."""

import numpy as np
from worlds import assert_same_arrays

from client import local_round
from client.config import ClientConfig
from client.state.apply_payloads import bring, follow
from client.state.device_state import DeviceState, new_device
from client.streams.stream import Stream
from server.global_model.broadcast import Broadcast
from sparcl_core import codec
from sparcl_core.codec import Encoded
from sparcl_core.config import LearnerConfig, MethodConfig
from sparcl_core.inputs import InputSpec
from sparcl_core.learner import Learner
from sparcl_core.networks.models import ModelConfig
from sparcl_core.solo import start_model
from sparcl_core.sparsity.ddr import DDRConfig
from sparcl_core.sparsity.dgm import DGMConfig
from sparcl_core.sparsity.tdm import TDMConfig
from sparcl_core.sparsity.update import Action
from sparcl_core.wire.error_feedback import WireConfig
from sparcl_core.wire.protocol import Instruction

INPUTS = InputSpec((1, 4, 4), 4, (8.0,), (4.0,))
SEED = 5


def method_of(dtype: str = "float32") -> MethodConfig:
    model, learner = ModelConfig("mlp", width=16, dtype=dtype), LearnerConfig(batch_size=4, buffer_size=6)
    tdm_config = TDMConfig(p_intra=0.1, p_inter=0.1)
    return MethodConfig(model, learner, tdm_config, DDRConfig(), DGMConfig(), sparsity=0.5)


def make_stream() -> Stream:
    rng = np.random.default_rng(0)
    y = np.arange(24) // 6  # six of each class; two classes a task
    return Stream(rng.integers(0, 17, (24, 1, 4, 4), dtype=np.uint8), y, (np.arange(12), np.arange(12, 24)), ((0, 1), (2, 3)))


class Lab:
    """A server's broadcast whose model drifts at random, and what is needed to receive from it."""

    def __init__(self, form: str = "f16", dtype: str = "float32", importance: str = "u8", mask: str = "shared", **wire):
        self.method = method_of(dtype)
        self.wire = WireConfig(up=form, down=form, importance=importance, **wire)
        self.config = ClientConfig(method=self.method, inputs=INPUTS, task_epochs=10, seed=SEED, wire=self.wire, mask=mask)
        self.learner = Learner(self.method, INPUTS, 10, SEED)
        self.stream = make_stream()
        self.weights, masks = start_model(self.learner, self.method, SEED)
        self.broadcast = Broadcast(self.weights, masks, self.learner.layout, wire=self.wire, seed=SEED)
        self.rng = np.random.default_rng(1)
        self.broadcast.publish(self.weights)

    def new_device(self) -> DeviceState:
        return new_device(self.learner, self.stream)

    def next_version(self, share: float = 1.0, what: Action | None = None) -> None:
        """Move a share of the weights by about 0.01, change the masks if asked to, publish."""
        for name, value in self.weights.items():
            moved = self.rng.random(value.shape) < share
            if name in self.broadcast.masks:
                moved &= self.broadcast.masks[name]
            value += (moved * 0.01 * self.rng.standard_normal(value.shape)).astype(value.dtype)
        if what:
            importance = {name: self.rng.random(mask.shape) for name, mask in self.broadcast.masks.items()}
            scheme, number = self.learner.scheme, self.broadcast.mask_version + 1
            update = scheme.plan(what, self.broadcast.masks, self.weights, importance, number=number, epoch=1)
            self.broadcast.update_masks(self.weights, update, scheme)
        self.broadcast.publish(self.weights)

    def receive(self, device: DeviceState, payloads: tuple[Encoded, ...] | None = None) -> DeviceState:
        """`device` after an instruction with `payloads`, by default those that its version needs."""
        payloads = self.broadcast.payloads(device.version) if payloads is None else payloads
        whole, data = self.learner.layout, [payload.data for payload in payloads]
        model, surviving = follow(device.model, data, whole, self.config)
        return bring(device, model, surviving, whole=whole, config=self.config)

    def train(self, device: DeviceState, task: int = 0, importance: bool = False, server_round: int = 1):
        instruction = Instruction(server_round, task, 1, importance, ())
        return local_round.train(device, instruction, self.learner, self.stream, number=0, config=self.config)

    def report(self, device: DeviceState, done: local_round.Round, server_round: int = 1):
        return local_round.report(
            device, done, self.learner.layout, number=0, config=self.config, server_round=server_round, channel=self.learner.auxiliary.up
        )

    def sent(self, report) -> dict[str, codec.SparseTensor]:
        """What arrives at the server."""
        return codec.decode(report.delta, self.learner.layout, self.broadcast.masks).tensors

    def assert_up_to_date(self, device: DeviceState) -> None:
        assert_same_arrays(device.base, self.broadcast.held)
        assert_same_arrays(device.masks, self.broadcast.masks)
        assert (device.version, device.mask_version) == (self.broadcast.version, self.broadcast.mask_version)


def trained_device(lab: Lab) -> DeviceState:
    """A device with something in every field: two rounds, a mask update, a residual, a half-full history."""
    device = lab.receive(lab.new_device())
    for what in (None, "adapt"):
        device, done = lab.train(device)
        device, _ = lab.report(device, done)
        lab.next_version(what=what)
        device = lab.receive(device)
    return device


def flat(device: DeviceState) -> dict[str, np.ndarray]:
    """Every field of a device as an array."""
    memory = device.memory
    parts = {f"{part}.{name}": value for part in ("base", "masks", "residual") for name, value in getattr(device, part).items()}
    parts |= {f"buffer.{key}": np.asarray(value) for key, value in vars(memory.buffer).items()}
    parts |= {f"ddr.{key}": np.asarray(value) for key, value in vars(memory.ddr).items()}
    parts |= {f"arrays.{key}": value for key, value in memory.arrays.items()}
    scalars = (device.task, device.step, device.version, device.mask_version, memory.epochs, memory.twin_offered)
    return parts | {"seen": device.seen, "losses": device.losses, "scalars": np.array(scalars)}


def lab_mask(lab: Lab, name: str) -> np.ndarray:
    return lab.broadcast.masks.get(name, np.array(1)).astype(np.float32)
