"""A device between rounds: what it keeps, how it is brought up to date, what it sends. Without Flower."""

from dataclasses import replace

import numpy as np
import pytest
from worlds import assert_same_arrays

from client import device as devices
from client.device import DeviceState
from client.stream import Stream
from server.broadcast import Broadcast
from sparcl_core import codec, tdm
from sparcl_core.codec import CodecError
from sparcl_core.ddr import DDRConfig
from sparcl_core.dgm import DGMConfig
from sparcl_core.inputs import InputSpec
from sparcl_core.learner import Learner
from sparcl_core.method import LearnerConfig, MethodConfig
from sparcl_core.models import ModelConfig
from sparcl_core.protocol import Instruction
from sparcl_core.solo import start_model
from sparcl_core.tdm import TDMConfig

INPUTS = InputSpec((1, 4, 4), 4, (8.0,), (4.0,))
SEED = 5


def method_of(dtype: str = "float32") -> MethodConfig:
    model, learner, tdm_config = ModelConfig("mlp", width=16, dtype=dtype), LearnerConfig(batch_size=4, buffer_size=6), TDMConfig(0.1, 0.1)
    return MethodConfig(model, learner, tdm_config, DDRConfig(), DGMConfig(), sparsity=0.5)


def make_stream() -> Stream:
    rng = np.random.default_rng(0)
    y = np.arange(24) // 6  # six of each class; two classes a task
    return Stream(rng.integers(0, 17, (24, 1, 4, 4), dtype=np.uint8), y, (np.arange(12), np.arange(12, 24)), ((0, 1), (2, 3)))


class Lab:
    """A server's broadcast whose model drifts at random, and what is needed to receive from it."""

    def __init__(self, values: codec.Values = "f16", dtype: str = "float32"):
        self.method = method_of(dtype)
        self.learner = Learner(self.method, INPUTS, 10, SEED)
        self.stream = make_stream()
        self.weights, masks = start_model(self.learner, self.method, SEED)
        self.broadcast = Broadcast(self.weights, masks, self.learner.layout, values)
        self.rng = np.random.default_rng(1)
        self.broadcast.publish(self.weights)

    def new_device(self) -> DeviceState:
        return devices.new_device(self.method, self.learner, self.stream)

    def next_version(self, share: float = 1.0, what: tdm.Action | None = None) -> None:
        """Move a share of the weights by about 0.01, change the masks if asked to, publish."""
        for name, value in self.weights.items():
            moved = self.rng.random(value.shape) < share
            if name in self.broadcast.masks:
                moved &= self.broadcast.masks[name]
            value += (moved * 0.01 * self.rng.standard_normal(value.shape)).astype(value.dtype)
        if what:
            importance = {name: self.rng.random(mask.shape) for name, mask in self.broadcast.masks.items()}
            args = (self.method.tdm, self.method.sparsity)
            update = tdm.plan_update(what, self.broadcast.masks, self.weights, importance, *args, self.broadcast.mask_version + 1)
            self.broadcast.update_masks(self.weights, update, *args, SEED)
        self.broadcast.publish(self.weights)

    def receive(self, device: DeviceState, payloads: tuple[bytes, ...] | None = None) -> DeviceState:
        """`device` after an instruction with `payloads`, by default those that its version needs."""
        payloads = self.broadcast.payloads(device.version) if payloads is None else payloads
        return devices.receive(device, Instruction(1, 0, 1, False, payloads), self.learner, self.method)

    def train(self, device: DeviceState, task: int = 0):
        return devices.train(device, Instruction(1, task, 1, False, ()), self.learner, self.stream, 0)

    def assert_up_to_date(self, device: DeviceState) -> None:
        assert_same_arrays(device.base, self.broadcast.held)
        assert_same_arrays(device.masks, self.broadcast.masks)
        assert (device.version, device.mask_version) == (self.broadcast.version, self.broadcast.mask_version)


def trained_device(lab: Lab) -> DeviceState:
    """A device with something in every field: two rounds, a mask update, a residual, a half-full history."""
    device = lab.receive(lab.new_device())
    for what in (None, "adapt"):
        device, session = lab.train(device)
        device, _ = devices.report(device, session, None, lab.learner, "f16")
        lab.next_version(what=what)
        device = lab.receive(device)
    return device


# -- saved and loaded


def flat(device: DeviceState) -> dict[str, np.ndarray]:
    """Every field of a device as an array."""
    memory = device.memory
    parts = {f"{part}.{name}": value for part in ("base", "masks", "residual") for name, value in getattr(device, part).items()}
    parts |= {f"buffer.{key}": np.asarray(value) for key, value in vars(memory.buffer).items()}
    parts |= {f"ddr.{key}": np.asarray(value) for key, value in vars(memory.ddr).items()}
    scalars = (device.task, device.version, device.mask_version, memory.epochs, memory.twin_offered)
    return parts | {"seen": device.seen, "scalars": np.array(scalars)}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_device_loads_as_it_was_saved(dtype):
    device = trained_device(Lab(dtype=dtype))
    loaded = devices.load_state(devices.save_state(device))
    assert_same_arrays(flat(loaded), flat(device))
    assert vars(device).keys() == {"base", "masks", "residual", "memory", "seen", "task", "version", "mask_version"}  # none forgotten
    assert vars(device.memory).keys() == {"buffer", "ddr", "epochs", "twin_offered"}


def test_a_new_device_loads_as_it_was_saved():
    device = Lab().new_device()
    assert_same_arrays(flat(devices.load_state(devices.save_state(device))), flat(device))


def test_a_loaded_device_goes_on_as_if_never_saved():
    """Also proves that loaded arrays may be written to, which arrays over a bytes object may not."""
    lab = Lab()
    device = trained_device(lab)
    loaded = devices.load_state(devices.save_state(device))  # before: training counts DDR statistics in place
    (went_on, session), (again, resumed) = lab.train(device), lab.train(loaded)
    assert_same_arrays(resumed.state, session.state)
    assert_same_arrays(flat(again), flat(went_on))


# -- brought up to date


def test_a_device_never_seen_gets_the_whole_model():
    lab = Lab()
    payloads = lab.broadcast.payloads(0)
    assert len(payloads) == 1 and codec.decode(payloads[0], lab.learner.layout, {}).kind == "whole"
    device = lab.receive(lab.new_device(), payloads)
    lab.assert_up_to_date(device)
    assert all(not value.any() for value in device.residual.values())


@pytest.mark.parametrize(("values", "dtype"), [("f16", "float32"), ("f32", "float32"), ("f64", "float64"), ("f16", "float64")])
def test_what_devices_hold_is_what_the_server_thinks_they_hold(values, dtype):
    """Bit for bit, whatever was missed: one device in every round, one that comes back after three mask updates, one new."""
    lab = Lab(values, dtype)
    steady = lab.receive(lab.new_device())
    stale = steady
    for what in ("grow", "adapt", None, "adapt"):
        lab.next_version(share=0.02, what=what)
        steady = lab.receive(steady)
        lab.assert_up_to_date(steady)
    chain = lab.broadcast.payloads(stale.version)
    assert len(chain) == 4 + 3  # a delta per version, before three of them a mask update
    lab.assert_up_to_date(lab.receive(stale, chain))
    lab.assert_up_to_date(lab.receive(stale, (lab.broadcast.whole,)))
    lab.assert_up_to_date(lab.receive(lab.new_device()))


def test_a_device_that_missed_too_much_gets_the_whole_model():
    """Full deltas in 16 bits: two of them and their heads outweigh the model in 32, so three versions back is whole."""
    lab = Lab()
    device = lab.receive(lab.new_device())
    for _ in range(3):
        lab.next_version()
    payloads = lab.broadcast.payloads(device.version)
    assert len(payloads) == 1 and codec.decode(payloads[0], lab.learner.layout, {}).kind == "whole"
    lab.assert_up_to_date(lab.receive(device))


def test_inactive_weights_are_zero_on_the_device_after_mask_updates():
    lab = Lab()
    device = trained_device(lab)
    assert any(value.any() for value in device.residual.values())
    for what in ("grow", "adapt"):
        lab.next_version(share=0.02, what=what)
    device = lab.receive(device)
    for name, mask in device.masks.items():
        assert not device.base[name][~mask].any()
        assert not device.residual[name][~mask].any()


def test_a_place_that_is_dropped_and_grown_back_restarts_at_zero():
    """Dropping everything but one weight makes growth bring most places back at once: their old residual must not return."""
    lab = Lab()
    name = next(iter(lab.broadcast.masks))
    device = lab.receive(lab.new_device())
    device = replace(device, residual={key: np.ones_like(value) * lab_mask(lab, key) for key, value in device.residual.items()})
    active = np.flatnonzero(lab.broadcast.masks[name])
    update = tdm.MaskUpdate(1, "adapt", {name: active[1:]})
    lab.broadcast.update_masks(lab.weights, update, lab.method.tdm, lab.method.sparsity, SEED)
    lab.broadcast.publish(lab.weights)
    device = lab.receive(device)
    lab.assert_up_to_date(device)
    back = np.intersect1d(np.flatnonzero(device.masks[name]), active[1:])
    assert back.size > 10
    assert not device.base[name].reshape(-1)[back].any() and not device.residual[name].reshape(-1)[back].any()


def lab_mask(lab: Lab, name: str) -> np.ndarray:
    return lab.broadcast.masks.get(name, np.array(1)).astype(np.float32)


def test_payloads_out_of_sequence_are_refused():
    lab = Lab()
    device = lab.receive(lab.new_device())
    for what in ("grow", "adapt"):
        lab.next_version(share=0.02, what=what)
    grow, first, adapt, second = lab.broadcast.payloads(device.version)
    up_to_date = lab.receive(device, (grow, first, adapt, second))
    for payloads in (
        (adapt, second),  # a version is left out
        (grow, adapt, second),  # a delta is left out
        (grow, first, second),  # a mask update is left out
        (first,),
        (grow, grow),  # twice
        (second,),
        (first, grow),  # the wrong way round
    ):
        with pytest.raises(CodecError):
            lab.receive(device, payloads)
    for payloads in ((second,), (adapt,), (first,)):
        with pytest.raises(CodecError):
            lab.receive(up_to_date, payloads)


def test_a_device_without_a_model_cannot_start_from_a_delta():
    lab = Lab()
    old = lab.receive(lab.new_device())
    lab.next_version(share=0.02)
    for payloads in (lab.broadcast.payloads(old.version), ()):
        with pytest.raises(CodecError):
            lab.receive(lab.new_device(), payloads)


def test_an_importance_report_is_no_instruction():
    lab = Lab()
    device = lab.receive(lab.new_device())
    payload = codec.encode("importance", lab.learner.layout, {}, device.masks, "u8", 1, 0)
    with pytest.raises(CodecError, match="not 'importance'"):
        lab.receive(device, (payload,))


@pytest.mark.parametrize("kind", ["whole", "grow"])
def test_a_payload_that_leaves_tensors_out_is_refused(kind):
    """Well-formed, but not what the protocol says: a whole model has all tensors, a mask update all masked ones."""
    lab = Lab()
    device = lab.receive(lab.new_device())
    payload = codec.encode(kind, lab.learner.layout, {}, device.masks if kind == "grow" else {}, "f32", 2, 1)
    with pytest.raises(CodecError):
        lab.receive(device, (payload,))


def test_receiving_leaves_the_old_state_as_it_was():
    """A refused payload, or a round that fails later, must find the device as it was before."""
    lab = Lab()
    device = trained_device(lab)
    before = {key: value.copy() for key, value in flat(device).items()}
    lab.next_version(share=0.02, what="adapt")
    lab.receive(device)
    assert_same_arrays(flat(device), before)


# -- what is sent


@pytest.mark.parametrize("rounds", [1, 4])
def test_what_is_sent_and_what_is_kept_back_add_up(rounds):
    """Error feedback: sent + new residual = change + old residual where something changed, and nothing is lost elsewhere."""
    lab = Lab()
    device = lab.receive(lab.new_device())
    for _ in range(rounds):
        old, session = lab.train(device)
        device, report = devices.report(old, session, None, lab.learner, "f16")
        sent = codec.decode(report.delta, lab.learner.layout, device.masks).tensors
        for name, shape in lab.learner.layout.shapes.items():
            change = session.state[name] - old.base[name]
            arrived = np.zeros(shape, np.float32)
            arrived.reshape(-1)[sent[name].places] = sent[name].values
            assert not arrived[change == 0].any()
            # exact: a half is its float rounded, and the difference of two floats that close is a float
            assert np.array_equal(arrived + device.residual[name], change + old.residual[name])
    assert any(value.any() for value in device.residual.values())


@pytest.mark.parametrize(("values", "dtype"), [("f32", "float32"), ("f64", "float64")])
def test_lossless_updates_keep_nothing_back(values, dtype):
    lab = Lab(values, dtype)
    device, session = lab.train(lab.receive(lab.new_device()))
    device, report = devices.report(device, session, None, lab.learner, values)
    assert all(not value.any() for value in device.residual.values())
    sent = codec.decode(report.delta, lab.learner.layout, device.masks).tensors
    for name, tensor in sent.items():
        assert np.array_equal(tensor.values, (session.state[name] - device.base[name]).reshape(-1)[tensor.places])


def test_an_update_is_as_sparse_as_the_gradient_masks():
    lab = Lab()
    device, session = lab.train(lab.receive(lab.new_device()))
    _, report = devices.report(device, session, None, lab.learner, "f16")
    sent = codec.decode(report.delta, lab.learner.layout, device.masks).tensors
    for name, mask in device.masks.items():
        union = np.flatnonzero(session.updated[name])
        assert np.isin(sent[name].places, union).all() and union.size < mask.sum()


def test_a_report_says_what_it_rests_on():
    lab = Lab()
    device, session = lab.train(lab.receive(lab.new_device()))
    _, report = devices.report(device, session, None, lab.learner, "f16")
    assert (report.base_version, report.samples, report.importance) == (1, 12, b"")
    assert report.classes.tolist() == [True, True, False, False]
    device, session = lab.train(device, task=1)
    assert devices.report(device, session, None, lab.learner, "f16")[1].classes.all()


@pytest.mark.parametrize(("values", "exact"), [("f16", False), ("f32", True), ("f64", True)])
def test_importance_travels_in_eight_bits_unless_updates_are_lossless(values, exact):
    lab = Lab()
    device, session = lab.train(lab.receive(lab.new_device()))
    importance, _ = lab.learner.importance(session.state, device.masks, lab.stream.task(0), session.memory, 0)
    _, report = devices.report(device, session, importance, lab.learner, values)
    arrived = codec.decode(report.importance, lab.learner.layout, device.masks)
    assert arrived.kind == "importance" and arrived.tensors.keys() == device.masks.keys()
    for name, tensor in arrived.tensors.items():
        true = importance[name].reshape(-1)[tensor.places]
        assert np.array_equal(tensor.places, np.flatnonzero(device.masks[name]))
        assert np.array_equal(tensor.values, true) if exact else np.abs(tensor.values - true).max() <= true.max() / 255
    per_weight = (len(report.importance) - codec.HEADER.size) / sum(mask.sum() for mask in device.masks.values())
    assert 8 <= per_weight < 9 if exact else 1 <= per_weight < 1.3


def test_a_new_task_restarts_data_removal_and_keeps_the_buffer():
    lab = Lab()
    device, _ = lab.train(lab.receive(lab.new_device()))
    offered = device.memory.buffer.offered
    assert (device.memory.epochs, offered, device.task) == (1, 12, 0)
    device, _ = lab.train(device, task=1)
    assert (device.memory.epochs, device.memory.buffer.offered, device.task) == (1, 24, 1)
    assert device.memory.ddr.kept.size == 12 and device.memory.ddr.passes.tolist() == [1] * 12
    device, _ = lab.train(device, task=1)
    assert device.memory.epochs == 2


def test_the_buffer_is_sized_by_the_whole_stream():
    lab = Lab()
    method = replace(lab.method, learner=replace(lab.method.learner, buffer_size=0, buffer_share=0.1))
    assert devices.new_device(method, lab.learner, lab.stream).memory.buffer.capacity == 3  # a tenth of 24, rounded up
