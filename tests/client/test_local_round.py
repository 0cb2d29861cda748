"""A device in a round: how it is brought up to date, what it trains, what it sends. Without Flower."""

from dataclasses import replace

import numpy as np
import pytest
from lab import INPUTS, SEED, Lab, flat, lab_mask, trained_device
from worlds import assert_same_arrays

from client.state.device_state import new_device
from sparcl_core import codec
from sparcl_core.codec import CodecError
from sparcl_core.learner import Learner
from sparcl_core.sparsity import tdm
from sparcl_core.sparsity.masks import apply_masks_
from sparcl_core.sparsity.update import MaskUpdate

# -- brought up to date


def test_a_device_never_seen_gets_the_whole_model():
    lab = Lab()
    payloads = lab.broadcast.payloads(0)
    assert len(payloads) == 1 and codec.decode(payloads[0].data, lab.learner.layout, {}).kind == "whole"
    device = lab.receive(lab.new_device(), payloads)
    lab.assert_up_to_date(device)
    assert all(not value.any() for value in device.residual.values())


@pytest.mark.parametrize(
    ("form", "dtype"),
    [("f16", "float32"), ("f32", "float32"), ("f64", "float64"), ("f16", "float64"), ("int4", "float32"), ("int8", "float64")],
)
def test_what_devices_hold_is_what_the_server_thinks_they_hold(form, dtype):
    """Bit for bit, whatever was missed: one device in every round, one that comes back after three mask updates, one new."""
    lab = Lab(form, dtype)
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
    assert len(payloads) == 1 and codec.decode(payloads[0].data, lab.learner.layout, {}).kind == "whole"
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
    update = MaskUpdate(1, "adapt", {name: active[1:]})
    lab.broadcast.update_masks(lab.weights, update, lab.learner.scheme)
    lab.broadcast.publish(lab.weights)
    device = lab.receive(device)
    lab.assert_up_to_date(device)
    back = np.intersect1d(np.flatnonzero(device.masks[name]), active[1:])
    assert back.size > 10
    assert not device.base[name].reshape(-1)[back].any() and not device.residual[name].reshape(-1)[back].any()


@pytest.mark.parametrize("whole", [False, True])
def test_a_residual_goes_through_mask_updates_like_the_weights(whole):
    """Beside the plain way, every update applied to the residual itself: bit for bit, with -0.0 and with values outside the masks, as a
    round with a mask of the device's own leaves them. A whole model ends it."""
    lab = Lab()
    device = lab.receive(lab.new_device())
    rng = np.random.default_rng(2)
    residual = {
        name: np.where(rng.random(v.shape) < 0.2, -0.0, rng.standard_normal(v.shape)).astype(v.dtype) for name, v in device.base.items()
    }
    device, wanted = replace(device, residual=residual), {name: value.copy() for name, value in residual.items()}
    for what in ("grow", "adapt", "replace", None):
        old = lab.broadcast.masks
        if what == "replace":
            others = {name: rng.permutation(mask.ravel()).reshape(mask.shape) for name, mask in old.items()}
            lab.broadcast.replace_masks(others, lab.weights)
            apply_masks_(wanted, {name: mask & lab.broadcast.masks[name] for name, mask in old.items()})
            lab.next_version(share=0.02)
            continue
        lab.next_version(share=0.02, what=what)
        if what:
            dropped = decoded_places(lab, old)
            update = MaskUpdate(lab.broadcast.mask_version, what, dropped)
            redone = tdm.update_masks(old, [wanted], update, config=lab.method.tdm, sparsity=lab.method.sparsity, seed=SEED)
            assert_same_arrays(redone, lab.broadcast.masks)
    chain = tuple(payload for version in range(2, 6) for payload in lab.broadcast._steps[version])
    device = lab.receive(device, (lab.broadcast.whole,) if whole else chain)
    lab.assert_up_to_date(device)
    assert_same_arrays(device.residual, {name: np.zeros_like(value) for name, value in wanted.items()} if whole else wanted)
    assert whole or any(value.any() for value in wanted.values())


def decoded_places(lab: Lab, masks) -> dict[str, np.ndarray]:
    """What the last version's mask update drops of `masks`."""
    update = lab.broadcast._steps[lab.broadcast.version][0]
    return {name: tensor.places for name, tensor in codec.decode(update.data, lab.learner.layout, masks).tensors.items()}


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
    payload = codec.encode("importance", lab.learner.layout, {}, model_version=1, mask_version=0)
    with pytest.raises(CodecError, match="not 'importance'"):
        lab.receive(device, (payload,))


@pytest.mark.parametrize("kind", ["whole", "grow"])
def test_a_payload_that_leaves_tensors_out_is_refused(kind):
    """Well-formed, but not what the protocol says: a whole model has all tensors, a mask update all masked ones."""
    lab = Lab()
    device = lab.receive(lab.new_device())
    payload = codec.encode(kind, lab.learner.layout, {}, model_version=2, mask_version=1)
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
        old, done = lab.train(device)
        device, report = lab.report(old, done)
        sent = lab.sent(report)
        for name, shape in lab.learner.layout.shapes.items():
            change = done.session.state[name] - old.base[name]
            arrived = np.zeros(shape, np.float32)
            if name in sent:
                arrived.reshape(-1)[sent[name].places] = sent[name].values
            assert not arrived[change == 0].any()
            # exact: a half is its float rounded, and the difference of two floats that close is a float
            assert np.array_equal(arrived + device.residual[name], change + old.residual[name])
    assert any(value.any() for value in device.residual.values())


def test_what_was_kept_back_of_a_weight_that_is_gone_goes_with_it():
    """A mask of the device's own that grew for one round leaves something behind outside the shared masks."""
    lab = Lab()
    device, done = lab.train(lab.receive(lab.new_device()))
    device = replace(device, residual={name: np.ones_like(value) for name, value in device.residual.items()})
    device, _ = lab.report(device, done)
    for name, mask in device.masks.items():
        assert not device.residual[name][~mask].any() and device.residual[name][mask].any()


@pytest.mark.parametrize(("form", "dtype"), [("f32", "float32"), ("f64", "float64")])
def test_lossless_updates_keep_nothing_back(form, dtype):
    lab = Lab(form, dtype)
    device, done = lab.train(lab.receive(lab.new_device()))
    device, report = lab.report(device, done)
    assert all(not value.any() for value in device.residual.values())
    for name, tensor in lab.sent(report).items():
        assert np.array_equal(tensor.values, (done.session.state[name] - device.base[name]).reshape(-1)[tensor.places])


def test_an_update_is_as_sparse_as_the_gradient_masks():
    lab = Lab()
    device, done = lab.train(lab.receive(lab.new_device()))
    _, report = lab.report(device, done)
    sent = lab.sent(report)
    for name, mask in device.masks.items():
        union = np.flatnonzero(done.session.updated[name])
        assert np.isin(sent[name].places, union).all() and union.size < mask.sum()


def test_a_report_says_what_it_rests_on():
    lab = Lab()
    device, done = lab.train(lab.receive(lab.new_device()))
    _, report = lab.report(device, done)
    assert (report.base_version, report.samples, report.masks) == (1, 12, b"")
    assert report.classes.tolist() == [True, True, False, False]
    device, done = lab.train(device, task=1)
    assert lab.report(device, done)[1].classes.all()


@pytest.mark.parametrize(("form", "step", "at_most"), [("f64", 0, 8.5), ("f32", 2**-24, 4.5), ("u8", 0.5 / 255, 1.2), ("u4", 1 / 15, 0.7)])
def test_importance_of_every_active_weight_travels_in_the_form_that_is_asked_for(form, step, at_most):
    """u8: half a step of 255, scale rounded up by at most 1/128. u4, a square law: (c + 1/2)^2 - c^2 of 15^2 is below 1/15."""
    lab = Lab(importance=form)
    device, done = lab.train(lab.receive(lab.new_device()), importance=True)
    importance, _ = lab.learner.importance(done.session.state, device.masks, lab.stream.task(0), done.session.memory, device=0)
    assert all(np.array_equal(done.importance[name], own) for name, own in importance.items())
    _, report = lab.report(device, done)
    arrived = codec.decode(report.masks, lab.learner.layout, device.masks)
    assert arrived.kind == "importance" and arrived.tensors.keys() == device.masks.keys()
    for name, tensor in arrived.tensors.items():
        true = importance[name].reshape(-1)[tensor.places]
        assert np.array_equal(tensor.places, np.flatnonzero(device.masks[name]))
        assert np.abs(tensor.values - true).max() <= step * true.max() * 129 / 128
    assert len(report.masks) / sum(mask.sum() for mask in device.masks.values()) <= at_most


def test_a_vote_names_the_places_that_the_device_would_drop_itself():
    lab = Lab(importance="votes")
    device, done = lab.train(lab.receive(lab.new_device()), importance=True)
    _, report = lab.report(device, done)
    arrived = codec.decode(report.masks, lab.learner.layout, device.masks)
    settings = {"config": lab.method.tdm, "sparsity": lab.method.sparsity, "number": 1}
    own = tdm.plan_update("adapt", device.masks, done.session.state, done.importance, **settings).dropped
    assert arrived.kind == "votes" and arrived.tensors.keys() == device.masks.keys() == own.keys()
    for name, tensor in arrived.tensors.items():
        assert np.array_equal(tensor.places, own[name]) and tensor.places.size == 26  # (0.6 - 0.5) of 256, to the nearest
    assert len(report.masks) < 60  # 26 of 128 places: 92 bits of entropy and a header


# -- masks of its own


def test_a_device_adapts_its_own_mask_by_its_own_clock():
    """Ten epochs in ten rounds: the mask rests in the first and the last, and changes in all others; a second task starts with growth.
    The device itself keeps the model that it was sent: mask and weights of the round are told to the server, and come back from it."""
    lab = Lab(mask="local")
    device = lab.receive(lab.new_device())
    shared, done, what = device.masks, None, []
    for server_round in range(1, 12):
        device, done = lab.train(device, task=int(server_round > 10), server_round=server_round)
        what.append(done.update.what if done.update else "rest")
        assert_same_arrays(device.masks, shared)
        for name, mask in done.masks.items():
            assert not done.session.state[name][~mask].any()
            assert mask.sum() == shared[name].sum() + (26 if what[-1] == "grow" else 0)
        if done.update:
            assert done.update.device == 0 and done.update.number == server_round
            redone = tdm.update_masks(shared, [], done.update, config=lab.method.tdm, sparsity=lab.method.sparsity, seed=SEED)
            assert_same_arrays(done.masks, redone)
    assert what == ["rest", *["adapt"] * 8, "rest", "grow"]


def test_what_a_device_drops_by_itself_is_not_sent_and_takes_its_residual_along():
    """Also where growth brings the place back in the same round: it restarts at 0, with nothing left over from before."""
    lab = Lab(mask="local", importance="f64")
    device, _ = lab.train(lab.receive(lab.new_device()))
    device = replace(device, residual={key: np.ones_like(value) * lab_mask(lab, key) for key, value in device.residual.items()})
    before = {name: value.copy() for name, value in device.residual.items()}
    old = device
    device, done = lab.train(device, server_round=2)
    assert_same_arrays(old.residual, before)  # the old state must survive a round that fails later
    back = dropped = 0
    for name, places in done.update.dropped.items():
        assert not device.residual[name].reshape(-1)[places].any()
        dropped += places.size
        back += np.count_nonzero(done.masks[name].reshape(-1)[places])
    assert dropped == 26 and back > 0
    device, report = lab.report(device, done, 2)
    own = {name: tensor.places for name, tensor in codec.decode(report.delta, lab.learner.layout, done.masks).tensors.items()}
    for name, mask in done.masks.items():
        assert mask.reshape(-1)[own[name]].all() and not device.residual[name][~mask].any()
    told = codec.decode(report.masks, lab.learner.layout, device.masks)
    assert told.kind == "adapt"
    assert_same_arrays({name: tensor.places for name, tensor in told.tensors.items()}, done.update.dropped)


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
    assert new_device(Learner(method, INPUTS, 10, SEED), lab.stream).memory.buffer.capacity == 3  # a tenth of 24, rounded up
