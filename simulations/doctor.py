"""What a run would find here: versions, processor, compiled modules, and the kernels with the reason for them."""

import os
import platform
import textwrap
from importlib.metadata import PackageNotFoundError, version

from simulations import bytecode
from simulations.environment import processor
from simulations.plugins.catalogue import packages
from sparcl_core.foreign import printable
from sparcl_core.kernels.build import Backend, KernelError, choose

WIDTH = 80
LABEL = 12


def examine(rebuild: bool = False) -> tuple[list[tuple[str, str]], bool]:
    """Pairs of a label and what is so, and whether a run would start. `rebuild`: compile the kernels again, whatever is cached.

    Raises:
        ValueError: if the environment variable SPARCL_KERNELS says what is not known.
    """
    try:
        kernels, works = choose(rebuild=rebuild), True
    except KernelError as error:  # runs would end with it
        kernels, works = Backend(None, "none", str(error), "", "", 0.0), False
    rows = [
        ("python", platform.python_version()),
        *((name, _version(name)) for name in ("torch", "flwr", "ray")),
        ("cpu", f"{processor()}, {platform.machine()}"),
        ("threads", f"{_threads()} of PyTorch, on {_cores()} of {os.cpu_count()} cores"),
        ("bytecode", bytecode.state()),
        ("kernels", kernels.name),
        ("reason", kernels.reason),
        ("compiler", kernels.compiler or "none"),
        ("cache", os.path.dirname(kernels.path) or "none"),
        ("library", _library(kernels)),
        *_packages(),
    ]
    return rows, works


def table(rows: list[tuple[str, str]]) -> str:
    """80 columns; a path is not broken, so that it can be copied."""
    wrap = textwrap.TextWrapper(WIDTH, subsequent_indent=" " * LABEL, break_long_words=False, break_on_hyphens=False)
    lines = []
    for label, text in rows:
        wrap.initial_indent = f"{label:{LABEL}}"
        lines += wrap.wrap(text)
    return "\n".join(lines)


def _packages() -> list[tuple[str, str]]:
    """What installed packages offer, and what of it fails."""
    offered, wrong = packages()
    rows = [("offers", f"{origin}: {', '.join(what)}") for origin, what in offered.items()]
    return [*rows, *(("fails", printable(fault)) for fault in wrong)]


def _library(kernels: Backend) -> str:
    name = os.path.basename(kernels.path) or "kept in memory"
    if kernels.library is None:
        return "none"
    return f"{name}, built in {kernels.seconds:.1f} s" if kernels.seconds else f"{name}, found"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _threads() -> int:
    import torch

    return torch.get_num_threads()


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
