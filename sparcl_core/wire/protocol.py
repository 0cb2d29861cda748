"""What server and devices say to each other, as typed values and as bytes. Knows nothing of Flower.

Down, an instruction: `control | payloads`. The payloads bring the device from the version it holds to the current one:
either one `whole` payload, or per missed version an optional mask update (`grow` or `adapt`; `drop` and `add` where devices have
masks of their own) and a `delta`. Up, a report: `control | delta | masks`. The delta is taken against the version that the
instruction led to; `masks` is the device's part in the next mask update: its importance or votes, or how its own mask differs.
Where a learning method or a correction has arrays beside the model, a payload of them follows, either way (`auxiliary`).
Everything a protocol message needs is in these bytes; they are what the ledger counts. Payloads carry their own checksum, and
so does the control part: a flipped bit in the number of samples would otherwise weight the average unnoticed.
"""

import struct
import zlib
from dataclasses import dataclass

import numpy as np

from sparcl_core.codec import CodecError

_DOWN = struct.Struct("<IHHB")  # round, task, epochs, flags
_UP = struct.Struct("<IIH")  # base version, samples, classes of the model
_WANTS_IMPORTANCE = 1
_HAS_CHANGED = 1 << 15


@dataclass(frozen=True)
class Instruction:
    """Train in a round. round: from 1; task: from 0; epochs: local epochs; report_importance: a mask update follows.

    auxiliary: what a method has beside the model, empty if nothing.
    """

    round: int
    task: int
    epochs: int
    report_importance: bool
    payloads: tuple[bytes, ...]
    auxiliary: bytes = b""

    @property
    def control(self) -> bytes:
        return _seal(_DOWN.pack(self.round, self.task, self.epochs, _WANTS_IMPORTANCE if self.report_importance else 0))

    @property
    def num_bytes(self) -> int:
        return len(self.control) + sum(map(len, self.payloads)) + len(self.auxiliary)

    @classmethod
    def from_wire(cls, control: bytes, payloads: list[bytes], auxiliary: bytes = b"") -> "Instruction":
        body = _open(control, "an instruction")
        if len(body) != _DOWN.size:
            raise CodecError(f"control of an instruction has {len(body)} bytes, not {_DOWN.size}")
        number, task, epochs, flags = _DOWN.unpack(body)
        return cls(number, task, epochs, bool(flags & _WANTS_IMPORTANCE), tuple(payloads), auxiliary)


@dataclass(frozen=True)
class Report:
    """A trained update.

    base_version: version the delta is taken against; samples: n_k, current-task samples processed; classes: [C] bool, the
    classes the device has seen so far; delta: payload; masks: payload of importance, votes or a mask update, empty if there is none;
    has_changed: the device noticed that its task did (the top bit of the number of classes); auxiliary: payload of what a method sends
    beside the update, empty if there is none.
    """

    base_version: int
    samples: int
    classes: np.ndarray
    delta: bytes
    masks: bytes
    has_changed: bool = False
    auxiliary: bytes = b""

    @property
    def control(self) -> bytes:
        size = self.classes.size | (_HAS_CHANGED if self.has_changed else 0)
        return _seal(_UP.pack(self.base_version, self.samples, size) + np.packbits(self.classes).tobytes())

    @property
    def num_bytes(self) -> int:
        return len(self.control) + len(self.delta) + len(self.masks) + len(self.auxiliary)

    @classmethod
    def from_wire(cls, control: bytes, delta: bytes, masks: bytes, auxiliary: bytes = b"") -> "Report":
        body = _open(control, "a report")
        if len(body) < _UP.size:
            raise CodecError(f"control of a report has {len(body)} bytes, at least {_UP.size} are needed")
        version, samples, size = _UP.unpack_from(body)
        count = size & ~_HAS_CHANGED
        bits = np.frombuffer(body[_UP.size :], dtype=np.uint8)
        if bits.size != (count + 7) // 8:
            raise CodecError(f"control of a report codes {count} classes in {bits.size} bytes")
        classes = np.unpackbits(bits, count=count).astype(bool)
        return cls(version, samples, classes, delta, masks, bool(size & _HAS_CHANGED), auxiliary)


def _seal(body: bytes) -> bytes:
    return body + struct.pack("<I", zlib.crc32(body))


def _open(control: bytes, whose: str) -> bytes:
    """The control bytes without their checksum."""
    body = control[:-4]
    if len(control) < 4 or control != _seal(body):
        raise CodecError(f"control of {whose} does not match its checksum: it is damaged")
    return body
