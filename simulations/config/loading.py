"""From files and `--set` to an experiment, and back. Unknown keys and wrong types are errors that name the key, and the nearest one."""

import dataclasses
import functools
import json
import tomllib
from dataclasses import field, replace
from pathlib import Path
from typing import Any

import tomli_w
from pydantic import TypeAdapter, ValidationError

from server.config import FederationConfig
from simulations.config.claims import CLAIMS
from simulations.config.data import bring_stream
from simulations.config.errors import ConfigError, WeightsError, command, did_you_mean, several
from simulations.config.experiment import Experiment
from simulations.config.mistakes import explain
from simulations.config.toml_file import check_depth, read_toml
from sparcl_core.config import LearnerConfig
from sparcl_core.foreign import printable
from sparcl_core.methods.registry import find_method
from sparcl_core.networks.pretrained import changed, digest
from sparcl_core.plugins.named_files import NamedFiles

EXPERIMENTS = NamedFiles(noun="experiment", group="sparcl.experiments", folder=Path(__file__).parents[1] / "experiments")


def available() -> list[str]:
    """Names of the experiments that come with the project."""
    return list(EXPERIMENTS.ours())


def load(name: str, overrides: list[str] | None = None, *, finds_weights: bool = True) -> Experiment:
    """The experiment in a file, with `key=value` overrides applied in order.

    Overrides that make tasks shorter make stage lengths of the file (`stage_epochs` of masks, tdm and ddr) shorter in the same
    proportion, so that a task keeps its stages; one that an override sets stays as it is. A benchmark's name in `data.name` brings its
    stream along (`simulations.config.data.bring_stream`).

    Args:
        name: one of `available()`, one of an installed package, or a path to a TOML file.
        overrides: `learner.lr=0.1`; values are TOML, a bare word is a string.
        finds_weights: look at the file of `model.weights`: its SHA-256 becomes a setting, or is compared with the one that is. Off on
            devices, which are sent their weights.

    Raises:
        ConfigError: if there is no such file, it is no TOML, or keys or values are wrong: all that are, in one message.
    """
    tree = read_tables(name)
    epochs, problems = _task_epochs(tree), []
    for override in overrides or []:
        try:
            apply_override(tree, override)
        except ConfigError as error:
            problems.append(str(error))
    several("", problems)
    keys = {override.partition("=")[0].strip() for override in overrides or []}
    _follow(tree, epochs, keys)
    bring_stream(tree, keys)
    experiment = from_tree(tree)
    return _find_weights(experiment) if finds_weights and experiment.model.weights else experiment


def _find_weights(experiment: Experiment) -> Experiment:
    model, shown = experiment.model, printable(experiment.model.weights)
    try:
        path = Path(model.weights).expanduser().absolute()
        found = digest(path)
    except (OSError, ValueError, RuntimeError) as error:  # a path with a zero byte, a home that nobody has
        reason = getattr(error, "strerror", None) or error
        raise WeightsError(f"model.weights is {shown}: it cannot be read ({reason}); give a safetensors file, or leave it empty") from error
    if model.weights_sha256 not in ("", found):
        raise WeightsError(changed(model.weights, found, model.weights_sha256))
    return replace(experiment, model=replace(model, weights=str(path), weights_sha256=found))


def from_tree(tree: dict[str, Any]) -> Experiment:
    """The experiment in nested dicts. Keys of [learner] are those of its method, which may have some of its own."""
    check_depth(tree, "the experiment")
    try:
        text = json.dumps(tree, default=str)  # TOML also knows dates
    except ValueError as error:
        raise ConfigError(f"the experiment has a number that is too large: {printable(error)}") from error
    learner, unknown = _learner_of(tree)
    kind, adapter = _reading(learner)
    try:
        made = adapter.validate_json(text)
    except ValidationError as error:
        told = explain(error, kind, tree)
        raise ConfigError("; ".join([*(problem for problem in unknown if not any(problem in text for text in told)), *told])) from error
    return Experiment(**{part.name: getattr(made, part.name) for part in dataclasses.fields(Experiment)})


def _learner_of(tree: dict[str, Any]) -> tuple[type[LearnerConfig], list[str]]:
    """What the section [learner] is to be read as, which depends on its method; and what is wrong with the method, if there is none."""
    section = tree.get("learner")
    name = section.get("method", LearnerConfig.method) if isinstance(section, dict) else LearnerConfig.method
    try:
        return (find_method(name).Config if isinstance(name, str) else LearnerConfig), []
    except ValueError as error:
        return LearnerConfig, [str(error)]


@functools.cache
def _reading(learner: type[LearnerConfig]) -> tuple[type[Experiment], TypeAdapter]:
    """An experiment whose section [learner] is of this kind, and what reads it."""
    section = ("learner", learner, field(default_factory=learner))
    kind = (
        dataclasses.make_dataclass("Experiment", [section], bases=(Experiment,), frozen=True)
        if learner is not LearnerConfig
        else Experiment
    )
    return kind, TypeAdapter(kind)


def to_tree(experiment: Experiment) -> dict[str, Any]:
    """The inverse of `from_tree`; None, which TOML cannot say, is left out."""

    def clean(value):
        if isinstance(value, dict):
            return {key: clean(item) for key, item in value.items() if item is not None}
        return list(value) if isinstance(value, tuple) else value

    return clean(dataclasses.asdict(experiment))


def config_bytes(experiment: Experiment) -> bytes:
    """The text of config.toml, from which `load` makes the same experiment."""
    return tomli_w.dumps(to_tree(experiment)).encode()


def read_tables(name: str) -> dict[str, Any]:
    """What an experiment's file says. Raises ConfigError as `load`."""
    path = Path(name)
    if path.suffix != ".toml":
        try:
            found = EXPERIMENTS.path(name)
        except ValueError as error:
            raise ConfigError(str(error)) from error
        if found is None:
            here = list(EXPERIMENTS.offers())
            if Path(f"{name}.toml").is_file():
                raise ConfigError(f"experiment {printable(repr(name))} is not here; for the file say {name}.toml")
            hint = f" it is a claim's name: {command('reproduce', name)} runs it;" if name in CLAIMS.offers() else did_you_mean(name, here)
            raise ConfigError(f"experiment {printable(repr(name))} is not here;{hint} there are {', '.join(here)}, or give a .toml file")
        path = found
    try:
        tree = read_toml(path)
    except FileNotFoundError as error:
        raise ConfigError(
            f"there is no file {printable(repr(name))}; without a file there are {', '.join(EXPERIMENTS.offers())}"
        ) from error
    except OSError as error:
        raise ConfigError(f"experiment {printable(repr(name))} cannot be read: {error.strerror or error}") from error
    if "row" in tree and "seeds" in tree:
        raise ConfigError(f"{path} is no experiment, but a claim: it has [[row]] and seeds; {command('reproduce', path)} runs it")
    return tree


def apply_override(tree: dict[str, Any], override: str) -> None:
    """Write `key=value` into tables, in place. Raises ConfigError as `load`."""
    key, sign, text = (part.strip() for part in override.partition("="))
    shown = printable(repr(override))
    if not sign or not key:
        raise ConfigError(f"--set {shown}: write key=value, for example learner.lr=0.05")
    if not override.isprintable() and any("\ud800" <= char <= "\udfff" for char in override):
        raise ConfigError(f"--set {shown}: it holds a byte that is not UTF-8")
    try:
        found = tomllib.loads(f"value = {text}")
        value = found["value"] if found.keys() == {"value"} else text
        check_depth({"value": value}, f"--set {shown}")
    except tomllib.TOMLDecodeError:
        value = text
    except ConfigError:
        raise
    except (RecursionError, ValueError) as error:
        raise ConfigError(f"--set {shown}: {key} is no value that we can use: {printable(error)}") from error
    *parents, last = key.split(".")
    for parent in parents:
        tree = tree.setdefault(parent, {})
        if not isinstance(tree, dict):
            raise ConfigError(f"--set {shown}: {parent} is a value, not a section")
    tree[last] = value


def _task_epochs(tree: dict[str, Any]) -> int:
    """K as the tables have it; 0 if they are wrong there."""
    section, epochs = tree.get("federation", {}), 1
    for key in ("rounds_per_task", "local_epochs"):
        value = section.get(key, getattr(FederationConfig, key)) if isinstance(section, dict) else 0
        epochs *= value if type(value) is int and value > 0 else 0
    return epochs


def _follow(tree: dict[str, Any], before: int, overridden: set[str]) -> None:
    """Shorten stage lengths as tasks of `before` epochs were shortened, in place."""
    after = _task_epochs(tree)
    for name in ("masks", "tdm", "ddr"):
        section = tree.get(name)
        length = section.get("stage_epochs") if isinstance(section, dict) else None
        if 0 < after < before and type(length) is int and length > 0 and not {name, f"{name}.stage_epochs"} & overridden:
            section["stage_epochs"] = max(1, length * after // before)
