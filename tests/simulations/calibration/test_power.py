"""Power from a sysfs tree of our own: which meter is chosen, its units, and counters that start again."""

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulations.calibration import power
from simulations.calibration.power import Meter, battery_joules, find_meter, mean_watts, used


def tree(root: Path, files: dict[str, object]) -> Path:
    """Files with these texts under `root`."""
    for path, text in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(f"{text}\n")
    return root


def battery(name: str = "BAT0", status: str = "Discharging", **files: object) -> dict[str, object]:
    return {f"class/power_supply/{name}/{key}": value for key, value in {"type": "Battery", "status": status, **files}.items()}


def rails(*labels: str, milliamperes: int = 400, bus: str = "1-0040", **files: object) -> dict[str, object]:
    folder, found = f"bus/i2c/drivers/ina3221/{bus}/hwmon/hwmon3", {}
    for number, label in enumerate(labels, 1):
        found |= {f"in{number}_label": label, f"in{number}_input": 5000, f"curr{number}_input": milliamperes}
    return {f"{folder}/{key}": value for key, value in (found | {"in4_label": "sum of shunt voltages", "in4_input": 9} | files).items()}


def rapl(number: str, name: str, energy: int, limit: int = 1000) -> dict[str, object]:
    folder = f"class/powercap/intel-rapl:{number}"
    return {f"{folder}/name": name, f"{folder}/energy_uj": energy, f"{folder}/max_energy_range_uj": limit}


class Clock:
    """A clock that only `work` moves on."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_battery_is_read_by_its_power_or_by_current_and_voltage(tmp_path):
    both = battery("BAT0", power_now=4_000_000) | battery("BAT1", current_now=-500_000, voltage_now=3_800_000)
    meter, reason = find_meter(tree(tmp_path, both))
    assert reason == "" and meter.source == "battery, whole device"
    assert math.isclose(meter.watts(), 4.0 + 0.5 * 3.8)


def test_batteries_that_charge_or_belong_to_a_mouse_are_not_read(tmp_path):
    charging = battery("BAT0", status="Charging", power_now=9) | battery("mouse", scope="Device", power_now=9)
    meter, reason = find_meter(tree(tmp_path, charging | {"class/power_supply/AC/type": "Mains"}))
    assert meter is None and reason == "its battery does not discharge: unplug it; no INA3221 rails; no RAPL counters"


def test_all_rails_unless_one_is_the_input(tmp_path):
    meter, _ = find_meter(tree(tmp_path / "orin", rails("VDD_GPU_SOC", "VDD_CPU_CV") | rails("VIN_SYS_5V0", bus="1-0041")))
    assert math.isclose(meter.watts(), 3 * 5.0 * 0.4) and meter.source == "INA3221 rails VDD_GPU_SOC, VDD_CPU_CV, VIN_SYS_5V0"
    meter, _ = find_meter(tree(tmp_path / "nano", rails("VDD_IN", "VDD_CPU_GPU_CV", "VDD_SOC")))
    assert math.isclose(meter.watts(), 5.0 * 0.4) and meter.source == "INA3221 rails VDD_IN"


def test_a_rail_that_is_switched_off_does_not_count(tmp_path):
    meter, _ = find_meter(tree(tmp_path, rails("VDD_GPU", "VDD_CPU", in2_enable=0)))
    assert meter.source == "INA3221 rails VDD_GPU"


def test_packages_and_memory_but_no_parts_of_a_package(tmp_path):
    files = rapl("0", "package-0", 1) | rapl("0:0", "core", 2) | rapl("0:1", "dram", 3) | rapl("1", "package-1", 4)
    meter, _ = find_meter(tree(tmp_path, files | {"class/powercap/intel-rapl:x/name": "package-9"}))
    assert [path.parent.name for path, _ in meter.counters] == ["intel-rapl:0", "intel-rapl:0:1", "intel-rapl:1"]
    assert meter.source == "RAPL package-0, dram, package-1, without the rest of the board"


def test_the_platform_counter_holds_the_packages(tmp_path):
    meter, _ = find_meter(tree(tmp_path, rapl("0", "package-0", 1) | rapl("1", "psys", 2, 77)))
    assert meter.counters == ((tmp_path / "class/powercap/intel-rapl:1/energy_uj", 77),)


def test_the_whole_device_comes_before_its_processor(tmp_path):
    meter, _ = find_meter(tree(tmp_path, rapl("0", "package-0", 1) | rails("VDD_IN") | battery(power_now=1)))
    assert meter.source.startswith("battery")


def test_what_cannot_be_read_is_said(tmp_path, monkeypatch):
    tree(tmp_path, rapl("0", "package-0", 1) | battery(power_now="n/a"))
    true = power._number

    def refuse(path: Path) -> int:
        if path.name == "energy_uj":
            raise PermissionError
        return true(path)

    monkeypatch.setattr(power, "_number", refuse)
    meter, reason = find_meter(tmp_path)
    assert meter is None and reason.startswith("battery cannot be read: invalid literal") and reason.endswith("may be read by root only")


def test_counters_that_start_again_between_two_readings(tmp_path):
    meter, _ = find_meter(tree(tmp_path, rapl("0", "package-0", 900)))
    clock, energies = Clock(), iter([990, 70, 150])  # 90, 80 after 1000, 80

    def work() -> None:
        clock.now += 0.5
        meter.counters[0][0].write_text(str(next(energies)))

    assert math.isclose(mean_watts(meter, work, 1.5, clock), 250e-6 / 1.5)


def test_power_is_the_mean_of_the_readings_and_work_runs_at_least_once():
    clock, shown = Clock(), iter([1.0, 2.0, 6.0])

    def work() -> None:
        clock.now += 1.0

    meter = Meter("test", watts=lambda: next(shown))
    assert mean_watts(meter, work, 2.0, clock) == 1.5 and mean_watts(meter, work, 0.0, clock) == 6.0


@given(before=st.integers(0, 999), counted=st.integers(0, 999))
def test_a_counter_that_starts_again_at_most_once_loses_nothing(before, counted):
    assert used(before, (before + counted) % 1000, 1000) == counted


def test_capacity_from_energy_or_from_charge(tmp_path):
    files = battery("BAT0", energy_full=50_000_000) | battery("BAT1", charge_full=4_000_000, voltage_min_design=3_850_000)
    assert math.isclose(battery_joules(tree(tmp_path, files | battery("BAT2"))), 50 * 3600 + 4 * 3.85 * 3600)


@pytest.mark.parametrize("folder", ["nothing", "class"])
def test_a_machine_that_shows_nothing(tmp_path, folder):
    meter, reason = find_meter(tmp_path / folder)
    assert meter is None and reason == "no battery; no INA3221 rails; no RAPL counters" and battery_joules(tmp_path / folder) == 0
