"""What a command was given, checked before anything is started: PyTorch, Flower and Ray take seconds, and none of them is needed for this.

Whoever uses a file, a folder or an address checks it again, and more closely; what is found here is what a typo makes of it. Each function
gives its messages, so that one error can have them all.
"""

import importlib
import json
import math
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from server.fleet.availability import KINDS, make_availability
from simulations import disk
from simulations.config.errors import command, did_you_mean, several
from simulations.config.experiment import Experiment
from simulations.data.own import expect_options
from simulations.data.places import find
from simulations.engine.address import masked
from simulations.fleet.mix import read_fleet
from simulations.fleet.profiles import load_profile
from sparcl_core.foreign import printable
from sparcl_core.methods.registry import make_method

WHOLE = "whole.json"  # in the place of run.json when all results are written, see `simulations.results.resumable`


def expect(*checks: Iterable[str]) -> None:
    """Raise ConfigError with all that these have found, if anything."""
    several("", [problem for check in checks for problem in check])


def experiment_files(experiment: Experiment) -> Iterator[str]:
    """Profiles, the fleet's file, the trace, and where the data is."""
    fleet, stream, data = experiment.fleet, experiment.stream, experiment.data
    for profile in fleet.mix or ([] if fleet.file else [experiment.profile]):
        yield from _message(load_profile, profile)
    if fleet.file:
        yield from _message(read_fleet, fleet.file, stream.devices)
    if experiment.availability.kind == "trace" or experiment.availability.kind not in KINDS.ours:
        made = (experiment.availability, stream.devices, experiment.seed)
        yield from (f"availability: {problem}" for problem in _message(make_availability, *made))
    yield from _message(find, data)
    yield from _message(expect_options, data)


def alone(experiment: Experiment) -> Iterator[str]:
    """What cannot be for a single device, which has no server."""
    named = make_method(experiment.learner)
    if named.needs_server:
        yield f"learner.method is {experiment.learner.method!r}, which needs the server of a federation: sparcl run has one"
    if (correction := experiment.federation.correction) != "none":
        yield f"federation.correction is {correction!r}, but there is no federation: set federation.correction=none, or take sparcl run"


def output_folder(parent: Path) -> Iterator[str]:
    """Where the folder of a run is to be made; it need not be there yet."""
    try:
        str(parent).encode()
    except UnicodeEncodeError:
        yield f"--out is {printable(parent)}: it holds a byte that is not UTF-8, and results could not be written there; choose another"
        return
    if reason := unwritable(parent):
        yield f"run folder {printable(parent)} cannot be written ({reason}); choose another with --out"


def picture(file: Path) -> Iterator[str]:
    """A PNG that is to be drawn."""
    if file.suffix.lower() != ".png":
        yield f"--out is {printable(file)}: it will be a PNG, so take {printable(file.name)}.png"
    elif _is(file, "dir"):
        yield f"--out is {printable(file)}: it is a folder; name a file in it"
    elif reason := unwritable(file.parent):
        yield f"--out is {printable(file)}: it cannot be written ({reason})"
    elif not _is(file.parent, "dir"):
        yield f"--out is {printable(file)}: there is no folder {printable(file.parent)}; make it, or choose another"


def unwritable(folder: Path) -> str:
    """Why nothing can be made in this folder, or in what it is to be made in; empty if it can."""
    whole = found = Path(os.path.abspath(folder))
    if len(os.fsencode(whole)) > 3500 or any(len(os.fsencode(part)) > 255 for part in whole.parts):
        return "File name too long"
    while not os.path.lexists(found) and found != found.parent:
        found = found.parent
    if not found.exists():
        return f"{printable(found)} is a link to nothing"
    if not found.is_dir():
        return "it is a file" if found == whole else f"{printable(found)} is a file"
    try:
        os.rmdir(tempfile.mkdtemp(prefix=".sparcl-", dir=found))  # rights, a full disk, a read-only one: only trying tells
    except OSError as error:
        return error.strerror or str(error)
    return ""


def run_folder(folder: Path) -> Iterator[str]:
    """Of a run that is to be resumed or forgotten; closer by `simulations.results.resumable.open_run`."""
    if not _is(folder / "config.toml", "file"):
        yield f"{printable(folder)} is no run folder: it has no config.toml; name the folder that `sparcl run` has printed"
    elif not any(os.path.lexists(folder / name) for name in (WHOLE, "run.json")):
        yield no_control(folder)


def no_control(folder: Path) -> str:
    """Why there is nothing to resume where run.json is missing: a run that ends well leaves all results and nothing of what it took."""
    repeats = command("run", folder / "config.toml")
    if all((folder / name).is_file() for name in ("summary.json", "model.safetensors")) and not (folder / "checkpoint").exists():
        return f"{folder} is finished: there is nothing to resume; {repeats} repeats it"
    return f"{folder} has no run.json, without which a run cannot be resumed, and it is not finished: {repeats} repeats it"


def control_of(folder: Path) -> Path:
    """run.json, or what it became when all results were written."""
    return folder / WHOLE if (folder / WHOLE).exists() else folder / "run.json"


def engine_of(folder: Path) -> tuple[str, str]:
    """Engine and cluster address of an unfinished run; ("ray", "") where they cannot be read, which whoever opens it says."""
    try:
        how = json.loads(disk.read(control_of(folder)))
        return str(how["engine"]), str(how["address"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return "ray", ""


def store_url(store: str) -> Iterator[str]:
    """Where device states are to be kept; empty: in the run's folder."""
    if not store:
        return
    if reason := _store_problem(store):
        yield (
            f"device states cannot be kept in {masked(printable(store))}: {reason}; name with --store a folder that can be written, "
            f"or a URL such as s3://bucket/run of which fsspec has the backend"
        )


def _store_problem(store: str) -> str:
    try:
        store.encode()
    except UnicodeEncodeError:
        return "it holds a byte that is not UTF-8"
    if "://" not in store and "::" not in store:
        return unwritable(Path(os.path.expanduser(store)))
    if set("*?[") & set(store):
        return "a URL of a store has none of the wildcards * ? ["
    from fsspec.registry import known_implementations, registry

    known = {*known_implementations, *registry}
    for link in store.split("::"):
        scheme = link.partition("://")[0] if "://" in link else link
        if scheme not in known:
            return f"fsspec knows no {scheme}://{';' + hint if (hint := did_you_mean(scheme, known)) else ''}"
        backend = known_implementations.get(scheme, {}).get("class", "")
        try:
            importlib.import_module(backend.rpartition(".")[0] or "fsspec")
        except ImportError as error:
            return f"{known_implementations[scheme].get('err') or printable(error)} (pip install it first)"
    if store.startswith("file://"):
        return unwritable(Path(store.removeprefix("file://")))
    return ""


def engine_options(engine: str, address: str, workers: int, **amounts: float) -> Iterator[str]:
    """Options of the Ray engine that contradict each other or this machine. `amounts`: what must be finite."""
    if engine == "inline" and address:
        yield f"--ray-address is {printable(repr(address))}, but the inline engine is one process: leave it out or take --engine ray"
    there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if engine == "ray" and not address and workers > there:
        yield f"workers is {workers}, but this machine has {there} CPUs: ask for fewer with --workers"
    for name, value in amounts.items():
        if not 0 <= value < math.inf:
            yield f"{name} is {value}: it must be finite and not negative"


def figures(given: dict[str, float]) -> Iterator[str]:
    """Of a device, as `sparcl calibrate` takes them."""
    for key, value in given.items():
        if not 0 < value < math.inf:
            yield f"{key} is {value:g}: it needs a finite number above 0"


def _message(function, *args) -> Iterator[str]:
    """What `function` complains of."""
    try:
        function(*args)
    except (ValueError, OSError) as error:
        yield str(error)


def _is(path: Path, what: str) -> bool:
    try:
        return {"file": path.is_file, "dir": path.is_dir, "exists": path.exists}[what]()
    except (OSError, ValueError):  # a name that no file can have
        return False
