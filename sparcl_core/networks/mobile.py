"""Convolutional networks for phones, from torchvision: depthwise convolutions between 1x1 ones, BatchNorm throughout.

- `mobilenetv2` (Sandler et al. 2018, arXiv:1801.04381): inverted residuals, ReLU6.
- `mobilenetv3-small` (Howard et al. 2019, arXiv:1905.02244): with squeeze-and-excitation, and Hardswish in the later blocks.
- `efficientnet-b0` (Tan and Le 2019, arXiv:1905.11946): with squeeze-and-excitation and SiLU throughout.

Differences from the published networks, which are for images of 224x224:

- The first two of five halvings are left out, as the CIFAR stem of `resnet18` leaves out its two: 32x32 goes in, 4x4 comes out of the last
  block. Images of any size are taken.
- `width` is the channels of the first layer, a multiple of 8; the others follow in proportion, rounded to such. The published networks have
  32, 16 and 32.
- No dropout and no stochastic depth. Running statistics of BatchNorm follow a batch by a tenth, as in the other networks here; those of
  the published MobileNetV3 by a hundredth, for which a device's rounds are too short.
"""

from functools import partial

from torch import nn
from torchvision.models import efficientnet, mobilenetv2, mobilenetv3

from sparcl_core.config import ModelConfig

# expansion, channels, blocks, stride of the first
V2_BLOCKS = [[1, 16, 1, 1], [6, 24, 2, 1], [6, 32, 3, 2], [6, 64, 4, 2], [6, 96, 3, 1], [6, 160, 3, 2], [6, 320, 1, 1]]


def mobilenet_v2(input_shape: tuple[int, ...], num_classes: int, config: ModelConfig) -> nn.Module:
    """MobileNetV2 for small images; width 32 is the published one."""
    return _for_small_images(mobilenetv2.MobileNetV2(num_classes, config.width / 32, V2_BLOCKS, dropout=0.0), input_shape)


def mobilenet_v3_small(input_shape: tuple[int, ...], num_classes: int, config: ModelConfig) -> nn.Module:
    """MobileNetV3-small for small images; width 16 is the published one."""
    blocks, last = mobilenetv3._mobilenet_v3_conf("mobilenet_v3_small", width_mult=config.width / 16)
    blocks[0].stride = 1
    norm = partial(nn.BatchNorm2d, eps=0.001)
    return _for_small_images(mobilenetv3.MobileNetV3(blocks, last, num_classes, norm_layer=norm, dropout=0.0), input_shape)


def efficientnet_b0(input_shape: tuple[int, ...], num_classes: int, config: ModelConfig) -> nn.Module:
    """EfficientNet-B0 for small images; width 32 is the published one."""
    blocks, last = efficientnet._efficientnet_conf("efficientnet_b0", width_mult=config.width / 32, depth_mult=1.0)
    blocks[1].stride = 1
    model = efficientnet.EfficientNet(blocks, 0.0, stochastic_depth_prob=0.0, num_classes=num_classes, last_channel=last)
    return _for_small_images(model, input_shape)


def _for_small_images(model: nn.Module, input_shape: tuple[int, ...]) -> nn.Module:
    """`model` with a stem of stride 1 for images with as many channels as these have."""
    stem = model.features[0]
    stem[0] = nn.Conv2d(input_shape[0], stem[0].out_channels, 3, padding=1, bias=False)
    return model
