"""The broadcast: what devices are thought to hold, and the cheapest way to bring each of them there."""

import numpy as np
import pytest
from worlds import assert_same_arrays

from server.global_model.broadcast import Broadcast
from sparcl_core.codec import Layout, decode
from sparcl_core.sparsity import tdm
from sparcl_core.sparsity.schemes import make_scheme
from sparcl_core.sparsity.settings import MaskConfig
from sparcl_core.sparsity.tdm import TDMConfig
from sparcl_core.wire.error_feedback import WireConfig

LAYOUT = Layout({"w": (20, 10), "b": (10,)}, frozenset({"w"}))
CONFIG, SPARSITY = TDMConfig(p_intra=0.1, p_inter=0.1), 0.5


def start(form: str = "f16", dtype=np.float32, **wire) -> tuple[Broadcast, dict[str, np.ndarray]]:
    """A broadcast with its first version out, and the server's weights."""
    rng = np.random.default_rng(0)
    masks = {"w": np.arange(200).reshape(20, 10) % 2 == 0}
    weights = {name: rng.standard_normal(shape).astype(dtype) for name, shape in LAYOUT.shapes.items()}
    weights["w"][~masks["w"]] = 0
    broadcast = Broadcast(weights, masks, LAYOUT, wire=WireConfig(down=form, **wire), seed=3)
    broadcast.publish(weights)
    return broadcast, weights


def test_the_first_version_is_the_initial_model():
    broadcast, weights = start()
    assert broadcast.version == 1
    assert_same_arrays(broadcast.held, weights)
    assert broadcast.payloads(1) == ()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_whole_model_is_lossless_and_brings_its_masks(dtype):
    broadcast, _ = start(dtype=dtype)
    payload = decode(broadcast.whole.data, LAYOUT, {})
    assert payload.kind == "whole" and (payload.model_version, payload.mask_version) == (1, 0)
    assert np.array_equal(payload.tensors["w"].places, np.flatnonzero(broadcast.masks["w"]))
    for name, tensor in payload.tensors.items():
        assert tensor.values.tobytes() == broadcast.held[name].reshape(-1)[tensor.places].tobytes()


def test_held_moves_by_what_was_sent_and_the_rest_follows():
    """w^ <- w^ + Q(w - w^): half precision leaves a rest of 2^-11 at most, the next version a rest of that rest."""
    broadcast, weights = start()
    for name in weights:
        weights[name] += (weights[name] != 0) * np.float32(0.1) * np.sqrt(np.abs(weights[name]))
    rests = []
    for _ in range(3):
        before = {name: value.copy() for name, value in broadcast.held.items()}
        broadcast.publish(weights)
        (payload,) = broadcast.payloads(broadcast.version - 1)
        for name, tensor in decode(payload.data, LAYOUT, broadcast.masks).tensors.items():
            before[name].reshape(-1)[tensor.places] += tensor.values
        assert_same_arrays(broadcast.held, before)
        rests.append(max(np.abs(weights[name] - broadcast.held[name]).max() for name in weights))
    assert 0 < rests[0] < 2e-4
    assert rests[1] < rests[0] / 500 and rests[2] <= rests[1]


@pytest.mark.parametrize(("form", "dtype"), [("f32", np.float32), ("f64", np.float64)])
def test_lossless_values_leave_next_to_nothing_behind(form, dtype):
    """held + (w - held) is w up to one rounding."""
    broadcast, weights = start(form, dtype)
    weights["b"] += 0.3
    broadcast.publish(weights)
    assert np.abs(broadcast.held["b"] - weights["b"]).max() <= np.finfo(dtype).eps * np.abs(weights["b"]).max()


def test_nothing_changed_means_next_to_nothing_sent():
    broadcast, weights = start()
    broadcast.publish(weights)
    assert sum(map(len, broadcast.payloads(1))) == 9 + 3 + 4  # fixed part of the header, versions and number of sections, checksum


def test_every_device_of_a_version_gets_the_same_objects():
    """What is sent to many is encoded once."""
    broadcast, weights = start()
    weights["b"] += 1
    broadcast.publish(weights)
    assert broadcast.payloads(0)[0] is broadcast.payloads(0)[0]
    assert broadcast.payloads(1)[0] is broadcast.payloads(1)[0]


def test_the_cheaper_way_is_taken():
    """The chain of small steps as long as it is not larger than the model; then, and for a new device, the model."""
    broadcast, weights = start()
    for version in range(2, 40):
        weights["b"][version % 10] += 0.5
        broadcast.publish(weights)
        assert broadcast.payloads(0) == (broadcast.whole,)
        for held in range(1, version + 1):
            payloads = broadcast.payloads(held)
            assert sum(map(len, payloads)) <= len(broadcast.whole)
            assert payloads == (broadcast.whole,) or len(payloads) == version - held
    assert len(broadcast.payloads(38)) == 1 and broadcast.payloads(38) != (broadcast.whole,)
    assert broadcast.payloads(1) == (broadcast.whole,)
    assert len(broadcast._steps) < 20  # what the whole model undercuts is forgotten, so memory does not grow with the run


def test_a_mask_update_zeroes_what_it_drops_on_both_sides():
    broadcast, weights = start()
    importance = {"w": np.random.default_rng(1).random((20, 10))}
    update = tdm.plan_update("adapt", broadcast.masks, weights, importance, config=CONFIG, sparsity=SPARSITY, number=1)
    assert update.dropped["w"].size == 20  # from 100 active ones to (1 - 0.5 - 0.1) * 200 = 80
    broadcast.update_masks(weights, update, make_scheme(MaskConfig(), CONFIG, SPARSITY, task_epochs=10, seed=3))
    broadcast.publish(weights)
    assert broadcast.mask_version == 1 and broadcast.masks["w"].sum() == 100
    for state in (weights, broadcast.held):
        assert not state["w"].reshape(-1)[update.dropped["w"]].any()
        assert not state["w"][~broadcast.masks["w"]].any()
    step, delta = broadcast.payloads(1)
    assert decode(step.data, LAYOUT, {"w": np.arange(200).reshape(20, 10) % 2 == 0}).kind == "adapt"
    assert decode(delta.data, LAYOUT, broadcast.masks).mask_version == 1
