"""DeviceState: everything a device keeps between rounds, as a value that saves to and loads from bytes.

`receive` brings the model it holds up to date, `train` learns for one round, `report` encodes what changed. The update that
is sent is taken against the model that was received; what a lossy code loses stays here as a residual and is added to the
next update (error feedback).
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from safetensors.numpy import load, save

from client.stream import Stream
from sparcl_core import buffer as rehearsal
from sparcl_core import codec, ddr, tdm
from sparcl_core.codec import CodecError, SparseTensor
from sparcl_core.learner import Learner, Memory, MethodConfig, Session
from sparcl_core.masks import Masks, State
from sparcl_core.protocol import Instruction, Report


@dataclass(frozen=True)
class DeviceState:
    """What a device keeps.

    Attributes:
        base: the model as received, w^ of `version`; empty for a device that was never reached.
        masks: weight masks of `mask_version`.
        residual: what encoding has lost so far, per tensor.
        memory: buffer, data removal, epochs.
        task: the task it last trained on, -1 before the first.
        seen: [C] bool, classes it has had data of.
    """

    base: State
    masks: Masks
    residual: State
    memory: Memory
    seen: np.ndarray
    task: int = -1
    version: int = 0
    mask_version: int = 0


def new_device(method: MethodConfig, learner: Learner, stream: Stream) -> DeviceState:
    """A device that has received nothing yet; its buffer is sized by its whole stream."""
    inputs = learner.inputs
    buffer = rehearsal.empty(method.learner.buffer_capacity(sum(stream.sizes)), inputs.shape, inputs.num_classes, method.model.dtype)
    return DeviceState({}, {}, {}, Memory(buffer, ddr.start(0)), np.zeros(inputs.num_classes, dtype=bool))


def receive(device: DeviceState, instruction: Instruction, learner: Learner, method: MethodConfig) -> DeviceState:
    """The device after applying the payloads of `instruction` in sequence.

    Raises:
        CodecError: if a payload is damaged or does not follow the version that the device holds.
    """
    layout, dtype = learner.layout, np.dtype(method.model.dtype)
    base = {name: value.copy() for name, value in device.base.items()}
    residual = {name: value.copy() for name, value in device.residual.items()}
    masks, version, mask_version = device.masks, device.version, device.mask_version
    for raw in instruction.payloads:
        payload = codec.decode(raw, layout, masks)
        if payload.kind == "whole":
            _expect_all(payload, layout.shapes)
            base = {name: _scatter(payload.tensors[name], shape, dtype) for name, shape in layout.shapes.items()}
            residual = {name: np.zeros(shape, dtype) for name, shape in layout.shapes.items()}
            masks = {name: _support(payload.tensors[name], layout.shapes[name]) for name in layout.shapes if name in layout.masked}
            version, mask_version = payload.model_version, payload.mask_version
        elif payload.kind in codec.PLACES_ONLY:
            _expect(payload.mask_version, mask_version + 1, "mask")
            _expect_all(payload, masks)
            dropped = {name: payload.tensors[name].places for name in masks}
            update = tdm.MaskUpdate(payload.mask_version, payload.kind, dropped)
            masks = tdm.update_masks(masks, [base, residual], update, method.tdm, method.sparsity, learner.seed)
            mask_version = payload.mask_version
        elif payload.kind == "delta":
            _expect(payload.model_version, version + 1, "model")
            _expect(payload.mask_version, mask_version, "mask")
            for name, tensor in payload.tensors.items():
                base[name].reshape(-1)[tensor.places] += tensor.values.astype(dtype)
            version = payload.model_version
        else:
            raise CodecError(f"an instruction brings whole models, deltas and mask updates, not {payload.kind!r}")
    if not base:
        raise CodecError("the device holds no model and the instruction brings none")
    return replace(device, base=base, residual=residual, masks=masks, version=version, mask_version=mask_version)


def train(device: DeviceState, instruction: Instruction, learner: Learner, stream: Stream, number: int) -> tuple[DeviceState, Session]:
    """The device after one round of local training, and the session that it was. `number`: the device's number."""
    data = stream.task(instruction.task)
    memory = device.memory
    if instruction.task != device.task:
        memory = learner.begin_task(memory, len(data.y))
    session = learner.train(device.base, device.masks, data, memory, instruction.epochs, number)
    seen = device.seen.copy()
    seen[np.unique(data.y)] = True
    return replace(device, memory=session.memory, task=instruction.task, seen=seen), session


def report(
    device: DeviceState, session: Session, importance: dict[str, np.ndarray] | None, learner: Learner, values: codec.Values
) -> tuple[DeviceState, Report]:
    """The update of `session` as bytes, and the device with what encoding lost kept back.

    Args:
        importance: I per sparse tensor, or None if it was not asked for; sent in 8 bits (`f64` where values are lossless).
        values: how the update is coded.
    """
    layout = learner.layout
    tensors, residual = {}, {}
    for name in layout.shapes:
        delta = (session.state[name] - device.base[name]).reshape(-1)
        places = np.flatnonzero(delta)
        wanted = delta[places] + device.residual[name].reshape(-1)[places]
        tensors[name] = SparseTensor(places, wanted)
        residual[name] = device.residual[name].copy()
        residual[name].reshape(-1)[places] = wanted - codec.quantised(wanted, values)
    version, mask_version = device.version, device.mask_version
    delta = codec.encode("delta", layout, tensors, device.masks, values, version, mask_version)
    ranked = b""
    if importance is not None:
        active = {name: np.flatnonzero(mask) for name, mask in device.masks.items()}
        scores = {name: SparseTensor(places, importance[name].reshape(-1)[places]) for name, places in active.items()}
        code = "u8" if values in ("f16", "u8") else "f64"
        ranked = codec.encode("importance", layout, scores, device.masks, code, version, mask_version)
    return replace(device, residual=residual), Report(version, session.samples, device.seen, delta, ranked)


def save_state(device: DeviceState) -> bytes:
    """The device as safetensors bytes."""
    memory, buffer, removal = device.memory, device.memory.buffer, device.memory.ddr
    arrays = {
        "scalars": np.array(
            [device.task, device.version, device.mask_version, memory.epochs, memory.twin_offered, buffer.offered, removal.stages],
            dtype=np.int64,
        ),
        "seen": device.seen,
        "buffer.x": buffer.x,
        "buffer.y": buffer.y,
        "buffer.logits": buffer.logits,
    }
    arrays |= {f"ddr.{key}": getattr(removal, key) for key in _DDR_ARRAYS}
    for part in ("base", "masks", "residual"):
        arrays |= {f"{part}/{name}": value for name, value in getattr(device, part).items()}
    return save({key: np.ascontiguousarray(value) for key, value in arrays.items()})


def load_state(data: bytes) -> DeviceState:
    """The inverse of `save_state`."""
    arrays = load(data)
    task, version, mask_version, epochs, twin_offered, offered, stages = map(int, arrays["scalars"])
    buffer = rehearsal.Buffer(arrays["buffer.x"], arrays["buffer.y"], arrays["buffer.logits"], offered)
    removal = ddr.DDRState(*(arrays[f"ddr.{key}"].copy() for key in _DDR_ARRAYS), stages=stages)
    parts = {
        part: {key.removeprefix(f"{part}/"): value for key, value in arrays.items() if key.startswith(f"{part}/")}
        for part in ("base", "masks", "residual")
    }
    memory = Memory(buffer, removal, epochs, twin_offered)
    return DeviceState(**parts, memory=memory, seen=arrays["seen"], task=task, version=version, mask_version=mask_version)


_DDR_ARRAYS = ("kept", "misses", "forgotten", "learned", "was_right", "passes")


def _expect(got: int, wanted: int, what: str) -> None:
    if got != wanted:
        raise CodecError(f"payload brings {what} version {got} where {wanted} must follow")


def _expect_all(payload: codec.Payload, names: Iterable[str]) -> None:
    if missing := [name for name in names if name not in payload.tensors]:
        raise CodecError(f"payload {payload.kind!r} leaves out {missing[0]}")


def _scatter(tensor: SparseTensor, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    array = np.zeros(shape, dtype)
    array.reshape(-1)[tensor.places] = tensor.values
    return array


def _support(tensor: SparseTensor, shape: tuple[int, ...]) -> np.ndarray:
    mask = np.zeros(shape, dtype=bool)
    mask.reshape(-1)[tensor.places] = True
    return mask
