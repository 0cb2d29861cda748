"""Device profiles: TOML files with a value and its source for every figure (docs/profiles.md has the format).

A figure is a table with `value`, perhaps `unit` (without it: SI), and `source`, which has a `date` or the word "assumption". The
figures are the fields of `DeviceProfile`. A profile may name a network in `networks/`, and its own figures go before those of the network.
"""

import math
import tomllib
from collections.abc import Collection
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from simulations.errors import ConfigError
from simulations.profiles.units import to_si
from sparcl_core.costs import DeviceProfile

FOLDER = Path(__file__).parent
NETWORKS = FOLDER / "networks"

FIGURES = tuple(field.name for field in fields(DeviceProfile) if field.name != "name")
OPTIONAL = {field.name for field in fields(DeviceProfile) if field.default is not MISSING}
NETWORK_FIGURES = ("down_bits_per_s", "up_bits_per_s", "latency_s", "jitter_s")
# two ways to state the same energy, of which a device has one; the other is 0
ALTERNATIVES = (("active_w", "j_per_flop"), ("radio_w", "radio_j_per_byte"))
# 0 has a meaning here: mains, no panel, no jitter, a radio that costs nothing
MAY_BE_ZERO = {field.name for field in fields(DeviceProfile) if field.default == 0} - {"j_per_flop"} | {"radio_j_per_byte"}
KEYS = ("value", "unit", "source", "date")

Figure = tuple[float, bool]  # its value in SI units, and whether it is an assumption


def available(folder: Path | None = None) -> list[str]:
    """Names of the profiles that come with the project."""
    return sorted(path.stem for path in (folder or FOLDER).glob("*.toml"))


def load_profile(name: str) -> tuple[DeviceProfile, list[str]]:
    """The profile `name` and which of its figures are assumptions, in the order of `DeviceProfile`.

    Args:
        name: one of `available()`, or a path to a .toml file.

    Raises:
        ConfigError: if there is no such profile, it is no TOML, or a figure is missing, unknown, of the wrong type, sign or unit, or
            without a source; the message names file and figure.
    """
    path, tree = _read(name, FOLDER, "profile")
    title, network = _title(path, tree), tree.pop("network", None)
    figures = _figures(path, tree, FIGURES)
    if network is not None:
        figures = _network(path, network) | figures
    for first, second in ALTERNATIVES:
        if (first in figures) == (second in figures):
            stated = "both" if first in figures else "neither"
            raise ConfigError(f"{path.name}: it states {stated} of {first} and {second}; state exactly one of the two")
        figures.setdefault(first, (0.0, False))
        figures.setdefault(second, (0.0, False))
    if missing := [figure for figure in FIGURES if figure not in figures and figure not in OPTIONAL]:
        way_out = f" or name a network: {', '.join(available(NETWORKS))}" if missing[0] in NETWORK_FIGURES else ""
        raise ConfigError(f"{path.name}: {missing[0]} is missing; add [{missing[0]}] with value, source and date{way_out}")
    values = {figure: value for figure, (value, _) in figures.items()}
    return DeviceProfile(title, **values), [figure for figure in FIGURES if figure in figures and figures[figure][1]]


def _network(path: Path, name: Any) -> dict[str, Figure]:
    """The figures of the network that the profile in `path` names."""
    if name not in (known := available(NETWORKS)):
        raise ConfigError(f"{path.name}: network {name!r} is not here; there are {', '.join(known)}")
    path, tree = _read(name, NETWORKS, "network")
    _title(path, tree)
    return _figures(path, tree, NETWORK_FIGURES)


def _read(name: str, folder: Path, what: str) -> tuple[Path, dict[str, Any]]:
    path = Path(name)
    if path.suffix != ".toml":
        if name not in (known := available(folder)):
            raise ConfigError(f"{what} {name!r} is not here; there are {', '.join(known)}, or give a .toml file")
        path = folder / f"{name}.toml"
    try:
        return path, tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{what} {name!r} cannot be read: {error.strerror}; give one of {', '.join(available(folder))}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is no TOML: {error}") from error


def _title(path: Path, tree: dict[str, Any]) -> str:
    """What people call it; taken out of `tree`."""
    title = tree.pop("name", None)
    if not isinstance(title, str) or not title.strip():
        raise ConfigError(f"{path.name}: name is {title!r}: it needs a text, what people call it")
    return title


def _figures(path: Path, tree: dict[str, Any], known: Collection[str]) -> dict[str, Figure]:
    if unknown := set(tree) - set(known):
        raise ConfigError(f"{path.name}: unknown figure {min(unknown)!r}; here it may have {', '.join(known)}")
    return {figure: _figure(path, figure, entry) for figure, entry in tree.items()}


def _figure(path: Path, figure: str, entry: Any) -> Figure:
    where = f"{path.name}: {figure}"
    if not isinstance(entry, dict):
        raise ConfigError(f"{where} is {entry!r}: a figure is a table [{figure}] with value, source and date")
    if unknown := set(entry) - set(KEYS):
        raise ConfigError(f"{where} has an unknown key {min(unknown)!r}; a figure has {', '.join(KEYS)}")
    value, source = entry.get("value"), entry.get("source", "")
    rule = "not negative" if figure in MAY_BE_ZERO else "above 0"
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigError(f"{where} is {value!r}: it needs a number {rule}")
    try:
        number = to_si(figure, float(value), entry["unit"]) if "unit" in entry else float(value)
    except OverflowError:  # TOML's integers have no end
        number = math.inf
    except ValueError as error:
        raise ConfigError(f"{path.name}: {error}") from error
    if not 0 <= number < math.inf or (number == 0 and figure not in MAY_BE_ZERO):
        raise ConfigError(f"{where} is {value!r}: it needs a number {rule}, and not inf or nan")
    if not isinstance(source, str) or not source.strip() or ("assumption" not in source and not entry.get("date")):
        raise ConfigError(f"{where} has no source with a date; write one, or the word 'assumption' and what it rests on")
    return number, "assumption" in source
