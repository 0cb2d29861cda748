"""Packages as pip leaves them, and the command that finds them."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def sparcl(*arguments: object, path: Path, cwd: Path) -> subprocess.CompletedProcess:
    """`sparcl ...` in a process of its own that has the packages in `path` beside ours."""
    command = [sys.executable, "-m", "simulations", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=os.environ | {"PYTHONPATH": f"{path}{os.pathsep}{ROOT}"})


def install_by_hand(folder: Path, package: str, points: dict[str, dict[str, str]], version: str = "1.5") -> None:
    """What pip leaves of a package: its name, version and entry points, group -> name -> value."""
    info = folder / f"{package}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
    groups = ["\n".join([f"[{group}]", *(f"{name} = {value}" for name, value in named.items())]) for group, named in points.items()]
    (info / "entry_points.txt").write_text("\n\n".join(groups) + "\n")
