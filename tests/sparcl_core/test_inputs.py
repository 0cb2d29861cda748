import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from sparcl_core.inputs import InputSpec, augment, normalise

KINDS = ["crop", "crop-flip"]


def numbered(batch: int, channels: int, height: int, width: int) -> torch.Tensor:
    """Images in which every pixel differs from its neighbours and none is 0, the padding's value."""
    return (torch.arange(batch * channels * height * width) % 251 + 1).to(torch.uint8).reshape(batch, channels, height, width)


def windows(image: torch.Tensor, padding: int, flips: bool) -> set[bytes]:
    """Every crop of the zero-padded image [C, H, W], and its mirror images."""
    _, height, width = image.shape
    padded = F.pad(image, [padding] * 4)
    crops = [padded[:, y : y + height, x : x + width] for y in range(2 * padding + 1) for x in range(2 * padding + 1)]
    return {crop.numpy().tobytes() for crop in crops + ([crop.flip(2) for crop in crops] if flips else [])}


def test_no_augmentation_is_the_identity():
    x = numbered(3, 1, 4, 4)
    rng = np.random.default_rng(0)
    assert torch.equal(augment(x, "none", rng), x)
    assert rng.random() == np.random.default_rng(0).random()  # and draws nothing


@pytest.mark.parametrize("kind", KINDS)
@given(batch=st.integers(1, 5), channels=st.integers(1, 3), height=st.integers(1, 20), width=st.integers(1, 20), seed=st.integers(0, 99))
def test_every_sample_becomes_a_window_of_its_own_zero_padded_image(kind, batch, channels, height, width, seed):
    x = numbered(batch, channels, height, width)
    before = x.clone()
    result = augment(x, kind, np.random.default_rng(seed))
    assert result.shape == x.shape and result.dtype == torch.uint8
    assert torch.equal(x, before)
    for image, cropped in zip(x, result, strict=True):
        assert cropped.numpy().tobytes() in windows(image, max(1, height // 8), kind == "crop-flip")


@pytest.mark.parametrize(("kind", "outcomes"), [("crop", 81), ("crop-flip", 162)])
def test_draws_differ_from_sample_to_sample_and_reach_every_outcome(kind, outcomes):
    # 32 pixels: padding 4, so 9 x 9 windows, and each mirrored. One draw per call would give one outcome.
    x = numbered(1, 1, 32, 32).expand(3000, -1, -1, -1)
    result = augment(x, kind, np.random.default_rng(0))
    assert {image.numpy().tobytes() for image in result} == windows(x[0], 4, kind == "crop-flip")
    assert len(torch.unique(result.flatten(1), dim=0)) == outcomes


def test_half_of_the_samples_are_flipped():
    # a bright left half: shifts of one pixel cannot hide on which side it ends up
    x = torch.zeros(2000, 1, 8, 8, dtype=torch.uint8)
    x[..., :4] = 200
    result = augment(x, "crop-flip", np.random.default_rng(0))
    flipped = result[..., 4:].float().sum((1, 2, 3)) > result[..., :4].float().sum((1, 2, 3))
    assert abs(flipped.float().mean().item() - 0.5) < 0.056  # five standard errors


def test_the_generator_alone_decides():
    x = numbered(20, 3, 16, 16)
    torch.manual_seed(0)
    first = augment(x, "crop-flip", np.random.default_rng(4))
    torch.manual_seed(1)
    assert torch.equal(first, augment(x, "crop-flip", np.random.default_rng(4)))
    assert not torch.equal(first, augment(x, "crop-flip", np.random.default_rng(5)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_normalising_by_hand_per_channel(dtype):
    # channel 0: (200 - 100) / 50 = 2; channel 1: (10 - 20) / 5 = -2
    x = torch.tensor([[[[200]], [[10]]]], dtype=torch.uint8)
    result = normalise(x, InputSpec((2, 1, 1), 3, (100.0, 20.0), (50.0, 5.0)), dtype)
    assert result.dtype == dtype and result.flatten().tolist() == [2.0, -2.0]
    assert x.flatten().tolist() == [200, 10]
