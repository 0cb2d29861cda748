"""What all devices of a process share: made once, the same bits as made by each, and never written to."""

import gc
import warnings
import weakref
from dataclasses import replace

import pytest
import torch
from lab import Lab, flat, trained_device
from worlds import assert_same_arrays

from client.state import model_cache
from client.state.apply_payloads import begins_anew, bring
from client.state.device_state import load_own, save_state
from client.state.model_cache import ModelCache
from client.state.received_model import NO_MODEL, Model, load_model
from sparcl_core.codec import CodecError


def versions_of(lab: Lab, **limits) -> ModelCache:
    return ModelCache(lab.learner.layout, lab.config, **limits)


def missing(lab: Lab, version: int) -> tuple[bytes, ...]:
    return tuple(payload.data for payload in lab.broadcast.payloads(version))


def test_a_version_is_made_once_whoever_comes():
    """Three devices on one version, one of them out of another process with equal bytes; one from an older version; one new."""
    lab = Lab()
    shared = versions_of(lab)
    first, _ = shared.follow(b"", missing(lab, 0))
    lab.next_version(share=0.02, what="adapt")
    second, _ = shared.follow(first.saved, missing(lab, 1))
    lab.next_version(share=0.02, what="adapt")
    copied = bytes(bytearray(second.saved))
    assert copied is not second.saved
    third, surviving = shared.follow(second.saved, missing(lab, 2))
    for found in (shared.follow(second.saved, missing(lab, 2)), shared.follow(copied, missing(lab, 2))):
        assert found[0] is third and found[1] is surviving
    assert shared.follow(first.saved, missing(lab, 1))[0] is third
    assert shared.follow(b"", (lab.broadcast.whole.data,))[0] is third
    assert third.saved is shared.load(third.saved).saved and third.version == 3


def test_bytes_of_another_process_are_loaded_once_and_kept():
    lab = Lab()
    saved = bytes(bytearray(trained_device(lab).model.saved))
    shared = versions_of(lab)
    assert shared.load(saved) is shared.load(bytes(bytearray(saved)))
    assert shared.follow(saved, ())[0] is shared.load(saved) and shared.load(saved).saved is saved


@pytest.mark.parametrize(("models", "steps"), [(4, 16), (1, 1)])
def test_what_is_shared_has_the_bits_of_what_each_would_make_for_itself(models, steps):
    """A device that keeps up, one that is stale, one that is new, over and over: whether things are remembered or were forgotten."""
    lab = Lab()
    shared, config, layout = versions_of(lab, models=models, steps=steps), lab.config, lab.learner.layout
    steady = stale = trained_device(lab)
    for what in ("grow", "adapt", None):
        lab.next_version(share=0.02, what=what)
        for device in (steady, stale, lab.new_device(), steady):
            payloads, saved = missing(lab, device.version), save_state(device)
            model, surviving = shared.follow(saved["model"], payloads)
            held = None if surviving.nothing else shared.load(saved["model"])
            brought = bring(load_own(saved["own"], held), model, surviving, whole=layout, config=config)
            alone = lab.receive(device)
            assert_same_arrays(flat(brought), flat(alone))
            assert save_state(brought) == save_state(alone)
        steady, done = lab.train(lab.receive(steady))
        steady, _ = lab.report(steady, done)


def test_a_whole_model_is_decoded_once_whatever_devices_held(monkeypatch):
    lab = Lab()
    shared, calls, true = versions_of(lab), [], model_cache.follow
    monkeypatch.setattr(model_cache, "follow", lambda *args: calls.append(args) or true(*args))
    monkeypatch.setattr(model_cache, "load_model", lambda saved: pytest.fail("an old model was loaded for nothing"))
    older = [trained_device(Lab(form)).model.saved for form in ("f16", "int8", "f32")]
    payloads = (lab.broadcast.whole.data,)
    assert begins_anew(payloads) and not begins_anew(()) and len(set(older)) == 3
    assert len({id(shared.follow(saved, payloads)[0]) for saved in (*older, b"")}) == 1 == len(calls)


def test_a_wrong_payload_is_refused_every_time_and_spoils_nothing():
    lab = Lab()
    shared = versions_of(lab)
    first, _ = shared.follow(b"", missing(lab, 0))
    before = load_model(first.saved)
    lab.next_version(share=0.02, what="adapt")
    update, delta = missing(lab, 1)
    whole = lab.broadcast.whole.data
    wrong = [
        (delta,),
        (delta, update),
        (update, delta[:-1]),
        (update, update),
        (whole[:-1],),
        (whole, delta),
        (b"",),
        (whole[:4],),
    ]
    for _ in range(2):
        for payloads in wrong:
            with pytest.raises(CodecError):
                shared.follow(first.saved, payloads)
            with pytest.raises(CodecError):
                lab.receive(replace(lab.new_device(), model=first), tuple(map(Raw, payloads)))
        with pytest.raises(CodecError):
            shared.follow(b"", ())
    assert shared.load(first.saved) is first
    assert_same_arrays(first.base, before.base)
    assert_same_arrays(first.masks, before.masks)
    assert_same_arrays(shared.follow(first.saved, (update, delta))[0].base, lab.broadcast.held)


class Raw:
    """A payload's bytes where an encoded payload is expected."""

    def __init__(self, data: bytes):
        self.data = data


@pytest.mark.parametrize("mask", ["shared", "local"])
def test_shared_arrays_cannot_be_written_to_and_no_round_wants_to(mask):
    """With every warning an error: torch warns of a read-only array, once per process unless it is told to do so always."""
    lab = Lab(mask=mask)
    device = trained_device(lab)
    loaded = load_model(device.model.saved)
    for model in (device.model, loaded):
        for array in (*model.base.values(), *model.masks.values()):
            with pytest.raises(ValueError, match="read-only"):
                array[...] = 0
    before = Model({k: v.copy() for k, v in loaded.base.items()}, {k: v.copy() for k, v in loaded.masks.items()}, *(3, loaded.mask_version))
    device, always = replace(device, model=loaded), torch.is_warn_always_enabled()
    torch.set_warn_always(True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for server_round in (3, 4):
                device, done = lab.train(device, importance=True, server_round=server_round)
                device, _ = lab.report(device, done, server_round)
            lab.learner.statistics({k: v.copy() for k, v in device.base.items()}, device.masks, lab.stream.task(0), device.memory)
    finally:
        torch.set_warn_always(always)
    assert device.model is loaded
    assert_same_arrays(device.base, before.base)
    assert_same_arrays(device.masks, before.masks)
    assert before.saved == loaded.saved


def test_only_so_many_are_kept():
    """Of six versions, each made from the one before, two are in memory in the end; asked for again, one that is gone is loaded."""
    lab = Lab()
    shared, kept, saved = versions_of(lab, models=2, steps=16), [], b""
    for version in range(6):
        model, _ = shared.follow(saved, missing(lab, version))
        saved = model.saved
        kept.append((saved, weakref.ref(model)))
        lab.next_version(share=0.02, what="adapt")
    del model
    gc.collect()
    assert [made() is not None for _, made in kept] == [False] * 4 + [True] * 2
    first = shared.load(kept[0][0])
    assert shared.load(kept[0][0]) is first and first.version == 1


def test_the_model_of_a_round_stays_while_stale_devices_come_and_go():
    """Each of four brings a model of its own along, and there is room for three: the one that they all end up with is made once."""
    lab = Lab("int8")
    held = [NO_MODEL]
    for version in range(4):
        held.append(versions_of(lab).follow(held[-1].saved, missing(lab, version))[0])
        lab.next_version(share=0.02)
    shared, found = versions_of(lab, models=3), set()
    for _ in range(3):
        for old in held[1:]:
            payloads = missing(lab, old.version)
            assert not begins_anew(payloads)
            model, _ = shared.follow(old.saved, payloads)
            assert shared.load(old.saved).version == old.version
            found.add(id(model))
    assert len(found) == 1
