"""A model that is not of ours: made by a function or class that `model.name` finds, and held against what can be trained, stored and sent.

It is called with input_shape (C, H, W), num_classes and `model.options` by name, with torch's generator set, and returns an `nn.Module`.
What cannot be: parameters of integers, lazy, shared between two names, or frozen, and none at all. What it computes is tried in `.check`.
"""

from collections.abc import Callable

from torch import nn
from torch.nn.parameter import is_lazy

from sparcl_core.config import ModelConfig
from sparcl_core.foreign import printable
from sparcl_core.plugins.options import check_options


def make_own(make: Callable, config: ModelConfig, input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """The model.

    Raises:
        ValueError: if `make` does not take what it is called with, fails, or returns no such model.
    """
    where = named(config)
    if not callable(make):
        raise ValueError(f"{where}, which is a {type(make).__name__}: give a function or class that makes an nn.Module")
    try:
        check_options(make, config.options, setting="model.options", given=2)
    except ValueError as error:
        called = "it is called with input_shape, num_classes and model.options by name"
        raise ValueError(f"{where}, and {printable(error)}; {called}") from error
    try:
        model = make(tuple(input_shape), num_classes, **config.options)
    except Exception as error:  # whatever somebody else's code does
        raise ValueError(f"{where}, which fails: {type(error).__name__}: {printable(error)}") from error
    if not isinstance(model, nn.Module):
        raise ValueError(f"{where}, which returns a {type(model).__name__}: it must return an nn.Module")
    if fault := _fault(model):
        raise ValueError(f"{where}: {fault}")
    return model


def named(config: ModelConfig) -> str:
    """How a message begins."""
    return f"model.name is {printable(repr(config.name), 120)}"


def _fault(model: nn.Module) -> str:
    """What its parameters cannot be, or an empty text."""
    seen: dict[int, str] = {}
    for name, p in model.named_parameters(remove_duplicate=False):
        if is_lazy(p):
            return f"parameter {name} has no shape before a forward pass; call the model once on zeros before it is returned"
        if not p.is_floating_point():
            return f"parameter {name} is {p.dtype}: parameters are floating-point numbers; make it a buffer"
        if p.device.type != "cpu":
            return f"parameter {name} is on {p.device}: models are trained on the CPU"
        if not p.requires_grad:
            return f"parameter {name} is frozen (requires_grad is False): all are trained; make it a buffer"
        if id(p) in seen and seen[id(p)] != name:
            return f"parameters {seen[id(p)]} and {name} are one: give each its own, or use the same module instead of sharing its weight"
        seen[id(p)] = name
    return "" if seen else "it has no parameters, so there is nothing to train"
