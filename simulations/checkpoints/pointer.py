"""The small JSON file that says which checkpoint of a run counts.

It has size and checksum of every file that the checkpoint is made of, and says to which run they belong.
"""

import hashlib
import json
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path

from simulations import disk
from simulations.checkpoints.array_file import ArrayFile
from simulations.config.errors import Lost

FORMAT = 3


class CheckpointError(ValueError):
    """A checkpoint that cannot be read or written; the message names the file, what is wrong, and the way out."""


class CheckpointLost(CheckpointError, Lost):
    """No whole checkpoint of this run is there, though there was one."""


class Damaged(Exception):
    """What is wrong with which file of a checkpoint."""


@dataclass(frozen=True)
class Identity:
    """What a checkpoint is of: the run's id, its part (`run` or `twin`), and the SHA-256 of its config."""

    run: str = ""
    part: str = ""
    config_sha256: str = ""

    @property
    def tag(self) -> bytes:
        """16 bytes that stand for it in every device state."""
        return hashlib.sha256("\0".join((self.run, self.part, self.config_sha256)).encode()).digest()[:16]


@dataclass(frozen=True)
class Pointer:
    """A checkpoint's round, its two files, of what it is (`Identity`), and with which software its rounds were played."""

    round: int
    state: ArrayFile
    journal: ArrayFile
    of: dict
    versions: list[dict]

    def to_json(self) -> bytes:
        """With its own CRC-32, so that damage is told from another run's pointer."""
        content = {"format": FORMAT, **asdict(self)}
        return json.dumps(content | {"crc32": _crc32(content)}, indent=2).encode() + b"\n"

    @classmethod
    def read(cls, path: Path, identity: Identity) -> "Pointer":
        """The inverse of `to_json`.

        Raises:
            FileNotFoundError: if it is not there.
            Damaged: if it is not what was written.
            CheckpointError: if it is whole, but of another format version or of anything but `identity`.
        """
        try:
            found = json.loads(disk.read(path))
            crc32, version = found.pop("crc32", None), found.pop("format")
            if crc32 is not None and crc32 != _crc32({"format": version, **found}):
                raise ValueError("its checksum does not match")
            if version != FORMAT:
                what = f"its format version is {version!r}, this code reads {FORMAT}"
                raise CheckpointError(f"checkpoint {path}: {what}; resume the run with the release that it was started with")
            if crc32 is None:
                raise ValueError("it has no checksum")
            if not found["versions"]:
                raise ValueError("it does not say which software made it")
            files = {name: ArrayFile(**found.pop(name)) for name in ("state", "journal")}
            pointer = cls(**found, **files)
        except (CheckpointError, FileNotFoundError):
            raise
        except OSError as error:
            raise unreadable(path, error) from error
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise Damaged(f"{path} is not a checkpoint's pointer: {error!r}") from error
        if pointer.of != asdict(identity):
            what = next((name for name, own in asdict(identity).items() if pointer.of.get(name) != own), "run")
            what = {"run": "another run", "part": "the other part of the run", "config_sha256": "another config"}[what]
            raise CheckpointLost(f"checkpoint {path} is of {what} ({pointer.of}), not of this one ({asdict(identity)})")
        if (names := (pointer.state.name, pointer.journal.name)) != (state_name(pointer.round), journal_name(pointer.round)):
            raise Damaged(f"{path} names {names} for round {pointer.round}")
        return pointer


def unreadable(path: Path, error: OSError) -> Exception:
    """What to raise of a file that cannot be read: want of access is no damage, nothing is given up for it."""
    what = f"{path}: it cannot be read ({error.strerror or error})"
    return CheckpointError(f"checkpoint {what}; see to its access") if isinstance(error, PermissionError) else Damaged(what)


def state_name(round_: int) -> str:
    return f"state-{round_}.safetensors"


def journal_name(round_: int) -> str:
    return f"journal/{round_}.safetensors"


def _crc32(content: dict) -> int:
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())
