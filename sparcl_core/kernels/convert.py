"""A normal model becomes a sparse one, and back. No weight is lost, and `state_dict` has the dense model's names and shapes."""

from collections.abc import Mapping
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from sparcl_core.kernels import between, modules
from sparcl_core.kernels.modules import Sparse
from sparcl_core.kernels.operations import supported

Choice = Literal["sparse", "dense", "bf16"]
PREFIX_OF_WEIGHT = len(".weight")

_RETYPED = {nn.BatchNorm2d: between.BatchNorm, nn.GroupNorm: between.GroupNorm, nn.LayerNorm: between.LayerNorm}


def convert(model: nn.Module, masks: Mapping[str, np.ndarray], choices: Mapping[str, Choice]) -> nn.Module:
    """Replace, in place, the layers whose weights have a mask; where one runs on the kernels, the layers between follow.

    Args:
        model: any model of nn.Conv2d and nn.Linear layers; float32 where a choice is "sparse".
        masks: bool, per weight ("layer1.0.conv1.weight") its shape.
        choices: per name of `masks`, "sparse": on the kernels; "dense": PyTorch's own product with a masked weight;
            "bf16": that in bfloat16.

    Raises:
        ValueError: if a name is no weight of a convolution or linear layer, or the kernels cannot do a layer; the model is then as it was.
    """
    known, made = dict(model.named_modules()), {}
    for name, mask in masks.items():
        layer = known.get(name[:-PREFIX_OF_WEIGHT]) if name.endswith(".weight") else None
        if not isinstance(layer, nn.Conv2d | nn.Linear):
            raise ValueError(f"{name} is no weight of a convolution or linear layer: only these can be sparse")
        if name not in choices:
            raise ValueError(f"{name} has a mask and no choice: choose one of {', '.join(get_args(Choice))} for each of masks")
        made[name[:-PREFIX_OF_WEIGHT]] = make_layer(layer, mask, choices[name])
    for name, layer in made.items():  # all or none: a model that is refused is as it was
        model.set_submodule(name, layer)
    if "sparse" in choices.values():
        for module in list(model.modules()):
            _retype(module)
        for module in list(model.modules()):
            _fuse_stem(module)
    return model


def make_layer(layer: nn.Conv2d | nn.Linear, mask: np.ndarray, choice: Choice) -> Sparse:
    """A sparse layer with `layer`'s weights at `mask` that runs as chosen.

    Raises:
        ValueError: if the kernels cannot do it, or there is no such choice.
    """
    if choice not in get_args(Choice):
        raise ValueError(f"the choice for {layer} is {choice!r}: take {', '.join(get_args(Choice))}")
    is_conv = isinstance(layer, nn.Conv2d)
    if choice == "sparse":
        if layer.weight.dtype != torch.float32:
            raise ValueError(f'the weight of {layer} is {layer.weight.dtype}: the kernels take float32; choose "dense"')
        return (modules.SparseConv2d if is_conv else modules.SparseLinear)(layer, mask)
    made = (modules.MaskedConv2d if is_conv else modules.MaskedLinear)(layer, mask)
    made.in_bf16 = choice == "bf16"
    return made


def revert(model: nn.Module) -> nn.Module:
    """The inverse of `convert`, in place."""
    plain = {after: before for before, after in _RETYPED.items()} | {between.MaxPool2d: nn.MaxPool2d, between.DenseConv2d: nn.Conv2d}
    plain[between.GlobalAvgPool2d] = nn.AdaptiveAvgPool2d
    for name, module in list(model.named_modules()):
        if isinstance(module, Sparse):
            model.set_submodule(name, _dense(module))
        elif type(module) in plain:
            module.__dict__.pop("layer", None)
            module.__class__ = plain[type(module)]
        elif type(module).__name__ == "FusedBlock":
            module.__class__ = type(module).__mro__[1]
    for module in list(model.modules()):
        if "stem_relu" in module.__dict__:
            module.relu = module.__dict__.pop("stem_relu")
            module.bn1.__dict__.pop("is_active", None)
    return model


def sparse_layers(model: nn.Module) -> dict[str, Sparse]:
    """The sparse layers by the name of their weight in the dense model."""
    return {f"{name}.weight": module for name, module in model.named_modules() if isinstance(module, Sparse)}


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters by their names in the dense model; a sparse layer's is the vector of its active weights."""
    dense = {f"{name.removesuffix('weight')}values": name for name in sparse_layers(model)}
    return {dense.get(name, name): p for name, p in model.named_parameters()}


def _dense(layer: Sparse) -> nn.Module:
    if isinstance(layer, modules.MaskedLinear | modules.SparseLinear):
        outs, features = layer.weight_shape
        plain = nn.utils.skip_init(nn.Linear, features, outs, bias=layer.bias is not None, dtype=layer.values.dtype)
    else:
        outs, channels, *kernel = layer.weight_shape
        stride, pad, dilation, groups = getattr(layer, "geometry", None) or (layer.stride, layer.pad, 1, 1)
        plain = nn.utils.skip_init(
            nn.Conv2d,
            channels * groups,
            outs,
            tuple(kernel),
            stride,
            pad,
            dilation,
            groups,
            layer.bias is not None,
            dtype=layer.values.dtype,
        )
    plain.weight = nn.Parameter(layer.dense().detach())
    plain.bias = layer.bias
    if layer.is_channels_last:
        plain = plain.to(memory_format=torch.channels_last)
    return plain.train(layer.training)


def _retype(module: nn.Module) -> None:
    """Let a layer between sparse ones work batch-last."""
    kind = _RETYPED.get(type(module))
    if kind and getattr(module, "affine", getattr(module, "elementwise_affine", False)) and module.bias is not None:
        if not isinstance(module, nn.LayerNorm) or len(module.normalized_shape) == 1:
            module.__class__ = kind
    elif type(module) is nn.AdaptiveAvgPool2d and module.output_size in (1, (1, 1)):
        module.__class__ = between.GlobalAvgPool2d
    elif type(module) is nn.MaxPool2d and _is_plain_pool(module):
        module.__class__ = between.MaxPool2d
    elif type(module) is nn.Conv2d:
        try:
            supported(module)
        except ValueError:
            return
        module.__class__ = between.DenseConv2d
    elif type(module).__name__ == "BasicBlock" and type(module).__module__ == "torchvision.models.resnet":
        module.__class__ = _fused_block(type(module))


def _fuse_stem(module: nn.Module) -> None:
    """Let the first normalisation of a ResNet do the ReLU behind it."""
    is_resnet = {"conv1", "bn1", "relu", "maxpool", "layer1"} <= module._modules.keys()
    if is_resnet and isinstance(module.bn1, between.BatchNorm) and isinstance(module.relu, nn.ReLU):
        module.__dict__["stem_relu"], module.bn1.is_active = module.relu, True
        module.relu = nn.Identity()


def _is_plain_pool(pool: nn.MaxPool2d) -> bool:
    is_square = isinstance(pool.kernel_size, int) and pool.stride == pool.kernel_size
    return (
        is_square and pool.padding == 0 and pool.dilation == 1 and not pool.ceil_mode and not pool.return_indices and pool.kernel_size <= 11
    )


def _fused_block(block: type) -> type:
    class FusedBlock(block):
        """torchvision's BasicBlock without the tensor between the first normalisation and the second convolution."""

        def forward(self, x: Tensor) -> Tensor:
            can_fuse = self.bn1.training and isinstance(self.conv2, modules.SparseConv2d) and isinstance(self.bn1, between.BatchNorm)
            if not can_fuse or not isinstance(self.bn2, between.BatchNorm):
                return super().forward(x)
            if isinstance(self.conv1, modules.SparseConv2d) and x.requires_grad:
                y, x = self.conv1.fork(x)
            else:
                y = self.conv1(x)
            y = self.conv2.behind(self.bn1, y)
            return self.bn2.activate(y, x if self.downsample is None else self.downsample(x))

        def __reduce_ex__(self, protocol):  # pickles name a class by its module, where this one is not
            return _blank, (block,), self.__dict__

    return FusedBlock


def _blank(block: type) -> nn.Module:
    """A fused block before its state."""
    fused = _fused_block(block)
    return fused.__new__(fused)
