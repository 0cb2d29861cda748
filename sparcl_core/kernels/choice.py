"""Which layers run on the sparse kernels: chosen by measurement, once, where a run starts; then part of its settings.

A layer's time depends on its shape, the batch, its density and the machine, and below some density or size PyTorch's dense product is the
faster one. So every candidate is timed at the layer's own shapes, forward and backward. What was measured is kept beside the compiled
kernels, so a second run on the same machine chooses the same, however busy the machine is then.
"""

import hashlib
import json
import os
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from sparcl_core.config import KernelConfig
from sparcl_core.kernels.build import KernelError, backend
from sparcl_core.kernels.convert import Choice, make_layer
from sparcl_core.kernels.operations import batch_first, batch_last, can_do
from sparcl_core.probe import look_through
from sparcl_core.seeding import generator

REPEATS = 5
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
    picked = {
        name: _pick(
            model.get_submodule(name.removesuffix(".weight")),
            shapes[name],
            density,
            tuple(kind for kind in candidates if kind != "sparse" or name in able),
        )
        for name in masked
    }
    sparse, bf16 = (tuple(name for name in masked if picked[name] == kind) for kind in ("sparse", "bf16"))
    return replace(config, backend=here.name, sparse=sparse, bf16=bf16)


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
    described = [repr(layer), list(shape), round(density, 6), list(candidates), torch.get_num_threads(), torch.__version__, backend().path]
    key = hashlib.sha256(json.dumps(described).encode()).hexdigest()[:32]
    memo = Path(backend().path).parent / "choices" / f"{key}.json" if backend().path else None
    try:
        known = json.loads(memo.read_text())["choice"] if memo else None
    except (OSError, ValueError, KeyError, TypeError):
        known = None
    if known in candidates:
        return known
    seconds = measure(layer, shape, density, candidates)
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
