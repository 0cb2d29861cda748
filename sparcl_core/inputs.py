"""From stored uint8 images to what a model is fed: augmentation, then normalisation."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sparcl_core.config import Augmentation


@dataclass(frozen=True)
class InputSpec:
    """Shape (C, H, W) and normalisation of a data set; mean and std per channel, in units of the stored uint8 values."""

    shape: tuple[int, int, int]
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


def normalise(x: Tensor, spec: InputSpec, dtype: torch.dtype) -> Tensor:
    """[B, C, H, W] uint8 -> same shape, `dtype`, (x - mean) / std per channel, channels last in memory as `build_model`'s weights."""
    mean = torch.tensor(spec.mean, dtype=dtype).view(1, -1, 1, 1)
    std = torch.tensor(spec.std, dtype=dtype).view(1, -1, 1, 1)
    return x.to(dtype, memory_format=torch.channels_last, copy=True).sub_(mean).div_(std)


def augment(x: Tensor, kind: Augmentation, rng: np.random.Generator) -> Tensor:
    """Random crop from a zero-padded image (padding: an eighth of the height, 4 pixels at 32) and horizontal flip.

    Every sample has its own draw, unlike torchvision's transforms, which draw once per call.

    Args:
        x: [B, C, H, W] uint8, not changed.
    """
    if kind == "none":
        return x
    batch, _, height, width = x.shape
    padding = max(1, height // 8)
    padded = F.pad(x, [padding] * 4)
    top, left = torch.from_numpy(rng.integers(0, 2 * padding + 1, size=(2, batch, 1)))
    columns = left + torch.arange(width)
    if kind == "crop-flip":
        flip = torch.from_numpy(rng.random((batch, 1)) < 0.5)
        columns = torch.where(flip, columns.flip(1), columns)
    rows = (top + torch.arange(height))[:, :, None]
    picked = padded.permute(0, 2, 3, 1)[torch.arange(batch)[:, None, None], rows, columns[:, None, :]]
    return picked.permute(0, 3, 1, 2)
