"""The Flower ClientApp: message -> typed values -> device -> message. The only module here that knows Flower.

The device's number is `context.node_config["partition-id"]`; its state lives in `context.state` as bytes, so it survives
wherever the runtime keeps a Context. A failure carries device, round and stage, and leaves the state as it was.
"""

import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import numpy as np
import torch
from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from client import device as devices
from client.device import DeviceState
from client.stream import Stream
from sparcl_core.codec import Values
from sparcl_core.flops import Flops
from sparcl_core.footprint import activation_bytes, footprint
from sparcl_core.inputs import InputSpec
from sparcl_core.learner import Learner, MethodConfig, Session
from sparcl_core.losses import REPLAY_DRAWS
from sparcl_core.masks import count_active
from sparcl_core.protocol import Instruction


@dataclass(frozen=True)
class ClientConfig:
    """What every device knows before the first message.

    Attributes:
        method, inputs, task_epochs, seed: see `sparcl_core.learner.Learner`.
        up_values: how updates are coded.
    """

    method: MethodConfig
    inputs: InputSpec
    task_epochs: int
    seed: int
    up_values: Values


class DeviceError(RuntimeError):
    """A device failed; the message says which, in what round and at what stage."""


def make_client_app(config: ClientConfig, stream_of: Callable[[int], Stream]) -> ClientApp:
    """A ClientApp that can stand for any device of the fleet, one after another.

    Args:
        stream_of: device number -> its stream.
    """
    app = ClientApp()
    trainer = _Trainer(config, stream_of)

    @app.query()
    def describe(message: Message, context: Context) -> Message:
        """Who is this, and how much data has it for each task?"""
        number = _number(context)
        content = ConfigRecord({"device": number, "samples": stream_of(number).sizes})
        return Message(RecordDict({"device": content}), reply_to=message)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        return Message(trainer.train(message.content, context), reply_to=message)

    return app


class _Trainer:
    """Holds the reusable learner; made when the first message arrives, in the process that trains."""

    def __init__(self, config: ClientConfig, stream_of: Callable[[int], Stream]):
        self.config, self.stream_of = config, stream_of
        self._learner: Learner | None = None
        self._activations = 0

    @property
    def learner(self) -> Learner:
        if self._learner is None:
            config = self.config
            self._learner = Learner(config.method, config.inputs, config.task_epochs, config.seed)
            self._activations = activation_bytes(self._learner.model, config.inputs.shape)
        return self._learner

    def train(self, content: RecordDict, context: Context) -> RecordDict:
        """One round on one device; `context.state` is replaced only if all of it succeeded."""
        torch.set_num_threads(1)
        number, method = _number(context), self.config.method
        with _stage(f"device {number}", "instruction"):
            wire = content["instruction"]
            instruction = Instruction.from_wire(wire["control"], wire["payloads"])
        where = f"device {number}, round {instruction.round}"
        started = time.perf_counter()
        with _stage(where, "receive"):
            stream = self.stream_of(number)
            device = self._load(context, stream)
            device = devices.receive(device, instruction, self.learner, method)
        with _stage(where, "train"):
            device, session = devices.train(device, instruction, self.learner, stream, number)
        importance, flops = None, session.flops
        if instruction.report_importance:
            with _stage(where, "importance"):
                data = stream.task(instruction.task)
                importance, cost = self.learner.importance(session.state, device.masks, data, session.memory, number)
                flops += cost
        with _stage(where, "report"):
            device, report = devices.report(device, session, importance, self.learner, self.config.up_values)
            state = devices.save_state(device)
        context.state["device"] = ConfigRecord({"state": state})
        measured = self._measures(device, session, flops) | {"wall-seconds": time.perf_counter() - started}
        reply = ConfigRecord({"control": report.control, "delta": report.delta, "importance": report.importance})
        return RecordDict({"report": reply, "measures": MetricRecord(measured)})

    def _load(self, context: Context, stream: Stream) -> DeviceState:
        if "device" in context.state:
            return devices.load_state(context.state["device"]["state"])
        return devices.new_device(self.config.method, self.learner, stream)

    def _measures(self, device: DeviceState, session: Session, flops: Flops) -> dict[str, int | float]:
        """What the simulator wants to know of the round; not part of the protocol, and not counted as bytes."""
        config, learner = self.config.method.learner, self.learner
        active = count_active(device.masks)
        updated = {name: int(np.count_nonzero(mask)) for name, mask in session.updated.items()}
        draws = REPLAY_DRAWS[config.method]
        per_forward = config.batch_size * (1 + draws)
        needs = footprint(learner.model, active, updated, self._activations, per_forward, device.memory.buffer, federated=True)
        whole = {name: mask.size for name, mask in device.masks.items()}
        return {
            **{f"flops.{key}": value for key, value in asdict(flops).items()},
            **{f"dense-flops.{key}": value for key, value in asdict(session.dense_flops).items()},
            **{f"memory.{key}": value for key, value in asdict(needs).items()},
            "samples": session.samples,
            "replayed": session.replayed,
            "steps": session.steps,
            "loss": session.loss,
            "kept": int(np.count_nonzero(session.memory.ddr.kept)),
            "active": sum(active.values()),
            "updated": sum(updated.values()),
            "maskable": sum(whole.values()),
        }


def _number(context: Context) -> int:
    return int(context.node_config["partition-id"])


@contextmanager
def _stage(where: str, stage: str):
    try:
        yield
    except Exception as error:
        raise DeviceError(f"{where}, stage {stage}: {type(error).__name__}: {error}") from error
