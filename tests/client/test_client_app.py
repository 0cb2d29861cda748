"""The Flower ClientApp: who a device is, what one round does to it, and what a failure leaves behind."""

import warnings

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, Context, Message, RecordDict
from worlds import tiny_world

from client.app import make_client_app
from client.state.device_state import DeviceState, load_state
from client.streams.stream import Stream
from simulations.build import make_strategy
from simulations.client_app import client_app
from simulations.engine.adapter import (
    APP_RAISED,
    RUN_ID,
    RecordDictProto,
    error_reply,
    identify_process,
    number_message,
    recorddict_from_proto,
    recorddict_to_proto,
)
from sparcl_core.learner import Learner
from sparcl_core.wire.protocol import Instruction, Report


@pytest.fixture(scope="module")
def world():
    return tiny_world()


@pytest.fixture
def instruction(world) -> Instruction:
    """The first round's: the whole model, one epoch, importance wanted."""
    strategy = make_strategy(world)
    strategy.model.broadcast.publish(strategy.weights)
    return Instruction(1, 0, 1, True, tuple(payload.data for payload in strategy.model.broadcast.payloads(0)))


def ask(app, device: int, content: RecordDict, kind: str = "train", state: RecordDict | None = None) -> tuple[Message, RecordDict | None]:
    """What becomes of one message to `device`: its reply and its new state; `state` stays as it is."""
    identify_process()
    message = Message(content, device + 1, kind, group_id="1")
    number_message(message, "1")
    context = Context(RUN_ID, device + 1, {"partition-id": device}, RecordDict(dict(state or {})), {})
    try:
        reply = app(message, context)
    except Exception as error:
        return error_reply(message, APP_RAISED, str(error)), None
    return reply, context.state


def training(instruction: Instruction, damage=lambda payload: payload) -> RecordDict:
    payloads = [damage(payload) for payload in instruction.payloads]
    return RecordDict({"instruction": ConfigRecord({"control": instruction.control, "payloads": payloads})})


def report_of(reply: Message) -> Report:
    wire = reply.content["report"]
    return Report.from_wire(wire["control"], wire["delta"], wire["masks"])


def stored(state: RecordDict) -> DeviceState:
    return load_state(state["device"])


def of_another_process(state: RecordDict) -> RecordDict:
    """The state with other objects of the same bytes."""
    return recorddict_from_proto(RecordDictProto.FromString(recorddict_to_proto(state).SerializeToString()))


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
        assert dict(alone[0].content["report"]) == dict(among_others[0].content["report"])
        assert dict(alone[1]["device"]) == dict(among_others[1]["device"])


def test_two_rounds_count_on(world, instruction):
    """DDR takes away floor(0.3 * 14) = 4 of the device's 14 samples before the second epoch."""
    app = client_app(*world.app_args)
    _, state = ask(app, 0, training(instruction))
    _, state = ask(app, 0, training(Instruction(2, 0, 1, False, ())), state=state)
    assert stored(state).memory.epochs == 2
    assert world.streams[0].sizes[0] == 14
    assert stored(state).memory.buffer.offered == 14 + 10


def test_devices_of_a_process_share_the_object_that_is_their_model(world, instruction):
    """So that whoever keeps their states can keep it once without looking into it."""
    app = client_app(*world.app_args)
    states = [ask(app, device, training(instruction))[1] for device in (0, 1, 2)]
    assert len({id(state["device"]["model"]) for state in states}) == 1
    assert len({state["device"]["own"] for state in states}) == 3
    states[1] = of_another_process(states[1])
    assert states[1]["device"]["model"] is not states[0]["device"]["model"]
    later = [ask(app, device, training(Instruction(2, 0, 1, False, ())), state=states[device])[1] for device in (0, 1, 2)]
    assert len({id(state["device"]["model"]) for state in later}) == 1


@pytest.mark.parametrize("overrides", [(), ("federation.mask=local",), ("wire.up=f32", "wire.down=f32"), ("sparsity=0",)])
def test_a_device_goes_on_in_any_process(overrides):
    """Moved to a fresh process after every round, and stale for two of them: the same replies and state as where it has always been."""
    world = tiny_world(*overrides)
    strategy, at_home, held = make_strategy(world), client_app(*world.app_args), 0
    state = None
    for server_round in range(1, 6):
        strategy.model.weights = {name: value * np.float32(0.99) for name, value in strategy.weights.items()}
        strategy.model.broadcast.publish(strategy.weights)
        if server_round in (3, 4):
            continue
        payloads = tuple(payload.data for payload in strategy.model.broadcast.payloads(held))
        content = training(Instruction(server_round, 0, 1, server_round == 2 and world.experiment.sparsity > 0, payloads))
        moved = ask(client_app(*world.app_args), 1, content, state=of_another_process(state) if state else None)
        stayed = ask(at_home, 1, content, state=state)
        assert dict(moved[0].content["report"]) == dict(stayed[0].content["report"])
        assert dict(moved[1]["device"]) == dict(stayed[1]["device"])
        state, held = stayed[1], server_round
    assert stored(state).version == 5 and stored(state).memory.epochs == 3


def test_a_stale_device_gets_the_whole_model_without_its_old_one_being_loaded(world, instruction, monkeypatch):
    _, state = ask(client_app(*world.app_args), 0, training(instruction))
    strategy = make_strategy(world)
    for _ in range(2):
        strategy.model.broadcast.publish(strategy.weights)
    later, elsewhere = Instruction(2, 0, 1, False, (strategy.model.broadcast.whole.data,)), client_app(*world.app_args)
    monkeypatch.setattr("client.state.model_cache.load_model", lambda saved: pytest.fail("the old model was loaded for nothing"))
    reply, state = ask(elsewhere, 0, training(later), state=state)
    assert report_of(reply).base_version == 2 and stored(state).memory.epochs == 2


def test_no_message_makes_torch_warn_of_shared_arrays(world, instruction):
    app, always = client_app(*world.app_args), torch.is_warn_always_enabled()
    torch.set_warn_always(True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            reply, state = ask(app, 0, training(instruction))
            assert not reply.has_error(), reply.error
            reply, state = ask(app, 0, training(Instruction(1, 0, 1, False, ())), "query.calibrate", state)
            assert not reply.has_error(), reply.error
    finally:
        torch.set_warn_always(always)


def test_a_round_is_measured_with_the_mask_that_it_trained_with():
    """A mask of the device's own grows by a hundredth of each tensor at the start of the second task."""
    world = tiny_world("federation.mask=local")
    strategy, app = make_strategy(world), client_app(*world.app_args)
    strategy.model.broadcast.publish(strategy.weights)
    payloads = tuple(payload.data for payload in strategy.model.broadcast.payloads(0))
    active, maskable = ({name: count(mask) for name, mask in strategy.masks.items()} for count in (np.count_nonzero, np.size))
    for task in (0, 1):
        measures = ask(app, 0, training(Instruction(1, task, 1, False, payloads)))[0].content["measures"]
        grown = sum(int(0.01 * size + 0.5) for size in maskable.values())
        assert measures["active"] == sum(active.values()) + task * grown and grown > 0


def no_data(device: int) -> Stream:
    raise FileNotFoundError("the disk is gone")


def test_a_failure_names_device_round_and_stage_and_leaves_the_state(world, instruction, monkeypatch):
    app, broken = client_app(*world.app_args), make_client_app(world.client_config, no_data)
    later = Instruction(7, 0, 1, True, instruction.payloads)

    def explode(*args, **kwargs):
        raise FloatingPointError("not finite")

    cases = [
        (broken, training(later), None, "device 1, round 7, stage receive: FileNotFoundError: the disk is gone"),
        (app, training(later, lambda payload: payload[:-1]), None, "device 1, round 7, stage receive: CodecError: checksum"),
        (app, training(Instruction(7, 5, 1, True, instruction.payloads)), None, "device 1, round 7, stage train: ValueError: task is 5"),
        (app, training(later), "train", "device 1, round 7, stage train: FloatingPointError: not finite"),
        (app, training(later), "importance", "device 1, round 7, stage train: FloatingPointError: not finite"),
    ]
    _, before = ask(app, 1, training(instruction))
    for tried, content, method, message in cases:
        with monkeypatch.context() as patch:
            if method:
                patch.setattr(Learner, method, explode)
            reply, state = ask(tried, 1, content)
        assert reply.has_error() and reply.error.reason.startswith(message)
        assert state is None  # nothing new to keep: the engine goes on with the old one
    assert dict(ask(app, 1, training(instruction))[1]["device"]) == dict(before["device"])  # nor is anything left behind in the process


def test_a_damaged_instruction_is_refused(world, instruction):
    content = training(instruction)
    content["instruction"]["control"] = instruction.control[:-1]
    reply, state = ask(client_app(*world.app_args), 1, content)
    assert reply.has_error() and reply.error.reason.startswith("device 1, stage instruction: CodecError: control of an instruction")
    assert state is None
