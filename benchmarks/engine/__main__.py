"""The command: every side in turn, each in a process of its own. See the package for what is measured."""

import argparse
import importlib
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
NO_PHONING_HOME = {"RAY_USAGE_STATS_ENABLED": "0", "FLWR_TELEMETRY_ENABLED": "0"}


@dataclass(frozen=True)
class Side:
    """module:function measures it. floor: the side that its rate is compared with; None for the sides that measure messages."""

    name: str
    call: str
    floor: str | None = "floor"


SIDES = (
    Side("floor", "floor:dense"),
    Side("flower", "quickstart:flower"),
    Side("ours-quickstart", "quickstart:ours"),
    Side("ours-dense", "dense:ours"),
    Side("pfl", "with_pfl"),
    Side("sparcl-floor", "floor:sparcl", "sparcl-floor"),
    Side("sparcl-dense", "sparcl:dense", "sparcl-floor"),
    Side("sparcl-0.90", "sparcl:sparse", "sparcl-floor"),
    Side("derpp-dense", "sparcl:derpp_dense", "derpp-dense"),
    Side("derpp-0.90", "sparcl:derpp_sparse", "derpp-dense"),
    Side("messages-ray", "messages:bare_ray", None),
    Side("messages-ours", "messages:ours", None),
    Side("messages-flower", "messages:flower", None),
)
NAMES = [side.name for side in SIDES]


class SideError(RuntimeError):
    """A side could not be measured; the message stands in the table."""


def main() -> None:
    options = parse()
    if options.side:
        print(json.dumps(measure_here(options.side, options.rounds, options.cores)), flush=True)
        return
    sides = [side for side in SIDES if not options.only or side.name in options.only]
    wanted = {side.floor for side in sides} | {side.name for side in sides}
    sides = [side for side in SIDES if side.name in wanted]
    found = measure_all(sides, options)
    print_machine(options)
    print_rates([side for side in sides if side.floor], found)
    print_messages([side for side in sides if not side.floor], found)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.engine", description="Device-rounds per second of engines, side by side.")
    parser.add_argument("--rounds", type=int, default=5, help="rounds after the warm-up round (default: 5)")
    parser.add_argument("--repeats", type=int, default=3, help="runs of every side; medians are shown (default: 3)")
    parser.add_argument("--only", nargs="+", choices=NAMES, metavar="SIDE", help=f"these sides, and their floors: {', '.join(NAMES)}")
    parser.add_argument("--timeout", type=int, default=900, help="seconds after which a side is given up (default: 900)")
    parser.add_argument("--cores", type=int, default=cores(), help="worker processes (default: all cores)")
    parser.add_argument("--pfl-python", default=os.environ.get("PFL_PYTHON", sys.executable), help="interpreter that has pfl and torch")
    parser.add_argument("--json", action="store_true", help="print the raw figures of all repeats as JSON, too")
    parser.add_argument("--side", choices=NAMES, help="measure this side in this process and print JSON; used by the command itself")
    options = parser.parse_args()
    if min(options.rounds, options.repeats, options.cores) < 1:
        parser.error("--rounds, --repeats and --cores must be at least 1")
    return options


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def measure_here(name: str, rounds: int, cores: int) -> dict:
    os.environ.update(NO_PHONING_HOME)
    module, _, function = SIDES[NAMES.index(name)].call.partition(":")
    measure = getattr(importlib.import_module(f"benchmarks.engine.{module}"), function)
    try:
        return measure(rounds, cores)
    finally:
        if "ray" in sys.modules:
            sys.modules["ray"].shutdown()


def measure_all(sides: list[Side], options: argparse.Namespace) -> dict[str, list[dict] | str]:
    """Per side the figures of its repeats, or why there are none."""
    found: dict[str, list[dict] | str] = {side.name: [] for side in sides}
    for repeat in range(options.repeats):
        for side in sides:
            if isinstance(found[side.name], str):
                continue
            print(f"repeat {repeat + 1} of {options.repeats}: {side.name}", file=sys.stderr, flush=True)
            try:
                found[side.name].append(measure_apart(side, options))
            except SideError as error:
                found[side.name] = str(error)
    if options.json:
        print(json.dumps(found))
    return found


def measure_apart(side: Side, options: argparse.Namespace) -> dict:
    """The side in a process of its own.

    Raises:
        SideError: if it is not installed, or fails.
    """
    rounds, cores = str(options.rounds), str(options.cores)
    command = [sys.executable, "-m", "benchmarks.engine", "--side", side.name, "--rounds", rounds, "--cores", cores]
    env = os.environ | NO_PHONING_HOME
    if side.name == "pfl":
        if subprocess.run([options.pfl_python, "-c", "import pfl"], capture_output=True).returncode:
            raise SideError("not installed: pip install -e '.[peers]', or --pfl-python")
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", cores]
        command = [options.pfl_python, *torchrun, "-m", "benchmarks.engine.with_pfl", rounds]
        env |= {"PFL_PYTORCH_DEVICE": "cpu", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:  # Flower leaves a file in its home
        try:
            run = subprocess.run(
                command, cwd=ROOT, env=env | {"FLWR_HOME": folder}, capture_output=True, text=True, timeout=options.timeout
            )
        except subprocess.TimeoutExpired as error:
            raise SideError(f"not done after {options.timeout} s") from error
    lines = [line for line in run.stdout.splitlines() if line.startswith("{")]
    if run.returncode or not lines:
        print(run.stderr[-4000:], file=sys.stderr)
        raise SideError(f"failed with exit code {run.returncode}; its last words are above")
    return json.loads(lines[-1])


def print_machine(options: argparse.Namespace) -> None:
    from benchmarks.codec import cpu_model

    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("torch", "flwr", "ray", "numpy"))
    print(f"\n{cpu_model()}, {options.cores} of {os.cpu_count()} cores, {platform.system()} {platform.machine()}")
    print(f"Python {platform.python_version()}, {versions}")
    print(f"repeats: {options.repeats}, each of {options.rounds} rounds of 40 devices after a warm-up round; medians, and the range")


def print_rates(sides: list[Side], found: dict) -> None:
    if not sides:
        return
    print(f"\n{'side':<16} {'parameters':>10} {'devices/s':>10} {'range':>15} {'of its floor':>13} {'first reply':>12}")
    for side in sides:
        runs = found[side.name]
        if isinstance(runs, str):
            print(f"{side.name:<16} {runs}")
            continue
        rates = [run["rate"] for run in runs]
        floors = found[side.floor]
        ratio = "" if isinstance(floors, str) else f"{statistics.median(a / b['rate'] for a, b in zip(rates, floors, strict=True)):.3f}"
        first = [run["first_reply_s"] for run in runs if run["first_reply_s"] is not None]
        print(
            f"{side.name:<16} {runs[0]['parameters']:>10,} {statistics.median(rates):>10.2f} {min(rates):>7.2f}-{max(rates):<7.2f} "
            f"{ratio:>13} {f'{statistics.median(first):.1f} s' if first else '':>12}"
        )


def print_messages(sides: list[Side], found: dict) -> None:
    if not sides:
        return
    print(f"\n{'side':<16} {'8.7 MB each way':>20} {'4 KB each way':>20}   ms per message, sum included")
    for side in sides:
        runs = found[side.name]
        if isinstance(runs, str):
            print(f"{side.name:<16} {runs}")
            continue
        cells = []
        for size in ("dense", "small"):
            times = [run[size] for run in runs]
            cells.append(f"{statistics.median(times):.2f} ({min(times):.2f}-{max(times):.2f})")
        print(f"{side.name:<16} {cells[0]:>20} {cells[1]:>20}")


if __name__ == "__main__":
    main()
