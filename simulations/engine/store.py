"""Where device states are kept between rounds: in memory, in a folder, or behind any URL that fsspec can open.

A state is an immutable version (device, exchange): what the device kept after the engine's exchange of that number. Large
values are stored once per content under their digest, and shared by all states that contain them: devices on the same
version of the model hold the same bytes of it.

    states/<device % 256, hex>/<device>-<exchange>    a state's own file: shell, small values, digests of the shared ones
    blobs/<first two of the digest>/<digest>          a shared value as it is

State file, little-endian: magic | format version | bytes in all | run | device | exchange | bytes of the shell | number of values |
shell | values, each: is it shared | bytes | content or digest | CRC-32. A file appears whole or not at all, and what a state refers
to is written before it. Files outlive every process at once, and a power cut from `flush` on; what it spoils before that is noticed.
"""

import hashlib
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from simulations.config.errors import Lost
from simulations.disk import LinkRefused
from simulations.engine.files import Files, StoreError, StoreLinked, reason_of
from simulations.engine.parcel import Parcel
from simulations.engine.states import StateChanges

SHARED_BYTES = 65_536
VERSION = 2
MAGIC = b"SpS"
_HEAD = struct.Struct("<3sBQ16sQQQI")  # magic, format version, bytes in all, run, device, exchange, bytes of the shell, number of values
_PART = struct.Struct("<BQ")  # is it shared, bytes
_CRC = struct.Struct("<I")
NO_RUN = bytes(16)


class StateLost(StoreError, Lost):
    """A state, or what it refers to, is missing, damaged, or of another run."""


def digest(blob: bytes) -> str:
    """The name of a shared value: SHA-256, the first 32 hex digits."""
    return hashlib.sha256(blob).hexdigest()[:32]


@dataclass(frozen=True)
class StoredState:
    """A state's own file. parts: the values in their order; small ones themselves, of shared ones the digest."""

    shell: bytes = field(repr=False)
    parts: tuple[bytes | str, ...] = field(repr=False)

    @property
    def digests(self) -> tuple[str, ...]:
        """Of the shared values, each once."""
        return tuple(dict.fromkeys(part for part in self.parts if isinstance(part, str)))

    @property
    def num_bytes(self) -> int:
        return len(self.shell) + sum(map(len, self.parts))

    def parcel(self, blob_of: Callable[[str], bytes]) -> Parcel:
        """The parcel again; `blob_of`: digest -> the shared value."""
        return Parcel(self.shell, tuple(blob_of(part) if isinstance(part, str) else part for part in self.parts))

    def to_bytes(self, device: int, exchange: int, run: bytes = NO_RUN) -> bytes:
        body = [self.shell]
        for part in self.parts:
            content = bytes.fromhex(part) if isinstance(part, str) else part
            body += [_PART.pack(isinstance(part, str), len(content)), content]
        total = _HEAD.size + sum(map(len, body)) + _CRC.size
        data = b"".join([_HEAD.pack(MAGIC, VERSION, total, run, device, exchange, len(self.shell), len(self.parts)), *body])
        return data + _CRC.pack(zlib.crc32(data))

    @classmethod
    def from_bytes(cls, data: bytes, device: int, exchange: int, run: bytes = NO_RUN) -> "StoredState":
        """The inverse of `to_bytes`.

        Raises:
            ValueError: if these are not all the bytes of that state.
        """
        if len(data) < len(MAGIC) + 1 or data[: len(MAGIC)] != MAGIC:
            raise ValueError("its file is no device state" if data else "its file is empty")
        if data[len(MAGIC)] != VERSION:
            raise ValueError(f"its file has format version {data[len(MAGIC)]}, this program reads {VERSION}")
        if len(data) < _HEAD.size + _CRC.size:
            raise ValueError(f"its file is cut off after {len(data)} bytes")
        _, _, total, own_run, own_device, own_exchange, shell, count = _HEAD.unpack_from(data)
        if len(data) != total:
            raise ValueError(f"its file has {len(data)} bytes of {total}")
        if zlib.crc32(memoryview(data)[: -_CRC.size]) != _CRC.unpack_from(data, total - _CRC.size)[0]:
            raise ValueError("its file is damaged (checksum)")
        if own_run != run:
            raise ValueError("its file is of another run")
        if (own_device, own_exchange) != (device, exchange):
            raise ValueError(f"its file is of device {own_device}, exchange {own_exchange}")
        at = _HEAD.size + shell
        parts = []
        for _ in range(count):
            is_shared, length = _PART.unpack_from(data, at)
            content = data[at + _PART.size : at + _PART.size + length]
            parts.append(content.hex() if is_shared else content)
            at += _PART.size + length
        return cls(data[_HEAD.size : _HEAD.size + shell], tuple(parts))


def split(parcel: Parcel, digest_of: Callable[[bytes], str] = digest) -> tuple[StoredState, dict[str, bytes]]:
    """What goes into the state's own file, and the shared values by digest. `digest_of` may remember what it has seen."""
    parts, shared = [], {}
    for blob in parcel.blobs:
        if len(blob) < SHARED_BYTES:
            parts.append(blob)
        else:
            name = digest_of(blob)
            parts.append(name)
            shared.setdefault(name, blob)
    return StoredState(parcel.shell, tuple(parts)), shared


class StateStore:
    """Device states on top of `files`. Safe with several processes that put the same state or value at once.

    `run`: 16 bytes that tell the run from others; a state with other ones is refused as lost. `files` may be replaced by others that hold
    the same.
    """

    def __init__(self, files: Files, run: bytes = NO_RUN):
        self.files, self.run = files, run

    def put(self, device: int, exchange: int, parcel: Parcel) -> tuple[str, ...]:
        """Keep a state; the digests of the shared values that it refers to."""
        state, shared = split(parcel)
        self.write(device, exchange, state, shared)
        return state.digests

    def get(self, device: int, exchange: int) -> Parcel:
        """A state that was put.

        Raises:
            StateLost: if it is missing or damaged.
        """
        return self.read(device, exchange).parcel(lambda name: self.read_blob(name, device, exchange))

    def write(self, device: int, exchange: int, state: StoredState, shared: Mapping[str, bytes]) -> None:
        """Keep a state that is split already; `shared` holds the values that it refers to, by digest."""
        with self._reached(f"write the state of device {device} to"):
            for name, blob in shared.items():
                if self.files.size(_blob_key(name)) != len(blob):  # of another size: a power cut has spoiled it
                    self.files.write(_blob_key(name), blob)
            self.files.write(_state_key(device, exchange), state.to_bytes(device, exchange, self.run))

    def read(self, device: int, exchange: int) -> StoredState:
        """A state without the shared values.

        Raises:
            StateLost: if it is missing or damaged.
        """
        with self._reached(f"read the state of device {device} from"):
            data = self.files.read(_state_key(device, exchange))
        if data is None:
            raise self._lost(device, exchange, "it is not there")
        try:
            return StoredState.from_bytes(data, device, exchange, self.run)
        except ValueError as error:
            raise self._lost(device, exchange, str(error)) from error

    def read_blob(self, name: str, device: int, exchange: int) -> bytes:
        """The shared value with digest `name`, which that state refers to.

        Raises:
            StateLost: if it is missing or damaged.
        """
        with self._reached(f"read the state of device {device} from"):
            blob = self.files.read(_blob_key(name))
        if blob is None:
            raise self._lost(device, exchange, f"it refers to blob {name}, which is not there")
        if digest(blob) != name:
            raise self._lost(device, exchange, f"it refers to blob {name}, which is damaged: {len(blob)} bytes with another digest")
        return blob

    def flush(self, changes: StateChanges) -> None:
        """From now on a power cut leaves these states whole."""
        with self._reached("flush"):
            self.files.flush([*map(_state_key, *_pairs(changes)), *map(_blob_key, {name for own in changes.blobs for name in own})])

    def check(self, changes: StateChanges) -> None:
        """Raises StateLost if one of these states is not whole: all of their bytes are read."""
        whole: set[str] = set()
        for device, exchange in zip(*_pairs(changes), strict=True):
            for name in self.read(device, exchange).digests:
                if name not in whole:
                    self.read_blob(name, device, exchange)
                    whole.add(name)

    def drop(self, states: Iterable[tuple[int, int]], blobs: Iterable[str]) -> None:
        """Delete these; absent ones are ignored.

        Only between exchanges: a state that is being put may refer to a blob that no finished state refers to any more.
        """
        with self._reached("delete from"):
            self.files.delete([*(_state_key(*state) for state in states), *map(_blob_key, blobs)])

    def keep_only(self, states: set[tuple[int, int]], blobs: set[str]) -> None:
        """Delete all but these, with what a process that died has left unfinished. Only while nobody else writes."""
        wanted = {_state_key(*state) for state in states} | {_blob_key(name) for name in blobs}
        with self._reached("delete from"):
            found = self.files.keys()
            self.files.delete([key for key in found if key not in wanted])

    def destroy(self) -> None:
        """Delete everything."""
        with self._reached("delete"):
            self.files.destroy()

    @contextmanager
    def _reached(self, doing: str) -> Iterator[None]:
        try:
            yield
        except StoreError:
            raise
        except LinkRefused as error:
            raise StoreLinked(f"cannot {doing} the store {self.files.url}: {error}") from error
        except Exception as error:  # backends raise what they like
            hidden = self.files.secrets
            raise StoreError(
                f"cannot {doing} the store {self.files.url}: {reason_of(error, hidden)}; see to its space and access, "
                f"or begin another run with another --store"
            ) from (None if hidden else error)

    def _lost(self, device: int, exchange: int, why: str) -> StateLost:
        return StateLost(f"the state of device {device} after exchange {exchange} is lost from the store {self.files.url}: {why}")


def _pairs(changes: StateChanges) -> tuple[list[int], list[int]]:
    return changes.devices.tolist(), changes.exchanges.tolist()


def _state_key(device: int, exchange: int) -> str:
    return f"states/{device % 256:02x}/{device}-{exchange}"


def _blob_key(name: str) -> str:
    return f"blobs/{name[:2]}/{name}"
