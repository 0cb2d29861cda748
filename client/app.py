"""The Flower ClientApp: message -> typed values -> device -> message. The only module here that knows Flower.

The device's number is `context.node_config["partition-id"]`; its state lives in `context.state` as bytes, so it survives
wherever the runtime keeps a Context. A failure carries device, round and stage, and leaves the state as it was.
"""

import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import asdict, replace

import numpy as np
import torch
from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from client import local_round
from client.config import ClientConfig
from client.state.apply_payloads import bring
from client.state.device_state import DeviceState, load_own, new_device, save_state
from client.state.model_cache import ModelCache
from client.streams.stream import Stream
from sparcl_core import codec
from sparcl_core.codec import SparseTensor
from sparcl_core.costs.memory import activation_bytes, footprint, kept_bytes
from sparcl_core.evaluation import TestData, Tester
from sparcl_core.foreign import printable
from sparcl_core.learner import Learner
from sparcl_core.methods.auxiliary import within
from sparcl_core.sparsity.masks import State, count_active
from sparcl_core.wire.protocol import Instruction, Report


class DeviceError(RuntimeError):
    """A device failed; the message says which, in what round and at what stage."""


def make_client_app(
    config: ClientConfig,
    stream_of: Callable[[int], Stream],
    make_learner: Callable[..., Learner] = Learner,
    test_data: TestData | None = None,
) -> ClientApp:
    """A ClientApp that can stand for any device of the fleet, one after another.

    Args:
        stream_of: device number -> its stream.
        make_learner: arguments of `Learner` -> the one that trains; another than `Learner` for devices that do not train as they should.
        test_data: what devices' own models are evaluated on, if they are.
    """
    app = ClientApp()
    trainer = _Trainer(config, stream_of, make_learner, test_data)

    @app.query()
    def describe(message: Message, context: Context) -> Message:
        """Who is this, and how much data has it for each task?"""
        number = _number(context)
        content = ConfigRecord({"device": number, "samples": stream_of(number).sizes})
        return Message(RecordDict({"device": content}), reply_to=message)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        return Message(trainer.train(message.content, context), reply_to=message)

    @app.query("calibrate")
    def calibrate(message: Message, context: Context) -> Message:
        """What are the BatchNorm statistics of this model on your data?"""
        return Message(trainer.calibrate(message.content, context), reply_to=message)

    @app.query("sensitivity")
    def sensitivity(message: Message, context: Context) -> Message:
        """Which weights of the dense network would you keep, by your data?"""
        return Message(trainer.sensitivity(message.content, context), reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        """How good is the model that you would use? A measurement: the device keeps what it has."""
        return Message(trainer.evaluate(message.content, context), reply_to=message)

    return app


class _Trainer:
    """Holds what devices share: the reusable learner and the models; made when the first message arrives, in the process that trains."""

    def __init__(
        self, config: ClientConfig, stream_of: Callable[[int], Stream], make_learner: Callable[..., Learner], test_data: TestData | None
    ):
        self.test_data = test_data
        self.config, self.stream_of, self.make_learner = config, stream_of, make_learner
        self._learner: Learner | None = None
        self._versions: ModelCache | None = None
        self._activations = 0
        self._received: tuple[tuple[bytes, int], dict[str, np.ndarray]] = ((b"", 0), {})

    @property
    def learner(self) -> Learner:
        if self._learner is None:
            config = self.config
            self._learner = self.make_learner(config.method, config.inputs, config.task_epochs, config.seed)
            self._activations = activation_bytes(self._learner.model, config.inputs.shape)
        return self._learner

    @property
    def versions(self) -> ModelCache:
        if self._versions is None:
            self._versions = ModelCache(self.learner.layout, self.config)
        return self._versions

    def train(self, content: RecordDict, context: Context) -> RecordDict:
        """One round on one device; `context.state` is replaced only if all of it succeeded."""
        started = time.perf_counter()
        number, config = _number(context), self.config
        instruction, device, stream, where = self._receive(content, context)
        with _stage(where, "train"):
            before = time.thread_time()  # a worker that waits for a core does not train
            device, done = local_round.train(device, instruction, self.learner, stream, number=number, config=config)
            compute = time.thread_time() - before
        with _stage(where, "report"):
            layout, channel = self.learner.layout, self.learner.auxiliary.up
            to = {"number": number, "config": config, "server_round": instruction.round, "channel": channel}
            device, report = local_round.report(device, done, layout, **to)
            saved = save_state(device)
        context.state["device"] = ConfigRecord(saved)
        measured = self._measures(device, done) | {"wall-seconds": time.perf_counter() - started, "compute-seconds": compute}
        records = {"report": _report_record(report), "measures": MetricRecord(measured)}
        if config.batchnorm == "local" and device.statistics:
            records["observed"] = ConfigRecord({"statistics": self._statistics_payload(device.statistics, device)})
        return RecordDict(records)

    def calibrate(self, content: RecordDict, context: Context) -> RecordDict:
        """BatchNorm statistics of the global model on this device's data; the device keeps the model that it was brought to."""
        instruction, device, stream, where = self._receive(content, context)
        with _stage(where, "calibrate"):
            data, memory = stream.task(instruction.task), device.memory
            if instruction.task != device.step:  # it failed to train on this data so far: what DDR keeps is of other samples
                memory = memory.in_task(len(data.y))
            own, samples, flops = self.learner.statistics(device.base, device.masks, data, memory)
            report = Report(device.version, samples, device.seen, self._statistics_payload(own, device), b"")
            saved = save_state(device)
        context.state["device"] = ConfigRecord(saved)
        measures = {f"flops.{key}": value for key, value in asdict(flops).items()}
        return RecordDict({"report": _report_record(report), "measures": MetricRecord(measures)})

    def sensitivity(self, content: RecordDict, context: Context) -> RecordDict:
        """The places of the dense network to which this device's first data is most sensitive. It holds no model yet, and keeps nothing."""
        number, instruction, where = self._read(content, context)
        with _stage(where, "sensitivity"):
            stream = self.stream_of(number)
            report, flops = local_round.places_to_keep(self.learner, stream, instruction, number=number, config=self.config)
        measures = {f"flops.{key}": value for key, value in asdict(flops).items()}
        return RecordDict({"report": _report_record(report), "measures": MetricRecord(measures)})

    def evaluate(self, content: RecordDict, context: Context) -> RecordDict:
        """Right answers of this device's own model to the test data of every task; `context.state` stays as it is."""
        _, device, stream, where = self._receive(content, context)
        with _stage(where, "evaluate"):
            if self.test_data is None:
                raise ValueError("this app was made without test data: set evaluate_on=devices where it is made")
            own, received = replace(device.memory, received={}), within("method", device.memory.received)
            correct, total = Tester(self.learner, self.test_data).count(device.base, device.masks, own, received=received)
            had = {task for task, own in zip(stream.order[: device.step + 1], stream.samples, strict=False) if len(own)}
        counts = {"correct": correct.reshape(-1).tolist(), "total": total.reshape(-1).tolist(), "tasks": sorted(map(int, had))}
        return RecordDict({"evaluation": ConfigRecord(counts)})

    def _receive(self, content: RecordDict, context: Context) -> tuple[Instruction, DeviceState, Stream, str]:
        """The instruction, and the device brought to the model that it speaks of."""
        number, instruction, where = self._read(content, context)
        with _stage(where, "receive"):
            stream = self.stream_of(number)
            device = self._brought(context, stream, instruction.payloads)
            device = replace(device, memory=replace(device.memory, received=self._beside(instruction, device)))
        return instruction, device, stream, where

    @staticmethod
    def _read(content: RecordDict, context: Context) -> tuple[int, Instruction, str]:
        torch.set_num_threads(1)
        number = _number(context)
        with _stage(f"device {number}", "instruction"):
            wire = content["instruction"]
            instruction = Instruction.from_wire(wire["control"], wire["payloads"], wire.get("auxiliary", b""))
        return number, instruction, f"device {number}, round {instruction.round}"

    def _beside(self, instruction: Instruction, device: DeviceState) -> dict[str, np.ndarray]:
        """What came beside the model, decoded once for all devices that hold the same version."""
        if not instruction.auxiliary:
            return {}
        of = (instruction.auxiliary, device.version)
        if self._received[0] != of:
            self._received = of, self.learner.auxiliary.down.decode(instruction.auxiliary, device.masks, device.version)[0]
        return self._received[1]

    def _brought(self, context: Context, stream: Stream, payloads: tuple[bytes, ...]) -> DeviceState:
        """The device after `payloads` (`client.state.apply_payloads`), the work that devices share done once."""
        saved = context.state.get("device", {"model": b""})
        model, surviving = self.versions.follow(saved["model"], payloads)
        if "own" in saved:
            device = load_own(saved["own"], None if surviving.nothing else self.versions.load(saved["model"]))
        else:
            device = new_device(self.learner, stream)
        return bring(device, model, surviving, whole=self.learner.layout, config=self.config)

    def _statistics_payload(self, own: State, device: DeviceState) -> bytes:
        layout, coded = self.learner.layout, {}
        form = "f64" if self.config.method.model.dtype == "float64" else "f32"
        for name, value in own.items():
            over = codec.reference("statistics", layout, name, {})
            coded[name] = codec.quantise(SparseTensor(np.arange(value.size), value.reshape(-1)), over, form, name)
        return codec.encode("statistics", layout, coded, model_version=device.version, mask_version=device.mask_version).data

    def _measures(self, device: DeviceState, done: local_round.Round) -> dict[str, int | float]:
        """What the simulator wants to know of the round; not part of the protocol, and not counted as bytes."""
        learner, session, flops = self.learner, done.session, done.flops
        active = device.model.active if done.update is None else count_active(done.masks)
        updated = {name: int(np.count_nonzero(mask)) for name, mask in session.updated.items()}
        alive = self._activations * learner.samples_per_forward(session.memory.ddr.kept.size)
        kept = kept_bytes(device.memory) + learner.kept_data_bytes(session.memory.ddr.kept.size)
        kept += learner.auxiliary.down.held_bytes(active)
        whole = {name: mask.size for name, mask in done.masks.items()}
        has_ranked = done.importance is not None or done.update is not None
        ranked = learner.scheme.gradients_held(whole.values()) if has_ranked else 0
        needs = footprint(learner.held, active=active, updated=updated, activations=alive, method_bytes=kept, federated=True, ranked=ranked)
        return {
            **{f"flops.{key}": value for key, value in asdict(flops).items()},
            **{f"dense-flops.{key}": value for key, value in asdict(done.dense_flops).items()},
            **{f"memory.{key}": value for key, value in asdict(needs).items()},
            "samples": session.samples,
            "replayed": session.replayed,
            "dropped": session.dropped,
            "steps": session.steps,
            "loss": session.loss,
            "kept": int(np.count_nonzero(session.memory.ddr.kept)),
            "active": sum(active.values()),
            "updated": sum(updated.values()),
            "maskable": sum(whole.values()),
        }


def _number(context: Context) -> int:
    return int(context.node_config["partition-id"])


def _report_record(report: Report) -> ConfigRecord:
    parts = {"control": report.control, "delta": report.delta, "masks": report.masks}
    return ConfigRecord(parts | {"auxiliary": report.auxiliary} if report.auxiliary else parts)


@contextmanager
def _stage(where: str, stage: str):
    try:
        yield
    except Exception as error:
        raise DeviceError(f"{where}, stage {stage}: {type(error).__name__}: {printable(error)}") from error
