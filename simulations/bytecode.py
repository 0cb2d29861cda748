"""Compiled modules of what a run imports, written once: `python -m simulations.bytecode`, with PYTHONDONTWRITEBYTECODE unset.

Installers such as uv leave compiling to the first import, and where PYTHONDONTWRITEBYTECODE is set, as in many container images, no import
writes what it has compiled: then each process, and a run has one per core, takes twice as long to start.
"""

import importlib
import importlib.util
import os
import sys

PACKAGES = ("torch", "torchvision", "flwr", "ray", "pyarrow", "sklearn", "scipy", "matplotlib")
# what commands import, at their start and late
MODULES = (
    "simulations.results.resumable", "simulations.results.plot", "simulations.client_app", "simulations.engine.ray",
    "simulations.tables.reproduce", "simulations.calibration.fit",
    "torchvision.models.resnet", "pyarrow.parquet", "sklearn.datasets", "scipy.stats", "PIL.Image",
)  # fmt: skip


def lacking() -> list[str]:
    """Those of `PACKAGES` that are installed and not compiled."""
    found = []
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)
        if spec and spec.origin and not os.path.exists(importlib.util.cache_from_source(spec.origin)):
            found.append(name)
    return found


def state() -> str:
    """In words, with the way out where processes start slowly."""
    if not (names := lacking()):
        return "there, so that processes start fast"
    if not sys.dont_write_bytecode:
        return f"none yet of {', '.join(names)}: the first import writes it, if their folder can be written"
    return (
        f"none of {', '.join(names)}, and PYTHONDONTWRITEBYTECODE is set: each process compiles them again, which takes seconds; run "
        f"`env -u PYTHONDONTWRITEBYTECODE python -m simulations.bytecode` once"
    )


if __name__ == "__main__":
    if sys.dont_write_bytecode:
        sys.exit("PYTHONDONTWRITEBYTECODE is set: begin the command with `env -u PYTHONDONTWRITEBYTECODE`")
    for module in MODULES:
        importlib.import_module(module)
