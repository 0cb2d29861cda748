"""Messages and records of Flower without their large values: a small shell that is bytes, and the values by reference.

A broadcast object that lies in a hundred messages comes out of each of them as the same object, so whoever carries the
messages can put it into a store once.

Shell: length of the paths (uint32) | paths as JSON | protobuf of what is left, empty values in place of those taken out.
A path is [record, item], or [record, item, index] in a list. There is no framing of the paths if there are none.
"""

import copy
import json
import struct
from dataclasses import dataclass, field

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from simulations.engine.adapter import (
    MessageProto,
    RecordDictProto,
    message_from_proto,
    message_to_proto,
    recorddict_from_proto,
    recorddict_to_proto,
)

BLOB_BYTES = 16_384
_LENGTH = struct.Struct("<I")
Path = list[str | int]


@dataclass(frozen=True)
class Parcel:
    """What a message or the records of a Context are carried as.

    Attributes:
        shell: all but the large values.
        blobs: every bytes value of at least `BLOB_BYTES`, in the order of the records; the objects themselves, not copies.
    """

    shell: bytes = field(repr=False)
    blobs: tuple[bytes, ...] = field(repr=False)

    @property
    def num_bytes(self) -> int:
        return len(self.shell) + sum(map(len, self.blobs))


def detach_message(message: Message) -> Parcel:
    """`message` as a parcel, metadata and error included. The message stays as it is."""
    if not message.has_content():
        return Parcel(_frame([], message_to_proto(message)), ())
    records, paths, blobs = _take_out(message.content)
    if blobs:
        message = copy.copy(message)
        message.content = records
    return Parcel(_frame(paths, message_to_proto(message)), blobs)


def attach_message(parcel: Parcel) -> Message:
    """The inverse of `detach_message`; the large values are the very objects in `parcel.blobs`."""
    paths, proto = _unframe(parcel)
    message = message_from_proto(MessageProto.FromString(proto))
    if paths:
        _put_back(message.content, paths, parcel.blobs)
    return message


def detach_records(records: RecordDict) -> Parcel:
    """`records`, the state of a Context for instance, as a parcel. The records stay as they are."""
    slim, paths, blobs = _take_out(records)
    return Parcel(_frame(paths, recorddict_to_proto(slim)), blobs)


def attach_records(parcel: Parcel) -> RecordDict:
    """The inverse of `detach_records`; the large values are the very objects in `parcel.blobs`."""
    paths, proto = _unframe(parcel)
    records = recorddict_from_proto(RecordDictProto.FromString(proto))
    _put_back(records, paths, parcel.blobs)
    return records


def _frame(paths: list[Path], proto: MessageProto | RecordDictProto) -> bytes:
    where = json.dumps(paths, separators=(",", ":")).encode() if paths else b""
    return _LENGTH.pack(len(where)) + where + proto.SerializeToString(deterministic=True)


def _unframe(parcel: Parcel) -> tuple[list[Path], bytes]:
    """Paths and protobuf.

    Raises:
        ValueError: if there are not as many blobs as paths.
    """
    start = _LENGTH.size
    (length,) = _LENGTH.unpack_from(parcel.shell)
    paths = json.loads(parcel.shell[start : start + length]) if length else []
    if len(paths) != len(parcel.blobs):
        raise ValueError(f"a parcel with {len(parcel.blobs)} blobs, but its shell has places for {len(paths)}: it needs its own blobs")
    return paths, parcel.shell[start + length :]


def _is_blob(value: object) -> bool:
    return type(value) is bytes and len(value) >= BLOB_BYTES  # protobuf makes plain bytes of a subclass such as np.bytes_; let it


def _take_out(records: RecordDict) -> tuple[RecordDict, list[Path], tuple[bytes, ...]]:
    """The records without their blobs (what has none is shared, not copied), where the blobs were, the blobs."""
    slim, paths, blobs = records, [], []
    for key, record in records.items():
        if isinstance(record, MetricRecord):
            continue
        changed = {}
        for name, value in record.items():
            if isinstance(value, Array):
                if _is_blob(value.data):
                    changed[name] = Array(value.dtype, value.shape, value.stype, b"")
                    paths.append([key, name])
                    blobs.append(value.data)
            elif _is_blob(value):
                changed[name] = b""
                paths.append([key, name])
                blobs.append(value)
            elif isinstance(value, list) and value and isinstance(value[0], bytes):  # lists are of one type
                large = {index: item for index, item in enumerate(value) if _is_blob(item)}
                if large:
                    changed[name] = [b"" if index in large else item for index, item in enumerate(value)]
                    paths += [[key, name, index] for index in large]
                    blobs += large.values()
        if changed:
            if slim is records:
                slim = records.copy()
            slim[key] = record.copy()
            slim[key].update(changed)
    return slim, paths, tuple(blobs)


def _put_back(records: RecordDict, paths: list[Path], blobs: tuple[bytes, ...]) -> None:
    """Fill `records`, fresh from protobuf, with what was taken out."""
    for (key, name, *index), blob in zip(paths, blobs, strict=True):
        record: ArrayRecord | ConfigRecord = records[key]
        if index:
            record[name][index[0]] = blob
        elif isinstance(record, ArrayRecord):
            record[name].data = blob
        else:
            record[name] = blob
