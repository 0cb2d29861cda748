"""Versions and machine, stored with every result."""

import os
import platform
from importlib.metadata import version


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


def processor() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unknown"
