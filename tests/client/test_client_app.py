"""The Flower ClientApp: who a device is, what one round does to it, and what a failure leaves behind."""

import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from worlds import tiny_world

from client.app import make_client_app
from client.state import load_state
from client.stream import Stream
from simulations.build import client_app, make_strategy
from simulations.engine.adapter import (
    RecordDictProto,
    from_bytes,
    handle,
    identify_process,
    number_message,
    recorddict_from_proto,
    to_bytes,
)
from sparcl_core.learner import Learner
from sparcl_core.protocol import Instruction, Report


@pytest.fixture(scope="module")
def world():
    return tiny_world()


@pytest.fixture
def instruction(world) -> Instruction:
    """The first round's: the whole model, one epoch, importance wanted."""
    strategy = make_strategy(world)
    strategy.broadcast.publish(strategy.weights)
    return Instruction(1, 0, 1, True, tuple(payload.data for payload in strategy.broadcast.payloads(0)))


def ask(app, device: int, content: RecordDict, kind: str = "train", state: bytes = b""):
    """What becomes of one message to `device`: its reply and its new state."""
    identify_process()
    message = Message(content, device + 1, kind, group_id="1")
    number_message(message, "1")
    handled = handle(app, to_bytes(message), state, {"partition-id": device}, {})
    return from_bytes(handled.reply), handled.state


def training(instruction: Instruction, damage=lambda payload: payload) -> RecordDict:
    payloads = [damage(payload) for payload in instruction.payloads]
    return RecordDict({"instruction": ConfigRecord({"control": instruction.control, "payloads": payloads})})


def report_of(reply: Message) -> Report:
    wire = reply.content["report"]
    return Report.from_wire(wire["control"], wire["delta"], wire["masks"])


def stored(state: bytes):
    return load_state(recorddict_from_proto(RecordDictProto.FromString(state))["device"]["state"])


def test_a_device_says_who_it_is_and_what_it_has(world):
    reply, _ = ask(client_app(*world.app_args), 2, RecordDict(), "query")
    assert reply.content["device"]["device"] == 2
    assert reply.content["device"]["samples"] == world.streams[2].sizes


def test_a_round_returns_a_report_and_keeps_the_device(world, instruction):
    reply, state = ask(client_app(*world.app_args), 1, training(instruction))
    report = report_of(reply)
    assert (report.base_version, report.samples) == (1, world.streams[1].sizes[0])
    assert report.delta and report.masks
    device = stored(state)
    assert (device.version, device.task, device.memory.epochs) == (1, 0, 1)
    assert reply.content["measures"]["samples"] == report.samples


def test_importance_is_sent_only_when_it_is_asked_for(world, instruction):
    quiet = Instruction(1, 0, 1, False, instruction.payloads)
    app = client_app(*world.app_args)
    asked, unasked = (ask(app, 0, training(i))[0] for i in (instruction, quiet))
    assert report_of(unasked).masks == b""
    assert asked.content["measures"]["flops.importance"] > 0 == unasked.content["measures"]["flops.importance"]
    assert report_of(unasked).delta == report_of(asked).delta


def test_devices_do_not_leak_into_each_other(world, instruction):
    """One app stands for all devices of a process: what it sends for one does not depend on whom it served before."""
    shared = client_app(*world.app_args)
    for device in (2, 0, 1, 0):
        alone = ask(client_app(*world.app_args), device, training(instruction))
        among_others = ask(shared, device, training(instruction))
        for a, b in zip(alone, among_others, strict=True):
            if isinstance(a, bytes):
                assert a == b
            else:
                assert dict(a.content["report"]) == dict(b.content["report"])


def test_two_rounds_count_on(world, instruction):
    """DDR takes away floor(0.3 * 14) = 4 of the device's 14 samples before the second epoch."""
    app = client_app(*world.app_args)
    _, state = ask(app, 0, training(instruction))
    _, state = ask(app, 0, training(Instruction(2, 0, 1, False, ())), state=state)
    assert stored(state).memory.epochs == 2
    assert world.streams[0].sizes[0] == 14
    assert stored(state).memory.buffer.offered == 14 + 10


def no_data(device: int) -> Stream:
    raise FileNotFoundError("the disk is gone")


def test_a_failure_names_device_round_and_stage_and_leaves_the_state(world, instruction, monkeypatch):
    app, broken = client_app(*world.app_args), make_client_app(world.client_config, no_data)
    later = Instruction(7, 0, 1, True, instruction.payloads)

    def explode(*args):
        raise FloatingPointError("not finite")

    cases = [
        (broken, training(later), None, "device 1, round 7, stage receive: FileNotFoundError: the disk is gone"),
        (app, training(later, lambda payload: payload[:-1]), None, "device 1, round 7, stage receive: CodecError: checksum"),
        (app, training(Instruction(7, 5, 1, True, instruction.payloads)), None, "device 1, round 7, stage train: ValueError: task is 5"),
        (app, training(later), "train", "device 1, round 7, stage train: FloatingPointError: not finite"),
        (app, training(later), "importance", "device 1, round 7, stage train: FloatingPointError: not finite"),
    ]
    for tried, content, method, message in cases:
        with monkeypatch.context() as patch:
            if method:
                patch.setattr(Learner, method, explode)
            reply, state = ask(tried, 1, content)
        assert reply.has_error() and reply.error.reason.startswith(message)
        assert state is None  # nothing new to keep: the engine goes on with the old one


def test_a_damaged_instruction_is_refused(world, instruction):
    content = training(instruction)
    content["instruction"]["control"] = instruction.control[:-1]
    reply, state = ask(client_app(*world.app_args), 1, content)
    assert reply.has_error() and reply.error.reason.startswith("device 1, stage instruction: CodecError: control of an instruction")
    assert state is None
