"""Device profiles: TOML files with a value and its source for every figure."""

import tomllib
from dataclasses import MISSING, fields
from pathlib import Path

from simulations.errors import ConfigError
from sparcl_core.costs import DeviceProfile

FOLDER = Path(__file__).parent


def load_profile(name: str) -> tuple[DeviceProfile, list[str]]:
    """The profile `name` and which of its figures are assumptions.

    Raises:
        ConfigError: if there is no such profile, or a figure is missing, negative or without a source.
    """
    path = FOLDER / f"{name}.toml"
    if not path.is_file():
        raise ConfigError(f"profile {name!r} is not here; there are {', '.join(sorted(p.stem for p in FOLDER.glob('*.toml')))}")
    tree = tomllib.loads(path.read_text())
    wanted = [field.name for field in fields(DeviceProfile) if field.name != "name"]
    if unknown := set(tree) - {*wanted, "name"}:
        raise ConfigError(f"{path.name}: unknown figure {sorted(unknown)[0]!r}; a profile has {', '.join(wanted)}")
    values, assumed = {}, []
    optional = {field.name for field in fields(DeviceProfile) if field.default is not MISSING}
    for key in wanted:
        if key not in tree and key in optional:
            continue
        entry = tree.get(key, {})
        value, source = entry.get("value"), entry.get("source", "")
        if not isinstance(value, int | float) or value < 0 or (value == 0 and key != "radio_j_per_byte"):
            raise ConfigError(f"{path.name}: {key} is {value!r}: it needs a number above 0")
        if not source or ("assumption" not in source and "date" not in entry):
            raise ConfigError(f"{path.name}: {key} has no source with a date; write one, or the word 'assumption'")
        values[key] = float(value)
        if "assumption" in source:
            assumed.append(key)
    return DeviceProfile(name=tree["name"], **values), assumed
