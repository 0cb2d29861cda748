"""A run on disk as it was at the end of a round, so that it can be resumed after its process was killed at any instant.

    latest.json                   the pointer: format version, round, and name, size and CRC-32 of the next two; replaced last, in one step
    state-ROUND.safetensors       the server's state, whole
    journal/ROUND.safetensors     what this round alone added; with size and CRC-32 of the journal before it, so that the pointer
                                  vouches for all of them, and a checkpoint costs the same after every round

What lies beyond the pointer was being written when the process died: `load` does not look at it, the next `save` replaces it.
Nothing is forced onto the disk (fsync): this guards against the death of the process, not of the machine.
"""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from server.snapshot import Snapshot
from server.strategy import SparCLStrategy
from simulations.arrayfile import ArrayFile, read_arrays, write_arrays, write_parts
from simulations.journal import Journal, from_arrays, to_arrays

FORMAT = 1


class CheckpointError(ValueError):
    """A checkpoint that cannot be read or written; the message names the file, what is wrong, and the way out."""


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A run at the end of `round`. journals: of rounds 0 to `round`, in order."""

    round: int
    snapshot: Snapshot
    journals: list[Journal]

    def restore(self, strategy: SparCLStrategy) -> None:
        """Let a strategy that was just made go on from here, ledger included. Raises ValueError if it is of another experiment."""
        strategy.restore(self.snapshot)
        rows = [row for journal in self.journals for row in journal.rows]
        strategy.ledger.restore(rows, [own for journal in self.journals for own in journal.wall_s])


class Checkpoints:
    """The checkpoints of one run, of which the last one counts."""

    def __init__(self, folder: Path):
        """`folder`: theirs alone; made by the first `save`."""
        self.folder = folder
        self._last: _Pointer | None = None  # what latest.json says; None: not read yet, or not there

    def save(self, round_: int, snapshot: Snapshot, journal: Journal) -> None:
        """Make the end of `round_` the checkpoint. Rounds come in order, from 0, the untrained model.

        Raises:
            ValueError: if it is not the turn of this round.
            CheckpointError: if it cannot be written; the checkpoint before it stays whole.
        """
        last = self._last or self._read_pointer()
        turn = last.round + 1 if last else 0
        if not round_ == journal.record.round == turn:
            raise ValueError(
                f"a checkpoint of round {round_} with the journal of round {journal.record.round}, but the next one in {self.folder} is "
                f"that of round {turn}: every round is saved once, in order; remove() starts afresh"
            )
        before = np.array([last.journal.size, last.journal.crc32] if last else [0, 0], np.int64)
        try:
            (self.folder / "journal").mkdir(parents=True, exist_ok=True)
            journal_file = write_arrays(self.folder, _journal_name(round_), to_arrays(journal) | {"before": before})
            pointer = _Pointer(FORMAT, round_, write_arrays(self.folder, _state_name(round_), snapshot), journal_file)
            staging = self.folder / "latest.json.new"
            write_parts(staging, [json.dumps(asdict(pointer), indent=2).encode(), b"\n"])
            os.replace(staging, self._latest)
            self._last = pointer
            for old in self.folder.glob("state-*.safetensors"):
                if old.name != pointer.state.name:
                    old.unlink()
        except OSError as error:
            whole = self._last or last
            kept = f"that of round {whole.round} is whole" if whole else "there is none yet"
            raise CheckpointError(
                f"the checkpoint of round {round_} cannot be written to {self.folder} ({error.strerror or error}); {kept}: "
                f"make room or fix the folder, then resume the run"
            ) from error

    @property
    def last_round(self) -> int | None:
        """The round of the last checkpoint, None if there is none. Reads the pointer alone; raises CheckpointError as `load` does."""
        pointer = self._read_pointer()
        return pointer.round if pointer else None

    def load(self) -> Checkpoint | None:
        """The last checkpoint, None if there is none.

        Raises:
            CheckpointError: if a file of it is missing, damaged, or none of ours.
        """
        self._last = pointer = self._read_pointer()
        if pointer is None:
            return None
        snapshot = self._read(pointer.state)
        journals, file = [], pointer.journal
        for number in range(pointer.round, -1, -1):
            arrays = self._read(file)
            try:
                journals.append(from_arrays(arrays))
                size, crc32 = arrays["before"].tolist()
            except (KeyError, ValueError, TypeError, IndexError) as error:
                raise self._broken(file.name, f"it is no journal of this version of the code ({error!r})") from error
            if journals[-1].record.round != number:
                raise self._broken(file.name, f"it is the journal of round {journals[-1].record.round}")
            file = ArrayFile(_journal_name(number - 1), size, crc32)
        return Checkpoint(pointer.round, snapshot, journals[::-1])

    def remove(self) -> None:
        """Delete the checkpoint: the pointer first, so that a process that dies meanwhile leaves none; at last the folder, if it is empty.

        Raises:
            CheckpointError: if a file cannot be deleted.
        """
        self._last = None
        try:
            self._latest.unlink(missing_ok=True)
            for pattern in ("latest.json.new", "state-*.safetensors", "journal/*.safetensors"):
                for path in self.folder.glob(pattern):
                    path.unlink()
            for folder in (self.folder / "journal", self.folder):
                if folder.is_dir() and not any(folder.iterdir()):
                    folder.rmdir()
        except OSError as error:
            what = f"cannot be removed ({error.strerror or error})"
            raise CheckpointError(f"the checkpoint in {self.folder} {what}: remove it by hand") from error

    @property
    def _latest(self) -> Path:
        return self.folder / "latest.json"

    def _read_pointer(self) -> "_Pointer | None":
        try:
            found = json.loads(self._latest.read_bytes())
            if found["format"] != FORMAT:
                what = f"its format version is {found['format']!r}, this code reads {FORMAT}"
                raise CheckpointError(f"checkpoint {self._latest}: {what}; resume the run with the release that it was started with")
            pointer = _Pointer(FORMAT, found["round"], ArrayFile(**found["state"]), ArrayFile(**found["journal"]))
        except FileNotFoundError:
            return None
        except CheckpointError:
            raise
        except OSError as error:
            raise self._broken("latest.json", f"it cannot be read ({error.strerror or error})") from error
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise self._broken("latest.json", f"it is not a checkpoint's pointer ({error!r})") from error
        numbers = (pointer.round, pointer.state.size, pointer.state.crc32, pointer.journal.size, pointer.journal.crc32)
        if not all(type(number) is int and number >= 0 for number in numbers):
            raise self._broken("latest.json", f"round, sizes and checksums are {numbers}, not counts")
        names = (pointer.state.name, pointer.journal.name)
        if names != (_state_name(pointer.round), _journal_name(pointer.round)):
            raise self._broken("latest.json", f"it names {names} for round {pointer.round}")
        return pointer

    def _read(self, file: ArrayFile) -> Snapshot:
        try:
            return read_arrays(self.folder, file)
        except ValueError as error:
            raise self._broken(file.name, str(error)) from error

    def _broken(self, name: str, what: str) -> CheckpointError:
        return CheckpointError(
            f"checkpoint {self.folder / name}: {what}; the run cannot go on from it: remove {self.folder} and start afresh"
        )


@dataclass(frozen=True)
class _Pointer:
    """What latest.json says."""

    format: int
    round: int
    state: ArrayFile
    journal: ArrayFile


def _state_name(round_: int) -> str:
    return f"state-{round_}.safetensors"


def _journal_name(round_: int) -> str:
    return f"journal/{round_}.safetensors"
