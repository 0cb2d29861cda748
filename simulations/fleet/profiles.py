"""Device profiles: TOML files with a value and its source for every figure (docs/profiles.md has the format).

A figure is a table with `value`, perhaps `unit` (without it: SI), and `source`, which has a `date` or the word "assumption". The
figures are the fields of `DeviceProfile`. A profile may name a network in `networks/`, and its own figures go before those of the network.
"""

import math
import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import MISSING, fields
from pathlib import Path
from typing import IO, Any

from simulations.config.errors import ConfigError, did_you_mean, several
from simulations.config.toml_file import read_toml
from simulations.fleet.units import to_si
from sparcl_core.costs.device import DeviceProfile
from sparcl_core.foreign import printable
from sparcl_core.plugins.named_files import NamedFiles

PROFILES = NamedFiles(noun="profile", group="sparcl.profiles", folder=Path(__file__).parents[1] / "profiles")
NETWORKS = PROFILES.folder / "networks"

FIGURES = tuple(field.name for field in fields(DeviceProfile) if field.name != "name")
OPTIONAL = {field.name for field in fields(DeviceProfile) if field.default is not MISSING}
NETWORK_FIGURES = ("down_bits_per_s", "up_bits_per_s", "latency_s", "jitter_s")
# two ways to state the same energy, of which a device has one; the other is 0
ALTERNATIVES = (("active_w", "j_per_flop"), ("radio_w", "radio_j_per_byte"))
# 0 has a meaning here: mains, no panel, no jitter, a radio that costs nothing
MAY_BE_ZERO = {field.name for field in fields(DeviceProfile) if field.default == 0} - {"j_per_flop"} | {"radio_j_per_byte"}
KEYS = ("value", "unit", "source", "date")

Figure = tuple[float | None, bool]  # its value in SI units, None where it is wrong, and whether it is an assumption


def available() -> list[str]:
    """Names of the profiles that come with the project."""
    return list(PROFILES.ours())


def networks() -> list[str]:
    """Names of the networks that a profile may name."""
    return sorted(path.stem for path in NETWORKS.glob("*.toml"))


def load_profile(name: str) -> tuple[DeviceProfile, list[str]]:
    """The profile `name` and which of its figures are assumptions, in the order of `DeviceProfile`.

    Args:
        name: one of `available()`, one of an installed package, or a path to a .toml file.

    Raises:
        ConfigError: if there is no such profile, it is no TOML, or a figure is missing, unknown, of the wrong type, sign or unit, or
            without a source. One message names the file and all that is wrong in it.
    """
    path = Path(name) if Path(name).suffix == ".toml" else _named(name)
    tree = _read(path, "profile", name)
    problems: list[str] = []
    title, network = _title(tree, problems), tree.pop("network", None)
    if network is not None:
        figures = _network(network, problems) | _figures(tree, FIGURES, problems)
    else:
        figures = _figures(tree, FIGURES, problems)
    for first, second in ALTERNATIVES:
        if (first in figures) == (second in figures):
            stated = "both" if first in figures else "neither"
            problems.append(f"it states {stated} of {first} and {second}; state exactly one of the two")
        figures.setdefault(first, (0.0, False))
        figures.setdefault(second, (0.0, False))
    if missing := [figure for figure in FIGURES if figure not in figures and figure not in OPTIONAL]:
        verb, each = ("are", "each") if len(missing) > 1 else ("is", f"[{missing[0]}]")
        lacks_network = network is None and not {"down_bits_per_s", "up_bits_per_s", "latency_s"}.isdisjoint(missing)
        way_out = f" or name a network: {', '.join(networks())}" if lacks_network else ""
        problems.append(f"{', '.join(missing)} {verb} missing; add {each} with value, source and date{way_out}")
    several(path.name, problems)
    values = {figure: value for figure, (value, _) in figures.items() if value is not None}
    return DeviceProfile(title, **values), [figure for figure in FIGURES if figure in figures and figures[figure][1]]


def _network(name: Any, problems: list[str]) -> dict[str, Figure]:
    """The figures of the network that a profile names."""
    if name not in (known := networks()):
        problems.append(f"network {name!r} is not here;{did_you_mean(name, known)} there are {', '.join(known)}")
        return dict.fromkeys(NETWORK_FIGURES, (None, False))
    path = NETWORKS / f"{name}.toml"
    tree = _read(path, "network", name)
    own: list[str] = []
    _title(tree, own)
    figures = _figures(tree, NETWORK_FIGURES, own)
    several(path.name, own)
    return figures


def _named(name: str) -> Path:
    try:
        path = PROFILES.path(name)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if path is None:
        known = list(PROFILES.offers())
        raise ConfigError(f"profile {name!r} is not here;{did_you_mean(name, known)} there are {', '.join(known)}, or give a .toml file")
    return path


def _read(path: Path, what: str, name: str) -> dict[str, Any]:
    try:
        return read_toml(path)
    except OSError as error:
        known = networks() if what == "network" else PROFILES.offers()
        raise ConfigError(f"{what} {name!r} cannot be read: {error.strerror or error}; give one of {', '.join(known)}") from error


def _title(tree: dict[str, Any], problems: list[str]) -> str:
    """What people call it; taken out of `tree`."""
    title = tree.pop("name", None)
    if not isinstance(title, str) or not title.strip():
        problems.append(f"name is {title!r}: it needs a text, what people call it")
    return title


def _figures(tree: dict[str, Any], known: Collection[str], problems: list[str]) -> dict[str, Figure]:
    """The figures; of one that is wrong, its value is None and `problems` has a message."""
    figures: dict[str, Figure] = {}
    for figure, entry in tree.items():
        if figure not in known:
            hint = did_you_mean(figure, known) or f" here it may have {', '.join(known)}"
            problems.append(f"unknown figure {printable(repr(figure))};{hint}")
        elif isinstance(entry, dict):
            figures[figure] = (_value(figure, entry, problems), "assumption" in str(entry.get("source")))
        else:
            problems.append(f"{figure} is {printable(repr(entry))}: a figure is a table [{figure}] with value, source and date")
            figures[figure] = (None, False)
    return figures


def _value(figure: str, entry: dict[str, Any], problems: list[str]) -> float | None:
    """What `entry` says, in SI units; None if it says it wrongly."""
    if unknown := set(entry) - set(KEYS):
        problems.append(f"{figure} has an unknown key {printable(repr(min(unknown)))}; a figure has {', '.join(KEYS)}")
    source = entry.get("source", "")
    if not isinstance(source, str) or not source.strip() or ("assumption" not in source and not entry.get("date")):
        problems.append(f"{figure} has no source with a date; write one, or the word 'assumption' and what it rests on")
    value, rule = entry.get("value"), "not negative" if figure in MAY_BE_ZERO else "above 0"
    if isinstance(value, bool) or not isinstance(value, int | float):
        problems.append(f"{figure} is {printable(repr(value))}: it needs a number {rule}")
        return None
    try:
        number = to_si(figure, float(value), entry["unit"]) if "unit" in entry else float(value)
    except OverflowError:  # TOML's integers have no end
        number = math.inf
    except ValueError as error:
        problems.append(str(error))
        return None
    if not 0 <= number < math.inf or (number == 0 and figure not in MAY_BE_ZERO):
        problems.append(f"{figure} is {printable(value, 60)}: it needs a number {rule}, and not inf or nan")
        return None
    return number


@contextmanager
def new_profile(path: Path) -> Iterator[IO[str]]:
    """A new file for a profile, open from before the measurements on, so that they are not lost to a wrong path; gone if they fail.

    Raises:
        ConfigError: if it is no TOML file, is there already, or cannot be written.
    """
    if path.suffix != ".toml":
        raise ConfigError(f"--out is {path}: a profile is a TOML file, so take {path.with_suffix('.toml')}")
    try:
        file = path.open("x", encoding="utf-8")
    except FileExistsError:
        raise ConfigError(f"{path} is there already: remove it, or take another --out") from None
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}; take another --out") from None
    own = os.fstat(file.fileno())
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        if os.path.lexists(path) and os.path.samestat(own, path.lstat()):  # and not what somebody has put in its place
            path.unlink()
        raise
