"""From a device's reply to values that can be averaged, or to the reason why not."""

from dataclasses import fields, replace

import numpy as np
from flwr.app import Array, Message

from server.aggregation.update import Update
from server.global_model.broadcast import Base, Broadcast
from server.global_model.contribution import Contribution
from server.global_model.masks import LocalMasks, SharedMasks
from server.rounds.messages import Measures, Reply, Request, message_bytes
from server.rounds.reply_limits import LARGEST_LOSS, LARGEST_STATISTIC, LONGEST_S, Bounds
from sparcl_core import codec
from sparcl_core.codec import CodecError, Layout, Payload, Sizes
from sparcl_core.costs.flops import Flops
from sparcl_core.costs.memory import Footprint
from sparcl_core.foreign import printable
from sparcl_core.sparsity.masks import State
from sparcl_core.wire.protocol import Report


def read(message: Message, request: Request, bounds: Bounds, shown: Layout | None) -> Reply:
    """What a reply of training says.

    `shown`: of the model whose statistics stay on the device, but are shown; None where they do not.
    """
    if reason := missing(message, f"{request}"):
        return Reply(missing=reason)
    if problem := oversize(message, bounds):
        problem = f"{request}, stage decode: {problem}"
        return Reply(problem=problem, message_bytes=bounds.reply_bytes, report_bytes=bounds.reply_bytes)
    reply = Reply(message_bytes=message_bytes(message), report_bytes=report_bytes(message))
    try:
        reply = replace(reply, measures=read_measures(message, bounds))
        reply = replace(reply, report=read_report(message))
        return replace(reply, statistics=observed(message, shown) if shown else None)
    except CodecError as error:
        return replace(reply, problem=f"{request}, stage decode: {error}")


def oversize(reply: Message, bounds: Bounds) -> str:
    """Why a reply is too large to be looked at, empty if it is not. What came of it is not read beyond that size, nor paid for."""
    size, most = payload_bytes(reply), bounds.reply_bytes
    return f"the reply has {size} bytes: for this model at most {most} can be needed" if size > most else ""


def missing(reply: Message, where: str, records: tuple[str, ...] = ("report", "measures")) -> str:
    """Why there is nothing to decode; empty if there is. Fit to be printed.

    Args:
        where: whose reply, and of which round.
        records: that it must have.
    """
    if reply.has_error():
        return printable(reply.error.reason) or f"{where}: failed without a reason"
    if not reply.has_content():
        return f"{where}: the reply has no content"
    absent = [name for name in records if name not in reply.content]
    return f"{where}: the reply has no record {absent[0]!r}" if absent else ""


def report_bytes(reply: Message) -> int:
    """Size of the report in a reply, whatever it is."""
    return sum(len(value) for value in reply.content["report"].values() if isinstance(value, bytes))


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
    parts = [wire[key] for key in ("control", "delta", "masks")] + [wire.get("auxiliary", b"")]
    if not all(isinstance(part, bytes) for part in parts):
        raise CodecError("a part of the report is not made of bytes")
    return Report.from_wire(*parts)


def read_measures(reply: Message, bounds: Bounds) -> Measures:
    """Raises CodecError if one is missing, or cannot be: the clock goes by them, and they are stored."""
    wire = reply.content["measures"]
    memory = sum(_count(wire, f"memory.{part.name}", bounds.memory_bytes) for part in fields(Footprint))
    if memory > bounds.memory_bytes:
        raise CodecError(f"the measures say that training needs {memory} bytes: at most {bounds.memory_bytes} can have been needed")
    counts = {key: _count(wire, key, most) for key, most in bounds.counts.items()}
    return Measures(
        loss=_real(wire, "loss", -LARGEST_LOSS, LARGEST_LOSS),
        wall_s=_real(wire, "wall-seconds", 0.0, LONGEST_S),
        compute_s=_real(wire, "compute-seconds", 0.0, LONGEST_S),
        flops=read_flops(reply, bounds),
        dense_flops=read_flops(reply, bounds, "dense-flops"),
        memory_bytes=memory,
        counts=counts,
    )


def read_flops(reply: Message, bounds: Bounds, kind: str = "flops") -> Flops:
    """FLOPs among the measures. Raises CodecError as `read_measures`."""
    wire = reply.content["measures"]
    return Flops(**{part.name: _count(wire, f"{kind}.{part.name}", bounds.flops[part.name]) for part in fields(Flops)})


def accept(
    report: Report, request: Request, broadcast: Broadcast, masking: SharedMasks | LocalMasks, *, voting_rows: tuple[str, ...],
    most_samples: int,
) -> Contribution:  # fmt: skip
    """Decode and check one report of training.

    Args:
        request: what it answers.
        broadcast: that of the device's tier.
        voting_rows: tensors that have a row for each class.
        most_samples: what the device can have processed in the round.

    Raises:
        CodecError: if anything about it is wrong.
    """
    layout, base, device = broadcast.layout, request.base, request.device
    if not 1 <= report.samples <= most_samples:
        raise CodecError(f"the update rests on {report.samples} samples, which cannot be its weight: at least 1, at most {most_samples}")
    _expect_version(report.base_version, base.mask_version, base)
    if any(layout.shapes[name][0] != report.classes.size for name in voting_rows):
        raise CodecError(f"the report speaks of {report.classes.size} classes: the classifier has another number of rows")
    payload, sizes = None, Sizes(header=len(report.control))
    if report.masks:
        payload = codec.decode(report.masks, layout, base.masks)
        _expect_version(payload.model_version, payload.mask_version, base)
        sizes += payload.sizes
    said = masking.read(payload, device, request.where.round, base)
    delta = codec.decode(report.delta, layout, said.masks or base.masks)
    if delta.kind != "delta":
        raise CodecError(f"the update is of kind {delta.kind!r}: a delta was asked for")
    _expect_version(delta.model_version, delta.mask_version, base)
    _expect_range(delta, broadcast)
    update = Update(device, report.samples, report.classes, delta.tensors, said.masks)
    return Contribution(update, said.importance, report.base_version, sizes + delta.sizes, has_changed=report.has_changed)


def accept_statistics(report: Report, base: Base, whole: Layout, most_samples: int) -> tuple[State, Sizes]:
    """Decode and check one report of recomputed statistics; its bytes by kind. Raises CodecError if anything about it is wrong."""
    if not 1 <= report.samples <= most_samples:
        raise CodecError(f"the statistics rest on {report.samples} samples, which cannot be: at least 1, at most {most_samples}")
    payload = codec.decode(report.delta, whole, {})
    for model in (report.base_version, payload.model_version):
        _expect_version(model, payload.mask_version, base)
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
