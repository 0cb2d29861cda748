"""The name of a run's folder: the experiment, what `--set` has changed, and the seed, as in `split-digits-lr0.05-sparsity0.95-seed0`."""

import hashlib
import re
import tomllib
from collections import Counter

from simulations.config.experiment import Experiment
from simulations.config.mistakes import keys_of

LONGEST = 60  # characters that settings may take; a hash of them all stands for what is cut off
SAID_ANYWAY = ("name", "seed", "description")


def run_name(experiment: Experiment, overrides: list[str]) -> str:
    """A folder's name, of letters, digits and `.+-_`. Equal for equal settings, and different for different ones but for odd characters."""
    changed = dict(_parts(override) for override in overrides)  # the last one of a key counts
    settings = "-".join(f"{_short(key)}{_shown(value)}" for key, value in changed.items() if key not in SAID_ANYWAY)
    if len(settings) > LONGEST:
        settings = f"{settings[: LONGEST - 9]}-{hashlib.sha256(settings.encode()).hexdigest()[:8]}"
    return "-".join(part for part in (experiment.name, settings, f"seed{experiment.seed}") if part)


def _parts(override: str) -> tuple[str, str]:
    key, _, value = override.partition("=")
    return key.strip(), value.strip()


def _short(key: str) -> str:
    """The last part of a key that no other shares, or that is the learner's; else the whole key."""
    last = key.rpartition(".")[2]
    shared = Counter(known.rpartition(".")[2] for known in keys_of(Experiment))[last]
    return _safe(last if shared == 1 or key == f"learner.{last}" else key)


def _shown(text: str) -> str:
    """A number as it is; before anything else a dash, so that key and value can be told apart."""
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except ValueError:
        value = text
    if isinstance(value, list):
        value = "+".join(map(str, value))
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return f"{value}" if is_number else f"-{_safe(str(value).lower() if isinstance(value, bool) else str(value))}"


def _safe(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9.+_-]+", "_", text).strip("._-") or "_"
