"""From a device's reply to values that can be averaged, or to the reason why not."""

from dataclasses import dataclass

from flwr.app import Message
from flwr.common.serde import message_to_proto

from server.aggregate import Update
from server.broadcast import Broadcast
from server.masking import LocalMasks, SharedMasks
from sparcl_core import codec
from sparcl_core.codec import CodecError, Layout, Sizes
from sparcl_core.protocol import Report


@dataclass(frozen=True)
class Accepted:
    """A reply that can be used. report: what a shared mask's update needs, if it was asked for; sizes: its bytes by kind."""

    update: Update
    report: dict | None
    base_version: int
    sizes: Sizes


def missing(reply: Message | None, where: str, records: tuple[str, ...] = ("report", "measures")) -> str:
    """Why there is nothing to decode; empty if there is."""
    if reply is None:
        return f"{where}: no reply"
    if reply.has_error():
        return reply.error.reason or f"{where}: failed without a reason"
    absent = [name for name in records if name not in reply.content]
    return f"{where}: the reply has no record {absent[0]!r}" if absent else ""


def read_report(reply: Message) -> Report:
    """Raises CodecError if the record is none of ours."""
    wire = reply.content["report"]
    try:
        parts = [wire[key] for key in ("control", "delta", "masks")]
    except KeyError as error:
        raise CodecError(f"the report has no part {error}") from error
    if not all(isinstance(part, bytes) for part in parts):
        raise CodecError("a part of the report is not made of bytes")
    return Report.from_wire(*parts)


def accept(
    report: Report, device: int, server_round: int, broadcast: Broadcast, masking: SharedMasks | LocalMasks, classifier: tuple[str, ...]
) -> Accepted:
    """Decode and check one report of training.

    Raises:
        CodecError: if anything about it is wrong.
    """
    layout, told, sizes = broadcast.layout, None, Sizes(header=len(report.control))
    own = broadcast.masks if isinstance(masking, LocalMasks) else None
    if report.samples < 1:
        raise CodecError("the update rests on no sample, so it has no weight")
    _expect_version(report.base_version, broadcast.mask_version, broadcast)
    if any(layout.shapes[name][0] != report.classes.size for name in classifier):
        raise CodecError(f"the report speaks of {report.classes.size} classes: the classifier has another number of rows")
    if report.masks:
        payload = codec.decode(report.masks, layout, broadcast.masks)
        sizes += payload.sizes
        if isinstance(masking, LocalMasks):
            own = masking.read(payload, device, broadcast, server_round)
        else:
            told = masking.read(payload, device, broadcast)
    delta = codec.decode(report.delta, layout, own or broadcast.masks)
    if delta.kind != "delta":
        raise CodecError(f"the update is of kind {delta.kind!r}: a delta was asked for")
    _expect_version(delta.model_version, delta.mask_version, broadcast)
    return Accepted(Update(device, report.samples, report.classes, delta.tensors, own), told, report.base_version, sizes + delta.sizes)


def statistics(data: bytes, layout: Layout) -> dict:
    """Running statistics by name, float64 in their shapes, and the bytes by kind. Raises CodecError if they are not complete."""
    payload = codec.decode(data, layout, {})
    full = all(name in payload.tensors and payload.tensors[name].places.size == layout.size(name) for name in layout.statistics)
    if payload.kind != "statistics" or not full:
        raise CodecError(f"the running statistics are not complete (kind {payload.kind!r})")
    return {name: payload.tensors[name].values.astype(float).reshape(layout.shapes[name]) for name in layout.shapes if name in layout.statistics}


def message_bytes(message: Message) -> int:
    """Size of the serialised Flower message."""
    return message_to_proto(message).ByteSize()


def _expect_version(model: int, masks: int, broadcast: Broadcast) -> None:
    if (model, masks) != (broadcast.version, broadcast.mask_version):
        raise CodecError(
            f"an update against version {model}, masks {masks}: this round wants one against version {broadcast.version}, "
            f"masks {broadcast.mask_version}"
        )
