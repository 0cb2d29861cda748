"""What a scenario takes to simulate: wall time and memory of `sparcl run NAME`, all of its processes together.

`python -m benchmarks.scenarios` runs the six of simulations/experiments, one after another, each with one Ray worker per core. Memory is
the largest sum of proportional set sizes (a page that n processes share counts as 1/n in each) over the command's whole process tree,
Ray's included, looked at four times a second.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SCENARIOS = ("phones-at-night", "solar-cameras", "microcontrollers", "stragglers", "drift", "new-classes")
LOOK_S = 0.25


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scenarios", description="What a scenario takes to simulate.")
    parser.add_argument("names", nargs="*", default=SCENARIOS, help="experiments (default: the six scenarios)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a setting")
    options = parser.parse_args()
    from benchmarks.codec import cpu_model

    print(f"{cpu_model()}, {os.cpu_count()} cores\n\n{'scenario':<18} {'devices':>8} {'wall s':>7} {'peak MiB':>9}")
    for name in options.names:
        devices, seconds, peak = measure(name, options.set)
        print(f"{name:<18} {devices:>8,} {seconds:>7.0f} {peak / 2**20:>9,.0f}", flush=True)


def measure(name: str, overrides: list[str]) -> tuple[int, float, int]:
    """Devices, seconds from start to end of the command, and bytes."""
    from simulations.config.loading import load

    settings = [part for override in overrides for part in ("--set", override)]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "simulations", "run", name, "--out", folder, *settings]
        began, peak = time.monotonic(), 0
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        while process.poll() is None:
            peak = max(peak, sum(map(_proportional_bytes, _tree(process.pid))))
            time.sleep(LOOK_S)
        if process.returncode:
            sys.exit(process.stderr.read()[-3000:])
    return load(name, overrides).stream.devices, time.monotonic() - began, peak


def _tree(root: int) -> list[int]:
    """A process and all that descend from it. Ray's daemons begin sessions of their own, but keep their parent while it lives."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:  # it has ended
                continue
            children.setdefault(parent, []).append(int(folder.name))
    found, todo = [], [root]
    while todo:
        found.append(todo.pop())
        todo += children.get(found[-1], [])
    return found


def _proportional_bytes(process: int) -> int:
    try:
        for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


if __name__ == "__main__":
    main()
