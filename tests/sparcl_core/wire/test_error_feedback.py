"""Error feedback and top-k: whatever is not sent now is kept, so that nothing is ever lost."""

import numpy as np
import pytest

from sparcl_core.codec import LOSSLESS, WIDTH, Reference
from sparcl_core.wire.error_feedback import WEIGHT_FORMS, WireConfig, code_update, statistics_form

MASKED = Reference(40, np.arange(0, 120, 3))
WHOLE = Reference(120)


def deltas(over: Reference, count: int, dtype=np.float64):
    """Changes of a [10, 12] tensor, smaller from round to round, of which a third is 0."""
    rng = np.random.default_rng(3)
    for step in range(count):
        delta = np.zeros(120, dtype)
        places = over.at(np.arange(over.total))
        delta[places] = (rng.standard_normal(places.size) * (rng.random(places.size) < 2 / 3) * 0.3**step).astype(dtype)
        yield delta.reshape(10, 12)


def code(delta, residual, over=WHOLE, form="f32", stochastic=False, block=0, share=1.0):
    rng = np.random.default_rng(9) if stochastic else None
    return code_update(delta, residual, over, form, name="w", rng=rng, block=block, share=share)


@pytest.mark.parametrize("share", [1.0, 0.3])
@pytest.mark.parametrize("block", [0, 16])
@pytest.mark.parametrize("stochastic", [False, True])
@pytest.mark.parametrize("form", WEIGHT_FORMS)
@pytest.mark.parametrize("over", [WHOLE, MASKED], ids=["whole", "masked"])
def test_what_arrived_and_what_is_kept_back_is_all_there_was(over, form, stochastic, block, share):
    """The sum of everything received plus the residual equals the sum of all changes, up to the rounding of float64."""
    total, arrived, residual = np.zeros((10, 12)), np.zeros((10, 12)), None
    outside = np.ones(120, dtype=bool)
    outside[over.at(np.arange(over.total))] = False
    for delta in deltas(over, 6):
        sent = code(delta, residual, over, form, stochastic, block, share)
        assert sent.coded.places.size <= np.ceil(share * over.total)
        assert sent.residual.shape == delta.shape and sent.residual.dtype == delta.dtype
        arrived.reshape(-1)[sent.coded.places] += sent.coded.values
        total, residual = total + delta, sent.residual
        assert np.abs(arrived + residual - total).max() < 1e-14
        assert not residual.reshape(-1)[outside].any()
    assert arrived.any()


@pytest.mark.parametrize(("form", "stochastic"), [("f16", False), ("bf16", False), ("int8", True), ("int4", True), ("int4", False)])
@pytest.mark.parametrize("share", [1.0, 0.3])
def test_a_residual_arrives_in_the_end(form, stochastic, share):
    """Changes stop; integers and top-k then send what is left, float forms what changed least: 40 rounds on, all of it is small."""
    residual = np.zeros((10, 12))
    for delta in deltas(WHOLE, 3):
        residual = code(delta, residual, WHOLE, form, stochastic, 0, share).residual
    left = np.abs(residual).max()
    sizes = [left]
    for _ in range(40):
        nothing = np.full((10, 12), 1e-300)  # changed, by nothing
        residual = code(nothing, residual, WHOLE, form, stochastic, 0, share).residual
        sizes.append(np.abs(residual).max())
    assert left > 0 and sizes[-1] < left / 1000


@pytest.mark.parametrize(("form", "dtype"), [("f32", np.float32), ("f64", np.float64), ("f64", np.float32)])
def test_lossless_forms_keep_nothing_back(form, dtype):
    residual = None
    for delta in deltas(MASKED, 4, dtype):
        sent = code(delta, residual, MASKED, form)
        residual = sent.residual
        assert not residual.any()
        assert np.array_equal(sent.coded.values, delta.reshape(-1)[sent.coded.places])
        assert np.array_equal(sent.coded.places, np.flatnonzero(delta))


@pytest.mark.parametrize("form", WEIGHT_FORMS)
def test_top_k_sends_the_largest(form):
    """Two fifths of five places are two: the 9 and the 5. What was not sent counts from then on: 1 + 3 and 3 + 3 win against 2.5."""
    over = Reference(5)
    first = code(np.array([5.0, -9, 1, 0, 3]), None, over, form, share=0.4)
    assert first.coded.places.tolist() == [0, 1]
    assert first.residual[2:].tolist() == [1, 0, 3]
    second = code(np.array([2.5, 0, 3, 0, 3]), first.residual, over, form, share=0.4)
    assert second.coded.places.tolist() == [2, 4]
    assert np.allclose(second.coded.values, [4, 6], rtol=0.3)


@pytest.mark.parametrize(("share", "count"), [(0.001, 1), (0.2, 8), (0.21, 9), (1.0, 40)])
def test_a_share_is_of_the_reference_set_and_never_nothing(share, count):
    delta = np.zeros(120)
    delta[MASKED.places] = np.arange(1, 41)
    places = code(delta, None, MASKED, "f32", share=share).coded.places
    assert places.tolist() == MASKED.places[-count:].tolist()


def test_float_forms_send_only_what_changed_and_integers_what_is_left_too():
    delta, residual = np.array([0.0, 1, 0, 0]), np.array([0.5, 0.25, 0, 0])
    for form in ("f64", "f32", "f16", "bf16"):
        sent = code(delta, residual, Reference(4), form)
        assert (sent.coded.places.tolist(), sent.coded.values.tolist()) == ([1], [1.25])
        assert sent.residual.tolist() == [0.5, 0, 0, 0]
    for form in ("int8", "int4"):
        assert code(delta, residual, Reference(4), form).coded.places.tolist() == [0, 1]


def test_nothing_at_all_is_sent_as_nothing():
    for form in WEIGHT_FORMS:
        assert code(np.zeros(120), None, MASKED, form).coded.places.size == 0
        assert code(np.zeros(0), None, Reference(0), form).coded.places.size == 0


def test_the_arguments_are_left_alone():
    delta, residual = np.array([1.0, 2, 3]), np.array([0.1, 0, 0])
    code(delta, residual, Reference(3), "int4")
    assert delta.tolist() == [1, 2, 3] and residual.tolist() == [0.1, 0, 0]


@pytest.mark.parametrize("form", WEIGHT_FORMS)
def test_statistics_never_go_below_16_bits(form):
    assert WIDTH[statistics_form(form)] >= 16
    assert statistics_form(form) == form if form in LOSSLESS else statistics_form(form) == "bf16"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"up": "u8"}, "up is 'u8': take one of f64, f32, f16, bf16, int8, .*int4"),
        ({"down": "f8"}, "down is 'f8': take one of f64"),
        ({"importance": "int8"}, "importance is 'int8': take one of f64, f32, u8, u4, votes"),
        ({"rounding": "up"}, "rounding is 'up': take one of nearest, stochastic"),
        ({"block": -1}, "block is -1: places per scale, or 0 for one scale per tensor"),
        ({"up_share": 0.0}, r"up_share is 0.0: a share in \(0, 1\]; 1 sends whatever changed"),
        ({"up_share": 1.1}, "up_share is 1.1"),
        ({"up_share": float("nan")}, "up_share is nan"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        WireConfig(**settings)
