"""Weights that were trained elsewhere, as the start of a run: a safetensors file in place of He-normal draws.

Names and shapes are those of the model, as in the `model.safetensors` of a finished run; its `mask/...` are not read, masks are drawn as
for any run. All that does not fit is told at once.
"""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from sparcl_core.foreign import printable

if TYPE_CHECKING:
    import numpy as np

    from sparcl_core.config import ModelConfig

MOST_NAMED = 20  # of a kind of fault
UNREAD = ("mask/", "num_batches_tracked")  # beginning or end of what is no weight of ours


def digest(file: Path) -> str:
    """SHA-256 of a file's bytes, hexadecimal.

    Raises:
        OSError: if it cannot be read.
    """
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def read_weights(config: "ModelConfig", shapes: dict[str, tuple[int, ...]], classifier: tuple[str, ...]) -> dict[str, "np.ndarray"]:
    """What `config.weights` holds of the model's tensors, by name, in the model's type.

    Args:
        shapes: of all tensors of the model, by name.
        classifier: names of the last layer's; with `config.classifier` "drawn" they are not read.

    Raises:
        ValueError: if the file cannot be read, is another one, or does not fit, with all that does not.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load

    file, dtype, where = config.weights, getattr(torch, config.dtype), f"model.weights is {printable(config.weights)}"
    try:
        data = Path(file).read_bytes()
        given = {n: value for n, value in load(data).items() if not n.startswith(UNREAD[0]) and not n.endswith(UNREAD[1])}
    except OSError as error:
        raise ValueError(f"{where}: it cannot be read ({error.strerror}); give a safetensors file, or leave it empty") from error
    except SafetensorError as error:
        raise ValueError(f"{where}: it is no safetensors file ({printable(error)}); a run's model.safetensors is one") from error
    if config.weights_sha256 and (found := hashlib.sha256(data).hexdigest()) != config.weights_sha256:
        raise ValueError(changed(file, found, config.weights_sha256))
    left_out = set(classifier) if config.classifier == "drawn" else set()
    wanted = {name: tuple(shape) for name, shape in shapes.items() if name not in left_out}
    held = {name: given[name] for name in wanted if name in given}
    floats = {name: tensor.to(dtype) for name, tensor in held.items() if tensor.is_floating_point()}
    faults = {
        "it lacks": [name for name in wanted if name not in given],
        "of another shape": [f"{name} {tuple(t.shape)}, not {wanted[name]}" for name, t in held.items() if tuple(t.shape) != wanted[name]],
        "no floating-point numbers": [f"{name} ({t.dtype})" for name, t in held.items() if name not in floats],
        "NaN or infinite": [name for name, tensor in floats.items() if not tensor.isfinite().all()],
        "not in this model": [printable(name) for name in given if name not in shapes],
    }
    if told := [f"{what}: {_named(names)}" for what, names in faults.items() if names]:
        rule = "it must be of the model that section model describes, and of as many classes as the data has"
        raise ValueError(f"{where}, which does not fit: {'; '.join(told)}. {rule}; model.classifier=drawn leaves the last layer out")
    return {name: tensor.clone(memory_format=torch.contiguous_format).numpy() for name, tensor in floats.items()}


def changed(file: str, found: str, wanted: str) -> str:
    """The text of an error: it is not the file that a run began with."""
    told = f"its SHA-256 is {found}, not {wanted}, which the run began with (model.weights_sha256)"
    return f"model.weights is {printable(file)}: {told}; put that file back, or begin another run with --set model.weights_sha256="


def _named(names: list[str]) -> str:
    more = len(names) - MOST_NAMED
    return ", ".join(names[:MOST_NAMED]) + (f" and {more} more" if more > 0 else "")
