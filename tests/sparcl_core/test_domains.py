"""Domains: one transformation a task, the same for every image, device and call; numbers by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparcl_core.domains import BATCH, Domains
from sparcl_core.seeding import generator


def images(count: int = 5, channels: int = 3, height: int = 6, width: int = 6, seed: int = 0) -> np.ndarray:
    return generator(seed, "images").integers(0, 256, (count, channels, height, width)).astype(np.uint8)


@pytest.mark.parametrize("kind", ["permuted", "rotated"])
def test_the_first_task_shows_the_images_as_they_are(kind):
    x = images()
    assert Domains(kind, 3, 45.0).apply(x, 0) is x


@given(
    st.sampled_from(["permuted", "rotated"]), st.integers(0, 4), st.integers(1, 3), st.integers(1, 7), st.integers(1, 7), st.integers(1, 9)
)
def test_the_form_stays_and_the_input_is_not_changed(kind, count, channels, height, width, task):
    x = images(count, channels, height, width)
    before = x.copy()
    moved = Domains(kind, 1, 33.0).apply(x, task)
    assert moved.shape == x.shape and moved.dtype == np.uint8 and moved.flags.c_contiguous
    assert np.array_equal(x, before)


@pytest.mark.parametrize("kind", ["permuted", "rotated"])
def test_an_image_is_transformed_alike_alone_and_among_others(kind):
    """Also over the border of a batch."""
    domains, x = Domains(kind, 1, 20.0), images(BATCH + 3)
    whole = domains.apply(x, 2)
    for place in (0, BATCH - 1, BATCH, BATCH + 2):
        assert np.array_equal(domains.apply(x[place : place + 1], 2)[0], whole[place])


def test_a_permutation_moves_whole_pixels_alike_in_all_images():
    """Image i, channel c holds pixel numbers + a constant: the order of pixels can be read off, and is the same everywhere."""
    pixels = np.arange(36).reshape(1, 1, 6, 6)
    x = (pixels + np.array([0, 100, 200])[None, :, None, None]).astype(np.uint8)
    moved = Domains("permuted", 5).apply(np.concatenate([x, x]), 1)
    order = moved[0, 0].ravel()
    assert sorted(order) == list(range(36)) and order.tolist() != list(range(36))
    for image in moved:
        assert np.array_equal(image[1] - 100, image[0]) and np.array_equal(image[2] - 200, image[0])
        assert np.array_equal(image[0].ravel(), order)


def test_a_permutation_is_a_function_of_seed_and_task():
    x = images()
    one = Domains("permuted", 5).apply(x, 1)
    assert np.array_equal(Domains("permuted", 5).apply(x, 1), one)
    assert not np.array_equal(Domains("permuted", 6).apply(x, 1), one)
    assert not np.array_equal(Domains("permuted", 5).apply(x, 2), one)


@pytest.mark.parametrize("size", [1, 2, 5, 6])
def test_quarter_turns_are_exact(size):
    x = images(height=size, width=size)
    domains = Domains("rotated", 0, 90.0)
    for task in range(5):
        assert np.array_equal(domains.apply(x, task), np.rot90(x, task, axes=(2, 3)))


def test_half_a_turn_of_an_oblong_image():
    x = images(height=3, width=5)
    assert np.array_equal(Domains("rotated", 0, 180.0).apply(x, 1), x[:, :, ::-1, ::-1])


def test_a_turn_by_45_degrees_by_hand():
    """3 x 3, a point of 200 above the middle, at (0, 1). A pixel at (right, up) comes from (cos right + sin up, cos up - sin right).

    (0, 0), at (-1, 1), comes from (0, 1.414): row -0.414, between the outside (weight 0.414) and row 0 (0.586): 200 * 0.586 = 117.
    (0, 1), at (0, 1), comes from (0.707, 0.707): row 0.293, column 1.707: of the point it takes 0.707 * 0.293 = 0.207: 41.
    (1, 0), at (-1, 0), comes from (-0.707, 0.707): row and column 0.293, of the point again 0.293 * 0.707: 41. The others do not reach it.
    """
    x = np.zeros((1, 1, 3, 3), dtype=np.uint8)
    x[0, 0, 0, 1] = 200
    turned = Domains("rotated", 0, 45.0).apply(x, 1)[0, 0]
    assert turned.tolist() == [[117, 41, 0], [41, 0, 0], [0, 0, 0]]


def test_what_is_turned_out_of_the_image_is_lost_and_the_gap_is_0():
    x = np.full((1, 1, 9, 9), 200, dtype=np.uint8)
    turned = Domains("rotated", 0, 45.0).apply(x, 1)[0, 0]
    assert turned[4, 4] == 200 and turned[0, 0] == turned[8, 8] == 0


def test_an_angle_is_the_sum_of_those_before():
    x = images()
    assert np.array_equal(Domains("rotated", 0, 15.0).apply(x, 4), Domains("rotated", 9, 60.0).apply(x, 1))


def test_bad_input():
    with pytest.raises(ValueError, match="kind is 'mirrored': choose 'permuted' or 'rotated'"):
        Domains("mirrored", 0)
    with pytest.raises(ValueError, match="rotation is inf"):
        Domains("rotated", 0, float("inf"))
    for x in (images().astype(float), images()[0]):
        with pytest.raises(ValueError, match=r"images are uint8 of shape \[N, C, H, W\]"):
            Domains("permuted", 0).apply(x, 1)
    with pytest.raises(ValueError, match="task is -1"):
        Domains("permuted", 0).apply(images(), -1)
