"""`resnet18`: torchvision's ResNet-18 (He et al. 2016, arXiv:1512.03385) with the CIFAR stem (3x3, stride 1, no max-pool) and a width
setting. Width 64 is the paper's network (11.17 M parameters), width 20 the reduced one of the DER family's code.
"""

from torch import nn
from torchvision.models.resnet import BasicBlock, ResNet

from sparcl_core.config import ModelConfig


def resnet18(input_shape: tuple[int, ...], num_classes: int, config: ModelConfig) -> nn.Module:
    """ResNet-18 with the CIFAR stem; width 64 is the paper's, 20 the DER family's reduced one."""
    width = config.width

    class CifarResNet(ResNet):
        def _make_layer(self, block, planes, blocks, stride=1, dilate=False):
            if planes == 64:
                self.inplanes = width
            return super()._make_layer(block, planes * width // 64, blocks, stride, dilate)

    model = CifarResNet(BasicBlock, [2, 2, 2, 2])
    model.conv1 = nn.Conv2d(input_shape[0], width, 3, padding=1, bias=False)
    model.bn1 = nn.BatchNorm2d(width)
    model.maxpool = nn.Identity()
    model.fc = nn.Linear(512 * width // 64, num_classes)
    return model
