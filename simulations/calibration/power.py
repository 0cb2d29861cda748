"""Watts of this machine, where Linux shows them: a battery, the rails of a Jetson board, or Intel's and AMD's RAPL counters.

The first that is found is read, the whole device before its processor:

- battery: `class/power_supply/*/power_now` (uW), or `current_now` (uA) x `voltage_now` (uV) / 1e12, summed over those that discharge;
- rails: INA3221 monitors, `bus/i2c/drivers/ina3221*/*/hwmon/*/`: `in*_input` (mV) x `curr*_input` (mA) / 1e6. The board's input rail
  alone where it has one, all rails else;
- rapl: `class/powercap/intel-rapl:*/energy_uj`, counters that start again at `max_energy_range_uj`. Processor packages and memory, or
  the whole platform (`psys`), which holds both; not the board, its power supply or a screen.

Formats: the Linux kernel's documentation, ABI/testing/sysfs-class-power, hwmon/ina3221.rst and power/powercap/powercap.rst.
"""

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

SYSFS = Path("/sys")
INPUT_RAILS = ("VDD_IN", "POM_5V_IN", "5V_IN")  # of the Jetson boards that measure what comes in


@dataclass(frozen=True)
class Meter:
    """Something to read power from.

    Attributes:
        source: what is read, for a profile.
        watts: power now; for a meter that shows power.
        counters: energy counters, each the file and where it starts again, in uJ; for a meter that shows energy.
    """

    source: str
    watts: Callable[[], float] | None = None
    counters: tuple[tuple[Path, int], ...] = ()


def find_meter(root: Path = SYSFS) -> tuple[Meter | None, str]:
    """The meter of the machine whose sysfs is mounted at `root`, or None; and why there is none."""
    reasons = []
    for find in (_battery, _rails, _rapl):
        meter, reason = find(root)
        if meter:
            return meter, ""
        reasons.append(reason)
    return None, "; ".join(reasons)


def mean_watts(meter: Meter, work: Callable[[], object], seconds: float, clock: Callable[[], float] = time.monotonic) -> float:
    """Mean power while `work` is called again and again for about `seconds`, at least once.

    A meter of power is read after each call; counters are read then, too, so that none can start again twice unseen.

    Raises:
        OSError: if the meter cannot be read any more.
    """
    start, readings, energy_uj = clock(), [], 0
    before = [_number(path) for path, _ in meter.counters]
    while True:
        work()
        if meter.watts:
            readings.append(meter.watts())
        else:
            after = [_number(path) for path, _ in meter.counters]
            ranges = [limit for _, limit in meter.counters]
            energy_uj += sum(used(a, b, limit) for a, b, limit in zip(before, after, ranges, strict=True))
            before = after
        if (passed := clock() - start) >= seconds:
            return sum(readings) / len(readings) if meter.watts else energy_uj / 1e6 / passed


def used(before_uj: int, after_uj: int, range_uj: int) -> int:
    """What a counter counted between two readings if it started again at most once."""
    return after_uj - before_uj if after_uj >= before_uj else after_uj - before_uj + range_uj


def battery_joules(root: Path = SYSFS) -> float:
    """What the machine's batteries hold when they are full; 0 where there are none or they do not say.

    `energy_full` is in uWh, `charge_full` in uAh and meant at the voltage `voltage_min_design` (uV).
    """
    total = 0.0
    for folder in _batteries(root):
        try:
            if (folder / "energy_full").is_file():
                total += _number(folder / "energy_full") * 3600e-6
            else:
                total += _number(folder / "charge_full") * _number(folder / "voltage_min_design") * 3600e-12
        except (OSError, ValueError):
            continue  # a battery that does not say
    return total


def _battery(root: Path) -> tuple[Meter | None, str]:
    folders = _batteries(root)
    discharging = [folder for folder in folders if _text(folder / "status") == "Discharging"]
    if not discharging:
        return None, "its battery does not discharge: unplug it" if folders else "no battery"
    return _readable(Meter("battery, whole device", watts=lambda: sum(map(_battery_watts, discharging))))


def _batteries(root: Path) -> list[Path]:
    """Folders of the batteries that feed the machine; those of a mouse or a pen have the scope Device."""
    folders = sorted(root.glob("class/power_supply/*"))
    return [folder for folder in folders if _text(folder / "type") == "Battery" and _text(folder / "scope") != "Device"]


def _battery_watts(folder: Path) -> float:
    if (folder / "power_now").is_file():
        return abs(_number(folder / "power_now")) / 1e6
    return abs(_number(folder / "current_now")) * _number(folder / "voltage_now") / 1e12  # some count what flows out as negative


def _rails(root: Path) -> tuple[Meter | None, str]:
    rails = []
    for current in sorted(root.glob("bus/i2c/drivers/ina3221*/*/hwmon/*/curr[1-3]_input")):
        number = current.name[4]
        voltage = current.with_name(f"in{number}_input")
        if voltage.is_file() and _text(current.with_name(f"in{number}_enable")) != "0":
            rails.append((_text(current.with_name(f"in{number}_label")), voltage, current))
    if not rails:
        return None, "no INA3221 rails"
    rails = [rail for rail in rails if rail[0] in INPUT_RAILS] or rails
    names = ", ".join(name or "unnamed" for name, _, _ in rails)
    return _readable(
        Meter(f"INA3221 rails {names}", watts=lambda: sum(_number(volts) * _number(amperes) for _, volts, amperes in rails) / 1e6)
    )


def _rapl(root: Path) -> tuple[Meter | None, str]:
    folders = [path for path in sorted(root.glob("class/powercap/intel-rapl:*")) if re.fullmatch(r"intel-rapl:\d+(:\d+)?", path.name)]
    named = {folder: _text(folder / "name") for folder in folders}
    chosen = [folder for folder in folders if named[folder] == "psys"]
    chosen = chosen or [folder for folder in folders if re.fullmatch(r"package-\d+|dram", named[folder])]
    if not chosen:
        return None, "no RAPL counters"
    try:
        counters = tuple((folder / "energy_uj", _number(folder / "max_energy_range_uj")) for folder in chosen)
        return _readable(Meter(f"RAPL {', '.join(named[folder] for folder in chosen)}, without the rest of the board", counters=counters))
    except PermissionError:
        return None, "RAPL counters can be read by root only"
    except (OSError, ValueError) as error:
        return None, f"RAPL counters cannot be read: {error}"


def _readable(meter: Meter) -> tuple[Meter | None, str]:
    """`meter` if a first reading works."""
    try:
        if meter.watts:
            meter.watts()
        for path, _ in meter.counters:
            _number(path)
    except PermissionError:
        return None, f"{meter.source.split(',')[0]}: may be read by root only"
    except (OSError, ValueError) as error:
        return None, f"{meter.source.split(',')[0]} cannot be read: {error}"
    return meter, ""


def _number(path: Path) -> int:
    return int(path.read_text())


def _text(path: Path) -> str:
    """What the file says; "" where it cannot be read."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""
