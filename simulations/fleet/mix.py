"""Fleets of unlike devices: a mix of profiles with spreads around them, or a file with one row per device.

Mix: of N devices, profile k gets about N w_k / sum(w). The whole parts are dealt first, and the devices left over go to the largest
remainders (Hamilton's method; ties to the earlier profile), so that a mix is exact and not a draw. Spread: device d computes
exp(sigma z_d) times as fast as its profile says, z_d standard normal: log-normal with median 1, so that half of the devices are
faster. The network has a draw of its own. z_d depends on the seed and d alone, not on the size of the fleet.
"""

import math
from dataclasses import dataclass

import numpy as np

from server.fleet.hardware import Hardware
from server.fleet.table import Table, read_table
from simulations.config.errors import ConfigError
from simulations.config.sections import FleetConfig
from simulations.fleet.profiles import ALTERNATIVES, FIGURES, MAY_BE_ZERO, load_profile
from sparcl_core.costs.device import DeviceProfile
from sparcl_core.foreign import printable
from sparcl_core.seeding import generator

COMPUTE = ("flops_per_s", "moved_bytes_per_s")
NETWORK = ("down_bits_per_s", "up_bits_per_s")

Loaded = dict[str, tuple[DeviceProfile, list[str]]]  # name in mix or file -> what `load_profile` gave


@dataclass(frozen=True, eq=False)
class Fleet:
    """The devices' hardware, and what about it is not a fact.

    Attributes:
        hardware: of all devices.
        assumed: profile, as mix or file name it -> its figures that are assumptions; only profiles that some device has, and only figures
            that some device takes from it.
    """

    hardware: Hardware
    assumed: dict[str, list[str]]


def make_hardware(config: FleetConfig, default_profile: str, devices: int, seed: int) -> Fleet:
    """The hardware of a fleet: a function of its arguments and the files that they name.

    Args:
        default_profile: profile of all devices if `config` has neither mix nor file.
        devices: N, `stream.devices`.

    Raises:
        ConfigError: if a profile or the file is not there or wrong; the message names the file and the field or line.
    """
    if config.file:
        loaded, kind, own = read_fleet(config.file, devices)
    else:
        mix, own = config.mix or {default_profile: 1.0}, {}
        loaded = {name: load_profile(name) for name in mix}
        kind = np.repeat(np.arange(len(mix)), quotas(list(mix.values()), devices))
        if config.assign == "random" and len(mix) > 1:
            kind = kind[generator(seed, "fleet", "kind").permutation(devices)]
    factors = {}
    for purpose, spread, figures in (("compute", config.compute_spread, COMPUTE), ("network", config.network_spread, NETWORK)):
        if spread:
            factor = np.exp(spread * generator(seed, "fleet", purpose).standard_normal(devices))
            factors |= dict.fromkeys(figures, factor)
    hardware = Hardware(tuple(profile for profile, _ in loaded.values()), kind, factors, own)
    return Fleet(hardware, _assumed(loaded, hardware))


def quotas(weights: list[float], devices: int) -> np.ndarray:
    """[K] int64, summing to `devices`: how many devices each weight gets by largest remainder."""
    shares = np.array(weights, np.float64) / max(weights)  # so that the sum of huge weights is finite
    shares = shares / shares.sum() * devices
    counts = np.floor(shares).astype(np.int64)
    by_remainder = np.argsort(counts - shares, kind="stable")
    counts[by_remainder[: devices - counts.sum()]] += 1
    return counts


def read_fleet(file: str, devices: int) -> tuple[Loaded, np.ndarray, dict[str, np.ndarray]]:
    """A fleet from a CSV file: column `profile`, and one for each figure of `DeviceProfile` that some devices have of their own.

    Row d is device d; blank lines count for nothing. Figures are in SI units, and an empty cell leaves the profile's.

    Returns:
        profiles in order of appearance; which each device has, [N] int64; figure -> [N] float64, NaN where the cell is empty.

    Raises:
        ConfigError: with file and line, if a column, profile or number is wrong, or there is not one row per device.
    """
    try:
        table = read_table(file, "fleet.file", "a column 'profile' and a row for each device")
        return _read_rows(table, devices)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _read_rows(table: Table, devices: int) -> tuple[Loaded, np.ndarray, dict[str, np.ndarray]]:
    file, header = table.path, table.header
    if "profile" not in header:
        raise ConfigError(f"{file}, line 1: there is no column 'profile'; the first line names the columns: profile, and figures")
    if unknown := [column for column in header if column not in ("profile", *FIGURES)]:
        names = ", ".join(repr(printable(column)) for column in unknown)
        raise ConfigError(f"{file}, line 1: unknown column {names}; beside profile there may be {', '.join(FIGURES)}")
    loaded, number, kind, wrong = {}, {}, [], {}
    own = {column: [] for column in header if column != "profile"}
    for line, cells in table.rows:
        with table.line(line):
            name = cells.pop("profile")
            if name not in loaded and name not in wrong:
                try:
                    loaded[name], number[name] = load_profile(name), len(number)
                except ConfigError as error:
                    wrong[name] = error
            if name in wrong:
                raise wrong[name]
            for figure, value in _own_figures(cells, loaded[name][0]).items():
                own[figure].append(value)
            kind.append(number[name])
    table.check()
    if len(kind) != devices:
        raise ConfigError(f"{file} has {len(kind)} rows, stream.devices is {devices}: there must be one row per device")
    return loaded, np.array(kind, np.int64), {figure: np.array(values, np.float64) for figure, values in own.items()}


def _own_figures(cells: dict[str, str], profile: DeviceProfile) -> dict[str, float]:
    """The numbers in a row; NaN for an empty cell."""
    either = {figure for pair in ALTERNATIVES for figure in pair}
    numbers = {}
    for figure, cell in cells.items():
        try:
            numbers[figure] = float(cell) if cell else math.nan
        except ValueError as error:
            raise ConfigError(f"{figure} is {cell!r}: it needs a number in SI units, or nothing for the profile's") from error
        may_be_zero = figure in MAY_BE_ZERO or figure in either
        if cell and (not 0 <= numbers[figure] < math.inf or (numbers[figure] == 0 and not may_be_zero)):
            raise ConfigError(f"{figure} is {cell}: it must be finite and {'not negative' if may_be_zero else 'above 0'}")
    for pair in ALTERNATIVES if either & set(cells) else ():
        values = [getattr(profile, figure) if math.isnan(numbers.get(figure, math.nan)) else numbers[figure] for figure in pair]
        if all(values) or (pair == ("active_w", "j_per_flop") and not any(values)):
            raise ConfigError(
                f"{pair[0]} is {values[0]:g} and {pair[1]} {values[1]:g} with what profile {profile.name!r} says: "
                f"a device has one of the two; set the other to 0"
            )
    return numbers


def _assumed(loaded: Loaded, hardware: Hardware) -> dict[str, list[str]]:
    assumed = {}
    for number, (name, (_, figures)) in enumerate(loaded.items()):
        holders = hardware.kind == number
        if holders.any():
            assumed[name] = [f for f in figures if f not in hardware.own or np.isnan(hardware.own[f][holders]).any()]
    return assumed
