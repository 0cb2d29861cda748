"""The command: the machine, then the parts. See the package for what is measured."""

import argparse
import importlib
import json
import platform
import sys
import time
from pathlib import Path

import torch

from benchmarks.codec import cpu_model
from benchmarks.kernels.settings import chosen
from benchmarks.kernels.sides import sparseprop
from sparcl_core.kernels.build import backend

PARTS = ("layers", "step", "memory", "plot", "models")
PICTURE = Path("docs/kernels.png")


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    if backend().library is None:
        sys.exit(f"there are no sparse kernels here to measure: {backend().reason}")
    torch.set_num_threads(1)
    settings, found = chosen(options.quick, options.repeats), {"machine": machine()}
    parts = options.parts or PARTS
    print(describe(found["machine"]) + ("; SparseProp is not installed" if "layers" in parts and not sparseprop() else ""), flush=True)
    for name in parts:
        part, start = importlib.import_module(f"benchmarks.kernels.{name}"), time.perf_counter()
        print(f"{name} ...", file=sys.stderr, flush=True)
        found[name] = part.measure(settings)
        part.show(found[name], settings)
        if name == "plot":
            part.draw(found[name], settings, short(found["machine"]), options.out)
            print(f"\nwritten: {options.out}")
        print(f"{name}: {time.perf_counter() - start:.0f} s", file=sys.stderr)
        sys.stdout.flush()
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kernels", description="What the sparse kernels gain over dense products.")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)} (default: all)")
    parser.add_argument("--quick", action="store_true", help="a minute for all: shows that it works, its figures mean little")
    parser.add_argument("--repeats", type=int, metavar="N", help="turns of every side, cycles of steps, processes for a figure of memory")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there, with every time")
    parser.add_argument("--out", type=Path, metavar="FILE.png", default=PICTURE, help=f"the picture of `plot` (default: {PICTURE})")
    options = parser.parse_args(arguments)
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"there is no part {sorted(unknown)[0]!r}: choose from {', '.join(PARTS)}")
    if options.repeats is not None and options.repeats < 1:
        parser.error("--repeats must be at least 1")
    return options


def machine() -> dict:
    return {
        "cpu": cpu_model(),
        "cores": torch.multiprocessing.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "kernels": backend().name,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "sparseprop": sparseprop() is not None,
    }


def describe(found: dict) -> str:
    return (
        f"{found['cpu']}, {found['cores']} cores, {found['system']}, one thread\n"
        f"kernels: {found['kernels']}; torch {found['torch']}, Python {found['python']}"
    )


def short(found: dict) -> str:
    return f"{found['cpu']}, {found['kernels']} kernels, torch {found['torch']}"


if __name__ == "__main__":
    main()
