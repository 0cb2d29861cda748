"""From a device's reply to values that can be averaged, or to the reason why not."""

from dataclasses import dataclass, fields

import numpy as np
from flwr.app import Array, Message, Metadata
from flwr.common.serde import message_to_proto, metadata_to_proto

from server.aggregation.update import Update
from server.global_model.broadcast import Base, Broadcast
from server.global_model.masks import LocalMasks, SharedMasks
from server.rounds.reply_limits import LARGEST_LOSS, LARGEST_STATISTIC, LONGEST_S, Bounds
from sparcl_core import codec
from sparcl_core.codec import CodecError, Layout, Payload, Sizes
from sparcl_core.codec.bits import varint
from sparcl_core.costs.flops import Flops
from sparcl_core.costs.memory import Footprint
from sparcl_core.foreign import printable
from sparcl_core.sparsity.masks import State
from sparcl_core.wire.protocol import Report

COUNTS = ("samples", "replayed", "dropped", "steps", "kept", "active", "updated")


@dataclass(frozen=True)
class Accepted:
    """A reply that can be used. report: what a shared mask's update needs, if it was asked for; sizes: its bytes by kind.

    statistics: those that stay on the device, where they do. has_changed: the device found that its task has.
    """

    update: Update
    report: dict | None
    base_version: int
    sizes: Sizes
    statistics: State | None = None
    has_changed: bool = False


@dataclass(frozen=True)
class Measures:
    """What the simulator has measured of a round. counts: columns of the ledger's row; loss: mean over the steps."""

    flops: Flops
    dense_flops: Flops
    memory_bytes: int
    counts: dict[str, int]
    loss: float
    wall_s: float
    compute_s: float


def missing(reply: Message | None, where: str, records: tuple[str, ...] = ("report", "measures")) -> str:
    """Why there is nothing to decode; empty if there is. Fit to be printed."""
    if reply is None:
        return f"{where}: no reply"
    if reply.has_error():
        return printable(reply.error.reason) or f"{where}: failed without a reason"
    if not reply.has_content():
        return f"{where}: the reply has no content"
    absent = [name for name in records if name not in reply.content]
    return f"{where}: the reply has no record {absent[0]!r}" if absent else ""


def payload_bytes(reply: Message) -> int:
    """Bytes of all that a reply carries, without copying any of it: numbers count 8, text and keys as many as they have characters."""
    return sum(_weight(value) + len(key) for record in reply.content.values() for key, value in record.items())


def _weight(value: object) -> int:
    if isinstance(value, bytes | str):
        return len(value)
    if isinstance(value, Array):
        return len(value.data)
    return sum(map(_weight, value)) if isinstance(value, list) else 8


def read_report(reply: Message) -> Report:
    """Raises CodecError if the record is none of ours."""
    wire = reply.content["report"]
    if absent := [key for key in ("control", "delta", "masks") if key not in wire]:
        raise CodecError(f"the report has no part {absent[0]!r}")
    parts = [wire[key] for key in ("control", "delta", "masks")]
    if not all(isinstance(part, bytes) for part in parts):
        raise CodecError("a part of the report is not made of bytes")
    return Report.from_wire(*parts)


def read_measures(reply: Message, bounds: Bounds) -> Measures:
    """Raises CodecError if one is missing, or cannot be: the clock goes by them, and they are stored."""
    wire = reply.content["measures"]
    memory = sum(_count(wire, f"memory.{part.name}", bounds.memory_bytes) for part in fields(Footprint))
    if memory > bounds.memory_bytes:
        raise CodecError(f"the measures say that training needs {memory} bytes: at most {bounds.memory_bytes} can have been needed")
    counts = {key: _count(wire, key, bounds.counts[key]) for key in COUNTS}
    loss = _real(wire, "loss", -LARGEST_LOSS, LARGEST_LOSS)
    seconds = (_real(wire, key, 0.0, LONGEST_S) for key in ("wall-seconds", "compute-seconds"))
    return Measures(read_flops(reply, bounds), read_flops(reply, bounds, "dense-flops"), memory, counts, loss, *seconds)


def read_flops(reply: Message, bounds: Bounds, kind: str = "flops") -> Flops:
    """FLOPs among the measures. Raises CodecError as `read_measures`."""
    wire = reply.content["measures"]
    return Flops(**{part.name: _count(wire, f"{kind}.{part.name}", bounds.flops[part.name]) for part in fields(Flops)})


def accept(
    report: Report, device: int, server_round: int, broadcast: Broadcast, base: Base, masking: SharedMasks | LocalMasks,
    classifier: tuple[str, ...], most_samples: int,
) -> Accepted:  # fmt: skip
    """Decode and check one report of training.

    Args:
        base: the version that the device was sent.
        most_samples: what the device can have processed in the round.

    Raises:
        CodecError: if anything about it is wrong.
    """
    layout, told, sizes = broadcast.layout, None, Sizes(header=len(report.control))
    own = base.masks if isinstance(masking, LocalMasks) else None
    if not 1 <= report.samples <= most_samples:
        raise CodecError(f"the update rests on {report.samples} samples, which cannot be its weight: at least 1, at most {most_samples}")
    _expect_version(report.base_version, base.mask_version, base)
    if any(layout.shapes[name][0] != report.classes.size for name in classifier):
        raise CodecError(f"the report speaks of {report.classes.size} classes: the classifier has another number of rows")
    if report.masks:
        payload = codec.decode(report.masks, layout, base.masks)
        _expect_version(payload.model_version, payload.mask_version, base)
        sizes += payload.sizes
        if isinstance(masking, LocalMasks):
            own = masking.read(payload, device, base, server_round)
        else:
            told = masking.read(payload, device, base)
    delta = codec.decode(report.delta, layout, own or base.masks)
    if delta.kind != "delta":
        raise CodecError(f"the update is of kind {delta.kind!r}: a delta was asked for")
    _expect_version(delta.model_version, delta.mask_version, base)
    _expect_range(delta, broadcast)
    update = Update(device, report.samples, report.classes, delta.tensors, own)
    return Accepted(update, told, report.base_version, sizes + delta.sizes, has_changed=report.has_changed)


def accept_statistics(report: Report, broadcast: Broadcast, whole: Layout, most_samples: int) -> tuple[State, Sizes]:
    """Decode and check one report of recomputed statistics; its bytes by kind. Raises CodecError if anything about it is wrong."""
    if not 1 <= report.samples <= most_samples:
        raise CodecError(f"the statistics rest on {report.samples} samples, which cannot be: at least 1, at most {most_samples}")
    payload = codec.decode(report.delta, whole, {})
    for model in (report.base_version, payload.model_version):
        _expect_version(model, payload.mask_version, broadcast.base)
    return _complete(payload, whole), payload.sizes + Sizes(header=len(report.control), masks=len(report.masks))


def observed(reply: Message, whole: Layout) -> State:
    """Statistics that stay on the device, as they are after its round. Raises CodecError if they are not there."""
    data = reply.content["observed"].get("statistics") if "observed" in reply.content else None
    if not isinstance(data, bytes):
        raise CodecError("the reply does not show the device's statistics")
    return _complete(codec.decode(data, whole, {}), whole)


def _complete(payload: Payload, layout: Layout) -> State:
    """Running statistics by name, float64 in their shapes. Raises CodecError if one is missing, or cannot be."""
    found = payload.tensors
    if payload.kind != "statistics" or any(name not in found or found[name].places.size < layout.size(name) for name in layout.statistics):
        raise CodecError(f"the running statistics are not complete (kind {payload.kind!r})")
    for name in layout.shapes:  # in this order: the first one goes into the ledger
        if name not in layout.statistics:
            continue
        least = 0.0 if name.endswith("running_var") else -LARGEST_STATISTIC
        if found[name].values.min(initial=0.0) < least or found[name].values.max(initial=0.0) > LARGEST_STATISTIC:
            raise CodecError(f"{name} is not within {least:g} and {LARGEST_STATISTIC:g}: no batch of activations has such statistics")
    return {name: found[name].values.astype(float).reshape(shape) for name, shape in layout.shapes.items() if name in layout.statistics}


def report_bytes(reply: Message) -> int:
    """Size of the report in a reply, whatever it is."""
    return sum(len(value) for value in reply.content["report"].values() if isinstance(value, bytes))


def message_bytes(message: Message) -> int:
    """Size of the serialised Flower message."""
    return message_to_proto(message).ByteSize()


def metadata_bytes(metadata: Metadata) -> int:
    """What of that is its metadata: a field of the message, behind its tag and its length."""
    size = metadata_to_proto(metadata).ByteSize()
    return 1 + len(varint(size)) + size


def _expect_version(model: int, masks: int, base: Base) -> None:
    if (model, masks) != (base.version, base.mask_version):
        raise CodecError(
            f"an update against version {model}, masks {masks}: this round wants one against version {base.version}, "
            f"masks {base.mask_version}"
        )


def _expect_range(delta: Payload, broadcast: Broadcast) -> None:
    """A double that the model's type cannot hold would make a weight infinite."""
    for name, tensor in delta.tensors.items():
        if np.abs(tensor.values).max(initial=0) > np.finfo(broadcast.held[name].dtype).max:
            raise CodecError(f"{name} moves by more than {broadcast.held[name].dtype} can hold")


def _count(measures, key: str, most: int) -> int:
    value = measures.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise CodecError(f"the measures say that {key} is {printable(value, 50)}: a count was expected")
    if value > most:
        raise CodecError(f"the measures say that {key} is {value}: the round can have had at most {most}")
    return value


def _real(measures, key: str, least: float, most: float) -> float:
    value = measures.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise CodecError(f"the measures say that {key} is {printable(value, 50)}: a number from {least:g} to {most:g} was expected")
    return float(value)
