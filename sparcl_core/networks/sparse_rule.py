"""Which weights of a model may be sparse: those that `model.sparse` names, or by the rule.

The paper makes the 3x3 convolutions of ResNet-18's residual stages sparse and keeps stem, shortcuts, normalisation, biases and the
classifier dense. The rule says the same of any model: weights of convolutions and linear layers, but

- not of the first and the last that a forward pass runs, nor of any other that sees the image itself;
- not of a convolution in groups (depthwise): it has few weights, and the kernels cannot do it;
- not of a 1x1 convolution with a stride: a shortcut.
"""

import re
from collections import Counter

from torch import nn

from sparcl_core.config import ModelConfig
from sparcl_core.foreign import printable
from sparcl_core.kernels.operations import can_do
from sparcl_core.probe import look_through

LAYERS = (nn.Conv2d, nn.Linear)


def sparse_names(model: nn.Module, config: ModelConfig, input_shape: tuple[int, ...]) -> tuple[str, ...]:
    """Names of the parameters that may be sparse, in the model's order.

    Raises:
        ValueError: if a pattern of the config matches no weight of a convolution or linear layer, or one that cannot be sparse.
    """
    able = can_be_sparse(model)
    if not config.sparse:
        kept = dense_by_rule(model, input_shape)
        return tuple(name for name in able if name not in kept)
    for pattern in config.sparse:
        if not any(re.fullmatch(pattern, name) for name in able):
            weights = printable(", ".join(able) or "none")
            raise ValueError(f"model.sparse has {pattern!r}, which matches no weight of {config.name} that can be sparse: it has {weights}")
    return tuple(name for name in able if any(re.fullmatch(pattern, name) for pattern in config.sparse))


def can_be_sparse(model: nn.Module) -> tuple[str, ...]:
    """Weights of convolutions and linear layers that do what those of torch do: a sparse layer can take their place."""
    names = {id(p): name for name, p in model.named_parameters()}
    return tuple(names[id(m.weight)] for m in model.modules() if isinstance(m, LAYERS) and _is_plain(m) and id(m.weight) in names)


def _is_plain(layer: nn.Module) -> bool:
    kind = next(kind for kind in LAYERS if isinstance(layer, kind))
    if type(layer).forward is not kind.forward or layer._forward_pre_hooks or layer._forward_hooks:
        return False
    return kind is nn.Linear or (type(layer)._conv_forward is nn.Conv2d._conv_forward and layer.padding_mode == "zeros")


def dense_by_rule(model: nn.Module, input_shape: tuple[int, ...]) -> dict[str, str]:
    """Weights of convolutions and linear layers that the rule keeps dense, and why."""
    layers = {module: f"{name}.weight" for name, module in model.named_modules() if isinstance(module, LAYERS)}
    able, why = can_be_sparse(model), dict.fromkeys(layers.values(), "not called")
    order: list[str] = []

    def note(module, x, output):
        order.append(layers[module])
        why[order[-1]] = _reason(module) if x.requires_grad else "the first"

    look_through(model, input_shape, LAYERS, note)
    why |= {name: "of another class" for name, reason in why.items() if not reason and name not in able}
    if order:
        why[order[-1]] = "the last"
    return {name: reason for name, reason in why.items() if reason}


def _reason(layer: nn.Module) -> str:
    if isinstance(layer, nn.Conv2d) and layer.groups > 1:
        return "in groups"
    return "a shortcut" if isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1) and layer.stride != (1, 1) else ""


def why_dense(config: ModelConfig, model: nn.Module, input_shape: tuple[int, ...]) -> dict[str, str]:
    """Names of the weights of all layers, in the order of the modules -> why each stays dense; empty of a sparse one."""
    names, kept = sparse_names(model, config, input_shape), dense_by_rule(model, input_shape)
    others = {name: kept.get(name, "not in model.sparse") for name in kept.keys() | set(can_be_sparse(model)) if name not in names}
    found = dict.fromkeys(names, "") | others
    order = [f"{name}.weight" for name, _ in model.named_modules()]
    return {name: found[name] for name in sorted(found, key=lambda name: (order.index(name) if name in order else len(order), name))}


def layers_told(config: ModelConfig, model: nn.Module, input_shape: tuple[int, ...]) -> str:
    """A line on which layers of a sparse model stay dense, and why."""
    found = why_dense(config, model, input_shape)
    names, dense = [name for name, reason in found.items() if not reason], [reason for reason in found.values() if reason]
    why = ", ".join(f"{count} {reason}" for reason, count in sorted(Counter(dense).items(), key=lambda item: (-item[1], item[0])))
    slow = [name for name in names if not can_do(model.get_submodule(name.removesuffix(".weight")))]
    line = f"{config.name}: {len(names)} of {len(names) + len(dense)} layers are sparse; dense are {why or 'none'}"
    return line + (f"; {len(slow)} of the sparse ones are masked, since the kernels cannot do them" if slow else "")
