"""The cost model against measured seconds: training steps of ResNet-18 at sparsities that no calibration has seen.

`python -m benchmarks.costs` calibrates this machine first (about three minutes), as `sparcl calibrate` does, or takes a profile with
`--profile`. Then it trains sessions dense and at sparsities 0.75, 0.90 and 0.95 with sgd and derpp, one thread, in turn, and compares the
least CPU time of each with what `sparcl_core.costs` says. The target is an error of at most 15 %. `--width` takes another network than
the one that is calibrated with (width 20), to see how far the figures carry.
"""

import argparse
import sys
from dataclasses import replace

import torch

from simulations.calibration.fit import Calibration, calibrate, machine, predicted, table
from simulations.calibration.timed_sessions import BACKBONES, Measured, Point, grid, measure
from simulations.fleet.profiles import load_profile
from sparcl_core.costs.device import DeviceProfile
from sparcl_core.kernels.build import backend
from sparcl_core.networks.models import ModelConfig

HELD_OUT = (0.75, 0.90, 0.95)
METHODS = ("sgd", "derpp")
TARGET = 0.15
WIDTH = BACKBONES["resnet18"][0].width


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.costs", description="The cost model against measured seconds.")
    parser.add_argument("--profile", help="a profile of this machine; default: a calibration in this process")
    parser.add_argument("--quick", action="store_true", help="calibrate quickly")
    parser.add_argument("--width", type=int, nargs="+", default=[WIDTH], help=f"of ResNet-18 (default: {WIDTH})")
    parser.add_argument("--batch", type=int, nargs="+", default=[16, 32], help="samples of a step (default: 16 32)")
    parser.add_argument("--steps", type=int, default=6, help="of a session (default: 6)")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    profile = load_profile(options.profile)[0] if options.profile else _fresh(options.quick)
    measured = measure(held_out(options.width, options.batch, options.steps), options.repeats, _tell)
    print(f"\n{machine()}, one thread, torch {torch.__version__}, kernels {backend().name}; figures of {profile.name}\n")
    show(profile, measured)


def held_out(widths: list[int], batches: list[int], steps: int) -> tuple[Point, ...]:
    """The sessions of the check."""
    shape, seen = BACKBONES["resnet18"][1], {point.sparsity for point in grid(["resnet18"])}
    assert not seen & set(HELD_OUT)
    return tuple(
        Point(ModelConfig("resnet18", width=width), shape, method, sparsity, batch, steps)
        for width in widths
        for batch in batches
        for method in METHODS
        for sparsity in (0.0, *HELD_OUT)
    )


def show(profile: DeviceProfile, measured: tuple[Measured, ...]) -> None:
    """A table in 80 columns, and whether the target is met."""
    print(table(Calibration(profile, {}, measured, "")))
    errors = [abs(predicted(profile, one) / one.seconds - 1) for one in measured if one.point.sparsity > 0]
    verdict = "met" if max(errors) <= TARGET else "missed"
    print(f"\nlargest error at held-out sparsities {max(errors):.1%}, mean {sum(errors) / len(errors):.1%}; target {TARGET:.0%}: {verdict}")


def _fresh(quick: bool) -> DeviceProfile:
    found = calibrate(quick=quick, observe=_tell)
    print("Calibration\n")
    print(table(found))
    rates = ("flops_per_s", "efficiency", "sparse_efficiency", "moved_bytes_per_s", "step_s", "layer_s")
    print("\n" + "\n".join(f"{key:<20} {getattr(found.profile, key):.4g}" for key in rates))
    return replace(found.profile, name="a calibration in this process")


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
