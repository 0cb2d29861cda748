"""Versions and machine, stored with every result."""

import hashlib
import os
import platform
from functools import cache
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

OUR_PACKAGES = ("sparcl_core", "client", "server", "simulations")
SAME_EVERYWHERE = ("ray", "flwr", "torch", "numpy")


def environment() -> dict:
    """What the result was made with; no host name and no path."""
    packages = ("sparcl-fleet", "flwr", "ray", "torch", "numpy")
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
        "system": f"{platform.system()} {platform.machine()}",
        "processor": processor(),
        "cores": os.cpu_count(),
    }


@cache
def software() -> dict[str, str]:
    """What has to be the same for a run to repeat to the bit, on all nodes and whenever it is resumed. Imports none of it."""
    digest = hashlib.sha256()
    for name in OUR_PACKAGES:
        folder = _folder_of(name)
        for path in sorted([*folder.rglob("*.py"), *folder.rglob("*.c")]):
            digest.update(path.relative_to(folder.parent).as_posix().encode() + path.read_bytes())
    versions = {name: version(name) for name in SAME_EVERYWHERE}
    return {"python": ".".join(platform.python_version_tuple()[:2]), **versions, "sparcl-fleet's source": digest.hexdigest()[:12]}


def _folder_of(package: str) -> Path:
    """Where they travelled to another node, each has a folder of its own."""
    return Path(import_module(package).__file__).parent


def processor() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unknown"
