"""A run on disk as it was at the end of a round, so that it can be resumed after its process was killed, or its machine lost power, at any
instant.

    latest.json                   the pointer: format version, run, round, versions of the software, and name, size and CRC-32 of the next
                                  two; replaced last, in one step
    previous.json                 the pointer before it, for when something of the last checkpoint is damaged
    state-ROUND.safetensors       the server's state, whole; of those two rounds
    journal/ROUND.safetensors     what this round alone added; with size and CRC-32 of the journal before it, so that the pointer
                                  vouches for all of them, and a checkpoint costs the same after every round

Files and their folders are flushed to the disk before the pointer is replaced, and the pointer behind it. What lies beyond the pointer was
being written when the process died: `load` does not look at it, the next `save` replaces it.
"""

import logging
import os
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from server.snapshot import Snapshot
from server.strategy import SparCLStrategy
from simulations.checkpoints.array_file import ArrayFile, read_arrays, write_arrays
from simulations.checkpoints.pointer import (
    CheckpointError,
    CheckpointLost,
    Damaged,
    Identity,
    Pointer,
    journal_name,
    state_name,
    unreadable,
)
from simulations.checkpoints.round_log import Journal, from_arrays, to_arrays
from simulations.config.errors import Lost
from simulations.disk import LinkRefused, Own, expect_no_link, flush, make_folder, put
from simulations.engine.states import StateChanges
from simulations.environment import software

log = logging.getLogger(__name__)
LATEST, PREVIOUS = "latest.json", "previous.json"
OWN = Own(
    files=re.compile(r"(latest|previous)\.json(\.new)?|state-[0-9]+\.safetensors|journal/[0-9]+\.safetensors"),
    folders=re.compile("journal"),
)


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A run at the end of `round`. journals: of rounds 0 to `round`, in order; versions: see `Checkpoints.versions`."""

    round: int
    snapshot: Snapshot
    journals: list[Journal]
    versions: list[dict]

    def restore(self, strategy: SparCLStrategy) -> None:
        """Let a strategy that was just made go on from here, ledger included. Raises ValueError if it is of another experiment."""
        strategy.restore(self.snapshot)
        rows = [row for journal in self.journals for row in journal.rows]
        strategy.ledger.restore(rows, [own for journal in self.journals for own in journal.wall_times])


class Checkpoints:
    """The checkpoints of one run, of which the last one counts, or the one before it if that is damaged.

    Attributes:
        versions: {"after_round": -1, software and its versions}, and one more whenever the run was resumed with other versions.
    """

    def __init__(self, folder: Path, identity: Identity | None = None, packages: dict[str, str] | None = None):
        """`folder`: theirs alone; made by the first `save`. `identity`: a checkpoint of anything else is refused. `packages`: versions of
        what the run uses of others, see `simulations.plugins.packages`."""
        self.folder, self.identity = folder, identity or Identity()
        self._software = software() | (packages or {})
        self._last: Pointer | None = None  # the checkpoint that counts; None: not looked for yet, or not there
        self.versions: list[dict] = []

    def save(self, round_: int, snapshot: Snapshot, journal: Journal) -> None:
        """Make the end of `round_` the checkpoint. Rounds come in order, from 0, the untrained model.

        Raises:
            ValueError: if it is not the turn of this round.
            CheckpointError: if it cannot be written; the checkpoint before it stays whole.
        """
        last = self._last or self._newest()
        turn = last.round + 1 if last else 0
        if not round_ == journal.record.round == turn:
            raise ValueError(
                f"a checkpoint of round {round_} with the journal of round {journal.record.round}, but the next one in {self.folder} is "
                f"that of round {turn}: every round is saved once, in order; remove() starts afresh"
            )
        before = np.array([last.journal.size, last.journal.crc32] if last else [0, 0], np.int64)
        versions = self.versions or (list(last.versions) if last else [{"after_round": -1, **self._software}])
        try:
            self._expect_no_link()
            make_folder(self.folder / "journal")
            journal_file = write_arrays(self.folder, journal_name(round_), to_arrays(journal) | {"before": before})
            state_file = write_arrays(self.folder, state_name(round_), snapshot)
            pointer = Pointer(round_, state_file, journal_file, asdict(self.identity), versions)
            written = [self._prepare(LATEST, pointer), *([self._prepare(PREVIOUS, last)] if last else [])]
            names = (journal_file.name, state_file.name, "journal", "")
            flush([*(self.folder / name for name in names), *written])
            for staging in reversed(written):
                os.replace(staging, staging.with_suffix(""))
            flush([self.folder])
            self._last, self.versions = pointer, versions
            self._forget_but({pointer.state.name, last.state.name if last else ""})
        except (OSError, LinkRefused) as error:
            whole = self._last or last
            kept = f"that of round {whole.round} is whole" if whole else "there is none yet"
            reason = str(error) if isinstance(error, LinkRefused) else error.strerror or error
            raise CheckpointError(
                f"the checkpoint of round {round_} cannot be written to {self.folder} ({reason}); {kept}: make room or fix the folder"
            ) from error

    @property
    def last_round(self) -> int | None:
        """The round of the last checkpoint, None if there is none. Reads the pointers alone; raises CheckpointError as `load` does."""
        pointer = self._newest()
        return pointer.round if pointer else None

    @property
    def is_begun(self) -> bool:
        """Is there a checkpoint, whole or not? The second journal is written only where there is a pointer to the first."""
        return any(os.path.lexists(self.folder / name) for name in (LATEST, PREVIOUS, journal_name(1))) or self.folder.is_file()

    def load(self, check: Callable[[StateChanges], None] = lambda changes: None) -> Checkpoint | None:
        """The last checkpoint that is whole, of the last two; None if there never was one. If that is not the last one, it counts as the
        last from now on, and a line in the log says why.

        Args:
            check: raises an error that is `Lost` if the device states that the checkpoint's last round has made are not whole.

        Raises:
            CheckpointLost: if neither of the two is whole, or they are of another run.
            CheckpointError: if they are of another format version, or cannot be read for want of access.
        """
        if not self.is_begun:
            return None
        faults: list[str] = []
        for name in (LATEST, PREVIOUS):
            try:
                self._expect_no_link()
                pointer = Pointer.read(self.folder / name, self.identity)
                found = self._read_all(pointer, check)
            except FileNotFoundError:
                faults.append(f"{self.folder / name} is not there")
                continue
            except Damaged as error:
                faults.append(str(error))
                continue
            if faults:
                log.warning("the last checkpoint is damaged (%s): going on from the one before it, of round %d", *faults, pointer.round)
                self._go_back_to(pointer)
            self._last = pointer
            self._compare(pointer)
            return found
        raise CheckpointLost(f"neither of the last two checkpoints is whole: {'; '.join(faults)}")

    def remove(self) -> None:
        """Delete the checkpoint: the pointers first, so that a process that dies meanwhile leaves none; at last the folder, if it is empty.

        Raises:
            CheckpointError: if a file cannot be deleted, or a link lies in the place of a folder.
        """
        self._last = None
        try:
            self._expect_no_link()
            OWN.find(self.folder)
            for name in (LATEST, PREVIOUS):
                (self.folder / name).unlink(missing_ok=True)
            OWN.remove(self.folder)
            with suppress(OSError):  # something else is in it
                self.folder.rmdir()
        except (OSError, LinkRefused) as error:
            reason = str(error) if isinstance(error, LinkRefused) else error.strerror or error
            raise CheckpointError(f"the checkpoint in {self.folder} cannot be removed ({reason}): remove it by hand") from error

    # -- files

    def _expect_no_link(self) -> None:
        expect_no_link(self.folder.parent, self.folder.name)
        expect_no_link(self.folder, "journal")

    def _prepare(self, name: str, pointer: Pointer) -> Path:
        """The file that will be `name`."""
        staging = self.folder / f"{name}.new"
        put(staging, [pointer.to_json()])
        return staging

    def _go_back_to(self, pointer: Pointer) -> None:
        """Let the older checkpoint be the last one."""
        try:
            flush([staging := self._prepare(LATEST, pointer)])
            os.replace(staging, self.folder / LATEST)
            flush([self.folder])
        except OSError as error:
            what = f"cannot be replaced ({error.strerror or error}): see to its space and access"
            raise CheckpointError(f"checkpoint {self.folder / LATEST} {what}") from error

    def _forget_but(self, states: set[str]) -> None:
        for path in self.folder.iterdir():
            if re.fullmatch(r"state-[0-9]+\.safetensors", path.name) and path.name not in states and not path.is_dir():
                path.unlink()

    def _newest(self) -> Pointer | None:
        """By what the pointers say alone."""
        faults = []
        for name in (LATEST, PREVIOUS):
            try:
                return Pointer.read(self.folder / name, self.identity)
            except FileNotFoundError:
                continue
            except Damaged as error:
                faults.append(str(error))
        if faults:
            raise CheckpointLost("; ".join(faults))
        return None

    def _read_all(self, pointer: Pointer, check: Callable[[StateChanges], None]) -> Checkpoint:
        snapshot = self._read(pointer.state)
        journals, file = [], pointer.journal
        for number in range(pointer.round, -1, -1):
            arrays = self._read(file)
            try:
                journals.append(from_arrays(arrays))
                size, crc32 = arrays["before"].tolist()
            except (KeyError, ValueError, TypeError, IndexError) as error:
                raise CheckpointError(
                    f"checkpoint {self.folder / file.name}: it is no journal of this version of the code ({error!r}): "
                    f"resume the run with the release that it was started with"
                ) from error
            if journals[-1].record.round != number:
                raise Damaged(f"{self.folder / file.name}: it is the journal of round {journals[-1].record.round}")
            file = ArrayFile(journal_name(number - 1), size, crc32)
        try:
            check(journals[0].changes)
        except Exception as error:
            if not isinstance(error, Lost):
                raise
            raise Damaged(str(error)) from error
        return Checkpoint(pointer.round, snapshot, journals[::-1], pointer.versions)

    def _read(self, file: ArrayFile) -> Snapshot:
        try:
            return read_arrays(self.folder, file)
        except OSError as error:
            raise unreadable(self.folder / file.name, error) from error
        except ValueError as error:
            raise Damaged(f"{self.folder / file.name}: {error}") from error

    def _compare(self, pointer: Pointer) -> None:
        """Notes that the run goes on with other software, and says so."""
        self.versions, own, last = list(pointer.versions), self._software, pointer.versions[-1]
        if other := [f"{name} {last.get(name)} -> {version}" for name, version in own.items() if last.get(name) != version]:
            log.warning("the run goes on with other software (%s): the last bits of its results may differ", ", ".join(other))
            self.versions.append({"after_round": pointer.round, **own})
