"""Values: what is lost is bounded and unbiased, what is lossless loses nothing, and what cannot be said is refused."""

import math

import codec_oracles as slow
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparcl_core.codec import LIMIT, VALUES, WIDTH, Quantised, Reference, SparseTensor, quantise, values

INTEGERS = tuple(LIMIT)
UNSIGNED = ("u8", "u4")
MAX = float(np.finfo(np.float32).max)
any_float32 = st.floats(width=32, allow_nan=False, allow_infinity=False)
any_float64 = st.floats(allow_nan=False, allow_infinity=False)


def sent(numbers, form: str, rng=None, block: int = 0) -> Quantised:
    """All places of a tensor."""
    array = np.asarray(numbers)
    return quantise(SparseTensor(np.arange(array.size), array), Reference(array.size), form, "w", rng=rng, block=block)


def received(numbers, form: str, rng=None, block: int = 0) -> np.ndarray:
    """With the zeros that were not sent."""
    own = sent(numbers, form, rng, block)
    dense = np.zeros(len(numbers), own.values.dtype)
    dense[own.places] = own.values
    return dense


def numbers_for(form: str, largest: float = 2.0**100):
    return st.lists(st.floats(0.0 if form in UNSIGNED else -largest, largest, width=32), min_size=1, max_size=40)


# --- floats ----------------------------------------------------------------------------------------------------------


@given(st.lists(any_float64, max_size=30))
def test_f64_loses_nothing(numbers):
    array = np.array([*numbers, -0.0, 5e-324, -(2.0**-1060), np.finfo(float).max])
    assert sent(array, "f64").values.tobytes() == array.tobytes()


@given(st.lists(any_float32, max_size=30))
def test_f32_loses_nothing(numbers):
    array = np.array([*numbers, -0.0, 1e-45, -(2.0**-140), MAX], dtype=np.float32)
    assert sent(array, "f32").values.tobytes() == array.tobytes()
    assert sent(array.astype(np.float64), "f32").values.tobytes() == array.tobytes()


@given(st.lists(st.floats(-(2.0**127), 2.0**127, width=32), min_size=1, max_size=30))
def test_bf16_keeps_eight_bits_to_nearest_even(numbers):
    """Half a step of 2^-7: relative error 2^-8 in the normal range, half of 2^-133 below it."""
    array = np.array(numbers, dtype=np.float32)
    found = sent(array, "bf16").values.astype(float)
    assert (np.abs(found - array) <= np.maximum(2.0**-8 * np.abs(array.astype(float)), 2.0**-134)).all()


def test_bf16_by_hand():
    """Steps of 2^-7 from 1: halfway goes to the even one, 1 + 2^-8 down to 1 and 1 + 3 * 2^-8 up to 1 + 2^-6."""
    numbers = [1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-20, -0.0, 1 + 2**-7]
    assert sent(numbers, "bf16").values.tolist() == [1, 1 + 2**-6, 1 + 2**-7, 0, 1 + 2**-7]
    assert sent(numbers, "bf16").codes.tolist() == [0x3F80, 0x3F82, 0x3F81, 0x8000, 0x3F81]


@given(st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1, max_size=40))
def test_f16_keeps_eleven_bits_of_everything_near_the_largest_value(numbers):
    """Half precision rounds to 11 significant bits: relative error 2^-11 in its normal range.

    Scaled so that the largest value lies in [2^14, 2^15), the range reaches down to 2^-14, that is 2^-29 of the largest; what
    is smaller is rounded to multiples of 2^-24, so it errs by at most 2^-25 of a scaled unit, 2^-39 of the largest.
    """
    array = np.array(numbers, dtype=np.float32)
    error = np.abs(sent(array, "f16").values.astype(float) - array)
    floor = 2.0**-39 * np.abs(array).max().astype(float) + 2.0**-149  # and a float32 cannot say less than 2^-149
    assert (error <= np.maximum(2.0**-11 * np.abs(array.astype(float)), floor)).all()


def test_f16_does_not_lose_tiny_updates():
    """1e-9 is below the smallest half (6e-8): without the exponent of the tensor it would arrive as 0."""
    numbers = np.array([1e-9, -3e-10, 2e-12], dtype=np.float32)
    assert np.allclose(sent(numbers, "f16").values, numbers, rtol=2**-11, atol=0)


def test_f16_of_nothing_but_zeros():
    own = sent([0.0, -0.0], "f16")
    assert own.scales.tolist() == [128] and own.values.tobytes() == np.array([0.0, -0.0], np.float32).tobytes()


# --- integers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", INTEGERS)
@given(st.data())
def test_no_code_is_above_its_limit_and_no_value_leaves_its_step(form, data):
    """To nearest half a step, stochastic one. Of the square law the step is between square roots."""
    numbers = data.draw(numbers_for(form))
    block, seed = data.draw(st.sampled_from((0, 1, 3, 100))), data.draw(st.one_of(st.none(), st.integers(0, 99)))
    own = sent(numbers, form, None if seed is None else np.random.default_rng(seed), block)
    assert np.abs(own.codes).max(initial=0) <= LIMIT[form]
    found = received(numbers, form, None if seed is None else np.random.default_rng(seed), block).astype(float)
    scales = np.array([slow.upper_half(int(scale)) for scale in own.scales])
    assert scales.size == (math.ceil(len(numbers) / block) if block else 1)
    step = scales[np.arange(len(numbers)) // block] if block else scales[0]
    meant = np.array(numbers)
    if form == "u4":
        step, found, meant = np.sqrt(step) / 15, np.sqrt(found), np.sqrt(meant)
    error = np.abs(found - meant)
    assert (error <= (0.5 if seed is None else 1) * step * (1 + 2**-15) + (2.0**-140 if form != "u4" else 2.0**-70)).all()


@pytest.mark.parametrize("form", INTEGERS)
@given(st.data())
def test_scales_and_codes_are_the_slow_ones(form, data):
    numbers = np.array(data.draw(numbers_for(form)), dtype=np.float32)
    block = data.draw(st.sampled_from((0, 1, 3, 100)))
    own = sent(numbers, form, None, block)
    each = block or numbers.size
    scales = [slow.scale_of(float(np.abs(numbers[i : i + each]).max()), form) for i in range(0, numbers.size, each)]
    assert own.scales.tolist() == scales
    codes = [slow.nearest_code(form, float(v), scales[i // each]) for i, v in enumerate(numbers)]
    places = [i for i, code in enumerate(codes) if code or form in UNSIGNED]
    assert own.places.tolist() == own.ranks.tolist() == places and own.codes.tolist() == [codes[i] for i in places]
    assert own.values.tolist() == [slow.value_of(form, codes[i], scales[i // each]) for i in places]


@pytest.mark.parametrize("form", INTEGERS)
@given(st.data())
def test_a_scale_is_rounded_up_by_less_than_a_hundredth(form, data):
    """16 bits of float32 keep 8 significant ones: up to 2^-7, so that few steps are wasted; and the largest value fits."""
    numbers = np.array(data.draw(numbers_for(form)), dtype=np.float32)
    largest = float(np.abs(numbers).max()) / (1 if form == "u4" else LIMIT[form])
    scale = slow.upper_half(int(sent(numbers, form).scales[0]))
    assert largest * (1 - 2**-23) - 2.0**-149 <= scale <= largest * (1 + 2**-7) + 2.0**-133


def test_int8_by_hand():
    """Largest 254: a scale of 2 says it exactly. 3 is 1.5 steps, to the even 2; 1 is 0.5, to 0, and is not sent; -5 is -2.5, to -2."""
    own = sent([254.0, 3.0, 1.0, -5.0, 0.0, -254.0], "int8")
    assert own.scales.tolist() == [0x4000] and own.places.tolist() == [0, 1, 3, 5]
    assert own.codes.tolist() == [127, 2, -2, -127] and own.values.tolist() == [254, 4, -4, -254]


def test_blocks_have_their_own_scale():
    """Places of the reference set that share one: ranks 0 to 2, 3 to 5 and 6; a block of which no value is sent has scale 0."""
    tensor = SparseTensor(np.array([10, 12, 16]), np.array([7.0, 14.0, -0.875], dtype=np.float32))
    own = quantise(tensor, Reference(7, np.arange(10, 17)), "int4", "w", block=3)
    assert own.ranks.tolist() == [0, 2, 6] and own.total == 7 and own.block == 3
    assert own.scales.tolist() == [0x4000, 0, 0x3E00]  # 2, 0 and 1 / 8
    assert own.codes.tolist() == [4, 7, -7] and own.values.tolist() == [8, 14, -0.875]  # 3.5 to the even 4


def test_the_square_law_by_hand():
    """Codes c mean (c / 15)^2: 1/225 of the largest is the smallest that is not 0, where u8 would say 1/255."""
    own = sent([225.0, 1.0, 4.0, 100.0, 0.2, 0.0], "u4")
    assert own.scales.tolist() == [0x4361] and own.codes.tolist() == [15, 1, 2, 10, 0, 0]  # 225 = 0x43610000
    assert np.allclose(own.values, [225, 1, 4, 100, 0, 0], rtol=1e-6)
    assert own.places.size == 6  # importance of 0 is said, for its places are sent anyway


@pytest.mark.parametrize("form", values.SIGNED)
@given(st.data())
def test_zero_codes_are_not_sent(form, data):
    numbers = data.draw(numbers_for(form))
    own = sent(numbers, form, data.draw(st.sampled_from((None, np.random.default_rng(1)))))
    assert (own.codes != 0).all() and own.places.size == own.ranks.size == own.codes.size == own.values.size
    assert np.array_equal(np.sign(own.values) * (own.values != 0), np.sign(np.array(numbers)[own.places]) * (own.values != 0))


@pytest.mark.parametrize("form", [*values.SIGNED, "u8"])
def test_stochastic_rounding_is_unbiased(form):
    """30,000 draws of each of some distances from the lower step: their mean is within 5 sigma = 5 sqrt(p (1 - p) / n) steps."""
    draws, limit = 30_000, LIMIT[form]
    for i, share in enumerate((0.001, 0.1, 0.25, 0.5, 0.77, 0.999)):
        for whole in (0, 1, limit - 1):
            meant = np.float32(whole + share)
            numbers = np.full(draws + 1, meant)
            numbers[-1] = limit  # a scale of 1
            codes = received(numbers, form, np.random.default_rng(100 * i + whole))[:-1].astype(float)
            assert set(codes) <= {whole, whole + 1}
            sigma = math.sqrt(share * (1 - share) / draws)
            assert abs(codes.mean() - meant) <= 5 * sigma + 2**-20, (share, whole)


def test_stochastic_rounding_of_the_square_law_is_unbiased_in_the_root():
    """0.3 of the step between 4 and 5: the root is 4.3 / 15."""
    numbers = np.full(30_001, (4.3 / 15) ** 2, dtype=np.float32)
    numbers[-1] = 1
    codes = sent(numbers, "u4", np.random.default_rng(0)).codes[:-1]
    assert set(codes.tolist()) == {4, 5} and abs(codes.mean() - 4.3) <= 5 * math.sqrt(0.21 / 30_000)


@pytest.mark.parametrize("form", VALUES)
def test_the_same_generator_gives_the_same_bits(form):
    numbers = np.abs(np.random.default_rng(0).laplace(size=1000))
    first, second, other = (sent(numbers, form, np.random.default_rng(seed), 64).values.tobytes() for seed in (7, 7, 8))
    assert first == second
    assert (first == other) == (form not in INTEGERS)  # floats are rounded to nearest either way


def test_nothing_but_zeros():
    for form in INTEGERS:
        for block in (0, 2):
            own = sent([0.0, -0.0, 0.0], form, np.random.default_rng(0), block)
            assert not own.values.any() and not own.scales.any() and own.places.size == (3 if form in UNSIGNED else 0)


@pytest.mark.parametrize("form", VALUES)
def test_nothing_at_all(form):
    for total in (0, 5):
        own = quantise(SparseTensor(np.arange(0), np.empty(0)), Reference(total), form, "w", rng=np.random.default_rng(0), block=2)
        assert own.values.size == 0 and own.values.dtype == (np.float64 if form == "f64" else np.float32)
        assert own.scales.size == values.num_scales(form, total, own.block)


@pytest.mark.parametrize("form", INTEGERS)
def test_the_highest_scale_is_the_last_that_stays_a_number(form):
    """Times the highest code it is within float32; the next is not."""
    highest, limit = values.highest_scale(form), 1 if form == "u4" else LIMIT[form]
    assert slow.upper_half(highest) * limit <= MAX < slow.upper_half(highest + 1) * limit
    largest = np.float32(slow.upper_half(highest)) * np.float32(limit)
    assert np.isfinite(sent([largest], form).values).all()


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", VALUES)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_no_value_that_is_not_finite_is_sent(form, bad):
    with pytest.raises(ValueError, match="w holds a value that is NaN or infinite: it is not sent"):
        sent([0.5, bad], form)


@pytest.mark.parametrize("form", UNSIGNED)
def test_importance_is_not_negative(form):
    with pytest.raises(ValueError, match=f"w holds a negative value: {form} is for importance, which has none"):
        sent([1.0, -1e-30], form)
    assert sent([1.0, -0.0], form).codes[1] == 0


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("form", [form for form in VALUES if form != "f64"])
def test_what_no_float32_can_say_is_refused(form):
    with pytest.raises(ValueError, match=f"w holds a value that {form} cannot express: send f64"):
        sent([1e39], form)
    assert sent([1e39], "f64").values.tolist() == [1e39]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("form", ["bf16", "f16", *INTEGERS])
def test_what_would_be_rounded_up_to_infinity_is_refused(form):
    """The largest float32 has more bits than any of these keep."""
    with pytest.raises(ValueError, match=f"w holds a value that {form} cannot express: send f32"):
        sent([1.0, MAX], form)
    assert sent([MAX], "f32").values.tolist() == [MAX]


@pytest.mark.parametrize(("form", "last"), [("bf16", 0x7F7F7FFF), ("f16", 0x7F7FEFFF)])
def test_the_last_value_that_is_sent_and_the_first_that_is_not(form, last):
    """bf16: below half a step above 0x7F7F; f16: below 32752 + 8 of 2^113, half a step below 2^128."""
    good, bad = (np.array([bits], np.uint32).view(np.float32) for bits in (last, last + 1))
    assert np.isfinite(sent(good, form).values).all()
    with pytest.raises(ValueError, match="cannot express"):
        sent(bad, form)


def test_every_place_has_a_value():
    with pytest.raises(ValueError, match="w has 3 places, but 2 values"):
        quantise(SparseTensor(np.arange(3), np.ones(2)), Reference(3), "f32", "w")


def test_places_lie_in_the_reference_set_sorted():
    def check(places, reference, message):
        with pytest.raises(ValueError, match=message):
            quantise(SparseTensor(np.array(places), np.ones(len(places))), reference, "int8", "w")

    some = Reference(3, np.array([2, 5, 9]))
    for places in ([3], [2, 10], [-1], [2, 5, 8], [9, 11], [0]):
        check(places, some, "w has values outside its mask: they cannot be encoded")
    check([0], Reference(0, np.arange(0)), "outside its mask")
    for places in ([3], [-1], [0, 3]):
        check(places, Reference(3), "w has values outside its 3 places: they cannot be encoded")
    for places in ([5, 2], [2, 2], [9, 5]):
        check(places, some, "places of w are not sorted, each once")


@pytest.mark.parametrize("places", [[], [2], [2, 9], [2, 5, 9]])
def test_ranks_and_places_are_inverse(places):
    some = Reference(3, np.array([2, 5, 9]))
    ranks = some.ranks(np.array(places, dtype=np.int64), "w")
    assert ranks.tolist() == [[2, 5, 9].index(place) for place in places] and some.at(ranks).tolist() == places


def test_widths_and_limits():
    assert WIDTH == slow.WIDTHS and LIMIT == slow.LIMITS and tuple(WIDTH) == VALUES
    assert VALUES == ("f64", "f32", "f16", "bf16", "int8", "int4", "u8", "u4", "int6")  # their numbers on the wire
    assert {form: values.highest_token(form) for form in VALUES} == {
        "f64": 255, "f32": 255, "f16": 255, "bf16": 255,
        "int8": slow.token(126)[0], "int6": slow.token(30)[0], "int4": 6, "u8": slow.token(255)[0], "u4": 15,
    }  # fmt: skip
