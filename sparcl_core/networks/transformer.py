"""`vit-tiny`: a vision transformer (Dosovitskiy et al. 2021, arXiv:2010.11929) for small images, small enough for a phone.

Six pre-norm blocks of `width` features, of which each head has 64, and four times as many hidden units; patches of 4x4, on images below 16
pixels of 2x2. With width 192, that of ViT-Tiny, 2.7 M parameters. LayerNorm only: nothing mixes samples, and nothing is lost when devices
average.

Differences from the published one: half of its blocks; the classifier sees the mean of all tokens, and there is no class token (Beyer et
al. 2022, arXiv:2205.01580); no dropout. The projections of queries, keys and values are one linear layer, which may be sparse; in torch's
own `nn.MultiheadAttention` they are a parameter of no layer, and stay dense.

Weights begin as in the reference implementation: Xavier-uniform, biases at zero, the position embedding normal with deviation 0.02.
"""

import torch
from torch import Tensor, nn

from sparcl_core.config import ModelConfig

BLOCKS, HEAD, SMALL = 6, 64, 16


def vit_tiny(input_shape: tuple[int, ...], num_classes: int, config: ModelConfig) -> nn.Module:
    """A vision transformer of six blocks for small images; width 192 is that of ViT-Tiny."""
    patch = 4 if min(input_shape[1:]) >= SMALL else 2
    if any(side % patch for side in input_shape[1:]):
        raise ValueError(
            f"images are {input_shape[1]}x{input_shape[2]}: vit-tiny cuts them into patches of {patch}x{patch}, so their sides must be "
            f"multiples of {patch}; take a convolutional network (model.name=mobilenetv2)"
        )
    return VisionTransformer(input_shape, num_classes, config.width, patch)


class VisionTransformer(nn.Module):
    """[B, C, H, W] -> [B, classes]: the patches' convolution and the classifier stay dense, all other linear layers may be sparse."""

    def __init__(self, input_shape: tuple[int, ...], num_classes: int, width: int, patch: int):
        super().__init__()
        channels, height, breadth = input_shape
        self.patches = nn.Conv2d(channels, width, patch, stride=patch)
        self.position = nn.Parameter(torch.empty(1, (height // patch) * (breadth // patch), width))
        self.blocks = nn.Sequential(*(Block(width) for _ in range(BLOCKS)))
        self.norm = nn.LayerNorm(width)
        self.classifier = nn.Linear(width, num_classes)
        nn.init.normal_(self.position, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.xavier_uniform_(module.weight.flatten(1))  # of a patch, as of a linear layer
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.position
        return self.classifier(self.norm(self.blocks(tokens)).mean(1))


class Block(nn.Module):
    """[B, T, D] -> [B, T, D]: attention, and two linear layers for each token."""

    def __init__(self, width: int):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, max(1, width // HEAD))
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.fc2(nn.functional.gelu(self.fc1(self.norm2(x))))


class Attention(nn.Module):
    """Self-attention of many heads, [B, T, D] -> [B, T, D]. Its products of tokens with tokens have no weights; they count as dense."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        split = self.qkv(x).view(batch, tokens, 3, self.heads, width // self.heads)
        q, k, v = split.permute(2, 0, 3, 1, 4)  # each [B, heads, T, width / heads]
        scores = (q @ k.transpose(2, 3)) * (width // self.heads) ** -0.5
        return self.proj((scores.softmax(3) @ v).transpose(1, 2).reshape(batch, tokens, width))
