"""run.json: how an unfinished run is carried out, and the lock on it while a process is at it. Its settings are config.toml."""

import fcntl
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import get_args

from simulations import disk
from simulations.config.errors import ConfigError, WeightsError, command
from simulations.config.experiment import Experiment
from simulations.config.loading import config_bytes, load
from simulations.disk import flush, put
from simulations.engine.adapter import EngineError
from simulations.engine.address import secrets_of
from simulations.preflight import control_of, no_control
from simulations.run import EngineName

FORMAT = 1


@dataclass(frozen=True)
class How:
    """How a run is carried out.

    Attributes:
        engine: `ray` or `inline`.
        baseline: the dense twin is run behind it.
        store: path or URL for device states; empty for the run folder, or on a cluster for two of its nodes.
        address: of the Ray cluster; empty for one of our own on this machine.
        on_nodes: device states are held by nodes of that cluster.
        id: tells this run from others in a common store and on a cluster.

    Raises:
        ConfigError: if it contradicts itself.
    """

    engine: EngineName
    baseline: bool
    store: str = field(default="", repr=False)
    address: str = ""
    on_nodes: bool = False
    id: str = ""

    def __post_init__(self):
        if self.engine == "inline" and self.address:
            raise ConfigError(f"--ray-address is {self.address!r}, but the inline engine is one process: leave it out or take --engine ray")


def write_control(folder: Path, experiment: Experiment, how: How) -> None:
    """run.json, then config.toml: a folder that has only the latter is finished. Nobody else may read a password in the store's URL.

    Raises:
        ConfigError: if they cannot be written.
    """
    config = config_bytes(experiment)
    told = {"format": FORMAT, **asdict(how), "config_sha256": hashlib.sha256(config).hexdigest()}
    try:
        put(folder / "run.json", [f"{json.dumps(told, indent=2)}\n".encode()], private=bool(secrets_of(how.store)))
        put(folder / "config.toml", [config])
        flush([folder / "run.json", folder / "config.toml", folder, folder.parent])
    except OSError as error:
        raise ConfigError(f"run folder {folder} cannot be written ({error.strerror or error}); choose another with --out") from error


def read_control(folder: Path) -> tuple[Experiment, How]:
    """What an unfinished run was begun with.

    Raises:
        ConfigError: if run.json cannot be used, or the settings are not those that it was begun with.
    """
    again = f"start the run again with {command('run', folder / 'config.toml')}"
    try:
        found = json.loads(disk.read(control_of(folder)))
        if not isinstance(found, dict) or found.pop("format", None) != FORMAT:
            raise ValueError("another version of this code wrote it")
        config_sha256, how = found.pop("config_sha256"), How(**found)
        if how.engine not in get_args(EngineName):
            raise ValueError(f"engine is {how.engine!r}: there are {', '.join(get_args(EngineName))}")
        kinds = (type(how.baseline), type(how.store), type(how.address), type(how.id))
        if kinds != (bool, str, str, str) or not how.id.isalnum():
            raise ValueError("baseline, store, address or id is not what a run writes there")
    except (ValueError, TypeError, KeyError, OSError, RecursionError) as error:
        raise ConfigError(f"{folder}/run.json cannot be used ({error!r}): {again}") from error
    try:
        experiment = load(str(folder / "config.toml"))
        actual = hashlib.sha256((folder / "config.toml").read_bytes()).hexdigest()
        if actual != config_sha256:
            raise ConfigError(f"{folder}/config.toml was changed since the run began: its SHA-256 is {actual}, not {config_sha256}")
    except WeightsError:
        raise  # the settings are those that the run began with: the file that they name is not
    except ConfigError as error:
        raise ConfigError(f"{error}; put back the {folder}/config.toml that the run began with, or start another run") from error
    return experiment, how


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """A lock on run.json, or whole.json, that ends with this process, however it ends.

    Raises:
        ConfigError: if there is no such file, or it cannot be opened.
        EngineError: if another process is at it.
    """
    try:
        file = open(control_of(folder), "r+")  # noqa: SIM115  (for writing: as flock on NFS wants it)
    except FileNotFoundError as error:
        raise ConfigError(no_control(folder)) from error
    except OSError as error:
        raise ConfigError(f"{folder}/run.json cannot be opened ({error.strerror or error}): see to its access") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise EngineError(f"{folder} is being run by another process: wait for it, or end it") from error
        except OSError:
            pass  # a file system without locks
        if not control_of(folder).exists():
            raise ConfigError(no_control(folder))  # a moment ago
        yield
