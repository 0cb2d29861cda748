"""Settings that somebody has given and that nothing reads, as `learner.alpha` with a method without such a term.

Who reads a setting says so: a section in `read_with`, condition -> keys, all of them with their section in front:

    "masks.scheme=set|rigl"         one of these values
    "sparsity", "no fleet.mix"      it is not 0, false or empty; it is
    "masks.scheme=rigl or masks.initial=snip"

and a learning method in `reads`. A key that stands under several conditions is read where all of them hold. Something of another package is
given its whole section (`GIVEN_ALL`), so that it may read anything there.

Only what somebody has written for this very run counts: `--set`; and in an experiment's file what stands beside the setting that it depends
on, as long as `--set` does not change that one: a file has keys for its own method, which stay there when another one is set.
"""

import functools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from server.fleet.availability import KINDS
from simulations.config.data import DATA
from simulations.config.errors import several
from simulations.config.experiment import SECTIONS, Experiment
from simulations.config.loading import apply_override, read_tables
from sparcl_core.foreign import printable
from sparcl_core.methods.registry import METHODS, readers
from sparcl_core.sparsity.settings import SCHEMES

GIVEN_ALL = {kind.setting: kind for kind in (METHODS, SCHEMES, KINDS, DATA)}
IDLE = (False, None, "", "none", "static", "shared", [], {}, ())  # what says that something is not done, is not contradicted if it is not
FOR_FLEETS = (  # sections, and keys of others, of which a device that is alone reads nothing
    "wire", "aggregation", "server_optimizer", "fleet", "clock", "availability", "energy", "selection", "budget", "change",
    "evaluate_every", "evaluate_on", "evaluate_devices", "target",
    *(f"federation.{key}" for key in ("rounds", "cohort_size", "mask", "batchnorm")),
    *(f"stream.{key}" for key in ("devices", "partition", "alpha", "samples", "shards_per_device", "classes_per_device", "size_law")),
    *(f"stream.{key}" for key in ("online", "order", "cycles", "new_classes_share", "boundaries", "advance", "task_hours")),
    *(f"stream.{key}" for key in ("pace_spread", "start_spread")),
)  # fmt: skip


@dataclass(frozen=True)
class Given:
    """What somebody has written, as `section.key`: in `--set`, in the experiment's file, and for several experiments at once.

    What a run has written into its config.toml counts as nobody's.
    """

    typed: frozenset[str]
    filed: frozenset[str] = frozenset()
    shared: frozenset[str] = frozenset()

    @classmethod
    def of(cls, name: str, overrides: Iterable[str], shared: Iterable[str] = ()) -> "Given":
        """Of an experiment that could be loaded. `name`: as for `simulations.config.loading.load`; `shared`: overrides, too."""
        filed = read_tables(name)
        is_of_a_run = all(section in filed for section in SECTIONS)  # it has all settings, so that it tells nothing of their writer
        return cls(keys_of(overrides), frozenset() if is_of_a_run else _keys(filed), keys_of(shared))

    def counts(self, key: str, condition: str) -> bool:
        """Was this key given for what `condition` speaks of?"""
        switches = {switch for switch, _ in _alternatives(condition)}
        return key in self.typed or (key in self.filed and bool(switches & self.filed) and not switches & (self.typed | self.shared))


def keys_of(overrides: Iterable[str]) -> frozenset[str]:
    """The keys that overrides set, as `section.key`; of a whole section, each."""
    tree: dict[str, Any] = {}
    for override in overrides:
        apply_override(tree, override)
    return _keys(tree)


def expect_read(experiment: Experiment, given: Given, *, alone: bool = False) -> None:
    """Raise ConfigError with all settings that were given and that nothing reads."""
    several("", unread(experiment, given, alone=alone))


def unread(experiment: Experiment, given: Given, *, alone: bool = False) -> Iterator[str]:
    """A message for each reason why settings that were given are not read. `alone`: by a device without a federation."""
    reasons: dict[str, list[str]] = {}
    for key, why in unread_keys(experiment, given, alone=alone).items():
        reasons.setdefault(why, []).append(key)
    for why, keys in reasons.items():
        if why:
            yield _told(experiment, why, keys)
        else:
            yield f"{_shown(experiment, keys)}, which a device that is alone does not read: {_leave(keys)}, or take sparcl run"


def unread_keys(experiment: Experiment, given: Given, *, alone: bool = False) -> dict[str, str]:
    """Key -> the condition that does not hold; an empty one: there is no federation."""
    found = {}
    for key in sorted(given.typed | given.filed):
        if _is_idle(experiment, key) or (alone and key == "profile"):
            continue
        if alone and key in given.typed and (key in FOR_FLEETS or key.partition(".")[0] in FOR_FLEETS):
            found[key] = ""
        elif missing := [one for one in conditions().get(key, ()) if given.counts(key, one) and not _holds(experiment, one)]:
            found[key] = missing[0]
    return found


@functools.cache
def conditions() -> Mapping[str, tuple[str, ...]]:
    """Key -> what must hold so that it is read; keys that are always read are left out."""
    found: dict[str, list[str]] = {}
    for name, section in {"": Experiment, **SECTIONS}.items():
        for condition, keys in getattr(section, "read_with", {}).items():
            for key in keys:
                found.setdefault(f"{name}.{key}" if name else key, []).append(condition)
    for key, names in readers().items():
        found.setdefault(f"learner.{key}", []).insert(0, f"{METHODS.setting}={'|'.join(names)}")
    return {key: tuple(all_of) for key, all_of in found.items()}


def in_words(condition: str) -> str:
    """A condition as people say it: `masks.scheme=set or rigl`, `sparsity above 0`."""
    return " or ".join(_alternative(switch, values, " or ") for switch, values in _alternatives(condition))


def _told(experiment: Experiment, condition: str, keys: list[str]) -> str:
    switches = dict.fromkeys(switch for switch, _ in _alternatives(condition))
    now = " and ".join(f"{switch.removeprefix('no ')} is {printable(repr(_value(experiment, switch)), 120)}" for switch in switches)
    first, values = next(iter(_alternatives(condition)))
    way = _alternative(first, values[:1] if values else values, "")
    words = f"{'it is' if len(keys) == 1 else 'they are'} read with {in_words(condition)} only"
    return f"{_shown(experiment, keys)}, but {now}: {words}; {_leave(keys)}, or take {way}"


def _alternative(switch: str, values: tuple[str, ...] | None, between: str) -> str:
    name = switch.removeprefix("no ")
    kind = type(_default(name))
    if values:
        *most, last = values
        return f"{name}={', '.join(most)}{between if most else ''}{last}"
    if switch != name:
        return f"{name}=0" if kind in (int, float) else f"an empty {name}"
    return {bool: f"{name}=true", int: f"{name} above 0", float: f"{name} above 0"}.get(kind, name)


def _alternatives(condition: str) -> Iterator[tuple[str, tuple[str, ...] | None]]:
    """Setting and values of each; None: any that is not empty. `no ` stays before a setting that must be empty."""
    for one in condition.split(" or "):
        switch, _, values = one.partition("=")
        yield switch, tuple(values.split("|")) if values else None


def _holds(experiment: Experiment, condition: str) -> bool:
    return any(_is_so(experiment, switch, values) for switch, values in _alternatives(condition))


def _is_so(experiment: Experiment, switch: str, values: tuple[str, ...] | None) -> bool:
    if switch.startswith("no "):
        return not _value(experiment, switch)
    value = _value(experiment, switch)
    if values is None:
        return bool(value)
    return value in values or (switch in GIVEN_ALL and value not in GIVEN_ALL[switch].ours)


def _value(experiment: Experiment, key: str) -> Any:
    return functools.reduce(getattr, key.removeprefix("no ").split("."), experiment)


def _default(key: str) -> Any:
    return _value(Experiment(), key)


def _is_idle(experiment: Experiment, key: str) -> bool:
    return any(value == _value(experiment, key) for value in IDLE)


def _shown(experiment: Experiment, keys: list[str]) -> str:
    return ", ".join(f"{key} is {printable(repr(_value(experiment, key)), 120)}" for key in keys)


def _leave(keys: list[str]) -> str:
    return f"leave {'it' if len(keys) == 1 else 'them'} out"


def _keys(tree: Mapping[str, Any]) -> frozenset[str]:
    return frozenset(
        f"{name}.{key}" if key else name for name, value in tree.items() for key in (value if isinstance(value, dict) and value else ("",))
    )
