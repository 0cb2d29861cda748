"""A device profile from measurements on the machine that this runs on: the rates of `sparcl_core.costs`, memory, and power if it shows.

From the sessions i of a grid of backbones, sparsities, methods and batch sizes (`simulations.calibration.timed_sessions`)

    seconds_i = a * sparse FLOPs_i + b * other FLOPs_i + c * samples_i * activation bytes + d * steps_i + e * steps_i * layer passes

is solved with a to e >= 0 for the least squares of relative errors (rows divided by seconds_i; `scipy.optimize.nnls`). The figures are
sparse_efficiency = 1 / (a rate), efficiency = 1 / (b rate), moved_bytes_per_s = 1 / c, step_s = d and layer_s = e, where `rate` is what a
dense float32 matrix product reaches. `docs/costs.md` has the check on sparsities that the grid leaves out.
"""

import os
import platform
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import date
from pathlib import Path
from typing import IO

import numpy as np
import tomli_w
import torch
from scipy.optimize import nnls

from simulations import preflight
from simulations.calibration.power import SYSFS, battery_joules, find_meter, mean_watts
from simulations.calibration.timed_sessions import Measured, PointSessions, grid, measure, one_thread, product_rate
from simulations.config.errors import ConfigError
from simulations.environment import processor
from sparcl_core.costs.device import DeviceProfile, compute_cost
from sparcl_core.kernels.build import backend

REPEATS, QUICK_REPEATS = 10, 3
POWER_S = 5.0  # how long power is looked at, idle and active
ASSUMED = {  # what no calibration can measure: value, and what it rests on
    "active_w": (7.2, "placeholder, a Raspberry Pi 4's; set it with --active-w"),
    "idle_w": (2.5, "placeholder, a Raspberry Pi 4's; set it with --idle-w"),
    "radio_j_per_byte": (5.2e-6, "measured for WiFi 802.11b/g on phones at 2.1 Mbit/s (Aalborg mobile devices group), not here"),
    "down_bits_per_s": (35.96e6, "mobile, world mean, 2020-09: Speedtest Global Index; set it with --down-mbit"),
    "up_bits_per_s": (11.22e6, "mobile, world mean, 2020-09: Speedtest Global Index; set it with --up-mbit"),
    "latency_s": (0.04, "mobile, world mean, 2020-09: Speedtest Global Index; set it with --latency-ms"),
}


@dataclass(frozen=True)
class Fit:
    """The figures of `DeviceProfile` that sessions determine, by its names."""

    efficiency: float
    sparse_efficiency: float
    moved_bytes_per_s: float
    step_s: float
    layer_s: float


@dataclass(frozen=True)
class Figure:
    """A figure of a profile with its source; without a date it is an assumption."""

    value: float
    source: str
    date: str = ""


@dataclass(frozen=True)
class Calibration:
    """A profile, where its figures come from, what they were fitted to, and why power is an assumption ("" where it is none)."""

    profile: DeviceProfile
    figures: dict[str, Figure]
    measured: tuple[Measured, ...]
    no_power: str


def fit(measured: Sequence[Measured], flops_per_s: float) -> Fit:
    """The figures whose relative errors over `measured` have the least sum of squares.

    Raises:
        ValueError: if the sessions do not determine the two efficiencies.
    """
    rows = np.array([_terms(one) for one in measured], dtype=np.float64).reshape(-1, 5)
    rows /= np.array([one.seconds for one in measured])[:, None]
    scale = rows.max(axis=0, initial=0.0)  # columns of like size: FLOPs and steps are eleven orders apart
    if not scale.all():
        missing = ("sparse FLOPs", "other FLOPs", "samples", "steps", "layers")[int(np.argmin(scale))]
        raise ValueError(f"no session has {missing}: measure at least one dense session and a sparse one")
    sparse, dense, moved, step_s, layer_s = nnls(rows / scale, np.ones(len(rows)))[0] / scale
    if min(sparse, dense) * flops_per_s < 0.5:  # noise can lift an efficiency a little above 1, not that far
        raise ValueError(
            "the seconds of the sessions hardly grow with their FLOPs, so that no efficiency follows from them: calibrate without --quick, "
            "with more models, or when the machine is less busy"
        )
    return Fit(1 / (flops_per_s * dense), 1 / (flops_per_s * sparse), 1 / moved if moved else float("inf"), float(step_s), float(layer_s))


def predicted(profile: DeviceProfile, one: Measured) -> float:
    """Seconds of the session `one` by the cost model."""
    return compute_cost(
        profile, one.flops, is_sparse=one.point.sparsity > 0, moved_per_sample=one.moved_per_sample, layer_passes=one.layer_passes
    ).seconds


def calibrate(
    models: Sequence[str] = ("cnn", "resnet18"),
    quick: bool = False,
    *,
    name: str = "",
    given: dict[str, float] | None = None,
    root: Path = SYSFS,
    observe: Callable[[str], None] = lambda text: None,
) -> Calibration:
    """The profile of this machine.

    Args:
        models: backbones of the grid.
        given: figures that the user knows, by their names in `DeviceProfile`; they stand above what is measured or assumed.
        root: sysfs, for power.
        observe: is told what is being done.

    Raises:
        ConfigError: if this machine has no sparse kernels, or a figure that is given is not above 0.
        ValueError: as `fit`.
    """
    given = given or {}
    preflight.expect(preflight.figures(given))
    if backend().library is None:
        raise ConfigError(f"no sparse kernels here, so that sparsity saves no time and has no rate: {backend().reason}")
    today = date.today().isoformat()
    how = f"sparcl calibrate, {machine()}, one thread, torch {torch.__version__}, kernels {backend().name}"
    observe("matrix products")
    rate = product_rate()
    measured = measure(grid(models, quick), QUICK_REPEATS if quick else REPEATS, observe)
    found = {"flops_per_s": rate, **asdict(fit(measured, rate)), "memory_bytes": float(memory_bytes())}
    if found["moved_bytes_per_s"] == float("inf"):
        del found["moved_bytes_per_s"]  # a profile has no infinite figures; this one is its default
    if battery_j := battery_joules(root):
        found["battery_j"] = battery_j
    watts, meter, no_power = _power(measured, root, observe) if not {"active_w", "idle_w"} <= given.keys() else ({}, "", "")
    sources = dict.fromkeys(found, how) | dict.fromkeys(watts, f"{how}; {meter}")
    found |= watts
    figures = {}
    for key in (field.name for field in fields(DeviceProfile) if field.name != "name"):
        if key in given:
            figures[key] = Figure(given[key], "given to sparcl calibrate by whoever ran it", today)
        elif key in found:
            figures[key] = Figure(float(f"{found[key]:.4g}"), f"measured: {sources[key]}", today)
        elif key in ASSUMED:
            value, rests_on = ASSUMED[key]
            figures[key] = Figure(value, f"assumption: {rests_on}")
    profile = DeviceProfile(name or f"{machine()}, one thread", **{key: figure.value for key, figure in figures.items()})
    return Calibration(profile, figures, measured, no_power)


def machine() -> str:
    """The processor's name, or the board's where the kernel does not name it, as on ARM."""
    if (named := processor()) not in ("unknown", platform.machine()):
        return named
    try:
        return Path("/proc/device-tree/model").read_text().strip("\0\n ") or named
    except OSError:
        return platform.machine() or named


def memory_bytes() -> int:
    """Memory that a process could take now; all of the machine's where the system does not say what is free."""
    try:
        kilobytes = re.search(r"^MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
    except OSError:
        kilobytes = None
    return int(kilobytes[1]) * 1024 if kilobytes else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def table(calibration: Calibration) -> str:
    """Measured against fitted milliseconds of a step, 80 columns."""
    lines = [f"{'model':<12} {'method':<6} {'batch':>5} {'sparsity':>8} {'steps':>6} {'measured ms':>12} {'fitted ms':>11} {'error':>8}"]
    for one in calibration.measured:
        p, fitted = one.point, predicted(calibration.profile, one)
        cells = (f"{p.model.name} {p.model.width}", p.method, p.batch, p.sparsity, one.flops.steps)
        seconds = (1000 * one.seconds / one.flops.steps, 1000 * fitted / one.flops.steps, 100 * (fitted / one.seconds - 1))
        lines.append("{:<12} {:<6} {:>5} {:>8.2f} {:>6} {:>12.2f} {:>11.2f} {:>+7.1f}%".format(*cells, *seconds))
    return "\n".join(lines)


def write(file: IO[str], calibration: Calibration) -> None:
    """The profile as TOML, which `simulations.fleet.profiles.load_profile` reads."""
    file.write('# Written by `sparcl calibrate`. Every number has a source and a date, or the word "assumption" and what it rests on.\n')
    tree: dict[str, object] = {"name": calibration.profile.name}
    for key, figure in calibration.figures.items():
        tree[key] = {name: value for name, value in asdict(figure).items() if value != ""}
    file.write(tomli_w.dumps(tree))


def default_name() -> str:
    """A file name for this machine's profile, e.g. amd-epyc-avx2.toml."""
    words = re.sub(r"\((R|TM|r|tm)\)|\bCPU\b|\bProcessor\b|@.*", " ", machine())
    return "-".join(re.findall(r"[a-z0-9]+", f"{words} {backend().name}".lower())) + ".toml"


def _terms(one: Measured) -> tuple[float, ...]:
    """What the cost model multiplies the five figures by."""
    flops, sparse = one.flops, one.flops.train_sparse if one.point.sparsity > 0 else 0
    return sparse, flops.total - sparse, flops.samples * one.moved_per_sample, flops.steps, flops.steps * one.layer_passes


def _power(measured: Sequence[Measured], root: Path, observe: Callable[[str], None]) -> tuple[dict[str, float], str, str]:
    """Idle and active watts, what they were read from, and why there are none."""
    meter, reason = find_meter(root)
    if meter is None:
        return {}, "", reason
    with one_thread():
        sessions = PointSessions(max(measured, key=lambda one: one.seconds * (one.point.sparsity > 0)).point)
        sessions.run()
        observe("idle power")
        idle = mean_watts(meter, lambda: time.sleep(0.2), POWER_S)
        observe("active power")
        active = mean_watts(meter, sessions.run, POWER_S)
    return {"idle_w": idle, "active_w": active}, meter.source, ""
