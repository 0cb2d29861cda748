"""What a device keeps, as bytes: the same bits come back, what devices share is one byte string, and zeros cost nothing."""

from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lab import Lab, flat, trained_device
from worlds import assert_same_arrays

from client.state.device_state import DeviceState, load_own, load_state, save_state
from client.state.received_model import NO_MODEL, Model, load_model
from sparcl_core.replay.buffer import Buffer
from sparcl_core.replay.memory import Memory
from sparcl_core.sparsity.ddr import DDRState

SHAPES = {"first": (3, 5), "sparse": (4, 3, 3, 2), "bias": (7,), "hidden": (9, 11)}
SHARES = st.sampled_from([0.0, 0.02, 0.5, 1.0])


def numbers(rng: np.random.Generator, shape: tuple[int, ...], dtype: str, share: float, within=True) -> np.ndarray:
    """A share of the places `within` hold any bits at all, NaN, -0.0 and subnormals among them."""
    array = np.frombuffer(rng.bytes(int(np.prod(shape)) * np.dtype(dtype).itemsize), dtype).reshape(shape).copy()
    array[rng.random(shape) < 0.2] = -0.0
    array[~((rng.random(shape) < share) & within)] = 0
    return array


@st.composite
def devices(draw) -> DeviceState:
    """Devices of all kinds: dense and sparse, with values outside the masks, with and without statistics of their own."""
    rng, dtype = np.random.default_rng(draw(st.integers(0, 2**32))), draw(st.sampled_from(["float32", "float64"]))
    masks = {name: rng.random(SHAPES[name]) < draw(SHARES) for name in draw(st.sampled_from([(), ("sparse",), ("sparse", "hidden")]))}
    within = {name: True if draw(st.booleans()) else masks.get(name, True) for name in SHAPES}
    base, residual = ({name: numbers(rng, shape, dtype, draw(SHARES), within[name]) for name, shape in SHAPES.items()} for _ in range(2))
    statistics = {name: numbers(rng, (5,), dtype, 1.0) for name in draw(st.sampled_from([(), ("mean", "var")]))}
    rows, samples, count = draw(st.sampled_from([0, 3])), draw(st.sampled_from([0, 13])), st.integers(0, 2**40)
    buffer = Buffer(
        rng.integers(0, 256, (rows, 1, 2, 2), np.uint8), rng.integers(0, 9, rows), numbers(rng, (rows, 4), dtype, 1.0), draw(count)
    )
    flags, tallies = rng.random((3, samples)) < 0.5, rng.integers(0, 9, (3, samples), dtype=np.int32)
    removal = DDRState(flags[0], tallies[0], tallies[1], flags[1], flags[2], tallies[2], draw(st.integers(0, 9)))
    kept = {
        name: numbers(rng, shape, dtype, 1.0) for name, shape in draw(st.sampled_from([{}, {"fisher/w": (3, 2), "none": (0, 4)}])).items()
    }
    arrays = kept | ({"mask": np.packbits(flags[0]), "steps": np.array(7)} if draw(st.booleans()) else {})
    memory = Memory(buffer, removal, draw(count), draw(count), arrays)
    model = Model(base, masks, draw(st.integers(1, 2**31)), draw(st.integers(0, 2**31)))
    task, step = draw(st.integers(-1, 99)), draw(st.integers(-1, 99))
    seen, losses = rng.random(4) < 0.5, rng.random(draw(st.integers(0, 5)))
    return DeviceState(model=model, statistics=statistics, residual=residual, memory=memory, seen=seen, task=task, step=step, losses=losses)


@settings(max_examples=150)
@given(devices())
def test_a_device_loads_as_it_was_saved(device):
    saved = save_state(device)
    loaded = load_state(saved)
    assert_same_arrays(flat(loaded), flat(device))
    assert_same_arrays(loaded.statistics, device.statistics)
    assert list(loaded.base) == list(device.base) and list(loaded.residual) == list(device.residual)
    again = save_state(replace(loaded, model=Model(loaded.model.base, loaded.masks, loaded.version, loaded.mask_version)))
    assert again == saved


def test_no_field_is_forgotten():
    assert {field.name for field in fields(DeviceState)} == {
        "model", "statistics", "residual", "memory", "seen", "task", "step", "losses",
    }  # fmt: skip
    assert {field.name for field in fields(Model)} == {"base", "masks", "version", "mask_version"}
    assert {field.name for field in fields(Memory)} == {
        "buffer", "ddr", "epochs", "twin_offered", "arrays", "corrected", "received",
    }  # fmt: skip
    assert len(fields(Buffer)) == 4 and len(fields(DDRState)) == 7


def test_a_new_device_loads_as_it_was_saved():
    device = Lab().new_device()
    saved = save_state(device)
    loaded = load_state(saved)
    assert_same_arrays(flat(loaded), flat(device))
    assert saved["model"] == b"" and loaded.model is NO_MODEL


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_loaded_device_goes_on_as_if_never_saved(dtype):
    """What is loaded lies in read-only bytes: training copies what it counts in, and the saved bytes stay as they are."""
    lab = Lab(dtype=dtype)
    device = trained_device(lab)
    saved = save_state(device)
    loaded = load_state(saved)
    (went_on, done), (again, resumed) = lab.train(device), lab.train(loaded)
    assert_same_arrays(resumed.session.state, done.session.state)
    assert_same_arrays(flat(again), flat(went_on))
    assert_same_arrays(flat(lab.report(again, resumed)[0]), flat(lab.report(went_on, done)[0]))
    assert_same_arrays(flat(load_state(saved)), flat(device))


def test_devices_of_one_version_share_their_models_bytes():
    """Whatever they did and whatever way they took: step by step, or by the whole model."""
    lab = Lab()
    steady = trained_device(lab)
    untrained = lab.receive(lab.new_device(), (lab.broadcast.whole,))
    one, other = save_state(steady), save_state(untrained)
    assert one["model"] == other["model"] and one["own"] != other["own"]
    lab.next_version(share=0.02, what="adapt")
    both = lab.receive(steady), lab.receive(untrained, (lab.broadcast.whole,))
    assert save_state(both[0])["model"] == save_state(both[1])["model"] != one["model"]


def test_a_dropped_weight_takes_no_room_and_a_zero_residual_none_at_all():
    """Dense, half and tenth of 100 000 places: 4 bytes per active one and one bit per place; 2 kB for heads."""
    for density in (1.0, 0.5, 0.1):
        device = wide_device(density)
        saved = save_state(device)
        active = int(device.masks["wide"].sum())
        assert len(saved["model"]) <= 4 * active + 100_000 / 8 + 2000
        assert len(saved["own"]) < 2000
        left = {"wide": device.base["wide"]}
        assert len(save_state(replace(device, residual=left))["own"]) <= 4 * active + 2000  # no bits: it fills the active places
        left = {"wide": np.where(np.arange(100_000) % 10, 0, device.base["wide"].ravel()).reshape(100, 1000)}
        assert len(save_state(replace(device, residual=left))["own"]) <= 4 * np.count_nonzero(left["wide"]) + active / 8 + 2000


def wide_device(density: float) -> DeviceState:
    mask = np.random.default_rng(1).random((100, 1000)) < density
    model = Model({"wide": mask * np.float32(1.5)}, {"wide": mask}, 1, 0)
    return replace(Lab().new_device(), model=model, residual={"wide": np.zeros((100, 1000), np.float32)})


def test_a_weight_outside_its_mask_is_kept_all_the_same():
    """It never happens; but if it did, a saved device would be the same device. -0.0 is a bit, too."""
    device = wide_device(0.1)
    for odd in (1.0, -0.0):
        base = device.base["wide"].copy()
        base[~device.masks["wide"]] = odd
        model = Model({"wide": base}, device.masks, 1, 0)
        assert_same_arrays(load_model(model.saved).base, {"wide": base})
        assert len(model.saved) > 400_000


def test_a_device_that_will_get_the_whole_model_is_loaded_without_its_old_one():
    device = trained_device(Lab())
    loaded = load_own(save_state(device)["own"], None)
    bare = replace(device, model=NO_MODEL, residual={})
    assert_same_arrays(flat(loaded), flat(bare))


def test_bytes_of_another_release_or_cut_off_are_refused():
    saved = save_state(trained_device(Lab()))
    for part in ("model", "own"):
        for broken, message in (
            (b"\x10\0\0\0" + saved[part][4:], "another release"),
            (saved[part][:-8], "cut off"),
            (saved[part][:4], "cut off"),
            (saved[part][:20], "cut off"),
        ):
            with pytest.raises(ValueError, match=message):
                load_state(saved | {part: broken})


@pytest.mark.parametrize("kept", [np.array([None, 1]), np.zeros(2, [("mean", "f4"), ("count", "i8")])])
def test_what_a_method_keeps_must_be_arrays_of_numbers(kept):
    memory = replace(trained_device(Lab()).memory, arrays={"kept": kept})
    with pytest.raises(ValueError, match="a learning method keeps arrays of numbers"):
        save_state(replace(trained_device(Lab()), memory=memory))
