"""A single device's run on a disk, as it was behind a session: all that it needs to go on, to the bit.

`point.json` says which of two files of arrays counts, with its checksum, and of which settings and which software it is; the other file is
written next, so that a whole one is there at every instant. One process at a time is at work in the folder.
"""

import fcntl
import hashlib
import json
import logging
import os
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import numpy as np

from simulations import disk
from simulations.checkpoints.array_file import ArrayFile, read_arrays, write_arrays
from simulations.config.errors import ConfigError
from simulations.config.experiment import Experiment
from simulations.config.loading import config_bytes
from simulations.environment import software
from simulations.plugins.packages import used_by
from sparcl_core.costs.flops import Counted, Flops
from sparcl_core.replay.buffer import Buffer
from sparcl_core.replay.memory import Memory
from sparcl_core.solo import Progress
from sparcl_core.sparsity.ddr import DDRState

log = logging.getLogger(__name__)

POINTER, FORMAT = "point.json", 1
FILES = (POINTER, f"{POINTER}.new", "point-0.safetensors", "point-1.safetensors")
_BUFFER = ("x", "y", "logits")
_DDR = tuple(field.name for field in fields(DDRState) if field.name != "stages")


@dataclass(frozen=True, kw_only=True)
class SoFar:
    """A single device's run up to a session.

    Attributes:
        progress: of that session.
        counted: FLOPs of all sessions. `peak_memory`: the most bytes that one of them took.
        untrained: [2, T], accuracy of the fresh model.
        accuracy: [tasks that are over, 2, T].
    """

    progress: Progress
    counted: Counted
    peak_memory: int
    untrained: np.ndarray
    accuracy: np.ndarray


class LonePoint:
    """Where the run of one experiment on a single device is kept; a context, at whose end the folder is free for others.

    Raises:
        ConfigError: on entering, if the folder cannot be made, or another process is at work in it.
    """

    def __init__(self, folder: Path, experiment: Experiment):
        self.folder, self.of, self.but_for_data = folder, digest(experiment), _but_for_data(experiment)
        self.software, self._held = software() | used_by(experiment), -1

    def __enter__(self) -> "LonePoint":
        try:
            disk.make_folder(self.folder)
            self._held = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
            fcntl.flock(self._held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(self._held)
            raise ConfigError(f"another process is at work on this run ({self.folder}): wait for it, or end it") from error
        except OSError as error:
            raise ConfigError(f"{self.folder} cannot be written ({error.strerror or error}); choose another with --out") from error
        return self

    def __exit__(self, *error) -> None:
        os.close(self._held)
        with suppress(OSError):  # only an empty one goes
            self.folder.rmdir()

    def load(self) -> SoFar | None:
        """Where to go on; None where nothing is kept that is whole, of these settings and of this software. A line says why it is left."""
        if not os.path.lexists(self.folder / POINTER):
            self._tell_of_other_data()
            return None
        try:
            found = json.loads(disk.read(self.folder / POINTER))
            if (found["format"], found["of"], found["software"]) != (FORMAT, self.of, self.software):
                raise ValueError("it is of other settings, or was made by other versions of the software")
            return _from_arrays(read_arrays(self.folder, ArrayFile(**found["file"])), found["counts"])
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            log.warning("%s is not gone on with, and the run begins anew: %s", self.folder / POINTER, error)
            return None

    def save(self, so_far: SoFar) -> None:
        """Raises OSError if it cannot be written; what was saved before still counts then."""
        arrays, counts = _to_arrays(so_far)
        held = self.folder / POINTER
        name = f"point-{(so_far.progress.task + so_far.progress.session) % 2}.safetensors"
        if held.exists() and json.loads(disk.read(held))["file"]["name"] == name:
            name = FILES[5 - FILES.index(name)]
        file = write_arrays(self.folder, name, arrays)
        content = {
            "format": FORMAT,
            "of": self.of,
            "but_for_data": self.but_for_data,
            "software": self.software,
            "file": asdict(file),
            "counts": counts,
        }
        disk.put(self.folder / f"{POINTER}.new", [json.dumps(content).encode()])
        disk.flush([self.folder / name, self.folder / f"{POINTER}.new"])
        os.replace(self.folder / f"{POINTER}.new", held)
        disk.flush([self.folder])

    def _tell_of_other_data(self) -> None:
        """A line if this run was begun with data, or weights, that have changed since: it begins anew, and what was kept stays."""
        for other in sorted(self.folder.parent.glob(f"*/{POINTER}")):
            with suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
                if json.loads(disk.read(other))["but_for_data"] == self.but_for_data:
                    what = "is of this run with other data: the run begins anew with what is there now, and that stays for the old files"
                    log.warning("%s %s", other.parent, what)

    def remove(self) -> None:
        """The run is over: delete what was kept."""
        disk.delete(self.folder, FILES)


def digest(experiment: Experiment) -> str:
    """SHA-256 of all settings."""
    return hashlib.sha256(config_bytes(experiment)).hexdigest()


def _but_for_data(experiment: Experiment) -> str:
    """SHA-256 of all settings but for what the run has found of its files."""
    model, data = replace(experiment.model, weights_sha256=""), replace(experiment.data, sha256="")
    return digest(replace(experiment, model=model, data=data))


def _to_arrays(so_far: SoFar) -> tuple[dict[str, np.ndarray], dict]:
    progress, memory = so_far.progress, so_far.progress.memory
    arrays = {"untrained": so_far.untrained, "accuracy": so_far.accuracy}
    for kind in ("state", "masks", "importance"):
        arrays |= {f"{kind}/{name}": value for name, value in getattr(progress, kind).items()}
    arrays |= {f"arrays/{name}": value for name, value in memory.arrays.items()}
    arrays |= {f"buffer/{name}": getattr(memory.buffer, name) for name in _BUFFER}
    arrays |= {f"ddr/{name}": getattr(memory.ddr, name) for name in _DDR}
    counts = {name: getattr(progress, name) for name in ("task", "session", "epoch", "updates", "loss", "peak_memory")}
    counts |= {"flops": asdict(progress.flops), "dense_flops": asdict(progress.dense_flops), "all": asdict(so_far.counted)}
    counts |= {"offered": memory.buffer.offered, "stages": memory.ddr.stages, "twin_offered": memory.twin_offered}
    counts |= {"memory_epochs": memory.epochs, "most_memory": so_far.peak_memory}
    return arrays, counts | {"names": list(arrays)}  # their order, which the file does not keep


def _from_arrays(arrays: dict[str, np.ndarray], counts: dict) -> SoFar:
    def under(kind: str) -> dict[str, np.ndarray]:
        return {name.partition("/")[2]: arrays[name] for name in counts["names"] if name.startswith(f"{kind}/")}

    buffer = Buffer(**under("buffer"), offered=counts["offered"])
    removal = DDRState(**under("ddr"), stages=counts["stages"])
    memory = Memory(buffer, removal, counts["memory_epochs"], counts["twin_offered"], under("arrays"))
    progress = Progress(
        state=under("state"), masks=under("masks"), importance=under("importance"), memory=memory,
        flops=Flops(**counts["flops"]), dense_flops=Flops(**counts["dense_flops"]),
        **{name: counts[name] for name in ("task", "session", "epoch", "updates", "loss", "peak_memory")},
    )  # fmt: skip
    counted = Counted(*(Flops(**counts["all"][name]) for name in ("flops", "dense_flops")))
    return SoFar(
        progress=progress, counted=counted, peak_memory=counts["most_memory"], untrained=arrays["untrained"], accuracy=arrays["accuracy"]
    )


def one_more(before: SoFar | None, progress: Progress, untrained: np.ndarray) -> SoFar:
    """`before` with one more session. `untrained`: read where it is the first."""
    counted = Counted(progress.flops, progress.dense_flops)
    if before is None:
        none = np.zeros((0, *untrained.shape), untrained.dtype)
        return SoFar(progress=progress, counted=counted, peak_memory=progress.peak_memory, untrained=untrained, accuracy=none)
    peak = max(before.peak_memory, progress.peak_memory)
    return replace(before, progress=progress, counted=before.counted + counted, peak_memory=peak)
