"""Which layers run on the sparse kernels: chosen by measurement, once, where a run starts; then part of its settings.

A layer's time depends on its shape, the batch, its density and the machine, and below some density or size PyTorch's dense product is the
faster one. So every candidate is timed at the layer's own shapes, forward and backward. Where other layers between them want another
layout of memory, the changes can take more than the kernels save: there the whole model is timed, too. What was measured is kept beside
the compiled kernels, so a second run on the same machine chooses the same, however busy the machine is then.
"""

import copy
import hashlib
import json
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from sparcl_core.config import KernelConfig
from sparcl_core.kernels.build import KernelError, backend
from sparcl_core.kernels.convert import Choice, convert, make_layer
from sparcl_core.kernels.operations import batch_first, batch_last, can_do
from sparcl_core.probe import look_through
from sparcl_core.seeding import generator

REPEATS, WHOLE_REPEATS = 5, 3
WHOLE = 32  # samples of a pass of a whole model
SECONDS = 1.0  # a candidate that takes this long is timed once


def able_layers(model: nn.Module, names: tuple[str, ...]) -> frozenset[str]:
    """The weights among `names` of a dense model whose layers the kernels can do."""
    return frozenset(name for name in names if can_do(model.get_submodule(name.removesuffix(".weight"))))


def choices(config: KernelConfig, names: tuple[str, ...], dtype: torch.dtype, able: frozenset[str]) -> dict[str, Choice]:
    """The choice for each layer of `names`.

    Args:
        able: from `able_layers`; others run dense.

    Raises:
        KernelError: if this machine cannot do what was chosen, with the reason.
    """
    here = backend()
    if config.mode == "dense":  # also where something else was chosen before: the way out of a refusal
        return dict.fromkeys(names, "dense")
    if config.backend:
        if config.sparse and here.name != config.backend:
            raise KernelError(
                f"this run's layers were chosen for the {config.backend} kernels, but here they are {here.name} ({here.reason}): "
                "results would not repeat; run on machines of one kind, or set kernels.mode=dense"
            )
        if unknown := (set(config.sparse) | set(config.bf16)) - set(names):
            raise ValueError(f"kernels name {sorted(unknown)[0]}, which is no sparse weight of this model: it has {', '.join(names)}")
        return {name: "sparse" if name in config.sparse else "bf16" if name in config.bf16 else "dense" for name in names}
    runs_sparse = dtype == torch.float32 and here.library is not None
    return {name: "sparse" if runs_sparse and name in able else "dense" for name in names}


def resolve(
    config: KernelConfig, model: nn.Module, masked: tuple[str, ...], input_shape: tuple[int, ...], batch: int, density: float
) -> KernelConfig:
    """`config` with the choice made for this machine; as it is if it has one, or where nothing is sparse.

    Args:
        model: the dense model; not changed.
        masked: names of the weights that are sparse.
        batch: samples of a forward pass.
        density: share of active weights in each of them.
    """
    dtype = next(model.parameters()).dtype
    if config.backend or not masked:
        return config
    here = backend()
    if config.mode == "dense" or dtype != torch.float32:
        return replace(config, backend=here.name)
    able = able_layers(model, masked)
    if config.mode == "sparse":
        return replace(config, backend=here.name, sparse=tuple(name for name in masked if name in able) if here.library else ())
    candidates = ["dense", *(["sparse"] if here.library else []), *(["bf16"] if config.allow_bf16 else [])]
    if len(candidates) == 1:
        return replace(config, backend=here.name)
    shapes = _input_shapes(model, masked, input_shape, batch)
    picked = {}
    for name in masked:
        layer = model.get_submodule(name.removesuffix(".weight"))
        picked[name] = _pick(layer, shapes[name], density, tuple(kind for kind in candidates if kind != "sparse" or name in able))
    if "sparse" in picked.values() and _changes_layout(model, shapes):
        plain = {name: "dense" if kind == "sparse" else kind for name, kind in picked.items()}
        picked = _faster_whole(model, (min(batch, WHOLE), *input_shape), density, (plain, picked))
    sparse, bf16 = (tuple(name for name in masked if picked[name] == kind) for kind in ("sparse", "bf16"))
    return replace(config, backend=here.name, sparse=sparse, bf16=bf16)


def _changes_layout(model: nn.Module, shapes: dict[str, tuple[int, ...]]) -> bool:
    """Do layers between sparse ones take samples first, so that a layer's own time does not tell what it costs in its place? Convolutions
    in groups do, and whatever is done to tokens."""
    return any(len(shape) == 3 for shape in shapes.values()) or any(isinstance(m, nn.Conv2d) and not can_do(m) for m in model.modules())


def _faster_whole(model: nn.Module, shape: tuple[int, ...], density: float, candidates: tuple[dict[str, Choice], ...]) -> dict[str, Choice]:
    """The choices with which a forward and backward pass of the whole model takes less, as measured now or before."""
    names = [",".join(sorted(name for name, kind in choice.items() if kind == "sparse")) for choice in candidates]
    described = [repr(model), list(shape), round(density, 6), names]
    numbers = tuple(str(number) for number in range(len(candidates)))
    return candidates[int(_remembered(described, numbers, lambda: measure_whole(model, shape, density, candidates)))]


def _input_shapes(model: nn.Module, masked: tuple[str, ...], input_shape: tuple[int, ...], batch: int) -> dict[str, tuple[int, ...]]:
    """The shape of each layer's input, seen on one sample; that of the last call where there are several."""
    names = {model.get_submodule(name.removesuffix(".weight")): name for name in masked}
    found: dict[str, tuple[int, ...]] = {}

    def note(module, x, output):
        if module in names:
            found[names[module]] = (batch, *x.shape[1:])

    look_through(model, input_shape, (nn.Conv2d, nn.Linear), note)
    return found


def _pick(layer: nn.Conv2d | nn.Linear, shape: tuple[int, ...], density: float, candidates: tuple[Choice, ...]) -> Choice:
    """The fastest candidate for one layer, as measured now or before."""
    if len(candidates) == 1:
        return candidates[0]
    described = [repr(layer), list(shape), round(density, 6), list(candidates)]
    return _remembered(described, candidates, lambda: measure(layer, shape, density, candidates))


def _remembered(described: list, candidates: tuple[str, ...], measured: Callable[[], dict[str, float]]) -> str:
    """The candidate that takes the least seconds. What was measured on this machine before is not measured again."""
    described = [*described, torch.get_num_threads(), torch.__version__, backend().path]
    key = hashlib.sha256(json.dumps(described).encode()).hexdigest()[:32]
    memo = Path(backend().path).parent / "choices" / f"{key}.json" if backend().path else None
    try:
        known = json.loads(memo.read_text())["choice"] if memo else None
    except (OSError, ValueError, KeyError, TypeError):
        known = None
    if known in candidates:
        return known
    seconds = measured()
    choice = min(candidates, key=lambda kind: seconds[kind])
    if memo:
        try:
            memo.parent.mkdir(exist_ok=True, mode=0o700)
            part = memo.with_suffix(f".{os.getpid()}")
            part.write_text(json.dumps({"layer": described, "seconds": seconds, "choice": choice}))
            part.replace(memo)
        except OSError:
            pass  # only the next run's time is lost
    return choice


def measure_whole(model: nn.Module, shape: tuple[int, ...], density: float, candidates: tuple[dict[str, Choice], ...]) -> dict[str, float]:
    """Seconds of a forward and backward pass of `model` on images of `shape` [B, C, H, W], by the candidate's number; the shortest of a
    few, taken in turn."""
    rng = generator(0, "kernels")
    x = torch.from_numpy(rng.standard_normal(shape, dtype=np.float32)).to(memory_format=torch.channels_last)
    weights = dict(model.named_parameters())
    masks = {name: rng.random(tuple(weights[name].shape)) < density for name in candidates[0]}
    made = [convert(copy.deepcopy(model), masks, choice).train() for choice in candidates]
    best = dict.fromkeys(map(str, range(len(made))), float("inf"))
    with torch.random.fork_rng(devices=[]):  # a model may have dropout
        for turn in range(1 + WHOLE_REPEATS):
            for number, candidate in enumerate(made):
                start = time.perf_counter()
                torch.autograd.grad(candidate(x).sum(), list(candidate.parameters()))
                if turn:
                    best[str(number)] = min(best[str(number)], time.perf_counter() - start)
    return best


def measure(layer: nn.Conv2d | nn.Linear, shape: tuple[int, ...], density: float, candidates: tuple[Choice, ...]) -> dict[str, float]:
    """Seconds of a forward and backward pass of `layer` on inputs of `shape`, per candidate; the shortest of a few, taken in turn.

    Inputs and gradients come batch-last, as from neighbours on the kernels: a dense layer pays for both changes of layout. Tokens
    [B, T, D] come as they are from a LayerNorm, so that the kernels pay.
    """
    rng = generator(0, "kernels")
    mask = rng.random(tuple(layer.weight.shape)) < density
    x = torch.from_numpy(rng.standard_normal(shape, dtype=np.float32))
    x = x if len(shape) == 3 else batch_last(x)
    made = {kind: make_layer(layer, mask, kind) for kind in candidates}

    def run(candidate: nn.Module) -> float:
        source = {2: lambda: x.flatten(1).t(), 3: x.detach, 4: lambda: batch_first(x)}[len(shape)]().requires_grad_()
        start = time.perf_counter()
        out = candidate(source)
        out = out if len(shape) == 3 else batch_last(out)
        torch.autograd.grad(out, [source, *candidate.parameters()], torch.ones_like(out))
        return time.perf_counter() - start

    best = {kind: float("inf") for kind in candidates}
    for turn in range(1 + REPEATS):
        for kind, candidate in made.items():
            if turn < 2 or best[kind] < SECONDS:
                seconds = run(candidate)
                best[kind] = min(best[kind], seconds) if turn else float("inf")  # the first turn builds lists and buffers
    return best
